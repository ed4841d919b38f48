"""When R-FISTA on a set of gates passes over all of them, asks for certificates, and lowers its penalties."""

from __future__ import annotations

import math
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
# Penalties so many times smaller than those where weights begin to vanish are inflated by that much at first,
# and then stage by stage by this factor less: they alone would move weights that the data do not fix by next
# to nothing in a step. Measured: larger ones are faster without stages.
_DEEP, _DEFLATION = 1e4, 0.3
# A stage ends at this gap, or at the share of the first penalty that is left: so far is its solution from the
# last one. Or it ends after so many iterations, and as many as there were before.
_STAGE_GAP, _STAGE = 0.1, 1000


@dataclass(frozen=True)
class Schedule:
    """When to pass over all gates and to ask for certificates, in iterations, and the stage of the penalty.

    ``goal``: the estimated gap at which the next certificate is asked for; ``due``: one is now. Penalties are
    multiplied by ``inflation``, which was ``first`` at the start; the stage began at iteration ``began``.
    """

    goal: float
    first: float = 1.0
    inflation: float = 1.0
    began: int = 0
    count: int = 0
    passes: int = 0
    next_pass: int = _PASS
    next_look: int = _LOOK
    due: bool = False

    def stepped(self) -> Schedule:
        """After one more iteration."""
        return replace(self, count=self.count + 1, due=False)

    def passed(self, gap: float) -> Schedule:
        """After a pass that estimated this gap, of the problem with inflated penalties."""
        passed = replace(
            self,
            passes=self.passes + 1,
            next_pass=self.count + max(_PASS, int(_PASS_SHARE * self.count)),
        )
        if self.inflation > 1.0:
            inflation = self._next_stage(gap)
            return (
                passed
                if inflation == self.inflation
                else replace(passed, inflation=inflation, began=self.count)
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

    def _next_stage(self, gap: float) -> float:
        """The inflation from here on: less if this stage's gap is small enough, or if it takes too long."""
        wanted = max(self.goal, min(_STAGE_GAP, self.inflation / self.first))
        over = gap <= wanted or self.count - self.began > max(_STAGE, self.began)
        return max(1.0, _DEFLATION * self.inflation) if over else self.inflation


def unpacked_schedule(numbers: NDArray[Any]) -> Schedule:
    """The inverse of :meth:`Schedule.packed`."""
    goal, first, inflation = (float(value) for value in numbers[:3])
    began, count, passes, next_pass, next_look, due = (int(value) for value in numbers[3:])
    return Schedule(goal, first, inflation, began, count, passes, next_pass, next_look, bool(due))


def first_schedule(tol: float, largest: float) -> Schedule:
    """For a relative gap of ``tol``, where the gradient is ``largest`` times what the penalties allow."""
    first = 0.5 * largest if _DEEP < 0.5 * largest < math.inf else 1.0
    return Schedule(_MARGIN * tol, first=first, inflation=first)


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
