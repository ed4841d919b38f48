"""Losses without a gradient: value, subgradient, proximal map, conjugate and its domain side by side.

A loss ``g`` acts on ``q = A x + b`` with a weight as those of :mod:`losses` do; no solver
needs its gradient. The augmented Lagrangian replaces ``sum(weight * g(q))`` by its Moreau envelope, whose
gradient comes from the proximal map. The conjugate is finite on a bounded set, on which
:meth:`Nonsmooth.nearest` projects dual candidates. Balls of norms count as smaller by what their norms may be
rounded, so that no rounding takes a candidate out of them; simplices have no inside, and bounds pay for what
sums miss (:class:`~losses.ThinDomain`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from convexnn_solvers.backends import Array, Float64Array
from convexnn_solvers.functions.norm_balls import (
    evened,
    first,
    group_size,
    nearest_in_l1_ball,
    nearest_on_simplex,
    rounding,
    spread,
    to_exact_sum,
    within,
)
from convexnn_solvers.functions.penalties import GroupNorm, NuclearNorm


@runtime_checkable
class Nonsmooth(Protocol):
    """What a loss without a gradient offers besides value, subgradient and conjugate."""

    def prox(self, q: Array, weight: Array, step: Array, xp: Any) -> Array:
        """``argmin_z sum(weight * g(z)) + sum((z - q)^2 / (2 step))``; steps as :meth:`even` leaves them."""
        ...

    def even(self, rows: Float64Array) -> Float64Array:
        """Scales of the entries, made equal where the proximal map ties entries together."""
        ...


@dataclass(frozen=True, eq=False)
class ProxJacobian:
    """A generalised Jacobian of a proximal map: ``diagonal`` plus the outer product of ``column``, if any."""

    diagonal: Float64Array
    column: Float64Array | None = None


@dataclass(frozen=True, eq=False)
class Face:
    """Subgradients at a point: ``middle`` is one, ``along`` takes any array to a direction to others.

    ``along`` is linear and symmetric, and every direction is the image of an array.
    """

    middle: Float64Array
    along: Callable[[Float64Array], Float64Array]


@runtime_checkable
class Kinked(Protocol):
    """A loss that says where it has many subgradients; certificates then choose among them."""

    def face(self, q: Float64Array, weight: Any, tolerance: float) -> Face:
        """The subgradients at ``q``, differences up to ``tolerance`` times its size counting as none."""
        ...


@dataclass(frozen=True)
class PiecewiseLinear:
    """``g(q) = max(low q, high q)`` entry by entry, ``low <= high``.

    The absolute value is (-1, 1), the hinge ``max(q, 0)`` (0, 1), and the quantile loss of level ``tau``
    (Koenker and Bassett, 1978) (tau - 1, tau).
    """

    low: float = -1.0
    high: float = 1.0
    name: str = "abs"
    quadratic: bool = False
    curvature: float = np.inf

    def value(self, q: Array, weight: Array, xp: Any) -> Array:
        """``sum(weight * max(low q, high q))``."""
        return xp.sum(weight * xp.where(q > 0.0, self.high * q, self.low * q))

    def gradient(self, q: Array, weight: Array, xp: Any) -> Array:
        """A subgradient: the one nearest to zero where there is a choice."""
        middle = min(max(0.0, self.low), self.high)
        at_kink = middle + 0.0 * q
        return weight * xp.where(q > 0.0, self.high, xp.where(q < 0.0, self.low, at_kink))

    def prox(self, q: Array, weight: Array, step: Array, xp: Any) -> Array:
        """``q`` minus its projection on ``step weight [low, high]``."""
        size = step * weight
        return q - xp.minimum(xp.maximum(q, self.low * size), self.high * size)

    def prox_jacobian(self, q: Float64Array, weight: Any, step: float) -> ProxJacobian:
        """The identity off the kinks."""
        size = step * np.asarray(weight)
        return ProxJacobian(np.where((q > self.high * size) | (q < self.low * size), 1.0, 0.0))

    def conjugate(self, v: Float64Array, weight: Any) -> float:
        """Zero for ``weight low <= v <= weight high``, infinite elsewhere."""
        w = np.asarray(weight, dtype=np.float64)
        return np.inf if np.any(v < self.low * w) or np.any(v > self.high * w) else 0.0

    def nearest(self, v: Float64Array, weight: Any) -> Float64Array:
        """``v`` clipped to the domain."""
        w = np.asarray(weight, dtype=np.float64)
        return np.clip(v, self.low * w, self.high * w)

    def face(self, q: Float64Array, weight: Any, tolerance: float) -> Face:
        """Intervals at zero; where several add up, wide ones move more, so that none is left."""
        kink = np.abs(q) <= tolerance * np.max(np.abs(q), initial=0.0)
        slopes = np.where(kink, 0.5 * (self.low + self.high), np.where(q > 0.0, self.high, self.low))
        share = np.sqrt(np.asarray(weight) / (np.max(weight, initial=0.0) or 1.0))
        return Face(np.asarray(weight * slopes), lambda v: np.where(kink, share * v, 0.0))

    def even(self, rows: Float64Array) -> Float64Array:
        """Entries are independent."""
        return rows


@dataclass(frozen=True)
class Norms:
    """Euclidean norms along ``axis`` (``None``: of the whole array); one weight per group."""

    axis: int | None = None
    name: str = "norm"
    quadratic: bool = False
    curvature: float = np.inf

    def value(self, q: Array, weight: Array, xp: Any) -> Array:
        """``sum(weight * norms(q))``."""
        return xp.sum(weight * GroupNorm(self.axis).norms(q, xp))

    def gradient(self, q: Array, weight: Array, xp: Any) -> Array:
        """The weighted unit vectors, zero where the norm is."""
        norms = GroupNorm(self.axis).norms(q, xp)
        scale = weight * xp.where(norms > 0.0, 1.0 / xp.where(norms > 0.0, norms, 1.0), 0.0 * norms)
        return q * spread(scale, self.axis, xp)

    def prox(self, q: Array, weight: Array, step: Array, xp: Any) -> Array:
        """Block soft thresholding."""
        return GroupNorm(self.axis).prox(q, weight * first(step, self.axis, xp), xp)

    def prox_jacobian(self, q: Float64Array, weight: Any, step: float) -> ProxJacobian:
        """For one norm of all entries: ``a I + (1 - a) u u^T``, u the unit vector."""
        norm, limit = float(np.linalg.norm(q)), step * float(weight)
        if norm <= limit:
            return ProxJacobian(np.zeros(q.shape))
        kept = 1.0 - limit / norm
        return ProxJacobian(np.full(q.shape, kept), np.sqrt(1.0 - kept) / norm * q)

    def conjugate(self, v: Float64Array, weight: Any) -> float:
        """Zero where no group's norm, however rounded, exceeds its weight; infinite elsewhere."""
        norms = GroupNorm(self.axis).norms(v, np)
        return np.inf if np.any(norms > within(weight, group_size(v.shape, self.axis))) else 0.0

    def nearest(self, v: Float64Array, weight: Any) -> Float64Array:
        """Every group scaled to norm at most its weight."""
        norms = GroupNorm(self.axis).norms(v, np)
        limit = within(weight, group_size(v.shape, self.axis), 2.0)
        factor = np.minimum(1.0, limit / np.where(norms > 0.0, norms, 1.0))
        return np.asarray(v * spread(factor, self.axis, np), dtype=np.float64)

    def face(self, q: Float64Array, weight: Any, tolerance: float) -> Face:
        """The balls of the groups at zero."""
        norms = np.asarray(GroupNorm(self.axis).norms(q, np))
        zero = spread(norms <= tolerance * np.max(norms, initial=0.0), self.axis, np)
        middle = self.gradient(np.where(zero, 0.0, q), np.asarray(weight), np)
        return Face(middle, lambda v: np.where(zero, v, 0.0))

    def even(self, rows: Float64Array) -> Float64Array:
        """One factor per group."""
        return evened(rows, self.axis)


@dataclass(frozen=True)
class Maximum:
    """The largest entry along ``axis`` (``None``: of the whole array); one weight per group."""

    axis: int | None = None
    name: str = "max"
    quadratic: bool = False
    curvature: float = np.inf

    def value(self, q: Array, weight: Array, xp: Any) -> Array:
        """``sum(weight * max(q))``."""
        return xp.sum(weight * (xp.max(q) if self.axis is None else xp.max(q, axis=self.axis)))

    def gradient(self, q: Array, weight: Array, xp: Any) -> Array:
        """The weight, shared equally between the largest entries."""
        top = xp.max(q) if self.axis is None else xp.max(q, axis=self.axis, keepdims=True)
        hit = xp.where(q == top, 1.0 + 0.0 * q, 0.0 * q)
        counts = xp.sum(hit) if self.axis is None else xp.sum(hit, axis=self.axis, keepdims=True)
        return hit / counts * spread(weight, self.axis, xp)

    def prox(self, q: Array, weight: Array, step: Array, xp: Any) -> Array:
        """``q`` minus its projection on the simplex of sum ``step weight``, by Moreau's identity."""
        return q - nearest_on_simplex(q, weight * first(step, self.axis, xp), self.axis, xp)

    def conjugate(self, v: Float64Array, weight: Any) -> float:
        """Zero on the simplices whose sums are the weights (see :meth:`missed`), infinite elsewhere."""
        totals = np.sum(v, axis=self.axis)
        w = np.asarray(weight, dtype=np.float64)
        outside = bool(np.any(v < 0.0)) or bool(np.any(np.abs(totals - w) > self._slack(v) * w))
        return np.inf if outside else 0.0

    def face(self, q: Float64Array, weight: Any, tolerance: float) -> Face:
        """The simplices of the largest entries."""
        size = np.max(np.abs(q), initial=0.0)
        hit = q >= np.max(q, axis=self.axis, keepdims=True) - tolerance * size
        counts = np.sum(hit, axis=self.axis, keepdims=True)

        def along(v: Float64Array) -> Float64Array:
            means = np.sum(np.where(hit, v, 0.0), axis=self.axis, keepdims=True) / counts
            return np.where(hit, v - means, 0.0)

        return Face(np.where(hit, spread(np.asarray(weight), self.axis, np) / counts, 0.0), along)

    def missed(self, v: Float64Array) -> Float64Array:
        """What the sums of groups may be rounded, entry by entry."""
        return self._slack(v) * np.abs(v)

    def shift(self, v: Float64Array, weight: Any) -> Float64Array:
        """A multiple of each group."""
        return to_exact_sum(v, weight, self.axis)

    def _slack(self, v: Float64Array) -> float:
        return 2.0 * rounding(group_size(v.shape, self.axis))

    def nearest(self, v: Float64Array, weight: Any) -> Float64Array:
        """The projection on the simplices."""
        return np.asarray(nearest_on_simplex(v, weight, self.axis), dtype=np.float64)

    def even(self, rows: Float64Array) -> Float64Array:
        """One factor per group."""
        return evened(rows, self.axis)


@dataclass(frozen=True)
class Supremum:
    """The largest absolute value along ``axis`` (``None``: of the whole array); one weight per group."""

    axis: int | None = None
    name: str = "norm_inf"
    quadratic: bool = False
    curvature: float = np.inf

    def value(self, q: Array, weight: Array, xp: Any) -> Array:
        """``sum(weight * max|q|)``."""
        return Maximum(self.axis).value(xp.abs(q), weight, xp)

    def gradient(self, q: Array, weight: Array, xp: Any) -> Array:
        """The weight, shared equally between the largest entries, with their signs."""
        return xp.sign(q) * Maximum(self.axis).gradient(xp.abs(q), weight, xp)

    def prox(self, q: Array, weight: Array, step: Array, xp: Any) -> Array:
        """``q`` minus its projection on the l1 ball of radius ``step weight``."""
        return q - nearest_in_l1_ball(q, weight * first(step, self.axis, xp), self.axis, xp)

    def prox_jacobian(self, q: Float64Array, weight: Any, step: float) -> ProxJacobian:
        """For one maximum of all entries: those that reach it move together, the others alone."""
        z = self.prox(q, weight, np.asarray(step), np)
        if not np.any(z):
            return ProxJacobian(np.zeros(q.shape))
        cut = np.where(z != q, np.sign(q), 0.0)
        return ProxJacobian(1.0 - np.abs(cut), cut / max(float(np.linalg.norm(cut)), 1.0))

    def conjugate(self, v: Float64Array, weight: Any) -> float:
        """Zero where no group's l1 norm, however rounded, exceeds its weight; infinite elsewhere."""
        sums = np.sum(np.abs(v), axis=self.axis)
        return np.inf if np.any(sums > within(weight, group_size(v.shape, self.axis))) else 0.0

    def nearest(self, v: Float64Array, weight: Any) -> Float64Array:
        """The projection on the l1 balls."""
        limit = within(weight, group_size(v.shape, self.axis), 4.0)
        return np.asarray(nearest_in_l1_ball(v, limit, self.axis), dtype=np.float64)

    def face(self, q: Float64Array, weight: Any, tolerance: float) -> Face:
        """Those of the maximum of the absolute values, with their signs; of a group at zero the l1 ball."""
        signs, found = np.sign(q), Maximum(self.axis).face(np.abs(q), weight, tolerance)
        largest = np.max(np.abs(q), axis=self.axis, keepdims=True)
        zero = largest <= tolerance * np.max(largest, initial=0.0)
        return Face(
            np.where(zero, 0.0, signs * found.middle),
            lambda v: np.where(zero, v, signs * found.along(signs * v)),
        )

    def even(self, rows: Float64Array) -> Float64Array:
        """One factor per group."""
        return evened(rows, self.axis)


@dataclass(frozen=True)
class Nuclear:
    """The sum of the singular values of a matrix, or of every matrix of a stack; one weight per matrix."""

    name: str = "nuclear norm"
    quadratic: bool = False
    curvature: float = np.inf

    def value(self, q: Array, weight: Array, xp: Any) -> Array:
        """``sum(weight * nuclear norms)``."""
        return xp.sum(weight * NuclearNorm().norms(q, xp))

    def gradient(self, q: Array, weight: Array, xp: Any) -> Array:
        """``weight U V^T`` over the non-zero singular values."""
        U, s, Vt = xp.linalg.svd(q, full_matrices=False)
        top = xp.max(s, axis=-1, keepdims=True)
        kept = xp.where(s > 1e-12 * top, 1.0 + 0.0 * s, 0.0 * s)
        return xp.reshape(weight, (*weight.shape, 1, 1)) * ((U * kept[..., None, :]) @ Vt)

    def prox(self, q: Array, weight: Array, step: Array, xp: Any) -> Array:
        """Soft thresholding of the singular values."""
        return NuclearNorm().prox(q, weight * step[..., 0, 0], xp)

    def conjugate(self, v: Float64Array, weight: Any) -> float:
        """Zero where no largest singular value, however rounded, exceeds its weight; infinite elsewhere."""
        top = NuclearNorm().dual_norms(v, np)
        return np.inf if np.any(top > within(weight, sum(v.shape[-2:]))) else 0.0

    def nearest(self, v: Float64Array, weight: Any) -> Float64Array:
        """The singular values clipped at the weight."""
        U, s, Vt = np.linalg.svd(v, full_matrices=False)
        limit = within(weight, sum(v.shape[-2:]), 4.0)
        return np.asarray((U * np.minimum(s, limit[..., None])[..., None, :]) @ Vt, dtype=np.float64)

    def even(self, rows: Float64Array) -> Float64Array:
        """One factor per matrix."""
        return np.broadcast_to(np.max(rows, axis=(-2, -1), keepdims=True), rows.shape)
