"""Neural decomposition: a lifted matrix of a polynomial network as a sum of neurons, exactly.

Every positive semidefinite ``Z`` (h + 1, h + 1) with ``<J, Z> = 0``, ``J = diag(1, .., 1, -1)``, is a sum
of ``rank(Z)`` matrices ``p p^T`` with ``p^T J p = 0``: such a ``p = (v, t)`` has ``||v|| = |t|``, so it is
``t`` times the lift ``(u, 1)`` of a unit vector ``u = v / t``.
"""

from __future__ import annotations

import numpy as np

from convexnn_models._arrays import Float64Array


def rank_one_terms(Z: Float64Array, tol: float = 1e-14) -> Float64Array:
    """Vectors ``p_1..p_r`` as columns with ``sum p p^T = Z`` and ``p^T J p`` zero to rounding.

    ``Z`` is symmetric positive semidefinite (m, m) with ``trace(Z[:-1, :-1]) == Z[-1, -1]``; eigenvalues
    below ``tol`` times the largest are dropped. While two vectors lie on different sides of the cone
    ``p^T J p = 0``, the pair furthest from it is rotated until one of the two lies on it (``p p^T + q q^T``
    does not change); that one is done. If the trace condition holds only roughly, the last vector keeps
    the remainder.
    """
    values, vectors = np.linalg.eigh(0.5 * (Z + Z.T))
    largest = float(values[-1])
    if largest <= 0.0:
        return np.empty((Z.shape[0], 0))
    keep = values > tol * largest
    pending = list((vectors[:, keep] * np.sqrt(values[keep])).T)
    sides = [_side(p) for p in pending]
    done: list[Float64Array] = []
    negligible = 4.0 * np.finfo(np.float64).eps * float(np.sum(values[keep]))
    while len(pending) > 1:
        high, low = int(np.argmax(sides)), int(np.argmin(sides))
        if sides[high] <= negligible or sides[low] >= -negligible:
            break
        p, q = pending[high], pending[low]
        t = _root(sides[high], float(p[:-1] @ q[:-1] - p[-1] * q[-1]), sides[low])
        scale = 1.0 / np.hypot(1.0, t)
        done.append(scale * (p + t * q))
        pending[high] = scale * (t * p - q)
        sides[high] = _side(pending[high])
        del pending[low], sides[low]
    return np.column_stack([*done, *pending])


def neurons(Z: Float64Array, tol: float = 1e-14) -> tuple[Float64Array, Float64Array]:
    """Unit-norm hidden weights (h, r) and non-negative output weights (r,) whose lift is ``Z``; r = rank(Z).

    See :func:`rank_one_terms`; with ``p = (v, t)`` the neuron is ``u = sign(t) v / ||v||`` with output
    weight ``t^2``. A vector whose ``v`` vanishes carries no direction and is dropped.
    """
    terms = rank_one_terms(Z, tol)
    directions, last = terms[:-1], terms[-1]
    norms = np.sqrt(np.sum(directions * directions, axis=0))
    keep = (norms > 0.0) & (last != 0.0)
    return directions[:, keep] * (np.sign(last[keep]) / norms[keep]), last[keep] ** 2


def even_neurons(Z: Float64Array, tol: float = 1e-14) -> tuple[Float64Array, Float64Array]:
    """The same for even activations (b = 0), where only ``Z[:h, :h]`` counts: its eigendecomposition."""
    corner = Z[:-1, :-1]
    values, vectors = np.linalg.eigh(0.5 * (corner + corner.T))
    keep = values > tol * max(float(values[-1]), 0.0)
    return vectors[:, keep], values[keep]


def _side(p: Float64Array) -> float:
    """``p^T J p``: zero on the cone, computed without cancellation of the squares' sum."""
    norm = float(np.linalg.norm(p[:-1]))
    return (norm - abs(float(p[-1]))) * (norm + abs(float(p[-1])))


def _root(f: float, middle: float, g: float) -> float:
    """A root ``t`` of ``f + 2 t middle + t^2 g`` for ``f > 0 > g``; the one without cancellation."""
    radius = float(np.sqrt(middle * middle - f * g))
    return f / (radius - middle) if middle < 0.0 else (middle + radius) / -g
