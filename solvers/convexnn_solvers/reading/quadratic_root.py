"""Square roots of the matrices of quadratic forms, exact enough where eigenvalues differ by powers of ten.

The smallest eigenvalues of a symmetric matrix come with errors of the rounding of the largest one. A minimum
may be theirs: ``x^T P x - c^T x`` has one of size ``||c||^2 / lambda``, and of ``lambda = 1e-9`` beside 1 a
bound would be wrong in the seventh digit. In the basis of its computed eigenvectors the matrix is almost
diagonal, and there small entries are as accurate as large ones.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from convexnn_solvers.backends import Float64Array
from convexnn_solvers.reading.affine import UnsupportedProblem, shortened, value_of
from convexnn_solvers.reading.loading import to_dense

_Long = NDArray[np.longdouble]

# Relative to the largest eigenvalue: what a convex form may be below zero, what counts as zero, and below
# what an eigenvalue is computed again.
_NEGATIVE, _ZERO, _SMALL = 1e-9, 1e-14, 1e-3
# Numbers are cut into so many slices, of so few bits that sums of products of two are exact.
_SLICES = 3


def quadratic_root(P: Float64Array) -> Float64Array | None:
    """``F`` with ``F^T F = P``, of as many rows as the rank; None if an eigenvalue of ``P`` is negative."""
    symmetric = (P + P.T) / 2.0
    values, vectors = np.linalg.eigh(symmetric)
    top = float(np.max(np.abs(values)))
    if values[0] < -_NEGATIVE * top:
        return None
    kept = values > _ZERO * top
    if not kept.any():
        return np.zeros((1, len(values)))
    if values[kept][0] < _SMALL * top:
        found = _refined(symmetric, vectors[:, kept])
        if found is not None:
            return found
    return np.asarray(np.sqrt(values[kept])[:, None] * vectors[:, kept].T)


def _refined(P: Float64Array, V: Float64Array) -> Float64Array | None:
    """The root from the matrix in the basis ``V``; None where that is not positive definite."""
    inner = _product(V.T, _product(P, V))
    diagonal = np.diag(inner)
    if not np.all(diagonal > 0.0):
        return None
    sizes = np.sqrt(diagonal)
    try:
        lower = np.linalg.cholesky(np.asarray(inner / np.outer(sizes, sizes), dtype=np.float64))
    except np.linalg.LinAlgError:
        return None
    return np.asarray(lower.T @ (sizes.astype(np.float64)[:, None] * V.T))


def _product(A: NDArray[np.floating], B: NDArray[np.floating]) -> _Long:
    """``A @ B`` to the last digit of long numbers: the products of slices are exact (Ozaki et al., 2012)."""
    total = np.zeros((A.shape[0], B.shape[1]), dtype=np.longdouble)
    right = [part.T for part in _sliced(B.T)]
    for a in _sliced(A):
        for b in right:
            total += a @ b
    return total


def _sliced(rows: NDArray[np.floating]) -> list[Float64Array]:
    """Parts that add up to the rows, the leading bits first, all of a row on one grid."""
    bits = (53 - int(np.ceil(np.log2(rows.shape[1] + 1)))) // 2
    left, parts = rows.astype(np.longdouble), list[Float64Array]()
    for _ in range(_SLICES):
        largest = np.max(np.abs(left), axis=1, keepdims=True)
        _, exponents = np.frexp(np.where(largest > 0.0, largest, 1.0))
        grid = np.ldexp(np.ones_like(largest), exponents - bits)
        part = np.rint(left / grid) * grid
        parts.append(part.astype(np.float64))
        left = left - part
    return parts


def root_of_now(matrix: Any, atom: Any) -> Float64Array | None:
    """A root of the matrix's value with as many rows as columns; None as long as a Parameter has no value."""
    if any(parameter.value is None for parameter in matrix.parameters()):
        return None
    rows = root_of(to_dense(value_of(matrix)), atom)
    return np.vstack([rows, np.zeros((rows.shape[1] - rows.shape[0], rows.shape[1]))])


def root_of(P: Float64Array, atom: Any) -> Float64Array:
    """``F`` with ``F^T F = P``, of as many rows as the rank."""
    root = quadratic_root(P)
    if root is None:
        raise UnsupportedProblem(f"{shortened(atom)} is not convex: its matrix has a negative eigenvalue.")
    return root
