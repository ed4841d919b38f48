"""How a solve ended: each status is its sentence, and knows what CVXPY calls it."""

from __future__ import annotations

from enum import Enum
from typing import Any

import cvxpy as cp
from cvxpy import settings


class Status(Enum):
    """Why a solver stopped. The value is the sentence: what happened and what to do about it."""

    OPTIMAL = "The certified relative gap is at most tol: no point is better by more than that."
    ITERATION_LIMIT = (
        "max_iter iterations did not reach tol; the best certified point is returned. Solving again "
        "continues from it; raise max_iter or loosen tol."
    )
    TIME_LIMIT = (
        "time_limit ran out before tol was reached; the best certified point is returned. Solving again "
        "continues from it."
    )
    STOPPED = "The callback asked to stop; the best certified point is returned."
    INTERRUPTED = "KeyboardInterrupt; the best certified point is returned."
    STALLED = (
        "Neither the point nor the bound improved any more, so tol is out of reach. Likely causes: "
        "dtype='float32' with a small tol (use dtype='float64'); tol below rounding; objectives below "
        "1e-300, which underflow (use another unit for the targets); a regularisation so small that "
        "rounding hides it (raise it, or solve without it by solver=cp.CLARABEL); a term for which the "
        "certificate has no bound (its note names it)."
    )
    NOT_FINITE = (
        "The iteration met NaN or infinity; the best certified point before that is returned. Check the "
        "scale of the data and of the weights, or use dtype='float64'."
    )
    INFEASIBLE = "No point satisfies the constraints: the multipliers grew along a certificate of that."
    UNBOUNDED = "The objective decreases without bound along a feasible direction."

    def __reduce_ex__(self, protocol: object) -> tuple[Any, ...]:
        """By name in pickles: sentences get better, and what was stored with an older one stays readable."""
        return getattr, (Status, self.name)

    @property
    def cvxpy(self) -> str:
        """CVXPY's name of this status; every limit is ``user_limit``, never more than was certified."""
        names = {Status.OPTIMAL: cp.OPTIMAL, Status.INFEASIBLE: cp.INFEASIBLE, Status.UNBOUNDED: cp.UNBOUNDED}
        return str(names.get(self, settings.USER_LIMIT))
