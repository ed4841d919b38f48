"""Projections on simplices and on the balls of norms: the domains of conjugates, and by Moreau's identity
the proximal maps, of maxima and norms. Groups lie along one axis of an array, or are the whole of it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from convexnn_solvers.backends import Array, Float64Array

_EPS = float(np.finfo(np.float64).eps)


def rounding(count: int) -> float:
    """How much a sum or a norm of so many float64 numbers, computed in any order, may be off, relatively."""
    return (count + 4) * _EPS


def group_size(shape: tuple[int, ...], axis: int | None) -> int:
    """How many entries a group has."""
    return math.prod(shape) if axis is None else shape[axis]


def within(weight: Any, count: int, hairs: float = 1.0) -> Float64Array:
    """The weights, less what norms of so many entries may be rounded, so many times."""
    return np.asarray(np.asarray(weight, dtype=np.float64) * (1.0 - hairs * rounding(count)))


def spread(groups: Array, axis: int | None, xp: Any) -> Array:
    """One value per group, ready to multiply the groups; a number is left as it is."""
    return groups if axis is None or groups.ndim == 0 else xp.expand_dims(groups, axis=axis)


def first(step: Array, axis: int | None, xp: Any) -> Array:
    """The step of every group, from steps that are equal within groups."""
    if step.ndim == 0:
        return step
    return xp.max(step) if axis is None else xp.max(step, axis=axis)


def evened(rows: Float64Array, axis: int | None) -> Float64Array:
    """The largest factor of every group, for all of it."""
    return np.broadcast_to(np.max(rows, axis=axis, keepdims=True, initial=0.0), rows.shape)


def nearest_on_simplex(v: Array, total: Any, axis: int | None, xp: Any = np) -> Array:
    """The nearest ``u >= 0`` of sum ``total`` (a number, or one per group); Held, Wolfe, Crowder (1974)."""
    rows = _as_rows(v, axis, xp)
    wanted = xp.broadcast_to(xp.reshape(xp.asarray(total, dtype=v.dtype), (-1, 1)), (rows.shape[0], 1))
    moved = rows - _simplex_threshold(rows, wanted, xp)
    found = xp.clip(moved, 0.0, None)
    sums = xp.sum(found, axis=1, keepdims=True)  # exact sums, where rounding left others
    found = found * xp.where(sums > 0.0, wanted / xp.where(sums > 0.0, sums, 1.0), 1.0)
    return _from_rows(found, v, axis, xp)


def to_exact_sum(v: Float64Array, total: Any, axis: int | None) -> Float64Array:
    """The multiple of each group that, added to it, gives it the sum ``total``; sums are exact."""
    rows = _as_rows(v, axis, np)
    wanted = np.broadcast_to(np.reshape(np.asarray(total, dtype=np.float64), (-1,)), (len(rows),))
    left = np.array([math.fsum((w, *(-row))) for row, w in zip(rows, wanted, strict=True)])
    sums = np.sum(rows, axis=1)
    share = np.where(sums > 0.0, left / np.where(sums > 0.0, sums, 1.0), 0.0)
    return np.asarray(_from_rows(rows * share[:, None], v, axis, np), dtype=np.float64)


def _simplex_threshold(rows: Array, total: Array, xp: Any) -> Array:
    """``t`` with ``sum((row - t)_+) = total`` for every row; at total 0 the largest entry."""
    ordered = xp.flip(xp.sort(rows, axis=1), axis=1)
    sums, counts = running_sums(ordered, xp), running_sums(xp.ones_like(ordered), xp)
    candidates = (sums - total) / counts
    return xp.max(candidates, axis=1, keepdims=True)


def running_sums(rows: Array, xp: Any) -> Array:
    """Cumulative sums along the rows."""
    return np.cumsum(rows, axis=1) if isinstance(rows, np.ndarray) else xp.cumulative_sum(rows, axis=1)


def nearest_in_l1_ball(v: Array, radius: Any, axis: int | None, xp: Any = np) -> Array:
    """The nearest point of l1 norm at most ``radius`` (a number, or one per group)."""
    rows = xp.abs(_as_rows(v, axis, xp))
    limit = xp.broadcast_to(xp.reshape(xp.asarray(radius, dtype=v.dtype), (-1, 1)), (rows.shape[0], 1))
    inside = xp.sum(rows, axis=1, keepdims=True) <= limit
    shrink = xp.where(inside, 0.0 * limit, _simplex_threshold(rows, limit, xp))
    size = _from_rows(xp.clip(rows - xp.clip(shrink, 0.0, None), 0.0, None), v, axis, xp)
    return xp.sign(v) * size


def _as_rows(v: Array, axis: int | None, xp: Any) -> Array:
    """The groups as the rows of a matrix."""
    if axis is None:
        return xp.reshape(v, (1, -1))
    moved = xp.moveaxis(v, axis, -1)
    return xp.reshape(moved, (-1, v.shape[axis]))


def _from_rows(rows: Array, like: Array, axis: int | None, xp: Any) -> Array:
    if axis is None:
        return xp.reshape(rows, tuple(like.shape))
    others = tuple(size for k, size in enumerate(like.shape) if k != axis % like.ndim)
    return xp.moveaxis(xp.reshape(rows, (*others, like.shape[axis])), -1, axis)
