"""The cones of constraints: projection, projection on the dual cone, and violation side by side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from convexnn_solvers.backends import Array, Float64Array


class Cone(Protocol):
    """What solvers and certificates need to know of a cone; implementations are small frozen values."""

    @property
    def name(self) -> str:
        """The word that messages use."""
        ...

    def project(self, s: Array, xp: Any) -> Array:
        """The nearest point of the cone."""
        ...

    def nearest_dual(self, mu: Float64Array) -> Float64Array:
        """The nearest point of the dual cone, in float64."""
        ...

    def violation(self, s: Float64Array) -> float:
        """How far ``s`` is outside, in the units of its entries."""
        ...

    def even(self, rows: Float64Array) -> Float64Array:
        """Scales of the entries, made equal where the projection ties entries together."""
        ...


@dataclass(frozen=True)
class Zero:
    """``s = 0``."""

    name: str = "equality"

    def project(self, s: Array, xp: Any) -> Array:
        """Zero."""
        return 0.0 * s

    def nearest_dual(self, mu: Float64Array) -> Float64Array:
        """Every multiplier is allowed."""
        return mu

    def violation(self, s: Float64Array) -> float:
        """The largest absolute value."""
        return float(np.max(np.abs(s), initial=0.0))

    def even(self, rows: Float64Array) -> Float64Array:
        """Entries are independent."""
        return rows


@dataclass(frozen=True)
class Nonnegative:
    """``s >= 0`` entry by entry."""

    name: str = "inequality"

    def project(self, s: Array, xp: Any) -> Array:
        """The positive part."""
        return xp.clip(s, 0.0, None)

    def nearest_dual(self, mu: Float64Array) -> Float64Array:
        """The positive part: the cone is its own dual."""
        return np.clip(mu, 0.0, None)

    def violation(self, s: Float64Array) -> float:
        """The most negative entry."""
        return float(np.max(-s, initial=0.0))

    def even(self, rows: Float64Array) -> Float64Array:
        """Entries are independent."""
        return rows


ZERO, NONNEGATIVE = Zero(), Nonnegative()
