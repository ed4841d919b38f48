"""A loss plus a linear term of the same argument, which moves the domain of its conjugate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from convexnn_solvers.backends import Array, Float64Array
from convexnn_solvers.functions.losses import Loss, ThinDomain


@dataclass(frozen=True, eq=False)
class Tilted:
    """``w f(q) + <tilt, q>``: a loss with a linear term of the same argument, as in cross-entropy."""

    loss: Loss
    tilt: Array

    @property
    def name(self) -> str:
        """The word that messages use."""
        return self.loss.name

    @property
    def quadratic(self) -> bool:
        """A linear term changes no curvature."""
        return self.loss.quadratic

    @property
    def curvature(self) -> float:
        """A linear term changes no curvature."""
        return self.loss.curvature

    def value(self, q: Array, weight: Array, xp: Any) -> Array:
        """``sum(weight * f(q)) + <tilt, q>``."""
        return self.loss.value(q, weight, xp) + xp.sum(self.tilt * q)

    def gradient(self, q: Array, weight: Array, xp: Any) -> Array:
        """The loss's gradient plus the tilt."""
        return self.loss.gradient(q, weight, xp) + self.tilt

    def conjugate(self, v: Float64Array, weight: Any) -> float:
        """The loss's conjugate at ``v - tilt``; for NumPy tilts."""
        moved = v - np.asarray(self.tilt, dtype=np.float64)
        if isinstance(self.loss, ThinDomain):  # what only the tilt's digits keep outside is inside
            inside = self.loss.nearest(moved, weight)
            moved = inside if np.all(np.abs(inside - moved) <= self.missed(v)) else moved
        return self.loss.conjugate(moved, weight)

    def missed(self, v: Float64Array) -> Float64Array:
        """As the loss's, and the rounding of the difference of ``v`` and the tilt."""
        tilt = np.asarray(self.tilt, dtype=np.float64)
        if not isinstance(self.loss, ThinDomain):
            return np.zeros_like(v)
        return self.loss.missed(v - tilt) + self.loss.missed(tilt + 0.0 * v)

    def shift(self, v: Float64Array, weight: Any) -> Float64Array:
        """To the point that :meth:`conjugate` takes instead of ``v - tilt``, and then as the loss's."""
        if not isinstance(self.loss, ThinDomain):
            return np.zeros_like(v)
        tilt = np.asarray(self.tilt, dtype=np.float64)
        moved = v - tilt
        back = moved - v
        lost = (v - (moved - back)) - (tilt + back)  # v - tilt = moved + lost without rounding (Knuth)
        inside = self.loss.nearest(moved, weight)
        return np.asarray((inside - moved) - lost + self.loss.shift(inside, weight), dtype=np.float64)

    def nearest(self, v: Float64Array, weight: Any) -> Float64Array:
        """The shifted domain's nearest point; for NumPy tilts."""
        tilt = np.asarray(self.tilt, dtype=np.float64)
        return np.asarray(tilt + self.loss.nearest(v - tilt, weight), dtype=np.float64)
