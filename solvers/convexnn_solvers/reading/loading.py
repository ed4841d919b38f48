"""Constants of a formula on the backend: loaded once, shared between the expressions that use them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from convexnn_solvers.backends import Array, Backend, Float64Array
from convexnn_solvers.reading.operators import GateArrays, MemoryPlan, load_gates


@dataclass(frozen=True)
class SparseMatrix:
    """A sparse matrix and its transpose, both in the backend's compressed-row form."""

    matrix: Any
    transpose: Any
    ndim: int = 2

    def transposed(self) -> SparseMatrix:
        """The transpose, without copying."""
        return SparseMatrix(self.transpose, self.matrix)

    def times(self, x: Array) -> Array:
        """The matrix times a dense vector (k,) or matrix (k, p)."""
        if isinstance(x, np.ndarray) or x.ndim == 2:
            return self.matrix @ x
        return (self.matrix @ x[:, None])[:, 0]


def matmul_left(constant: Any, x: Array, xp: Any) -> Array:
    """``constant @ x``."""
    return constant.times(x) if isinstance(constant, SparseMatrix) else xp.matmul(constant, x)


def matmul_right(constant: Any, x: Array, xp: Any) -> Array:
    """``x @ constant``."""
    if not isinstance(constant, SparseMatrix):
        return xp.matmul(x, constant)
    flipped = constant.transposed()
    return flipped.times(x) if x.ndim == 1 else xp.matrix_transpose(flipped.times(xp.matrix_transpose(x)))


def is_sparse(value: Any) -> bool:
    """Whether a constant's value is a SciPy sparse matrix."""
    return bool(sp.issparse(value))


def to_dense(value: Any) -> Float64Array:
    """A constant's value as a dense float64 array."""
    expand: Callable[[], Any] | None = getattr(value, "toarray", None)
    return np.asarray(value if expand is None else expand(), dtype=np.float64)


@dataclass(frozen=True)
class Loader:
    """Brings constants to a backend; gates that several atoms share are brought there once."""

    backend: Backend
    plan: MemoryPlan | None = None
    _gates: dict[tuple[int, int], tuple[Any, Any, GateArrays]] = field(default_factory=dict)

    @property
    def xp(self) -> Any:
        """The backend's array namespace."""
        return self.backend.xp

    def gates(self, X: Float64Array, patterns: NDArray[np.bool_]) -> GateArrays:
        """Features and patterns, shared by all atoms built on the same two arrays."""
        key = (id(X), id(patterns))
        if key not in self._gates:
            self._gates[key] = (X, patterns, load_gates(X, patterns, self.backend, self.plan))
        return self._gates[key][2]

    def dense(self, value: Any) -> Array:
        """A dense array of the backend; sparse values are expanded."""
        return self.backend.asarray(to_dense(value))

    def matrix(self, value: Any) -> Array | SparseMatrix:
        """A matrix factor: sparse values stay sparse."""
        if not is_sparse(value):
            return self.dense(value)
        rows: Any = sp.csr_array(value)
        columns: Any = sp.csr_array(rows.T)
        return SparseMatrix(self._sparse(rows), self._sparse(columns))

    def positions(self, indices: NDArray[np.int64]) -> Array:
        """Integer positions on the backend's device."""
        if self.backend.name == "numpy":
            return indices
        return self.xp.asarray(indices, device=self.backend.device)

    def scatter_add(self, values: Array, positions: Array, size: int) -> Array:
        """Zeros (size,) with ``values`` added at ``positions``, repeated ones included."""
        result = self.backend.zeros((size,))
        if self.backend.name == "numpy":
            np.add.at(result, positions, values)
            return result
        return result.index_add_(0, positions, values)

    def _sparse(self, rows: Any) -> Any:
        if self.backend.name == "numpy":
            return rows.astype(self.backend.dtype)
        torch = self.xp
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta state")
            return torch.sparse_csr_tensor(
                torch.asarray(rows.indptr, dtype=torch.int64),
                torch.asarray(rows.indices, dtype=torch.int64),
                torch.asarray(rows.data),
                size=rows.shape,
                dtype=self.backend.dtype,
                device=self.backend.device,
                check_invariants=True,
            )
