"""The proximal map of everything in a problem that is not smooth: penalties, bounds, pattern cones.

    prox(v) = argmin_x  sum_i lam_i norms_i(x) + sum_k 1/(2 step_k) ||x_k - v_k||^2   over bounds and cones

with one step per variable k. Where a norm meets a cone (bounds at zero, pattern cones) the map is known in
closed form: first the projection on the cone, then the shrinkage.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convexnn_solvers.backends import Array, Backend, Float64Array
from convexnn_solvers.certify.cone_columns import ConeColumns
from convexnn_solvers.certify.dual_norms import column_groups
from convexnn_solvers.certify.dual_values import cone_multipliers
from convexnn_solvers.composite import Composite, ConstraintTerm, PenaltyTerm, Point, VariableBlock
from convexnn_solvers.cones.active_sets import Indices, shortest_multiple
from convexnn_solvers.cones.memory import ConeMemory
from convexnn_solvers.cones.projections import ActiveRows, PatternCones, machine_code_pays
from convexnn_solvers.reading.affine import UnsupportedProblem

_HELD = ("rows", "rho", "scale", "polar")


class ConeProjector:
    """Projects a variable's columns on their pattern cones, and keeps the multipliers that this took.

    Remembers active rows and their factors from call to call: the next one is faster, :meth:`multipliers`
    reads them, and they rule out, without any projection, most groups that the shrinkage after it removes:
    ``||z + a w||`` bounds ``||P(z)||`` for every ``a >= 0`` and polar direction ``w = B^T rho, rho >= 0``.
    ``times``: for so many times as many projections as usual machine code is worth loading.
    """

    def __init__(self, constraint: ConstraintTerm, groups: Indices | None, times: float = 1.0) -> None:
        cone = constraint.pattern_cone
        assert cone is not None
        self.columns = ConeColumns(cone)
        if times > 1.0 and machine_code_pays(cone.X, cone.patterns, times):
            self.columns.cones = PatternCones(cone.X, cone.patterns, compiled=True)
        self._groups = groups
        self._shape = constraint.shape
        self._memory = ConeMemory(self.columns.cones, self.columns.gates)
        count = self.columns.gates.size
        self._touched = np.zeros(count, dtype=np.bool_)
        # Of columns that were ruled out by their polar direction: the multiple of it that did so.
        self._multiples = np.zeros(count)

    def project(self, block: Float64Array, limits: Float64Array | None) -> Float64Array:
        """Every column projected, or set to zero where its group's projection is no longer than its limit.

        ``limits`` are the thresholds of groups that the shrinkage after the projection removes up to there.
        """
        columns = self.columns.split(block)
        if not np.isfinite(columns).all():
            return np.full(block.shape, np.nan)  # the iteration reports it
        self._touched, self._multiples = self._needed(columns, limits)
        index = np.flatnonzero(self._touched)
        moved = np.zeros_like(columns)
        moved[:, index] = self._memory.project(columns[:, index], index)
        return self.columns.join(moved)

    def _needed(
        self, columns: Float64Array, limits: Float64Array | None
    ) -> tuple[NDArray[np.bool_], Float64Array]:
        """Which columns have to be projected, and of the others the multiple of their polar direction."""
        none = np.zeros(columns.shape[1])
        if limits is None or self._groups is None:
            return np.ones(columns.shape[1], dtype=np.bool_), none
        groups, squares = self._groups, np.einsum("db,db->b", columns, columns)
        limit = limits.ravel() ** 2
        long = (np.bincount(groups, squares, limit.size) > limit)[groups]
        w = self._memory.polar.T
        multiples = shortest_multiple(columns, w)
        rest = columns + multiples * w
        kept = (np.bincount(groups, np.einsum("db,db->b", rest, rest), limit.size) > limit)[groups]
        return long & kept, np.where(long & ~kept, multiples, none)

    def packed(self) -> tuple[NDArray[Any], ...]:
        """What the last projection left behind, for a checkpoint."""
        held = self._memory.packed()
        return (*(held[name] for name in _HELD), self._touched, self._multiples)

    def unpack(self, *arrays: NDArray[Any]) -> None:
        """Go on from what :meth:`packed` gave."""
        *held, self._touched, self._multiples = arrays
        self._memory.restore(dict(zip(_HELD, held, strict=True)))

    def active_rows(self, columns: Indices) -> Indices:
        """The active rows (b, k) of some columns at the last projection, padded with -1."""
        return self._memory.active(columns).rows

    def multipliers(self, step: float) -> Float64Array:
        """The constraint's multipliers after a proximal step of this length, in the constraint's shape."""
        gates = self.columns.gates
        active = self._memory.active(np.arange(gates.size))
        # What is remembered as polar direction is some multiple of what the multipliers combine to.
        w, polar = self.columns.cones.combine(gates, active), self._memory.polar.T
        size = np.einsum("db,db->b", w, w)
        along = np.einsum("db,db->b", w, polar) / np.where(size > 0.0, size, 1.0)
        factors = np.where(self._touched, 1.0, along * self._multiples)
        rows = np.where(factors[:, None] > 0.0, active.rows, -1)
        used = ActiveRows(rows, active.multipliers * factors[:, None] / step)
        return cone_multipliers(self.columns, used).reshape(self._shape)


@dataclass(frozen=True, eq=False)
class VariableProx:
    """The proximal map of one variable: nested or disjoint penalties, inner ones first, and its bounds; or
    one penalty and a cone."""

    backend: Backend
    terms: tuple[PenaltyTerm, ...]
    lower: Array | None
    upper: Array | None
    cone: ConeProjector | None

    def __call__(self, v: Array, step: float) -> Array:
        """``argmin`` over this variable of the formula above."""
        v = self._projected(v, step)
        for term in self.terms:
            if term.penalty.entrywise:
                v = self._shrunk(term, v, step)
        v = self._inside(v)  # entry by entry clipping comes last, and before everything else
        for term in self.terms:
            if not term.penalty.entrywise:
                v = self._shrunk(term, v, step)
        return v

    def _shrunk(self, term: PenaltyTerm, v: Array, step: float) -> Array:
        """The proximal map of one penalty; entries that it does not reach stay."""
        view = term.view(v)
        return (
            v - term.unview(view) + term.unview(term.penalty.prox(view, step * term.weight, self.backend.xp))
        )

    def _inside(self, v: Array) -> Array:
        if self.lower is None and self.upper is None:
            return v
        return self.backend.xp.clip(v, self.lower, self.upper)

    def _projected(self, v: Array, step: float) -> Array:
        if self.cone is None:
            return v
        limits = None
        if self.terms:
            term = self.terms[0]
            norms = term.penalty.norms(term.view(v), self.backend.xp)
            limits = self.backend.to_numpy(step * term.weight + 0.0 * norms)
        return self.backend.asarray(self.cone.project(self.backend.to_numpy(v), limits))


@dataclass(frozen=True, eq=False)
class ProximalMap:
    """One :class:`VariableProx` per variable."""

    blocks: tuple[VariableProx, ...]

    def __call__(self, point: Point, steps: Sequence[float]) -> Point:
        """The proximal point, with one step per variable."""
        return tuple(block(v, step) for block, v, step in zip(self.blocks, point, steps, strict=True))


def proximal_map(composite: Composite, cones: Collection[int] = (), times: float = 1.0) -> ProximalMap:
    """The proximal map of a problem, with the pattern cones of the constraints at positions ``cones``.

    ``times``: see :class:`ConeProjector`. Raises UnsupportedProblem, naming the term, where a combination has
    no closed form.
    """
    by_variable = {}
    for position in cones:
        constraint = composite.constraints[position]
        assert constraint.pattern_cone is not None
        by_variable[constraint.pattern_cone.variable] = constraint
    blocks, backend = [], composite.backend
    for index, variable in enumerate(composite.variables):
        terms = _penalties(composite, index)
        for term in terms:
            _check_bounds(variable, term)
        cone = None
        if index in by_variable:
            cone = ConeProjector(by_variable[index], _groups(by_variable[index], terms), times)
        lower = None if variable.lower is None else backend.asarray(variable.lower)
        upper = None if variable.upper is None else backend.asarray(variable.upper)
        blocks.append(VariableProx(backend, terms, lower, upper, cone))
    return ProximalMap(tuple(blocks))


def projectable_cones(composite: Composite) -> tuple[int, ...]:
    """Positions of the pattern-cone constraints that the proximal map can take; one per variable."""
    found: dict[int, int] = {}
    for position, constraint in enumerate(composite.constraints):
        cone = constraint.pattern_cone
        if cone is None or cone.variable in found:
            continue
        variable = composite.variables[cone.variable]
        terms = _penalties(composite, cone.variable)
        free = variable.lower is None and variable.upper is None
        if free and (not terms or _groups(constraint, terms) is not None):
            found[cone.variable] = position
    return tuple(found.values())


def _penalties(composite: Composite, index: int) -> tuple[PenaltyTerm, ...]:
    return tuple(term for term in composite.penalties if term.variable == index)


def _groups(constraint: ConstraintTerm, terms: Sequence[PenaltyTerm]) -> Indices | None:
    """The group of every column of the cone, if there is one penalty and each column lies within a group."""
    assert constraint.pattern_cone is not None
    if len(terms) != 1:
        return None
    return column_groups(terms[0], ConeColumns(constraint.pattern_cone))


def _check_bounds(variable: VariableBlock, term: PenaltyTerm) -> None:
    """Entrywise penalties allow any bounds, group norms those that are zero or infinite."""
    if term.penalty.entrywise:
        return
    for bound in (variable.lower, variable.upper):
        if bound is not None and not np.all((bound == 0.0) | np.isinf(bound)):
            raise UnsupportedProblem(
                f"variable {variable.name} carries {term.text} and bounds other than a sign; write the "
                "bounds as constraints (for AugmentedLagrangian), or solve with cp.CLARABEL."
            )
