"""Batched non-negative least squares: the active-set method of Lawson and Hanson for many blocks at once.

Block b minimises ``1/2 ||z_b + B_b^T rho||^2`` over ``rho >= 0``, where the rows of ``B_b`` are common unit
rows with signs of their own. Every step factorises the active rows of every unfinished block by one batched
QR, so that dependent rows are seen and never more rows than features are active.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from convexnn_solvers.backends import Float64Array
from convexnn_solvers.cones.factors import empty_factors

Indices = NDArray[np.intp]

_EPS = float(np.finfo(np.float64).eps)
# Rows whose part outside the span of the active rows is smaller than this count as dependent on them.
DEPENDENT = 1e-12
# At most so many rows enter the active set of a block at once.
_ENTERING = 4


@dataclass(frozen=True, eq=False)
class ActiveRows:
    """For each of m blocks the active rows of X, (m, k) padded with -1, and their multipliers >= 0."""

    rows: Indices
    multipliers: Float64Array

    def take(self, index: Indices | slice) -> ActiveRows:
        """The active rows of some of the blocks."""
        return ActiveRows(self.rows[index], self.multipliers[index])

    def times(self, factors: Float64Array) -> ActiveRows:
        """The same with multipliers times a factor (m,) per block."""
        return ActiveRows(self.rows, self.multipliers * factors[:, None])

    def replaced(self, index: Indices, other: ActiveRows) -> ActiveRows:
        """A copy in which the blocks ``index`` are those of ``other``."""
        width = max(self.rows.shape[1], other.rows.shape[1])
        rows, multipliers = padded(self.rows, -1, width), padded(self.multipliers, 0.0, width)
        rows[index] = padded(other.rows, -1, width)
        multipliers[index] = padded(other.multipliers, 0.0, width)
        return ActiveRows(rows, multipliers)


def shortest_multiple(z: Float64Array, polar: Float64Array) -> Float64Array:
    """The factors ``a >= 0`` (..., m) of the shortest columns ``z + a polar`` of arrays (..., d, m).

    They are 0 where ``polar`` vanishes.
    """
    squared = np.einsum("...ib,...ib->...b", polar, polar)
    along = np.minimum(np.einsum("...ib,...ib->...b", z, polar), 0.0)
    return np.asarray(-along / np.where(squared > 0.0, squared, 1.0))


def joined(parts: Sequence[ActiveRows]) -> ActiveRows:
    """Those of blocks one after the other."""
    width = max(active.rows.shape[1] for active in parts)
    return ActiveRows(
        np.concatenate([padded(active.rows, -1, width) for active in parts]),
        np.concatenate([padded(active.multipliers, 0.0, width) for active in parts]),
    )


def no_active_rows(blocks: int) -> ActiveRows:
    """The empty warm start for ``blocks`` blocks."""
    return ActiveRows(np.empty((blocks, 0), dtype=np.intp), np.empty((blocks, 0)))


@dataclass(frozen=True)
class Kernel:
    """The compiled functions."""

    project_blocks: Callable[..., None]
    polar_directions: Callable[..., None]
    complete_bases: Callable[..., None]


@cache
def machine_code() -> Kernel | None:
    """The compiled loops; None where numba is not installed.

    They have run once when this returns, so that no later call compiles.
    """
    try:
        from convexnn_solvers.cones.active_set_kernel import project_blocks
        from convexnn_solvers.cones.kernel import complete_bases, polar_directions
    except ImportError:
        return None
    one, index = np.ones((1, 1)), np.zeros(1, dtype=np.intp)
    bits, rows, rho, projected = one > 0.0, index[:, None].copy(), one.copy(), one.copy()
    factors, finished = empty_factors(1, 1, 1, 1), bits[0].copy()
    project_blocks(one, bits, index, one, index, 0.0, 0.0, rows, rho, projected, finished, factors, one[0])
    polar_directions(one, bits, index, index, rows, rho, projected)
    complete_bases(factors.basis, index, index, one[:, :, None].copy())
    return Kernel(project_blocks, polar_directions, complete_bases)


def slack_tolerance(features: int) -> float:
    """The slack of unit rows at points of length one that rounding allows."""
    return float(32.0 * _EPS * np.sqrt(max(features, 1)))


class ActiveSetMethod:
    """Lawson-Hanson for a batch: unit rows (n+1, d) with a zero row last, bits (m, n), points (m, d).

    Each block goes through: least squares on its active rows; if a multiplier came out negative, step
    back and drop rows; otherwise let the most violated rows enter, or finish. Every accepted step lowers
    ``||z + B^T rho||``, so no set of active rows comes back; rounding ends in the iteration limit.
    A ``kernel`` takes every block first, and the steps here what it leaves.
    """

    def __init__(
        self, unit: Float64Array, bits: NDArray[np.bool_], points: Float64Array, kernel: Kernel | None = None
    ) -> None:
        self.unit, self.bits, self.points, self.kernel = unit, bits, points, kernel
        self.capacity = min(unit.shape[0] - 1, unit.shape[1])
        self.tolerance = slack_tolerance(unit.shape[1])

    def run(self, rows: Indices, rho: Float64Array) -> tuple[Float64Array, ActiveRows]:
        """Projected points (m, d) and their active rows, from any start ``rho >= 0``."""
        m = len(self.points)
        self.projected = self.points.copy()
        width = max(self.capacity, 1)
        self.rows, self.rho = padded(rows[:, :width], -1, width), padded(rho[:, :width], 0.0, width)
        todo = np.arange(m)
        self._drop(todo, self.rows >= 0, self.rho)
        if self.kernel is not None:
            finished = np.zeros(m, dtype=np.bool_)
            self.kernel.project_blocks(
                self.unit[:-1], self.bits, todo, self.points, todo, self.tolerance, DEPENDENT,
                self.rows, self.rho, self.projected, finished,
                empty_factors(1, len(self.unit) - 1, self.unit.shape[1], width), np.zeros(m),
            )  # fmt: skip
            todo = np.flatnonzero(~finished)
        for _ in range(10 * self.capacity + 20):
            if todo.size == 0:
                break
            todo = self._step(todo)
        for block in todo:
            self._finish_alone(int(block))
        count = int(np.max(np.sum(self.rows >= 0, axis=1), initial=0))
        return self.projected, ActiveRows(self.rows[:, :count], self.rho[:, :count])

    def _step(self, todo: Indices) -> Indices:
        """One step of the blocks ``todo``; those that are still unfinished."""
        k = int(np.max(np.sum(self.rows[todo] >= 0, axis=1), initial=0))
        rows, z = self.rows[todo, :k], self.points[todo]
        listed = rows >= 0
        active = self._signed_rows(todo, rows)
        Q, R = np.linalg.qr(active.transpose(0, 2, 1))
        diagonal = np.abs(np.diagonal(R, axis1=1, axis2=2))
        dependent = listed & (diagonal < DEPENDENT)
        Q = Q * listed[:, None, :]
        R = R + np.eye(k) * ~listed[:, None, :]
        singular = dependent.any(axis=1)
        R[singular] = np.eye(k)
        coefficients = np.matvec(Q.transpose(0, 2, 1), z)
        x = -np.linalg.solve(R, coefficients[:, :, None])[:, :, 0]
        negative = (listed & (x <= 0.0)).any(axis=1) & ~singular
        self._drop(todo[singular], ~dependent[singular], self.rho[todo[singular], :k])
        self._step_back(todo[negative], active[negative], x[negative])
        clean = ~(negative | singular)
        u = z[clean] - np.matvec(Q[clean], coefficients[clean])
        u -= np.matvec(Q[clean], np.matvec(Q[clean].transpose(0, 2, 1), u))
        done = self._enter(todo[clean], u, x[clean], k)
        finished = np.zeros(todo.size, dtype=np.bool_)
        finished[np.flatnonzero(clean)[done]] = True
        return todo[~finished]

    def _signed_rows(self, todo: Indices, rows: Indices) -> Float64Array:
        bits = self.bits[todo[:, None], np.maximum(rows, 0)]
        return self.unit[rows] * np.where(bits, 1.0, -1.0)[:, :, None]

    def _enter(self, todo: Indices, u: Float64Array, x: Float64Array, k: int) -> NDArray[np.bool_]:
        """Accept the least-squares solution, then activate the most violated rows; which blocks are done."""
        self.projected[todo] = u
        self.rho[todo, :k] = x
        activations = u @ self.unit[:-1].T
        slack = np.where(self.bits[todo], activations, -activations)
        rows, values = _lowest(slack)
        done: NDArray[np.bool_] = values[:, 0] >= -self.tolerance
        counts = np.sum(self.rows[todo] >= 0, axis=1)
        room = (self.capacity - counts)[:, None]
        position = np.arange(rows.shape[1])
        entering = (values < -self.tolerance) & (values <= 0.5 * values[:, :1])
        entering &= position < np.minimum(np.maximum(room // 2, 1), room)
        block, place = np.nonzero(entering)
        self.rows[todo[block], counts[block] + place] = rows[block, place]
        self.rho[todo[block], counts[block] + place] = 0.0
        return done

    def _step_back(self, todo: Indices, active: Float64Array, x: Float64Array) -> None:
        """Where multipliers are negative, clip them all if that is progress, else up to the first zero."""
        k = x.shape[1]
        rho = self.rho[todo, :k]
        z = self.points[todo]
        before = np.sum((z + np.einsum("bk,bkd->bd", rho, active)) ** 2, axis=1)
        clipped = np.clip(x, 0.0, None)
        after = np.sum((z + np.einsum("bk,bkd->bd", clipped, active)) ** 2, axis=1)
        blocking = (self.rows[todo, :k] >= 0) & (x <= 0.0)
        ratio = np.where(blocking, rho / np.where(blocking & (rho > x), rho - x, 1.0), np.inf)
        length = np.min(ratio, axis=1, initial=1.0)[:, None]
        stepped = np.where(blocking & (ratio <= length), 0.0, rho + length * (x - rho))
        progress = (after < before * (1.0 - 4.0 * _EPS))[:, None]
        values = np.where(progress, clipped, np.clip(stepped, 0.0, None))
        self._drop(todo, (values > 0.0) | ~blocking, values)

    def _drop(self, todo: Indices, keep: NDArray[np.bool_], values: Float64Array) -> None:
        """Keep some of the listed rows with the multipliers ``values``, closing the gaps."""
        if todo.size == 0:
            return
        k = keep.shape[1]
        keep = keep & (self.rows[todo, :k] >= 0)
        order = np.argsort(~keep, axis=1, kind="stable")
        rows = np.where(keep, self.rows[todo, :k], -1)
        self.rows[todo, :k] = np.take_along_axis(rows, order, axis=1)
        self.rho[todo, :k] = np.take_along_axis(np.where(keep, values, 0.0), order, axis=1)

    def _finish_alone(self, block: int) -> None:
        """What rounding left unfinished: SciPy's solver on all rows, kept if it is the better point."""
        signs = np.where(self.bits[block], 1.0, -1.0)
        signed, z = self.unit[:-1] * signs[:, None], self.points[block]
        listed = self.rows[block][self.rows[block] >= 0]
        candidates = [(listed, self.rho[block, : listed.size])]
        try:
            full, _ = nnls(signed.T, -z, maxiter=20 * len(signed))
            support = np.flatnonzero(full > 0.0)
            candidates.append((support, full[support]))
        except RuntimeError:  # its iteration limit: the point at hand stands, and its violation shows
            pass
        best = np.inf
        for rows, rho in candidates:
            kept, multipliers, u = polished(signed[rows], rho, z)
            violation = -float(np.min(signed @ u, initial=0.0))
            if violation < best and kept.size <= self.rows.shape[1]:
                best = violation
                self.projected[block] = u
                self.rows[block], self.rho[block] = -1, 0.0
                self.rows[block, : kept.size], self.rho[block, : kept.size] = rows[kept], multipliers


def _lowest(slack: Float64Array) -> tuple[Indices, Float64Array]:
    """Up to ``_ENTERING`` low entries per row, the lowest first: the minima of interleaved groups."""
    m, n = slack.shape
    groups = min(_ENTERING, max(n, 1))
    depth = -(-n // groups)
    grid = np.full((m, max(depth, 1) * groups), np.inf)
    grid[:, :n] = slack
    rows = np.argmin(grid.reshape(m, max(depth, 1), groups), axis=1) * groups + np.arange(groups)
    values = np.take_along_axis(grid, rows, axis=1)
    order = np.argsort(values, axis=1)
    return np.take_along_axis(rows, order, axis=1), np.take_along_axis(values, order, axis=1)


def polished(
    active: Float64Array, rho: Float64Array, z: Float64Array
) -> tuple[Indices, Float64Array, Float64Array]:
    """Positions kept, multipliers and point of one block: least squares where it stays non-negative."""
    kept = np.flatnonzero(rho > 0.0)
    solution = np.linalg.lstsq(active[kept].T, -z, rcond=DEPENDENT)[0]
    if np.all(solution > 0.0):
        return kept, np.asarray(solution, np.float64), np.asarray(z + solution @ active[kept], np.float64)
    return kept, rho[kept], z + rho[kept] @ active[kept]


def padded(array: NDArray[Any], fill: float, width: int) -> NDArray[Any]:
    """A copy of an (m, k) array with at least ``width`` columns."""
    wide = np.full((array.shape[0], max(width, array.shape[1])), fill, dtype=array.dtype)
    wide[:, : array.shape[1]] = array
    return wide
