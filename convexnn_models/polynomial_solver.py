"""A primal-dual interior-point method for the lifted polynomial program, for widths in the hundreds.

    minimise   ||prediction - y||^2 / (2 n) + reg sum_b Z_b[h, h],   prediction = sum_b sign_b <Q_i, Z_b>
    subject to Z_b positive semidefinite, <J, Z_b> = 0              (one block b per cell and sign)
    dual       maximise <theta, y> - n ||theta||^2 / 2
    subject to S_b = reg E + eta_b J - sign_b Q(theta) positive semidefinite.

Both have interior points at hand, so every iterate is feasible on both sides and its gap is known:
``||y - prediction - n theta||^2 / (2 n) + sum_b <Z_b, S_b>``. With Nesterov-Todd scaling ``W_b`` the Newton
system reduces to the n x n matrix ``n I + sum_b [<Q_i, W_b Q_j W_b>]`` (less one rank per block), which costs
one kernel matrix ``X W_b X^T`` a block because every ``Q_i`` has rank two: O(n^2 h + n^3 + h^3) an iteration
and O(n^2 + h^2) memory, where a general-purpose solver factorises matrices of side h^2.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import linalg

from convexnn_models._arrays import Float64Array
from convexnn_models.polynomial_features import CellFeatures, ExplicitFeatures
from convexnn_solvers.status import Status

_FRACTION = 0.98  # of the way to the boundary
_COMPRESSION = 1.2  # rotate the samples when they outnumber the coefficients by this factor


@dataclass(frozen=True)
class LiftedPoint:
    """One output's point: per cell the matrices of both signs, and the dual ``theta`` (n,).

    ``matrices`` and ``slacks`` hold pairs (positive, negative) of (h + 1, h + 1) matrices: Z and S.
    """

    matrices: tuple[tuple[Float64Array, Float64Array], ...]
    slacks: tuple[tuple[Float64Array, Float64Array], ...]
    theta: Float64Array


@dataclass(frozen=True)
class PolynomialProgress:
    """One line of the log of one output: its ``primal`` and ``dual`` objective and the ``gap`` between them.

    ``seconds`` are since the ``iteration`` of number 0; values are in the user's units.
    """

    iteration: int
    seconds: float
    primal: float
    dual: float
    gap: float


@dataclass(frozen=True)
class _Block:
    """One lifted matrix with its cell's features; ``sign`` says which way its neurons count."""

    cell: int
    sign: float
    features: CellFeatures
    Z: Float64Array
    eta: float


@dataclass(frozen=True, eq=False)
class _Position:
    """A dual point with blocks; slacks and ``<Z_b, S_b>`` by block, the residual and the gap follow."""

    theta: Float64Array
    blocks: list[_Block]
    slacks: list[Float64Array]
    products: list[float]
    residual: Float64Array
    dual: float
    gap: float

    def point(self) -> LiftedPoint:
        """The matrices and slacks in pairs of both signs."""
        matrices = [b.Z for b in self.blocks]
        return LiftedPoint(
            tuple(zip(matrices[0::2], matrices[1::2], strict=True)),
            tuple(zip(self.slacks[0::2], self.slacks[1::2], strict=True)),
            self.theta,
        )


@dataclass(frozen=True, eq=False)
class _Output:
    """The program of one output. ``n`` scales the loss (rotated samples are fewer); ``constant`` is added."""

    cells: Sequence[CellFeatures]
    y: Float64Array
    reg: float
    n: int
    constant: float = 0.0

    def at(self, theta: Float64Array, blocks: list[_Block]) -> _Position:
        """What the point and the dual point are worth."""
        duals = [cell.adjoint(theta) for cell in self.cells]
        slacks = [_slack(b, duals[b.cell], self.reg) for b in blocks]
        prediction = np.sum([b.sign * b.features.apply(b.Z) for b in blocks], axis=0)
        residual = self.y - prediction - self.n * theta
        products = [float(np.sum(b.Z * S)) for b, S in zip(blocks, slacks, strict=True)]
        gap = float(residual @ residual) / (2.0 * self.n) + sum(products)
        dual = float(theta @ self.y) - 0.5 * self.n * float(theta @ theta) + self.constant
        return _Position(theta, blocks, slacks, products, residual, dual, gap)


@dataclass(frozen=True)
class _Scaling:
    """``W = G G^T`` with ``W S W = Z`` and ``G^T S G = G^-1 Z G^-T = diag(diagonal)``."""

    G: Float64Array
    W: Float64Array
    diagonal: Float64Array
    coupling: Float64Array  # <Q_i, W J W>
    curvature: float  # <J, W J W>


@dataclass(frozen=True)
class _Step:
    """A direction of one block, in the user's and in the scaled space."""

    eta: float
    Z: Float64Array
    scaled_S: Float64Array
    scaled_Z: Float64Array


def minimise_lifted(
    cells: Sequence[CellFeatures],
    y: Float64Array,
    reg: float,
    *,
    tol: float,
    max_iter: int,
    deadline: float = np.inf,
    report: Callable[[PolynomialProgress], None] | None = None,
) -> tuple[LiftedPoint, Status, int]:
    """The optimum for one output ``y`` (n,) and ``reg > 0``, to a relative gap of ``tol``.

    ``deadline`` is on ``time.perf_counter``'s clock; ``report`` is called once per iteration. Returns the
    best point, why the iteration stopped and how many iterations it took. When the samples outnumber the
    coefficients of the lifted matrices they are first rotated onto a basis of the features' range, which
    changes nothing but the cost.
    """
    n = y.size
    coefficients = sum((c.width + 1) * (c.width + 2) // 2 for c in cells)
    if n <= _COMPRESSION * coefficients:
        return _interior_point(_Output(cells, y, reg, n), tol, max_iter, deadline, report)
    rotated, basis = _rotated(cells)
    small = basis.T @ y
    constant = max(0.0, float(y @ y) - float(small @ small)) / (2.0 * n)
    small_output = _Output(rotated, small, reg, n, constant)
    point, status, iterations = _interior_point(small_output, tol, max_iter, deadline, report)
    theta = basis @ (point.theta - small / n) + y / n
    return LiftedPoint(point.matrices, point.slacks, theta), status, iterations


def _interior_point(
    output: _Output,
    tol: float,
    max_iter: int,
    deadline: float,
    report: Callable[[PolynomialProgress], None] | None,
) -> tuple[LiftedPoint, Status, int]:
    """The iteration itself."""
    started = time.perf_counter()
    position = output.at(np.zeros(output.y.size), _start(output))
    best, best_gap, idle = position.point(), np.inf, 0
    for iteration in range(max_iter + 1):
        gap, dual = position.gap, position.dual
        if not np.isfinite(gap):
            return best, Status.NOT_FINITE, iteration
        if gap < best_gap:
            best, best_gap, idle = position.point(), gap, 0
        else:
            idle += 1
        now = time.perf_counter()
        if report is not None:
            report(PolynomialProgress(iteration, now - started, dual + gap, dual, gap))
        if best_gap <= tol * max(abs(dual + gap), abs(dual)):
            return best, Status.OPTIMAL, iteration
        if idle >= 5:
            return best, Status.STALLED, iteration
        if now >= deadline:
            return best, Status.TIME_LIMIT, iteration
        if iteration == max_iter:
            break
        try:
            position = output.at(*_advance(output, position))
        except linalg.LinAlgError:
            return best, Status.STALLED, iteration
    return best, Status.ITERATION_LIMIT, max_iter


def _start(output: _Output) -> list[_Block]:
    """Multiples of the identity on both sides: strictly feasible, of the size of the data."""
    size = float(np.sqrt(sum(np.sum(c.sizes**2) for c in output.cells)))
    weight = float(np.linalg.norm(output.y)) / size if size > 0.0 else 1.0
    blocks = []
    for k, features in enumerate(output.cells):
        h = features.width
        Z = np.diag(np.append(np.full(h, weight / h), weight))
        blocks += [_Block(k, sign, features, Z, 0.5 * output.reg) for sign in (1.0, -1.0)]
    return blocks


def _advance(output: _Output, position: _Position) -> tuple[Float64Array, list[_Block]]:
    """One predictor-corrector step (Mehrotra)."""
    theta, blocks, residual = position.theta, position.blocks, position.residual
    scalings = [_scaling(b, S) for b, S in zip(blocks, position.slacks, strict=True)]
    H = np.zeros((theta.size, theta.size))
    for b, s in zip(blocks, scalings, strict=True):
        b.features.add_gram(H, s.W, s.coupling / np.sqrt(s.curvature))
    H[np.diag_indices_from(H)] += output.n
    factor = _factor(H)

    def direction(targets: list[Float64Array]) -> tuple[Float64Array, list[_Step]]:
        moved = [s.G @ T @ s.G.T for s, T in zip(scalings, targets, strict=True)]
        traces = [_signature(T) + _signature(b.Z) for T, b in zip(moved, blocks, strict=True)]
        right = residual.copy()
        for b, s, T, trace in zip(blocks, scalings, moved, traces, strict=True):
            right -= b.sign * (b.features.apply(T) - s.coupling * (trace / s.curvature))
        d_theta = np.asarray(linalg.cho_solve(factor, right, check_finite=False))
        d_duals = [cell.adjoint(d_theta) for cell in output.cells]
        steps = []
        for b, s, T, target, trace in zip(blocks, scalings, moved, targets, traces, strict=True):
            d_eta = (b.sign * float(s.coupling @ d_theta) + trace) / s.curvature
            d_S = _plus_signature(-b.sign * d_duals[b.cell], d_eta)
            scaled = s.G.T @ d_S @ s.G
            d_Z = T - s.W @ d_S @ s.W
            steps.append(_Step(d_eta, 0.5 * (d_Z + d_Z.T), scaled, target - scaled))
        return d_theta, steps

    order = sum(b.Z.shape[0] for b in blocks)
    mean = sum(position.products) / order
    _, steps = direction([np.diag(-s.diagonal) for s in scalings])
    length = min(1.0, _longest(scalings, steps))
    after = sum(_product_after(s, t, length) for s, t in zip(scalings, steps, strict=True))
    centring = float(np.clip((after / order / mean) ** 3, 1e-6, 1.0)) * mean
    d_theta, steps = direction([_corrected(s, t, centring) for s, t in zip(scalings, steps, strict=True)])
    length = min(1.0, _FRACTION * _longest(scalings, steps))
    moved = [
        _Block(b.cell, b.sign, b.features, b.Z + length * t.Z, b.eta + length * t.eta)
        for b, t in zip(blocks, steps, strict=True)
    ]
    return theta + length * d_theta, moved


def _factor(H: Float64Array) -> tuple[Float64Array, bool]:
    """A Cholesky factor; where rounding made ``H`` indefinite, of ``H`` plus as little as is needed."""
    ridge = 0.0
    largest = float(np.max(np.diagonal(H)))
    while True:
        try:
            return linalg.cho_factor(H, lower=True, check_finite=False)
        except linalg.LinAlgError:
            ridge = max(10.0 * ridge, 1e-16 * largest)
            if ridge > 1e-8 * largest:
                raise
            H[np.diag_indices_from(H)] += ridge


def _scaling(block: _Block, S: Float64Array) -> _Scaling:
    left = linalg.cholesky(block.Z, lower=True, check_finite=False)
    right = linalg.cholesky(S, lower=True, check_finite=False)
    _, diagonal, rotation = linalg.svd(right.T @ left, check_finite=False)
    G = left @ (rotation.T / np.sqrt(diagonal))
    W = G @ G.T
    WJW = W @ _plus_signature(np.zeros_like(W), 1.0) @ W
    return _Scaling(G, W, diagonal, block.features.apply(WJW), _signature(WJW))


def _corrected(scaling: _Scaling, predicted: _Step, centring: float) -> Float64Array:
    """The scaled ``dZ + dS`` that aims at ``centring`` and cancels the predictor's second-order error."""
    product = predicted.scaled_Z @ predicted.scaled_S
    target = -0.5 * (product + product.T)
    target[np.diag_indices_from(target)] += centring - scaling.diagonal**2
    corrected: Float64Array = 2.0 * target / (scaling.diagonal[:, None] + scaling.diagonal[None, :])
    return corrected


def _product_after(scaling: _Scaling, step: _Step, length: float) -> float:
    """``<Z, S>`` after a step of this length."""
    now = np.diag(scaling.diagonal)
    return float(np.sum((now + length * step.scaled_S) * (now + length * step.scaled_Z)))


def _longest(scalings: list[_Scaling], steps: list[_Step]) -> float:
    """The step at which the first matrix would become singular."""
    lowest = 0.0
    for s, t in zip(scalings, steps, strict=True):
        root = 1.0 / np.sqrt(s.diagonal)
        for move in (t.scaled_S, t.scaled_Z):
            values = np.linalg.eigvalsh(root[:, None] * move * root[None, :])
            lowest = min(lowest, float(values[0]))
    return -1.0 / lowest if lowest < 0.0 else np.inf


def _slack(block: _Block, dual: Float64Array, reg: float) -> Float64Array:
    slack = _plus_signature(-block.sign * dual, block.eta)
    slack[-1, -1] += reg
    return slack


def _plus_signature(M: Float64Array, eta: float) -> Float64Array:
    """``M + eta J`` in place."""
    h = M.shape[0] - 1
    M[np.arange(h), np.arange(h)] += eta
    M[h, h] -= eta
    return M


def _signature(Z: Float64Array) -> float:
    """``<J, Z>``."""
    return float(np.trace(Z)) - 2.0 * float(Z[-1, -1])


def _rotated(cells: Sequence[CellFeatures]) -> tuple[list[CellFeatures], Float64Array]:
    """The features in an orthonormal basis of their range, and the basis (n, coefficients)."""
    parts, weights = [], []
    for cell in cells:
        m = cell.width + 1
        upper = np.triu_indices(m)
        weights.append(np.where(upper[0] == upper[1], 1.0, np.sqrt(2.0)))
        parts.append(cell.matrix().reshape(-1, m, m)[:, upper[0], upper[1]] * weights[-1])
    basis, triangle = linalg.qr(np.hstack(parts), mode="economic", check_finite=False)
    rotated: list[CellFeatures] = []
    start = 0
    for cell, weight in zip(cells, weights, strict=True):
        m = cell.width + 1
        upper = np.triu_indices(m)
        rows = np.empty((triangle.shape[0], m, m))
        rows[:, upper[0], upper[1]] = triangle[:, start : start + weight.size] / weight
        rows[:, upper[1], upper[0]] = rows[:, upper[0], upper[1]]
        start += weight.size
        flat = rows.reshape(-1, m * m)
        rotated.append(ExplicitFeatures(flat, np.sqrt(np.sum(flat * flat, axis=1))))
    return rotated, np.asarray(basis, dtype=np.float64)
