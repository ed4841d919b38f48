"""Samples whose pattern cones are hard on projections."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]


def repeated_rows(rng: np.random.Generator) -> Float:
    """Equal, opposite and zero rows."""
    X = rng.standard_normal((12, 4))
    return np.vstack([X, X, -2.0 * X, np.zeros((3, 4))])


def bad_scales(rng: np.random.Generator) -> Float:
    """Rows between 1e-9 and 1e9."""
    return rng.standard_normal((30, 5)) * np.power(10.0, rng.uniform(-9, 9, size=(30, 1)))


AWKWARD: dict[str, Float] = {
    "repeated and zero rows": repeated_rows(np.random.default_rng(1)),
    "rank-deficient": np.random.default_rng(2).standard_normal((40, 2))
    @ np.random.default_rng(3).standard_normal((2, 5)),
    "fewer samples than features": np.random.default_rng(4).standard_normal((4, 9)),
    "bad scales": bad_scales(np.random.default_rng(5)),
    "one feature": np.random.default_rng(7).standard_normal((9, 1)),
}
