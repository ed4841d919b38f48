"""The active-set method for one block after the other, in machine code; needs numba.

Compiled loops keep one orthonormal basis per block, change it a row at a time, and find it again when the
same block comes back; batched NumPy pays for padding. Blocks that meet a dependent row, or too many steps, go
back unfinished to the method that can deal with them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from convexnn_solvers.compiled import compiled
from convexnn_solvers.cones.factors import ConeFactors

_Floats = NDArray[np.float64]
_Indices = NDArray[np.intp]
_Bits = Any  # a row of booleans, or one of them: there is no common static type
# Of the rows violated at the latest pass over all, one enters while it is violated by this share of what was
# the most then: on what is left, a new pass knows better.
_ENOUGH = 0.1
# A row that keeps more than this share of its length is orthogonal to the basis after one pass.
_ONE_PASS = 0.1


@compiled
def project_blocks(
    unit: _Floats,
    bits: NDArray[np.bool_],
    gates: _Indices,
    points: _Floats,
    blocks: _Indices,
    tolerance: float,
    dependent: float,
    rows: _Indices,
    rho: _Floats,
    projected: _Floats,
    finished: NDArray[np.bool_],
    factors: ConeFactors,
    short: _Floats,
) -> None:
    """Lawson-Hanson for m of B blocks, in place.

    ``unit`` (n, d) holds unit (or zero) rows, ``bits`` (P, n) their signs per gate; ``points`` (m, d) of
    length about one, ``gates`` (m,) and ``blocks`` (m,): which of the B blocks they are. Slacks down to
    ``-tolerance`` count as zero, rows within ``dependent`` of the span of the active ones as dependent.
    ``rows`` (B, k), padded with -1, and ``rho`` (B, k) are the warm start and the result, as are ``factors``;
    ``projected`` (m, d) and ``finished`` (m,) are results. Any ``z + B^T rho`` as short as ``short`` will do.
    """
    violated = np.empty(unit.shape[0], dtype=np.intp)
    for j in range(gates.size):
        b = blocks[j]
        finished[j] = _project_one(
            unit, bits[gates[j]], points[j], tolerance, dependent, b, rows[b], rho[b], projected[j],
            factors, violated, short[j],
        )  # fmt: skip


@compiled
def _project_one(
    unit: _Floats,
    bits: _Bits,
    z: _Floats,
    tolerance: float,
    dependent: float,
    block: int,
    rows: _Indices,
    rho: _Floats,
    u: _Floats,
    factors: ConeFactors,
    violated: _Indices,
    short: float,
) -> bool:
    """One block; see :func:`project_blocks`.

    Rows that enter are sought among those ``violated`` at the latest pass over all rows first; only a pass
    over all rows that finds none ends the search.
    """
    slot = block % factors.block.size
    basis, triangle = factors.basis[slot], factors.triangle[slot]
    coefficients, x = factors.coefficients, factors.solution
    capacity = min(rows.size, unit.shape[0])
    count = 0
    if factors.block[slot] == block:
        while count < capacity and rows[count] >= 0:
            coefficients[count] = _product(basis[count], z)
            count += 1
    else:
        for a in range(capacity):  # the warm start, without what depends on the rows before
            if rows[a] < 0:
                break
            row, value = rows[a], rho[a]
            if _append(unit[row], bits[row], z, dependent, basis, triangle, coefficients, count):
                rows[count], rho[count] = row, value
                count += 1
    factors.block[slot] = block
    known, enough, done, appended = 0, 0.0, False, False
    for _ in range(8 * capacity + 40):
        if _back_substitute(triangle, coefficients, x, count):
            count = _step_back(rows, rho, x, triangle, coefficients, basis, count)
            appended = False
            continue
        for a in range(count):
            rho[a] = x[a]
        if appended:  # u is up to date but for the last row, and to rounding
            for i in range(u.size):
                u[i] -= coefficients[count - 1] * basis[count - 1, i]
        else:
            _residual(z, basis, coefficients, u, count)
        done = _product(u, u) <= short * short
        if done:
            break
        worst, row = _lowest(unit, bits, u, violated, known)
        if worst >= -enough:
            if appended:
                _residual(z, basis, coefficients, u, count)
            known = _all_violated(unit, bits, u, tolerance, factors, slot, block, violated)
            worst, row = _lowest(unit, bits, u, violated, known)
            enough = max(tolerance, -_ENOUGH * worst)
            done = worst >= -tolerance
        if done or count == capacity:
            break
        if not _append(unit[row], bits[row], z, dependent, basis, triangle, coefficients, count):
            break
        rows[count], rho[count] = row, 0.0
        count += 1
        appended = True
    for a in range(count, rows.size):
        rows[a] = -1
        rho[a] = 0.0
    return done


@compiled
def _product(a: _Floats, b: _Floats) -> float:
    value = 0.0
    for i in range(a.size):
        value += a[i] * b[i]
    return value


@compiled
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
    """Orthogonalise a signed row against the basis and append it; False if it depends on the basis."""
    new = basis[count]
    sign = 1.0 if positive else -1.0
    for i in range(new.size):
        new[i] = sign * row[i]
    for a in range(count):
        triangle[a, count] = 0.0
    length, before = 0.0, 1.0
    for _ in range(2):
        for a in range(count):
            product = _product(basis[a], new)
            triangle[a, count] += product
            for i in range(new.size):
                new[i] -= product * basis[a, i]
        length = np.sqrt(_product(new, new))
        if length > _ONE_PASS * before:
            break
        before = length
    if length < dependent:
        return False
    triangle[count, count] = length
    for i in range(new.size):
        new[i] /= length
    coefficients[count] = _product(new, z)
    return True


@compiled
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


@compiled
def _step_back(
    rows: _Indices,
    rho: _Floats,
    x: _Floats,
    triangle: _Floats,
    coefficients: _Floats,
    basis: _Floats,
    count: int,
) -> int:
    """Drop rows whose multipliers in ``x`` are not positive; how many rows are left.

    All of them at once where that is progress, else those that are zero first on the way from ``rho``.
    """
    before, after = 0.0, 0.0
    for a in range(count):
        held, clipped = coefficients[a], coefficients[a]
        for k in range(a, count):
            held += triangle[a, k] * rho[k]
            clipped += triangle[a, k] * max(x[k], 0.0)
        before += held * held
        after += clipped * clipped
    if after < before * (1.0 - 1e-12):
        for a in range(count):
            rho[a] = max(x[a], 0.0)
    else:
        length = 1.0
        for a in range(count):
            if x[a] <= 0.0:
                ratio = rho[a] / (rho[a] - x[a]) if rho[a] > x[a] else 0.0
                length = min(length, ratio)
        for a in range(count):
            blocked = x[a] <= 0.0 and rho[a] <= length * (rho[a] - x[a]) * (1.0 + 1e-12)
            rho[a] = 0.0 if blocked else max(rho[a] + length * (x[a] - rho[a]), 0.0)
    for a in range(count - 1, -1, -1):
        if rho[a] <= 0.0:
            _remove(a, rows, rho, triangle, coefficients, basis, count)
            count -= 1
    return count


@compiled
def _remove(
    position: int,
    rows: _Indices,
    rho: _Floats,
    triangle: _Floats,
    coefficients: _Floats,
    basis: _Floats,
    count: int,
) -> None:
    """Take one row out of the factors: rotations make what follows it triangular again."""
    for k in range(position, count - 1):
        rows[k], rho[k] = rows[k + 1], rho[k + 1]
    for a in range(count):
        for k in range(max(position, a - 1), count - 1):
            triangle[a, k] = triangle[a, k + 1]
    for a in range(position, count - 1):
        length = np.sqrt(triangle[a, a] ** 2 + triangle[a + 1, a] ** 2)
        cosine, sine = triangle[a, a] / length, triangle[a + 1, a] / length
        for k in range(a, count - 1):
            above, below = triangle[a, k], triangle[a + 1, k]
            triangle[a, k] = cosine * above + sine * below
            triangle[a + 1, k] = cosine * below - sine * above
        for i in range(basis.shape[1]):
            above, below = basis[a, i], basis[a + 1, i]
            basis[a, i] = cosine * above + sine * below
            basis[a + 1, i] = cosine * below - sine * above
        above, below = coefficients[a], coefficients[a + 1]
        coefficients[a] = cosine * above + sine * below
        coefficients[a + 1] = cosine * below - sine * above


@compiled
def _residual(z: _Floats, basis: _Floats, coefficients: _Floats, u: _Floats, count: int) -> None:
    """``u = z - Q^T c``, orthogonalised a second time."""
    for i in range(u.size):
        u[i] = z[i]
    for a in range(count):
        for i in range(u.size):
            u[i] -= coefficients[a] * basis[a, i]
    for a in range(count):
        product = _product(basis[a], u)
        for i in range(u.size):
            u[i] -= product * basis[a, i]


@compiled
def _lowest(unit: _Floats, bits: _Bits, u: _Floats, listed: _Indices, known: int) -> tuple[float, int]:
    """The lowest slack among the first ``known`` rows of a list, if below zero, and its row."""
    worst, where = 0.0, -1
    for a in range(known):
        i = listed[a]
        value = _product(unit[i], u)
        value = value if bits[i] else -value
        if value < worst:
            worst, where = value, i
    return worst, where


@compiled
def _all_violated(
    unit: _Floats,
    bits: _Bits,
    u: _Floats,
    tolerance: float,
    factors: ConeFactors,
    slot: int,
    block: int,
    violated: _Indices,
) -> int:
    """List the violated ones among all rows; how many they are.

    Slacks known at another point c bound those at u: for unit rows and t > 0, ``slack(u) >= t slack(c) -
    ||u - t c||``. Rows that this clears are not looked at.
    """
    slack, centre = factors.slack[slot], factors.centre[slot]
    n, near, along, distance = unit.shape[0], unit.shape[0], 0.0, 0.0
    if factors.seen[slot] == block:
        along = _product(u, centre) / max(_product(centre, centre), 1e-300)
        for i in range(u.size):
            distance += (u[i] - along * centre[i]) ** 2
        distance = np.sqrt(distance)
        if along > 0.0:
            near = 0
            for i in range(n):
                near += slack[i] * along < distance
    known = 0
    if near > n // 4:
        np.dot(unit, u, slack)
        centre[:] = u
        factors.seen[slot] = block
        count = 0
        for i in range(n):
            slack[i] = slack[i] if bits[i] else -slack[i]
            count += slack[i] < -tolerance
        for i in range(n):
            if known == count:
                break
            violated[known] = i
            known += slack[i] < -tolerance
        return known
    found = 0
    for i in range(n):
        if found == near:
            break
        violated[found] = i
        found += slack[i] * along < distance
    for a in range(near):
        i = violated[a]
        value = _product(unit[i], u)
        value = value if bits[i] else -value
        if value < -tolerance:
            violated[known] = i
            known += 1
    return known
