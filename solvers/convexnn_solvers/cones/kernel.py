"""What is read from the factors of active rows, in machine code; needs numba."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from convexnn_solvers.compiled import compiled

_Floats = NDArray[np.float64]
_Indices = NDArray[np.intp]


@compiled
def polar_directions(
    unit: _Floats,
    bits: NDArray[np.bool_],
    gates: _Indices,
    blocks: _Indices,
    rows: _Indices,
    rho: _Floats,
    polar: _Floats,
) -> None:
    """``polar[b] = B_b^T rho_b`` for the given blocks b and their gates."""
    for j in range(blocks.size):
        b = blocks[j]
        polar[b] = 0.0
        for a in range(rows.shape[1]):
            i = rows[b, a]
            if i < 0:
                break
            weight = rho[b, a] if bits[gates[j], i] else -rho[b, a]
            for k in range(unit.shape[1]):
                polar[b, k] += weight * unit[i, k]


@compiled
def complete_bases(basis: _Floats, slots: _Indices, counts: _Indices, out: _Floats) -> None:
    """Orthonormal columns ``out[g]`` (d, q) that complete the first ``counts[g]`` rows of
    ``basis[slots[g]]``, as many as are needed; the others stay as they are."""
    d = out.shape[1]
    left, new = np.empty(d), np.empty(d)
    for g in range(slots.size):
        rows, columns, q = basis[slots[g]], out[g], d - counts[g]
        left[:] = 1.0  # squared lengths of what the projection on the complement leaves of unit vectors
        for a in range(d - q):
            for i in range(d):
                left[i] -= rows[a, i] ** 2
        for j in range(q):
            new[:] = 0.0
            new[np.argmax(left)] = 1.0
            for _ in range(2):
                for a in range(d - q):
                    product = _product(rows[a], new)
                    for i in range(d):
                        new[i] -= product * rows[a, i]
                for k in range(j):
                    product = 0.0
                    for i in range(d):
                        product += columns[i, k] * new[i]
                    for i in range(d):
                        new[i] -= product * columns[i, k]
            length = np.sqrt(_product(new, new))
            for i in range(d):
                columns[i, j] = new[i] / length
                left[i] -= columns[i, j] ** 2


@compiled
def _product(a: _Floats, b: _Floats) -> float:
    value = 0.0
    for i in range(a.size):
        value += a[i] * b[i]
    return value
