"""Splits of gated neurons: in their cones, exact, and as cheap as they are said to be, either way."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from numpy.typing import NDArray

import convexnn_models as cnn
from convexnn_models.cone_decomposition import Decomposition
from convexnn_models.cone_splits import GatedNeurons, fista, splits

Array = NDArray[np.float64]
SIZES = [(20, 2, 10), (50, 4, 12), (12, 15, 8), (100, 6, 5)]


def neurons(n: int, d: int, m: int, case: str = "plain", seed: int = 0) -> GatedNeurons:
    """Random weights behind random gates; a weight of zero, one along its gate and one against it."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, d))
    if case == "degenerate":
        X[1], X[2], X[3] = 0.0, X[4], 3.0 * X[4]
    X *= {"large": 1e150, "small": 1e-150}.get(case, 1.0)
    gates = cnn.sample_gates(X, m, seed=seed)
    hidden = rng.standard_normal((d, m)) * 10.0 ** rng.integers(-8, 9, m)
    hidden[:, 0], hidden[:, 1], hidden[:, 2] = 0.0, gates.vectors[:, 1], -2.0 * gates.vectors[:, 2]
    return GatedNeurons(X, gates.vectors, gates.patterns, hidden)


def costs(parts: Array) -> Array:
    return np.asarray(np.linalg.norm(parts, axis=0).reshape(-1, 2).sum(axis=1))


@pytest.mark.parametrize("smoothed", [False, True])
@pytest.mark.parametrize("case", ["plain", "degenerate", "large", "small"])
@pytest.mark.parametrize("size", SIZES[:3])
def test_both_parts_are_in_the_cone_and_their_difference_is_the_neuron(
    size: tuple[int, int, int], case: str, smoothed: bool
) -> None:
    given = neurons(*size, case)
    parts = splits(given, smoothed=smoothed)
    v, w = parts[:, 0::2], parts[:, 1::2]
    lengths = np.linalg.norm(v, axis=0) + np.linalg.norm(w, axis=0)
    assert np.all(np.abs(v - w - given.hidden) <= 1e-14 * lengths)
    for part in (v, w):
        slack = given.signs * (given.rows @ part)
        assert np.all(slack >= -1e-14 * lengths)
    np.testing.assert_array_equal(parts[:, :2], 0.0)
    np.testing.assert_array_equal(v[:, 1], given.hidden[:, 1])  # along its gate: one part is enough
    np.testing.assert_array_equal(w[:, 2], -given.hidden[:, 2])
    assert not w[:, 1].any()
    assert not v[:, 2].any()


@pytest.mark.parametrize(("size", "factor"), [*((size, 1.02) for size in SIZES[:3]), (SIZES[3], 1.2)])
def test_the_smoothed_split_is_hardly_dearer_than_the_cheapest(
    size: tuple[int, int, int], factor: float
) -> None:
    given = neurons(*size)
    cheapest, found = costs(splits(given)), costs(splits(given, smoothed=True))
    assert np.all(found >= cheapest * (1.0 - 1e-6))
    assert np.sum(found[3:] / cheapest[3:]) <= factor * (found.size - 3)


def test_a_split_known_by_hand_is_found() -> None:
    """u = (0, 2) and K = {|z_2| <= z_1}: v = (1, 1), w = (1, -1) is the cheapest, of cost 2 sqrt 2."""
    X = np.array([[1.0, 1.0], [1.0, -1.0]])
    given = GatedNeurons(
        X, np.array([[1.0], [0.0]]), np.ones((2, 1), dtype=np.bool_), np.array([[0.0], [2.0]])
    )
    for smoothed, room in ((False, 1e-6), (True, 0.02)):
        parts = splits(given, smoothed=smoothed)
        np.testing.assert_allclose(parts, [[1.0, 1.0], [1.0, -1.0]], atol=2.0 * room)
        assert 2.0 * np.sqrt(2.0) * (1.0 - 1e-9) <= costs(parts)[0] <= 2.0 * np.sqrt(2.0) * (1.0 + room)


@pytest.mark.parametrize("outputs", [1, 2])
@pytest.mark.parametrize("bias", [False, True])
def test_the_approximate_network_is_the_same_function_at_a_higher_price(bias: bool, outputs: int) -> None:
    rng = np.random.default_rng(5)
    X = rng.standard_normal((30, 3))
    y = rng.standard_normal((30, outputs)) if outputs > 1 else rng.standard_normal(30)
    gates = cnn.sample_gates(X, 6, bias=bias)
    hidden = rng.standard_normal((3 + bias, 6))
    network = cnn.Network(
        hidden[:3],
        rng.standard_normal((6, outputs)),
        b1=hidden[3] if bias else None,
        gates=gates.vectors[:3],
        gate_bias=gates.vectors[3] if bias else None,
    )
    reports = []
    for approximate in (False, True):
        relu = cnn.to_relu(network, X, y, 1e-3, approximate=approximate)
        report = relu.info
        assert isinstance(report, Decomposition)
        assert report.deviation <= 1e-12 * np.abs(network.predict(X)).max() * report.stretch
        assert relu.objective(X, y, 1e-3) == pytest.approx(report.objective, rel=1e-12)
        assert report.objective <= min(report.raw_objective, report.zero_objective)
        reports.append(report)
    exact, rough = reports
    assert exact.raw_objective <= rough.raw_objective * (1.0 + 1e-7)
    assert rough.raw_objective <= 1.1 * exact.raw_objective


def test_only_neurons_that_must_be_split_need_an_interior() -> None:
    X = np.array([[1.0, 0.0], [-1.0, 0.0], [0.3, 1.0]])
    gate = np.array([[0.0], [1.0]])
    patterns = X @ gate >= 0.0
    along = GatedNeurons(X, gate, patterns, 3.0 * gate)
    across = GatedNeurons(X, gate, patterns, np.array([[1.0], [0.5]]))
    for smoothed in (False, True):
        np.testing.assert_array_equal(splits(along, smoothed=smoothed), [[0.0, 0.0], [3.0, 0.0]])
        with pytest.raises(ValueError, match="gate 0 passes through a sample"):
            splits(across, smoothed=smoothed)


def test_a_thin_cone_is_split_along_its_gate_when_linear_programming_sees_no_width() -> None:
    """K = {|z_2| <= 1e-10 z_1}: u = (0, 1) needs parts of length 5e9, and nothing shorter."""
    X = np.array([[1e-10, 1.0], [1e-10, -1.0]])
    given = GatedNeurons(
        X, np.array([[1.0], [0.0]]), np.ones((2, 1), dtype=np.bool_), np.array([[0.0], [1.0]])
    )
    parts = splits(given, smoothed=True)
    assert 1e10 * (1.0 - 1e-6) <= costs(parts)[0] <= 3e10
    assert np.all(given.signs[:, [0, 0]] * (given.rows @ parts) >= -1e-14 * costs(parts)[0])


@pytest.mark.parametrize(("condition", "left"), [(3.0, 1e-10), (10.0, 1e-7), (30.0, 1e-3)])
def test_accelerated_steps_restart_column_by_column(condition: float, left: float) -> None:
    """Of ``1/2 sum h w^2``: without restarts at least 20 times as much would be left after as many steps."""
    h = np.array([[1.0, 1.0], [1.0 / condition, 0.5]])
    start, step = np.ones((2, 2)), np.array([1.0, 0.9])
    together = fista(partial(np.multiply, h), start, step)
    assert np.abs(together[:, 0]).max() <= left
    for k in range(2):
        own = slice(k, k + 1)
        alone = fista(partial(np.multiply, h[:, own]), start[:, own], step[own])
        np.testing.assert_array_equal(together[:, own], alone)
    np.testing.assert_array_equal(start, np.ones((2, 2)))
