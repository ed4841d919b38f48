"""The columns of a variable that lie in pattern cones, projected for feasible points and for bounds."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from convexnn_solvers.backends import Float64Array
from convexnn_solvers.composite import Composite, PatternCone
from convexnn_solvers.cones.active_sets import Indices, shortest_multiple
from convexnn_solvers.cones.memory import ConeMemory
from convexnn_solvers.cones.projections import ActiveRows, PatternCones, no_active_rows

_EPS = float(np.finfo(np.float64).eps)
# Points are in their cones where they violate unit rows by no more than this share of their norms.
_INSIDE = 1e-12


class ConeColumns:
    """The columns of one variable that lie in pattern cones: (d * outputs, P) as (d, outputs * P).

    Remembers the active rows of the last projections of every column, primal and dual, which only makes
    later ones faster.
    """

    def __init__(self, cone: PatternCone) -> None:
        self.cones = PatternCones(cone.X, cone.patterns)
        self.outputs, self.features = cone.outputs, int(cone.X.shape[1])
        self.gate_count = int(cone.patterns.shape[1])
        self.gates: Indices = np.tile(np.arange(self.gate_count), self.outputs)
        self.row_norms = np.linalg.norm(cone.X, axis=1)
        self._primal: ActiveRows = no_active_rows(self.gates.size)
        self._dual = ConeMemory(self.cones, self.gates)
        self._every: Indices = np.arange(self.gates.size)

    def split(self, block: NDArray[np.generic]) -> Float64Array:
        """The variable's array as columns (d, outputs * P)."""
        stacked = np.reshape(block, (self.outputs, self.features, self.gate_count))
        return np.asarray(np.transpose(stacked, (1, 0, 2)).reshape(self.features, -1), dtype=np.float64)

    def join(self, columns: Float64Array) -> Float64Array:
        """The inverse of :meth:`split`."""
        stacked = columns.reshape(self.features, self.outputs, self.gate_count)
        return np.ascontiguousarray(np.transpose(stacked, (1, 0, 2))).reshape(-1, self.gate_count)

    def project(self, columns: Float64Array) -> Float64Array:
        """All columns projected on their cones; those that are inside to rounding are kept as they are, and
        where all are, the array itself is returned.

        Where nothing but rounding is left, which lies in no cone, the projection is zero.
        """
        size = np.linalg.norm(columns, axis=0)
        index = np.flatnonzero(size)
        if index.size:
            outside = self.cones.slack_violation(columns[:, index], self.gates[index])
            index = index[outside > 64.0 * _EPS * size[index]]
        if not index.size:
            return columns
        warm = self._primal.take(index)
        found = self.cones.project(columns[:, index], self.gates[index], warm=warm)
        self._primal = self._primal.replaced(index, found)
        left = np.linalg.norm(found.points, axis=0) > 64.0 * _EPS * size[index]
        moved = columns.copy()
        moved[:, index] = np.where(left, found.points, 0.0)
        return moved

    def dual_points(
        self, columns: Float64Array, index: Indices, limits: Float64Array | None = None
    ) -> tuple[Float64Array, Float64Array]:
        """``z + B^T rho`` of some columns for the best ``rho >= 0``, and a bound of its rounding error.

        Those that need be no shorter than ``limits`` need not be the best, see :meth:`ConeMemory.project`.
        """
        gates, z = self.gates[index], columns[:, index]
        found = self._projected(z, index, limits)
        weight = np.sum(found.multipliers * np.append(self.row_norms, 0.0)[found.rows], axis=1)
        size = np.linalg.norm(z, axis=0) + weight
        return z + self.cones.combine(gates, found), self._rounding(np.sum(found.rows >= 0, axis=1), size)

    def hint(self, multipliers: Float64Array) -> tuple[Float64Array, Float64Array]:
        """``B^T rho`` for an array of multipliers like the constraint's, as an array like the variable's, and
        a bound, per column, of its rounding error."""
        stacked = np.clip(np.reshape(multipliers, (self.outputs, -1, self.gate_count)), 0.0, None)
        weight = np.einsum("i,oij->oj", self.row_norms, stacked)
        pulled = np.concatenate([self.cones.pull(rho) for rho in stacked], axis=1)
        return self.join(pulled), self._rounding(np.count_nonzero(stacked, axis=1), weight).ravel()

    def remembered(self, columns: Float64Array) -> tuple[Float64Array, ActiveRows, Float64Array]:
        """``z + a B^T rho`` of all columns, ``a rho``, and a bound of the rounding error in the former.

        For the ``rho`` of each column's last projection and the best ``a >= 0``: no shorter than the
        projection of z, and where z has moved little since, hardly longer.
        """
        known = self._latest(slice(None))
        pulled = self.cones.combine(self.gates, known)
        factor = shortest_multiple(columns, pulled)
        used = known.times(factor)
        weight = np.sum(used.multipliers * np.append(self.row_norms, 0.0)[used.rows], axis=1)
        size = np.linalg.norm(columns, axis=0) + weight
        return columns + factor * pulled, used, self._rounding(np.sum(used.rows >= 0, axis=1), size)

    def inside(self, points: Float64Array, index: Indices) -> bool:
        """Whether some columns lie in their cones, up to rounding."""
        outside = self.cones.slack_violation(points[:, index], self.gates[index])
        return bool(np.all(outside <= _INSIDE * np.linalg.norm(points[:, index], axis=0)))

    def polar(self, columns: Float64Array) -> ActiveRows:
        """The best ``rho`` for all columns."""
        return self._projected(columns, self._every)

    def expect(self, multipliers: Float64Array) -> bool:
        """Begin the next dual projections at somebody's multipliers, an array like the constraint's.

        Those with more active rows than features are no solver's that projects, and are not worth a start:
        False. Columns without any, which a solver need not project, begin where they ended.
        """
        stacked = np.reshape(multipliers, (self.outputs, -1, self.gate_count))
        output, row, gate = np.nonzero(stacked > 0.0)
        block = output * self.gate_count + gate
        counts = np.bincount(block, minlength=self.gates.size)
        most = int(np.max(counts, initial=0))
        if most > self.features:
            return False
        order = np.argsort(block, kind="stable")
        place = np.empty_like(block)
        place[order] = np.arange(block.size) - (np.cumsum(counts) - counts)[block[order]]
        rows, values = np.full((self.gates.size, most), -1, dtype=np.intp), np.zeros((self.gates.size, most))
        rows[block, place], values[block, place] = row, stacked[output, row, gate]
        told = np.flatnonzero(counts)
        self._dual.begin_at(told, ActiveRows(rows[told], values[told]))
        return True

    def begin_at(self, active: ActiveRows) -> None:
        """Begin the next dual projections at somebody's active rows; columns without any where they ended."""
        told = np.flatnonzero(np.any(active.rows >= 0, axis=1))
        self._dual.begin_at(told, active.take(told))

    def _rounding(self, rows: Indices, size: Float64Array) -> Float64Array:
        """Of sums over so many rows whose terms have the given size together."""
        return np.asarray(2.0 * _EPS * np.sqrt(rows + self.features) * size)

    def _projected(self, z: Float64Array, index: Indices, limits: Float64Array | None = None) -> ActiveRows:
        self._dual.project(z, index, limits)
        return self._latest(index)

    def _latest(self, index: Indices | slice) -> ActiveRows:
        """The multipliers of the latest dual projections."""
        found = self._dual.active(index)
        # Whoever found them, a bound holds for multipliers that are not negative, and for no others.
        return ActiveRows(found.rows, np.clip(found.multipliers, 0.0, None))


def cone_columns(composite: Composite, cone: PatternCone) -> ConeColumns:
    """The columns of a cone, one value for all solves of a problem: they remember active rows."""
    known: dict[int, tuple[PatternCone, ConeColumns]] = composite.kept.setdefault("cone columns", {})
    if id(cone) not in known:
        known[id(cone)] = cone, ConeColumns(cone)  # the cone too: a collected one's id could be another's
    return known[id(cone)][1]
