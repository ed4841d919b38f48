"""Exact minimisation over one block of a gated program after the other.

With the other blocks fixed, and r the residual without block b, block b minimises

    1/2 ||r - s_b S_b X U_b||_F^2 + tau_b ||U_b||_F.

In the eigenvectors Q of ``X^T S_b^2 X = Q diag(e) Q^T`` the minimum is ``c_i h / (e_i h + tau_b)`` with
``c = Q^T s_b X^T S_b r`` and h = ||U_b|| the zero of one concave function of one variable, or zero if
``||c|| <= tau_b``. With a free offset everything is projected on the vectors of sum zero: the residual is
kept as it is, beside its mean. Huber's loss has one more block, its outliers, with a minimum in closed form.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from convexnn_solvers.backends import Float64Array
from convexnn_solvers.gaps import relative_gap
from convexnn_solvers.gated_programs.features import GatedFeatures
from convexnn_solvers.gated_programs.fits import SquaredFit
from convexnn_solvers.gated_programs.program import GatedProgram, Indices, block_norms
from convexnn_solvers.newton.duals import best_multiple
from convexnn_solvers.packing import Arrays, Held, packed_attributes, restore_attributes

Sweep = Callable[..., None]

_NEWTON_STEPS = 50
_CONVERGED = 1e-14
# Sweeps of which the accelerated point is made, and the regularisation of its weights.
_MEMORY = 6
_RIDGE = 1e-12
# What the next sweeps depend on, besides the program and its bases.
_STATE = ("values", "residual", "_mean", "_outliers", "primal", "xi", "offset", "dual")


@cache
def machine_code() -> Sweep | None:
    """The compiled sweep of :mod:`kernel`, or None without numba.

    It has run once when this returns, so that no later call compiles.
    """
    try:
        from convexnn_solvers.block_descent.kernel import sweep
    except ImportError:
        return None
    one = np.ones((1, 1))
    rows, ends, cube = np.zeros(1, dtype=np.int32), np.arange(2), one[None].copy()
    sweep(one, rows, ends, one[0], cube, one, one, one[0], cube.copy(), one.copy(), one[0].copy(), False)
    return sweep


@dataclass(frozen=True, eq=False)
class GateBasis:
    """Eigenvectors (rows of ``basis``) and eigenvalues of ``X^T S^2 X`` of one gate, centred if need be.

    ``rows``: the samples with a slope that is not zero; ``sums``: those of the columns of ``S X``, or zeros
    without an offset.
    """

    rows: NDArray[np.int32]
    basis: Float64Array
    curvatures: Float64Array
    sums: Float64Array


def gate_basis(program: GatedProgram, gate: int) -> GateBasis:
    """The basis for one gate: O(n d^2 + d^3)."""
    slopes = program.slopes(np.array([gate]))[:, 0]
    rows = np.flatnonzero(slopes)
    features = program.X[rows] * slopes[rows, None]
    sums = features.sum(axis=0) if program.fit.centred else np.zeros(program.X.shape[1])
    gram = features.T @ features - np.outer(sums, sums) / program.X.shape[0]
    curvatures, vectors = np.linalg.eigh(gram)
    return GateBasis(
        rows.astype(np.int32), np.ascontiguousarray(vectors.T), np.maximum(curvatures, 0.0), sums
    )


class BlockSweeps:
    """The iteration on some blocks of a program (all signs of some gates), every other block being zero.

    ``values`` (m, c, d) are the blocks in their bases; ``residual`` (n, c) is what is left of the targets,
    less the outliers, not centred; ``primal``, ``xi`` and ``offset`` go with them. ``sweep`` is the compiled
    one, or None.
    """

    residual: Float64Array
    primal: float
    xi: Float64Array
    offset: Float64Array
    _mean: Float64Array
    _outliers: Float64Array

    def __init__(
        self,
        program: GatedProgram,
        bases: list[GateBasis],
        point: Float64Array,
        sweep: Sweep | None,
    ) -> None:
        assert isinstance(program.fit, SquaredFit)
        self.program, self._fit = program, program.fit
        gates = program.block_gates(np.arange(program.blocks))
        own = [bases[gate] for gate in gates]
        self._slopes = program.slopes(slice(None))
        self._features = GatedFeatures(program.X, self._slopes)
        self._gates: Indices = gates
        self._signs = program.block_signs(np.arange(program.blocks))
        self._bases = np.stack([b.basis for b in own])
        self._curvatures = np.stack([b.curvatures for b in own])
        self._sums = np.stack([b.sums for b in own])
        self._rows = np.concatenate([b.rows for b in own])
        self._ends = np.cumsum([0, *(b.rows.size for b in own)])
        # The compiled sweep takes rows with slope one.
        self._sweep = sweep if program.slope == 0.0 else None
        self.values = np.ascontiguousarray(
            np.matmul(point.transpose(2, 0, 1), self._bases.transpose(0, 2, 1))
        )
        self.dual = -np.inf
        self._refit()

    def packed(self) -> Arrays:
        """The state as arrays."""
        return packed_attributes(self, _STATE)

    def restore(self, held: Held) -> None:
        """Go on from what was packed."""
        restore_attributes(self, _STATE, held)

    @property
    def point(self) -> Float64Array:
        """The blocks (c, d, m) as the program has them."""
        return np.asarray(np.matmul(self.values, self._bases).transpose(1, 2, 0))

    def cycle(self) -> int:
        """One sweep over all blocks, some over those that are not zero, and the accelerated point of them.

        Anderson's extrapolation is taken only if it lowers the objective, so that nothing can go wrong.
        Returns the number of sweeps.
        """
        history = [self.values.copy()]
        for number in range(_MEMORY):
            self._sweep_once(active_only=number > 0)
            history.append(self.values.copy())
        self._look()
        self._extrapolate(np.stack(history))
        return _MEMORY

    @property
    def gap(self) -> float:
        """The relative gap of the program of these blocks alone."""
        products = self.program.by_block(self._features.adjoint(self.xi))
        self.dual = max(self.dual, best_multiple(self.program, self.xi, products, None).value)
        return relative_gap(self.primal, self.dual)

    def _sweep_once(self, active_only: bool) -> None:
        if self._sweep is None:
            self._sweep_with_products(active_only)
        else:
            self._sweep(
                self.program.X, self._rows, self._ends, self._signs, self._bases, self._curvatures,
                self._sums, self.program.weights, self.values, self.residual, self._mean, active_only,
            )  # fmt: skip
        if self._fit.outliers is not None:
            whole = self.residual - self._mean + self._outliers
            outliers = whole - np.clip(whole, -self._fit.outliers, self._fit.outliers)
            self.residual += self._outliers - outliers
            self._outliers = outliers
            self._centre()

    def _sweep_with_products(self, active_only: bool) -> None:
        """The same as the compiled sweep, by products with all of X."""
        X, n = self.program.X, self.program.X.shape[0]
        for b, gate in enumerate(self._gates):
            old = self.values[b]
            if active_only and not old.any():
                continue
            slopes, sign, weight = self._slopes[:, gate, None], self._signs[b], self.program.weights[b]
            pulled = (slopes * self.residual).T @ X - np.outer(self._mean, self._sums[b])
            turned = sign * pulled @ self._bases[b].T + self._curvatures[b] * old
            h = radius(np.sum(turned**2, axis=0), self._curvatures[b], weight, float(np.linalg.norm(old)))
            new = turned * (h / (self._curvatures[b] * h + weight))
            moved = sign * (new - old) @ self._bases[b]
            if moved.any():
                self.values[b] = new
                self.residual -= slopes * (X @ moved.T)
                self._mean -= moved @ self._sums[b] / n

    def _extrapolate(self, history: Float64Array) -> None:
        """The point ``sum_i w_i x_i`` for which the same sum of the latest changes is smallest."""
        changes = np.diff(history, axis=0).reshape(_MEMORY, -1)
        gram = changes @ changes.T
        size = float(np.trace(gram))
        if not size > 0.0:
            return
        gram.flat[:: _MEMORY + 1] += _RIDGE * size
        weights = np.linalg.solve(gram / size, np.ones(_MEMORY))
        total = float(weights.sum())
        if not np.isfinite(total) or total == 0.0:
            return
        before = self.values, self.residual, self._mean, self._outliers
        fitted = self.primal, self.xi, self.offset
        self.values = np.einsum("s,smkd->mkd", weights / total, history[1:])
        self._refit()
        if not self.primal < fitted[0]:
            self.values, self.residual, self._mean, self._outliers = before
            self.primal, self.xi, self.offset = fitted

    def _refit(self) -> None:
        """Residual and outliers at ``values`` from scratch."""
        point = self.point * self._signs
        prediction = self._features.select(self._gates).forward(point)
        self.residual = self._fit.Y - prediction
        self._outliers = np.zeros_like(self.residual)
        if self._fit.outliers is not None:
            fitted = self._fit.at(prediction)
            self._outliers = self.residual - fitted.offset + fitted.xi
            self.residual = self.residual - self._outliers
        self._centre()
        self._look()

    def _look(self) -> None:
        """Objective, gradient of the fit and offset at the current point."""
        fitted = self._fit.at(self._fit.Y - self._outliers - self.residual)
        self.xi, self.offset = fitted.xi, fitted.offset
        norms = block_norms(self.values.transpose(1, 2, 0))
        self.primal = fitted.value + float(self.program.weights @ norms)

    def _centre(self) -> None:
        self._mean = self.residual.mean(axis=0) if self._fit.centred else np.zeros(self.residual.shape[1])


def radius(powers: Float64Array, curvatures: Float64Array, weight: float, start: float) -> float:
    """The zero of ``1/sqrt(f) - 1``, ``f(h) = sum_i powers_i / (curvatures_i h + weight)^2``; 0: none.

    The function is concave and increases, so that Newton's method never passes the zero on its left.
    """
    total, steepest = float(np.sum(powers)), float(np.max(curvatures))
    if total <= weight * weight or steepest <= 0.0:
        return 0.0
    least = (np.sqrt(total) - weight) / steepest
    h = max(start, least)
    for _ in range(_NEWTON_STEPS):
        t = curvatures * h + weight
        shares = powers / (t * t)
        f, slope = float(np.sum(shares)), float(np.sum(shares * curvatures / t))
        if not slope > 0.0:
            break
        change = f * (1.0 - np.sqrt(f)) / slope
        h = max(h - change, least)
        if abs(change) <= _CONVERGED * h:
            break
    return float(h)
