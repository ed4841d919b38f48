"""The maximum of a concave function of one number, which may be minus infinity on either side."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.optimize import minimize_scalar

_BISECTIONS = 60
_DOUBLINGS = 40


def maximise(value: Callable[[float], float], start: float, top: float) -> float:
    """A maximiser of a concave function on [start, top], finite near one end and maybe -inf further out."""
    if not np.isfinite(top):
        top = 1.0
        for _ in range(_DOUBLINGS):
            if not value(2.0 * top) > value(top):
                break
            top *= 2.0
        top *= 2.0
    if start > 0.0 and not np.isfinite(value(start)):
        return top
    if not np.isfinite(value(top)):
        while top > 2.0 * start and top > 0.0 and not np.isfinite(value(0.5 * top)):
            top *= 0.5  # bisections of a wide interval would end far from a small domain
        low, high = start, top
        for _ in range(_BISECTIONS):
            middle = 0.5 * (low + high)
            low, high = (middle, high) if np.isfinite(value(middle)) else (low, middle)
        top = low
    candidates = [start, top, min(max(1.0, start), top)]
    if top > start:
        found = minimize_scalar(
            lambda s: -value(float(s)), bounds=(start, top), method="bounded", options={"xatol": 1e-10 * top}
        )
        candidates.append(float(found.x))
    return max(candidates, key=value)
