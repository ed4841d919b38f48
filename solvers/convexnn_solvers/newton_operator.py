"""The Newton matrix ``diag(h) + sigma A J A^T`` of the semismooth Newton method, as an operator.

``A`` maps blocks to predictions, ``J`` is the Jacobian of the proximal map on its active blocks. With
``S_b`` the diagonals of the blocks' gates and one output,

    A J A^T = (X X^T) o (S diag(a) S^T) + sum_b (1 - a_b) (S_b X t_b)(S_b X t_b)^T,

an n x n matrix from two products. Several outputs that share their groups have the first part each, and one
second part in common.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import blas

from convexnn_solvers.backends import Float64Array
from convexnn_solvers.gated_program import GatedProgram, forward_columns
from convexnn_solvers.newton_blocks import ActiveBlocks, Jacobian, jacobian


@dataclass(frozen=True, eq=False)
class NewtonOperator:
    """``x -> h o x + sigma A J A^T x`` on (n, c) arrays, by products with the features."""

    X: Float64Array
    slopes: Float64Array
    jacobian: Jacobian
    sigma: float
    diagonal: Float64Array

    def __call__(self, x: Float64Array) -> Float64Array:
        """The operator applied to ``x``."""
        products = np.stack([self.X.T @ (self.slopes * column[:, None]) for column in x.T])
        moved = self.jacobian.apply(products)
        return self.diagonal * x + self.sigma * forward_columns(self.X, self.slopes, moved)

    @property
    def work(self) -> float:
        """Floating-point operations of one application."""
        return 4.0 * float(self.X.size * self.slopes.shape[1] * self.diagonal.shape[1])

    def hadamard(self, gram: Float64Array) -> Float64Array:
        """``sigma (X X^T) o (S diag(a) S^T)``, upper triangle, column-major; ``gram`` is ``X X^T``."""
        H = outer(self.slopes * np.sqrt(self.sigma * self.jacobian.shrink))
        H *= gram
        return H

    def coupling(self, output: int) -> Float64Array:
        """Columns (n, m) whose outer products are the second part of the matrix, for one output."""
        weights = np.sqrt(self.sigma * (1.0 - self.jacobian.shrink))
        return np.asarray((self.X @ (self.jacobian.directions[output] * weights)) * self.slopes)


@dataclass(frozen=True, eq=False)
class SharedOperator:
    """The same operator for several outputs without cones, with the first part of the matrix written out.

    ``upper`` (n, n) is that part, one for all outputs; ``couplings`` (c, n, m) make the second part.
    """

    upper: Float64Array
    couplings: Float64Array
    diagonal: Float64Array

    def __call__(self, x: Float64Array) -> Float64Array:
        """The operator applied to ``x``."""
        first = blas.dsymm(1.0, self.upper, np.asfortranarray(x))
        along = np.einsum("knm,nk->m", self.couplings, x)
        return np.asarray(self.diagonal * x + first + (self.couplings @ along).T)

    @property
    def work(self) -> float:
        """Floating-point operations of one application."""
        n, c = self.diagonal.shape
        return float(2 * n * n * c + 4 * self.couplings.size)


def newton_operator(
    program: GatedProgram, active: ActiveBlocks, slopes: Float64Array, sigma: float, diagonal: Float64Array
) -> NewtonOperator:
    """The operator of the Newton step; ``slopes`` are the diagonals (n, m) of the active blocks."""
    return NewtonOperator(program.X, slopes, jacobian(program, active), sigma, diagonal)


def outer(columns: Float64Array, start: Float64Array | None = None) -> Float64Array:
    """``start + columns @ columns.T``, upper triangle only, column-major."""
    F = np.asfortranarray(columns)
    if start is None:
        return np.asarray(blas.dsyrk(1.0, F))
    return np.asarray(blas.dsyrk(1.0, F, beta=1.0, c=start, overwrite_c=1))
