"""Exact projections on the pattern cones ``K_j = {u : (2 D_j - I) X u >= 0}``, many blocks at a time.

With ``B_j = (2 D_j - I) X`` the projection of ``z`` is ``P(z) = z + B_j^T rho``, where ``rho >= 0`` minimises
``1/2 ||z + B_j^T rho||^2``. *Any* ``rho >= 0`` gives an upper bound of ``||P(z)||``, which is what
certificates need; the minimiser gives the point that solvers need.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from convexnn_solvers.backends import Float64Array
from convexnn_solvers.cones.active_sets import (
    DEPENDENT,
    ActiveSetMethod,
    Indices,
    machine_code,
    padded,
    slack_tolerance,
)
from convexnn_solvers.cones.active_sets import ActiveRows as ActiveRows
from convexnn_solvers.cones.active_sets import no_active_rows as no_active_rows
from convexnn_solvers.cones.factors import ConeFactors
from convexnn_solvers.row_blocks import row_blocks

# Samples x features x gates from which loading machine code pays.
_COMPILED_FROM = 150_000
# Entries of the largest work array (blocks x rows, or blocks x active rows x features).
_CHUNK_ENTRIES = 2_000_000
# Squares of numbers whose sums between these are neither rounded by underflow nor overflow.
_TINY, _HUGE = 1e-280, 1e300
# Multipliers of unit rows and unit points that a projection begins with.
_LARGEST_START = 1e100


@dataclass(frozen=True, eq=False)
class Projection(ActiveRows):
    """Projected points (d, m), and the active rows that prove it: ``points = Z + B_j^T rho`` to rounding."""

    points: Float64Array


@dataclass(frozen=True, eq=False)
class RememberedRows:
    """The latest projections of B blocks: active rows (B, k) padded with -1, and multipliers (B, k) in units
    of unit rows and of points of length ``scale`` (B,); ``polar`` (B, d) is a positive multiple of
    ``B^T rho``, or zero."""

    rows: Indices
    rho: Float64Array
    scale: Float64Array
    polar: Float64Array

    def take(self, blocks: Indices) -> RememberedRows:
        """A copy for some of the blocks."""
        return RememberedRows(self.rows[blocks], self.rho[blocks], self.scale[blocks], self.polar[blocks])


class PatternCones:
    """The cones of all patterns of one data matrix.

    Parameters: ``X`` (n, d), any scaling of the rows, zero, repeated and dependent rows included;
    ``patterns`` (n, P) bool, one column per gate. ``compiled``: use machine code where numba is installed,
    which takes a moment to load, and longer the first time on a machine; None: where the data are large
    enough for that to pay.
    """

    def __init__(self, X: ArrayLike, patterns: NDArray[np.bool_], compiled: bool | None = None) -> None:
        data = np.asarray(X, dtype=np.float64)
        bits = np.asarray(patterns)
        if data.ndim != 2 or bits.ndim != 2 or bits.shape[0] != data.shape[0] or bits.dtype != np.bool_:
            raise ValueError(
                f"X must be (n, d) and patterns a bool array (n, P), not {data.shape} and "
                f"{bits.dtype} {bits.shape}."
            )
        if not np.isfinite(data).all():
            raise ValueError("X holds NaN or infinite entries.")
        self.X = data
        large = machine_code_pays(data, bits) if compiled is None else compiled
        self._kernel = machine_code() if large else None
        self._bits = np.ascontiguousarray(bits.T)
        self._norms = _row_norms(data)
        self._unit_norms = np.append(self._norms, 1.0)
        unit = data / np.where(self._norms > 0.0, self._norms, 1.0)[:, None]
        # With fewer samples than features everything happens in the row space, of dimension at most n.
        self._basis: Float64Array | None = None
        if data.shape[0] < data.shape[1]:
            self._basis, triangle = np.linalg.qr(unit.T)
            unit = np.ascontiguousarray(triangle.T)
        # The last row, of zeros, is what the padding -1 of active rows points at.
        self._unit = np.vstack([unit, np.zeros((1, unit.shape[1]))])

    def project(self, Z: ArrayLike, gates: ArrayLike, warm: ActiveRows | None = None) -> Projection:
        """Project column b of ``Z`` (d, m) on the cone of gate ``gates[b]``, for all b.

        ``warm``: active rows of an earlier call for the same blocks (or anything else of that shape:
        a wrong warm start costs time only). Raises ValueError for wrong shapes and NaN.
        """
        points = np.asarray(Z, dtype=np.float64)
        index = np.asarray(gates, dtype=np.intp)
        self._check(points, index)
        start = no_active_rows(index.size) if warm is None else warm
        if start.rows.shape != start.multipliers.shape or start.rows.shape[0] != index.size:
            raise ValueError(
                f"warm must hold one row of active rows per block ({index.size}), not {start.rows.shape}."
            )
        n, width = self._unit.shape[0] - 1, self._unit.shape[1]
        parts = [
            self._project_chunk(points[:, part].T, index[part], start.take(part))
            for part in row_blocks(index.size, max(n, width * min(n, width)), _CHUNK_ENTRIES)
        ]
        longest = max((active.rows.shape[1] for _, active in parts), default=0)
        return Projection(
            rows=_stacked([padded(active.rows, -1, longest) for _, active in parts], (0, 0), np.intp),
            multipliers=_stacked(
                [padded(active.multipliers, 0.0, longest) for _, active in parts], (0, 0), np.float64
            ),
            points=_stacked([u for u, _ in parts], (0, points.shape[0]), np.float64).T,
        )

    @property
    def in_machine_code(self) -> bool:
        """Whether :meth:`project_in_place` may be called."""
        return self._kernel is not None and self._basis is None

    @property
    def unit_norms(self) -> Float64Array:
        """Norms of the rows of X, and a one at the end for the padding -1 of active rows."""
        return self._unit_norms

    def project_in_place(
        self,
        points: Float64Array,
        gates: Indices,
        blocks: Indices,
        active: RememberedRows,
        factors: ConeFactors,
        short: Float64Array,
    ) -> NDArray[np.bool_]:
        """Project ``points`` (m, d), contiguous, of m of the blocks that ``active`` and ``factors`` know.

        Everything is replaced by what was found; returned is which blocks (m,) are projected. Of the others
        the active rows are only a warm start, and their points are as they were. Projections that are no
        longer than ``short`` (m,) need not be found: then a point ``z + B^T rho`` as short stands for them.
        """
        assert self._kernel is not None
        scale = _row_norms(points)
        lengths = np.where(scale > 0.0, scale, 1.0)
        unit_points = points / lengths[:, None]
        projected, finished = np.empty_like(points), np.zeros(blocks.size, dtype=np.bool_)
        tolerance = slack_tolerance(points.shape[1])
        self._kernel.project_blocks(
            self._unit[:-1], self._bits, gates, unit_points, blocks, tolerance, DEPENDENT,
            active.rows, active.rho, projected, finished, factors, short / lengths,
        )  # fmt: skip
        self._kernel.polar_directions(
            self._unit[:-1], self._bits, gates, blocks, active.rows, active.rho, active.polar
        )
        active.scale[blocks] = scale
        np.multiply(projected, scale[:, None], out=points, where=finished[:, None])
        return finished

    def complete_bases(self, factors: ConeFactors, slots: Indices, counts: Indices) -> Float64Array:
        """Orthonormal columns (g, d, q) of what the factored active rows, so many of every slot, leave free;
        padded with zeros."""
        assert self._kernel is not None
        d = self.X.shape[1]
        bases = np.zeros((slots.size, d, d - int(np.min(counts, initial=d))))
        self._kernel.complete_bases(factors.basis, slots, counts, bases)
        return bases

    def slack_violation(self, U: ArrayLike, gates: ArrayLike) -> Float64Array:
        """How far column b of ``U`` (d, m) leaves its cone: ``max_i -(2D-I)_ii x_i^T u / ||x_i||``, or 0."""
        points = np.asarray(U, dtype=np.float64)
        index = np.asarray(gates, dtype=np.intp)
        self._check(points, index)
        worst = np.zeros(index.size)
        norms = np.where(self._norms > 0.0, self._norms, 1.0)
        # Of unit points, since products of tiny ones with tiny features underflow.
        scale = _row_norms(points.T)
        points = points / np.where(scale > 0.0, scale, 1.0)
        for part in row_blocks(index.size, self.X.shape[0], _CHUNK_ENTRIES):
            activations = (points[:, part].T @ self.X.T) / norms
            slack = np.where(self._bits[index[part]], activations, -activations)
            worst[part] = -np.min(slack, axis=1, initial=0.0)
        worst *= scale
        return worst

    def combine(self, gates: ArrayLike, active: ActiveRows) -> Float64Array:
        """``B_j^T rho`` (d, m) for multipliers ``rho`` given on active rows."""
        index = np.asarray(gates, dtype=np.intp)
        out = np.zeros((index.size, self.X.shape[1]))
        for part in row_blocks(index.size, self.X.shape[1] * active.rows.shape[1], _CHUNK_ENTRIES):
            rows, multipliers = active.rows[part], active.multipliers[part]
            signed = self._signs(index[part], rows) * multipliers
            out[part] = np.einsum("bk,bkd->bd", signed, self.X[np.maximum(rows, 0)])
        return out.T

    def pull(self, rho: Float64Array) -> Float64Array:
        """``B_j^T rho_j`` (d, P) for an array (n, P) of multipliers of every gate."""
        return np.asarray(self.X.T @ np.where(self._bits.T, rho, -rho))

    def _check(self, points: Float64Array, gates: Indices) -> None:
        d, gate_count = self.X.shape[1], self._bits.shape[0]
        if points.shape != (d, gates.size) or gates.ndim != 1:
            raise ValueError(
                f"points must be ({d}, m) with one gate per column, not {points.shape} with gates of "
                f"shape {gates.shape}."
            )
        if gates.size and (gates.min() < 0 or gates.max() >= gate_count):
            raise ValueError(f"gates must lie in 0..{gate_count - 1}.")
        if not np.isfinite(points).all():
            raise ValueError("the points hold NaN or infinite entries.")

    def _signs(self, gates: Indices, rows: Indices) -> Float64Array:
        """+1 or -1 per active row, 0 for the padding."""
        bits = self._bits[gates[:, None], np.maximum(rows, 0)]
        return np.where(rows < 0, 0.0, np.where(bits, 1.0, -1.0))

    def _project_chunk(
        self, Z: Float64Array, gates: Indices, warm: ActiveRows
    ) -> tuple[Float64Array, ActiveRows]:
        """Undo every scaling around the active-set method: unit rows, unit points, the row space."""
        scale = _row_norms(Z)
        unit_points = Z / np.where(scale > 0.0, scale, 1.0)[:, None]
        inner = unit_points if self._basis is None else unit_points @ self._basis
        norms = self._unit_norms
        rows = _cleaned_rows(warm.rows, self._norms)
        start = np.where(rows >= 0, warm.multipliers, 0.0) * norms[rows]
        with np.errstate(over="ignore"):
            start = start / np.where(scale > 0.0, scale, 1.0)[:, None]
        # Multipliers of points that were longer by more than that say nothing, and their squares overflow.
        start = np.where(start < _LARGEST_START, start, 0.0)
        method = ActiveSetMethod(self._unit, self._bits[gates], np.ascontiguousarray(inner), self._kernel)
        moved, active = method.run(rows, np.clip(start, 0.0, None))
        if self._basis is not None:
            moved = unit_points + (moved - inner) @ self._basis.T
        multipliers = active.multipliers * (scale[:, None] / norms[active.rows])
        return moved * scale[:, None], ActiveRows(active.rows, multipliers)


def machine_code_pays(X: Float64Array, patterns: NDArray[np.bool_], times: float = 1.0) -> bool:
    """Whether projections on these cones, so many times as often as usual, are worth loading it."""
    return bool(times * X.size * patterns.shape[1] >= _COMPILED_FROM)


def _row_norms(rows: Float64Array) -> Float64Array:
    """Euclidean norms of the rows, without overflow or underflow on the way."""
    squares = np.einsum("ij,ij->i", rows, rows)
    if squares.size and _TINY < squares.min() and squares.max() < _HUGE:
        return np.asarray(np.sqrt(squares))
    largest = np.max(np.abs(rows), axis=1, initial=0.0)
    safe = np.where(largest > 0.0, largest, 1.0)
    return np.asarray(safe * np.linalg.norm(rows / safe[:, None], axis=1) * (largest > 0.0))


def _cleaned_rows(rows: Indices, norms: Float64Array) -> Indices:
    """A warm start's rows without what cannot be active: unknown rows, zero rows and repetitions."""
    known = (rows >= 0) & (rows < norms.size)
    cleaned = np.where(known & (np.append(norms, 0.0)[np.where(known, rows, -1)] > 0.0), rows, -1)
    order = np.argsort(cleaned, axis=1, kind="stable")
    ordered = np.take_along_axis(cleaned, order, axis=1)
    ordered[:, 1:][ordered[:, 1:] == ordered[:, :-1]] = -1
    np.put_along_axis(cleaned, order, ordered, axis=1)
    return cleaned


def _stacked(parts: list[NDArray[Any]], empty: tuple[int, int], dtype: type) -> NDArray[Any]:
    return np.concatenate(parts) if parts else np.empty(empty, dtype=dtype)
