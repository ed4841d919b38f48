"""Semismooth Newton against planted optima, an interior-point solver, and data that break naive code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
from numpy.typing import NDArray
from planted import LossName, plant, problem_of

import convexnn_models as cnn
from convexnn_solvers import Certificate, SemismoothNewton, Status, certificate

Float = NDArray[np.float64]


@pytest.mark.parametrize("loss", ["squared", "huber", "logistic"])
@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize(("outputs", "shared"), [(1, True), (3, True), (3, False)])
@pytest.mark.parametrize("cones", [False, True], ids=["gated", "relu"])
def test_planted_optima_are_found(
    cones: bool, outputs: int, shared: bool, bias: bool, loss: LossName
) -> None:
    planted = plant(3, cones=cones, outputs=outputs, shared=shared, loss=loss, bias=bias)
    problem, variables = problem_of(planted)
    value = problem.solve(solver=SemismoothNewton(tol=1e-9))
    assert problem.status == cp.OPTIMAL
    assert value == pytest.approx(planted.value, rel=2e-9)
    found = tuple(np.asarray(variable.value) for variable in variables)
    np.testing.assert_allclose(
        planted.prediction(found),
        planted.prediction(planted.point),
        atol=1e-4 if loss == "logistic" else 1e-3,
    )


@pytest.mark.parametrize(
    ("loss", "outputs", "shared", "bias", "cones"),
    [
        ("absolute", 1, True, False, True),
        ("absolute", 1, True, True, True),
        ("absolute", 3, True, True, False),
        ("hinge", 1, True, True, False),
        ("hinge", 1, True, False, True),
        ("hinge", 2, True, True, True),
        ("quantile", 1, True, True, True),
        ("quantile", 1, True, False, False),
        ("quantile", 2, False, True, False),
    ],
)
def test_planted_optima_of_losses_without_a_gradient(
    loss: LossName, outputs: int, shared: bool, bias: bool, cones: bool
) -> None:
    planted = plant(3, cones=cones, outputs=outputs, shared=shared, loss=loss, bias=bias)
    problem, _ = problem_of(planted)
    value = problem.solve(solver=SemismoothNewton(tol=1e-8))
    assert problem.status == cp.OPTIMAL
    assert value == pytest.approx(planted.value, rel=2e-8)


def training_data(seed: int = 0, n: int = 60, d: int = 5) -> tuple[Float, Float]:
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, d))
    y = np.maximum(X @ rng.standard_normal((d, 3)), 0.0) @ np.array([1.0, -1.0, 0.5])
    return X, y + 0.1 * rng.standard_normal(n)


@pytest.mark.parametrize("slope", [None, 0.0, 0.3, -1.0], ids=["gated", "relu", "leaky", "absolute"])
@pytest.mark.parametrize("output_bias", [False, True])
@pytest.mark.parametrize(("outputs", "grouping"), [(1, "shared"), (2, "shared"), (2, "per-output")])
def test_agrees_with_an_interior_point_solver(
    slope: float | None, output_bias: bool, outputs: int, grouping: str
) -> None:
    X, y = training_data(n=25, d=3)
    gates = cnn.sample_gates(X, 6, seed=1)
    options: dict[str, Any] = {"outputs": outputs, "grouping": grouping, "output_bias": output_bias}
    if slope is None:
        model = cnn.gated_relu(X, gates, **options)
    else:
        model = cnn.piecewise_linear(X, gates, slope, **options)
    target = y if outputs == 1 else np.column_stack([y, np.sin(y)])
    problem = model.problem(target, reg=0.02)
    value = problem.solve(solver=SemismoothNewton(tol=1e-8))
    stats = problem.solver_stats.extra_stats
    assert stats["status"] is Status.OPTIMAL
    assert certificate(problem).relative_gap == pytest.approx(0.0, abs=1e-8)
    reference = problem.solve(solver=cp.CLARABEL)
    assert value <= reference * (1.0 + 1e-8)
    assert value == pytest.approx(reference, rel=1e-5)


@pytest.mark.parametrize("grouping", ["shared", "per-output"])
@pytest.mark.parametrize("make", [cnn.gated_relu, cnn.relu])
def test_an_output_with_nothing_to_fit_leaves_the_others_alone(make: Any, grouping: str) -> None:
    X, y = training_data(n=25, d=3)
    gates, solver = cnn.sample_gates(X, 6, seed=1), SemismoothNewton(tol=1e-8)
    alone = make(X, gates).problem(y, 0.01).solve(solver=solver)
    model = make(X, gates, outputs=2, grouping=grouping)
    value = model.problem(np.column_stack([y, 0.0 * y]), 0.01).solve(solver=solver)
    assert value == pytest.approx(alone, rel=2e-8)
    assert all(not variable.value[3:].any() for variable in model.variables)


def test_dual_values_are_multipliers_of_the_cones() -> None:
    X, y = training_data(n=30, d=3)
    gates = cnn.sample_gates(X, 6, seed=2)
    model = cnn.relu(X, gates)
    problem = model.problem(y, reg=0.02)
    problem.solve(solver=SemismoothNewton(tol=1e-9))
    residual = (y - model.prediction.value) / 30
    for sign, V, constraint in zip((1.0, -1.0), model.variables, model.constraints, strict=True):
        mu = constraint.dual_value
        slack = constraint.args[1].value - constraint.args[0].value
        assert mu.min() >= 0.0
        assert np.abs(mu * slack).max() <= 1e-5
        signs = 2.0 * gates.patterns - 1.0
        pulled = sign * X.T @ (gates.patterns * residual[:, None]) + X.T @ (signs * mu)
        norms = np.linalg.norm(V.value, axis=0)
        assert np.linalg.norm(pulled, axis=0).max() <= 0.02 * (1.0 + 1e-4)
        for j in np.flatnonzero(norms > 1e-6 * norms.max()):
            np.testing.assert_allclose(pulled[:, j], 0.02 * V.value[:, j] / norms[j], atol=1e-5)


@pytest.mark.parametrize("relu", [False, True])
def test_a_changed_parameter_resolves_from_the_last_point(relu: bool) -> None:
    X, y = training_data()
    model = (cnn.relu if relu else cnn.gated_relu)(X, cnn.sample_gates(X, 15, seed=3))
    problem = model.problem(y, reg=0.02)
    problem.solve(solver=SemismoothNewton(tol=1e-7))
    model.reg.value = 0.019
    cold = problem.solve(solver=SemismoothNewton(tol=1e-7), warm_start=False)
    steps = problem.solver_stats.num_iters
    model.reg.value = 0.02
    problem.solve(solver=SemismoothNewton(tol=1e-7), warm_start=False)
    model.reg.value = 0.019
    warm = problem.solve(solver=SemismoothNewton(tol=1e-7))
    assert warm == pytest.approx(cold, rel=2e-7)
    assert problem.solver_stats.num_iters < steps
    problem.solve(solver=SemismoothNewton(tol=1e-7))
    assert problem.solver_stats.num_iters <= 1  # optimal from the start; a step finds multipliers


def _rank_deficient(X: Float, y: Float) -> tuple[Float, Float]:
    return np.hstack([X, X @ np.ones((X.shape[1], 2))]), y


def _repeated_rows(X: Float, y: Float) -> tuple[Float, Float]:
    return np.vstack([X, X, X]), np.concatenate([y, y, -y])


def _zero_rows(X: Float, y: Float) -> tuple[Float, Float]:
    return np.where(np.arange(len(X))[:, None] < 8, 0.0, X), y


AWKWARD: dict[str, Callable[[Float, Float], tuple[Float, Float]]] = {
    "as it is": lambda X, y: (X, y),
    "repeated rows": _repeated_rows,
    "rank-deficient": _rank_deficient,
    "zero rows": _zero_rows,
    "no signal": lambda X, y: (X, 0.0 * y),
    "large features": lambda X, y: (1e4 * X, y),
    "small features": lambda X, y: (1e-4 * X, y),
    "huge features": lambda X, y: (1e8 * X, y),
    "large targets": lambda X, y: (X, 1e6 * y),
    "small targets": lambda X, y: (X, 1e-6 * y),
    "more features than samples": lambda X, y: (X.T.copy(), y[: X.shape[1]]),
}


def _solve_awkward(name: str, relu: bool, share: float) -> tuple[Any, Certificate, float]:
    """The solved problem, its certificate, and the largest weight."""
    X, y = AWKWARD[name](*training_data(n=30, d=3))
    model = (cnn.relu if relu else cnn.gated_relu)(X, cnn.sample_gates(X, 6, seed=4))
    largest = cnn.lambda_max(model, y)
    problem = model.problem(y, reg=share * largest if largest > 0.0 else share)
    problem.solve(solver=SemismoothNewton(tol=1e-6, max_iter=200))
    return problem, certificate(problem), max(np.abs(V.value).max() for V in model.variables)


@pytest.mark.parametrize("share", [1.0 + 1e-9, 0.3, 1e-2])
@pytest.mark.parametrize("relu", [False, True], ids=["gated", "relu"])
@pytest.mark.parametrize("name", AWKWARD)
def test_awkward_data_are_solved(name: str, relu: bool, share: float) -> None:
    problem, judged, size = _solve_awkward(name, relu, share)
    assert problem.status == cp.OPTIMAL
    assert judged.relative_gap is not None
    assert -1e-12 <= judged.relative_gap <= 1e-6
    assert (size == 0.0) == (share > 1.0 or name == "no signal")


@pytest.mark.filterwarnings("ignore:Solution may be inaccurate")
@pytest.mark.parametrize("share", [1e-5, 1e-9])
@pytest.mark.parametrize("relu", [False, True], ids=["gated", "relu"])
@pytest.mark.parametrize("name", ["as it is", "repeated rows", "zero rows", "more features than samples"])
def test_tiny_regularisation_ends_right_or_with_an_honest_gap(name: str, relu: bool, share: float) -> None:
    problem, judged, _ = _solve_awkward(name, relu, share)
    assert judged.relative_gap is not None
    assert judged.relative_gap >= -1e-12
    assert (problem.status == cp.OPTIMAL) == (judged.relative_gap <= 1e-6)


def test_inputs_stay_as_they_are_and_answers_repeat() -> None:
    X, y = training_data()
    gates = cnn.sample_gates(X, 15, seed=7)
    copies = X.copy(), y.copy(), gates.patterns.copy()
    values = []
    for _ in range(2):
        model = cnn.relu(X, gates)
        model.problem(y, reg=0.01).solve(solver=SemismoothNewton())
        values.append(model.variables[0].value)
    np.testing.assert_array_equal(values[0], values[1])
    for before, now in zip(copies, (X, y, gates.patterns), strict=True):
        np.testing.assert_array_equal(before, now)
