"""Lower bounds for any loss that our solvers read: the best multiple of the residual of a point."""

from __future__ import annotations

from collections.abc import Callable

import cvxpy as cp
import numpy as np

from convexnn_models import losses
from convexnn_models._arrays import Float64Array
from convexnn_models.model import Training
from convexnn_solvers.backends import numpy_backend
from convexnn_solvers.compiler import UnsupportedProblem, compile_problem

_GOLDEN = (5.0**0.5 - 1.0) / 2.0


def residual_bound(
    training: Training,
    prediction: Float64Array,
    gauge: Callable[[Float64Array], float],
    limit: float,
) -> tuple[float, Float64Array] | None:
    """The best lower bound ``-F*(-s theta)``, ``theta = -grad F(prediction)``, over s >= 0, and s theta.

    F is the training loss. Every theta with ``gauge(theta) <= limit`` is dual feasible, and gauge is
    positively homogeneous. None when the loss is none that our solvers read.
    """
    half = cp.Variable(prediction.shape)  # doubled below: linear terms of a bare variable leave their loss
    loss = losses.expression(training.loss, 2.0 * half, training.y, **training.options)
    try:
        composite = compile_problem(cp.Problem(cp.Minimize(loss)), numpy_backend()).composite()
    except UnsupportedProblem:
        return None
    if composite.penalties or composite.constraints or any(np.any(c) for c in composite.linear):
        return None
    outputs = composite.affine.forward((0.5 * prediction,))
    offsets = composite.affine.forward((np.zeros(prediction.shape),))
    thetas = [-gradient for gradient in composite.loss_gradients(outputs)]
    theta = 0.5 * np.asarray(composite.affine.adjoint(tuple(thetas))[0], dtype=np.float64)
    fixed = sum(float(np.sum(t * b)) for t, b in zip(thetas, offsets, strict=True))

    def bound(s: float) -> float:
        parts = [
            term.loss.conjugate(-s * t, term.weight) for term, t in zip(composite.losses, thetas, strict=True)
        ]
        return composite.constant - s * fixed - sum(parts)

    largest = gauge(theta)
    most = min(limit / largest, 2.0) if largest > 0.0 else 2.0
    s = max((0.0, min(1.0, most), most, _argmax(bound, most)), key=bound)
    return bound(s), s * theta


def _argmax(concave: Callable[[float], float], high: float) -> float:
    """Golden-section search on [0, high] for a concave function that is finite at 0 (-inf further on)."""
    low = 0.0
    left, right = high - _GOLDEN * high, _GOLDEN * high
    at_left, at_right = concave(left), concave(right)
    for _ in range(60):
        if at_left >= at_right:  # also where both are -inf: the finite part is on the left
            high, right, at_right = right, left, at_left
            left = high - _GOLDEN * (high - low)
            at_left = concave(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + _GOLDEN * (high - low)
            at_right = concave(right)
    return 0.5 * (low + high)
