"""Which multiples of a dual direction are feasible: dual norms of all penalised blocks, cones included.

For a direction ``z`` (one array per variable) a lower bound needs, on every penalised group,
``dual_norm(z_g) <= lam_g``, with ``z_g`` replaced by its projection when the variable lies in pattern
cones: ``||P_K(z)|| = min_{rho >= 0} ||z + B^T rho||``. This module computes the largest quotient
``dual_norm / lam`` over all groups, and what bounds on unpenalised variables cost.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from convexnn_solvers.active_sets import Indices
from convexnn_solvers.backends import Float64Array
from convexnn_solvers.composite import Composite, PatternCone, PenaltyTerm, VariableBlock
from convexnn_solvers.cones import ActiveRows, PatternCones, no_active_rows
from convexnn_solvers.penalties import GroupNorm

_EPS = float(np.finfo(np.float64).eps)
# Groups are projected in decreasing norm, so many at first and then twice as many each time.
_FIRST_BATCH = 64


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
        self._dual: ActiveRows = no_active_rows(self.gates.size)

    def split(self, block: NDArray[np.generic]) -> Float64Array:
        """The variable's array as columns (d, outputs * P)."""
        stacked = np.reshape(block, (self.outputs, self.features, self.gate_count))
        return np.asarray(np.transpose(stacked, (1, 0, 2)).reshape(self.features, -1), dtype=np.float64)

    def join(self, columns: Float64Array) -> Float64Array:
        """The inverse of :meth:`split`."""
        stacked = columns.reshape(self.features, self.outputs, self.gate_count)
        return np.ascontiguousarray(np.transpose(stacked, (1, 0, 2))).reshape(-1, self.gate_count)

    def project(self, columns: Float64Array) -> Float64Array:
        """All columns projected on their cones; those that are inside to rounding are kept as they are."""
        size = np.linalg.norm(columns, axis=0)
        index = np.flatnonzero(self.cones.slack_violation(columns, self.gates) > 64.0 * _EPS * size)
        moved = columns.copy()
        if index.size:
            warm = self._primal.take(index)
            found = self.cones.project(columns[:, index], self.gates[index], warm=warm)
            self._primal = self._primal.replaced(index, found)
            moved[:, index] = found.points
        return moved

    def dual_points(self, columns: Float64Array, index: Indices) -> tuple[Float64Array, Float64Array]:
        """``z + B^T rho`` of some columns for the best ``rho >= 0``, and a bound of its rounding error."""
        gates, z = self.gates[index], columns[:, index]
        found = self.cones.project(z, gates, warm=self._dual.take(index))
        self._dual = self._dual.replaced(index, found)
        weight = np.sum(found.multipliers * np.append(self.row_norms, 0.0)[found.rows], axis=1)
        terms = np.sqrt(np.sum(found.rows >= 0, axis=1) + self.features)
        error = 2.0 * _EPS * terms * (np.linalg.norm(z, axis=0) + weight)
        return z + self.cones.combine(gates, found), error


@dataclass(frozen=True, eq=False)
class _Penalised:
    """One variable with its penalties, and its cones if they are exact pattern cones."""

    terms: tuple[PenaltyTerm, ...]
    block: VariableBlock
    columns: ConeColumns | None
    groups: Indices | None

    def ratio(self, z: Float64Array, hint: Float64Array | None, floor: float) -> float:
        """The largest quotient over the groups; exact if above ``floor``, else anything up to it."""
        if self.columns is None:
            # Where u >= 0 (or u <= 0) only that sign of z can gain, whatever other bounds there are.
            low = 0.0 if self.block.lower is not None and not np.any(self.block.lower) else -np.inf
            high = 0.0 if self.block.upper is not None and not np.any(self.block.upper) else np.inf
            return float(self.quotients(np.clip(z, low, high)).max(initial=0.0))
        if self.groups is None:
            everything = np.arange(self.columns.gates.size)
            points, error = self.columns.dual_points(self.columns.split(z), everything)
            inflated = np.linalg.norm(points, axis=0)
            inflated = 1.0 + error / np.where(inflated > 0.0, inflated, 1.0)
            return float(self.quotients(self.columns.join(points * inflated)).max(initial=0.0))
        return self._aligned(self.columns, self.groups, z, hint, floor)

    def _aligned(
        self,
        columns: ConeColumns,
        groups: Indices,
        z: Float64Array,
        hint: Float64Array | None,
        floor: float,
    ) -> float:
        """Project the groups in decreasing order of an upper bound; stop when none can exceed the largest."""
        upper = self.quotients(z)
        if hint is not None:
            upper = np.minimum(upper, self.quotients(z + hint))
        weight = np.broadcast_to(self.terms[0].weight, upper.shape).ravel()
        upper = upper.ravel()
        order = np.argsort(-upper)
        split, largest, start, size = columns.split(z), floor, 0, _FIRST_BATCH
        while start < order.size and upper[order[start]] > largest:
            batch = order[start : start + size]
            batch = batch[upper[batch] > largest]
            index = np.flatnonzero(np.isin(groups, batch))
            points, error = columns.dual_points(split, index)
            squares = (np.linalg.norm(points, axis=0) + error) ** 2
            norms = np.sqrt(np.bincount(groups[index], weights=squares, minlength=upper.size)[batch])
            largest = max(largest, float(_quotient(norms, weight[batch]).max()))
            start, size = start + size, 2 * size
        return largest

    def quotients(self, z: Float64Array) -> Float64Array:
        """Dual norm over weight per group; of several penalties all but the last take what they can."""
        for term in self.terms[:-1]:
            z = term.unview(term.penalty.prox(term.view(z), term.weight, np))
        last = self.terms[-1]
        return _quotient(last.penalty.dual_norms(last.view(z), np), last.weight)


class DualNorms:
    """All conditions that a dual direction must satisfy on the variables of one problem."""

    def __init__(self, composite: Composite) -> None:
        self.columns: dict[int, ConeColumns] = {}
        #: Positions of the constraints that are dualised exactly by projections.
        self.exact: dict[int, int] = {}
        for position, constraint in enumerate(composite.constraints):
            cone = constraint.pattern_cone
            if cone is not None and cone.variable not in self.columns:
                self.columns[cone.variable] = ConeColumns(cone)
                self.exact[cone.variable] = position
        self._penalised: dict[int, _Penalised] = {}
        for index, block in enumerate(composite.variables):
            terms = [term for term in composite.penalties if term.variable == index]
            columns = self.columns.get(index)
            if terms:
                groups = None if columns is None or len(terms) > 1 else column_groups(terms[0], columns)
                self._penalised[index] = _Penalised(tuple(terms), block, columns, groups)
        self._unpenalised = [i for i in range(len(composite.variables)) if i not in self._penalised]
        self.variables = composite.variables
        self._across = composite.across
        #: Whether feasibility of z and of 2 z are the same up to the factor.
        self.homogeneous = all(len(p.terms) == 1 for p in self._penalised.values())

    @property
    def free(self) -> tuple[int, ...]:
        """Variables on which the direction must vanish: no penalty, and not bounded on both sides."""
        return tuple(i for i in self._unpenalised if not _boxed(self.variables[i]))

    def ratio(self, z: tuple[Float64Array, ...], hints: tuple[Float64Array | None, ...]) -> float:
        """The largest ``dual_norm / lam`` over all penalised groups (``inf``: a group of weight 0).

        ``hints`` may hold ``B^T rho`` for some ``rho >= 0`` per variable: the norm of ``z + hint`` is an
        upper bound too, and saves projections.
        """
        largest = 0.0
        for index, variable in self._penalised.items():
            largest = max(largest, variable.ratio(z[index], hints[index], largest))
        return self._across.max(largest)

    def unprojected(self, z: tuple[Float64Array, ...]) -> float:
        """The largest quotient without any projection; bounds how much an error ``z`` moves :meth:`ratio`."""
        return self._across.max(
            max(
                (float(v.quotients(z[index]).max(initial=0.0)) for index, v in self._penalised.items()),
                default=0.0,
            )
        )

    def support(self, z: tuple[Float64Array, ...]) -> float:
        """``max <z, x>`` over the boxes of the unpenalised variables that are bounded on both sides."""
        total = 0.0
        for index in self._unpenalised:
            lower, upper = self.variables[index].lower, self.variables[index].upper
            if index not in self.free and lower is not None and upper is not None:
                total += float(np.sum(np.maximum(z[index] * lower, z[index] * upper)))
        return total

    def repair(self, x: tuple[Float64Array, ...]) -> tuple[Float64Array, ...]:
        """``x`` with every pattern-cone block projected on its cone, and other variables on their bounds."""
        points = []
        for index, block in enumerate(x):
            columns, variable = self.columns.get(index), self.variables[index]
            if columns is not None:
                points.append(columns.join(columns.project(columns.split(block))))
            elif variable.lower is not None or variable.upper is not None:
                points.append(np.asarray(np.clip(block, variable.lower, variable.upper)))
            else:
                points.append(block)
        return tuple(points)


def _quotient(norms: Float64Array, weight: Float64Array) -> Float64Array:
    """``norms / weight`` where 0 / 0 is 0 and anything else over 0 is infinite."""
    norms, weight = np.broadcast_arrays(np.asarray(norms, np.float64), np.asarray(weight, np.float64))
    positive = weight > 0.0
    quotient = norms / np.where(positive, weight, 1.0)
    return np.where(positive, quotient, np.where(norms > 0.0, np.inf, 0.0))


def column_groups(term: PenaltyTerm, columns: ConeColumns) -> Indices | None:
    """The group of each cone column, if every column lies within one group of Euclidean norms."""
    if not isinstance(term.penalty, GroupNorm):
        return None
    shape = (columns.outputs * columns.features, columns.gate_count)
    view = term.view(np.zeros(shape))
    axis = term.penalty.axis
    norms = term.penalty.norms(view, np)
    labels = np.arange(norms.size, dtype=np.float64).reshape(norms.shape)
    if axis is not None:
        labels = np.expand_dims(labels, axis=axis)
    split = columns.split(term.unview(np.broadcast_to(labels, view.shape)))
    if np.any(split != split[0]):
        return None
    return np.asarray(split[0], dtype=np.intp)


def _boxed(variable: VariableBlock) -> bool:
    return (
        variable.lower is not None
        and variable.upper is not None
        and bool(np.isfinite(variable.lower).all() and np.isfinite(variable.upper).all())
    )
