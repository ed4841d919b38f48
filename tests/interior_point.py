"""Optimal values from Clarabel, as accurate as it gets them."""

from __future__ import annotations

import warnings
from typing import Any

import cvxpy as cp


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
