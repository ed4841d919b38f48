"""Programs put together in ways that no example shows: several models, problem arithmetic, Parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
from interior_point import assert_agrees
from numpy.typing import NDArray

import convexnn_models as cnn
from convexnn_solvers import AugmentedLagrangian, certificate

Float = NDArray[np.float64]
RNG = np.random.default_rng(0)
N = 24
X: Float = RNG.standard_normal((N, 4))
OTHER: Float = RNG.standard_normal((N, 3))
Y = np.maximum(X[:, 0], 0.0) - 0.5 * np.maximum(X[:, 1] - X[:, 2], 0.0)
THREE = np.column_stack([Y, np.abs(X[:, 1]), X[:, 2]])
GATES, OTHERS = cnn.sample_gates(X, 5, seed=0), cnn.sample_gates(OTHER, 5, seed=1)
LINK: Float = RNG.standard_normal((N, 3)) / N


def relu(**options: Any) -> Any:
    return cnn.relu(X, GATES, **options)


def gated(**options: Any) -> Any:
    return cnn.gated_relu(X, GATES, **options)


def fit(residual: Any) -> Any:
    return cp.sum_squares(residual) / (2 * N)


def two_views(first: Any, second: Any) -> cp.Problem:
    loss = fit(first.prediction + second.prediction - Y)
    objective = loss + 0.02 * first.penalty + 0.05 * second.penalty
    return cp.Problem(cp.Minimize(objective), [*first.constraints, *second.constraints])


def agreeing(first: Any, second: Any) -> cp.Problem:
    apart = cp.norm(first.prediction - second.prediction) / N
    objective = fit(first.prediction - Y) + fit(second.prediction - Y) + apart
    return cp.Problem(cp.Minimize(objective + 0.02 * (first.penalty + second.penalty)))


def ensemble() -> cp.Problem:
    models = [cnn.gated_relu(X, cnn.sample_gates(X, 4, seed=seed)) for seed in range(3)]
    mean = sum(model.prediction for model in models) / 3
    own = sum(fit(model.prediction - Y) for model in models)
    return cp.Problem(cp.Minimize(fit(mean - Y) + 0.5 * own + 0.02 * sum(m.penalty for m in models)))


def of_parameters(model: Any) -> cp.Problem:
    rng = np.random.default_rng(0)
    weights, shift = cp.Parameter(N, nonneg=True, value=rng.uniform(0.5, 2.0, N)), cp.Parameter(value=0.3)
    target, least = cp.Parameter(N, value=Y), cp.Parameter(value=-0.4)
    loss = cp.sum(cp.multiply(weights, cp.square(model.prediction - Y))) / (2 * N)
    loss = loss + fit(model.prediction - target)
    objective = loss + 0.02 * model.penalty + shift * cp.sum(model.prediction) / N
    return cp.Problem(cp.Minimize(objective), [*model.constraints, model.prediction >= least])


def blocks(first: Any, second: Any) -> cp.Problem:
    p, q = (cp.reshape(model.prediction, (N, 1), order="C") for model in (first, second))
    residual = cp.bmat([[p, q], [q, p]]) - np.tile(THREE[:, :2], (2, 1))
    return cp.Problem(
        cp.Minimize(cp.sum_squares(residual) / N + 0.02 * (first.penalty + second.penalty)),
        [*first.constraints, *second.constraints],
    )


def smoothed(model: Any) -> cp.Problem:
    kernel = np.array([0.25, 0.5, 0.25])
    both = cp.kron(np.array([[1.0], [-1.0]]), cp.reshape(model.prediction, (N, 1), order="C"))
    loss = cp.sum_squares(cp.convolve(kernel, model.prediction) - np.convolve(Y, kernel)) / N
    return cp.Problem(
        cp.Minimize(loss + 0.01 * cp.norm1(both) / N + 0.02 * model.penalty),
        [*model.constraints, cp.cumsum(model.prediction) >= -1.0, cp.sum(model.prediction) == Y.sum() / 2],
    )


def traced(model: Any) -> cp.Problem:
    square = model.prediction.T @ LINK
    loss = fit(model.prediction - THREE) + 0.5 * cp.square(cp.trace(square))
    return cp.Problem(cp.Minimize(loss + 0.03 * model.penalty), [cp.diag(square) >= 0.02])


def several_tasks(model: Any) -> cp.Problem:
    signs = np.sign(THREE[:, 2])
    tasks = fit(model.prediction[:, :2] - THREE[:, :2])
    tasks = tasks + cp.sum(cp.logistic(-cp.multiply(signs, model.prediction[:, 2]))) / N
    return cp.Problem(cp.Minimize(tasks + 0.02 * model.penalty), model.constraints)


def penalised_four_times(model: Any) -> cp.Problem:
    groups = sum(cp.sum(cp.norm(weights, 2, axis=1)) for weights in model.variables)
    entries = sum(cp.norm1(weights) for weights in model.variables)
    ridge = sum(cp.sum_squares(weights) for weights in model.variables)
    objective = fit(model.prediction - Y) + 0.01 * model.penalty + 0.005 * (entries + groups) + 0.01 * ridge
    return cp.Problem(cp.Minimize(objective), model.constraints)


def budgets_of_both_signs(model: Any) -> cp.Problem:
    budgets: list[Any] = [cp.sum(cp.norm(weights, 2, axis=0)) <= 0.5 for weights in model.variables]
    return cp.Problem(cp.Minimize(fit(model.prediction - Y)), [*model.constraints, *budgets])


PROBLEMS: dict[str, Callable[[], Any]] = {
    "two views": lambda: two_views(gated(), cnn.gated_relu(OTHER, OTHERS)),
    "two views with cones": lambda: two_views(relu(), cnn.relu(OTHER, OTHERS)),
    "models that agree": lambda: agreeing(gated(), cnn.gated_relu(OTHER, OTHERS)),
    "an ensemble": ensemble,
    "a sum of problems": lambda: (
        relu().problem(Y, 0.02) + 2 * gated().problem(THREE[:, 1], 0.03, loss="huber")
    ),
    "a difference of problems": lambda: (
        gated().problem(Y, 0.02) - cp.Problem(cp.Maximize(-fit(X[:, 0] - 1.0)))
    ),
    "Parameters everywhere": lambda: of_parameters(gated()),
    "blocks of predictions": lambda: blocks(gated(), cnn.gated_relu(OTHER, OTHERS)),
    "convolved and cumulated": lambda: smoothed(gated()),
    "diagonal and trace": lambda: traced(gated(outputs=3)),
    "four penalties of weights in cones": lambda: penalised_four_times(relu()),
    "a budget for either sign": lambda: budgets_of_both_signs(relu()),
    "several tasks": lambda: several_tasks(gated(outputs=3)),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_compositions(name: str) -> None:
    assert_agrees(PROBLEMS[name]())


def test_parameters_move_between_solves() -> None:
    problem = of_parameters(gated())
    parameters: list[Any] = problem.parameters()
    for scale in (1.0, 0.7, 1.3):
        for parameter in parameters:
            parameter.value = scale * parameter.value
        assert_agrees(problem)


def test_the_penalty_as_a_constraint() -> None:
    """Ivanov's form of regularisation: its price is the ``reg`` of the penalised program."""
    model = gated()
    problem: Any = cp.Problem(cp.Minimize(fit(model.prediction - Y)), [model.penalty <= 1.0])
    assert_agrees(problem)
    bound: Any = problem.constraints[0]
    problem.solve(solver=AugmentedLagrangian(tol=1e-7))
    value, reg = float(problem.value), float(bound.dual_value)
    penalised = model.problem(Y, reg)
    penalised.solve(solver=cp.CLARABEL)
    assert float(penalised.value) - reg == pytest.approx(value, abs=1e-5)
    assert certificate(penalised).relative_gap is not None
