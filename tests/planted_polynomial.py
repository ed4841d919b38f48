"""Polynomial programs with known optima, and the formulations that every solver is tried on."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

import convexnn_models as cnn

Array = NDArray[np.float64]
RELU_LIKE = (0.09, 0.5, 0.47)


def maximum_by_pencil(Q: Array) -> tuple[float, Array]:
    """The maximum of ``(u, 1)^T Q (u, 1)`` over the unit sphere, and where, through one eigenvalue problem.

    With ``(eta - A) u = b``, ``||u|| = 1`` at the maximum, ``eta`` is the largest real eigenvalue of
    ``[[A, I], [b b^T, A]]``; another way than the package's.
    """
    h = Q.shape[0] - 1
    A, b = Q[:h, :h], Q[:h, h]
    values = np.linalg.eigvals(np.block([[A, np.eye(h)], [np.outer(b, b), A]]))
    eta = float(values.real[np.abs(values.imag) <= 1e-7 * (1.0 + np.abs(values))].max())
    direction = np.linalg.solve(eta * np.eye(h) - A, b)
    u: Array = np.asarray(direction / np.linalg.norm(direction), dtype=np.float64)
    return float(u @ A @ u + 2.0 * b @ u + Q[h, h]), u


def quadratic_form(patches: Array, theta: Array, coefficients: tuple[float, float, float]) -> Array:
    """``sum_i theta_i Q_i`` for patches (n, K, h), sample by sample."""
    a, b, c = coefficients
    h = patches.shape[2]
    total = np.zeros((h + 1, h + 1))
    for sample, weight in zip(patches, theta, strict=True):
        for x in sample:
            Q = np.zeros((h + 1, h + 1))
            Q[:h, :h] = a * np.outer(x, x)
            Q[:h, h] = Q[h, :h] = 0.5 * b * x
            Q[h, h] = c
            total += weight / sample.shape[0] * Q
    return total


def planted(
    n: int, K: int, h: int, coefficients: tuple[float, float, float], seed: int
) -> tuple[Array, Array, float, float]:
    """Patches, targets, reg and the optimal value: one optimal neuron, theta as its own certificate."""
    rng = np.random.default_rng(seed)
    patches, theta = rng.standard_normal((n, K, h)), rng.standard_normal(n) / n
    ends = [maximum_by_pencil(sign * quadratic_form(patches, theta, coefficients)) for sign in (1.0, -1.0)]
    k = int(ends[1][0] > ends[0][0])
    reg, u = ends[k]
    a, b, c = coefficients
    t = patches @ u
    y = (1.0, -1.0)[k] * 1.7 * (a * t * t + b * t + c).mean(axis=1) + n * theta
    return patches, y, reg, float(theta @ y - 0.5 * n * theta @ theta)


VARIANTS: list[tuple[tuple[float, float, float], dict[str, Any]]] = [
    (RELU_LIKE, {}),
    (RELU_LIKE, {"bias": True, "output_bias": True}),
    ((1.0, 0.0, 0.0), {}),
    ((0.7, 0.0, -0.3), {"output_bias": True}),
    ((-0.5, 0.4, 0.1), {"outputs": 2}),
    ((0.3, -0.4, 0.1), {"cells": cnn.global_pooling(4)}),
    ((0.3, -0.4, 0.1), {"cells": cnn.local_pooling(4, 2), "bias": True}),
    ((0.3, 0.0, 0.1), {"cells": cnn.flatten(4)}),
    ((0.3, -0.4, 0.1), {"cells": cnn.flatten(4), "outputs": 2, "output_bias": True}),
]


def variant(
    coefficients: tuple[float, float, float], options: dict[str, Any]
) -> tuple[cnn.PolynomialModel, Array]:
    rng = np.random.default_rng(11)
    patches = rng.standard_normal((24, 4, 3))
    y = rng.standard_normal((24, 2)) + 1.0
    model = cnn.polynomial(patches if "cells" in options else patches[:, 0], *coefficients, **options)
    return model, y if model.outputs == 2 else y[:, 0]
