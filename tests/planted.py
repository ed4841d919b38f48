"""Convex networks whose optimum is known by construction, down to rounding.

Choose the dual variable theta first, then the weights so that every dual constraint holds and some are tight,
then blocks along the tight directions, and last the labels: ``y = prediction + n theta`` for the squared
loss. All optimality conditions hold exactly, so the optimal value and the dual solution are known. Everything
here is written out with dense matrices, on purpose in another way than the package does it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import cvxpy as cp
import numpy as np
from dense_map import DenseMap
from numpy.typing import NDArray
from scipy.optimize import nnls

from convexnn_solvers import gated, pattern_slack
from convexnn_solvers.backends import Array, numpy_backend
from convexnn_solvers.composite import (
    Composite,
    ConstraintTerm,
    LossTerm,
    PatternCone,
    PenaltyTerm,
    VariableBlock,
)
from convexnn_solvers.functions.constraint_cones import NONNEGATIVE
from convexnn_solvers.functions.losses import Huber, Loss, Softplus, SumSquares
from convexnn_solvers.functions.nonsmooth_losses import PiecewiseLinear
from convexnn_solvers.functions.penalties import GroupNorm

Float = NDArray[np.float64]
LossName = Literal["squared", "huber", "logistic", "absolute", "hinge", "quantile"]

HUBER_THRESHOLD = 0.7
QUANTILE = 0.8
# The slopes of the piecewise linear losses, as functions of minus the residual, or of one minus the margin.
_SLOPES: dict[LossName, tuple[float, float]] = {
    "absolute": (-1.0, 1.0),
    "quantile": (-QUANTILE, 1.0 - QUANTILE),
    "hinge": (0.0, 1.0),
}


@dataclass(frozen=True, eq=False)
class Planted:
    """A problem, its optimal blocks (one array (d * outputs, P) per sign) and its optimal dual variable.

    ``signs`` is (1,) for the gated program and (1, -1) for the ReLU program, which has the cones.
    ``weights``: per sign (P,) if the groups are shared by the outputs, else (outputs, P).
    ``targets``: labels y of regression; of classification (logistic, hinge) the signs of the labels, and
    ``shift`` is added to the prediction.
    """

    X: Float
    patterns: NDArray[np.bool_]
    outputs: int
    signs: tuple[float, ...]
    shared: bool
    loss: LossName
    weights: tuple[Float, ...]
    blocks: tuple[Float, ...]
    bias: Float | None
    theta: Float
    targets: Float
    shift: Float

    @property
    def cones(self) -> bool:
        return len(self.signs) == 2

    @property
    def point(self) -> tuple[Float, ...]:
        """The optimal values of all variables."""
        return self.blocks if self.bias is None else (*self.blocks, self.bias)

    @property
    def value(self) -> float:
        """The optimal value."""
        return self.objective(self.point)

    def prediction(self, x: tuple[Float, ...]) -> Float:
        """(n, outputs), sample by sample and gate by gate."""
        n, d = self.X.shape
        out = np.zeros((n, self.outputs))
        for sign, U in zip(self.signs, x, strict=False):
            for k in range(self.outputs):
                for j in range(self.patterns.shape[1]):
                    out[:, k] += sign * self.patterns[:, j] * (self.X @ U[k * d : (k + 1) * d, j])
        return out if self.bias is None else out + x[-1]

    def group_norms(self, U: Float) -> Float:
        """One norm per group, in the shape of the weights."""
        stacked = U.reshape(self.outputs, self.X.shape[1], -1)
        return np.asarray(np.sqrt((stacked**2).sum(axis=(0, 1) if self.shared else 1)))

    def objective(self, x: tuple[Float, ...]) -> float:
        """The objective by its formula, cones aside."""
        prediction = self.prediction(x)
        n = len(prediction)
        if self.loss == "logistic":
            fit = np.logaddexp(0.0, -self.targets * (prediction + self.shift)).sum() / n
        elif self.loss in _SLOPES:
            q = prediction - self.targets
            if self.loss == "hinge":
                q = 1.0 - self.targets * (prediction + self.shift)
            low, high = _SLOPES[self.loss]
            fit = np.maximum(low * q, high * q).sum() / n
        else:
            r = np.abs(prediction - self.targets)
            M = HUBER_THRESHOLD if self.loss == "huber" else np.inf
            fit = np.where(r <= M, r**2, 2.0 * np.minimum(M, 1e300) * r - min(M, 1e150) ** 2).sum() / (2 * n)
        penalty = sum(float(np.sum(w * self.group_norms(U))) for w, U in zip(self.weights, x, strict=False))
        return float(fit + penalty)

    def composite(self) -> Composite:
        """The same problem in the form that certificates read, with dense matrices."""
        n, d = self.X.shape
        c, gates = self.outputs, self.patterns.shape[1]
        features = np.zeros((n * c, d * c * gates))
        slacks = np.zeros((n * c * gates, d * c * gates))
        for k in range(c):
            for j in range(gates):
                columns = (k * d + np.arange(d)) * gates + j
                features[np.ix_(np.arange(n) * c + k, columns)] = self.patterns[:, [j]] * self.X
                rows = (k * n + np.arange(n)) * gates + j
                slacks[np.ix_(rows, columns)] = np.where(self.patterns[:, [j]], 1.0, -1.0) * self.X
        classes = self.loss in ("logistic", "hinge")
        scale = -self.targets.ravel()[:, None] if classes else np.ones((n * c, 1))
        offset = -self.targets * self.shift + (self.loss == "hinge") if classes else -self.targets
        shape = (n,) if c == 1 else (n, c)
        row = [sign * scale * features for sign in self.signs]
        shapes: list[tuple[int, ...]] = [(d * c, gates) for _ in self.signs]
        if self.bias is not None:
            row.append(scale * np.tile(np.eye(c), (n, 1)))
            shapes.append((c,))
        matrices, offsets = [tuple(row)], [offset.reshape(shape)]
        constraints = []
        if self.cones:
            for i in range(2):
                empty = [np.zeros((slacks.shape[0], int(np.prod(s)))) for s in shapes]
                empty[i] = slacks
                matrices.append(tuple(empty))
                offsets.append(np.zeros((n * c, gates)))
                cone = PatternCone(self.X, self.patterns, c, i)
                constraints.append(ConstraintTerm(NONNEGATIVE, (n * c, gates), i, f"cone {i}", cone))
        penalty: GroupNorm = GroupNorm(axis=0 if self.shared else 1)
        stacked: tuple[int, ...] = (d * c, gates) if self.shared else (c, d, gates)
        return Composite(
            backend=numpy_backend(),
            variables=tuple(VariableBlock(i, s, f"v{i}") for i, s in enumerate(shapes)),
            affine=DenseMap(tuple(matrices), tuple(offsets), tuple(shapes)),
            losses=(self._loss_term(n),),
            penalties=tuple(
                PenaltyTerm(penalty, w, i, _reshape(stacked), _reshape((d * c, gates)), "penalty")
                for i, w in enumerate(self.weights)
            ),
            constraints=tuple(constraints),
            linear=tuple(np.zeros(s) for s in shapes),
            constant=0.0,
            sign=1.0,
            scope=f"for the {gates} given gates",
        )

    def _loss_term(self, n: int) -> LossTerm:
        losses: dict[LossName, tuple[Loss, float]] = {
            "squared": (SumSquares(), 0.5 / n),
            "huber": (Huber(HUBER_THRESHOLD), 0.5 / n),
            "logistic": (Softplus(), 1.0 / n),
        }
        for name, slopes in _SLOPES.items():
            losses[name] = (PiecewiseLinear(*slopes), 1.0 / n)
        loss, weight = losses[self.loss]
        return LossTerm(loss, weight, self.loss)


def _reshape(shape: tuple[int, ...]) -> Callable[[Array], Array]:
    return lambda array: np.reshape(array, shape)


def dual_blocks(X: Float, patterns: NDArray[np.bool_], theta: Float, sign: float, cones: bool) -> Float:
    """``P_{K_j}(sign X^T D_j theta_k)`` (or without the projection), as an array (d * outputs, P)."""
    d, c = X.shape[1], theta.shape[1]
    out = np.zeros((d * c, patterns.shape[1]))
    for j in range(patterns.shape[1]):
        for k in range(c):
            z = sign * X.T @ (patterns[:, j] * theta[:, k])
            if cones:
                B = np.where(patterns[:, [j]], 1.0, -1.0) * X
                rho, _ = nnls(B.T, -z, maxiter=100 * len(X))
                support = rho > 1e-13 * max(float(np.max(rho, initial=0.0)), 1e-300)
                active = B[support]
                z = z - active.T @ np.linalg.lstsq(active.T, z, rcond=None)[0] if support.any() else z
            out[k * d : (k + 1) * d, j] = z
    return out


def plant(
    seed: int,
    *,
    cones: bool,
    outputs: int = 1,
    shared: bool = True,
    loss: LossName = "squared",
    bias: bool = False,
    uniform: bool = False,
    degenerate: bool = False,
    shape: tuple[int, int, int] = (20, 3, 8),
) -> Planted:
    """A random problem with n, d, P = ``shape`` and its optimum.

    ``uniform``: one weight for all groups, which makes the group of largest dual norm the only active one;
    otherwise every group has a weight of its own and about a third of the groups are active.
    ``degenerate``: X on an integer grid of lower rank, with zero and repeated rows, and gates with ties.
    """
    rng = np.random.default_rng(seed)
    n, d, gates = shape
    X, vectors = rng.standard_normal((n, d)), rng.standard_normal((d, gates))
    if degenerate:
        X = rng.integers(-1, 2, size=(n, d)).astype(np.float64)
        X[:, -1], X[1], X[2], X[3] = X[:, 0], 0.0, X[4], -X[5]
        vectors[:, ::2] = rng.integers(-1, 2, size=vectors[:, ::2].shape)
    patterns = X @ vectors >= 0.0
    theta, labels = _dual_variable(rng, n, outputs, loss, bias)
    signs = (1.0, -1.0) if cones else (1.0,)
    directions = [dual_blocks(X, patterns, theta, sign, cones) for sign in signs]
    empty = Planted(X, patterns, outputs, signs, shared, loss, (), (), None, theta, labels, labels)
    norms = [empty.group_norms(z) for z in directions]
    largest = max(float(g.max()) for g in norms)
    weights, blocks = [], []
    for z, g in zip(directions, norms, strict=True):
        active = g == largest if uniform else (rng.random(g.shape) < 0.35) & (g > 1e-3 * largest)
        slack = np.maximum(g, 1e-2 * largest) * (1.0 + rng.exponential(size=g.shape))
        weights.append(np.full(g.shape, largest) if uniform else np.where(active, g, slack))
        length = np.where(active, rng.exponential(size=g.shape) / np.where(active, g, 1.0), 0.0)
        per_output = np.broadcast_to(length, (outputs, gates))
        blocks.append(z * np.repeat(per_output, d, axis=0))
    b0 = rng.standard_normal(outputs) if bias else None
    weightless = Planted(
        X, patterns, outputs, signs, shared, loss, tuple(weights), tuple(blocks), b0, theta, labels, labels
    )
    prediction = weightless.prediction(weightless.point)
    targets, shift = _targets(rng, prediction, theta, labels, loss)
    return Planted(
        X, patterns, outputs, signs, shared, loss, tuple(weights), tuple(blocks), b0, theta, targets, shift
    )


def _dual_variable(
    rng: np.random.Generator, n: int, outputs: int, loss: LossName, bias: bool
) -> tuple[Float, Float]:
    """theta (n, outputs) in the domain of the loss's conjugate, summing to zero if asked, and label signs."""
    labels = np.where(np.arange(n) % 2 == 0, 1.0, -1.0)[:, None] * np.ones((n, outputs))
    if loss == "squared":
        theta = rng.standard_normal((n, outputs)) / n
    elif loss == "huber":
        theta = np.clip(rng.standard_normal((n, outputs)), -1.0, 1.0) * HUBER_THRESHOLD / n
    elif loss in _SLOPES:  # some entries at the ends of their intervals, where residuals need not vanish
        low, high = -np.array(_SLOPES[loss][::-1])
        middle, half = 0.5 * (low + high), 0.5 * (high - low)
        theta = (middle + half * np.clip(1.2 * rng.standard_normal((n, outputs)), -1.0, 1.0)) / n
        theta = -labels * theta if loss == "hinge" else theta
        if bias and loss != "hinge":  # neighbours have to cancel
            theta = np.clip(theta, max(low, -high) / n, min(high, -low) / n)
    else:
        theta = labels * rng.uniform(0.05, 0.95, size=(n, outputs)) / n
    if bias and loss == "squared":
        theta = theta - theta.mean(axis=0)
    elif bias:  # neighbours cancel, which keeps every entry inside the domain
        theta[1::2] = -theta[: 2 * (n // 2) : 2]
        theta[2 * (n // 2) :] = 0.0
    return theta, labels


def _targets(
    rng: np.random.Generator, prediction: Float, theta: Float, labels: Float, loss: LossName
) -> tuple[Float, Float]:
    """The labels (and the shift of the prediction) at which ``theta`` is minus the gradient of the loss."""
    n = len(prediction)
    if loss == "logistic":  # theta = (1/n) y sigmoid(-y (prediction + shift))
        p = n * labels * theta
        return labels, -labels * np.log(p / (1.0 - p)) - prediction
    residual = n * theta
    if loss in _SLOPES:  # minus the slope of the loss at q = -residual
        slopes = -labels * residual if loss == "hinge" else residual
        low, high = -np.array(_SLOPES[loss][::-1])
        away = rng.exponential(size=theta.shape)
        q = -away * (slopes >= high) + away * (slopes <= low)
        q = np.where(low < high, q, 0.0)
        if loss == "hinge":  # q = 1 - y (prediction + shift), theta = y slope / n with slope in [0, 1]
            return labels, labels * (1.0 - q) - prediction
        return prediction - q, np.zeros_like(prediction)
    if loss == "huber":
        edge = np.abs(residual) >= HUBER_THRESHOLD * (1.0 - 1e-12)
        residual = residual * np.where(edge, 1.0 + rng.exponential(size=theta.shape), 1.0)
    return prediction + residual, np.zeros_like(prediction)


def problem_of(planted: Planted) -> tuple[Any, tuple[Any, ...]]:
    """A planted program in plain CVXPY, every group with its own weight, and its variables."""
    n, d = planted.X.shape
    c, gates = planted.outputs, planted.patterns.shape[1]
    variables = tuple(cp.Variable((d * c, gates)) for _ in planted.signs)
    bend: Any = HUBER_THRESHOLD
    signed: Any = sum(sign * V for sign, V in zip(planted.signs, variables, strict=True))
    prediction: Any = gated(planted.X, planted.patterns, signed)
    bias = cp.Variable(c) if planted.bias is not None else None
    if bias is not None:
        prediction = prediction + (bias if c == 1 else np.ones((n, 1)) @ cp.reshape(bias, (1, c), order="F"))
    shape = (n,) if c == 1 else (n, c)
    targets, shift = planted.targets.reshape(shape), planted.shift.reshape(shape)
    residual, (low, high) = prediction - targets, _SLOPES.get(planted.loss, (0.0, 0.0))
    fit = {
        "absolute": lambda: cp.sum(cp.abs(residual)) / n,
        "quantile": lambda: cp.sum(cp.maximum(low * residual, high * residual)) / n,
        "hinge": lambda: cp.sum(cp.pos(1.0 - cp.multiply(targets, prediction + shift))) / n,
        "squared": lambda: cp.sum_squares(residual) / (2 * n),
        "huber": lambda: cp.sum(cp.huber(residual, bend)) / (2 * n),
        "logistic": lambda: cp.sum(cp.logistic(-cp.multiply(targets, prediction + shift))) / n,
    }[planted.loss]()
    penalty: Any = 0.0
    for weight, V in zip(planted.weights, variables, strict=True):
        view = V if planted.shared else cp.reshape(V, (d, c * gates), order="F")
        groups = weight if planted.shared else weight.T.ravel()
        penalty = penalty + cp.sum(cp.multiply(groups.ravel(), cp.norm(view, 2, axis=0)))
    cones: list[Any] = [pattern_slack(planted.X, planted.patterns, V) >= 0 for V in variables]
    unknowns = variables if bias is None else (*variables, bias)
    return cp.Problem(cp.Minimize(fit + penalty), cones if planted.cones else []), unknowns
