"""Proximal maps of losses with a gradient, entry by entry."""

from __future__ import annotations

from typing import Any

import numpy as np

from convexnn_solvers.backends import Float64Array
from convexnn_solvers.functions.losses import LogSumExp, Loss

# Halvings of the interval that holds the proximal point: until rounding stops them.
_HALVINGS = 60
# The step, relative to the argument, of the difference that stands for a second derivative.
_DIFFERENCE = 1e-5


def has_smooth_prox(loss: Loss) -> bool:
    """Whether a loss with a gradient acts on every entry alone."""
    return not isinstance(loss, LogSumExp)


def smooth_prox(loss: Loss, q: Float64Array, weight: Any, step: Float64Array) -> Float64Array:
    """``argmin_z w f(z) + (z - q)^2 / (2 step)``, entry by entry.

    In closed form for squares. Else the root of the increasing ``z - q + step w f'(z)``, which lies between
    ``q`` and ``q - step w f'(q)``, by halving that interval.
    """
    if loss.quadratic:
        return np.asarray(q / (1.0 + step * loss.curvature * weight))
    ends = q, q - step * loss.gradient(q, weight, np)
    low, high = np.minimum(*ends), np.maximum(*ends)
    for _ in range(_HALVINGS):
        middle = 0.5 * (low + high)
        above = middle - q + step * loss.gradient(middle, weight, np) > 0.0
        low, high = np.where(above, low, middle), np.where(above, middle, high)
    return np.asarray(0.5 * (low + high))


def smooth_slope(loss: Loss, z: Float64Array, weight: Any, step: Float64Array) -> Float64Array:
    """The derivative of the proximal map where it is ``z``: ``1 / (1 + step w f''(z))``."""
    if loss.quadratic:
        return np.asarray(1.0 / (1.0 + step * loss.curvature * weight + 0.0 * z))
    h = _DIFFERENCE * (1.0 + np.abs(z))
    second = (loss.gradient(z + h, weight, np) - loss.gradient(z - h, weight, np)) / (2.0 * h)
    return np.asarray(1.0 / (1.0 + step * np.clip(second, 0.0, None)))
