"""Losses without a gradient: value, subgradient, proximal map, conjugate and its domain side by side.

A loss ``g`` acts on ``q = A x + b`` with a weight as those of :mod:`convexnn_solvers.losses` do; no solver
needs its gradient. The augmented Lagrangian replaces ``sum(weight * g(q))`` by its Moreau envelope, whose
gradient comes from the proximal map. The conjugate is finite on a bounded set, on which
:meth:`Nonsmooth.nearest` projects dual candidates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from convexnn_solvers.backends import Array, Float64Array


@runtime_checkable
class Nonsmooth(Protocol):
    """What a loss without a gradient offers besides value, subgradient and conjugate."""

    def prox(self, q: Array, weight: Array, step: Array, xp: Any) -> Array:
        """``argmin_z sum(weight * g(z)) + sum((z - q)^2 / (2 step))``; steps as :meth:`even` leaves them."""
        ...

    def even(self, rows: Float64Array) -> Float64Array:
        """Scales of the entries, made equal where the proximal map ties entries together."""
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

    def conjugate(self, v: Float64Array, weight: Any) -> float:
        """Zero for ``weight low <= v <= weight high``, infinite elsewhere."""
        w = np.asarray(weight, dtype=np.float64)
        return np.inf if np.any(v < self.low * w) or np.any(v > self.high * w) else 0.0

    def nearest(self, v: Float64Array, weight: Any) -> Float64Array:
        """``v`` clipped to the domain."""
        w = np.asarray(weight, dtype=np.float64)
        return np.clip(v, self.low * w, self.high * w)

    def even(self, rows: Float64Array) -> Float64Array:
        """Entries are independent."""
        return rows
