"""The Lagrangian of a solved problem's curved constraints: a problem whose bounds are bounds of the problem.

An interior-point solver says of ``norm(q) <= t`` one number, the price of ``t``, and nothing of the
multipliers inside the norm. With the constraint times its price in the objective (weak duality: for any price
``>= 0`` the minimum can only be lower), the norm is a term like others, whose dual is found as theirs are.
"""

from __future__ import annotations

from typing import Any

import cvxpy as cp
import numpy as np
from cvxpy.constraints.nonpos import Inequality


def relaxation(problem: Any, factor: float = 1.0) -> cp.Problem | None:
    """The problem with every curved inequality that holds dual values in its objective; None without any.

    The dual values are those of whoever solved last, times ``factor``. Negative ones count as zero.
    """
    kept: list[Any] = []
    priced: list[Any] = []
    for constraint in problem.constraints:
        price = _price(constraint)
        if price is None:
            kept.append(constraint)
        else:
            small, large = constraint.args
            priced.append(cp.sum(cp.multiply(factor * price, small - large)))
    if not priced:
        return None
    direction, objective = type(problem.objective), problem.objective.args[0]
    total = cp.sum(priced) if len(priced) > 1 else priced[0]
    return cp.Problem(direction(objective + (total if direction is cp.Minimize else -total)), kept)


def _price(constraint: Any) -> Any:
    """The dual value of a curved inequality, in its shape; None of others and without a value."""
    if not isinstance(constraint, Inequality) or all(side.is_affine() for side in constraint.args):
        return None
    if constraint.dual_value is None:
        return None
    value = np.asarray(constraint.dual_value, dtype=np.float64)
    finite = value.size == constraint.size and bool(np.isfinite(value).all())
    return np.clip(value, 0.0, None).reshape(constraint.shape) if finite else None
