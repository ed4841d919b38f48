"""Solving the linear systems of the semismooth Newton method by preconditioned conjugate gradients.

For one output the preconditioner is the exact inverse, from the Cholesky factor of the n x n matrix or, when
the active blocks have fewer directions than there are samples, by the identity of Woodbury from the Gram
matrix of the columns ``A_b M_b``, ``M_b M_b^T = J_b``; one or two iterations remain. For several outputs it
ignores their coupling. A factor of an earlier step preconditions later ones while that is cheaper than a
new one; when nothing can be factorised, the diagonal remains.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.linalg import blas, lapack

from convexnn_solvers.backends import Float64Array
from convexnn_solvers.block_features import outer
from convexnn_solvers.gated_program import GatedProgram
from convexnn_solvers.newton_fits import balanced
from convexnn_solvers.newton_operator import (
    NewtonOperator,
    SharedOperator,
    packed_operator,
    unpacked_operator,
)
from convexnn_solvers.packing import Arrays, Held

Solve = Callable[[Float64Array], Float64Array]
Operator = NewtonOperator | SharedOperator

# Products with a few vectors are as slow as so many times their operations in products of matrices.
_WAITING = 2.0
# Factors of matrices with penalties that differ by more than this factor have too little in common.
_SIMILAR = 10.0
# So many failures of an old factor in a row count.
_MOST_FAILURES = 4
# The identity of Woodbury divides by the diagonal, whose entries may differ by so much.
_SPREAD = 1e8
# Outputs whose diagonals differ by more than this factor somewhere have no factor in common.
_ALIKE = 1e3


@dataclass(frozen=True)
class SystemLimits:
    """When to factorise what.

    ``memory``: bytes for a factor. ``iterations``: of conjugate gradients for one system. ``reuse``: the
    share of a factorisation's work that iterations with an old factor may cost. ``plain_iterations``: as
    many are assumed without any factor, and ``usual_iterations`` with one. ``overhead``: of one iteration,
    in operations.
    """

    memory: float = 2.0e9
    iterations: int = 300
    reuse: float = 0.5
    plain_iterations: float = 300.0
    usual_iterations: float = 10.0
    overhead: float = 2.0e6


@dataclass
class SolveCounts:
    """How much work the Newton systems took."""

    factorisations: int = 0
    iterations: int = 0


class NewtonSystems:
    """Solves one Newton system after another, keeping the Gram matrix and the latest factor."""

    def __init__(self, program: GatedProgram, limits: SystemLimits | None = None) -> None:
        self.counts = SolveCounts()
        self._program = program
        self._limits = limits or SystemLimits()
        self._base: Float64Array | None = None
        self._factor: Solve | None = None
        self._factor_work = 0.0
        # The operator of the factor, packed: it would keep projections of a solve that has ended.
        self._origin: Arrays = {}
        # Attempts with an old factor that failed in a row, and for how many systems there will be none.
        self._failures = self._resting = 0

    def solve(self, operator: NewtonOperator, right: Float64Array, rtol: float) -> Float64Array:
        """``x`` with ``||operator(x) - right|| <= rtol ||right||``, or as good as the iteration limit allows.

        On a program with an offset everything happens among the columns of sum zero. The direction is a
        descent direction whenever it is not zero, also when the limit ends the iteration.
        """
        written = self._written_out(operator)
        applied: Operator = operator if written is None else written
        x = np.zeros_like(right)
        if self._factor is not None and self._similar(operator) and self._hopeful():
            affordable = self._limits.reuse * self._factor_work / self._iteration_work(applied)
            x, converged = self._iterate(
                applied, right, x, rtol, min(int(affordable), self._limits.iterations)
            )
            self._note(converged)
            if converged:
                return x
        self._refactor(operator, written)
        x, _ = self._iterate(applied, right, x, rtol, self._limits.iterations)
        return x

    def packed(self) -> Arrays:
        """The operator of the latest factor, enough to make it anew, and how old ones have done."""
        if not self._origin:
            return {}
        return {**self._origin, "attempts": np.asarray([self._failures, self._resting])}

    def restore(self, held: Held) -> None:
        """The factor that was there when this was packed."""
        if held:
            self._failures, self._resting = (int(k) for k in held["attempts"])
            origin = unpacked_operator(self._program, held)
            self._refactor(origin, self._written_out(origin))

    def _similar(self, operator: NewtonOperator) -> bool:
        """Whether the latest factor is one for about the same penalty; else it is no preconditioner."""
        sigma = float(self._origin["sigma"])
        return bool(max(operator.sigma, sigma) <= _SIMILAR * min(operator.sigma, sigma))

    def _hopeful(self) -> bool:
        """Whether an old factor is tried: after failures in a row not for the next 1, 3, 7, 15 systems.

        From one regularisation of a path to the next so many blocks come and go that it never serves.
        """
        if self._resting == 0:
            return True
        self._resting -= 1
        return False

    def _note(self, converged: bool) -> None:
        self._failures = 0 if converged else self._failures + 1
        self._resting = 0 if converged else 2 ** min(self._failures, _MOST_FAILURES) - 1

    def latest_pair(self, program: GatedProgram) -> tuple[NewtonOperator, Solve] | None:
        """The operator of the latest factor and solves with it, where it is one of the optimality conditions.

        ``program`` may have other weights than the factor has; blocks of a working set have other numbers.
        """
        if self._factor is None or not self._origin["pair"] or program.gates != self._program.gates:
            return None
        return unpacked_operator(program, self._origin), self._factor

    def can_factorise(self, operator: NewtonOperator) -> bool:
        """Whether the matrix would be factorised exactly."""
        _, dense, low_rank = self._costs(operator)
        return operator.diagonal.shape[1] == 1 and min(dense, low_rank) <= self._plain(operator)

    def _refactor(self, operator: NewtonOperator, written: SharedOperator | None) -> None:
        factor, work = self._new_factor(operator, written)
        # First what the next solve asks of a factor that Ctrl-C leaves behind.
        self._origin = packed_operator(operator)
        self._factor, self._factor_work = factor, work
        self.counts.factorisations += 1

    def _written_out(self, operator: NewtonOperator) -> SharedOperator | None:
        """The matrix written out where several outputs share it and that pays within one system."""
        n, c = operator.diagonal.shape
        m = operator.features.count
        if c == 1 or operator.jacobian.free or not self._fits(n * (3 * n + (c + 1) * m)):
            return None
        dense = 0.5 * operator.features.gram_work + self._limits.usual_iterations * float(
            2 * n * n * c + 4 * n * m * c
        )
        if dense > self._limits.usual_iterations * operator.work:
            return None
        couplings = np.stack([operator.coupling(k) for k in range(c)])
        return SharedOperator(self._matrix(operator), couplings, operator.diagonal)

    def _fits(self, entries: float) -> bool:
        return 8.0 * float(entries) <= self._limits.memory

    def _iteration_work(self, operator: Operator) -> float:
        """Operations of one iteration, those that wait for memory counted as several."""
        n, c = operator.diagonal.shape
        return _WAITING * (operator.work + 2.0 * float(n * n * c)) + self._limits.overhead

    def _iterate(
        self, operator: Operator, right: Float64Array, x: Float64Array, rtol: float, limit: int
    ) -> tuple[Float64Array, bool]:
        """Preconditioned conjugate gradients from ``x``; whether the tolerance was met."""
        assert self._factor is not None
        goal = rtol * np.linalg.norm(right)
        residual = right - self._centred(operator(x)) if np.any(x) else right.copy()
        direction, rho = np.zeros_like(right), 1.0
        for _ in range(limit):
            if np.linalg.norm(residual) <= goal:
                return x, True
            z = self._factor(residual)
            previous, rho = rho, float(np.vdot(residual, z))
            direction = z + (rho / previous) * direction
            image = self._centred(operator(direction))
            curvature = float(np.vdot(direction, image))
            if not curvature > 0.0 or not rho > 0.0:
                return x, False
            x = x + (rho / curvature) * direction
            residual = residual - (rho / curvature) * image
            self.counts.iterations += 1
        return x, bool(np.linalg.norm(residual) <= goal)

    def _centred(self, x: Float64Array) -> Float64Array:
        return balanced(self._program.fit, x)

    def _new_factor(self, operator: NewtonOperator, written: SharedOperator | None) -> tuple[Solve, float]:
        """The cheapest preconditioner that fits into memory, and its operations."""
        c = operator.diagonal.shape[1]
        ranks, dense, low_rank = self._costs(operator)
        if min(dense, low_rank) > self._plain(operator):
            return _apart(self._program, [_jacobi(operator, k) for k in range(c)]), 0.0
        if len(ranks) < c:
            solves = [self._first_part(operator, written, dense <= low_rank)]
        elif dense <= low_rank and not operator.jacobian.free:
            matrices = (outer(operator.coupling(k), self._matrix(operator)) for k in range(c))
            solves = [_cholesky(H, operator.diagonal[:, k]) for k, H in enumerate(matrices)]
        else:
            solves = [_from_roots(operator, k, dense <= low_rank) for k in range(c)]
        return _apart(self._program, solves), min(dense, low_rank)

    def _plain(self, operator: NewtonOperator) -> float:
        """Operations of a solve without any factor."""
        return self._limits.plain_iterations * self._iteration_work(operator)

    def _costs(self, operator: NewtonOperator) -> tuple[list[int], float, float]:
        """Columns of every output's root, and operations of a factor of the matrix and through its root."""
        n, c = operator.diagonal.shape
        m = operator.features.count
        hadamard = not operator.jacobian.free
        # Outputs without cones have one factor in common, which ignores the rank-one parts.
        ranks = (
            [operator.jacobian.rank(k) for k in range(c)]
            if c == 1 or not hadamard or not _alike(operator.diagonal)
            else [m * operator.features.width]
        )
        work = operator.features.gram_work
        dense = sum((work if hadamard else n * n * r) + n**3 / 3.0 for r in ranks)
        low_rank = sum(n * float(r) ** 2 + r**3 / 3.0 for r in ranks)
        if not self._fits(n * (3.0 * n + m) * len(ranks)):
            dense = np.inf
        if not self._fits(sum(2.0 * r * (n + r) for r in ranks)):
            low_rank = np.inf
        if dense < np.inf and np.max(operator.diagonal) > _SPREAD * np.min(operator.diagonal):
            low_rank = np.inf
        return ranks, dense, low_rank

    def _first_part(self, operator: NewtonOperator, written: SharedOperator | None, dense: bool) -> Solve:
        """The inverse of the part that all outputs have, with the mean of their diagonals."""
        h = operator.diagonal.mean(axis=1)
        if dense:
            H = self._matrix(operator) if written is None else written.upper.copy(order="F")
            return _cholesky(H, h)
        weights = np.sqrt(operator.sigma * operator.jacobian.shrink)
        return _woodbury(operator.features.stacked(weights), h)

    def _matrix(self, operator: NewtonOperator) -> Float64Array:
        """The first part of the matrix, written out."""
        if self._base is None:
            self._base = operator.features.base()
        return operator.first_part(self._base)


def _from_roots(operator: NewtonOperator, output: int, dense: bool) -> Solve:
    """The exact inverse within one output, from the columns ``A_b M_b``."""
    columns, owner = operator.jacobian.roots(output)
    W = operator.beside(operator.features.times(np.sqrt(operator.sigma) * columns, owner), output)
    h = operator.diagonal[:, output]
    return _cholesky(outer(W), h) if dense else _woodbury(W, h)


def _cholesky(H: Float64Array, diagonal: Float64Array) -> Solve:
    """Solves with ``diag(diagonal) + H``; overwrites ``H``."""
    H.flat[:: H.shape[0] + 1] += diagonal
    factor = _factorised(H)
    return lambda right: np.asarray(lapack.dpotrs(factor, right, lower=0)[0])


def _woodbury(W: Float64Array, diagonal: Float64Array) -> Solve:
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


def _alike(diagonal: Float64Array) -> bool:
    """Whether the outputs' diagonals (n, c) are close enough for a factor of their mean."""
    return bool(np.all(diagonal.max(axis=1) <= _ALIKE * diagonal.min(axis=1)))


def _jacobi(operator: NewtonOperator, output: int) -> Solve:
    """Division by the diagonal of the operator, with free directions counted in full."""
    shrink = operator.jacobian.shrink
    along = operator.features.times(operator.jacobian.directions[output])
    diagonal = operator.diagonal[:, output] + operator.sigma * (
        operator.features.squares(shrink) + along**2 @ (1.0 - shrink)
    )
    if operator.column is not None:
        diagonal = diagonal + operator.column[:, output] ** 2
    return lambda right: right / diagonal[:, None]


def _apart(program: GatedProgram, solves: list[Solve]) -> Solve:
    """One solve per output, or one for all; with an offset, the solution among the columns of sum zero."""
    corrections: list[Float64Array] = []
    fit, ones = program.fit, np.ones((program.fit.shape[0], 1))
    offset = ones if fit.scales is None else fit.scales  # what one adds to predictions
    if fit.centred:
        corrections = [solve(offset)[:, 0] for solve in solves]

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
