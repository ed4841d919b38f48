"""The optimality conditions of a gated program with slacks and multipliers, and their linearisation.

With ``t_b >= ||U_b||`` in the place of the norms, slacks ``s_b = B_b U_b >= 0`` of the rows of the cones,
their multipliers lam_b and those ``(zt_b, zu_b)`` of ``(t_b, U_b)`` in second-order cones, the optimum is
where

    F*'(xi) = sum_b A_b U_b,    A_b^T xi = zu_b + B_b^T lam_b,    zt_b = tau_b,    s_b = B_b U_b,
    (t_b, U_b) o (zt_b, zu_b) = 0,    s_b lam_b = 0.

Signs of the blocks are part of A_b here. The dual variable is an unknown of its own, not the residual of a
prediction, so that it has all its digits where the prediction explains the targets up to rounding.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from convexnn_solvers.backends import Float64Array
from convexnn_solvers.gated_programs.fits import balanced
from convexnn_solvers.gated_programs.program import GatedProgram
from convexnn_solvers.interior_point.second_order import longest_step, quotient, scaling
from convexnn_solvers.interior_point.system import StepSystem, image, products
from convexnn_solvers.newton.start import kept_features
from convexnn_solvers.packing import Arrays, Held, packed_attributes

_NAMES = ("xi", "cone", "dual", "s", "lam")


@dataclass(frozen=True, eq=False)
class Place:
    """Everything that is unknown, or a step of it: ``xi`` (n, 1); ``cone`` and ``dual``, (t, U) and its
    multipliers, (1 + d, B); slacks ``s`` and multipliers ``lam`` of the rows of the cones (m, B)."""

    xi: Float64Array
    cone: Float64Array
    dual: Float64Array
    s: Float64Array
    lam: Float64Array

    def moved(self, length: float, step: Place) -> Place:
        """So far along a step."""
        return Place(
            self.xi + length * step.xi,
            self.cone + length * step.cone,
            self.dual + length * step.dual,
            self.s + length * step.s,
            self.lam + length * step.lam,
        )

    @property
    def complementarity(self) -> float:
        """The sum of all products, zero at the optimum."""
        return float(np.sum(self.cone * self.dual)) + float(np.sum(self.s * self.lam))

    @property
    def mu(self) -> float:
        """Their mean."""
        return self.complementarity / float(self.cone.shape[1] + self.s.size)

    def packed(self) -> Arrays:
        """Everything as arrays."""
        return packed_attributes(self, _NAMES)


def unpacked_place(held: Held) -> Place:
    """The inverse of :meth:`Place.packed`."""
    return Place(*(np.array(held[name]) for name in _NAMES))


@dataclass(frozen=True, eq=False)
class Target:
    """What the products of a step shall be, less what they are: in scaled second-order cones (1 + d, B), and
    of the rows (m, B)."""

    cone: Float64Array
    rows: Float64Array

    def with_rows(self, more: Float64Array) -> Target:
        """The same, with more for the rows."""
        return replace(self, rows=self.rows + more)


class Conditions:
    """The conditions of one program; rows of zeros hold of themselves, and have no slack to speak of."""

    def __init__(self, program: GatedProgram) -> None:
        self.program = program
        self.features = kept_features(program)
        rows = program.cone_features if program.cones else np.zeros((0, program.X.shape[1]))
        used = np.any(rows != 0.0, axis=1)
        self.rows = rows[used]
        patterns = program.patterns[used] if program.cones else np.zeros((0, program.gates), dtype=np.bool_)
        self._sides = 2.0 * patterns[:, program.block_gates(np.arange(program.blocks))] - 1.0

    def start(self, dual_size: float, size: float) -> Place:
        """The middle of the cones: zero weights, and everything else as large as they say."""
        d, blocks = self.program.X.shape[1], self.program.blocks
        cone, dual = np.zeros((1 + d, blocks)), np.zeros((1 + d, blocks))
        cone[0], dual[0] = size, np.maximum(self.program.weights, dual_size)
        long = np.sqrt(np.einsum("ij,ij->i", self.rows, self.rows))[:, None]
        s = size * long * np.ones((1, blocks))
        null = self.program.fit.at(np.zeros(self.program.fit.shape)).xi
        return Place(balanced(self.program.fit, null), cone, dual, s, size * dual[0] / s)

    def image(self, U: Float64Array) -> Float64Array:
        """``sum_b A_b U_b`` (n, 1) for U (d, B)."""
        return image(self.program, self.features, U)

    def products(self, xi: Float64Array) -> Float64Array:
        """``A_b^T xi`` (d, B)."""
        return products(self.program, self.features, xi)

    def slacks(self, U: Float64Array) -> Float64Array:
        """``B_b U_b`` (m, B)."""
        return np.asarray(self._sides * (self.rows @ U))

    def pull(self, lam: Float64Array) -> Float64Array:
        """``B_b^T lam_b`` (d, B)."""
        return np.asarray(self.rows.T @ (self._sides * lam))

    def room(self, place: Place, step: Place) -> float:
        """The longest step inside all cones and the conjugate's domain."""
        lengths = [longest_step(place.cone, step.cone), longest_step(place.dual, step.dual)]
        for value, change in ((place.s, step.s), (place.lam, step.lam)):
            falling = change < 0.0
            lengths.append(float(np.min(value[falling] / -change[falling], initial=np.inf)))
        return min(*lengths, self.program.fit.room(place.xi, step.xi))


class Linearised:
    """The conditions at a place, to be solved for several targets with one factor.

    ``scaling`` is that of the second-order cones there, and ``middle`` where it takes both points.
    """

    def __init__(self, conditions: Conditions, place: Place) -> None:
        program = conditions.program
        self._conditions, self._place = conditions, place
        self.scaling = scaling(place.cone, place.dual)
        self.middle = self.scaling.times(place.dual)
        self._corner, self._mixed = self.scaling.corner, self.scaling.mixed
        fit, curvature = program.fit, program.fit.curvature(place.xi)
        ratios = place.lam / place.s
        self._system = StepSystem(
            program, conditions.features, conditions.rows, ratios, self.scaling.root, curvature
        )
        U, dual = place.cone[1:], place.dual
        self._missed_image = balanced(fit, fit.derivative(place.xi) - conditions.image(U))
        self._missed_dual = conditions.products(place.xi) - dual[1:] - conditions.pull(place.lam)
        self._missed_weight = program.weights - dual[0]
        self._missed_slack = conditions.slacks(U) - place.s

    def solve(self, target: Target) -> Place:
        """The step to a target."""
        conditions, place = self._conditions, self._place
        wanted = self.scaling.inverse(quotient(self.middle, target.cone))
        of_rows = (target.rows - place.lam * self._missed_slack) / place.s
        along = (wanted[0] - self._missed_weight) / self._corner
        right = wanted[1:] - self._mixed * along + conditions.pull(of_rows) - self._missed_dual
        xi, U = self._system.solve(-self._missed_image, right)
        s = conditions.slacks(U) + self._missed_slack
        lam = (target.rows - place.lam * s) / place.s
        t = along - np.einsum("ib,ib->b", self._mixed, U) / self._corner
        zu = conditions.products(xi) - conditions.pull(lam) + self._missed_dual
        return Place(xi, np.vstack([t, U]), np.vstack([self._missed_weight, zu]), s, lam)
