"""Samplers of gates: each draws what it says, off ties and without repeats; what share is covered."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import convexnn_models as cnn
from convexnn_models import samplers
from convexnn_models.samplers import Samples

Array = NDArray[np.float64]
RNG = np.random.default_rng(0)
DATA: dict[str, Array] = {
    "generic": RNG.standard_normal((12, 4)),
    "wide": RNG.standard_normal((4, 9)),
    "one row": RNG.standard_normal((1, 4)),
    "zero and double rows": RNG.standard_normal((9, 4))[[0, 1, 2, 3, 3, 4, 5]]
    * np.r_[1, 1, 0, 1, 1, 1, 1][:, None],
    "rank two": RNG.standard_normal((8, 2)) @ RNG.standard_normal((2, 4)),
    "grid": np.array(list(itertools.product([-1.0, 0.0, 1.0], repeat=2)))[:, [0, 1, 0, 1]],
    "scales": RNG.standard_normal((8, 4)) * np.logspace(-6, 6, 8)[:, None],
}
SAMPLERS: dict[str, Any] = {
    name: name for name in ("gaussian", "sphere", "differences", "quantiles", "sparse", "vertices")
}
SAMPLERS["two features"] = samplers.feature_sparse(2)


def as_set(patterns: NDArray[np.bool_]) -> set[bytes]:
    return {column.tobytes() for column in np.ascontiguousarray(patterns.T)}


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_gives_distinct_patterns_of_open_cells(name: str, bias: bool) -> None:
    for key, X in DATA.items():
        if name == "quantiles" and not bias:
            continue
        if name == "differences" and key == "one row":
            with pytest.raises(ValueError, match="no pattern"):
                cnn.sample_gates(X, 5, bias=bias, sampler=SAMPLERS[name])
            continue
        before = X.copy()
        gates = cnn.sample_gates(X, 30, seed=3, bias=bias, sampler=SAMPLERS[name])
        again = cnn.sample_gates(X, 30, seed=3, bias=bias, sampler=SAMPLERS[name])
        assert np.array_equal(X, before)
        assert np.array_equal(gates.vectors, again.vectors)
        data = np.hstack([X, np.ones((len(X), 1))]) if bias else X
        assert np.array_equal(gates.patterns, data @ gates.vectors >= 0.0)
        assert len(as_set(gates.patterns)) == len(gates)
        assert as_set(gates.patterns) <= as_set(cnn.all_gates(X, bias=bias).patterns)
        assert str(cnn.coverage(gates, X, bias=bias)).startswith(f"{len(gates)} of")


def test_directions_on_the_sphere_have_the_patterns_of_gaussian_ones() -> None:
    X = DATA["generic"]
    sphere = cnn.sample_gates(X, 30, seed=1, sampler="sphere")
    np.testing.assert_allclose(np.linalg.norm(sphere.vectors, axis=0), 1.0)
    assert np.array_equal(sphere.patterns, cnn.sample_gates(X, 30, seed=1).patterns)


def test_differences_pass_half_way_between_two_samples() -> None:
    X = DATA["generic"]
    rows = np.hstack([X, np.ones((len(X), 1))])
    for vector in samplers.differences(Samples(rows, True), 20, np.random.default_rng(0)):
        heights = rows @ vector
        pair = 0.5 * float(vector[:-1] @ vector[:-1])
        assert np.isclose(heights, pair).any()
        assert np.isclose(heights, -pair).any()
        assert np.isclose(np.linalg.norm(X[:, None] - X[None], axis=2), np.linalg.norm(vector[:-1])).any()


def test_quantiles_make_every_activity_equally_likely() -> None:
    rng = np.random.default_rng(0)
    rows = np.hstack([rng.standard_normal((10, 3)), np.ones((10, 1))])
    gates = samplers.quantiles(Samples(rows, True), 5000, np.random.default_rng(0))
    counts = np.bincount(np.sum(rows @ gates.T >= 0.0, axis=0), minlength=11)
    assert counts[0] == 0
    assert np.all(np.abs(counts[1:] - 500) < 120)


@pytest.mark.parametrize(("features", "size"), [(None, 3), (1, 1), (9, 9)])
def test_sparse_gates_look_at_few_features(features: int | None, size: int) -> None:
    rng = np.random.default_rng(0)
    rows = np.hstack([rng.standard_normal((10, 9)), np.ones((10, 1))])
    gates = samplers.feature_sparse(features)(Samples(rows, True), 400, np.random.default_rng(0))
    assert np.all(np.count_nonzero(gates[:, :9], axis=1) == size)
    assert np.all(gates[:, 9] != 0.0)
    assert np.all(np.count_nonzero(gates[:, :9], axis=0) > 0)


@pytest.mark.parametrize("channels", [1, 3])
def test_convolutional_gates_look_at_one_window(channels: int) -> None:
    rng = np.random.default_rng(0)
    shape = (5, 7) if channels == 1 else (5, 7, channels)
    X = rng.standard_normal((6, 35 * channels))
    gates = cnn.sample_gates(X, 30, sampler=samplers.convolutional(shape, 3))
    corners = set()
    for gate in gates.vectors.T:
        rows, columns = np.nonzero(gate.reshape(5, 7, channels).any(axis=2))
        assert int(np.ptp(rows)) == int(np.ptp(columns)) == 2
        assert np.count_nonzero(gate) == 9 * channels
        corners.add((rows.min(), columns.min()))
    assert len(corners) > 5


def test_vertices_find_the_thin_cells_that_gaussian_gates_miss() -> None:
    X = np.random.default_rng(5).standard_normal((14, 3))
    X[1] = X[0] + 1e-5 * X[2]  # nearly parallel: thin cells between the two
    everything = len(cnn.all_gates(X))
    found = {
        name: cnn.coverage(cnn.sample_gates(X, everything, sampler=name), X)
        for name in ("gaussian", "vertices")
    }
    assert found["vertices"].share == 1.0
    assert found["gaussian"].share < 0.99


def test_coverage_counts_against_the_truth_or_says_that_it_cannot() -> None:
    rng = np.random.default_rng(0)
    X = np.random.default_rng(0).standard_normal((9, 3))
    gates = cnn.all_gates(X)
    whole = cnn.coverage(gates, X)
    assert whole.share == 1.0
    assert whole.total == np.count_nonzero(gates.patterns.any(axis=0)) <= cnn.count_patterns(9, 3)
    some = cnn.coverage(cnn.sample_gates(X, 7), X)
    assert (some.found, some.listed, some.foreign) == (7, True, 0)
    assert str(some) == f"7 of the {whole.total} patterns ({7 / whole.total:.1%})"
    tied = np.array([[0.0, 1.0], [1.0, 0.0], [-1.0, 0.0]])  # a gate through two opposite samples
    mixed = cnn.coverage(cnn.Gates(np.eye(2)[:, :1], tied @ np.eye(2)[:, :1] >= 0.0, "a tie"), tied)
    assert (mixed.found, mixed.total, mixed.foreign) == (1, 4, 0)
    both = np.array([[0.0], [1.0]])
    opposite = np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]])
    foreign = cnn.coverage(cnn.Gates(both, opposite @ both >= 0.0, "a tie"), opposite)
    assert (foreign.found, foreign.foreign) == (0, 1)
    large = np.random.default_rng(0).standard_normal((60, 8))
    unknown = cnn.coverage(cnn.sample_gates(large, 20), large, max_patterns=1000)
    assert (unknown.found, unknown.listed, unknown.foreign) == (20, False, None)
    assert "too many" in str(unknown)
    few = np.repeat(rng.standard_normal((5, 2)), 40, axis=0)  # Cover's number is larger than the truth
    assert cnn.coverage(cnn.sample_gates(few, 3), few, max_patterns=100).total <= 10


X_OK = np.eye(4)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: cnn.sample_gates(X_OK, 3, sampler="gauss"), "'gaussian', 'sphere'"),
        (lambda: cnn.sample_gates(X_OK, 3, sampler="quantiles"), "bias=True"),
        (lambda: cnn.sample_gates(X_OK, 3, sampler=samplers.feature_sparse(5)), "at most 4"),
        (lambda: cnn.sample_gates(X_OK, 3, sampler=samplers.convolutional((3, 2), 1)), "4 entries"),
        (lambda: cnn.sample_gates(X_OK, 3, sampler=lambda s, m, rng: rng.random((m, 3))), "finite vectors"),
        (
            lambda: cnn.sample_gates(X_OK, 3, sampler=lambda s, m, rng: np.full((m, 4), np.nan)),
            "finite vectors",
        ),
        (lambda: samplers.convolutional((3, 2), 3), "at most 2"),
        (lambda: samplers.convolutional((3,), 1), "shape must be"),
        (lambda: cnn.coverage(cnn.sample_gates(X_OK, 3), X_OK, bias=True), "features"),
    ],
)
def test_bad_arguments_are_named(call: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        call()


def test_samples_that_a_sampler_cannot_tell_apart_are_its_fault_too() -> None:
    """Differences of equal samples are zero, a gate through all of them; Gaussian ones are not."""
    X = np.ones((5, 2))
    with pytest.raises(ValueError, match="another sampler"):
        cnn.sample_gates(X, 3, sampler="differences")
    assert cnn.sample_gates(X, 3).patterns.shape == (5, 1)
