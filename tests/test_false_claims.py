"""Feasible and bounded problems that look otherwise at first are never called infeasible or unbounded."""

from __future__ import annotations

from typing import Any

import cvxpy as cp
import numpy as np
import pytest

import convexnn_models as cnn
from convexnn_solvers import ADMM, RFISTA, AugmentedLagrangian, Auto, SemismoothNewton, certificate

_V = cp.Variable(3)
_W = cp.Variable(2)


def _thin_wedge() -> Any:
    """Its feasible points begin at a distance of about 1e5."""
    return cp.Problem(cp.Minimize(cp.norm(_V)), [_V[0] - (1 - 1e-5) * _V[1] >= 1, _V[1] - _V[0] >= 0.5])


def _flat_bowl() -> Any:
    """A quadratic that ends a long descent only after 1e12."""
    bowl = cp.sum_squares(1e-8 * _V[0] - _V[1]) + cp.sum_squares(_V[1])
    return cp.Problem(cp.Minimize(bowl + 1e-3 * _V[0] + 1e-6 * cp.norm(_V)))


@pytest.mark.filterwarnings("ignore:Solution may be inaccurate")
@pytest.mark.parametrize(
    ("make", "solver"),
    [(_thin_wedge, AugmentedLagrangian), (_flat_bowl, AugmentedLagrangian), (_flat_bowl, RFISTA)],
)
def test_nothing_is_claimed_that_was_not_proved(make: Any, solver: Any) -> None:
    problem = make()
    problem.solve(solver=solver(max_iter=400), warm_start=False)
    assert problem.status in (cp.OPTIMAL, cp.USER_LIMIT)


def test_a_descent_from_no_feasible_point_is_infeasible() -> None:
    problem = cp.Problem(cp.Minimize(cp.sum(_W)), [_V >= 1, _V <= 0])
    problem.solve(solver=AugmentedLagrangian(), warm_start=False)
    assert problem.status == cp.INFEASIBLE


@pytest.mark.parametrize("solver", [AugmentedLagrangian(max_iter=300), Auto(max_iter=300)], ids=repr)
@pytest.mark.parametrize("objective", [cp.sum_squares, cp.norm_inf])
def test_a_budget_of_norms_below_zero_is_infeasible(objective: Any, solver: Any) -> None:
    """Its multipliers grow in the budget alone, beside those of the norms that the loss asks for."""
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((12, 3)), rng.standard_normal(12)
    model = cnn.gated_relu(X, cnn.sample_gates(X, 4, seed=0))
    problem: Any = cp.Problem(cp.Minimize(objective(model.prediction - y)), [model.penalty <= -1.0])
    problem.solve(solver=solver)
    assert problem.status == cp.INFEASIBLE


@pytest.mark.parametrize("solver", [AugmentedLagrangian(), Auto()], ids=repr)
@pytest.mark.parametrize("unit", [1.0, 1e-4, 1e-8, 1e-12])
@pytest.mark.parametrize("objective", [cp.abs, cp.square])
def test_a_constraint_in_small_units_is_a_constraint(objective: Any, unit: float, solver: Any) -> None:
    x = cp.Variable()
    problem = cp.Problem(cp.Minimize(objective(x)), [unit * x >= 10.0 * unit])
    x.value = 0.0
    assert certificate(problem).gap is None
    problem.solve(solver=solver)
    assert problem.status == cp.OPTIMAL
    assert float(x.value) == pytest.approx(10.0, rel=1e-4)


@pytest.mark.parametrize("unit", [1.0, 1e-6, 1e-12])
def test_a_constraint_in_small_units_stops_a_descent(unit: float) -> None:
    x = cp.Variable(2)
    problem: Any = cp.Problem(cp.Minimize(cp.sum(x) + cp.norm(x) / 10), [unit * x >= unit])
    problem.solve(solver=AugmentedLagrangian(max_iter=3000), warm_start=False)
    assert problem.status == cp.OPTIMAL
    assert float(problem.value) == pytest.approx(2.0 + 2.0**0.5 / 10, rel=1e-3)


@pytest.mark.filterwarnings("ignore:Solution may be inaccurate")
@pytest.mark.parametrize("solver", [RFISTA, ADMM, SemismoothNewton])
@pytest.mark.parametrize("unit", [1.0, 1e-140, 1e-160])
def test_targets_whose_squares_underflow_are_not_called_optimal(unit: float, solver: Any) -> None:
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((20, 3)), unit * rng.standard_normal(20)
    model = cnn.gated_relu(X, cnn.sample_gates(X, 6, seed=0))
    problem = model.problem(y, 0.1 * cnn.lambda_max(model, y))
    problem.solve(solver=solver(max_iter=200))
    gap = problem.solver_stats.extra_stats["certificate"].relative_gap
    if unit == 1e-160:  # the objective has three digits at most
        assert problem.status == cp.USER_LIMIT
        assert gap >= 1.0
    else:
        assert problem.status == cp.OPTIMAL
        assert gap <= 1e-4


_TWO = cp.Variable(2, name="two")
_U, _V = cp.Variable(3, name="u"), cp.Variable(3, name="v")
_A = np.array([1.0, 2.0, 3.0])


@pytest.mark.parametrize("solver", [Auto, AugmentedLagrangian])
@pytest.mark.parametrize(
    ("objective", "small", "target"),
    [
        (cp.sum_squares(_TWO - np.array([1e10, 1e-6])), _TWO[1], 1e-6),
        (cp.norm1(_TWO - np.array([1e10, 1e-6])), _TWO[1], 1e-6),
        (1e8 * cp.norm1(_U - _A) + cp.norm1(_V - 1e-8 * _A), _V, 1e-8 * _A),
        (1e16 * cp.sum_squares(_U - _A) + cp.sum_squares(_V - 1e-8 * _A), _V, 1e-8 * _A),
    ],
    ids=["samples", "absolute samples", "losses", "squared losses"],
)
def test_small_targets_are_no_rounding_of_large_ones(
    objective: Any, small: Any, target: Any, solver: Any
) -> None:
    """The optimum is zero and the small target costs less than what the large one is rounded by."""
    problem: Any = cp.Problem(cp.Minimize(objective))
    _TWO.value, _U.value, _V.value = np.array([1e10, 0.0]), _A, np.zeros(3)
    found = certificate(problem)
    assert found.relative_gap == 1.0
    assert found.rounding == 0.0
    problem.solve(solver=solver(max_iter=2000))
    assert problem.status == cp.OPTIMAL
    np.testing.assert_allclose(small.value, target, rtol=1e-6)
