"""The certificate at a point of a small program whose numbers are worked out by hand."""

from __future__ import annotations

from typing import Any

import cvxpy as cp
import numpy as np

from convexnn_solvers.certify.certificate import Certificate, certificate
from convexnn_solvers.composite import DualPoint


def shrinkage(*constraints: Any, maximise: bool = False) -> tuple[Any, Any]:
    """min 1/2 ||x - (3, -2)||^2 + ||x||_1, with optimum (2, -1) and value 4 if nothing constrains it."""
    x = cp.Variable(2, name="x")
    cost = cp.sum_squares(x - np.array([3.0, -2.0])) / 2 + cp.norm1(x)
    objective = cp.Maximize(-cost) if maximise else cp.Minimize(cost)
    return cp.Problem(objective, [make(x) for make in constraints]), x


def at(problem: Any, x: Any, value: list[float], *duals: DualPoint) -> Certificate:
    x.save_value(np.array(value))  # as solvers do, who may leave bounds by rounding
    return certificate(problem, duals)
