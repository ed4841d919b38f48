"""How far a point of a polynomial model is from the optimum, whoever found it."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import numpy as np

from convexnn_models import losses
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
from convexnn_models.polynomial import Pair, PolynomialModel
from convexnn_models.polynomial_bounds import response_bound, squared_loss_bound
from convexnn_solvers.certify.certificate import Certificate
from convexnn_solvers.named_options import checked_options

_SCOPE = "for all networks with this activation"


@checked_options
def polynomial_certificate(model: PolynomialModel, thetas: Iterable[Any] = ()) -> Certificate:
    """How far the values of a polynomial model's variables are from the optimum of its latest problem.

    The bound covers every network with this activation, of any width. ``primal`` is the objective of a
    feasible copy of the point (positive semidefinite, balanced traces); ``max_violation`` says by how much
    the point as held was not. The dual point behind the bound is verified in float64: the response of
    *every* unit-norm neuron is bounded through the smallest eigenvalue of the dual slack, with a margin for
    rounding. For other losses than the squared one there is no bound beside a free output
    bias, nor for losses that our solvers do not read; the note says so.

    ``thetas`` are further dual candidates, each (n,) or (n, c). Raises ValueError when a variable has no
    value or ``model.problem`` was never called.
    """
    refuse_other_models(model, PolynomialModel, "polynomial(X, a, b, c)")
    training = known_training(model)
    held = [[(held_value(p), held_value(m)) for p, m in row] for row in model.pairs]
    violation = max(_violation(model, Z) for row in held for pair in row for Z in pair)
    pairs = feasible_pairs(model)
    scores = model.scores(pairs, held_bias(model))
    penalty = sum(float(p[-1, -1] + m[-1, -1]) for row in pairs for p, m in row)
    primal = training.objective(scores, penalty)
    found = None
    if training.loss is losses.squared:
        y, reg = squared_targets(model)
        candidates = [(y - scores.reshape(y.shape)) / y.shape[0], *matching(thetas, y)]
        if model.thetas is not None:
            candidates.append(model.thetas)
        found = _best_bound(model, candidates, y, reg)
    elif model.output_bias is None:
        found = residual_bound(training, scores, partial(_largest, model), float(training.reg.value))
    return certified(model, primal, scores.shape, found, scope=_SCOPE, violation=violation)


def feasible_pairs(model: PolynomialModel) -> list[list[Pair]]:
    """What the variables hold, made feasible, as (h + 1, h + 1) matrices: by output, then by cell."""
    return [
        [(balanced(model, held_value(p)), balanced(model, held_value(m))) for p, m in row]
        for row in model.pairs
    ]


def balanced(model: PolynomialModel, value: Float64Array) -> Float64Array:
    """The lift of the nearest positive semidefinite matrix, the smaller trace raised to the other."""
    symmetric = 0.5 * (value + value.T)
    values, vectors = np.linalg.eigh(symmetric)
    if values[0] < 0.0:
        symmetric = (vectors * np.maximum(values, 0.0)) @ vectors.T
    Z = np.array(model.lifted(symmetric))
    h = Z.shape[0] - 1
    missing = float(Z[h, h] - np.trace(Z[:h, :h]))
    if missing > 0.0:
        Z[np.arange(h), np.arange(h)] += missing / h
    elif missing < 0.0:
        Z[h, h] -= missing
    return Z


def _largest(model: PolynomialModel, theta: Float64Array) -> float:
    """A bound of every neuron's response to ``theta``, over all outputs."""
    columns = theta.reshape(-1, model.outputs).T
    return max(response_bound(model.features, column) for column in columns)


def _best_bound(
    model: PolynomialModel, candidates: list[Float64Array], y: Float64Array, reg: float
) -> tuple[float, Float64Array]:
    """The outputs are separate problems: the best candidate and the best scale for each."""
    features = model.fitted_features
    total, best = 0.0, np.zeros_like(y)
    for k in range(model.outputs):
        value = -np.inf
        for candidate in candidates:
            theta = candidate[:, k]
            if model.output_bias is not None:
                theta = theta - theta.mean()
            bound, scaled = squared_loss_bound(features, theta, y[:, k], reg)
            if bound > value:
                value, best[:, k] = bound, scaled
        total += value
    return total, best


def _violation(model: PolynomialModel, value: Float64Array) -> float:
    """How far ``value`` is from semidefinite and from balanced traces; rounding counts as none."""
    Z = model.lifted(value)
    lowest = float(np.linalg.eigvalsh(0.5 * (value + value.T))[0])
    unbalanced = abs(float(np.trace(Z[:-1, :-1]) - Z[-1, -1]))
    worst = max(-lowest, unbalanced, float(np.abs(value - value.T).max()))
    return worst if worst > 1e-13 * (1.0 + float(np.abs(value).max())) else 0.0
