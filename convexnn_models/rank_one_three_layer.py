"""Three-layer ReLU networks that fit rank-one data: closed forms, and the gap of the standard architecture.

Let ``X = c a^T`` with ``||a|| = 1``, and ``y_i = c_i p`` where ``c_i > 0``, ``y_i = |c_i| q`` where
``c_i < 0``. Only the directions +a and -a matter in the first layer; with norms t and u of these two neurons
the outputs p / t and q / u remain to be made by non-negative combinations r of second-layer neurons, at the
cost of the gauge of {r v^T : r >= 0, ||r|| <= 1, ||v|| <= 1}. For two rows that gauge is the nuclear norm
when the rows form no obtuse angle, and the sum of the rows' norms when they do. So the least weight decay is
``3/2 N^(2/3)`` with

    N^2 = min_z  P^2 (1 + z^2) + Q^2 (1 + 1 / z^2) + 2 P Q sin(w) (z + 1 / z),

P = ||p||, Q = ||q||, w the angle between p and q (a right one if it is obtuse), z = u / t. For w = 0 it is
N = P + Q, the dual value; for right and obtuse angles N = (P^(2/3) + Q^(2/3))^(3/2).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from convexnn_models import _arrays
from convexnn_models._arrays import Float64Array
from convexnn_models.deep_network import DeepNetwork, Layers
from convexnn_solvers.named_options import checked_options

_RELATIVE = 1e-9  # how far data may be from rank one and from the two directions


@dataclass(frozen=True)
class RankOneThreeLayer:
    """The closed forms of :func:`rank_one_three_layer`.

    Attributes
    ----------
    p, q : array (k,)
        The outputs per unit of positive and of negative ``X a``.
    dual : float
        What Lagrangian duality proves about the standard network: ``3/2 (||p|| + ||q||)^(2/3)``.
    standard : float
        The least weight decay ``1/2 sum ||W_l||_F^2`` of a standard network that fits the data.
    parallel : float
        The least penalty ``1/2 sum ||W||_F^3`` of parallel branches, ``3/2 (||p|| + ||q||)``: no gap.
    zero_gap : bool
        Whether ``dual == standard``: p or q vanishes, or they point in the same direction.
    standard_network, parallel_network : DeepNetwork
        Networks that attain ``standard`` and ``parallel``.
    """

    p: Float64Array
    q: Float64Array
    dual: float
    standard: float
    parallel: float
    zero_gap: bool
    standard_network: DeepNetwork
    parallel_network: DeepNetwork

    @property
    def gap(self) -> float:
        """The duality gap of the standard network."""
        return self.standard - self.dual


@checked_options
def rank_one_three_layer(X: Any, Y: Any) -> RankOneThreeLayer:
    """What fitting rank-one data exactly costs three-layer ReLU networks, standard and parallel.

    ``X`` (n, d) of rank one, ``Y`` (n,) or (n, k) with ``y_i`` proportional to one direction on each side
    of the origin: ``y_i = c_i p`` for ``c_i > 0``, ``|c_i| q`` for ``c_i < 0``, zero for ``c_i = 0``. Raises
    ValueError, naming the condition, when the data is not like that.
    """
    data, target = _arrays.features(X), _arrays.numbers(Y, "Y")
    if target.ndim not in (1, 2) or target.shape[0] != data.shape[0] or 0 in target.shape:
        raise ValueError(f"Y must have shape ({data.shape[0]},) or ({data.shape[0]}, k), not {target.shape}.")
    target = target.reshape(data.shape[0], -1)
    left, singular, right = np.linalg.svd(data, full_matrices=False)
    if singular[0] == 0.0:
        raise ValueError("X is all zero; rank-one data needs a sample that is not.")
    if singular.size > 1 and singular[1] > _RELATIVE * singular[0]:
        raise ValueError(
            f"X must have rank one, but its second singular value is {singular[1] / singular[0]:.1e} of the "
            "first; use three_layer(X, gates) for a few samples of any rank."
        )
    a = right[0]
    c = singular[0] * left[:, 0]
    p, q = _side(c, target), _side(-c, target)
    fitted = np.maximum(c, 0.0)[:, None] * p + np.maximum(-c, 0.0)[:, None] * q
    error = float(np.linalg.norm(fitted - target))
    if error > _RELATIVE * max(float(np.linalg.norm(target)), np.finfo(np.float64).tiny):
        raise ValueError(
            "Y must be proportional to X on each side of the origin (y_i = c_i p for c_i > 0 and |c_i| q for "
            f"c_i < 0), but is off by {error:.1e}; use three_layer(X, gates)."
        )
    P, Q = float(np.linalg.norm(p)), float(np.linalg.norm(q))
    sine = _sine(p, q) if P > 0.0 and Q > 0.0 else 0.0
    layers, N = _standard(a, p, q, sine)
    branches = [_branch(sign * a, side) for sign, side in ((1.0, p), (-1.0, q)) if np.any(side)]
    shape = (data.shape[1], target.shape[1])
    return RankOneThreeLayer(
        p=p,
        q=q,
        dual=1.5 * (P + Q) ** (2.0 / 3.0),
        standard=1.5 * N ** (2.0 / 3.0),
        parallel=1.5 * (P + Q),
        zero_gap=sine <= _RELATIVE,
        standard_network=DeepNetwork(layers, shape, slope=0.0),
        parallel_network=DeepNetwork(tuple(branches), shape, slope=0.0),
    )


def _side(c: Float64Array, target: Float64Array) -> Float64Array:
    """The best ``p`` in ``y_i = c_i p`` over the samples with ``c_i > 0``; zero when there are none."""
    weight = np.maximum(c, 0.0)
    total = float(weight @ weight)
    return weight @ target / total if total > 0.0 else np.zeros(target.shape[1])


def _sine(p: Float64Array, q: Float64Array) -> float:
    """The sine of the angle between two vectors; of a right angle if it is obtuse."""
    unit, other = p / np.linalg.norm(p), q / np.linalg.norm(q)
    cosine = float(unit @ other)
    return float(np.linalg.norm(unit - cosine * other)) if cosine > 0.0 else 1.0


def _standard(
    a: Float64Array, p: Float64Array, q: Float64Array, sine: float
) -> tuple[tuple[Layers, ...], float]:
    """The best standard network and its N."""
    P, Q = float(np.linalg.norm(p)), float(np.linalg.norm(q))
    if P == 0.0 or Q == 0.0:
        if P == Q:
            return (), 0.0
        return (_branch(a, p) if Q == 0.0 else _branch(-a, q),), P + Q
    z = _best_ratio(P, Q, sine)
    N = np.sqrt(P * P * (1 + z * z) + Q * Q * (1 + 1 / (z * z)) + 2 * P * Q * sine * (z + 1 / z))
    radius = float(N) ** (1.0 / 3.0)
    t, u = radius / np.hypot(1.0, z), radius * z / np.hypot(1.0, z)
    rows = np.vstack([p / t, q / u])
    R, V = _nonnegative_factors(rows)
    return ((np.column_stack([t * a, -u * a]), R, V),), float(N)


def _nonnegative_factors(rows: Float64Array) -> tuple[Float64Array, Float64Array]:
    """``rows = R V`` with ``R >= 0`` (2, m) and ``||R||_F = ||V||_F`` least possible."""
    if float(rows[0] @ rows[1]) <= 0.0:
        norms = np.linalg.norm(rows, axis=1)
        return np.diag(np.sqrt(norms)), rows / np.sqrt(norms)[:, None]
    left, singular, right = np.linalg.svd(rows, full_matrices=False)
    polar = left @ right
    # The square root B of rows rows^T has no negative entry here: its Cholesky factor has none either.
    B = (left * singular) @ left.T
    first = B[:, 0] / np.sqrt(B[0, 0])
    rest = max(0.0, float(B[1, 1] - first[1] ** 2))
    R = np.column_stack([first, [0.0, np.sqrt(rest)]])
    return R, R.T @ polar


def _best_ratio(P: float, Q: float, sine: float) -> float:
    """The minimiser z > 0 of N^2; in log z it is a sum of exponentials, hence convex: Newton's method."""
    x = 0.5 * (np.log(Q) - np.log(P))
    for _ in range(100):
        up, down = P * P * np.exp(2 * x), Q * Q * np.exp(-2 * x)
        mixed = P * Q * sine
        slope = 2 * (up - down) + 2 * mixed * (np.exp(x) - np.exp(-x))
        curvature = 4 * (up + down) + 2 * mixed * (np.exp(x) + np.exp(-x))
        step = slope / curvature
        x -= step
        if abs(step) <= 1e-15 * (1.0 + abs(x)):
            break
    return float(np.exp(x))


def _branch(a: Float64Array, output: Float64Array) -> Layers:
    """``(X a)_+ output`` through three layers of equal norm."""
    root = float(np.linalg.norm(output)) ** (1.0 / 3.0)
    return root * a[:, None], np.array([[root]]), output[None, :] / (root * root)
