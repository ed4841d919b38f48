"""Which multiples of a dual direction are feasible: dual norms of all penalised blocks, cones included.

For a direction ``z`` (one array per variable) a lower bound needs, on every penalised group,
``dual_norm(z_g) <= lam_g``, with ``z_g`` replaced by its projection when the variable lies in pattern
cones: ``||P_K(z)|| = min_{rho >= 0} ||z + B^T rho||``. This module computes the largest quotient
``dual_norm / lam`` over all groups, and what bounds on unpenalised variables cost.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from convexnn_solvers.backends import Float64Array
from convexnn_solvers.certify.cone_columns import ConeColumns, cone_columns
from convexnn_solvers.certify.reached_entries import reached_entries
from convexnn_solvers.composite import Composite, PenaltyTerm, VariableBlock
from convexnn_solvers.cones.active_sets import ActiveRows, Indices
from convexnn_solvers.functions.penalties import GroupNorm

# Groups are projected in decreasing norm, so many at first and then some times as many each time.
_FIRST_BATCH, _FURTHER = 8, 8
# What bounds of the same norm may differ by.
_ROUNDING = 1e-12
# How far inside their dual balls directions are moved, so that rounding leaves them there.
_INSIDE = 1e-10


@dataclass(frozen=True, eq=False)
class _Penalised:
    """One variable with its penalties, and its cones if they are exact pattern cones.

    ``outermost`` says of each penalty around which entries there is no other, ``nested`` whether there are
    entries with one around another; the condition of ``free`` entries, which none reaches, is not a norm's.
    ``plain``: there is one penalty, of all entries.
    """

    terms: tuple[PenaltyTerm, ...]
    outermost: tuple[NDArray[np.bool_], ...]
    free: NDArray[np.bool_]
    block: VariableBlock
    columns: ConeColumns | None
    groups: Indices | None
    nested: bool
    plain: bool

    def ratio(self, z: Float64Array, hint: Float64Array | None, floor: float) -> float:
        """The largest quotient over the groups; exact if above ``floor``, else anything up to it."""
        if self.columns is None:
            if self.block.lower is None and self.block.upper is None:
                return self.largest(z)
            # Where u >= 0 (or u <= 0) only that sign of z can gain, whatever other bounds there are.
            low = 0.0 if self.block.lower is not None and not np.any(self.block.lower) else -np.inf
            high = 0.0 if self.block.upper is not None and not np.any(self.block.upper) else np.inf
            return self.largest(np.clip(z, low, high))
        if self.groups is None:
            everything = np.arange(self.columns.gates.size)
            points, error = self.columns.dual_points(self.columns.split(z), everything)
            lengths = _lengths(points)
            inflated = 1.0 + error / np.where(lengths > 0.0, lengths, 1.0)
            return self.largest(self.columns.join(points * inflated))
        return self._aligned(self.columns, self.groups, z, hint, floor)

    def _aligned(
        self,
        columns: ConeColumns,
        groups: Indices,
        z: Float64Array,
        hint: Float64Array | None,
        floor: float,
    ) -> float:
        """Project the groups in decreasing order of an upper bound; stop when none can exceed the largest.

        What is remembered of the last projections bounds most groups. Where it is the projection of the
        group of the largest bound, as at a solver's own dual point, none is left to do.
        """
        upper, split = self.quotients(z), columns.split(z)
        if hint is not None:
            upper = np.minimum(upper, self.quotients(z + hint))
        weight = np.broadcast_to(self.terms[0].weight, upper.shape).ravel()
        points, _, error = columns.remembered(split)
        bounds = _quotient(_of_groups(_lengths(points) + error, groups, upper.size), weight)
        upper = np.minimum(upper.ravel(), bounds)
        order = np.argsort(-upper)
        top, largest, start, size = order[0], floor, 0, _FIRST_BATCH
        single = columns.outputs == 1 or groups.size == upper.size
        close = bounds[top] <= (1.0 + _ROUNDING) * upper[top]
        if close and columns.inside(points, np.flatnonzero(groups == top)):
            return max(largest, float(upper[top]))
        while start < order.size and upper[order[start]] > largest:
            batch = order[start : start + size]
            batch = batch[upper[batch] > largest]
            index = np.flatnonzero(np.isin(groups, batch))
            # The largest of the first ones is as good as the norm of those that turn out to be smaller.
            limits = largest * weight[groups[index]] if single and largest > 0.0 else None
            points, error = columns.dual_points(split, index, limits)
            norms = np.zeros(upper.size)
            np.hypot.at(norms, groups[index], _lengths(points) + error)
            largest = max(largest, float(_quotient(norms[batch], weight[batch]).max()))
            start, size = start + size, _FURTHER * size
        return largest

    def shrunk(self, z: Float64Array) -> Float64Array:
        """The proximal map of the penalties at weights that are smaller by a hair."""
        for term in self.terms:
            view = term.view(z)
            moved = term.penalty.prox(view, np.asarray(term.weight) * (1.0 - _INSIDE), np)
            z = z - term.unview(view) + term.unview(moved)
        return z

    def quotients(self, z: Float64Array) -> Float64Array:
        """Dual norm over weight per group of a single penalty."""
        (term,) = self.terms
        return _quotient(term.penalty.dual_norms(term.view(z), np), term.weight)

    def largest(self, z: Float64Array, shrink: bool = True) -> float:
        """The largest quotient; inner penalties take what they can before the ones around them.

        Unless they ``shrink``: then an error's, which moves the others by no more (shrinkages are projections
        on balls taken off, and expand no distance).
        """
        if self.plain:
            return float(np.max(self.quotients(z), initial=0.0))
        found, z = 0.0, np.where(self.free, 0.0, z)
        for term, outermost in zip(self.terms, self.outermost, strict=True):
            if outermost.any():
                view = term.view(np.where(outermost, z, 0.0))
                quotients = _quotient(term.penalty.dual_norms(view, np), term.weight)
                found = max(found, float(quotients.max(initial=0.0)))
            if shrink and not outermost.all():
                view = term.view(z)
                z = z - term.unview(view) + term.unview(term.penalty.prox(view, term.weight, np))
        return found


class DualNorms:
    """All conditions that a dual direction must satisfy on the variables of one problem."""

    def __init__(self, composite: Composite) -> None:
        self.columns: dict[int, ConeColumns] = {}
        #: Positions of the constraints that are dualised exactly by projections.
        self.exact: dict[int, int] = {}
        reached = reached_entries(composite)
        masks = [unpenalised(composite, index, reached) for index in range(len(composite.variables))]
        for position, constraint in enumerate(composite.constraints):
            cone = constraint.pattern_cone
            if cone is None or cone.variable in self.columns:
                continue
            if masks[cone.variable].all() or not masks[cone.variable].any():
                self.columns[cone.variable] = cone_columns(composite, cone)
            if not masks[cone.variable].any():
                self.exact[cone.variable] = position
        self._penalised: dict[int, _Penalised] = {}
        for index, block in enumerate(composite.variables):
            terms = [term for term in composite.penalties if term.variable == index]
            columns = self.columns.get(index)
            if terms:
                groups = None if columns is None or len(terms) > 1 else column_groups(terms[0], columns)
                own = [r for r, t in zip(reached, composite.penalties, strict=True) if t.variable == index]
                nested = len(own) > 1 and bool(np.any(np.sum(own, axis=0) > 1))
                plain = len(own) == 1 and bool(own[0].all())
                self._penalised[index] = _Penalised(
                    tuple(terms), _outermost(own), masks[index], block, columns, groups, nested, plain
                )
        self._unpenalised = masks
        self.variables = composite.variables
        self._across = composite.across
        #: Whether feasibility of z and of 2 z are the same up to the factor.
        self.homogeneous = not any(p.nested for p in self._penalised.values())
        #: Entries on which the direction must vanish, or have a sign (see :func:`free_entries`).
        self.free = tuple(free_entries(v, mask) for v, mask in zip(self.variables, masks, strict=True))

    def reweighted(self, composite: Composite) -> DualNorms:
        """The conditions of a composite that ``only_weights_differ`` from this one's."""
        other = copy(self)
        other._penalised = {
            index: replace(held, terms=tuple(t for t in composite.penalties if t.variable == index))
            for index, held in self._penalised.items()
        }
        return other

    def ratio(self, z: tuple[Float64Array, ...], hints: tuple[Float64Array | None, ...]) -> float:
        """The largest ``dual_norm / lam`` over all penalised groups (``inf``: a group of weight 0).

        ``hints`` may hold ``B^T rho`` for some ``rho >= 0`` per variable: the norm of ``z + hint`` is an
        upper bound too, and saves projections.
        """
        largest = 0.0
        for index, variable in self._penalised.items():
            largest = max(largest, variable.ratio(z[index], hints[index], largest))
        return self._across.max(largest)

    def begin_at(self, rows: Sequence[ActiveRows | None]) -> None:
        """Begin the next projections at somebody's active rows, given constraint by constraint, or not."""
        for variable, position in self.exact.items():
            given = rows[position] if rows else None
            if given is not None:
                self.columns[variable].begin_at(given)

    def hints(
        self, multipliers: Sequence[Float64Array | None]
    ) -> tuple[tuple[Float64Array | None, ...], float]:
        """Hints from somebody's multipliers, and how much their rounding moves :meth:`ratio`.

        None where the next projections can begin at the multipliers, which then say as much.
        """
        found: list[Float64Array | None] = [None for _ in self.variables]
        largest = 0.0
        for variable, position in self.exact.items():
            given, columns = multipliers[position], self.columns[variable]
            if given is None or columns.expect(given):
                continue
            found[variable], rounding = columns.hint(given)
            if variable in self._penalised:
                errors = np.zeros((columns.features, columns.gates.size))
                errors[0] = rounding
                moved = self._penalised[variable].largest(columns.join(errors), shrink=False)
                largest = max(largest, moved)
        return tuple(found), largest

    def unprojected(self, z: tuple[Float64Array, ...]) -> float:
        """The largest quotient without any projection; bounds how much an error ``z`` moves :meth:`ratio`."""
        return self._across.max(
            max((v.largest(z[index], shrink=False) for index, v in self._penalised.items()), default=0.0)
        )

    def penalised_kinds(self) -> tuple[NDArray[np.int8], ...]:
        """:attr:`free`, with 3 for the entries that have a condition because of a penalty."""
        return tuple(
            np.where(self._penalised[i].free | (kinds != 0), kinds, 3).astype(np.int8)
            if i in self._penalised
            else kinds
            for i, kinds in enumerate(self.free)
        )

    def nearest_in_balls(self, entries: Float64Array) -> Float64Array:
        """The entries of kind 3, as one vector, moved just inside their dual balls (Moreau's identity)."""
        kinds, parts, start = self.penalised_kinds(), [], 0
        for index, kind in enumerate(kinds):
            hit = kind == 3
            count = int(np.count_nonzero(hit))
            if count:
                z = np.zeros(kind.shape)
                z[hit] = entries[start : start + count]
                parts.append((z - self._penalised[index].shrunk(z))[hit])
            start += count
        return np.concatenate(parts) if parts else entries

    def support(self, z: tuple[Float64Array, ...]) -> float:
        """``max <z, x>`` over the bounds of the unpenalised entries, the condition of free ones granted."""
        total = 0.0
        for index, mask in enumerate(self._unpenalised):
            block = self.variables[index]
            for bound, sign in ((block.lower, -1.0), (block.upper, 1.0)):
                if bound is not None:
                    reached = mask & np.isfinite(bound) & (sign * z[index] > 0.0)
                    total += float(np.sum(z[index][reached] * bound[reached]))
        return total

    def repair(self, x: tuple[Float64Array, ...]) -> tuple[Float64Array, ...]:
        """``x`` with every pattern-cone block projected on its cone, and other variables on their bounds."""
        points = []
        for index, block in enumerate(x):
            columns, variable = self.columns.get(index), self.variables[index]
            if columns is not None:
                split = columns.split(block)
                moved = columns.project(split)
                points.append(block if moved is split else columns.join(moved))
            elif variable.lower is not None or variable.upper is not None:
                points.append(np.asarray(np.clip(block, variable.lower, variable.upper)))
            else:
                points.append(block)
        return tuple(points)


def _lengths(points: Float64Array) -> Float64Array:
    return np.asarray(GroupNorm(0).dual_norms(points, np))


def _of_groups(lengths: Float64Array, groups: Indices, count: int) -> Float64Array:
    """The norms of groups of columns from those of the columns, whose squares may underflow."""
    largest = np.zeros(count)
    np.maximum.at(largest, groups, lengths)
    unit = np.where((largest > 0.0) & np.isfinite(largest), largest, 1.0)
    return unit * np.sqrt(np.bincount(groups, (lengths / unit[groups]) ** 2, count))


def _quotient(norms: Float64Array, weight: Float64Array) -> Float64Array:
    """``norms / weight`` where 0 / 0 is 0 and anything else over 0 is infinite, as what overflowed is."""
    norms, weight = np.asarray(norms, np.float64), np.asarray(weight, np.float64)
    norms = np.where(np.isnan(norms), np.inf, norms)
    if weight.ndim == 0 and weight > 0.0:
        return norms / weight
    norms, weight = np.broadcast_arrays(norms, weight)
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
    # Entries that the penalty does not reach get -1: their columns lie within no group.
    spread = term.unview(np.broadcast_to(labels + 1.0, view.shape)) - 1.0
    split = columns.split(spread)
    if np.any(split < 0.0):
        return None
    if np.any(split != split[0]):
        return None
    return np.asarray(split[0], dtype=np.intp)


def unpenalised(composite: Composite, index: int, reached: Sequence[NDArray[np.bool_]]) -> NDArray[np.bool_]:
    """The entries of a variable that no penalty of positive weight reaches; ``reached``: by each penalty."""
    left = np.ones(composite.variables[index].shape, dtype=bool)
    for term, entries in zip(composite.penalties, reached, strict=True):
        if term.variable == index:
            left &= ~entries
    return left


def free_entries(variable: VariableBlock, mask: NDArray[np.bool_]) -> NDArray[np.int8]:
    """Per entry: 2 where the direction must vanish, 1 where it must not be positive (the variable has only
    a lower bound), -1 where it must not be negative, 0 where everything is allowed."""
    below = np.zeros(variable.shape, bool) if variable.lower is None else np.isfinite(variable.lower)
    above = np.zeros(variable.shape, bool) if variable.upper is None else np.isfinite(variable.upper)
    kinds = np.where(below, np.where(above, 0, 1), np.where(above, -1, 2))
    return np.where(mask, kinds, 0).astype(np.int8)


def _outermost(reached: Sequence[NDArray[np.bool_]]) -> tuple[NDArray[np.bool_], ...]:
    """The entries of each penalty of a variable that no later one reaches."""
    return tuple(
        np.logical_and.reduce([reached[k], *(~later for later in reached[k + 1 :])])
        for k in range(len(reached))
    )
