"""Every activation pattern of a data set, exactly, and how many there are.

The hyperplanes ``{u : x_i . u = 0}`` cut the space of gates into open cones, the cells; all gates of a cell
have one pattern. The cells are found by inserting one hyperplane after the other. A new hyperplane H cuts
exactly those cells in which it leaves a cell of the *restricted* arrangement ``{H_j meet H : j < i}``, which
lives in one dimension less and is enumerated by the same recursion, down to sorting angles in a plane. The
cost is therefore proportional to the output, no linear program is solved, and every pattern is proved by a
gate strictly inside its cell. Cells come in opposite pairs, so only those on one side of the first
hyperplane are built.

Floating point: everything happens in the coordinates of :mod:`coordinates`, where the rows are spread evenly.
A cell in which no unit vector has a distance above 1e-12 from all hyperplanes counts as rounding: such cells
belong to rows that are parallel, or otherwise dependent, in exact arithmetic.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from convexnn_models import _arrays
from convexnn_models._arrays import Float64Array
from convexnn_models.coordinates import FLAT, Coordinates, unit_rows
from convexnn_models.coordinates import count_patterns as count_patterns
from convexnn_models.gates import Gates
from convexnn_solvers.named_options import checked_options
from convexnn_solvers.row_blocks import row_blocks

Bits = NDArray[np.bool_]

_EPS = float(np.finfo(np.float64).eps)
_CHUNK_ENTRIES = 4_000_000  # of products of cells and rows


@checked_options
def all_gates(X: Any, *, bias: bool = False, max_patterns: int = 1_000_000, progress: bool = False) -> Gates:
    """Every pattern that an open set of gates has on ``X``, the all-zero one included, each exactly once.

    Parameters
    ----------
    X : array (n, d) or (n, K, h)
        Samples, or K patches of each sample, which count as n * K samples in the order of
        ``X.reshape(n * K, h)``.
    bias : bool
        Gates with an offset: a column of ones is appended and the vectors are in R^(d+1).
    max_patterns : int
        Stop, with a ValueError that names the remedy, as soon as there are known to be more. A pattern
        takes n + 8 d bytes.
    progress : bool
        Show a bar (needs tqdm).

    Returns :class:`Gates`: ``patterns`` (n, P), and in ``vectors`` (d, P) for each pattern a unit vector
    inside its cell, as far from the walls as possible (in the coordinates described above): no non-zero row
    of ``X`` is near a tie. Zero rows have the bit of a tie, True. Cells too thin for float64 vectors (rows
    parallel up to rounding) are left out. Raises ValueError for an ``X`` of zero rows only.
    """
    data = _arrays.with_ones(_samples(X), bias)
    limit = _arrays.count(max_patterns, "max_patterns")
    coordinates = Coordinates.of(data)
    rows = coordinates.rows
    _refuse_too_many(rows, limit)
    found = _half_arrangement(rows, limit, progress)
    vectors = _centred(rows, found, progress) @ coordinates.back.T
    vectors /= np.linalg.norm(vectors, axis=1)[:, None]
    vectors, patterns = _proved(data, coordinates.live, vectors, found.bits)
    return Gates(
        np.concatenate([vectors, -vectors]).T,
        np.concatenate([patterns, patterns ^ coordinates.live]).T,
        f"all {2 * len(vectors)} patterns",
    )


@dataclass(frozen=True, eq=False)
class _Cells:
    """Cells on the positive side of the first hyperplane: an inner point (P, r) and the signs (P, m)."""

    points: Float64Array
    bits: Bits


def _half_arrangement(rows: Float64Array, limit: int, progress: bool) -> _Cells:
    """Half of the cells of the hyperplanes orthogonal to ``rows`` (m, r), m, r >= 1."""
    if rows.shape[1] == 1:
        return _Cells(np.sign(rows[:1]), rows[None, :, 0] * rows[0] > 0.0)
    return _restricted(rows, limit, progress)


def _restricted(rows: Float64Array, limit: int | None = None, progress: bool = False) -> _Cells:
    """The same for r >= 2 and any rows; no cells at all if some row vanishes (every cell is too thin)."""
    m, r = rows.shape
    lengths = np.sqrt(np.einsum("ij,ij->i", rows, rows))
    if np.any(lengths <= FLAT):
        return _Cells(np.zeros((0, r)), np.zeros((0, m), dtype=np.bool_))
    if r == 2:
        return _sectors(rows)
    if m == 0:
        return _Cells(np.eye(1, r), np.zeros((1, 0), dtype=np.bool_))
    cells = _Table(rows[0] / lengths[0], m)
    for i in _counted(range(1, m), "hyperplanes", progress):
        cells.insert(rows[: i + 1], lengths[i])
        if limit is not None and 2 * len(cells.points) > limit:
            raise _too_many(m, r, limit)
    return _Cells(cells.points, cells.bits)


class _Table:
    """The cells of the hyperplanes inserted so far, and a 64-bit key of each to find it by its signs."""

    def __init__(self, first: Float64Array, capacity: int) -> None:
        self.points = first[None].copy()
        self.bits = np.ones((1, 1), dtype=np.bool_)
        self._generator = np.random.default_rng(0)
        self._capacity = capacity
        self._weights, self._keys = self._new_keys()

    def insert(self, rows: Float64Array, length: float) -> None:
        """Cut the cells by the hyperplane of the last of ``rows``, whose norm is ``length``."""
        earlier, row = rows[:-1], rows[-1]
        side = self.points @ row > 0.0
        basis = _complement(row / length)
        on_wall = _restricted(earlier @ basis)
        points = on_wall.points @ basis.T
        cut, kept = self._find(on_wall.bits)
        points, bits = points[kept], on_wall.bits[kept]
        steps = _steps(points, earlier, row, length) * np.where(side[cut], 1.0, -1.0)
        moves = steps[:, None] * (row / length)
        self.points[cut] = unit_rows(points + moves)
        self.points = np.concatenate([self.points, unit_rows(points - moves)])
        side = np.concatenate([side, ~side[cut]])
        self._keys = np.concatenate([self._keys, self._keys[cut]]) + side * self._weights[len(rows) - 1]
        self.bits = np.column_stack([np.concatenate([self.bits, bits]), side])

    def _find(self, bits: Bits) -> tuple[NDArray[np.intp], Bits]:
        """The cells with these signs, and which of the signs belong to a cell (to all but thin ones)."""
        order = np.argsort(self._keys)
        while np.any(self._keys[order[1:]] == self._keys[order[:-1]]):
            self._weights, self._keys = self._new_keys()
            order = np.argsort(self._keys)
        wanted = bits @ self._weights[: bits.shape[1]]
        position = np.searchsorted(self._keys, wanted, sorter=order)
        candidates = order[np.minimum(position, order.size - 1)]
        kept = np.all(self.bits[candidates] == bits, axis=1)
        return candidates[kept], kept

    def _new_keys(self) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
        weights = self._generator.integers(1, 2**63, size=self._capacity, dtype=np.uint64)
        return weights, self.bits @ weights[: self.bits.shape[1]]


def _sectors(rows: Float64Array) -> _Cells:
    """In the plane: the sectors between neighbouring lines, by the angle in the middle of each."""
    m = rows.shape[0]
    if m == 0:
        return _Cells(np.eye(1, 2), np.zeros((1, 0), dtype=np.bool_))
    angles = np.sort(np.mod(np.arctan2(rows[:, 0], -rows[:, 1]), np.pi))
    middles = angles + 0.5 * np.diff(angles, append=angles[0] + np.pi)
    points = np.stack([np.cos(middles), np.sin(middles)], axis=1)
    points *= np.where(points @ rows[0] > 0.0, 1.0, -1.0)[:, None]
    distances = points @ rows.T
    # Half the limit, because the middle angle is at least half as far from all lines as the best one.
    thick = np.abs(distances).min(axis=1) > 0.5 * FLAT
    return _Cells(points[thick], distances[thick] > 0.0)


def _steps(points: Float64Array, rows: Float64Array, row: Float64Array, length: float) -> Float64Array:
    """How far to leave the hyperplane of ``row`` for the largest smallest distance from it and ``rows``."""
    slopes = np.abs(rows @ row) / length + length
    steps = np.empty(len(points))
    for part in row_blocks(len(points), len(rows), _CHUNK_ENTRIES):
        steps[part] = np.min(np.abs(points[part] @ rows.T) / slopes, axis=1)
    return steps


def _complement(direction: Float64Array) -> Float64Array:
    """An orthonormal basis (r, r - 1) of what is orthogonal to a unit vector (a Householder reflection)."""
    reflector = direction.copy()
    reflector[0] += np.copysign(1.0, direction[0])
    reflection = np.eye(direction.size) - np.outer(reflector, reflector) / abs(reflector[0])
    return np.asarray(reflection[:, 1:])


def _centred(rows: Float64Array, cells: _Cells, progress: bool) -> Float64Array:
    """For each cell the unit vector with the largest smallest distance from all hyperplanes.

    It is the direction of the shortest u with ``+-rows @ u >= 1``, a least-distance problem, solved as
    non-negative least squares (Lawson and Hanson); the given point stays where rounding spoils that.
    """
    m, r = rows.shape
    points = unit_rows(cells.points)
    system, target = np.ones((r + 1, m)), np.append(np.zeros(r), 1.0)
    for index in _counted(range(len(points)), "vectors", progress):
        signed = np.where(cells.bits[index], 1.0, -1.0)[:, None] * rows
        system[:r] = signed.T
        try:
            weights, _ = nnls(system, target)
        except RuntimeError:  # its iteration limit
            continue
        candidate = signed.T @ weights
        length = float(np.linalg.norm(candidate))
        if length > 0.0 and np.min(signed @ candidate) / length > np.min(signed @ points[index]):
            points[index] = candidate / length
    return points


def _proved(X: Float64Array, live: Bits, vectors: Float64Array, bits: Bits) -> tuple[Float64Array, Bits]:
    """The vectors whose products with the live rows have the signs ``bits`` beyond rounding; the patterns."""
    d = X.shape[1]
    certain = np.empty(len(vectors), dtype=np.bool_)
    for part in row_blocks(len(vectors), X.shape[0], _CHUNK_ENTRIES):
        products = vectors[part] @ X[live].T
        rounding = 2.0 * d * _EPS * (np.abs(vectors[part]) @ np.abs(X[live]).T)
        certain[part] = np.all(np.where(bits[part], products, -products) > rounding, axis=1)
    patterns = np.ones((int(certain.sum()), X.shape[0]), dtype=np.bool_)
    patterns[:, live] = bits[certain]
    return vectors[certain], patterns


def _refuse_too_many(rows: Float64Array, limit: int) -> None:
    """Raise early where random gates already show more than ``limit`` patterns."""
    m, r = rows.shape
    if count_patterns(m, r) <= limit:
        return
    rng = np.random.default_rng(0)
    weights = rng.integers(1, 2**63, size=m, dtype=np.uint64)
    draws = 1000 + limit // 8
    seen = np.zeros(0, dtype=np.uint64)
    while True:
        keys = [seen]
        for part in row_blocks(draws, m, _CHUNK_ENTRIES):
            size = part.stop - part.start
            keys.append((rng.standard_normal((size, r)) @ rows.T > 0.0) @ weights)
        distinct = np.unique(np.concatenate(keys))
        if distinct.size > limit:
            raise _too_many(m, r, limit)
        if distinct.size - seen.size < draws // 2:
            return
        seen = distinct


def _too_many(m: int, rank: int, limit: int) -> ValueError:
    return ValueError(
        f"X has more than max_patterns={limit} activation patterns (up to {count_patterns(m, rank)} for "
        f"{m} non-zero rows of rank {rank}); raise max_patterns, or draw some with sample_gates(X, k)."
    )


def _samples(X: Any) -> Float64Array:
    """(n, d) as it is, (n, K, h) with the patches stacked."""
    array = _arrays.numbers(X, "X")
    if array.ndim == 3:
        array = array.reshape(-1, array.shape[2])
    return _arrays.features(array)


def _counted(items: Iterable[int], name: str, progress: bool) -> Iterable[int]:
    """``items``, with a bar if asked for."""
    if not progress:
        return items
    try:
        tqdm = importlib.import_module("tqdm.auto")
    except ImportError as error:
        raise ImportError("progress=True needs tqdm; pip install tqdm") from error
    bar: Iterable[int] = tqdm.tqdm(items, desc=name)
    return bar
