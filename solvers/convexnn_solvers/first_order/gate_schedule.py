"""When R-FISTA on a set of gates passes over all of them, and asks for certificates."""

from __future__ import annotations

from dataclasses import astuple, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convexnn_solvers.backends import Float64Array
from convexnn_solvers.gaps import relative_gap

# Passes come after so many iterations, then after this share of all.
_PASS, _PASS_SHARE = 10, 0.1
# A certificate is asked for when the estimate is below this share of the tolerance, then of the estimate; and
# in any case after so many iterations, then after this share of all, to see whether the solve has stalled.
_MARGIN, _SHRINK = 0.95, 0.5
_LOOK, _LOOK_SHARE = 100, 0.5


@dataclass(frozen=True)
class Schedule:
    """When to pass over all gates and to ask for certificates, in iterations.

    ``goal``: the estimated gap at which the next certificate is asked for; ``due``: one is now.
    """

    goal: float
    count: int = 0
    passes: int = 0
    next_pass: int = _PASS
    next_look: int = _LOOK
    due: bool = False

    def stepped(self) -> Schedule:
        """After one more iteration."""
        return replace(self, count=self.count + 1, due=False)

    def passed(self, gap: float) -> Schedule:
        """After a pass that estimated this gap."""
        passed = replace(
            self,
            passes=self.passes + 1,
            next_pass=self.count + max(_PASS, int(_PASS_SHARE * self.count)),
        )
        close = gap <= self.goal
        if not close and self.count < self.next_look:
            return passed
        return replace(
            passed,
            goal=_SHRINK * min(gap, self.goal) if close else self.goal,
            next_look=self.count + max(_LOOK, int(_LOOK_SHARE * self.count)),
            due=True,
        )

    def packed(self) -> Float64Array:
        """All numbers."""
        return np.asarray(astuple(self), dtype=np.float64)


def unpacked_schedule(numbers: NDArray[Any]) -> Schedule:
    """The inverse of :meth:`Schedule.packed`."""
    count, passes, next_pass, next_look, due = (int(value) for value in numbers[1:])
    return Schedule(float(numbers[0]), count, passes, next_pass, next_look, bool(due))


def first_schedule(tol: float) -> Schedule:
    """For a relative gap of ``tol``."""
    return Schedule(_MARGIN * tol)


def estimated_gap(
    smooth: float, penalty: float, inner: float, largest: float, quadratic: bool, constant: float
) -> float:
    """The relative gap that a multiple ``s`` of the residual leaves, feasible up to ``1 / largest``.

    Only a hint when to ask for a bound: with a free bias the residual is dual feasible in the end alone.

    ``inner`` is the gradient's product with the point. The dual value is ``s (2 f - inner) - s^2 f`` for a
    quadratic loss of value f. For others whose infimum is 0 it is at least the share ``s <= 1`` of
    ``f - inner``, since conjugates are convex. The problem's ``constant`` is part of both values.
    """
    primal, top = smooth + penalty, 1.0 / largest if largest > 0.0 else 1.0
    if quadratic:
        slope = 2.0 * smooth - inner
        scale = min(top, slope / (2.0 * smooth)) if slope > 0.0 and smooth > 0.0 else 0.0
        dual = scale * slope - scale * scale * smooth
    else:
        dual = min(1.0, top) * (smooth - inner)
    return abs(relative_gap(primal + constant, dual + constant))
