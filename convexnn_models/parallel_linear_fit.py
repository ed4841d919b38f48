"""Our own solver for parallel linear networks, and the certificate of any point."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from convexnn_models import _arrays, losses
from convexnn_models._arrays import Float64Array
from convexnn_models.fitting import (
    certified,
    held_bias,
    held_value,
    known_training,
    matching,
    refuse_other_models,
    squared_targets,
)
from convexnn_models.loss_duals import residual_bound
from convexnn_models.parallel_linear import ParallelLinearModel
from convexnn_solvers.certify.certificate import Certificate
from convexnn_solvers.named_options import checked_options
from convexnn_solvers.status import Status

_SCOPE = "for all parallel linear networks of this depth"
_TINY = 1e-300
_EPS = float(np.finfo(np.float64).eps)
_LOOK = 10  # iterations between certificates


@dataclass(frozen=True)
class ParallelLinearFit:
    """How :func:`solve_parallel_linear` ended: ``status``, and the ``certificate`` for all such networks.

    ``iterations``: 1 where the solution is one thresholding; ``seconds`` include the certificates.
    """

    status: Status
    certificate: Certificate
    iterations: int
    seconds: float

    def __str__(self) -> str:
        return f"{self.status.name.lower()} after {self.iterations} iterations: {self.certificate}"


@checked_options
def solve_parallel_linear(
    model: ParallelLinearModel,
    *,
    tol: float = 1e-8,
    max_iter: int = 20_000,
    time_limit: float | None = None,
) -> ParallelLinearFit:
    """Solve the latest ``model.problem(y, reg)`` (squared loss) and leave the optimum in its variables.

    Where ``X^T X = q I`` the singular values separate and one thresholding of ``X^T Y / q`` at
    ``n reg L / (2 q)`` is the solution. Otherwise ADMM in the basis of the right singular vectors of X,
    where the least-squares step is a division: M and its low-rank copy take turns, and the step size
    follows the balance of the two residuals.

    ``tol`` is the relative certified gap to reach, in ``max_iter`` iterations and ``time_limit`` seconds at
    most. Raises ValueError for other losses, ``reg = 0`` or a model without a problem.
    """
    refuse_other_models(model, ParallelLinearModel, "parallel_linear(X, depth)")
    Y, reg = squared_targets(model)
    if reg <= 0.0:
        raise ValueError("reg must be positive here; for reg=0 use linear_interpolation or least squares.")
    tolerance, steps = _arrays.positive(tol, "tol"), _arrays.count(max_iter, "max_iter")
    started = time.perf_counter()
    deadline = np.inf if time_limit is None else started + _arrays.positive(time_limit, "time_limit")
    X, target = _centred(model, Y)
    tau = 0.5 * model.depth * reg
    left, singular, right = np.linalg.svd(X, full_matrices=False)
    rank = int(np.count_nonzero(singular > max(X.shape) * _EPS * singular[0]))
    basis = _Basis(left[:, :rank], singular[:rank], right[:rank], target)
    status, iterations = Status.OPTIMAL, 1
    if rank == 0:
        proof = _set(model, np.zeros((X.shape[1], model.outputs)), Y)
    elif rank == X.shape[1] and singular[-1] >= (1.0 - 1e-14) * singular[0]:
        q = float(singular[0]) ** 2
        proof = _set(model, _threshold(X.T @ target / q, tau * X.shape[0] / q), Y)
    else:
        proof, status, iterations = _alternate(model, Y, basis, tau, tolerance, steps, deadline)
    if status is Status.OPTIMAL and (proof.relative_gap is None or proof.relative_gap > tolerance):
        status = Status.STALLED
    return ParallelLinearFit(status, proof, iterations, time.perf_counter() - started)


@checked_options
def parallel_linear_certificate(model: ParallelLinearModel, thetas: Iterable[Any] = ()) -> Certificate:
    """How far the values of the model's variables are from the optimum of its latest problem.

    Any theta (n, c) with ``||X^T theta||_2 <= reg L / 2`` (largest singular value) gives the lower bound
    ``<theta, Y> - n/2 ||theta||_F^2``; the residual of the point, and the candidates ``thetas``, are
    scaled to satisfy it with a margin for rounding. Other losses have ``-F*(-theta)`` in that
    place; beside a free output bias, and for losses that our solvers do not read, there is no bound.
    Raises ValueError when a variable has no value or ``model.problem`` was never called.
    """
    refuse_other_models(model, ParallelLinearModel, "parallel_linear(X, depth)")
    training = known_training(model)
    M = held_value(model.variables[0])
    scores = model.X @ M + held_bias(model)
    penalty = 0.5 * model.depth * float(np.linalg.svd(M, compute_uv=False).sum())
    prediction = scores[:, 0] if model.outputs == 1 else scores
    primal = training.objective(prediction, penalty)
    found = None
    if training.loss is losses.squared:
        Y, reg = squared_targets(model)
        candidates = [(Y - scores) / Y.shape[0], *matching(thetas, Y)]
        if model.thetas is not None and model.thetas.shape == Y.shape:
            candidates.append(model.thetas)
        bounds = [_bound(model, theta, Y, 0.5 * model.depth * reg) for theta in candidates]
        found = max(bounds, key=lambda bound: bound[0])
    elif model.output_bias is None:
        limit = 0.5 * model.depth * float(training.reg.value)
        found = residual_bound(training, prediction, partial(_largest, model), limit)
    return certified(model, primal, prediction.shape, found, scope=_SCOPE)


@dataclass(frozen=True)
class _Basis:
    """``X = left diag(singular) right`` without zero singular values, and the targets; centred if need be."""

    left: Float64Array
    singular: Float64Array
    right: Float64Array
    target: Float64Array

    def theta(self, B: Float64Array) -> Float64Array:
        """The best dual point with ``right X^T theta = B``: what X does not see stays at ``Y / n``."""
        n = self.target.shape[0]
        seen = self.left.T @ self.target
        theta: Float64Array = (self.target - self.left @ seen) / n
        theta += self.left @ (B / self.singular[:, None])
        return theta


def _alternate(
    model: ParallelLinearModel,
    Y: Float64Array,
    basis: _Basis,
    tau: float,
    tol: float,
    max_iter: int,
    deadline: float,
) -> tuple[Certificate, Status, int]:
    """ADMM for ``1/2 <M, H M> - <R, M> + tau ||Z||_*``, M == Z, in the basis of X's right vectors."""
    n = Y.shape[0]
    curvature = basis.singular**2 / n
    R = basis.singular[:, None] * (basis.left.T @ basis.target) / n
    rho = float(np.sqrt(curvature[0] * max(curvature[-1], 1e-6 * curvature[0])))
    Z, dual = np.zeros_like(R), np.zeros_like(R)
    proof = _set(model, basis.right.T @ Z, Y)
    for iteration in range(1, max_iter + 1):
        M = (R + rho * (Z - dual)) / (curvature + rho)[:, None]
        relaxed = 1.6 * M - 0.6 * Z
        before = Z
        Z = _threshold(relaxed + dual, tau / rho)
        dual = dual + relaxed - Z
        if iteration % _LOOK and iteration < max_iter:
            continue
        model.thetas = basis.theta(rho * dual)
        proof = _set(model, basis.right.T @ Z, Y)
        if proof.relative_gap is not None and proof.relative_gap <= tol:
            return proof, Status.OPTIMAL, iteration
        if time.perf_counter() >= deadline:
            return proof, Status.TIME_LIMIT, iteration
        # each residual relative to what it is a difference of: the scales of M and of its dual are far apart
        distance = float(np.linalg.norm(M - Z)) / max(float(np.linalg.norm(Z)), _TINY)
        movement = float(np.linalg.norm(Z - before)) / max(float(np.linalg.norm(dual)), _TINY)
        factor = float(np.clip(np.sqrt(distance / max(movement, _TINY)), 0.2, 5.0))
        if not 0.5 < factor < 2.0:
            rho *= factor
            dual = dual / factor
    return proof, Status.ITERATION_LIMIT, max_iter


def _threshold(M: Float64Array, amount: float) -> Float64Array:
    """Singular values reduced by ``amount``, not below zero: the proximal map of the nuclear norm."""
    U, singular, Vt = np.linalg.svd(M, full_matrices=False)
    reduced = singular - amount
    keep = reduced > 0.0
    return np.asarray((U[:, keep] * reduced[keep]) @ Vt[keep])


def _largest(model: ParallelLinearModel, theta: Float64Array) -> float:
    """``||X^T theta||_2``, not less than that despite rounding."""
    theta = theta.reshape(-1, model.outputs)
    rounding = (theta.shape[0] + 10 * min(model.outputs, model.X.shape[1])) * _EPS
    largest: float = float(np.linalg.norm(model.X.T @ theta, 2))
    largest += rounding * float(np.linalg.norm(model.X)) * float(np.linalg.norm(theta))
    return largest


def _bound(
    model: ParallelLinearModel, theta: Float64Array, Y: Float64Array, limit: float
) -> tuple[float, Float64Array]:
    """The best multiple of ``theta`` as a dual point."""
    n = Y.shape[0]
    if model.output_bias is not None:
        theta = theta - theta.mean(axis=0)
    size = float(np.sum(theta * theta))
    if size == 0.0:
        return 0.0, theta
    largest = _largest(model, theta)
    most = limit / largest if largest > 0.0 else np.inf
    scaled = float(np.clip(float(np.sum(theta * Y)) / (n * size), -most, most)) * theta
    return float(np.sum(scaled * Y)) - 0.5 * n * float(np.sum(scaled * scaled)), scaled


def _set(model: ParallelLinearModel, M: Float64Array, Y: Float64Array) -> Certificate:
    """Write ``M`` and the best output bias to the variables, and certify them."""
    model.variables[0].save_value(M)
    if model.output_bias is not None:
        best = np.mean(Y - model.X @ M, axis=0)
        model.output_bias.save_value(best.reshape(model.output_bias.shape))
    return parallel_linear_certificate(model)


def _centred(model: ParallelLinearModel, Y: Float64Array) -> tuple[Float64Array, Float64Array]:
    if model.output_bias is None:
        return model.X, Y
    return model.X - model.X.mean(axis=0), Y - Y.mean(axis=0)
