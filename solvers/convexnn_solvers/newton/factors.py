"""Factors of the Newton matrix, exact ones and preconditioners, each as a function that solves with it.

Without cones the matrix is ``diag(h) + sum_b l_b A_b A_b^T + C C^T`` for l = sigma a and few columns C, see
:mod:`operator`. Around the mean ``M = sum_b l_b A_b / sum_b l_b``

    sum_b l_b A_b A_b^T = (sum_b l_b) M M^T + sum_b l_b (A_b - M)(A_b - M)^T,

and when many gates are active the mean says most of it: it has the rank d of one block, where all of them
have m d. What the blocks differ by enters the preconditioner as half of its diagonal.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.linalg import blas, lapack

from convexnn_solvers.backends import Float64Array
from convexnn_solvers.gated_programs.features import outer
from convexnn_solvers.gated_programs.program import GatedProgram
from convexnn_solvers.newton.operator import NewtonOperator

Solve = Callable[[Float64Array], Float64Array]

# The share of the diagonal of what blocks differ by: its eigenvalues lie on both sides, zero among them.
_SHARE = 0.5


def from_roots(operator: NewtonOperator, output: int, dense: bool) -> Solve:
    """The exact inverse within one output, from the columns ``A_b M_b``."""
    columns, owner = operator.jacobian.roots(output)
    W = operator.beside(operator.features.times(np.sqrt(operator.sigma) * columns, owner), output)
    h = operator.diagonal[:, output]
    return cholesky(outer(W), h) if dense else woodbury(W, h)


@dataclass(frozen=True, eq=False)
class MeanGates:
    """The matrix of the only output in which all active blocks are their mean.

    ``columns`` (n, d) are those of the mean, times the root of the weights' sum; ``spread`` (n,) is the
    diagonal of what the blocks differ by, and ``diagonal`` (n,) that of the operator.
    """

    columns: Float64Array
    spread: Float64Array
    diagonal: Float64Array

    @property
    def condition(self) -> float:
        """About how different the eigenvalues are of the operator beside this."""
        return 1.0 + float(np.mean(self.spread / self.diagonal))

    def solve(self, coupling: Float64Array) -> Solve:
        """Solves with the matrix; ``coupling`` (n, m) is the operator's."""
        return woodbury(np.hstack([self.columns, coupling]), self.diagonal + _SHARE * self.spread)


def mean_gates(operator: NewtonOperator) -> MeanGates:
    """The mean of the operator's blocks; at least one is active."""
    weights = operator.sigma * operator.jacobian.shrink
    total = float(np.sum(weights))
    columns = np.sqrt(total) * operator.features.mean(weights / total)
    spread = operator.features.squares(weights) - np.einsum("ij,ij->i", columns, columns)
    return MeanGates(columns, np.maximum(spread, 0.0), operator.diagonal[:, 0])


def cholesky(H: Float64Array, diagonal: Float64Array) -> Solve:
    """Solves with ``diag(diagonal) + H``; overwrites ``H``."""
    H.flat[:: H.shape[0] + 1] += diagonal
    factor = _factorised(H)
    return lambda right: np.asarray(lapack.dpotrs(factor, right, lower=0)[0])


def woodbury(W: Float64Array, diagonal: Float64Array) -> Solve:
    """Solves with ``diag(diagonal) + W W^T`` through the r x r matrix ``I + W^T diag(diagonal)^-1 W``."""
    if W.shape[1] == 0:
        return lambda right: right / diagonal[:, None]
    scaled = W / diagonal[:, None]
    small = blas.dsyrk(1.0, np.asfortranarray(W / np.sqrt(diagonal)[:, None]), trans=1)
    small.flat[:: small.shape[0] + 1] += 1.0
    factor = _factorised(small)

    def solve(right: Float64Array) -> Float64Array:
        inner = lapack.dpotrs(factor, scaled.T @ right, lower=0)[0]
        return np.asarray(right / diagonal[:, None] - scaled @ inner)

    return solve


def _factorised(H: Float64Array) -> Float64Array:
    """The Cholesky factor of the upper triangle; rounding may ask for a slightly larger diagonal."""
    diagonal = H.diagonal().copy()
    shift = 0.0
    for _ in range(8):
        factor, info = lapack.dpotrf(H, lower=0, clean=0)
        if info == 0:
            return np.asarray(factor)
        shift = max(10.0 * shift, 1e-14 * float(np.max(diagonal)))
        H.flat[:: H.shape[0] + 1] = diagonal + shift
    raise FloatingPointError("the Newton matrix is not positive definite to working precision")


def jacobi(operator: NewtonOperator, output: int) -> Solve:
    """Division by the diagonal of the operator, with free directions counted in full."""
    shrink = operator.jacobian.shrink
    along = operator.features.times(operator.jacobian.directions[output])
    diagonal = operator.diagonal[:, output] + operator.sigma * (
        operator.features.squares(shrink) + along**2 @ (1.0 - shrink)
    )
    if operator.column is not None:
        diagonal = diagonal + operator.column[:, output] ** 2
    return lambda right: right / diagonal[:, None]


def apart(program: GatedProgram, solves: list[Solve]) -> Solve:
    """One solve per output, or one for all; with an offset, the solution among the columns of sum zero."""
    corrections: list[Float64Array] = []
    fit, ones = program.fit, np.ones((program.fit.shape[0], 1))
    offset = ones if fit.scales is None else fit.scales  # what one adds to predictions
    if fit.centred:
        corrections = [_correction(solve, offset) for solve in solves]

    def solve(right: Float64Array) -> Float64Array:
        if len(solves) == 1:
            x = solves[0](right)
        else:
            x = np.hstack([one(right[:, k : k + 1]) for k, one in enumerate(solves)])
        for k in range(x.shape[1] if corrections else 0):
            direction = corrections[min(k, len(corrections) - 1)]
            x[:, k] -= direction * (float(offset[:, 0] @ x[:, k]) / float(offset[:, 0] @ direction))
        return x

    return solve


def _correction(solve: Solve, offset: Float64Array) -> Float64Array:
    """What is added to a solution so that it sums to zero, (n,); the offset where a factor has lost that."""
    found = solve(offset)[:, 0]
    return found if float(offset[:, 0] @ found) > 0.0 else offset[:, 0]
