"""When Newton's method steps on the optimality conditions themselves, and which of these steps are kept."""

from __future__ import annotations

import numpy as np

from convexnn_solvers.gated_programs.fits import balanced
from convexnn_solvers.newton.factors import Solve
from convexnn_solvers.newton.operator import NewtonOperator
from convexnn_solvers.newton.pairs import pair_operator, pair_step
from convexnn_solvers.newton.position import Position
from convexnn_solvers.newton.start import NewtonPolicy
from convexnn_solvers.newton.system import NewtonSystems
from convexnn_solvers.packing import Arrays, Held, packed_attributes, restore_attributes

# What a checkpoint keeps as it is.
_STATE = ("due", "_below", "_old_within", "_later_sigma")


class PairSteps:
    """The steps of :mod:`pairs` from one position, with the matrix of now or the latest factor.

    ``due``: whether the next step may be one although the inner problem is not solved. A refused step waits
    until the gap is a share of what it was; those with the latest factor are for gaps up to a multiple of the
    tolerance. A warm start without cones begins with a small penalty, and has its own when they go wrong.
    """

    def __init__(self, at: Position, policy: NewtonPolicy, systems: NewtonSystems) -> None:
        self._at, self._policy, self._systems = at, policy, systems
        self._possible = at.program.outputs == 1 and not at.copy.needed
        self.due, self._below = False, 1.0
        self._old_within = self._later_sigma = 0.0

    def packed(self) -> Arrays:
        """What they remember as arrays."""
        return packed_attributes(self, _STATE)

    def restore(self, held: Held) -> None:
        """Go on from these."""
        restore_attributes(self, _STATE, held)

    def begin(self) -> None:
        """Make the penalty of a warm start without cones a small one, for as long as these steps go well."""
        at = self._at
        if self.due and self._possible and not at.program.cones:
            self._later_sigma, at.sigma = at.sigma, min(at.sigma, self._policy.pair_sigma)
            self._old_within = np.inf

    def begin_again(self) -> None:
        """Whatever was refused before, the next step is one of these."""
        self.due, self._below = True, 1.0

    def ready(self, solved: bool, gap: float, tol: float) -> bool:
        """Whether it is time for one, at this gap and with the inner problem ``solved`` or not."""
        return (solved or self.due) and tol < gap <= self._below and self._possible

    def old_step(self, gap: float, tol: float) -> bool:
        """A step with the latest factor, of another solve or of the step before; whether it is kept."""
        if not gap <= self._old_within * tol:
            return False
        latest = self._systems.latest_pair(self._at.program)
        kept = latest is not None and self._take(latest[0], latest[1], self._policy.old_gain)
        self._old_within = self._policy.near if kept else 0.0
        return kept

    def operator(self) -> NewtonOperator | None:
        """The matrix of a new step, where there is one with a factor."""
        self.due = False
        at, program = self._at, self._at.program
        if at.active.blocks.size == 0:
            return None
        operator = pair_operator(program, at.active, at.here().features, program.fit.curvature(at.xi))
        return operator if self._systems.can_factorise(operator) else None

    def new_step(self, operator: NewtonOperator, gap: float, first: bool) -> bool:
        """A step with its :meth:`operator`, the ``first`` of a solve or not; whether it is kept."""
        forcing, gain = self._policy.pair_forcing, self._policy.pair_gain
        if self._later_sigma > 0.0 and first:
            gain = self._policy.first_gain
        kept = self._take(operator, lambda right: self._systems.solve(operator, right, forcing), gain)
        if kept and self._later_sigma > 0.0:
            self._old_within = self._policy.near
        elif not kept and not first:  # a start may not be close enough at first
            self._below = 0.1 * gap
        return kept

    def give_up(self) -> bool:
        """The usual penalty instead of a small one; whether it was small."""
        small = self._later_sigma > 0.0
        if small:
            self._at.sigma, self._later_sigma = self._later_sigma, 0.0
            self._at.find(self._at.products)
        return small

    def _take(self, operator: NewtonOperator, solve: Solve, gain: float) -> bool:
        """Take a step if no more than the share ``gain`` of the residual is left."""
        at, fit = self._at, self._at.program.fit
        blocks, before = operator.active.blocks, at.residual()
        U = at.proximal
        values = U[:, :, blocks]
        missed = (at.U[:, :, blocks] - values) / at.sigma
        centred, adjoint = lambda right: solve(balanced(fit, right)), at.features.adjoint
        try:
            with np.errstate(over="raise", invalid="raise"):
                gradient = at.here().gradient
                step = pair_step(at.program, operator, values, missed, gradient, centred, adjoint)
        except FloatingPointError:  # its penalty is too large for the working precision; others are not
            return False
        if not fit.room(at.xi, step.xi) >= 1.0:
            return False
        U[:, :, blocks] = step.values
        kept = at.tried(U, step.xi, step.products, gain * before)
        self.due = self.due or kept
        return kept
