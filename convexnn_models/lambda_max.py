"""The smallest regularisation for which the zero network is optimal."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.optimize
from numpy.typing import NDArray

from convexnn_models import _arrays, losses
from convexnn_models._arrays import Float64Array
from convexnn_models.model import ConvexModel
from convexnn_solvers.cones.projections import PatternCones
from convexnn_solvers.row_blocks import row_blocks

_CHUNK_ENTRIES = 2_000_000  # of the n x gates products of the cheap bounds
_FEW = 4  # blocks projected before looking again whether the others can matter
_DESCENT_STEPS = 25  # of the cheap upper bounds of projections
_SIGNS = (1.0, -1.0)
# A sum of n terms rounds by less than so many times n eps of their sizes together.
_ROUNDED = 4.0 * float(np.finfo(np.float64).eps)
# Means add by pairs and round like sums of so few terms: targets far from zero hide no correlation.
_OF_MEANS = 64


@losses.takes_loss_options
def lambda_max(
    model: ConvexModel, y: Any, loss: str | losses.LossFunction = "squared", **options: Any
) -> float:
    """The ``reg`` above which all weights of ``model.problem(y, reg, loss)`` are zero at the optimum.

    It is the dual norm of ``-grad loss`` at the null model (the best output bias alone, if there is
    one): ``max_j ||X^T D_j r|| / n`` with r = y (minus its mean) for the squared loss of a gated model;
    for a ReLU model the norms of the projections of ``+-X^T D_j r / n`` on the pattern cones.

    Correlations that are no larger than what their own sums round are zero: where the output bias explains
    every feature, as it does a column of ones, so is the result.

    For the losses squared, huber, logistic, softmax and squared_hinge, and hinge without output bias; other
    losses have no gradient at the null model and are refused with a ValueError. ``y`` and the ``options`` of
    the loss are those of ``model.problem``.
    """
    if not isinstance(model, ConvexModel) or model.gates is None:
        raise TypeError("model must be a relu, gated_relu or piecewise_linear model.")
    theta, taken = _null_residual(model, losses.named(loss), y, options)
    # In units where no square underflows: a power of two, which rounds nothing.
    _, exponents = np.frexp([max(a.max(), -a.min()) for a in (theta, model.X)])
    unit = int(exponents.sum())
    theta = np.ldexp(theta, -unit)
    sizes = np.abs(theta) + min(1.0, _OF_MEANS / theta.shape[0]) * np.ldexp(taken, -unit)
    blocks = _without_rounding(model, _blocks(model, theta), sizes)
    if model.cones:
        return float(np.ldexp(_largest_projection(model, theta, blocks), unit))
    return float(np.ldexp(_block_norms(blocks, model.grouping).max(initial=0.0), unit))


def _without_rounding(model: ConvexModel, blocks: Float64Array, sizes: Float64Array) -> Float64Array:
    """The blocks (P, d, c), with zeros where the sum over samples is no larger than what it rounds.

    ``sizes`` (n, c) are those of what a residual is the difference of, as far as sums round them.
    """
    assert model.gates is not None
    rounded = _ROUNDED * model.X.shape[0]
    most = rounded * max(1.0, abs(model.slope)) * _products_of_sizes(model.X, sizes)
    # Few have entries that small beside all samples; those are looked at beside their own.
    for gate in np.flatnonzero(np.any((blocks != 0.0) & (np.abs(blocks) <= most), axis=(1, 2))):
        slopes = np.where(model.gates.patterns[:, gate], 1.0, abs(model.slope))
        own = rounded * _products_of_sizes(model.X, slopes[:, None] * sizes)
        blocks[gate][np.abs(blocks[gate]) <= own] = 0.0
    return blocks


def _products_of_sizes(X: Float64Array, sizes: Float64Array) -> Float64Array:
    """``|X|^T sizes`` (d, c), where X may be larger than memory."""
    products = np.zeros((X.shape[1], sizes.shape[1]))
    for rows in row_blocks(*X.shape):
        products += np.abs(X[rows]).T @ sizes[rows]
    return products


def _null_residual(
    model: ConvexModel, loss: losses.LossFunction, y: Any, options: dict[str, Any]
) -> tuple[Float64Array, Float64Array]:
    """``-grad loss`` (n, c) at the null model, and the size (c,) of what the output bias takes off it."""
    n, c = model.X.shape[0], model.outputs
    free = model.output_bias is not None
    losses.expression(loss, np.zeros(n) if c == 1 else np.zeros((n, c)), y, **options)  # checks y and options
    if free:
        losses.refuse_single_class(loss, y, n, c)
    if loss is losses.softmax:
        one_hot = losses.one_hot(y, n, c)
        frequencies: Any = one_hot.mean(axis=0) if free else 1.0 / c
        return np.asarray((one_hot - frequencies) / n), np.full(c, free / n)
    target = _arrays.targets(y, n, c).reshape(n, c)
    mean = np.ascontiguousarray(target.T).mean(axis=1) if free else np.zeros(c)
    residual: Any
    taken = np.abs(mean)
    if loss is losses.squared:
        residual = target - mean
    elif loss is losses.huber:
        threshold = float(options.get("threshold", 1.0))
        centre = np.array([_huber_centre(column, threshold) for column in target.T]) if free else mean
        residual, taken = np.clip(target - centre, -threshold, threshold), np.abs(centre)
    elif loss is losses.logistic:
        residual = 0.5 * target * (1.0 - target * mean)  # at the bias of the log odds
    elif loss is losses.squared_hinge:
        residual = 2.0 * target * (1.0 - target * mean)
    elif loss is losses.hinge and not free:
        residual = target
    else:
        raise ValueError(
            f"loss {getattr(loss, '__name__', loss)} has no known gradient at the null model"
            f"{' with an output bias' if free else ''}; use squared, huber, logistic, softmax, squared_hinge."
        )
    return np.asarray(residual / n), taken / n


def _huber_centre(y: Float64Array, threshold: float) -> float:
    """The constant that minimises the Huber loss."""
    low, high = float(y.min()), float(y.max())
    if low == high:
        return low

    def slope(centre: float) -> float:
        return float(np.clip(y - centre, -threshold, threshold).sum())

    return float(scipy.optimize.brentq(slope, low, high, xtol=1e-300, rtol=1e-15))


def _blocks(model: ConvexModel, theta: Float64Array, *, in_cone: bool = False) -> Float64Array:
    """``X^T (D_j + slope (I - D_j)) theta`` for every gate: (P, d, c).

    ``in_cone`` leaves out the samples whose term in ``<block, u>`` no u in the cone makes positive; what is
    left bounds the norm of the block's projection on the cone.
    """
    assert model.gates is not None
    patterns = model.gates.patterns
    (n, d), P, c = model.X.shape, patterns.shape[1], model.outputs
    blocks = np.zeros((c, d, P))
    for rows in row_blocks(n, max(d, P)):
        active = patterns[rows]
        for k in range(c):
            weights = np.where(active, 1.0, model.slope) * theta[rows, k, None]
            if in_cone:
                weights = np.where((weights > 0.0) == active, weights, 0.0)
            blocks[k] += model.X[rows].T @ weights
    return np.ascontiguousarray(blocks.transpose(2, 1, 0))


def _block_norms(blocks: Float64Array, grouping: str) -> Float64Array:
    """The dual norm of the penalty for every d x c block."""
    if grouping == "nuclear":
        return np.asarray(np.linalg.norm(blocks, ord=2, axis=(1, 2)))
    columns = np.linalg.norm(blocks, axis=1)
    return np.asarray(columns.max(axis=1) if grouping == "per-output" else np.linalg.norm(columns, axis=1))


def _largest_projection(model: ConvexModel, theta: Float64Array, blocks: Float64Array) -> float:
    """The largest norm after projection: exact projections only where an upper bound does not settle it."""
    assert model.gates is not None
    cones = PatternCones(model.X, model.gates.patterns)
    plain = _block_norms(blocks, model.grouping)
    reachable = [_blocks(model, sign * theta, in_cone=True) for sign in _SIGNS]
    bounds = np.concatenate([np.minimum(plain, _block_norms(r, model.grouping)) for r in reachable])
    order = np.argsort(-bounds, kind="stable")
    curvature = float(np.linalg.norm(model.X, 2)) ** 2
    (P, d, c), n = blocks.shape, model.X.shape[0]
    size = max(_FEW, _CHUNK_ENTRIES // (n * c))
    best, start = 0.0, 0
    while start < order.size and bounds[order[start]] > best:
        # The first few set the level that the others have to reach.
        chosen = order[start : start + (size if start else _FEW)]
        start += chosen.size
        signs, gates = np.divmod(chosen, P)
        points = np.asarray(_SIGNS)[signs, None, None] * blocks[gates]
        if start > _FEW:
            columns = points.transpose(1, 0, 2).reshape(d, -1)
            bits = np.repeat(model.gates.patterns[:, gates], c, axis=1)
            shrunk = _towards_cones(model.X, bits, columns, curvature).reshape(d, -1, c).transpose(1, 0, 2)
            limits = _block_norms(shrunk, model.grouping)
        else:
            limits = bounds[chosen]
        for few in np.array_split(np.argsort(-limits), range(_FEW, chosen.size, _FEW)):
            if limits[few[0]] <= best:
                break
            columns = points[few].transpose(1, 0, 2).reshape(d, -1)
            projected = cones.project(columns, np.repeat(gates[few], c)).points
            norms = _block_norms(projected.reshape(d, -1, c).transpose(1, 0, 2), model.grouping)
            best = max(best, float(norms.max()))
    return best


def _towards_cones(
    X: Float64Array, bits: NDArray[np.bool_], Z: Float64Array, curvature: float
) -> Float64Array:
    """``Z + B^T rho`` (d, m) for some rho >= 0: no shorter than the projection of ``Z``, but cheap.

    Accelerated projected gradient descent on ``1/2 ||Z + B^T rho||^2``, for all columns at once.
    """
    signed = np.where(bits, 1.0, -1.0)
    rho = np.zeros(bits.shape)
    ahead, momentum = rho, 1.0
    for _ in range(_DESCENT_STEPS):
        gradient = signed * (X @ (Z + X.T @ (signed * ahead)))
        moved = np.maximum(ahead - gradient / curvature, 0.0)
        following = 0.5 * (1.0 + np.sqrt(1.0 + 4.0 * momentum**2))
        ahead = moved + ((momentum - 1.0) / following) * (moved - rho)
        rho, momentum = moved, following
    return np.asarray(Z + X.T @ (signed * rho))
