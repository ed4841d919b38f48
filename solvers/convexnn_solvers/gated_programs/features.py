"""The matrices ``A_b`` of the blocks of a gated program: all that the Newton method asks of them.

Gated features are ``A_b = S_b X``, n x d matrices of which only X and the diagonals S_b are kept; their Gram
matrices are Hadamard products. Pooled ones (see :mod:`reading.pooled`) are stored.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from scipy.linalg import blas

from convexnn_solvers.backends import Float64Array
from convexnn_solvers.cones.active_sets import Indices
from convexnn_solvers.row_blocks import row_blocks

_CHUNK_ENTRIES = 4_000_000  # of a work array


class BlockFeatures(Protocol):
    """``A_b`` for m blocks; points are (c, d, m), residuals (n, c)."""

    @property
    def width(self) -> int:
        """The number d of columns of a block."""
        ...

    @property
    def count(self) -> int:
        """The number m of blocks."""
        ...

    @property
    def work(self) -> float:
        """Floating-point operations of one product with one output."""
        ...

    @property
    def gram_work(self) -> float:
        """Floating-point operations of :meth:`gram`."""
        ...

    @property
    def part(self) -> Float64Array:
        """What is the blocks' own."""
        ...

    def select(self, blocks: Indices) -> BlockFeatures:
        """Those of some blocks, repeated if need be."""
        ...

    def forward(self, U: Float64Array) -> Float64Array:
        """``sum_b A_b U_b``, (n, c)."""
        ...

    def adjoint(self, r: Float64Array) -> Float64Array:
        """``A_b^T r`` for every block, (c, d, m)."""
        ...

    def times(self, columns: Float64Array, owners: Indices | None = None) -> Float64Array:
        """``A_b v`` for columns v (d, r), each with its own block; (n, r)."""
        ...

    def stacked(self, weights: Float64Array) -> Float64Array:
        """The blocks times ``weights`` (m,) as one matrix (n, d * m), column-major."""
        ...

    def base(self) -> Float64Array | None:
        """What :meth:`gram` needs and what all blocks have in common, to be kept."""
        ...

    def gram(self, weights: Float64Array, base: Float64Array | None) -> Float64Array:
        """``sum_b weights_b A_b A_b^T``, upper triangle, column-major; weights are not negative."""
        ...

    def squares(self, weights: Float64Array) -> Float64Array:
        """The diagonal of :meth:`gram`, (n,)."""
        ...

    def mean(self, shares: Float64Array) -> Float64Array:
        """``sum_b shares_b A_b``, (n, d)."""
        ...


@dataclass(frozen=True, eq=False)
class GatedFeatures:
    """``A_b = diag(slopes[:, b]) X``."""

    X: Float64Array
    slopes: Float64Array

    @property
    def width(self) -> int:
        return int(self.X.shape[1])

    @property
    def count(self) -> int:
        return int(self.slopes.shape[1])

    @property
    def work(self) -> float:
        return 2.0 * float(self.X.size * self.count)

    @property
    def gram_work(self) -> float:
        return 2.0 * float(self.X.shape[0] ** 2 * self.count)

    @property
    def part(self) -> Float64Array:
        return self.slopes

    def select(self, blocks: Indices) -> GatedFeatures:
        return GatedFeatures(self.X, self.slopes[:, blocks])

    def forward(self, U: Float64Array) -> Float64Array:
        out = np.empty((self.X.shape[0], U.shape[0]))
        for k, weights in enumerate(U):
            out[:, k] = np.einsum("ij,ij->i", self.X, self.slopes @ weights.T)
        return out

    def adjoint(self, r: Float64Array) -> Float64Array:
        out = np.empty((r.shape[1], self.width, self.count))
        for k, column in enumerate(r.T):  # scaled samples are smaller than scaled slopes
            out[k] = (self.X * column[:, None]).T @ self.slopes
        return out

    def times(self, columns: Float64Array, owners: Indices | None = None) -> Float64Array:
        out = columns.T @ self.X.T  # the slopes of a block, and the result's columns, are contiguous
        out *= self.slopes.T if owners is None else self.slopes.T[owners]
        return np.asarray(out.T)

    def stacked(self, weights: Float64Array) -> Float64Array:
        W = self.X[:, :, None] * (self.slopes * weights)[:, None, :]
        return np.asfortranarray(W.reshape(self.X.shape[0], -1))

    def base(self) -> Float64Array:
        return np.asfortranarray(self.X @ self.X.T)

    def gram(self, weights: Float64Array, base: Float64Array | None) -> Float64Array:
        H = outer(self.slopes * np.sqrt(weights))
        H *= self.base() if base is None else base
        return H

    def squares(self, weights: Float64Array) -> Float64Array:
        return np.asarray(np.einsum("ij,ij->i", self.X, self.X) * (self.slopes**2 @ weights))

    def mean(self, shares: Float64Array) -> Float64Array:
        return np.asarray(self.X * (self.slopes @ shares)[:, None])


@dataclass(frozen=True, eq=False)
class StoredFeatures:
    """``A_b = blocks[:, :, b]``."""

    blocks: Float64Array

    @property
    def width(self) -> int:
        return int(self.blocks.shape[1])

    @property
    def count(self) -> int:
        return int(self.blocks.shape[2])

    @property
    def work(self) -> float:
        return 2.0 * float(self.blocks.size)

    @property
    def gram_work(self) -> float:
        return float(self.blocks.size) * float(self.blocks.shape[0])

    @property
    def part(self) -> Float64Array:
        return self.blocks

    def select(self, blocks: Indices) -> StoredFeatures:
        return StoredFeatures(self.blocks[:, :, blocks])

    def forward(self, U: Float64Array) -> Float64Array:
        return np.asarray(self._flat @ U.reshape(U.shape[0], -1).T)

    def adjoint(self, r: Float64Array) -> Float64Array:
        return np.asarray(r.T @ self._flat).reshape(r.shape[1], self.width, self.count)

    def times(self, columns: Float64Array, owners: Indices | None = None) -> Float64Array:
        out = np.empty((self.blocks.shape[0], columns.shape[1]))
        for part in row_blocks(columns.shape[1], self.blocks.shape[0] * self.width, _CHUNK_ENTRIES):
            blocks = self.blocks[:, :, part] if owners is None else self.blocks[:, :, owners[part]]
            out[:, part] = np.einsum("ndm,dm->nm", blocks, columns[:, part])
        return out

    def stacked(self, weights: Float64Array) -> Float64Array:
        return np.asfortranarray((self.blocks * weights).reshape(self.blocks.shape[0], -1))

    def base(self) -> None:
        return

    def gram(self, weights: Float64Array, base: Float64Array | None) -> Float64Array:
        return outer(self.stacked(np.sqrt(weights)))

    def squares(self, weights: Float64Array) -> Float64Array:
        return np.asarray(np.einsum("ndm,ndm->nm", self.blocks, self.blocks) @ weights)

    def mean(self, shares: Float64Array) -> Float64Array:
        return np.asarray(self.blocks @ shares)

    @property
    def _flat(self) -> Float64Array:
        return self.blocks.reshape(self.blocks.shape[0], -1)


def outer(columns: Float64Array, start: Float64Array | None = None) -> Float64Array:
    """``start + columns @ columns.T``, upper triangle only, column-major."""
    F = np.asfortranarray(columns)
    if start is None:
        return np.asarray(blas.dsyrk(1.0, F))
    return np.asarray(blas.dsyrk(1.0, F, beta=1.0, c=start, overwrite_c=1))
