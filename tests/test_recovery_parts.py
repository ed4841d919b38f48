"""Pruning and cone decomposition on cases small enough to know every number."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import convexnn_models as cnn
from convexnn_models import pruning
from convexnn_models.cone_decomposition import Decomposition
from convexnn_models.pruning import pruning_factors
from convexnn_models.recovery import Recovery
from convexnn_solvers import Auto

Float = NDArray[np.float64]
ONE = np.ones((1, 1))


def factors(hidden: Any, outputs: Any, cost: Any) -> Float:
    return pruning_factors(np.array(hidden), np.array(outputs), np.array(cost))


@pytest.mark.parametrize(
    ("hidden", "outputs", "cost", "expected"),
    [
        # per unit of what they contribute the first costs 1, the second 3/2: and the other way round
        ([[1.0, 2.0], [1.0, 2.0]], [[1.0], [1.0]], [1.0, 3.0], [3.0, 0.0]),
        ([[1.0, 2.0], [1.0, 2.0]], [[1.0], [1.0]], [1.0, 1.5], [0.0, 1.5]),
        # the output weights count: contributions 3 and 2, costs per unit 1 and 1.1
        ([[1.0, 2.0], [0.0, 0.0]], [[3.0], [1.0]], [3.0, 2.2], [5.0 / 3.0, 0.0]),
        # opposite contributions cancel: both go when equal, else the difference stays
        ([[1.0, 1.0], [2.0, 2.0]], [[1.0], [-1.0]], [1.0, 1.0], [0.0, 0.0]),
        ([[1.0, 1.0], [2.0, 2.0]], [[3.0], [-1.0]], [1.0, 1.0], [2.0 / 3.0, 0.0]),
        ([[1.0, 1.0], [2.0, 2.0]], [[1.0], [-4.0]], [1.0, 1.0], [0.0, 0.75]),
        # nothing computed, or nothing put out: cost without effect
        ([[0.0, 1.0]], [[1.0], [1.0]], [1.0, 1.0], [0.0, 1.0]),
        ([[1.0, 1.0], [0.0, 1.0]], [[0.0], [1.0]], [1.0, 1.0], [0.0, 1.0]),
        # neurons of different outputs do not see each other
        ([[1.0, 1.0]], [[1.0, 0.0], [0.0, 1.0]], [1.0, 5.0], [1.0, 1.0]),
        # the same two outputs in the same proportion do
        ([[1.0, 1.0]], [[1.0, 1.0], [1.0, 1.0]], [1.0, 5.0], [2.0, 0.0]),
        ([[1.0, 1.0]], [[1.0, 1.0], [1.0, -1.0]], [1.0, 5.0], [1.0, 1.0]),
        # three in a plane: the middle one, 1 + 1 = 2 halves, is dearer than the two outer ones
        ([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]], [[1.0]] * 3, [1.0, 1.0, 3.0], [2.0, 2.0, 0.0]),
        ([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]], [[1.0]] * 3, [1.0, 1.5, 1.0], [0.0, 0.0, 2.0]),
        ([[1.0]], [[2.0]], [1.0], [1.0]),
    ],
)
def test_pruning_factors_by_hand(hidden: Any, outputs: Any, cost: Any, expected: list[float]) -> None:
    for permutation in (slice(None), slice(None, None, -1)):
        h, a, p = (
            np.array(hidden)[:, permutation],
            np.array(outputs)[permutation],
            np.array(cost)[permutation],
        )
        np.testing.assert_allclose(pruning_factors(h, a, p), np.array(expected)[permutation], atol=1e-14)


def test_equal_costs_leave_one_of_two_alike_at_the_same_cost() -> None:
    found = factors([[1.0, 2.0]], [[1.0], [1.0]], [1.0, 2.0])
    assert np.count_nonzero(found) == 1
    assert found @ [1.0, 2.0] == pytest.approx(3.0, rel=1e-15)


@pytest.mark.parametrize("seed", range(12))
def test_ties_are_broken_whatever_their_rounding(seed: int) -> None:
    """Copies of one neuron in several sizes, each at a cost in proportion: any one of them may stay."""
    rng = np.random.default_rng(seed)
    sizes = rng.uniform(0.1, 3.0, 4)
    found = factors(np.outer(rng.standard_normal(3), sizes), np.ones((4, 1)), 0.7 * sizes)
    assert np.count_nonzero(found) == 1
    assert found @ sizes == pytest.approx(sizes.sum(), rel=1e-14)


@pytest.mark.parametrize("unit", [1e-13, 1e13])
def test_the_unit_of_the_cost_does_not_matter(unit: float) -> None:
    rng = np.random.default_rng(5)
    hidden, cost = rng.standard_normal((2, 6)), rng.uniform(0.5, 2.0, 6)
    plain = factors(hidden, np.ones((6, 1)), cost)
    assert np.count_nonzero(plain) == 2
    np.testing.assert_allclose(factors(hidden, np.ones((6, 1)), unit * cost), plain, rtol=1e-9)
    np.testing.assert_allclose(factors(hidden / unit, np.ones((6, 1)), cost), plain, rtol=1e-9)


@pytest.mark.parametrize("turn", [1.0, -1.0])
def test_neurons_that_cost_next_to_nothing_still_cancel(turn: float) -> None:
    """The cost falls by less than the rounding of what the first neuron costs, but in one direction only."""
    for angle in (0.0, 1.0, 2.5, 4.0):
        first, second = (np.array([np.cos(angle + t), np.sin(angle + t)]) for t in (0.0, 1.5))
        hidden = np.stack([first, second, -turn * second, 3.0 * second], axis=1)
        outputs = np.array([[1.0], [1.0], [turn], [-1.0]])
        found = factors(hidden, outputs, [1.0, 1e-12, 1e-12, 3e-12])
        np.testing.assert_allclose(found, [1.0, 0.0, 0.0, 1.0], atol=1e-12)


def test_no_neurons_stay_no_neurons() -> None:
    assert pruning_factors(np.zeros((3, 0)), np.zeros((0, 1)), np.zeros(0)).shape == (0,)
    assert factors([[0.0, 0.0]], [[1.0], [2.0]], [1.0, 1.0]).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("alone", [True, False])
def test_beyond_a_limit_only_what_the_bound_needs_is_attempted(
    alone: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit is one of neurons that may depend on each other: those of one output, where each has one."""
    hidden = np.tile(np.eye(8)[:, :2], 4)
    outputs: Float = np.repeat(np.eye(2), 4, axis=0) + float(not alone)
    cost = np.arange(1.0, 9.0)
    counts = []
    for limit in (8, 4, 3):
        monkeypatch.setattr(pruning, "_GRAM_LIMIT", limit)
        found = pruning_factors(hidden, outputs, cost)
        counts.append(np.count_nonzero(found))
        together = np.einsum("nm,m,mc->nc", hidden, found, outputs)
        np.testing.assert_allclose(together, hidden @ outputs, atol=1e-13)
    assert counts == ([4, 4, 8] if alone else [4, 8, 8])
    many = pruning_factors(np.tile(hidden[:2], 3), np.tile(outputs, (3, 1)), np.tile(cost, 3))
    assert np.count_nonzero(many) == 4  # more neurons than 2 samples x 2 outputs


@pytest.mark.parametrize("outputs", [1, 2])
def test_neurons_that_are_clearly_independent_need_no_singular_values(
    outputs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unexpected(*arguments: Any, **options: Any) -> Any:
        raise AssertionError("the Gram matrix is well conditioned")

    monkeypatch.setattr(np.linalg, "svd", unexpected)
    rng = np.random.default_rng(2)
    hidden, weights = rng.standard_normal((30, 9)), rng.standard_normal((9, outputs))
    assert pruning_factors(hidden, weights, np.ones(9)).tolist() == [1.0] * 9


@pytest.mark.parametrize("angle", [1e-2, 1e-4, 1e-7])
def test_neurons_that_are_nearly_alike_are_both_kept(angle: float) -> None:
    """Dependence is judged to rounding: merging these would move predictions."""
    hidden = [[1.0, 1.0], [0.0, angle], [0.0, 0.0]]
    assert factors(hidden, [[1.0], [1.0]], [1.0, 1.0]).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("shape", [(3, 7), (7, 6), (2, 9)])
def test_the_cost_reached_is_that_of_no_further_move(shape: tuple[int, int]) -> None:
    """No dependency among the kept neurons and their cost not above that at the start, from any start."""
    n, m = shape
    for seed in range(5):
        rng = np.random.default_rng(seed)
        hidden = rng.standard_normal((n, 3)) @ rng.standard_normal((3, m))
        cost = rng.uniform(0.5, 2.0, m)
        found = pruning_factors(hidden, np.ones((m, 1)), cost)
        assert np.count_nonzero(found) == min(n, 3)
        np.testing.assert_allclose(hidden @ found, hidden.sum(axis=1), atol=1e-12)
        assert found @ cost < cost.sum()


def test_a_small_neuron_goes_only_where_the_objective_does_not_notice() -> None:
    """Labels at twice the prediction feel a neuron of size 1e-9 that helps; at the labels its cost is all."""
    X = np.random.default_rng(0).standard_normal((6, 2))
    model = cnn.gated_relu(X, cnn.sample_gates(X, 2))
    assert model.gates is not None
    first = model.gates.patterns[:, 0] * (X @ [1.0, 0.5])
    helping = X.T @ (model.gates.patterns[:, 1] * first)
    model.variables[0].value = np.column_stack([[1.0, 0.5], 1e-9 * helping / np.linalg.norm(helping)])
    for factor, width in ((2.0, 2), (1.0, 1)):
        model.problem(factor * first, 1e-3)
        network = cnn.recover(model)
        assert network.width == width
        assert network.info.width_before == 2
        np.testing.assert_allclose(network.predict(X), first, atol=1e-7)


def two_sided(u: tuple[float, float]) -> tuple[cnn.Network, Float]:
    """One gated neuron with weights u and gate (1, 0) on the samples (1, 1) and (1, -1), where it is on."""
    X = np.array([[1.0, 1.0], [1.0, -1.0]])
    gates = np.array([[1.0], [0.0]])
    return cnn.Network(np.array(u)[:, None], ONE, gates=gates), X


def test_a_neuron_is_split_at_the_least_cost() -> None:
    """u = (0, 2) needs v - w = u with v, w in {|u_2| <= u_1}: v = (1, 1), w = (1, -1)."""
    network, X = two_sided((0.0, 2.0))
    y = network.predict(X)
    np.testing.assert_array_equal(y, [2.0, -2.0])
    report = cnn.to_relu(network, X, y, 0.1).info
    assert isinstance(report, Decomposition)
    with pytest.raises(AttributeError):  # a report says what was found
        report.stretch = 0.0  # type: ignore[misc]
    assert report.raw_objective == pytest.approx(0.1 * 2.0 * np.sqrt(2.0), rel=1e-6)
    assert report.gated_objective == pytest.approx(0.1 * 0.5 * (4.0 + 1.0), rel=1e-12)
    assert report.stretch == pytest.approx(np.sqrt(2.0) / 2.0, rel=1e-5)
    assert report.zero_objective == pytest.approx(2.0, rel=1e-9)


def test_scales_are_refitted_to_the_objective() -> None:
    """min 1/4 sum (2 s - 2)^2 + reg 2 sqrt(2) s over both scales s: s = 1 - reg / sqrt 2 by symmetry."""
    network, X = two_sided((0.0, 2.0))
    y = network.predict(X)
    for reg in (0.1, 0.5):
        relu = cnn.to_relu(network, X, y, reg)
        scale = 1.0 - reg / np.sqrt(2.0)
        value = (2.0 - 2.0 * scale) ** 2 / 2.0 + reg * 2.0 * np.sqrt(2.0) * scale
        assert relu.info.objective == pytest.approx(value, rel=1e-6)
        assert relu.objective(X, y, reg) == pytest.approx(value, rel=1e-6)
        np.testing.assert_allclose(relu.predict(X), scale * y, rtol=1e-4)
        assert relu.width == 2
        np.testing.assert_allclose(np.linalg.norm(relu.W1, axis=0), np.abs(relu.W2[:, 0]), rtol=1e-9)
    assert cnn.to_relu(network, X, y, 1.5).width == 0  # beyond sqrt 2 nothing is worth its cost


@pytest.mark.parametrize(("u", "width"), [((2.0, 1.0), 1), ((-2.0, 1.0), 1), ((0.0, 2.0), 2)])
def test_a_neuron_within_its_cone_or_the_opposite_one_stays_one(u: tuple[float, float], width: int) -> None:
    network, X = two_sided(u)
    relu = cnn.to_relu(network, X, network.predict(X), 1e-9)
    assert relu.width == width
    if width == 1:  # one part is the neuron, the other nothing
        assert relu.info.stretch == pytest.approx(1.0, rel=1e-12)
    np.testing.assert_allclose(relu.predict(X), network.predict(X), atol=1e-6)
    assert relu.slope == 0.0
    assert not relu.gated


def test_without_neurons_the_output_bias_alone_is_fitted() -> None:
    X = np.array([[1.0, 1.0], [1.0, -1.0]])
    network = cnn.Network(np.zeros((2, 1)), ONE, b2=np.zeros(1), gates=np.array([[1.0], [0.0]]))
    relu = cnn.to_relu(network, X, np.array([3.0, 5.0]), 0.1)
    assert relu.width == 0
    np.testing.assert_allclose(relu.predict(X), 4.0, rtol=1e-6)
    assert relu.info.zero_objective == pytest.approx(0.5, rel=1e-9)


def test_a_tie_of_opposite_samples_leaves_no_interior() -> None:
    """The gate (0, 1) holds (1, 0) and (-1, 0) at its plane: u = (1, 0) is on both sides, and no v - w is."""
    X = np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 5.0]])
    network = cnn.Network(np.array([[1.0], [0.3]]), ONE, gates=np.array([[0.0], [1.0]]))
    with pytest.raises(ValueError, match="gate 0 passes through a sample"):
        cnn.to_relu(network, X, np.ones(3), 0.1)


def test_a_single_tie_is_decomposed_beside_its_gate() -> None:
    """The gate (0, 1) has (1, 0) at its plane; (0.1, 1) is on the same sides, off all planes."""
    X = np.array([[1.0, 0.0], [-1.0, 3.0], [0.0, 0.0]])
    network = cnn.Network(np.array([[-1.0], [0.5]]), ONE, gates=np.array([[0.0], [1.0]]))
    y = network.predict(X)
    np.testing.assert_allclose(y, [-1.0, 2.5, 0.0])
    relu = cnn.to_relu(network, X, y, 1e-9)
    np.testing.assert_allclose(relu.predict(X), y, atol=1e-6)
    assert relu.info.raw_objective <= 1e-7


def test_what_the_training_problem_lacks_is_named() -> None:
    network, X = two_sided((0.0, 2.0))
    cases: list[tuple[tuple[Any, ...], str]] = [
        ((), "X is needed"),
        ((X,), "y and reg are needed"),
        ((X, np.ones(2)), "y and reg are needed"),
        ((X, None, 0.1), "y and reg are needed"),
        ((X[:, :1], np.ones(2), 0.1), "X must have 2 columns, not 1"),
        ((X, np.ones(2), -0.1), "reg must be at least 0"),
    ]
    for arguments, sentence in cases:
        with pytest.raises(ValueError, match=sentence):
            cnn.to_relu(network, *arguments)
    free = cnn.to_relu(network, X, np.ones(2), 0.0)  # the first label is fitted, the second cannot be
    assert free.info.objective == pytest.approx(0.25, rel=1e-6)


def test_gates_with_a_bias_need_neurons_with_one() -> None:
    network = cnn.Network(np.ones((2, 1)), ONE, gates=np.array([[1.0], [0.0]]), gate_bias=np.array([0.1]))
    with pytest.raises(ValueError, match="bias=True"):
        cnn.to_relu(network, np.eye(2), np.ones(2), 0.1)


def test_leaky_gated_networks_are_refused() -> None:
    network = cnn.Network(np.ones((2, 1)), ONE, gates=np.array([[1.0], [0.0]]), slope=0.1)
    with pytest.raises(ValueError, match="slope 0"):
        cnn.to_relu(network, np.eye(2), np.ones(2), 0.1)


@pytest.mark.parametrize("outputs", [1, 2])
@pytest.mark.parametrize("grouping", ["shared", "per-output", "nuclear"])
def test_the_reported_convex_penalty_is_that_of_the_model(grouping: str, outputs: int) -> None:
    """Of outputs that share their gates too, where the network's own penalty is another number."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((12, 3))
    model = cnn.gated_relu(X, cnn.sample_gates(X, 5, seed=0), outputs=outputs, grouping=grouping)
    for variable in model.variables:
        variable.value = rng.standard_normal(variable.shape)
    report = cnn.recover(model, prune=False).info
    assert isinstance(report, Recovery)
    with pytest.raises(AttributeError):  # a report says what was found
        report.convex_penalty = 0.0  # type: ignore[misc]
    assert report.convex_penalty == pytest.approx(float(model.penalty.value), rel=1e-12)
    assert (report.pruning_change, report.shift, report.prediction_shift) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("grouping", ["shared", "per-output"])
def test_so_is_that_of_a_relu_program_with_several_outputs(grouping: str) -> None:
    """Groups of outputs are told apart by gate and by sign: blocks of one gate may pay for both signs."""
    rng = np.random.default_rng(1)
    X = rng.standard_normal((9, 2))
    model = cnn.relu(X, cnn.sample_gates(X, 4, seed=0), outputs=2, grouping=grouping)
    problem = model.problem(rng.standard_normal((9, 2)), 1e-3)
    problem.solve(solver=Auto(tol=1e-3))
    V, W = (variable.value for variable in model.variables)
    assert np.any(V.any(axis=0) & W.any(axis=0))
    report = cnn.recover(model).info
    assert report.shift == 0.0
    assert report.convex_penalty == pytest.approx(float(model.penalty.value), rel=1e-12)
    assert report.network_penalty == pytest.approx(float(np.linalg.norm(_columns(V, W), axis=0).sum()))


def _columns(*weights: Float) -> Float:
    """The vectors of single outputs."""
    return np.hstack([part for W in weights for part in np.split(W, 2)])
