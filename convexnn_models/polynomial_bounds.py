"""Lower bounds for polynomial networks: the largest response of any neuron, bounded rigorously.

The dual of the lifted program constrains ``sum_i theta_i <Q_i, z z^T>``, ``z = (u, 1)``, over all unit
vectors ``u``, a quadratic form on the sphere. For any ``eta`` and ``t`` with ``S = t E + eta J - Q(theta)``
positive semidefinite (``E`` the last diagonal entry, ``J = diag(1, .., 1, -1)``) its maximum is at most
``t``, and the best such ``t`` is the maximum.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from convexnn_models._arrays import Float64Array
from convexnn_models.polynomial_features import CellFeatures

_EPS = float(np.finfo(np.float64).eps)


def sphere_maximum(Q: Float64Array, rounding: float = 0.0) -> float:
    """An upper bound, tight to rounding, of ``(u, 1)^T Q (u, 1)`` over unit vectors ``u``.

    ``Q`` is symmetric (h + 1, h + 1). ``rounding`` bounds the spectral norm of the error in ``Q`` itself;
    the bound holds for every matrix that close. ``S`` is checked through its smallest eigenvalue: if it is
    at least ``-delta`` then the maximum is at most ``t + 2 delta``, as ``||(u, 1)||^2 = 2``.
    """
    h = Q.shape[0] - 1
    values, vectors = np.linalg.eigh(Q[:h, :h])
    squares = (vectors.T @ Q[:h, h]) ** 2
    eta = _multiplier(values, squares)
    apart = eta > values
    t: float = eta + float(Q[h, h]) + float(np.sum(squares[apart] / (eta - values[apart])))
    slack = -Q
    slack[np.arange(h), np.arange(h)] += eta
    slack[h, h] += t - eta
    lowest = np.linalg.eigvalsh(slack)
    margin = 10.0 * (h + 1) * _EPS * float(np.max(np.abs(lowest)) + abs(eta) + abs(t))
    delta: float = max(0.0, -float(lowest[0])) + margin + rounding
    return t + 2.0 * delta


def response_bound(cells: Sequence[CellFeatures], theta: Float64Array) -> float:
    """An upper bound of ``|sum_i theta_i s_i(u)|`` over all cells and all unit-norm neurons ``u``."""
    largest = 0.0
    for cell in cells:
        Q = cell.adjoint(theta)
        terms = theta.size + cell.width + 10
        rounding = 2.0 * terms * _EPS * float(np.abs(theta) @ cell.sizes)
        largest = max(largest, sphere_maximum(Q, rounding), sphere_maximum(-Q, rounding))
    return largest


def squared_loss_bound(
    cells: Sequence[CellFeatures], theta: Float64Array, y: Float64Array, reg: float
) -> tuple[float, Float64Array]:
    """A lower bound for one output with loss ``||prediction - y||^2 / (2 n)``, and the dual point behind it.

    ``theta`` (n,) is any candidate; the best feasible multiple ``s theta`` gives ``<s theta, y> - n ||s
    theta||^2 / 2``. At an optimum ``theta = (y - prediction) / n`` gives the optimal value.
    """
    n = y.size
    size = float(theta @ theta)
    if size == 0.0:
        return 0.0, np.zeros(n)
    largest = response_bound(cells, theta)
    limit = reg / largest if largest > 0.0 else np.inf
    scaled = float(np.clip(float(theta @ y) / (n * size), -limit, limit)) * theta
    return float(scaled @ y) - 0.5 * n * float(scaled @ scaled), scaled


def _multiplier(values: Float64Array, squares: Float64Array) -> float:
    """``eta >= max(values)`` with ``sum squares / (eta - values)^2 <= 1``, equal unless the maximum is flat.

    ``1 / sqrt(sum)`` is concave and increasing in ``eta``, so Newton's method from the left converges; every
    returned value is valid, only the tightness of the bound depends on it.
    """
    top = float(values[-1])
    norm = float(np.sqrt(np.sum(squares)))
    scale = norm + float(np.max(np.abs(values)))
    if norm <= _EPS * scale:
        return top
    low = max(float(np.max(values + np.sqrt(squares))), top + _EPS * scale)
    eta = low
    for _ in range(100):
        gaps = eta - values
        total = float(np.sum(squares / gaps**2))
        root = float(np.sqrt(total))
        step = (root - 1.0) * total / float(np.sum(squares / gaps**3))
        eta = max(low, eta + step)
        if abs(root - 1.0) <= 4.0 * _EPS or eta == low:
            break
    return eta
