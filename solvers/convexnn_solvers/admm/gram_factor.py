"""The matrix ``A A^T`` of a gated map, built without A, and the Cholesky factor of ``A A^T + shift I``.

With ``S`` the diagonals of all gates as columns (n, P), ``A A^T = (X X^T) o (S S^T)`` for every output: one
n x n matrix from two products, whatever the number of features times gates, and one factor for all outputs.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import lapack

from convexnn_solvers.backends import Array
from convexnn_solvers.reading.operators import GateArrays
from convexnn_solvers.row_blocks import slices

# Gates whose patterns are held in floating point at a time, fewer if that takes more bytes than the last, and
# rows of the matrix that are made at a time.
_GATES, _LEAST_GATES, _LEAST_ROWS, _PART_BYTES = 1024, 128, 256, 2**24
_POWER_STEPS = 8
_POTRF: dict[str, Any] = {"float32": lapack.spotrf, "float64": lapack.dpotrf}
_POTRS: dict[str, Any] = {"float32": lapack.spotrs, "float64": lapack.dpotrs}


class GramFactor(Protocol):
    """``A A^T`` and a factor of ``A A^T + shift I``; the matrix survives, so that the shift may change."""

    @property
    def largest(self) -> float:
        """An estimate, from below, of the largest eigenvalue of ``A A^T``."""
        ...

    @property
    def mean(self) -> float:
        """The mean of the eigenvalues of ``A A^T``."""
        ...

    @property
    def shift(self) -> float | None:
        """That of the factor; None: there is none."""
        ...

    def factor(self, shift: float) -> None:
        """Factor ``A A^T + shift I``, unless that is done.

        Raises numpy.linalg.LinAlgError where rounding makes it indefinite.
        """
        ...

    def solve(self, rhs: Array) -> Array:
        """``(A A^T + shift I)^{-1} rhs`` for ``rhs`` (n, c), which is left as it is."""
        ...


def gram_factor(gates: GateArrays, slope: float = 0.0, copies: int = 1, centred: bool = False) -> GramFactor:
    """The matrix for these gates, ``copies`` times, on their backend.

    ``centred``: of the map followed by the subtraction of the mean over the samples.
    """
    matrix = _hadamard(gates, slope, copies)
    if centred:
        _centre(matrix, gates)
    if gates.backend.name == "numpy":
        return PackedFactor(matrix)
    return SeparateFactor(gates, matrix)


class PackedFactor:
    """For NumPy: one array holds the matrix above its diagonal and the factor on and below it."""

    def __init__(self, matrix: NDArray[np.floating]) -> None:
        self._array = matrix
        self.shift: float | None = None
        self._diagonal = np.diagonal(matrix).copy()
        self._potrf, self._potrs = _POTRF[matrix.dtype.name], _POTRS[matrix.dtype.name]
        self.mean = float(np.mean(self._diagonal, dtype=np.float64))
        x = np.ones(len(matrix), dtype=matrix.dtype)
        self.largest = 0.0
        for _ in range(_POWER_STEPS if self.mean > 0.0 else 0):
            x = matrix @ (x / np.linalg.norm(x))
            self.largest = float(np.linalg.norm(x))

    def factor(self, shift: float) -> None:
        if shift == self.shift:
            return
        array, n, self.shift = self._array, len(self._array), None
        for rows in slices(n, _LEAST_ROWS):
            array[rows, : rows.start] = array[: rows.start, rows].T
            upper = np.triu(array[rows, rows], 1)
            array[rows, rows] = upper + upper.T
        np.fill_diagonal(array, self._diagonal + array.dtype.type(shift))
        # LAPACK reads columns first: what it calls the upper triangle is our lower one.
        info = self._potrf(array.T, lower=0, overwrite_a=1, clean=0)[1]
        if info != 0:
            raise np.linalg.LinAlgError("the shifted Gram matrix is not positive definite in this precision")
        self.shift = shift

    def solve(self, rhs: Array) -> Array:
        return self._potrs(self._array.T, rhs, lower=0)[0]


class SeparateFactor:
    """For torch: the matrix and the factor beside it."""

    def __init__(self, gates: GateArrays, matrix: Array) -> None:
        self._xp, self._matrix = gates.backend.xp, matrix
        self._diagonal = self._xp.clone(self._xp.diagonal(matrix))
        self._lower: Array | None = None
        self.shift: float | None = None
        x = gates.backend.zeros((int(matrix.shape[0]),)) + 1.0
        for _ in range(_POWER_STEPS):
            x = matrix @ (x / self._xp.clip(self._xp.linalg.vector_norm(x), 1e-30, None))
        largest = self._xp.linalg.vector_norm(x)
        self.largest, self.mean = float(largest), float(self._xp.mean(self._diagonal))

    def factor(self, shift: float) -> None:
        if shift == self.shift:
            return
        self._lower = self.shift = None  # its memory first
        self._xp.diagonal(self._matrix)[:] = self._diagonal + shift
        self._lower, info = self._xp.linalg.cholesky_ex(self._matrix)
        if int(info) != 0:
            raise np.linalg.LinAlgError("the shifted Gram matrix is not positive definite in this precision")
        self.shift = shift

    def solve(self, rhs: Array) -> Array:
        return self._xp.cholesky_solve(rhs, self._lower)


def _hadamard(gates: GateArrays, slope: float, copies: int) -> Array:
    """``copies (X X^T) o (S S^T)``, symmetric to the last bit."""
    xp, X = gates.backend.xp, gates.X
    n, width = int(X.shape[0]), int(gates.bits.shape[1])
    matrix = xp.empty((n, n), dtype=gates.backend.dtype, device=gates.backend.device)
    column = X.dtype.itemsize * n
    height = max(_LEAST_ROWS, gates.block_bytes // column)
    gates_at_once = min(_GATES, max(_LEAST_GATES, _PART_BYTES // column))
    for rows in slices(n, height):
        before = slice(0, rows.stop)
        counts: Array = 0.0
        for part in slices(width, gates_at_once):
            S = _diagonals(gates, before, part, slope)
            if part.start == 0:
                counts = S[rows] @ S.T
            else:
                counts += S[rows] @ S.T
        block = X[rows] @ X[before].T
        block *= counts
        block *= copies
        matrix[rows, before] = block
        matrix[before, rows] = block.T
    return matrix


def _diagonals(gates: GateArrays, rows: slice, part: slice, slope: float) -> Array:
    bits = gates.masks if gates.masks is not None else gates.bits
    mask = gates.backend.asarray(bits[rows, part])
    return mask if slope == 0.0 else (1.0 - slope) * mask + slope


def _centre(matrix: Array, gates: GateArrays) -> None:
    """``C M C`` in place, for ``C = I - 1 1^T / n``."""
    means = gates.backend.xp.mean(matrix, axis=0)
    overall = gates.backend.xp.mean(means)
    for rows in slices(int(matrix.shape[0]), _LEAST_ROWS):
        matrix[rows] -= means
        matrix[rows] -= means[rows, None] - overall
