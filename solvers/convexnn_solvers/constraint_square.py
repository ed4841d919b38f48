"""The squared term of the augmented Lagrangian, as a loss of a constraint's output."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from convexnn_solvers.backends import Array, Float64Array


@dataclass(frozen=True, eq=False)
class ConstraintSquare:
    """``f(s) = 1/2 ||(shift - rows s)_+||^2`` (without clipping for equalities); the weight is ``delta``."""

    shift: Array
    rows: Array
    cone: Literal["zero", "nonneg"]
    name: str = "augmented Lagrangian term"
    quadratic: bool = False

    @property
    def curvature(self) -> float:
        """The largest squared row factor."""
        return float((self.rows * self.rows).max())

    def missing(self, s: Array, xp: Any) -> Array:
        """``shift - rows s``, clipped for inequalities; times ``delta`` these are the next multipliers."""
        short = self.shift - self.rows * s
        return xp.clip(short, 0.0, None) if self.cone == "nonneg" else short

    def value(self, q: Array, weight: Array, xp: Any) -> Array:
        """``weight f(q)``."""
        short = self.missing(q, xp)
        return 0.5 * weight * xp.sum(short * short)

    def gradient(self, q: Array, weight: Array, xp: Any) -> Array:
        """``-weight rows (shift - rows q)_+``."""
        return -weight * self.rows * self.missing(q, xp)

    def bregman(self, new: Array, old: Array, weight: Array, xp: Any) -> Array:
        """The Bregman distance as a sum of squares and products of non-negative numbers."""
        a, b = self.shift - self.rows * new, self.shift - self.rows * old
        if self.cone == "zero":
            return 0.5 * weight * xp.sum((a - b) ** 2)
        before = xp.clip(b, 0.0, None)
        step = xp.clip(a, 0.0, None) - before
        return weight * xp.sum(0.5 * step * step + before * xp.clip(-a, 0.0, None))

    def conjugate(self, v: Float64Array, weight: Any) -> float:
        """``sum(y shift + y^2 / (2 weight))`` for ``y = v / rows``, finite for ``y <= 0`` (or equalities)."""
        y = v / np.asarray(self.rows)
        if self.cone == "nonneg" and np.any(y > 0.0):
            return np.inf
        return float(np.sum(y * np.asarray(self.shift) + y * y / (2.0 * float(weight))))
