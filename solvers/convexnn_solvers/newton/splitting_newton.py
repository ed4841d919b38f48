"""Semismooth Newton on cones that lets ADMM find the active rows where its own steps turn out short.

Where few rows change Newton's steps are long, and nobody needs anything else. Where a line search shortens
them far from the optimum, ADMM (:mod:`cone_splitting`) goes on, whose iterations take a fraction of a step's
time, until the gap is a share of what it was; then Newton's method tries again, and ADMM goes on from its own
point where that fails. At small weights it begins.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from convexnn_solvers.gated_programs.fits import Fit
from convexnn_solvers.gated_programs.nonsmooth_fits import NonsmoothFit
from convexnn_solvers.gated_programs.program import GatedProgram
from convexnn_solvers.newton.cone_splitting import ConeSplitting, SplittingStart, cold_start
from convexnn_solvers.newton.dual_newton import DualNewton
from convexnn_solvers.newton.start import NewtonPolicy, NewtonStart
from convexnn_solvers.packing import Arrays, Held, below, packed_attributes, part, restore_attributes

_STATE = ("turns", "iterations", "_splits", "_goal", "_turn_gap", "_best_at")


@dataclass(frozen=True)
class SplittingPolicy:
    """When it is whose turn.

    ADMM begins at once where the largest gradient at zero is ``small`` times its weight, else when line
    searches have shortened ``short`` Newton steps while the gap was above ``far``; in later turns it follows
    the first such step while the gap is above ``far_again`` times the tolerance. ``many`` of them are enough
    anywhere. Its first turn ends at a gap of ``first``, every one at ``later`` of what the gap was, or after
    ``patience`` iterations without a better one; the gap is looked at every ``iterations``, more often in the
    beginning. Newton's method goes on with a penalty ``growth`` times as large. There are at most ``most``
    turns.
    """

    small: float = 300.0
    short: int = 2
    far: float = 0.5
    far_again: float = 1000.0
    many: int = 30
    first: float = 3e-3
    later: float = 0.3
    iterations: int = 20
    patience: int = 200
    growth: float = 10.0
    most: int = 12


def usual_splitting(fit: Fit) -> SplittingPolicy:
    """The policy for a loss. Without a gradient ADMM finds the neighbourhood of the optimum as fast as with
    one, but it is slow from there on, where Newton's steps arrive although many of them are short."""
    if isinstance(fit, NonsmoothFit):
        return SplittingPolicy(many=200, far_again=np.inf, first=0.1)
    return SplittingPolicy()


class SplittingNewton(DualNewton):
    """The method. ``turns``: how often ADMM took over, and for how many ``iterations`` in all."""

    def __init__(
        self,
        program: GatedProgram,
        policy: NewtonPolicy | None = None,
        start: NewtonStart | None = None,
        splitting: SplittingPolicy | None = None,
    ) -> None:
        self.splitting = splitting or usual_splitting(program.fit)
        self.turns = self.iterations = self._best_at = 0
        self._splits, self._goal, self._turn_gap = False, 0.0, np.inf
        self._admm: ConeSplitting | None = None
        first = start or NewtonStart()
        super().__init__(program, policy, first)
        if first.held is None and first.xi is None and self._weak:
            self._begin_turn(cold_start(program))

    @property
    def _weak(self) -> bool:
        """Whether the weights are so small that Newton's first steps would be short."""
        return float(np.max(self.program.null_norms() / self.program.weights)) >= self.splitting.small

    def _restore(self, held: Held) -> None:
        super()._restore(held)
        restore_attributes(self, _STATE, part("turns", held))
        admm = part("admm", held)
        if admm:
            self._admm = ConeSplitting(self.program, self.features, self.prox, held=admm)

    def packed(self) -> Arrays:
        """The state as arrays."""
        arrays = super().packed() | below("turns", packed_attributes(self, _STATE))
        return arrays if self._admm is None else arrays | below("admm", self._admm.packed())

    def step(self, tol: float) -> None:
        """One Newton step, or some iterations of ADMM; none if gap <= tol."""
        if self.gap <= tol:
            return
        if self._splits:
            self._split(tol)
        else:
            super().step(tol)
            if self.short_steps >= self._enough(tol) and self.turns < self.splitting.most:
                self._begin_turn()

    def _enough(self, tol: float) -> int:
        """How many short steps give the turn to ADMM."""
        policy = self.splitting
        if self.turns == 0:
            return policy.short if self.gap > policy.far else policy.many
        return 1 if self.gap > policy.far_again * tol else policy.many

    def _begin_turn(self, start: SplittingStart | None = None) -> None:
        policy = self.splitting
        if self._admm is None:
            self._admm = ConeSplitting(self.program, self.features, self.prox, start or self.split)
        self._goal = policy.later * self.gap if self.turns else min(policy.first, policy.later * self.gap)
        self.turns += 1
        self._splits = True
        self._turn_gap, self._best_at = self.gap, self.iterations

    def _split(self, tol: float) -> None:
        """Some iterations; at the end of the turn, on to Newton's method."""
        policy, admm = self.splitting, self._admm
        assert admm is not None
        rho, count = admm.rho, int(np.clip(self.iterations // 2, 5, policy.iterations))
        admm.run(count)
        self.iterations += count
        self.move(admm.Z, admm.xi, admm.products, 1.0 / rho, admm.prediction)
        if not self.gap >= 0.9 * self._turn_gap:
            self._turn_gap, self._best_at = self.gap, self.iterations
        if self.gap <= max(self._goal, tol) or self.iterations - self._best_at >= policy.patience:
            self.move(admm.Z, admm.xi, admm.products, policy.growth / rho, admm.prediction)
            admm.rest()
            self._splits = False
