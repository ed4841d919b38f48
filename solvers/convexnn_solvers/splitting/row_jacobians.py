"""Generalised Jacobians of the proximal maps of the rows: a diagonal and a few columns' outer products."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from convexnn_solvers.backends import Float64Array
from convexnn_solvers.functions.constraint_cones import NONNEGATIVE, ZERO
from convexnn_solvers.functions.nonsmooth_losses import Maximum, Nonsmooth, Norms, PiecewiseLinear, Supremum
from convexnn_solvers.splitting.row_terms import ConeRows, LossRows, RowTerms
from convexnn_solvers.splitting.smooth_prox import smooth_slope

# Jacobians of other maps of at most so many entries are made of differences, with this relative step.
_FEW, _DIFFERENCE = 64, 1e-7

Part = tuple[Float64Array, Float64Array]


@dataclass(frozen=True, eq=False)
class RowJacobian:
    """``diag(diagonal) + columns columns^T``, (m,) and (m, k)."""

    diagonal: Float64Array
    columns: Float64Array


def row_jacobian(
    terms: RowTerms, q: Float64Array, y: Float64Array, steps: Float64Array
) -> RowJacobian | None:
    """That of ``terms.prox`` at ``q``, where it is ``y``; None where one of the terms has none."""
    found: list[Part] = []
    parts = zip(terms.terms, *(terms.rows.parts(a) for a in (q, y, steps)), strict=True)
    for term, argument, value, step in parts:
        part = (
            _of_loss(term, argument, value, step)
            if isinstance(term, LossRows)
            else _of_cone(term, argument, value)
        )
        if part is None:
            return None
        found.append(part)
    columns, start = np.zeros((q.size, sum(c.shape[1] for _, c in found))), 0
    row = 0
    for diagonal, own in found:
        columns[row : row + diagonal.size, start : start + own.shape[1]] = own
        row, start = row + diagonal.size, start + own.shape[1]
    return RowJacobian(np.concatenate([np.zeros(0), *(d for d, _ in found)]), columns)


def _of_loss(term: LossRows, q: Float64Array, y: Float64Array, step: Float64Array) -> Part | None:
    loss = term.loss
    if not isinstance(loss, Nonsmooth):
        return _alone(smooth_slope(loss, y, term.weight, step))
    if isinstance(loss, PiecewiseLinear):
        return _alone(np.where(y != 0.0, 1.0, 0.0))
    if isinstance(loss, Maximum):
        return _of_maximum(q - step * term.tilt - y, loss.axis)
    if isinstance(loss, Norms | Supremum) and loss.axis is None:
        bent = loss.prox_jacobian(q - step * term.tilt, term.weight, float(np.max(step)))
        column = np.zeros((q.size, 0)) if bent.column is None else bent.column.reshape(-1, 1)
        return bent.diagonal.ravel(), column
    return _by_differences(lambda p: term.prox(p, step), q, y)


def _of_cone(term: ConeRows, q: Float64Array, y: Float64Array) -> Part | None:
    if term.cone == NONNEGATIVE:
        return _alone(np.where(y > 0.0, 1.0, 0.0))
    if term.cone == ZERO:
        return _alone(0.0 * y)
    return _by_differences(lambda p: term.prox(p, np.ones(p.shape)), q, y)


def _alone(diagonal: Float64Array) -> Part:
    return diagonal.ravel(), np.zeros((diagonal.size, 0))


def _of_maximum(pulled: Float64Array, axis: int | None) -> Part:
    """Entries that reach the maximum of their group, those that are pulled down, move together."""
    numbers = np.arange(pulled.size).reshape(pulled.shape)
    groups = (
        numbers.reshape(1, -1)
        if axis is None
        else np.moveaxis(numbers, axis, -1).reshape(-1, pulled.shape[axis])
    )
    hit = pulled.ravel()[groups] > 0.0
    columns = np.zeros((pulled.size, len(groups)))
    shares = hit / np.sqrt(np.maximum(hit.sum(axis=1, keepdims=True), 1))
    columns[groups, np.arange(len(groups))[:, None]] = shares
    diagonal = np.ones(pulled.size)
    diagonal[groups[hit]] = 0.0
    return diagonal, columns


def _by_differences(
    prox: Callable[[Float64Array], Float64Array], q: Float64Array, y: Float64Array
) -> Part | None:
    """Eigenvectors of the symmetric matrix of differences, of few entries that are tied together."""
    if q.size > _FEW:
        return None
    h = _DIFFERENCE * max(float(np.max(np.abs(q), initial=0.0)), 1e-300)
    matrix = np.empty((q.size, q.size))
    for k in range(q.size):
        moved = q.copy()
        moved.flat[k] += h
        matrix[:, k] = np.ravel((prox(moved) - y) / h)
    values, vectors = np.linalg.eigh(0.5 * (matrix + matrix.T))
    return np.zeros(q.size), vectors * np.sqrt(np.clip(values, 0.0, 1.0))
