"""Small problems whose solves end early and go on from a file, and solving them without warnings."""

from __future__ import annotations

import warnings
from typing import Any

import cvxpy as cp
import numpy as np

import convexnn_models as cnn

RNG = np.random.default_rng(0)
X, Y = RNG.standard_normal((40, 4)), RNG.standard_normal(40)
GATES = cnn.sample_gates(X, 12, seed=0)


def gated(y: Any = Y, reg: float = 0.01) -> Any:
    return cnn.gated_relu(X, GATES, output_bias=True).problem(y, reg)


def relu() -> Any:
    return cnn.relu(X, GATES).problem(Y, 0.01)


def constrained() -> Any:
    model = cnn.gated_relu(X, GATES)
    problem = model.problem(Y, 0.01)
    return cp.Problem(problem.objective, [model.prediction >= -0.2])


def solve(problem: Any, solver: Any, **options: Any) -> Any:
    """Solve from zero, without CVXPY's warning of a limit; what our solver says about it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Solution may be inaccurate")
        problem.solve(solver=solver, warm_start=False, **options)
    return problem.solver_stats.extra_stats
