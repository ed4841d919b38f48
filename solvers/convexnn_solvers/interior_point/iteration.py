"""Mehrotra's predictor-corrector method on a gated program, one step at a time.

A step is Newton's on the optimality conditions (:mod:`conditions`) with products mu instead of 0. The number
of steps hardly depends on the weights: other methods follow one face of the cones after the other, the more
of them the smaller the weights are.

After Mehrotra (1992), On the implementation of a primal-dual interior point method; Vandenberghe (2010), The
CVXOPT linear and quadratic cone program solvers, for the cones; and Gondzio (1996), Multiple centrality
correctors, of which there is one, for the rows: they are what shortens steps.
"""

from __future__ import annotations

import numpy as np

from convexnn_solvers.cones.active_sets import ActiveRows
from convexnn_solvers.gaps import relative_gap
from convexnn_solvers.gated_programs.program import GatedProgram, block_norms
from convexnn_solvers.interior_point.conditions import (
    Conditions,
    Linearised,
    Place,
    Target,
    unpacked_place,
)
from convexnn_solvers.interior_point.second_order import product
from convexnn_solvers.newton.duals import best_multiple, bounds_anew
from convexnn_solvers.newton.start import kept_cones
from convexnn_solvers.packing import Arrays, Held, below, packed_attributes, part, restore_attributes

# The first multipliers over the largest gradient at zero: by counting steps.
_FIRST = 0.1
# Steps end this share short of the boundary.
_INSIDE = 0.99
# A centrality corrector is tried for steps that are shorter than this, aims at one longer by so much, with
# products within these shares of their target, and is taken where it gains so much.
_LONG, _LONGER, _LOW, _HIGH, _GAIN = 0.95, 0.3, 0.1, 10.0, 0.01
# Bounds are computed when the products promise a gap of so many tolerances, and every so many steps anyway.
_NEAR, _EVERY = 30.0, 10
# After so many steps, or so many bounds near the end that were no better, it gets no better.
_MOST_STEPS, _PATIENCE = 150, 8
# What a checkpoint keeps as it is.
_STATE = (
    "steps", "primal", "dual", "dual_point", "offset", "point", "failed", "_best_gap", "_useless",
)  # fmt: skip


class InteriorPoint:
    """The iteration, for one output; ``primal`` and ``dual`` are the best bounds so far, of ``point``
    (1, d, B) and ``dual_point`` (n, 1), in the program's own units. ``failed``: a system had no solution."""

    def __init__(self, program: GatedProgram, held: Held | None = None) -> None:
        self.program = program
        self._conditions = Conditions(program)
        self._cones = kept_cones(program) if program.cones else None
        self.steps = self._useless = 0
        self.failed = False
        self.dual, self.dual_point = -np.inf, np.zeros(program.fit.shape)
        self._best_gap = np.inf
        if held is None:
            self._begin()
        else:
            restore_attributes(self, _STATE, held)
            self._place = unpacked_place(part("place", held))
            if self._cones is not None:
                self._cones.restore(part("cones", held))

    def _begin(self) -> None:
        program = self.program
        null = program.fit.at(np.zeros(program.fit.shape))
        self.primal, self.offset = null.value, null.offset
        self.point = np.zeros(program.point_shape)
        squares = float(np.sum(self._conditions.features.squares(np.ones(program.gates))))
        explained = float(np.sqrt(squares * len(program.signs) / program.fit.shape[0]))
        size = max(float(np.linalg.norm(null.xi)), 1e-30) / max(explained, 1e-30)
        self._place = self._conditions.start(_FIRST * float(np.max(program.null_norms())), size)

    def packed(self) -> Arrays:
        """The state as arrays."""
        arrays = packed_attributes(self, _STATE) | below("place", self._place.packed())
        return arrays if self._cones is None else arrays | below("cones", self._cones.packed())

    @property
    def gap(self) -> float:
        """The relative gap of the best bounds, 1 before there is a lower one."""
        return 1.0 if self.dual == -np.inf else relative_gap(self.primal, self.dual)

    @property
    def dual_rows(self) -> tuple[ActiveRows, ...]:
        """With cones, for the only output the active rows of the latest projections."""
        return () if self._cones is None else self._cones.active()

    @property
    def stalled(self) -> bool:
        """Whether a system could not be solved, or bounds near the end got no better."""
        return self.failed or self._useless > _PATIENCE or self.steps >= _MOST_STEPS

    def step(self, tol: float) -> None:
        """One step; none if gap <= tol."""
        if self.gap <= tol or self.stalled:
            return
        try:
            with np.errstate(over="raise", invalid="raise", divide="raise"):
                self._place = self._next()
        except (FloatingPointError, np.linalg.LinAlgError):
            self.failed = True
        self.steps += 1
        near = self._promised_gap() <= _NEAR * tol
        if near or self.stalled or self.steps % _EVERY == 0:
            self._offer()
            if self.gap < 0.9 * self._best_gap:
                self._best_gap, self._useless = self.gap, 0
            elif near:
                self._useless += 1

    def look_again(self) -> None:
        """Find both bounds anew from the best points."""
        found = bounds_anew(self.program, self.point, self.dual_point, self._cones)
        self.primal, self.offset, best = found.primal, found.offset, found.dual
        self.dual, self.dual_point = best.value, best.scale * self.dual_point
        self._best_gap, self._useless = self.gap, 0

    def _promised_gap(self) -> float:
        """The relative gap that the products add up to."""
        cone, program = self._place.cone, self.program
        value = program.fit.at(self._conditions.image(cone[1:])).value + float(program.weights @ cone[0])
        return self._place.complementarity / max(value, 1e-300)

    def _offer(self) -> None:
        """Both bounds at the projected point and the dual variable."""
        program, U = self.program, self._place.cone[None, 1:]
        if self._cones is not None:
            U = self._cones.project(U, np.arange(program.blocks))
        fitted = program.fit.at(program.forward(U))
        primal = fitted.value + float(program.weights @ block_norms(U))
        if primal < self.primal:
            self.primal, self.offset, self.point = primal, fitted.offset, U
        xi = program.fit.nearest(self._place.xi)
        products = program.by_block(self._conditions.features.adjoint(xi))
        found = best_multiple(program, xi, products, self._cones)
        if found.value > self.dual:
            self.dual, self.dual_point = found.value, -found.scale * xi

    def _next(self) -> Place:
        """Where a step leads: predicted, corrected, and corrected once more where it is short."""
        place = self._place
        here = Linearised(self._conditions, place)
        affine = Target(-product(here.middle, here.middle), -place.s * place.lam)
        step = here.solve(affine)
        share = place.moved(self._length(step), step).mu / place.mu
        goal = place.mu * float(np.clip(share, 0.0, 1.0)) ** 3
        cone = affine.cone - product(here.scaling.inverse(step.cone), here.scaling.times(step.dual))
        cone[0] += goal
        target = Target(cone, affine.rows + goal - step.s * step.lam)
        step = here.solve(target)
        length = self._length(step)
        if length < _LONG and place.s.size:
            seen = place.moved(min(1.0, length + _LONGER), step)
            products = seen.s * seen.lam
            more = np.maximum(np.clip(products, _LOW * goal, _HIGH * goal) - products, -_HIGH * goal)
            other = here.solve(target.with_rows(more))
            longer = self._length(other)
            if longer >= length + _GAIN:
                step, length = other, longer
        return place.moved(_INSIDE * length, step)

    def _length(self, step: Place) -> float:
        """As far as a step may go."""
        return min(1.0, self._conditions.room(self._place, step))
