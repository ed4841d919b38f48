"""The active-set method for one block after the other, in machine code; needs numba.

Batched NumPy pays for padding and for the few blocks that need many steps; compiled loops keep one
orthonormal basis per block and change it a row at a time. Blocks that meet a dependent row, or too many
steps, are handed back unfinished, with what they have, to the method that can deal with them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np
from numpy.typing import NDArray

_Function = TypeVar("_Function", bound=Callable[..., Any])
_Floats = NDArray[np.float64]
#: A row of booleans (or one of them, which has no common static type).
_Bits = Any


def _compiled(function: _Function) -> _Function:
    """Machine code at the first call, kept on disk for the next process; sums may be reordered."""
    machine_code: Any = numba.njit(cache=True, nogil=True, fastmath={"reassoc", "contract"})(function)
    return cast(_Function, machine_code)


@_compiled
def project_blocks(
    unit: _Floats,
    bits: NDArray[np.bool_],
    points: _Floats,
    tolerance: float,
    dependent: float,
    rows: NDArray[np.intp],
    rho: _Floats,
    projected: _Floats,
    finished: NDArray[np.bool_],
) -> None:
    """Lawson-Hanson for every block, in place.

    ``unit`` (n, d) holds unit (or zero) rows, ``bits`` (m, n) their signs per block, ``points`` (m, d);
    ``rows`` (m, k), padded with -1, and ``rho`` (m, k) are the warm start and the result; ``projected``
    (m, d) and ``finished`` (m,) are results.
    """
    m, d = points.shape
    capacity = min(rows.shape[1], unit.shape[0])
    basis, triangle = np.empty((capacity, d)), np.empty((capacity, capacity))
    x, coefficients = np.empty(capacity), np.empty(capacity)
    for b in range(m):
        finished[b] = _project_one(
            unit, bits[b], points[b], tolerance, dependent, rows[b], rho[b], projected[b],
            basis, triangle, x, coefficients,
        )  # fmt: skip


@_compiled
def _project_one(
    unit: _Floats,
    bits: _Bits,
    z: _Floats,
    tolerance: float,
    dependent: float,
    rows: NDArray[np.intp],
    rho: _Floats,
    u: _Floats,
    basis: _Floats,
    triangle: _Floats,
    x: _Floats,
    coefficients: _Floats,
) -> bool:
    """One block; see :func:`project_blocks`. The scratch arrays may hold anything."""
    capacity = basis.shape[0]
    count = 0
    for a in range(capacity):  # the warm start, without what depends on the rows before
        if rows[a] < 0:
            break
        row, value = rows[a], rho[a]
        if _append(unit[row], bits[row], z, dependent, basis, triangle, coefficients, count):
            rows[count], rho[count] = row, value
            count += 1
    for _ in range(6 * capacity + 30):
        negative = _back_substitute(triangle, coefficients, x, count)
        if negative:
            first = _step_back(rows, rho, x, count)
            kept = first
            for a in range(first, count):
                if rho[a] <= 0.0:
                    continue
                row, value = rows[a], rho[a]
                if not _append(unit[row], bits[row], z, dependent, basis, triangle, coefficients, kept):
                    continue
                rows[kept], rho[kept] = row, value
                kept += 1
            count = kept
            continue
        for a in range(count):
            rho[a] = x[a]
        _residual(z, basis, coefficients, u, count)
        worst, row = _most_violated(unit, bits, u)
        if worst >= -tolerance:
            _close(rows, rho, count)
            return True
        if count == capacity:
            break
        if not _append(unit[row], bits[row], z, dependent, basis, triangle, coefficients, count):
            break
        rows[count], rho[count] = row, 0.0
        count += 1
    _close(rows, rho, count)
    return False


@_compiled
def _close(rows: NDArray[np.intp], rho: _Floats, count: int) -> None:
    """Nothing after the first ``count`` active rows."""
    for a in range(count, rows.size):
        rows[a] = -1
        rho[a] = 0.0


@_compiled
def _append(
    row: _Floats,
    positive: bool,
    z: _Floats,
    dependent: float,
    basis: _Floats,
    triangle: _Floats,
    coefficients: _Floats,
    count: int,
) -> bool:
    """Orthogonalise a signed row twice against the basis and append it; False if it depends on the basis."""
    new = basis[count]
    sign = 1.0 if positive else -1.0
    for i in range(new.size):
        new[i] = sign * row[i]
    for a in range(count):
        triangle[a, count] = 0.0
    for _ in range(2):
        for a in range(count):
            product = 0.0
            for i in range(new.size):
                product += basis[a, i] * new[i]
            triangle[a, count] += product
            for i in range(new.size):
                new[i] -= product * basis[a, i]
    length = 0.0
    for i in range(new.size):
        length += new[i] * new[i]
    length = np.sqrt(length)
    if length < dependent:
        return False
    triangle[count, count] = length
    coefficients[count] = 0.0
    for i in range(new.size):
        new[i] /= length
        coefficients[count] += new[i] * z[i]
    return True


@_compiled
def _back_substitute(triangle: _Floats, coefficients: _Floats, x: _Floats, count: int) -> bool:
    """``x = -R^-1 c``; whether an entry is not positive."""
    negative = False
    for a in range(count - 1, -1, -1):
        value = -coefficients[a]
        for k in range(a + 1, count):
            value -= triangle[a, k] * x[k]
        x[a] = value / triangle[a, a]
        negative = negative or x[a] <= 0.0
    return negative


@_compiled
def _step_back(rows: NDArray[np.intp], rho: _Floats, x: _Floats, count: int) -> int:
    """Move ``rho`` towards ``x`` until the first entry is zero; the position of the first zero."""
    length = 1.0
    for a in range(count):
        if x[a] <= 0.0:
            ratio = rho[a] / (rho[a] - x[a]) if rho[a] > x[a] else 0.0
            length = min(length, ratio)
    first = count
    for a in range(count - 1, -1, -1):
        blocked = x[a] <= 0.0 and rho[a] <= length * (rho[a] - x[a]) * (1.0 + 1e-12)
        rho[a] = 0.0 if blocked else max(rho[a] + length * (x[a] - rho[a]), 0.0)
        if rho[a] <= 0.0:
            first = a
    return first


@_compiled
def _residual(z: _Floats, basis: _Floats, coefficients: _Floats, u: _Floats, count: int) -> None:
    """``u = z - Q^T c``, orthogonalised a second time."""
    for i in range(u.size):
        u[i] = z[i]
    for a in range(count):
        for i in range(u.size):
            u[i] -= coefficients[a] * basis[a, i]
    for a in range(count):
        product = 0.0
        for i in range(u.size):
            product += basis[a, i] * u[i]
        for i in range(u.size):
            u[i] -= product * basis[a, i]


@_compiled
def _most_violated(unit: _Floats, bits: _Bits, u: _Floats) -> tuple[float, int]:
    """The lowest slack and its row."""
    worst, where = 0.0, -1
    for i in range(unit.shape[0]):
        slack = 0.0
        for k in range(u.size):
            slack += unit[i, k] * u[k]
        slack = slack if bits[i] else -slack
        if slack < worst:
            worst, where = slack, i
    return worst, where
