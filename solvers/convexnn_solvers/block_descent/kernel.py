"""Sweeps of exact block updates in machine code; needs numba. See :mod:`sweeps` for the mathematics."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from convexnn_solvers.compiled import compiled

_Floats = NDArray[np.float64]


@compiled
def sweep(
    X: _Floats,
    rows: NDArray[np.int32],
    ends: NDArray[np.intp],
    signs: _Floats,
    bases: _Floats,
    curvatures: _Floats,
    sums: _Floats,
    weights: _Floats,
    values: _Floats,
    residual: _Floats,
    mean: _Floats,
    active_only: bool,
) -> None:
    """Update every block once: ``values`` (m, c, d) in the bases, ``residual`` (n, c) and ``mean`` (c,).

    ``rows`` lists the samples of block after block, ``ends`` (m + 1,) where each begins and ends; ``bases``
    (m, d, d) hold eigenvectors in rows, ``curvatures`` (m, d) eigenvalues, ``sums`` (m, d) the sums of the
    block's rows, or zeros without an offset. ``active_only`` passes over blocks that are zero.
    """
    m, c, d = values.shape
    pulled, turned, moved = np.empty((c, d)), np.empty((c, d)), np.empty((c, d))
    powers = np.empty(d)
    for b in range(m):
        before = 0.0
        for k in range(c):
            for i in range(d):
                before += values[b, k, i] * values[b, k, i]
        if active_only and before == 0.0:
            continue
        for k in range(c):
            for i in range(d):
                pulled[k, i] = -mean[k] * sums[b, i]
        for a in range(ends[b], ends[b + 1]):
            row = X[rows[a]]
            for k in range(c):
                r = residual[rows[a], k]
                for i in range(d):
                    pulled[k, i] += row[i] * r
        for i in range(d):
            powers[i] = 0.0
        for k in range(c):
            for i in range(d):
                product = 0.0
                for j in range(d):
                    product += bases[b, i, j] * pulled[k, j]
                turned[k, i] = signs[b] * product + curvatures[b, i] * values[b, k, i]
                powers[i] += turned[k, i] * turned[k, i]
        length = radius(powers, curvatures[b], weights[b], np.sqrt(before))
        if length == 0.0 and before == 0.0:
            continue
        for k in range(c):
            for i in range(d):
                moved[k, i] = 0.0
        for k in range(c):
            for i in range(d):
                new = 0.0
                if length > 0.0:
                    new = turned[k, i] * length / (curvatures[b, i] * length + weights[b])
                change = signs[b] * (new - values[b, k, i])
                values[b, k, i] = new
                for j in range(d):
                    moved[k, j] += bases[b, i, j] * change
        for k in range(c):
            change = 0.0
            for i in range(d):
                change += sums[b, i] * moved[k, i]
            mean[k] -= change / X.shape[0]
        for a in range(ends[b], ends[b + 1]):
            row = X[rows[a]]
            for k in range(c):
                product = 0.0
                for i in range(d):
                    product += row[i] * moved[k, i]
                residual[rows[a], k] -= product


@compiled
def radius(powers: _Floats, curvatures: _Floats, weight: float, start: float) -> float:
    """The zero of ``1/sqrt(f) - 1``, ``f(h) = sum_i powers_i / (curvatures_i h + weight)^2``; 0: none.

    The function is concave and increases, so that Newton's method never passes the zero on its left.
    """
    total, steepest = 0.0, 0.0
    for i in range(powers.size):
        total += powers[i]
        steepest = max(steepest, curvatures[i])
    if total <= weight * weight or steepest <= 0.0:
        return 0.0
    least = (np.sqrt(total) - weight) / steepest
    h: float = max(start, least)
    for _ in range(50):
        f, slope = 0.0, 0.0
        for i in range(powers.size):
            t = curvatures[i] * h + weight
            share = powers[i] / (t * t)
            f += share
            slope += share * curvatures[i] / t
        if slope <= 0.0:
            break
        change = f * (1.0 - np.sqrt(f)) / slope
        h = max(h - change, least)
        if abs(change) <= 1e-14 * h:
            break
    return h
