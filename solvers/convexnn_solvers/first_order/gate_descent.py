"""R-FISTA on a working set of gates, certified over all of them.

Few gates are in use, and a gate whose weights are zero changes neither the prediction nor the momentum as
long as its gradient stays below its weight. So steps are taken on a set of gates alone. From time to time
one pass over all gates brings in those whose gradients ask for it and, where the set has become larger than
what is in use, drops others; neither moves the iterate. The pass also estimates the gap, which says when a
certificate is worth its time. Besides the problem and its bits only the set's gates are held in memory.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convexnn_solvers.backends import Array, Float64Array
from convexnn_solvers.composite import Composite, DualPoint, Point
from convexnn_solvers.first_order.accelerated import (
    Descent,
    Smooth,
    advance,
    descend_from,
    packed_descent,
    unpacked_descent,
)
from convexnn_solvers.first_order.curvature import largest_curvature, loss_hessian, positive_scales
from convexnn_solvers.first_order.gate_columns import ColumnShrinkage, GateColumns, gate_columns
from convexnn_solvers.first_order.gate_schedule import (
    Schedule,
    estimated_gap,
    first_schedule,
    unpacked_schedule,
)
from convexnn_solvers.first_order.rfista import check_smooth, rfista_method
from convexnn_solvers.loop.checkpoint import Arrays, packed_point, whole_point
from convexnn_solvers.loop.iterate import Candidate, Method
from convexnn_solvers.packing import below, part
from convexnn_solvers.reading.affine import UnsupportedProblem
from convexnn_solvers.status import Status

# Gates of the first set, and of later ones as a multiple of those in use: measured, larger sets only cost.
_FIRST, _GROWTH = 64, 1.2
# Sets shrink when they have become so many times larger than they need to be, and at the first passes only:
# in the end they grow, so that what they converge to is the solution.
_LAVISH, _SHRINKING_PASSES = 1.2, 40
# Points of one checkpoint in the user's features and in principal components agree this well, relatively.
_ALIKE = 1e-4


@dataclass(frozen=True, eq=False)
class GateState:
    """R-FISTA's state on the problem of the ``chosen`` gates (their positions, rising)."""

    descent: Descent
    chosen: Array
    smooth: Smooth
    shrinkage: ColumnShrinkage
    schedule: Schedule


@dataclass(frozen=True, eq=False)
class _Pass:
    """What a pass over all gates found: their ratios, how many are in use, how many are missing; the gap."""

    ratios: Array
    used: int
    missing: int
    gap: float


@dataclass(frozen=True, eq=False)
class GateDescent:
    """The method for :func:`loop.iterate.iterate`; ``tol`` is the relative gap to reach.

    ``first``: gates of the first set. ``most``: so many steps are a stall.
    """

    columns: GateColumns
    tol: float
    first: int = _FIRST
    most: float = math.inf
    name: str = "R-FISTA"
    judges_itself: bool = True

    def start(self, x: Point) -> GateState:
        """The gates of the largest gradients; the first step length comes from their curvature."""
        return self._started(x, self.columns.used(x))

    def _started(self, x: Point, used: Array) -> GateState:
        columns, whole = self.columns, self.columns.whole
        outputs = whole.affine.forward(x)
        ratios = columns.ratios_of(self._gradient(outputs))
        size = self._size(int(whole.backend.xp.sum(used)))
        chosen = self._largest(ratios, used, size)
        problem = columns.restricted(chosen)
        hessian = loss_hessian(problem)
        units = self._units(problem)
        alone = [largest_curvature(problem, hessian, units, (k,)) for k in range(len(units))]
        smooth = self._smooth(problem, positive_scales(alone))
        curvature = 1.0
        if len(units) > 1:
            curvature = largest_curvature(problem, hessian, smooth.scales, range(len(units)))
        step = 1.0 / curvature if curvature > 0.0 else 1.0
        descent = descend_from(smooth, columns.taken(x, chosen), step)
        return GateState(
            descent, chosen, smooth, columns.shrinkage(problem, chosen), first_schedule(self.tol)
        )

    def step(self, state: GateState) -> GateState:
        """One accelerated step, and a pass over all gates when it is time."""
        descent = advance(state.smooth, state.shrinkage, state.descent)
        moved = replace(state, descent=descent, schedule=state.schedule.stepped())
        return self._passed(moved) if moved.schedule.count >= moved.schedule.next_pass else moved

    def residual(self, state: GateState) -> float:
        """NaN when the last step produced one."""
        return 0.0 if math.isinf(state.descent.residual) else state.descent.residual

    def wants_look(self, state: GateState) -> bool:
        """When the estimated gap is small enough, nobody looked for long, or all steps are used up."""
        return state.schedule.due or self._used_up(state)

    def candidate(self, state: GateState) -> Candidate:
        """The iterate on all gates; the certificate makes its own dual point of its residual, and is told the
        multipliers of cones that go with it."""
        columns = self.columns
        lifted = columns.lifted(state.descent.x, state.chosen)
        point = tuple(columns.whole.backend.to_numpy(a) for a in lifted)
        duals: tuple[DualPoint, ...] = ()
        if columns.cones:
            duals = (DualPoint((), columns.multipliers(self._gradient(state.descent.outputs))),)
        return Candidate(point, duals, Status.STALLED if self._used_up(state) else None)

    def _used_up(self, state: GateState) -> bool:
        return state.schedule.count >= self.most

    def multipliers(self, state: GateState) -> tuple[Float64Array, ...]:
        """None of its own: those of pattern cones follow from the dual point."""
        return ()

    def packed(self, state: GateState) -> Arrays:
        """The whole state, and where it is on all gates: R-FISTA without a set can go on from there."""
        backend, plan, descent = self.columns.whole.backend, state.schedule, state.descent
        x, y = (self.columns.lifted(point, state.chosen) for point in (descent.x, descent.y))
        arrays = packed_descent(replace(descent, x=x, y=y), backend)
        for name, point in (("set.x", descent.x), ("set.y", descent.y)):
            arrays |= packed_point(name, point, backend.to_numpy)
        arrays["chosen"] = np.asarray(backend.to_numpy(state.chosen), dtype=np.int64)
        arrays["scales"] = np.asarray(self._scale_numbers(state.smooth))
        arrays["schedule"] = plan.packed()
        for position, cones in self.columns.cones.items():
            arrays |= below(f"cones {position}", cones.packed())
        return arrays

    def unpacked(self, arrays: Mapping[str, NDArray[Any]]) -> GateState:
        """The state that was packed; that of R-FISTA without a set, as far as it goes."""
        backend, descent = self.columns.whole.backend, unpacked_descent(arrays, self.columns.whole.backend)
        if "chosen" not in arrays:
            state = self._started(descent.x, self.columns.used(descent.x) | self.columns.used(descent.y))
            x, y = (self.columns.taken(point, state.chosen) for point in (descent.x, descent.y))
            step = state.descent.step
            return replace(state, descent=replace(descent, x=x, y=y, step=step, last_step=step))
        chosen = backend.xp.asarray(arrays["chosen"], device=backend.device)
        problem = self.columns.restricted(chosen)
        smooth = self._smooth(problem, tuple(float(scale) for scale in arrays["scales"]))
        plan = unpacked_schedule(arrays["schedule"])
        x, y = (tuple(backend.asarray(a) for a in whole_point(name, arrays)) for name in ("set.x", "set.y"))
        if not self._are(x, chosen, descent.x):
            x, y = (self.columns.taken(point, chosen) for point in (descent.x, descent.y))
        for position, cones in self.columns.cones.items():
            cones.restore(part(f"cones {position}", arrays))
        shrinkage = self.columns.shrinkage(problem, chosen)
        return GateState(replace(descent, x=x, y=y), chosen, smooth, shrinkage, plan)

    def _are(self, x: Point, chosen: Array, whole: Point) -> bool:
        """Whether a point on a set is this one: other machines find principal components of other signs."""
        size, lifted = self.columns.whole.backend.xp.linalg.vector_norm, self.columns.lifted(x, chosen)
        return all(float(size(a - b)) <= _ALIKE * float(size(b)) for a, b in zip(lifted, whole, strict=True))

    def _passed(self, state: GateState) -> GateState:
        """After one look at all gates: the next set, if this one lacks gates or has far too many."""
        found = self._look_at_all(state)
        plan = state.schedule.passed(found.gap)
        state = replace(state, schedule=plan)
        held = int(state.chosen.shape[0])
        wanted = self._size(found.used)
        lavish = held > _LAVISH * wanted and plan.passes <= _SHRINKING_PASSES
        if found.missing == 0 and not lavish:
            return state
        keep = self._keeps(state, lavish)
        size = wanted if lavish else max(wanted, held + found.missing)
        chosen = self._largest(found.ratios, keep, min(size, self.columns.count))
        return self._on(state, chosen)

    def _look_at_all(self, state: GateState) -> _Pass:
        """One adjoint product with all gates; a device is asked for six numbers."""
        columns, descent = self.columns, state.descent
        backend, problem = columns.whole.backend, state.smooth.composite
        xp = backend.xp
        cotangents = columns.whole.loss_gradients(descent.outputs)
        ratios = columns.ratios_of(self._gradient(descent.outputs))
        outside = 1.0 * ratios
        outside[state.chosen] = 0.0
        used = columns.used(descent.x) | columns.used(descent.y)
        smooth = problem.smooth_value(descent.x, descent.outputs)
        penalty = problem.penalty_value(descent.x)
        inner = xp.sum(cotangents[0] * (descent.outputs[0] - columns.shift))
        for c, v in zip(problem.linear, descent.x, strict=True):
            inner = inner + xp.sum(c * v)
        numbers = [smooth, penalty, inner, xp.max(ratios)]
        counts = [xp.sum(backend.asarray(used)), xp.sum(backend.asarray(outside > 1.0))]
        smooth, penalty, inner, largest, count, missing = backend.to_numpy(
            xp.stack([*numbers, *counts])
        ).tolist()
        gap = estimated_gap(smooth, penalty, inner, largest, columns.quadratic, columns.whole.constant)
        return _Pass(ratios, int(count), int(missing), gap)

    def _gradient(self, outputs: Point) -> Point:
        """The gradient of the smooth part with respect to the weights of all gates."""
        whole = self.columns.whole
        pulled = whole.affine.adjoint(whole.loss_gradients(outputs))
        return tuple(g + c for g, c in zip(pulled, whole.linear, strict=True))

    def _size(self, used: int) -> int:
        """How many gates a set should have."""
        return min(self.columns.count, max(self.first, int(_GROWTH * used)))

    def _keeps(self, state: GateState, lavish: bool) -> Array:
        """Which of all gates must stay: those in use, or all that are there."""
        columns, xp = self.columns, self.columns.whole.backend.xp
        keep = xp.zeros(columns.count, dtype=xp.bool, device=columns.whole.backend.device)
        descent = state.descent
        keep[state.chosen] = columns.used(descent.x) | columns.used(descent.y) if lavish else True
        return keep

    def _largest(self, ratios: Array, keep: Array, size: int) -> Array:
        """The positions of what must stay and of the largest ratios, ``size`` in all."""
        xp = self.columns.whole.backend.xp
        scores = xp.where(keep, xp.inf + 0.0 * ratios, ratios)
        return xp.sort(xp.argsort(-scores, stable=True)[:size])

    def _on(self, state: GateState, chosen: Array) -> GateState:
        """The same iterate on another set of gates, which has all that are in use."""
        problem = self.columns.restricted(chosen)
        old, descent = state.chosen, state.descent
        x, y = (self.columns.moved(point, old, chosen) for point in (descent.x, descent.y))
        smooth = self._smooth(problem, self._scale_numbers(state.smooth))
        return replace(
            state,
            descent=replace(descent, x=x, y=y),
            chosen=chosen,
            smooth=smooth,
            shrinkage=self.columns.shrinkage(problem, chosen),
        )

    def _units(self, problem: Composite) -> list[Any]:
        """The metric of every variable, of size one."""
        metric, weights = self.columns.metric, {position for position, _ in self.columns.ratios}
        if metric is None:
            return [1.0] * len(problem.variables)
        xp, outputs = problem.backend.xp, self.columns.operator.outputs
        rows = xp.concat([metric.curvatures] * outputs)
        return [rows if k in weights else 1.0 for k in range(len(problem.variables))]

    def _smooth(self, problem: Composite, scales: tuple[float, ...]) -> Smooth:
        units = self._units(problem)
        return Smooth(problem, tuple(scale * unit for scale, unit in zip(scales, units, strict=True)))

    def _scale_numbers(self, smooth: Smooth) -> tuple[float, ...]:
        """The scales as numbers: the metric's largest curvature is one."""
        return tuple(
            scale if isinstance(scale, float) else float(smooth.composite.backend.xp.max(scale))
            for scale in smooth.scales
        )


def gradient_method(
    composite: Composite, exact: Composite, tol: float, most: float = math.inf
) -> Method[Any]:
    """R-FISTA: on a working set where the problem has gates, ``most`` steps of it, else on all variables.

    ``exact`` is the problem in float64 with NumPy. Raises UnsupportedProblem, naming what it cannot take.
    """
    check_smooth(composite)
    try:
        return GateDescent(gate_columns(composite, exact), tol, most=most)
    except UnsupportedProblem:
        return rfista_method(composite)
