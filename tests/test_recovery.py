"""Recovered networks have the convex objective; pruning never raises it; nothing non-convex is better."""

from __future__ import annotations

from typing import Any, NamedTuple

import cvxpy as cp
import numpy as np
import pytest
from interior_point import optimum
from numpy.typing import NDArray
from scipy.optimize import minimize, nnls

import convexnn_models as cnn
from convexnn_models.cone_decomposition import Decomposition
from convexnn_models.gates import Gates
from convexnn_models.recovery import Recovery

Float = NDArray[np.float64]


class Case(NamedTuple):
    kind: str
    outputs: int = 1
    grouping: str = "shared"
    bias: bool = False
    output_bias: bool = False
    slope: float = 0.0


EXACT = [
    Case("gated"),
    Case("gated", bias=True, output_bias=True),
    Case("gated", 2, "per-output", output_bias=True),
    Case("gated", 3, "nuclear", bias=True),
    Case("cones"),
    Case("cones", bias=True, output_bias=True),
    Case("cones", 2, "per-output", bias=True, output_bias=True),
    Case("cones", slope=0.2),
    Case("cones", slope=-1.0, bias=True),
    Case("cones", 2, "per-output", slope=1.5),
]
INEXACT = [Case("gated", 3, output_bias=True), Case("cones", 2, bias=True)]
N, REG = 14, 0.03


def name(case: Case) -> str:
    return "-".join(str(part) for part in case)


def data(case: Case, seed: int = 0) -> tuple[Float, Float]:
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((N, 3))
    y = np.abs(X @ rng.standard_normal((3, case.outputs))) + 0.1 * rng.standard_normal((N, case.outputs))
    return X, y[:, 0] if case.outputs == 1 else y


def build(case: Case, X: Float, gates: int = 12) -> cnn.ConvexModel:
    chosen = cnn.sample_gates(X, gates, bias=case.bias)
    options: dict[str, Any] = case._asdict()
    kind, slope = options.pop("kind"), options.pop("slope")
    if kind == "gated":
        return cnn.gated_relu(X, chosen, **options)
    return cnn.piecewise_linear(X, chosen, slope, **options)


def projected(model: cnn.ConvexModel, W: Float) -> Float:
    """Every column and output on its cone, one non-negative least-squares problem each."""
    assert model.gates is not None
    d, result = model.X.shape[1], W.copy()
    for j, bits in enumerate(model.gates.patterns.T):
        signed = np.where(bits, 1.0, -1.0)[:, None] * model.X
        for k in range(model.outputs):
            block = slice(k * d, (k + 1) * d)
            rho, _ = nnls(signed.T, -W[block, j], maxiter=1000)
            result[block, j] = W[block, j] + signed.T @ rho
    return result


def objective_at_projection(model: cnn.ConvexModel, problem: Any) -> float:
    """The convex objective with every weight block on its cone; the variables keep their values."""
    if not model.cones:
        return float(problem.objective.value)
    held = [v.value for v in model.variables]
    for variable in model.variables[: len(model.signs)]:
        variable.value = projected(model, variable.value)
    value = float(problem.objective.value)
    for variable, values in zip(model.variables, held, strict=True):
        variable.value = values
    return value


def fill(model: cnn.ConvexModel, where: str, problem: Any) -> None:
    rng = np.random.default_rng(4)
    if where == "optimum":
        optimum(problem)
        return
    for variable in model.variables:
        variable.value = rng.standard_normal(variable.shape)
    if where == "sparse":
        for variable in model.variables[: len(model.signs)]:
            variable.value = variable.value * (rng.random(variable.shape[1]) < 0.3)


@pytest.mark.parametrize("where", ["optimum", "random", "sparse"])
@pytest.mark.parametrize("case", EXACT, ids=name)
def test_the_network_has_the_convex_objective(case: Case, where: str) -> None:
    X, y = data(case)
    model = build(case, X)
    problem = model.problem(y, REG)
    fill(model, where, problem)
    held = [np.copy(v.value) for v in model.variables]
    network = cnn.recover(model, prune=False)
    assert all(np.array_equal(v.value, h) for v, h in zip(model.variables, held, strict=True))
    assert network.objective(X, y, REG) == pytest.approx(objective_at_projection(model, problem), rel=1e-10)
    report = network.info
    assert isinstance(report, Recovery)
    assert report.relation == "its objective is the convex objective"
    assert report.network_penalty == pytest.approx(report.convex_penalty, rel=1e-10)
    assert report.width_before == network.width
    if where == "optimum":
        assert report.shift < 1e-6
    scores = network.predict(X)
    assert np.abs(scores - model.prediction.value).max() == pytest.approx(report.prediction_shift, abs=1e-9)


@pytest.mark.parametrize("where", ["optimum", "random", "sparse"])
@pytest.mark.parametrize("case", EXACT + INEXACT, ids=name)
def test_pruning_keeps_predictions_and_does_not_raise_the_objective(case: Case, where: str) -> None:
    X, y = data(case)
    model = build(case, X, gates=40)
    fill(model, where, model.problem(y, REG))
    whole, pruned = cnn.recover(model, prune=False), cnn.recover(model)
    before, after = whole.objective(X, y, REG), pruned.objective(X, y, REG)
    assert pruned.width <= N * case.outputs
    assert pruned.width <= whole.width
    assert after <= before * (1.0 + 1e-12)
    if where == "optimum" and case in EXACT:
        assert after == pytest.approx(before, rel=1e-8)
    if where != "optimum":
        assert pruned.predict(X) == pytest.approx(whole.predict(X), rel=1e-9, abs=1e-9)


def test_interior_point_solutions_become_narrow_once_the_objective_is_known() -> None:
    X, y = data(EXACT[4])
    model = build(EXACT[4], X, gates=40)
    loss = cp.sum_squares(model.prediction - y) / (2 * N)
    optimum(cp.Problem(cp.Minimize(loss + 0.2 * model.penalty), model.constraints))
    unaware = cnn.recover(model)
    model.problem(y, 0.2)
    aware = cnn.recover(model)
    assert aware.width < unaware.width <= N
    assert aware.objective(X, y, 0.2) == pytest.approx(unaware.objective(X, y, 0.2), rel=1e-8)
    assert aware.width < 10


def test_working_in_chunks_gives_the_same_network(monkeypatch: pytest.MonkeyPatch) -> None:
    X, y = data(EXACT[6])
    model = build(EXACT[6], X, gates=40)
    fill(model, "optimum", model.problem(y, REG))
    whole = cnn.recover(model)
    monkeypatch.setattr("convexnn_models.recovery._CHUNK_ENTRIES", 150)
    parts = cnn.recover(model)
    assert np.array_equal(whole.W1, parts.W1)
    assert whole.info.prediction_shift == pytest.approx(parts.info.prediction_shift, rel=1e-6)


@pytest.mark.parametrize("case", INEXACT, ids=name)
def test_shared_groups_state_their_relation(case: Case) -> None:
    X, y = data(case)
    model = build(case, X)
    convex = optimum(model.problem(y, REG))
    network = cnn.recover(model, prune=False)
    scores = network.predict(X)
    assert np.abs(scores - model.prediction.value).max() < 1e-6
    if case.kind == "gated":
        assert network.objective(X, y, REG) >= convex
        assert network.info.relation == "the convex objective is a lower bound of its objective"
        nuclear = optimum(build(case._replace(grouping="nuclear"), X).problem(y, REG), 1e-9, 1e-8)
        separate = optimum(build(case._replace(grouping="per-output"), X).problem(y, REG))
        assert convex <= nuclear * (1.0 + 1e-9)
        assert nuclear <= separate * (1.0 + 1e-9)
    else:
        assert "neither side" in network.info.relation


def test_the_zero_model_is_the_empty_network() -> None:
    X, y = data(EXACT[5])
    model = build(EXACT[5], X)
    model.problem(y, 1.0)
    for variable in model.variables:
        variable.value = np.zeros(variable.shape)
    network = cnn.recover(model)
    assert network.width == 0
    assert np.array_equal(network.predict(X), np.zeros(N))
    assert network.info.shift == 0.0


def trained(X: Float, y: Float, reg: float, slope: float, start: Float) -> float:
    """The non-convex objective after descent from ``start``: hidden weights (d, m), then output weights."""
    n, d = X.shape
    width = start.size // (d + 1)

    def value(flat: Float) -> tuple[float, Float]:
        W1, a = flat[: d * width].reshape(d, width), flat[d * width :]
        scores = X @ W1
        scale = np.where(scores >= 0.0, 1.0, slope)
        residual = (scale * scores) @ a - y
        gradient = X.T @ (scale * np.outer(residual, a)) / n + reg * W1
        total = residual @ residual / (2 * n) + 0.5 * reg * (flat @ flat)
        return float(total), np.concatenate([gradient.ravel(), (scale * scores).T @ residual / n + reg * a])

    return float(minimize(value, start, jac=True, method="L-BFGS-B", options={"maxiter": 2000}).fun)


@pytest.mark.parametrize("slope", [0.0, 0.2, -1.0])
def test_no_restart_of_non_convex_training_beats_the_convex_program(slope: float) -> None:
    rng = np.random.default_rng(0)
    X = rng.standard_normal((8, 2))
    y = rng.standard_normal(8)
    sampled = cnn.sample_gates(X, 100)  # with their complements, all 16 patterns
    vectors = np.hstack([sampled.vectors, -sampled.vectors])
    model = cnn.piecewise_linear(X, cnn.gates_from_vectors(X, vectors), slope)
    convex = optimum(model.problem(y, 0.02))
    best = min(trained(X, y, 0.02, slope, rng.standard_normal(60)) for _ in range(60))
    assert convex * (1.0 - 1e-7) <= best <= convex * (1.0 + 5e-3)
    network = cnn.recover(model)
    weights = np.concatenate([network.W1.ravel(), network.W2.ravel()])
    nearby = trained(X, y, 0.02, slope, weights * (1.0 + 1e-3 * rng.standard_normal(weights.size)))
    assert nearby == pytest.approx(convex, rel=1e-4)
    assert nearby >= convex * (1.0 - 1e-7)


def test_a_gated_model_becomes_a_gated_network_and_keeps_its_gates() -> None:
    X, y = data(EXACT[1])
    model = build(EXACT[1], X)
    optimum(model.problem(y, REG))
    network = cnn.recover(model)
    assert network.gated
    assert model.gates is not None
    assert np.array_equal(network.gate_vectors, model.gates.vectors[:, network.info.columns])
    assert "neurons" in str(network.info)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("output_bias", [False, True])
@pytest.mark.parametrize("outputs", [1, 2])
def test_the_cone_decomposition_is_a_bound_and_never_worse_than_nothing(
    outputs: int, output_bias: bool, bias: bool
) -> None:
    case = Case("gated", outputs, "per-output", bias, output_bias)
    X, y = data(case)
    for reg in (0.005, 0.05, 10.0):
        model = build(case, X)
        gated = optimum(model.problem(y, reg))
        network = cnn.to_relu(cnn.recover(model))
        report = network.info
        assert isinstance(report, Decomposition)
        assert not network.gated
        relu = optimum(build(case._replace(kind="cones"), X).problem(y, reg))
        objective = network.objective(X, y, reg)
        assert objective == pytest.approx(report.objective, rel=1e-12)
        assert gated * (1.0 - 1e-7) <= relu * (1.0 + 1e-7) <= objective * (1.0 + 2e-7)
        assert objective <= report.raw_objective
        assert objective <= report.zero_objective
        centred = y - y.mean(axis=0) if output_bias else y
        assert report.zero_objective == pytest.approx(float(np.sum(centred**2)) / (2 * N), rel=1e-6)


def test_the_decomposition_of_each_neuron_is_the_cheapest() -> None:
    X, y = data(EXACT[0])
    model = build(EXACT[0], X)
    assert model.gates is not None
    rng = np.random.default_rng(1)
    model.variables[0].value = np.zeros((3, len(model.gates)))
    u = rng.standard_normal(3)
    model.variables[0].value[:, 4] = u
    model.problem(y, 1e-9)  # so small that refitting has nothing to gain but the fit
    report = cnn.to_relu(cnn.recover(model)).info
    signed = np.where(model.gates.patterns[:, 4], 1.0, -1.0)[:, None] * X
    v: Any = cp.Variable(3)
    w: Any = cp.Variable(3)
    cost = optimum(
        cp.Problem(cp.Minimize(cp.norm(v) + cp.norm(w)), [v - w == u, signed @ v >= 0, signed @ w >= 0])
    )
    fit = float(np.sum((model.prediction.value - y) ** 2)) / (2 * N)
    assert report.raw_objective == pytest.approx(fit + 1e-9 * cost, rel=1e-12)
    assert report.stretch >= max(np.linalg.norm(v.value), np.linalg.norm(w.value)) / np.linalg.norm(u) - 1e-6


def test_a_gate_through_opposite_samples_cannot_be_decomposed() -> None:
    X = np.array([[1.0, 0.0], [-1.0, 0.0], [0.3, 1.0]])
    vectors = np.array([[0.0], [1.0]])
    model = cnn.gated_relu(X, Gates(vectors, X @ vectors >= 0.0, "one gate"))
    model.problem(np.ones(3), 0.1)
    model.variables[0].value = np.array([[1.0], [0.5]])
    network = cnn.recover(model, prune=False)
    with pytest.raises(ValueError, match="gate 0 passes through a sample"):
        cnn.to_relu(network)
    moved = cnn.gated_relu(X, cnn.gates_from_vectors(X, vectors))
    moved.problem(np.ones(3), 0.1)
    moved.variables[0].value = np.array([[1.0], [0.5]])
    assert cnn.to_relu(cnn.recover(moved)).info.objective <= 0.5


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_weights_along_their_gate_stay_one_neuron(sign: float) -> None:
    X, y = data(EXACT[1])
    gates = cnn.sample_gates(X, 3, bias=True).vectors
    network = cnn.Network(
        sign * gates[:3], np.ones((3, 1)), b1=sign * gates[3], gates=gates[:3], gate_bias=gates[3]
    )
    report = cnn.to_relu(network, X, y, 0.0).info
    expected = float(np.sum((network.predict(X) - y) ** 2)) / (2 * N)
    assert report.gated_objective == pytest.approx(expected, rel=1e-12)
    assert report.raw_objective == pytest.approx(expected, rel=1e-12)
    assert report.stretch == pytest.approx(1.0, rel=1e-12)


def test_a_harmless_tie_is_decomposed_with_another_interior_point() -> None:
    X = np.array([[1.0, 0.0], [2.0, 0.0], [0.3, 1.0], [0.0, 0.0]])
    vectors = np.array([[0.0], [1.0]])
    network = cnn.Network(np.array([[-1.0], [0.5]]), np.ones((1, 1)), gates=vectors)
    result = cnn.to_relu(network, X, np.zeros(4), 1e-12)
    assert result.info.raw_objective == pytest.approx(network.objective(X, np.zeros(4), 1e-12), rel=1e-9)
