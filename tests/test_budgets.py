"""Bounds on penalties by a number: ``model.penalty <= t`` beside other solvers, prices and Parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
from interior_point import optimum
from numpy.typing import NDArray

import convexnn_models as cnn
from convexnn_solvers import Auto, auto, certificate
from convexnn_solvers.first_order.augmented_lagrangian import augmented_lagrangian_method

Float = NDArray[np.float64]
N = 40
_RNG = np.random.default_rng(0)
X: Float = _RNG.standard_normal((N, 4))
Y = np.maximum(X[:, 0], 0.0) - 0.5 * np.maximum(X[:, 1] - X[:, 2], 0.0) + 0.1 * _RNG.standard_normal(N) + 0.7
THREE = np.column_stack([Y, np.abs(X[:, 1]), X[:, 2]])
SIGNS = np.sign(Y - 0.7)
WEIGHTS = _RNG.uniform(0.5, 2.0, N)
GATES = cnn.sample_gates(X, 8, seed=0)
TOL = 1e-5


def squares(prediction: Any) -> Any:
    return cp.sum_squares(prediction - Y) / (2 * N)


HALF: Any = 0.5
LOSSES: dict[str, Callable[[Any], Any]] = {
    "squares": squares,
    "weighted squares": lambda p: cp.sum(cp.multiply(WEIGHTS, cp.square(p - Y))) / (2 * N),
    "huber": lambda p: cp.sum(cp.huber(p - Y, HALF)) / N,
    "logistic": lambda p: cp.sum(cp.logistic(-cp.multiply(SIGNS, p))) / N,
}
MODELS: dict[str, Callable[[], Any]] = {
    "gated": lambda: cnn.gated_relu(X, GATES, output_bias=True),
    "relu": lambda: cnn.relu(X, GATES),
    "leaky": lambda: cnn.piecewise_linear(X, GATES, slope=0.1),
}


def bounded(model: Any, limit: Any, loss: Callable[[Any], Any] = squares) -> Any:
    return cp.Problem(cp.Minimize(loss(model.prediction)), [*model.constraints, model.penalty <= limit])


def assert_right(problem: Any, price: bool = True, tol: float = TOL) -> None:
    """By the search alone, as good as Clarabel's value and point, with its dual value."""
    problem.solve(solver=Auto(tol=tol), warm_start=False)
    ours, mine = float(problem.value), float(problem.constraints[-1].dual_value)
    assert problem.status == cp.OPTIMAL
    assert [e["engine"] for e in problem.solver_stats.extra_stats["engines"]] == ["BudgetSearch"]
    assert problem.constraints[-1].violation() <= 1e-12
    found = certificate(problem)
    assert found.relative_gap is not None
    assert found.relative_gap <= 1.01 * tol
    value = optimum(problem, 1e-9, 1e-8)
    assert found.dual is not None
    assert found.dual <= value + 1e-7 * (1.0 + abs(value))
    assert ours == pytest.approx(value, rel=2 * tol, abs=1e-7)
    theirs = float(problem.constraints[-1].dual_value)
    if price:  # the value is flat in the price: an error of 1e-5 in it is one of about 1e-2 in the price
        assert mine == pytest.approx(theirs, rel=0.03, abs=1e-3)
    again = certificate(problem)  # what Clarabel left has a bound too
    assert again.dual is not None
    assert again.dual == pytest.approx(value, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("limit", [0.05, 2.0])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("model", MODELS)
def test_budgets_of_losses_and_models(model: str, loss: str, limit: float) -> None:
    assert_right(bounded(MODELS[model](), limit, LOSSES[loss]))


@pytest.mark.parametrize("grouping", ["shared", "per-output"])
@pytest.mark.parametrize("model", [cnn.gated_relu, cnn.relu])
def test_budgets_of_several_outputs(model: Any, grouping: str) -> None:
    made = model(X, GATES, outputs=3, grouping=grouping)
    assert_right(bounded(made, 3.0, lambda p: cp.sum_squares(p - THREE) / (2 * N)))


@pytest.mark.parametrize("model", MODELS)
def test_a_budget_of_zero_leaves_the_bias(model: str) -> None:
    made = MODELS[model]()
    problem = bounded(made, 0.0)
    problem.solve(solver=Auto(tol=TOL))
    assert problem.status == cp.OPTIMAL
    mean = np.mean(Y) if model == "gated" else 0.0
    assert problem.value == pytest.approx(np.sum((Y - mean) ** 2) / (2 * N), rel=2 * TOL)
    assert made.penalty.value <= 1e-12


def test_a_budget_that_is_not_spent_costs_nothing() -> None:
    problem = bounded(MODELS["gated"](), 1e3)
    assert_right(problem, price=False, tol=1e-4)
    free = cp.Problem(problem.objective)
    assert problem.value == pytest.approx(optimum(free), rel=1e-4)
    problem.solve(solver=Auto())
    assert float(problem.constraints[-1].dual_value) <= 1e-6


@pytest.mark.parametrize("solver", [Auto(max_iter=300)], ids=repr)
def test_a_budget_below_zero_is_infeasible(solver: Any) -> None:
    problem = bounded(cnn.gated_relu(X, GATES), -1.0)
    problem.solve(solver=solver)
    assert problem.status == cp.INFEASIBLE


@pytest.mark.parametrize("model", ["gated", "relu"])
def test_the_dual_value_is_the_slope_of_the_value(model: str) -> None:
    limit = cp.Parameter(value=2.0)
    problem = bounded(MODELS[model](), limit)
    values = []
    for t in (1.98, 2.02, 2.0):
        limit.value = t
        problem.solve(solver=Auto(tol=1e-9))
        assert problem.status == cp.OPTIMAL
        values.append(float(problem.value))
    slope = (values[1] - values[0]) / 0.04
    assert float(problem.constraints[-1].dual_value) == pytest.approx(-slope, rel=1e-2)


def test_a_penalised_program_at_the_price_is_the_same_program() -> None:
    """The multiplier of the budget is the regularisation whose solution spends it."""
    model = MODELS["relu"]()
    problem = bounded(model, 1.5)
    problem.solve(solver=Auto(tol=1e-8))
    reg = float(problem.constraints[-1].dual_value)
    penalised = model.problem(Y, reg)
    penalised.solve(solver=Auto(tol=1e-8), warm_start=False)
    assert penalised.value == pytest.approx(problem.value + reg * 1.5, rel=1e-6)
    assert model.penalty.value == pytest.approx(1.5, rel=1e-2)


def test_a_new_limit_starts_from_the_last_solution() -> None:
    limit = cp.Parameter(value=1.5)
    problem = bounded(MODELS["relu"](), limit)
    problem.solve(solver=Auto())
    cold = problem.solver_stats.num_iters
    problem.solve(solver=Auto())
    assert problem.solver_stats.num_iters == 0
    limit.value = 1.51
    problem.solve(solver=Auto())
    assert problem.status == cp.OPTIMAL
    assert problem.solver_stats.num_iters < cold


def unaware(composite: Any, *_: Any) -> Any:
    """A method that has to be told its gap."""
    return augmented_lagrangian_method(composite)


def second(progress: Any) -> bool:
    return bool(progress.iteration >= 2)


@pytest.mark.parametrize("knows", [True, False])
def test_features_too_large_for_newton(knows: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """First-order steps on a working set know their gap and will do; without such there is no search."""
    monkeypatch.setattr(auto, "_FEATURE_BYTES", 0)
    if not knows:
        monkeypatch.setattr(auto, "gradient_method", unaware)
    problem = bounded(cnn.gated_relu(X, GATES), 1.0)
    problem.solve(solver=Auto())
    assert problem.status == cp.OPTIMAL
    engine = "BudgetSearch" if knows else "AugmentedLagrangian"
    assert [e["engine"] for e in problem.solver_stats.extra_stats["engines"]] == [engine]


@pytest.mark.parametrize("limit", [{"max_iter": 3}, {"callback": second}])
def test_a_search_that_is_stopped_returns_a_certified_point(limit: dict[str, Any]) -> None:
    problem = bounded(MODELS["relu"](), 2.0)
    with pytest.warns(UserWarning, match="may be inaccurate"):
        problem.solve(solver=Auto(tol=1e-9, **limit))
    assert problem.status == "user_limit"
    found = problem.solver_stats.extra_stats["certificate"]
    assert found.dual is not None
    assert found.dual <= problem.value
    problem.solve(solver=Auto(tol=1e-6))
    assert problem.status == cp.OPTIMAL
    assert problem.value >= found.dual


SCALED: dict[str, Callable[[Any], Any]] = {
    "twice": lambda m: 2.0 * m.penalty <= 3.0,
    "on the right": lambda m: 1.5 >= m.penalty,
    "a difference": lambda m: m.penalty - 1.5 <= 0,
    "by sign": lambda m: cp.sum(cp.norm(m.variables[0], 2, axis=0)) + m.penalty <= 2.0,
    "by gate": lambda m: cp.norm(m.variables[0], 2, axis=0) @ np.linspace(0.5, 1.5, 8) <= 1.0,
}


@pytest.mark.parametrize("writing", SCALED)
def test_writings_of_a_budget(writing: str) -> None:
    model = cnn.relu(X, GATES) if writing != "by gate" else cnn.gated_relu(X, GATES)
    problem = cp.Problem(cp.Minimize(squares(model.prediction)), [*model.constraints, SCALED[writing](model)])
    assert_right(problem, tol=1e-4)


def test_a_maximum_is_the_negative_of_a_minimum() -> None:
    model = cnn.gated_relu(X, GATES)
    problem = cp.Problem(cp.Maximize(-squares(model.prediction)), [model.penalty <= 1.0])
    problem.solve(solver=Auto(tol=TOL))
    other = bounded(model, 1.0)
    other.solve(solver=Auto(tol=TOL), warm_start=False)
    assert problem.status == cp.OPTIMAL
    assert problem.value == pytest.approx(-other.value, rel=2 * TOL)
    price: Any = problem.constraints[0].dual_value
    assert float(price) == pytest.approx(float(other.constraints[0].dual_value), rel=0.03)
