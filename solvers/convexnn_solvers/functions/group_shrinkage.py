"""The proximal map of weighted group norms in a diagonal metric, which no longer is a mere shrinkage.

For one group with weight ``w`` and a step ``s_i`` of its own for every entry,

    argmin_u  sum_i (u_i - v_i)^2 / (2 s_i)  +  w ||u||   =   a r / (r / s + w),    a = v / s,

is zero iff ``||a|| <= w``, and else ``r = ||u||`` solves ``||a / (r / s + w)|| = 1``. The reciprocal of the
left side is concave in r, so that Newton's method climbs to the root from any smaller r; one step from zero
is where it begins. As in the trust-region problem (More and Sorensen, 1983).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from convexnn_solvers.backends import Array

# Newton steps: on the host until the last one met an error that it squares to rounding, mostly five to eight
# of them; what fewer leave was measured to end solves at gaps of 1e-8. Asking would wait for a device, which
# takes a fixed number.
_MOST, _ON_DEVICES = 50, 8


def shrunk(blocks: Array, weights: Array, steps: Array | float, xp: Any) -> Array:
    """The proximal point of groups (g, h, k) along the second axis.

    ``weights`` (g, k) positive, ``steps`` one number for all entries or (g, h, 1).
    """
    if isinstance(steps, float):
        norms = xp.sqrt(xp.sum(blocks * blocks, axis=1))
        limits = steps * weights
        shrink = xp.where(norms > limits, 1.0 - limits / xp.where(norms > limits, norms, 1.0), 0.0 * norms)
        return blocks * shrink[:, None, :]
    w = weights[:, None, :]
    rates = 1.0 / (steps * w)
    a = blocks * rates
    squares = a * a
    size = xp.sum(squares, axis=1, keepdims=True)
    outside = size > 1.0
    size = xp.where(outside, size, 1.0 + 0.0 * size)
    mean = xp.sum(rates * squares, axis=1, keepdims=True) / size
    r = (xp.sqrt(size) - 1.0) / xp.where(outside, mean, 1.0 + 0.0 * mean)
    on_host = isinstance(blocks, np.ndarray)
    nearly = 1.0 + float(xp.finfo(blocks.dtype).eps) ** 0.5
    for _ in range(_MOST if on_host else _ON_DEVICES):
        divisors = rates * r
        divisors += 1.0
        terms = a / divisors
        terms *= terms
        left = xp.sum(terms, axis=1, keepdims=True)
        terms *= rates
        terms /= divisors
        slope = xp.sum(terms, axis=1, keepdims=True)
        change = left * (xp.sqrt(left) - 1.0)
        r = r + xp.where(outside, change, 0.0 * change) / xp.where(outside, slope, 1.0 + 0.0 * slope)
        if on_host and not np.any(left > nearly):
            break
    divisors = rates * r
    a *= xp.where(outside, r, 0.0 * r)
    divisors += 1.0
    a /= divisors
    return a
