"""Lower bounds for any loss that our solvers read: the best multiple of the residual of a point."""

from __future__ import annotations

from collections.abc import Callable

import cvxpy as cp
import numpy as np

from convexnn_models import losses
from convexnn_models._arrays import Float64Array
from convexnn_models.model import Training
from convexnn_solvers.backends import numpy_backend
from convexnn_solvers.certify.concave_search import maximise
from convexnn_solvers.reading.compiler import UnsupportedProblem, compile_problem


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
    s = maximise(bound, 0.0, most)
    return bound(s), s * theta
