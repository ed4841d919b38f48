"""The Newton matrix ``diag(h) + sigma A J A^T`` of the semismooth Newton method, as an operator.

``A`` maps blocks to predictions, ``J`` is the Jacobian of the proximal map on its active blocks. With
one output and ``A_b = S_b X``, ``S_b`` the diagonals of the blocks' gates,

    A J A^T = (X X^T) o (S diag(a) S^T) + sum_b (1 - a_b) (A_b t_b)(A_b t_b)^T,

an n x n matrix from two products. Several outputs that share their groups have the first part each, and one
second part in common.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.linalg import blas

from convexnn_solvers.backends import Float64Array
from convexnn_solvers.gated_programs.features import BlockFeatures, GatedFeatures, StoredFeatures
from convexnn_solvers.gated_programs.program import GatedProgram
from convexnn_solvers.newton.blocks import ActiveBlocks, unpacked_blocks
from convexnn_solvers.newton.jacobian import Jacobian, jacobian
from convexnn_solvers.packing import Arrays, Held, below, part


@dataclass(frozen=True, eq=False)
class NewtonOperator:
    """``x -> h o x + sigma A J A^T x`` on (n, c) arrays, by products with the features.

    ``features`` are those of the ``active`` blocks. ``column`` (n, c): its outer product is added. ``pair``:
    whether it is that of a step on the optimality conditions, see :mod:`pairs`.
    """

    features: BlockFeatures
    active: ActiveBlocks
    jacobian: Jacobian
    sigma: float
    diagonal: Float64Array
    column: Float64Array | None = None
    pair: bool = False

    def __call__(self, x: Float64Array) -> Float64Array:
        """The operator applied to ``x``."""
        moved = self.jacobian.apply(self.features.adjoint(x))
        image = np.asarray(self.diagonal * x + self.sigma * self.features.forward(moved))
        return image if self.column is None else image + self.column * float(np.vdot(self.column, x))

    @property
    def work(self) -> float:
        """Floating-point operations of one application."""
        return 2.0 * self.features.work * float(self.diagonal.shape[1])

    def first_part(self, base: Float64Array | None) -> Float64Array:
        """``sigma sum_b a_b A_b A_b^T``, upper triangle, column-major; ``base`` is that of the features."""
        return self.features.gram(self.sigma * self.jacobian.shrink, base)

    def coupling(self, output: int) -> Float64Array:
        """Columns (n, m) whose outer products are the second part of the matrix, for one output."""
        weights = np.sqrt(self.sigma * (1.0 - self.jacobian.shrink))
        return self.beside(self.features.times(self.jacobian.directions[output] * weights), output)

    def beside(self, columns: Float64Array, output: int) -> Float64Array:
        """The columns (n, r), and that of the loss where it has one."""
        return columns if self.column is None else np.column_stack([columns, self.column[:, output]])


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
    program: GatedProgram,
    active: ActiveBlocks,
    features: BlockFeatures,
    sigma: float,
    diagonal: Float64Array,
    column: Float64Array | None = None,
) -> NewtonOperator:
    """The operator of the Newton step; ``features`` are those of the active blocks."""
    return NewtonOperator(features, active, jacobian(program, active), sigma, diagonal, column)


def packed_operator(operator: NewtonOperator) -> Arrays:
    """What :func:`unpacked_operator` needs besides the program."""
    features = operator.features.part
    arrays = {"sigma": np.asarray(operator.sigma), "diagonal": operator.diagonal, "features": features}
    arrays["pair"] = np.asarray(operator.pair)
    if operator.column is not None:
        arrays["column"] = operator.column
    return arrays | below("active", operator.active.packed())


def unpacked_operator(program: GatedProgram, held: Held) -> NewtonOperator:
    """The operator that was packed, of this program or of one with fewer gates."""
    own = held["features"]
    features = GatedFeatures(program.X, own) if program.stored is None else StoredFeatures(own)
    active = unpacked_blocks(part("active", held))
    sigma, column = float(held["sigma"]), held.get("column")
    operator = newton_operator(program, active, features, sigma, held["diagonal"], column)
    return replace(operator, pair=bool(held["pair"]))
