"""Gated maps whose rows are added up afterwards: convolutional networks with sum or average pooling.

``U -> S sum_j (D_j + slope (I - D_j)) X u_j`` for a sparse ``S`` (m, n) with few non-zeros per row, X holding
the patches of all samples as rows. Gates, patches and pooling together are one block ``A_j = S S_j X`` (m, d)
per gate. The blocks have n / m times fewer rows than X, so where they fit into memory they are stored, and
a product reads them once, for all gates, positions and outputs together.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from convexnn_solvers.backends import Array, Backend, Float64Array
from convexnn_solvers.reading.operators import GateArrays
from convexnn_solvers.row_blocks import row_blocks

# Below so many rows per pooled row, storing the blocks gains nothing.
_LEAST_ROWS = 2
# Padding to the longest row of S may at most double the work.
_PADDING = 2.0
# Bytes of stored blocks, on a CPU and on a GPU.
_CPU_BYTES, _GPU_BYTES = 2**28, 2**33
# Entries of one intermediate while the blocks are made.
_ENTRIES = 2**22


@dataclass(frozen=True, eq=False)
class Pooling:
    """Row i of the result is ``sum_k weights[i, k] * row[rows[i, k]]``; both arrays are (m, k)."""

    rows: NDArray[np.intp]
    weights: Float64Array

    @property
    def samples(self) -> int:
        """The number m of pooled rows."""
        return int(self.rows.shape[0])

    def blocks(
        self, X: Float64Array, patterns: NDArray[np.bool_], slope: float, dtype: Any = np.float64
    ) -> Float64Array:
        """``A_j = S (D_j + slope (I - D_j)) X`` for every gate, (m, d, P)."""
        m, k = self.rows.shape
        d, P = X.shape[1], patterns.shape[1]
        result = np.empty((m, d, P), dtype=dtype)
        for part in row_blocks(m, k * max(d, P), _ENTRIES):
            rows = self.rows[part]
            features = (X[rows] * self.weights[part, :, None]).transpose(0, 2, 1)
            pooled = np.matmul(features, patterns[rows].astype(np.float64))
            if slope != 0.0:
                pooled = (1.0 - slope) * pooled + slope * features.sum(axis=2)[:, :, None]
            result[part] = pooled
        return result

    def sizes(self, X: Float64Array) -> Float64Array:
        """Bounds (m,) on the norms of the rows of every ``A_j``, for slopes of at most one."""
        norms = np.sqrt(np.einsum("ij,ij->i", X, X))
        return np.asarray(np.sum(np.abs(self.weights) * norms[self.rows], axis=1))


def pooling_of(matrix: Any) -> Pooling | None:
    """A sparse matrix (m, n) as a pooling; None if it adds up too few rows, or very different numbers."""
    S: Any = sp.csr_array(matrix)
    S.sum_duplicates()
    m, n = S.shape
    counts = np.diff(S.indptr)
    longest = int(counts.max(initial=0))
    if n < _LEAST_ROWS * m or longest * m > _PADDING * S.nnz:
        return None
    filled = np.arange(longest) < counts[:, None]
    rows = np.zeros((m, longest), dtype=np.intp)
    weights = np.zeros((m, longest))
    rows[filled], weights[filled] = S.indices, S.data
    return Pooling(rows, weights)


def storable(pooling: Pooling, d: int, gates: int, backend: Backend) -> bool:
    """Whether the blocks of a pooled map are small enough to be kept."""
    size = stored_bytes(pooling.samples, d, gates, backend)
    return size <= (_CPU_BYTES if str(backend.device) == "cpu" else _GPU_BYTES)


def stored_bytes(samples: int, d: int, gates: int, backend: Backend) -> int:
    """The size of stored blocks."""
    return samples * d * gates * int(backend.dtype.itemsize)


@dataclass(frozen=True, eq=False)
class PooledOperator:
    """``S sum_j (D_j + slope (I - D_j)) X u_j`` for ``U`` (d * outputs, P), from stored blocks."""

    gates: GateArrays
    pooling: Pooling
    outputs: int
    slope: float
    X: Float64Array
    patterns: NDArray[np.bool_]

    @cached_property
    def blocks(self) -> Array:
        """``A_j`` for every gate, (m, d * P)."""
        backend = self.gates.backend
        dtype = np.float32 if backend.dtype.itemsize == 4 else np.float64
        found = self.pooling.blocks(self.X, self.patterns, self.slope, dtype)
        return backend.asarray(found.reshape(self.pooling.samples, -1))

    def forward(self, U: Array) -> Array:
        """(d * outputs, P) -> (m,), or (m, outputs) for several outputs."""
        xp = self.gates.backend.xp
        result = self.blocks @ xp.reshape(U, (self.outputs, -1)).T
        return result[:, 0] if self.outputs == 1 else result

    def adjoint(self, r: Array) -> Array:
        """(m,), or (m, outputs) for several outputs, -> (d * outputs, P)."""
        xp = self.gates.backend.xp
        residual = xp.reshape(r, (self.pooling.samples, self.outputs))
        d = int(self.gates.X.shape[1])
        return xp.reshape(residual.T @ self.blocks, (d * self.outputs, -1))
