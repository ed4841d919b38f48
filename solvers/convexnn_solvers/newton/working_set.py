"""Semismooth Newton on a working set of gates, certified over all of them.

Few gates are active at the optimum, and the dual variable tells which could be: a gate whose products
``||P(X^T S_j W)||`` stay below its weight may be left out. Rounds of the method on the working set alternate
with one pass over all gates, which scales the dual point until it is feasible for every gate, gives the gap
of the whole program, and brings in the gates that were violated most. Only the pattern bits of the other
gates are kept in memory.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from convexnn_solvers.backends import Float64Array
from convexnn_solvers.cones.active_sets import ActiveRows
from convexnn_solvers.gaps import relative_gap
from convexnn_solvers.gated_programs.nonsmooth_fits import NonsmoothFit
from convexnn_solvers.gated_programs.program import GatedProgram, Indices, block_norms, next_working_set
from convexnn_solvers.newton.cone_splitting import can_split
from convexnn_solvers.newton.dual_newton import DualNewton
from convexnn_solvers.newton.duals import best_multiple, bounds_anew
from convexnn_solvers.newton.splitting_newton import SplittingNewton
from convexnn_solvers.newton.start import (
    NewtonPolicy,
    NewtonStart,
    given_dual,
    kept_cones,
    kept_systems,
    usual_policy,
)
from convexnn_solvers.packing import Arrays, Held, below, packed_attributes, part, restore_attributes

# Measured: below so many gates a working set gains nothing; with cones it gains at large weights only.
_PLAIN_FROM = 1000
_CONES_FROM = 500
_LARGEST_RATIO = 200.0
# Measured: with so few gates times features a Newton step is hardly dearer than some iterations of ADMM.
# Of losses without a gradient they are several times as many.
_SPLIT_FROM, _SPLIT_KINKED_FROM = 1500, 300
# Bytes of the slopes of all gates, which the method without a working set keeps in memory.
_MEMORY = 5e8
# What a checkpoint keeps as it is.
_STATE = (
    "newton_steps", "rounds", "primal", "dual", "dual_point", "offset", "working_set",
    "_U", "_xi", "_best_gap", "_best_step", "_gap_before",
)  # fmt: skip


@dataclass(frozen=True)
class WorkingSetPolicy:
    """``first`` gates to begin with, then at least ``growth`` times the active ones.

    A round ends at ``share`` of the gap that the whole program had before it.
    """

    first: int = 100
    growth: float = 2.0
    share: float = 0.1


class WorkingSetNewton:
    """The method on growing sets of gates; from outside like :class:`DualNewton` on all of them.

    ``working_set`` holds the gates of the current round.
    """

    def __init__(
        self,
        program: GatedProgram,
        policy: NewtonPolicy | None = None,
        start: NewtonStart | None = None,
        sets: WorkingSetPolicy | None = None,
    ) -> None:
        self.program = program
        self.policy = policy or usual_policy(program.fit)
        self.sets = sets or WorkingSetPolicy()
        self.newton_steps = self.rounds = 0
        self.dual, self.dual_point = -np.inf, np.zeros(program.fit.shape)
        self._cones = kept_cones(program) if program.cones else None
        self._systems = kept_systems(program)
        self._best_gap, self._best_step = np.inf, 0
        self.working_set: Indices = np.zeros(0, dtype=np.intp)
        held = None if start is None else start.held
        if held is None:
            self._begin(start or NewtonStart())
        else:
            self._restore(held)

    def _begin(self, start: NewtonStart) -> None:
        program, point = self.program, start.point
        self._U = np.zeros(program.point_shape) if point is None else point.copy()
        active = np.flatnonzero(np.any(self._U != 0.0, axis=(0, 1)))
        if self._cones is not None and active.size:
            self._U[:, :, active] = self._cones.project(self._U[:, :, active], active)
        fitted = program.fit.at(program.forward(self._U))
        self.primal = fitted.value + float(program.weights @ block_norms(self._U))
        self.offset = fitted.offset
        given = given_dual(program, start)
        self._xi = fitted.xi if given is None else given
        self._begin_round()

    def packed(self) -> Arrays:
        """The state as arrays."""
        arrays = packed_attributes(self, _STATE) | below("inner", self._inner.packed())
        return arrays if self._cones is None else arrays | below("cones", self._cones.packed())

    def _restore(self, held: Held) -> None:
        restore_attributes(self, _STATE, held)
        if self._cones is not None:
            self._cones.restore(part("cones", held))
        self._begin_inner(part("inner", held))

    @property
    def gap(self) -> float:
        """The relative gap over all gates; NaN when something was not finite."""
        return relative_gap(self.primal, self.dual)

    @property
    def stalled(self) -> bool:
        """Whether the gap has not become smaller for a long time."""
        return self.newton_steps - self._best_step > self.policy.patience

    @property
    def dual_rows(self) -> tuple[ActiveRows, ...]:
        """With cones, for each output the active rows of the latest projections."""
        return () if self._cones is None else self._cones.active()

    @property
    def point(self) -> Float64Array:
        """The best point so far (c, d, B)."""
        return self._U

    def step(self, tol: float) -> None:
        """One Newton step on the working set, or the next set; none if gap <= tol."""
        if self.gap <= tol:
            return
        goal = max(self.sets.share * self._gap_before, 0.5 * tol)
        if self._inner.gap > goal and not self._inner.stalled:
            before = self._inner.newton_steps
            self._inner.step(goal)
            self.newton_steps += self._inner.newton_steps - before
        if not self._inner.gap > goal or self._inner.stalled:
            self._take_over()
            self._begin_round()

    def look_again(self) -> None:
        """Find the best bounds anew, and the next set."""
        found = bounds_anew(self.program, self._U, self.dual_point, self._cones)
        self.primal, self.offset, best = found.primal, found.offset, found.dual
        self.dual, self.dual_point = best.value, best.scale * self.dual_point
        self._best_gap, self._best_step = self.gap, self.newton_steps
        self._begin_round()

    def _take_over(self) -> None:
        """The inner method's point, in the numbering of all gates."""
        inner = self._inner
        if not inner.primal >= self.primal:
            self.primal, self.offset = inner.primal, inner.offset
            self._U = np.zeros(self.program.point_shape)
            self._U[:, :, self._blocks] = inner.point
        self._xi = inner.xi

    def _begin_round(self) -> None:
        """One pass over all gates: the dual bound of the whole program, and the next working set."""
        xi = self.program.fit.nearest(self._xi)
        products = self.program.by_block(self.program.adjoint(xi))
        found = best_multiple(self.program, xi, products, self._cones)
        if not found.value <= self.dual:
            self.dual, self.dual_point = found.value, -found.scale * xi
        self._gap_before = self.gap
        slow = not self.gap <= 0.5 * self._best_gap
        if not self.gap >= 0.99 * self._best_gap:
            self._best_gap, self._best_step = self.gap, self.newton_steps
        self.rounds += 1
        self.working_set = self._chosen(found.ratios, slow)
        self._begin_inner()

    @property
    def _blocks(self) -> Indices:
        """The blocks of the working set among all blocks."""
        return self.program.blocks_of(self.working_set)

    def _begin_inner(self, held: Held | None = None) -> None:
        """The method on the working set, from where we are or from what it packed."""
        blocks = self._blocks
        start = NewtonStart(
            point=self._U[:, :, blocks],
            xi=self._xi,
            cones=None if self._cones is None else self._cones.restricted(blocks),
            systems=self._systems,
            held=held,
        )
        self._inner = whole_engine(self.program.restricted(self.working_set), self.policy, start)

    def _chosen(self, ratios: Float64Array, slow: bool) -> Indices:
        """The gates in use and those of the largest ratios; more of them when the last set gained little."""
        used = self.program.used_gates(self._U)
        size = max(
            self.sets.first, int(self.sets.growth * used.sum()), (2 if slow else 1) * self.working_set.size
        )
        return next_working_set(used, ratios.reshape(-1, used.size).max(axis=0), size)


def gates_at_a_time(program: GatedProgram) -> int:
    """How many gates the method works on at first."""
    first = min(program.gates, WorkingSetPolicy().first)
    return first if _must_be_few(program) or _many(program) else program.gates


def _must_be_few(program: GatedProgram) -> bool:
    return 8.0 * program.patterns.size > _MEMORY


def _many(program: GatedProgram) -> bool:
    return program.gates > (_CONES_FROM if program.cones else _PLAIN_FROM)


def whole_engine(program: GatedProgram, policy: NewtonPolicy | None, start: NewtonStart) -> DualNewton:
    """The method on all gates of a program, with ADMM to go ahead where its steps are worth saving."""
    return (SplittingNewton if splits(program, program.gates) else DualNewton)(program, policy, start)


def splits(program: GatedProgram, gates: int) -> bool:
    """Whether ADMM, with a matrix of its own, may go ahead where there are so many gates at a time."""
    least = _SPLIT_KINKED_FROM if isinstance(program.fit, NonsmoothFit) else _SPLIT_FROM
    return gates * program.X.shape[1] >= least and can_split(program)


def newton_engine(
    program: GatedProgram, policy: NewtonPolicy | None, start: NewtonStart
) -> DualNewton | WorkingSetNewton:
    """The method on all gates, or on a working set where that pays or memory asks for it."""
    if _must_be_few(program):
        return WorkingSetNewton(program, policy, start)
    many = _many(program)
    if many and program.cones:
        many = float(np.max(program.null_norms() / program.weights)) <= _LARGEST_RATIO
    return WorkingSetNewton(program, policy, start) if many else whole_engine(program, policy, start)
