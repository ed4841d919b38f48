"""Optimal values from Clarabel, as accurate as it gets them, and ours beside them."""

from __future__ import annotations

import warnings
from typing import Any

import cvxpy as cp
import pytest

from convexnn_solvers import AugmentedLagrangian, certificate


def optimum(problem: Any, *tolerances: float) -> float:
    """The optimal value to the first of the ``tolerances`` (1e-10, 1e-9, 1e-8) that Clarabel reaches.

    Asked for more than rounding allows, Clarabel runs past its best point and reports failure; degenerate
    problems reach a small gap only where feasibility may be looser.
    """
    asked = tolerances or (1e-10, 1e-9, 1e-8)
    for gap, feasible in [(tol, max(tol, loosest)) for tol in asked for loosest in (tol, 1e-9, 1e-8)]:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Solution may be inaccurate")
            try:
                problem.solve(solver=cp.CLARABEL, tol_gap_abs=gap, tol_gap_rel=gap, tol_feas=feasible)
            except cp.SolverError:
                continue
        if problem.status == cp.OPTIMAL:
            return float(problem.value)
    raise AssertionError(f"Clarabel ended with {problem.status}")


def assert_agrees(problem: cp.Problem, tol: float = 1e-4, **options: Any) -> None:
    """Optimal, certified, and as good as the interior-point solver's point; a bound below its value."""
    value = optimum(problem, 1e-9, 1e-8)
    for variable in problem.variables():
        variable.value = None
    problem.solve(solver=AugmentedLagrangian(tol=tol), **options)
    assert problem.status == cp.OPTIMAL
    assert problem.value == pytest.approx(value, rel=1.5 * tol + 3e-6, abs=3e-6)  # feasible to 1e-6
    found = certificate(problem)
    assert found.dual is not None
    assert found.relative_gap is not None
    assert found.relative_gap <= 1.01 * tol
    sign = 1.0 if isinstance(problem.objective, cp.Minimize) else -1.0
    assert sign * found.dual <= sign * value + 2e-7 * (1.0 + abs(value))
