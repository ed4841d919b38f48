"""Pattern cones of the gates of one weight variable, a few gates at a time, and all that is remembered.

With the negative gradient z of a gate's weights in place of the gradient, its group may stay zero iff
``||P(z)|| <= lam`` for the projection P on its cone. What is remembered of a gate's latest projection, in a
proximal step or in a look at all gates, rules most of them out: ``||z + a w||`` bounds ``||P(z)||`` for every
``a >= 0`` and polar direction ``w = B^T rho, rho >= 0``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from convexnn_solvers.backends import Float64Array
from convexnn_solvers.composite import ConstraintTerm
from convexnn_solvers.cones.active_sets import Indices, shortest_multiple
from convexnn_solvers.cones.memory import ConeMemory
from convexnn_solvers.cones.projections import PatternCones
from convexnn_solvers.packing import Arrays, Held

# Larger arrays of multipliers (entries) cost more than they save.
MOST_MULTIPLIERS = 20_000_000


@dataclass(frozen=True, eq=False)
class _Ruling:
    """Which groups (g, m) may have a projection beyond their limits, and the ``bounds`` of all of them."""

    needed: NDArray[np.bool_]
    bounds: Float64Array


class GateCones:
    """The cones of all gates, for every output; groups are shared by the outputs or one per output.

    ``chosen`` (m,) are positions of gates, blocks ``Z`` (c, d, m) their weights or negative gradients, and
    ``limits`` (g, m), g = 1 or c, thresholds of the groups' norms.
    """

    def __init__(self, constraint: ConstraintTerm) -> None:
        cone = constraint.pattern_cone
        assert cone is not None
        self.outputs, self._count = cone.outputs, int(cone.patterns.shape[1])
        self._samples, self._shape = int(cone.X.shape[0]), constraint.shape
        self._cones = PatternCones(cone.X, cone.patterns)
        self._memory = ConeMemory(self._cones, np.tile(np.arange(self._count), self.outputs))

    def packed(self) -> Arrays:
        """What is remembered, as arrays."""
        return self._memory.packed()

    def restore(self, held: Held) -> None:
        """Go on from what was packed."""
        self._memory.restore(held)

    def project(self, Z: Float64Array, chosen: Indices, limits: Float64Array) -> Float64Array:
        """The projections, or zero where that of a group is no longer than its limit."""
        if not np.isfinite(Z).all():
            return np.full(Z.shape, np.nan)  # the iteration reports it
        return self._projected(self._memory, Z, chosen, self._ruled(Z, chosen, limits).needed)

    def ratios(self, Z: Float64Array, prices: Float64Array) -> Float64Array:
        """Norms of the projected groups of all gates over ``prices`` (g, P); up to 1 upper bounds of them."""
        if not np.isfinite(Z).all():
            return np.full(prices.shape, np.nan)
        found = self._ruled(Z, self._every, prices)
        points = self._projected(self._memory, Z, self._every, found.needed)
        exact = np.sqrt(_grouped(_squares(points), prices.shape[0]))
        return np.where(found.needed, exact / prices, np.minimum(found.bounds / prices, 1.0))

    def multipliers(self, Z: Float64Array, limits: Float64Array) -> Float64Array | None:
        """The constraint's multipliers that show which groups exceed their limits; None where too many.

        Nothing is remembered of it: steps go on as if nobody had asked.
        """
        if self.outputs * self._samples * self._count > MOST_MULTIPLIERS or not np.isfinite(Z).all():
            return None
        found = self._ruled(Z, self._every, limits)
        memory = self._memory.restricted(np.arange(self.outputs * self._count))
        self._projected(memory, Z, self._every, found.needed)
        shape = self.outputs, self._count
        needed = np.broadcast_to(found.needed, shape)
        long = np.broadcast_to(_grouped(_squares(Z), limits.shape[0]) > limits**2, shape)
        dense = np.zeros((self.outputs, self._samples, self._count))
        for k in range(self.outputs):
            exact, others = np.flatnonzero(needed[k]), np.flatnonzero(long[k] & ~needed[k])
            first = k * self._count
            reasons = memory.best_multiples(Z[k][:, others], first + others)
            for gates, active in ((exact, memory.active(first + exact)), (others, reasons)):
                place, slot = np.nonzero(active.rows >= 0)
                dense[k, active.rows[place, slot], gates[place]] = active.multipliers[place, slot]
        return dense.reshape(self._shape)

    @property
    def _every(self) -> Indices:
        return np.arange(self._count)

    def _blocks(self, chosen: Indices) -> Indices:
        """The numbers (c, m) of the gates' columns."""
        return np.asarray(np.arange(self.outputs)[:, None] * self._count + chosen)

    def _ruled(self, Z: Float64Array, chosen: Indices, limits: Float64Array) -> _Ruling:
        groups = limits.shape[0]
        w = self._memory.polar[self._blocks(chosen)].transpose(0, 2, 1)
        rest = Z + shortest_multiple(Z, w)[:, None, :] * w
        bounds = _grouped(_squares(rest), groups)
        long = _grouped(_squares(Z), groups) > limits**2
        return _Ruling(long & (bounds > limits**2), np.sqrt(bounds))

    def _projected(
        self, memory: ConeMemory, Z: Float64Array, chosen: Indices, needed: NDArray[np.bool_]
    ) -> Float64Array:
        """The columns of groups that are needed on their cones, and zeros."""
        moved = np.zeros(Z.shape)
        output, place = np.nonzero(np.broadcast_to(needed, (self.outputs, chosen.size)))
        if output.size:
            index = self._blocks(chosen)[output, place]
            moved[output, :, place] = memory.project(Z[output, :, place].T, index).T
        return moved


def _squares(Z: Float64Array) -> Float64Array:
    """Squared norms (c, m) of columns (c, d, m)."""
    return np.asarray(np.einsum("kib,kib->kb", Z, Z))


def _grouped(squares: Float64Array, groups: int) -> Float64Array:
    """Sums (g, m) over the outputs that share a group."""
    return squares if squares.shape[0] == groups else np.sum(squares, axis=0, keepdims=True)
