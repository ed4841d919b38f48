"""Models against the same programs in plain CVXPY, the named losses against NumPy, and lambda_max."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import cvxpy as cp
import numpy as np
import pytest
from interior_point import optimum
from numpy.typing import NDArray

import convexnn_models as cnn
from convexnn_models import losses
from convexnn_solvers import Auto

Float = NDArray[np.float64]
N, D_FEATURES, GATES = 12, 3, 6


class Case(NamedTuple):
    kind: str  # gated, relu, leaky
    outputs: int = 1
    grouping: str = "shared"
    bias: bool = False
    output_bias: bool = False


CASES = [
    Case("gated"),
    Case("gated", bias=True),
    Case("gated", output_bias=True),
    Case("gated", 2),
    Case("gated", 3, "per-output", output_bias=True),
    Case("gated", 2, "nuclear"),
    Case("relu"),
    Case("relu", bias=True, output_bias=True),
    Case("relu", 2, "shared", output_bias=True),
    Case("relu", 3, "per-output"),
    Case("leaky"),
    Case("leaky", 2, "per-output", bias=True),
]


def name(case: Case) -> str:
    return "-".join(str(part) for part in case)


def data(case: Case) -> tuple[Float, Float]:
    rng = np.random.default_rng(5)
    X = rng.standard_normal((N, D_FEATURES))
    y = np.abs(X @ rng.standard_normal((D_FEATURES, case.outputs))) + 0.3
    y += 0.1 * rng.standard_normal(y.shape)
    return X, y[:, 0] if case.outputs == 1 else y


def build(case: Case, X: Float) -> cnn.ConvexModel:
    gates = cnn.sample_gates(X, GATES, bias=case.bias)
    options: dict[str, Any] = case._asdict()
    kind = options.pop("kind")
    if kind == "leaky":
        return cnn.piecewise_linear(X, gates, 0.2, **options)
    return (cnn.gated_relu if kind == "gated" else cnn.relu)(X, gates, **options)


def written_out(case: Case, X: Float, y: Float, reg: float, gates: cnn.Gates) -> cp.Problem:
    """The program of the text books, gate by gate and output by output."""
    data = np.hstack([X, np.ones((N, 1))]) if case.bias else X
    c, slope = case.outputs, 0.2 if case.kind == "leaky" else 0.0
    signs = [1.0] if case.kind == "gated" else [1.0, -1.0]
    prediction: Any = np.zeros((N, c))
    penalty: Any = 0.0
    constraints: list[Any] = []
    for bits in gates.patterns.T:
        for sign in signs:
            U = cp.Variable((data.shape[1], c))
            prediction = prediction + sign * np.diag(np.where(bits, 1.0, slope)) @ data @ U
            if case.kind != "gated":
                constraints.append(np.diag(np.where(bits, 1.0, -1.0)) @ data @ U >= 0)
            if case.grouping == "shared":
                penalty = penalty + cp.norm(U, "fro")
            elif case.grouping == "nuclear":
                penalty = penalty + cp.normNuc(U)
            else:
                penalty = penalty + sum(cp.norm(U[:, k]) for k in range(c))
    if case.output_bias:
        prediction = prediction + np.ones((N, 1)) @ cp.Variable((1, c))
    loss = cp.sum_squares(prediction - y.reshape(N, c)) / (2 * N)
    return cp.Problem(cp.Minimize(loss + reg * penalty), constraints)


@pytest.mark.parametrize("case", CASES, ids=name)
def test_the_problem_is_the_written_out_one(case: Case) -> None:
    X, y = data(case)
    model = build(case, X)
    assert model.gates is not None
    d, n_outputs = X.shape[1] + case.bias, case.outputs
    weights = [v for v in model.variables if v is not model.output_bias]
    assert [w.shape for w in weights] == [(d * n_outputs, GATES)] * (1 if case.kind == "gated" else 2)
    assert model.prediction.shape == ((N,) if n_outputs == 1 else (N, n_outputs))
    problem = model.problem(y, reg=0.02)
    assert problem.is_dpp()
    assert problem.parameters() == [model.reg]
    assert optimum(problem) == pytest.approx(optimum(written_out(case, X, y, 0.02, model.gates)), rel=1e-8)


@pytest.mark.parametrize("case", [CASES[1], CASES[4], CASES[8]], ids=name)
def test_scs_solves_the_same_object(case: Case) -> None:
    X, y = data(case)
    problem = build(case, X).problem(y, reg=0.05)
    expected = optimum(problem)
    problem.solve(solver=cp.SCS, eps_abs=1e-8, eps_rel=1e-8)
    assert problem.value == pytest.approx(expected, rel=1e-5)


def test_reg_is_a_parameter_of_each_problem() -> None:
    X, y = data(CASES[6])
    model = build(CASES[6], X)
    with pytest.raises(AttributeError, match=r"model.problem\(y, reg\)"):
        _ = model.reg
    first = model.problem(y, reg=0.02)
    reg_of_first = model.reg
    fresh = optimum(model.problem(y, reg=0.1))
    optimum(first)
    assert model.reg is not reg_of_first
    reg_of_first.value = 0.1
    assert optimum(first) == pytest.approx(fresh, rel=1e-8)
    shared = cp.Parameter(nonneg=True, value=0.1)
    problem = model.problem(y, reg=shared)
    assert model.reg is shared
    assert optimum(problem) == pytest.approx(fresh, rel=1e-8)


def test_a_variant_is_plain_cvxpy() -> None:
    X, y = data(CASES[0])
    model = build(CASES[0], X)
    loss = cp.sum(cp.huber(model.prediction - y)) / N
    problem = cp.Problem(
        cp.Minimize(loss + 0.01 * model.penalty), [*model.constraints, model.prediction >= 0.1]
    )
    optimum(problem)
    assert model.prediction.value.min() >= 0.1 - 1e-8


@pytest.mark.parametrize("case", [CASES[0], CASES[3], CASES[6]], ids=name)
def test_interpolation_is_the_limit_of_no_regularisation(case: Case) -> None:
    X, _ = data(case)
    model = build(case, X)
    weights = np.random.default_rng(0).standard_normal(model.variables[0].shape)
    target = cnn.gated_relu(X, cnn.sample_gates(X, GATES), outputs=case.outputs)
    target.variables[0].value = weights
    if case.kind == "relu":  # reachable: the gates themselves, in their cones
        assert model.gates is not None
        model.variables[0].value, model.variables[1].value = model.gates.vectors, 0.0 * model.gates.vectors
        Y = model.prediction.value
    else:
        Y = target.prediction.value
    smallest = optimum(model.interpolation(Y))
    assert np.abs(model.prediction.value - Y).max() < 1e-7
    optimum(model.problem(Y, reg=1e-7))
    assert model.penalty.value == pytest.approx(smallest, rel=1e-3)


def softmax_by_hand(f: Float, y: Any) -> float:
    return float(np.mean([np.log(np.exp(row).sum()) - row[k] for row, k in zip(f, y, strict=True)]))


F1 = np.array([0.3, -2.0, 1.5, 0.0])
R1 = np.array([1.0, -1.0, 0.5, 0.2])
S1 = np.array([1.0, -1.0, -1.0, 1.0])
F3 = np.random.default_rng(0).standard_normal((4, 3))
K3 = np.array([2, 0, 1, 1])
LOSSES: list[tuple[str, dict[str, Any], Float, Any, float]] = [
    ("squared", {}, F1, R1, 0.5 * float(np.mean((F1 - R1) ** 2))),
    ("squared", {}, F3, F3 + 1.0, 1.5),
    ("absolute", {}, F1, R1, float(np.mean(np.abs(F1 - R1)))),
    ("huber", {"threshold": 1e6}, F1, R1, 0.5 * float(np.mean((F1 - R1) ** 2))),
    ("huber", {"threshold": 0.5}, np.array([3.0, 0.1]), np.zeros(2), 0.5 * (0.5 * 2.75 + 0.005)),
    ("quantile", {"level": 0.9}, np.zeros(2), np.array([1.0, -1.0]), 0.5 * (0.9 + 0.1)),
    ("logistic", {}, F1, S1, float(np.mean(np.log1p(np.exp(-S1 * F1))))),
    ("hinge", {}, F1, S1, float(np.mean(np.maximum(0.0, 1.0 - S1 * F1)))),
    ("squared_hinge", {}, F1, S1, float(np.mean(np.maximum(0.0, 1.0 - S1 * F1) ** 2))),
    ("softmax", {}, F3, K3, softmax_by_hand(F3, K3)),
    ("softmax", {}, F3, np.eye(3)[K3], softmax_by_hand(F3, K3)),
]


@pytest.mark.parametrize(("loss", "options", "prediction", "y", "expected"), LOSSES)
def test_losses_are_means_over_the_samples(
    loss: str, options: dict[str, Any], prediction: Float, y: Any, expected: float
) -> None:
    assert losses.expression(loss, prediction, y, **options).value == pytest.approx(expected, rel=1e-12)
    symbolic = cp.Variable(prediction.shape, value=prediction)
    expression = losses.expression(loss, symbolic, y, **options)
    assert expression.value == pytest.approx(expected, rel=1e-12)
    assert expression.is_convex()


LABELLED: list[tuple[str, int, Callable[[Float], Any], dict[str, Any]]] = [
    ("squared", 1, lambda s: s[:, 0], {}),
    ("squared", 3, lambda s: s, {}),
    ("huber", 1, lambda s: s[:, 0], {"threshold": 0.4}),
    ("logistic", 1, lambda s: np.sign(s[:, 0]), {}),
    ("logistic", 2, lambda s: np.sign(s[:, :2]), {}),
    ("squared_hinge", 1, lambda s: np.sign(s[:, 0]), {}),
    ("softmax", 3, lambda s: np.argmax(s, axis=1), {}),
]


KINDS = [("gated", "shared"), ("relu", "shared"), ("relu", "per-output"), ("leaky", "shared")]


@pytest.mark.parametrize("output_bias", [False, True])
@pytest.mark.parametrize(
    ("kind", "grouping", "loss", "outputs", "labels", "options"),
    [(*k, *row) for k in KINDS for row in LABELLED if row[1] > 1 or k[1] == "shared"],
)
def test_zero_is_optimal_exactly_above_lambda_max(
    kind: str,
    grouping: str,
    loss: str,
    outputs: int,
    labels: Callable[[Float], Any],
    options: dict[str, Any],
    output_bias: bool,
) -> None:
    case = Case(kind, outputs, grouping, output_bias=output_bias)
    rng = np.random.default_rng(2)
    X = rng.standard_normal((N, D_FEATURES))
    y = labels(rng.standard_normal((N, 3)) + 0.4)
    model = build(case, X)
    critical = cnn.lambda_max(model, y, loss, **options)
    weights = [v for v in model.variables if v is not model.output_bias]
    problem = model.problem(y, reg=critical, loss=loss, **options)
    sizes = []
    for factor in (0.95, 1.01):
        model.reg.value = factor * critical
        optimum(problem, 1e-10, 1e-9, 1e-8, 1e-7)
        sizes.append(max(float(np.abs(w.value).max()) for w in weights))
    assert sizes[0] > 1e-3
    assert sizes[1] < 1e-5


def test_lambda_max_of_nothing_to_explain_is_zero() -> None:
    X, y = data(CASES[0])
    for case in (CASES[2], CASES[6]._replace(output_bias=True)):
        assert cnn.lambda_max(build(case, X), np.full(N, 2.0)) == 0.0
    assert cnn.lambda_max(build(CASES[0], X), 0.0 * y) == 0.0


FORMULATIONS: dict[str, Any] = {
    "gated": cnn.gated_relu,
    "relu": cnn.relu,
    "leaky": lambda X, gates, **options: cnn.piecewise_linear(X, gates, 0.3, **options),
}


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e10])
@pytest.mark.parametrize("loss", ["squared", "huber", "logistic", "softmax"])
@pytest.mark.parametrize("kind", FORMULATIONS)
def test_what_the_output_bias_explains_is_no_correlation(kind: str, loss: str, scale: float) -> None:
    """Columns of ones had one of 1e-17, from which paths began; a small feature beside them still counts."""
    rng = np.random.default_rng(0)
    raw = 1e6 + rng.standard_normal(25) if loss in ("squared", "huber") else rng.standard_normal(25)
    y: Any = {"logistic": np.sign(raw), "softmax": (raw > 0.0).astype(int)}.get(loss, raw)
    shapes: Any = {"outputs": 2 if loss == "softmax" else 1, "output_bias": True}
    ones, make = np.full((25, 2), scale), FORMULATIONS[kind]
    model = make(ones, cnn.gates_from_vectors(ones, np.ones((2, 1))), **shapes)
    assert cnn.lambda_max(model, y, loss) == 0.0
    with pytest.raises(ValueError, match="leaves nothing to fit"):
        cnn.regularization_path(model, y, 3, loss=loss)
    feature = 1e-9 * scale * rng.uniform(0.5, 1.0, size=25)
    both = np.column_stack([ones[:, 0], feature])
    # Beside the ones every sign of the feature's weight lies in the cone, up to a billionth.
    positive = cnn.gates_from_vectors(feature[:, None], np.ones((1, 1)))
    alone = cnn.gated_relu(feature[:, None], positive, **shapes)
    model = make(both, cnn.gates_from_vectors(both, np.array([[1.0], [0.0]])), **shapes)
    assert cnn.lambda_max(alone, y, loss) > 0.0
    assert cnn.lambda_max(model, y, loss) == pytest.approx(cnn.lambda_max(alone, y, loss), rel=1e-5)


def test_a_large_sample_hides_no_correlation_of_gates_without_it() -> None:
    rng = np.random.default_rng(1)
    X, y = rng.standard_normal((30, 2)), rng.standard_normal(30)
    X[0] *= 1e18
    gates = cnn.sample_gates(X, 8, seed=0)
    for make in FORMULATIONS.values():
        without = gates.patterns[:, ~gates.patterns[0]]
        model = make(X, gates)
        assert model.gates is not None
        found = cnn.lambda_max(model, np.where(np.arange(30) == 0, 0.0, y))
        assert without.shape[1] > 0
        small = make(X[1:], cnn.sample_gates(X[1:], 40, seed=0))
        assert found >= 0.1 * cnn.lambda_max(small, y[1:]) * 29 / 30


@pytest.mark.parametrize("loss", ["squared", "huber"])
@pytest.mark.parametrize("outputs", [1, 2])
def test_targets_far_from_zero_hide_no_correlation(loss: str, outputs: int) -> None:
    """Seconds since 1970: correlations of a thousandth passed for the rounding of many samples' mean."""
    rng = np.random.default_rng(0)
    X = np.column_stack([rng.standard_normal(50_000), np.ones(50_000)])
    y = np.round(8.0 * rng.standard_normal((50_000, outputs))) / 8.0  # the sum with 1.6e9 rounds nothing
    y = y[:, 0] if outputs == 1 else y
    model = cnn.gated_relu(X, cnn.sample_gates(X, 4, seed=0), outputs=outputs, output_bias=True)
    assert cnn.lambda_max(model, 1.6e9 + y, loss) == pytest.approx(cnn.lambda_max(model, y, loss), rel=1e-3)


@pytest.mark.parametrize("unit", [2.0**-300, 2.0**-400, 2.0**300])
@pytest.mark.parametrize("formulation", [cnn.gated_relu, cnn.relu])
def test_lambda_max_has_no_units_in_which_it_vanishes(formulation: Any, unit: float) -> None:
    """Of data of 1e-90 it was zero, which says that there is nothing to fit, and of 1e90 infinite."""
    rng = np.random.default_rng(0)
    X, Y = rng.standard_normal((8, 3)), rng.standard_normal((8, 2))
    gates = cnn.sample_gates(X, 6)
    expected = cnn.lambda_max(formulation(X, gates, outputs=2), Y)
    model = formulation(unit * X, cnn.sample_gates(unit * X, 6), outputs=2)
    assert cnn.lambda_max(model, unit * Y) == pytest.approx(unit * unit * expected, rel=1e-12, abs=0.0)


def test_lambda_max_of_the_nuclear_norm_is_the_largest_spectral_norm() -> None:
    case = Case("gated", 2, "nuclear")
    X, y = data(case)
    model = build(case, X)
    assert model.gates is not None
    expected = max(np.linalg.norm((X * bits[:, None]).T @ y, 2) for bits in model.gates.patterns.T) / N
    assert cnn.lambda_max(model, y) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("slope", [0.0, 0.3, -0.7])
@pytest.mark.parametrize("outputs", [1, 2])
def test_lambda_max_skips_projections_that_cannot_matter(
    slope: float, outputs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(3)
    X, y = rng.standard_normal((20, 3)), rng.standard_normal((20, outputs))
    model = cnn.piecewise_linear(X, cnn.sample_gates(X, 60), slope, outputs=outputs)
    module = sys.modules["convexnn_models.lambda_max"]
    some = cnn.lambda_max(model, y)
    monkeypatch.setattr(module, "_FEW", 1000)  # everything at once
    assert cnn.lambda_max(model, y) == pytest.approx(some, rel=1e-12)


def test_threads_evaluate_objectives_of_their_own() -> None:
    """The variable that holds the prediction is one for all."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((N, D_FEATURES))
    model = cnn.gated_relu(X, cnn.sample_gates(X, GATES, seed=0))
    model.problem(rng.standard_normal(N), 0.1)
    training = model.training
    assert training is not None
    predictions = [rng.standard_normal(N) for _ in range(2)]
    alone = [training.objective(p, 1.0) for p in predictions]
    found: list[set[float]] = [set(), set()]

    def evaluate(k: int) -> None:
        found[k].update(training.objective(predictions[k], 1.0) for _ in range(500))

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=evaluate, args=(k,)) for k in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert found == [{alone[0]}, {alone[1]}]


@pytest.mark.parametrize("formulation", [cnn.gated_relu, cnn.relu])
def test_a_loss_of_one_entry_is_one_number(formulation: Any) -> None:
    """Of shape (1,) or (1, 1) it was solved, but the model could not be recovered."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((30, 3))
    model, y = formulation(X, cnn.sample_gates(X, 6, seed=0)), X[:, 0]
    expected = model.problem(y, 0.02).solve(solver=Auto())
    for share in (np.full((1, 30), 1.0 / 60.0), np.full(30, 1.0 / 60.0)):

        def loss(prediction: Any, targets: Any, share: Any = share) -> Any:
            return cp.reshape(share @ cp.square(prediction - targets), (1,) * share.ndim, order="F")

        assert model.problem(y, 0.02, loss).solve(solver=Auto()) == pytest.approx(expected, rel=2e-4)
        assert cnn.recover(model).objective(X, y, 0.02, loss) == pytest.approx(expected, rel=2e-4)
