"""Solving the linear systems of the semismooth Newton method by preconditioned conjugate gradients.

For one output the preconditioner is the exact inverse, from the Cholesky factor of the n x n matrix or, when
the active blocks have fewer directions than there are samples, by the identity of Woodbury from the Gram
matrix of the columns ``A_b M_b``, ``M_b M_b^T = J_b``; one or two iterations remain. For several outputs it
ignores their coupling. A factor of an earlier step preconditions later ones while that is cheaper than a
new one. Where gates are many the inverse for their mean, see :mod:`factors`, is made in so much less
time that a few more iterations do not count; when nothing can be factorised, the diagonal remains.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from convexnn_solvers.backends import Float64Array
from convexnn_solvers.gated_programs.features import outer
from convexnn_solvers.gated_programs.fits import balanced
from convexnn_solvers.gated_programs.program import GatedProgram
from convexnn_solvers.newton.factors import (
    Solve,
    apart,
    cholesky,
    from_roots,
    jacobi,
    mean_gates,
    woodbury,
)
from convexnn_solvers.newton.operator import (
    NewtonOperator,
    SharedOperator,
    packed_operator,
    unpacked_operator,
)
from convexnn_solvers.packing import Arrays, Held

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
    many are assumed without any factor, ``usual_iterations`` with one, and ``mean_iterations`` times the root
    of the condition beside the mean of the gates. ``overhead``: of one iteration, in operations.
    """

    memory: float = 2.0e9
    iterations: int = 300
    reuse: float = 0.5
    plain_iterations: float = 300.0
    usual_iterations: float = 10.0
    mean_iterations: float = 2.5
    overhead: float = 2.0e6


@dataclass
class SolveCounts:
    """How much work the Newton systems took."""

    factorisations: int = 0
    iterations: int = 0


class _Attempts:
    """Whether what need not work is tried: after failures in a row not for the next 1, 3, 7, 15 systems."""

    def __init__(self) -> None:
        self.failures = self.resting = 0

    def due(self) -> bool:
        """Whether it is tried now."""
        if self.resting == 0:
            return True
        self.resting -= 1
        return False

    def note(self, worked: bool) -> None:
        """How it went."""
        self.failures = 0 if worked else self.failures + 1
        self.resting = 0 if worked else 2 ** min(self.failures, _MOST_FAILURES) - 1


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
        # From one regularisation of a path to the next so many blocks can come and go that no factor serves.
        self._old, self._means = _Attempts(), _Attempts()

    def solve(self, operator: NewtonOperator, right: Float64Array, rtol: float) -> Float64Array:
        """``x`` with ``||operator(x) - right|| <= rtol ||right||``, or as good as the iteration limit allows.

        On a program with an offset everything happens among the columns of sum zero. The direction is a
        descent direction whenever it is not zero, also when the limit ends the iteration.
        """
        written = self._written_out(operator)
        applied: Operator = operator if written is None else written
        x, most = np.zeros_like(right), self._limits.iterations
        if self._factor is not None and self._similar(operator) and self._old.due():
            affordable = self._limits.reuse * self._factor_work / self._iteration_work(applied)
            x, converged = self._iterate(applied, self._factor, right, x, rtol, min(int(affordable), most))
            self._old.note(converged)
            if converged:
                return x
        affordable = self._iterations_with_means(operator)
        if affordable >= self._limits.mean_iterations and self._means.due():
            means = mean_gates(operator)
            if affordable >= self._limits.mean_iterations * np.sqrt(means.condition):
                factor = apart(self._program, [means.solve(operator.coupling(0))])
                x, converged = self._iterate(operator, factor, right, x, rtol, min(int(affordable), most))
                self._means.note(converged)
                if converged:
                    # An older factor would serve the next system no better than this one.
                    self._factor, self._origin = None, {}
                    return x
        factor = self._refactor(operator, written)
        if operator.pair:  # the factor is exact, and what is left of the conditions shows after the step
            return factor(right)
        x, _ = self._iterate(applied, factor, right, x, rtol, most)
        return x

    def packed(self) -> Arrays:
        """The operator of the latest factor, enough to make it anew, and how attempts have gone."""
        pairs = [(one.failures, one.resting) for one in (self._old, self._means)]
        return {**self._origin, "attempts": np.asarray(pairs)}

    def restore(self, held: Held) -> None:
        """The factor that was there when this was packed."""
        for one, (failures, resting) in zip((self._old, self._means), held["attempts"], strict=True):
            one.failures, one.resting = int(failures), int(resting)
        if "sigma" in held:
            origin = unpacked_operator(self._program, held)
            self._refactor(origin, self._written_out(origin))

    def _similar(self, operator: NewtonOperator) -> bool:
        """Whether the latest factor is one for about the same penalty; else it is no preconditioner."""
        sigma = float(self._origin["sigma"])
        return bool(max(operator.sigma, sigma) <= _SIMILAR * min(operator.sigma, sigma))

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

    def _refactor(self, operator: NewtonOperator, written: SharedOperator | None) -> Solve:
        factor, work = self._new_factor(operator, written)
        # First what the next solve asks of a factor that Ctrl-C leaves behind.
        self._origin = packed_operator(operator)
        self._factor, self._factor_work = factor, work
        self.counts.factorisations += 1
        return factor

    def _iterations_with_means(self, operator: NewtonOperator) -> float:
        """How many iterations with the mean of the gates cost what an exact factor does, the making included.

        Zero where there is none: for several outputs, in cones, and where the identity of Woodbury loses
        too much.
        """
        n, c = operator.diagonal.shape
        d, m = operator.features.width, operator.features.count
        rank = d + m
        if c > 1 or operator.jacobian.free or m == 0 or 2 * rank > n or _uneven(operator.diagonal):
            return 0.0
        _, dense, low_rank = self._costs(operator)
        if not self._fits(2.0 * rank * (n + rank)):
            return 0.0
        making = n * float(rank) ** 2 + rank**3 / 3.0 + 2.0 * n * d * m
        iteration = operator.work + _WAITING * 4.0 * n * rank + self._limits.overhead
        return float((min(dense, low_rank, self._plain(operator)) - making) / iteration)

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
        self,
        operator: Operator,
        factor: Solve,
        right: Float64Array,
        x: Float64Array,
        rtol: float,
        limit: int,
    ) -> tuple[Float64Array, bool]:
        """Conjugate gradients from ``x``, preconditioned by a factor; whether the tolerance was met."""
        goal = rtol * np.linalg.norm(right)
        residual = right - self._centred(operator(x)) if np.any(x) else right.copy()
        direction, rho = np.zeros_like(right), 1.0
        for _ in range(limit):
            if np.linalg.norm(residual) <= goal:
                return x, True
            z = factor(residual)
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
            return apart(self._program, [jacobi(operator, k) for k in range(c)]), 0.0
        if len(ranks) < c:
            solves = [self._first_part(operator, written, dense <= low_rank)]
        elif dense <= low_rank and not operator.jacobian.free:
            matrices = (outer(operator.coupling(k), self._matrix(operator)) for k in range(c))
            solves = [cholesky(H, operator.diagonal[:, k]) for k, H in enumerate(matrices)]
        else:
            solves = [from_roots(operator, k, dense <= low_rank) for k in range(c)]
        return apart(self._program, solves), min(dense, low_rank)

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
        if dense < np.inf and _uneven(operator.diagonal):
            low_rank = np.inf
        return ranks, dense, low_rank

    def _first_part(self, operator: NewtonOperator, written: SharedOperator | None, dense: bool) -> Solve:
        """The inverse of the part that all outputs have, with the mean of their diagonals."""
        h = operator.diagonal.mean(axis=1)
        if dense:
            H = self._matrix(operator) if written is None else written.upper.copy(order="F")
            return cholesky(H, h)
        weights = np.sqrt(operator.sigma * operator.jacobian.shrink)
        return woodbury(operator.features.stacked(weights), h)

    def _matrix(self, operator: NewtonOperator) -> Float64Array:
        """The first part of the matrix, written out."""
        if self._base is None:
            self._base = operator.features.base()
        return operator.first_part(self._base)


def _uneven(diagonal: Float64Array) -> bool:
    """Whether the entries of a diagonal (n, c) are too different to divide by."""
    return bool(np.max(diagonal) > _SPREAD * np.min(diagonal))


def _alike(diagonal: Float64Array) -> bool:
    """Whether the outputs' diagonals (n, c) are close enough for a factor of their mean."""
    return bool(np.all(diagonal.max(axis=1) <= _ALIKE * diagonal.min(axis=1)))
