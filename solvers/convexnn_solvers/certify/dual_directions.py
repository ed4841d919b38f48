"""Directions in which a dual bound is sought, as arrays: checked, and mixed with one that is feasible."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from convexnn_solvers.backends import Float64Array
from convexnn_solvers.certify.free_variables import Arrays
from convexnn_solvers.composite import DualPoint

Multipliers = tuple[Float64Array | None, ...]

# How much of the feasible direction is mixed in, from what rounding leaves to where little else is left.
_SHARES = tuple(10.0**-k for k in range(12, 0, -1))


def mixtures(direction: DualPoint, anchor: DualPoint) -> Iterator[DualPoint]:
    """``(1 - s) direction + s anchor`` for growing ``s``; a multiplier that is missing counts as zero.

    Convex conditions that both satisfy hold for all, those that only the anchor satisfies for the later ones.
    """
    for share in _SHARES:
        pairs = zip(direction.thetas, anchor.thetas, strict=True)
        thetas = tuple((1.0 - share) * theta + share * other for theta, other in pairs)
        both = zip(direction.multipliers, anchor.multipliers, strict=True)
        yield DualPoint(thetas, tuple(_mixed(mu, other, share) for mu, other in both))


def _mixed(mu: Float64Array | None, other: Float64Array | None, share: float) -> Float64Array | None:
    if mu is None:
        return None if other is None else share * other
    return (1.0 - share) * mu if other is None else (1.0 - share) * mu + share * other


def float64_arrays(arrays: Sequence[Any]) -> Arrays:
    """The arrays in float64."""
    return tuple(np.asarray(a, dtype=np.float64) for a in arrays)


def checked_arrays(values: Sequence[Any], shapes: Sequence[tuple[int, ...]]) -> Multipliers | None:
    """Finite float64 arrays of the given shapes (None stays None), or None when one is not that."""
    if len(values) != len(shapes):
        return None
    checked: list[Float64Array | None] = []
    for value, shape in zip(values, shapes, strict=True):
        if value is None:
            checked.append(None)
            continue
        try:
            array = np.asarray(value, dtype=np.float64)
        except (TypeError, ValueError):
            return None
        if array.shape != shape or not np.isfinite(array).all():
            return None
        checked.append(array)
    return tuple(checked)
