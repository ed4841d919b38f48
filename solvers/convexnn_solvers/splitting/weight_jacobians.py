"""Generalised Jacobians of the proximal map of the weights: norms of groups, pattern cones, bounds.

Each is ``E diag(values) E^T`` with orthonormal columns E, few of them where few groups are in use. On a group
whose projection ``p`` on its cones has norm above the threshold t, with Q the projection on the null space of
the active rows, it is ``(1 - t/|p|) Q + (t/|p|) p p^T / |p|^2``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convexnn_solvers.backends import Float64Array
from convexnn_solvers.composite import PenaltyTerm
from convexnn_solvers.cones.memory import complements
from convexnn_solvers.first_order.proximal import ProximalMap, VariableProx
from convexnn_solvers.functions.penalties import GroupNorm
from convexnn_solvers.splitting.dense_rows import DenseRows

Indices = NDArray[np.intp]


@dataclass(frozen=True, eq=False)
class WeightJacobian:
    """``vectors`` (N, r) and ``values`` (r,) in (0, 1]."""

    vectors: Float64Array
    values: Float64Array


@dataclass(frozen=True, eq=False)
class _Piece:
    """Some entries of the point, orthonormal columns on them, and their eigenvalues."""

    entries: Indices
    basis: Float64Array
    values: Float64Array


def has_jacobian(prox: ProximalMap) -> bool:
    """Whether every variable has at most one penalty, entrywise or of disjoint Euclidean norms."""
    return all(
        not block.terms
        or (len(block.terms) == 1 and (block.terms[0].penalty.entrywise or _plain_groups(block)))
        for block in prox.blocks
    )


def weight_jacobian(
    prox: ProximalMap, rows: DenseRows, z: Float64Array, lengths: tuple[float, ...]
) -> WeightJacobian:
    """That of the map at the point where it was called last, with these steps, and gave ``z`` (N,)."""
    pieces: list[_Piece] = []
    start = 0
    for block, value, length in zip(prox.blocks, rows.point(z), lengths, strict=True):
        found = (
            _of_groups(block, value, length) if _plain_groups(block) else iter([_of_entries(block, value)])
        )
        pieces.extend(_Piece(start + p.entries, p.basis, p.values) for p in found)
        start += value.size
    vectors, column = np.zeros((z.size, sum(p.values.size for p in pieces))), 0
    for piece in pieces:
        vectors[piece.entries, column : column + piece.values.size] = piece.basis
        column += piece.values.size
    return WeightJacobian(vectors, np.concatenate([np.zeros(0), *(p.values for p in pieces)]))


def _plain_groups(block: VariableProx) -> bool:
    return (
        len(block.terms) == 1
        and isinstance(block.terms[0].penalty, GroupNorm)
        and block.lower is None
        and block.upper is None
    )


def _of_entries(block: VariableProx, z: Any) -> _Piece:
    """The identity where neither thresholds nor bounds hold an entry."""
    moves = np.ones(z.shape, dtype=np.bool_)
    for term in block.terms:
        reached = np.asarray(term.unview(np.ones(np.shape(term.view(z)))))
        moves &= (reached == 0.0) | (z != 0.0)
    if block.lower is not None:
        moves &= z > block.lower
    if block.upper is not None:
        moves &= z < block.upper
    entries = np.flatnonzero(moves)
    return _Piece(entries, np.eye(entries.size), np.ones(entries.size))


def _of_groups(block: VariableProx, z: Any, length: float) -> Iterator[_Piece]:
    """One piece for every group in use; entries that the penalty does not reach are free."""
    term: PenaltyTerm = block.terms[0]
    norms = np.ravel(term.penalty.norms(term.view(z), np))
    limits = length * np.broadcast_to(np.ravel(term.weight), norms.shape)
    labels = np.ravel(term.unview(term.penalty.groups(np.shape(term.view(z))) + 1.0)).astype(np.intp) - 1
    free = np.flatnonzero(labels < 0)
    if free.size:
        yield _Piece(free, np.eye(free.size), np.ones(free.size))
    used = np.flatnonzero(norms > 0.0)
    order = np.argsort(labels, kind="stable")
    starts = np.searchsorted(labels[order], used)
    ends = np.searchsorted(labels[order], used, side="right")
    bases = _cone_bases(block, z)
    for g, a, b in zip(used, starts, ends, strict=True):
        entries = order[a:b]
        along = np.ravel(z)[entries] / norms[g]
        basis = np.eye(entries.size) if bases is None else _stacked(entries, bases)
        inside = basis.T @ along
        turned = np.linalg.qr(np.column_stack([inside, np.eye(inside.size)]))[0]
        values = np.full(inside.size, norms[g] / (norms[g] + limits[g]))
        values[:1] = 1.0
        yield _Piece(entries, basis @ turned, values)


def _cone_bases(block: VariableProx, z: Any) -> dict[int, tuple[Indices, Float64Array]] | None:
    """For every entry in use its cone's column: the column's entries, and the directions free in its cone."""
    if block.cone is None:
        return None
    columns = block.cone.columns
    places = columns.split(np.arange(z.size).reshape(z.shape)).astype(np.intp)
    used = np.flatnonzero(np.any(np.ravel(z)[places] != 0.0, axis=0))
    rows = block.cone.active_rows(used)
    bases = complements(columns.cones.X, rows)
    counts = places.shape[0] - np.count_nonzero(rows >= 0, axis=1)
    found: dict[int, tuple[Indices, Float64Array]] = {}
    for column, basis, count in zip(used, bases, counts, strict=True):
        own = places[:, column], basis[:, :count]
        found |= dict.fromkeys((int(entry) for entry in own[0]), own)
    return found


def _stacked(entries: Indices, bases: dict[int, tuple[Indices, Float64Array]]) -> Float64Array:
    """The bases of the columns of a group, below and beside each other, for its entries."""
    own = {int(bases[int(e)][0][0]): bases[int(e)] for e in entries if int(e) in bases}
    result = np.zeros((entries.size, sum(basis.shape[1] for _, basis in own.values())))
    row_of = {int(e): k for k, e in enumerate(entries)}
    start = 0
    for places, basis in own.values():
        result[[row_of[int(e)] for e in places], start : start + basis.shape[1]] = basis
        start += basis.shape[1]
    return result
