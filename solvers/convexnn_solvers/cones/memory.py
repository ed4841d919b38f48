"""Projections of the same blocks on their pattern cones, again and again at points that move.

What is remembered of a block only makes its next projection faster: its active rows, in machine code also
their factors, and a polar direction that shows without any projection how short the next one must be.
"""

from __future__ import annotations

import numpy as np

from convexnn_solvers.backends import Float64Array
from convexnn_solvers.cones.active_sets import ActiveRows, Indices, padded, shortest_multiple
from convexnn_solvers.cones.factors import NO_BLOCK, ConeFactors, empty_factors
from convexnn_solvers.cones.projections import PatternCones, RememberedRows
from convexnn_solvers.packing import Arrays, Held, packed_attributes

# A projection counts as short below this share of its limit: rows that rule a block out with some room to
# spare often do so again when its point has moved.
_SHORT = 0.95
# Multipliers of unit rows and unit points that a projection may begin with: squares of larger ones overflow.
_LARGEST_START = 1e100
_REMEMBERED = ("rows", "rho", "scale", "polar")


class ConeMemory:
    """Blocks of one column each; ``gates`` (B,) are their gates, ``active`` what is known of them already."""

    def __init__(self, cones: PatternCones, gates: Indices, active: RememberedRows | None = None) -> None:
        self._cones, self._gates = cones, gates
        self._n, self._d = int(cones.X.shape[0]), int(cones.X.shape[1])
        self._capacity = max(min(self._n, self._d), 1)
        self._active = active or RememberedRows(
            np.full((gates.size, self._capacity), -1, dtype=np.intp),
            np.zeros((gates.size, self._capacity)),
            np.zeros(gates.size),
            np.zeros((gates.size, self._d)),
        )
        self._factors: ConeFactors | None = None

    @property
    def polar(self) -> Float64Array:
        """For every block a positive multiple of ``B^T rho`` of its latest projection, or zero, (B, d)."""
        return self._active.polar

    def restricted(self, blocks: Indices) -> ConeMemory:
        """Another one for some of the blocks, numbered anew, that starts from the same active rows."""
        return ConeMemory(self._cones, self._gates[blocks], self._active.take(blocks))

    def packed(self) -> Arrays:
        """What is remembered, without factors, which would be most of it."""
        return packed_attributes(self._active, _REMEMBERED)

    def restore(self, held: Held) -> None:
        """Go on from what was packed."""
        self._active = RememberedRows(*(held[name].copy() for name in _REMEMBERED))
        self._factors = None

    def project(self, Z: Float64Array, blocks: Indices, limits: Float64Array | None = None) -> Float64Array:
        """The columns of ``Z`` (d, m) on the cones of ``blocks``, no two of them the same.

        Of projections no longer than ``limits`` (m,) nobody needs more than that, which may save most of the
        time: instead of them there may be ``z + B^T rho``, as short, for the multipliers that show it.
        """
        if not self._cones.in_machine_code:
            return self._batched(Z, blocks)
        if not np.isfinite(Z).all():
            raise ValueError("the points hold NaN or infinite entries.")
        if self._factors is None:
            self._factors = empty_factors(self._gates.size, self._n, self._d, self._capacity)
        points = np.array(Z.T, order="C")
        short = np.zeros(blocks.size) if limits is None else _SHORT * limits
        finished = self._cones.project_in_place(
            points, self._gates[blocks], blocks, self._active, self._factors, short
        )
        left = np.flatnonzero(~finished)
        if left.size:
            # The active rows of some are no longer theirs, even if Ctrl-C ends this.
            self._factors.block.fill(-1)
            points[left] = self._batched(Z[:, left], blocks[left]).T
        return points.T

    def begin_at(self, blocks: Indices, active: ActiveRows) -> None:
        """Begin the next projections of some blocks at somebody's active rows, no more than features."""
        with np.errstate(over="ignore", invalid="ignore"):
            rho = active.multipliers * self._cones.unit_norms[active.rows]
            usable = (active.rows >= 0) & (rho > 0.0) & (rho < _LARGEST_START)
        first = np.arange(usable.shape[1]) < np.count_nonzero(usable, axis=1)[:, None]
        if not np.array_equal(first, active.rows >= 0):  # zero samples among them, or gaps
            order = np.argsort(~usable, axis=1, kind="stable")
            rows = np.take_along_axis(np.where(usable, active.rows, -1), order, axis=1)
            multipliers = np.where(usable, active.multipliers, 0.0)
            active = ActiveRows(rows, np.take_along_axis(multipliers, order, axis=1))
        self._remember(blocks, active)
        self._active.polar[blocks] = 0.0
        if self._factors is not None:
            slots = blocks % self._factors.block.size
            self._factors.block[slots[self._factors.block[slots] == blocks]] = NO_BLOCK

    def rows(self, blocks: Indices | slice) -> Indices:
        """Active rows (m, k) of the latest projections, padded with -1."""
        rows = self._active.rows[blocks]
        return rows[:, : int(np.max(np.count_nonzero(rows >= 0, axis=1), initial=0))]

    def active(self, blocks: Indices | slice) -> ActiveRows:
        """Active rows of the latest projections, and their multipliers."""
        known, rows = self._active, self.rows(blocks)
        rho = known.rho[blocks, : rows.shape[1]]
        return ActiveRows(rows, rho * known.scale[blocks][:, None] / self._cones.unit_norms[rows])

    def best_multiples(self, Z: Float64Array, blocks: Indices) -> ActiveRows:
        """``a rho`` for the latest multipliers and the ``a >= 0`` of the shortest ``z + a B^T rho``."""
        active = self.active(blocks)
        return active.times(shortest_multiple(Z, self._cones.combine(self._gates[blocks], active)))

    def complements(self, blocks: Indices, rows: Indices) -> Float64Array:
        """As :func:`complements`, fast where ``rows`` (g, k) are those of the latest projections."""
        if self._factors is None:
            return complements(self._cones.X, rows)
        slots, latest, width = blocks % self._factors.block.size, self._active.rows[blocks], rows.shape[1]
        known = (self._factors.block[slots] == blocks) & np.all(latest[:, width:] < 0, axis=1)
        known &= np.all(latest[:, :width] == rows, axis=1)
        counts = np.count_nonzero(rows >= 0, axis=1)
        if known.all():
            return self._cones.complete_bases(self._factors, slots, counts)
        bases = np.zeros((blocks.size, self._d, self._d - int(counts.min())))
        for some, found in (
            (known, self._cones.complete_bases(self._factors, slots[known], counts[known])),
            (~known, complements(self._cones.X, rows[~known])),
        ):
            bases[some, :, : found.shape[2]] = found
        return bases

    def _batched(self, Z: Float64Array, blocks: Indices) -> Float64Array:
        found = self._cones.project(Z, self._gates[blocks], self.active(blocks))
        self._remember(blocks, found)
        self._active.polar[blocks] = self._cones.combine(self._gates[blocks], found).T
        return found.points

    def _remember(self, blocks: Indices, active: ActiveRows) -> None:
        known, rows = self._active, padded(active.rows, -1, self._capacity)
        known.rows[blocks] = rows
        known.rho[blocks] = padded(active.multipliers, 0.0, self._capacity) * self._cones.unit_norms[rows]
        known.scale[blocks] = 1.0


def complements(X: Float64Array, rows: Indices) -> Float64Array:
    """Orthonormal bases (g, d, q) of the null spaces of g times up to k linearly independent rows of X.

    ``rows`` (g, k) are padded with -1 at the end; q is what the fewest rows leave, and the bases of other
    blocks are padded with zeros.
    """
    d, counts = X.shape[1], np.count_nonzero(rows >= 0, axis=1)
    bases = np.zeros((len(rows), d, d - int(np.min(counts, initial=d))))
    for count in np.unique(counts):
        some = np.flatnonzero(counts == count)
        normals = X[np.sort(rows[some, :count], axis=1)].transpose(0, 2, 1)
        bases[some, :, : d - count] = np.linalg.qr(normals, mode="complete")[0][:, :, count:]
    return bases
