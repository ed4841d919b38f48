"""Fewer neurons, the same predictions, no larger penalty: from any point to one with independent neurons.

Neuron b contributes ``q_b`` (its values on the training samples, outputs and signs included) at the cost
``p_b``. While the ``q_b`` are linearly dependent, ``sum_b beta_b q_b = 0`` with ``sum_b beta_b p_b >= 0``,
the factors ``f_b <- f_b - t beta_b`` change no prediction and do not raise ``sum_b f_b p_b``; the largest
t that keeps them non-negative makes one of them zero. At most rank(q) <= n * outputs neurons remain.
"""

from __future__ import annotations

import numpy as np
import scipy.linalg

from convexnn_models._arrays import Float64Array

_GRAM_LIMIT = 20_000  # neurons; above, only what is needed for the bound is attempted
_DESCENT = 1e-10  # relative size of a cost decrease that is more than rounding


def pruning_factors(hidden: Float64Array, outputs: Float64Array, cost: Float64Array) -> Float64Array:
    """Non-negative factors (m,) that leave at most n * c neurons, none of them dependent on the others.

    ``hidden`` (n, m) are the neurons' values on the samples, ``outputs`` (m, c) their output weights,
    ``cost`` (m,) > 0 their penalties: ``hidden @ (factors[:, None] * outputs)`` and
    ``hidden @ outputs`` agree to rounding, and ``factors @ cost <= cost.sum()``.
    """
    if outputs.shape[1] == 1 or np.any(np.count_nonzero(outputs, axis=1) > 1):
        return _independent(hidden, outputs, cost)
    factors = np.zeros(cost.size)
    for k in range(outputs.shape[1]):
        members = np.flatnonzero(outputs[:, k])
        own = hidden if members.size == cost.size else hidden[:, members]
        factors[members] = _independent(own, outputs[members, k : k + 1], cost[members])
    return factors


def _independent(hidden: Float64Array, outputs: Float64Array, cost: Float64Array) -> Float64Array:
    lengths, heights = np.linalg.norm(hidden, axis=0), np.linalg.norm(outputs, axis=1)
    sizes = lengths * heights
    factors = np.zeros(cost.size)
    live = np.flatnonzero(sizes > 0.0)  # the others cost something and contribute nothing
    if live.size == 0:
        return factors
    used = hidden if live.size == cost.size else hidden[:, live]
    unit_hidden = used / lengths[live]
    unit_outputs = outputs[live] / heights[live][:, None]
    null = _null_space(unit_hidden, unit_outputs)
    factors[live] = _vertex(sizes[live], cost[live] / sizes[live], null) / sizes[live]
    return factors


def _vertex(amounts: Float64Array, cost: Float64Array, null: Float64Array) -> Float64Array:
    """Move ``amounts`` >= 0 along the columns of ``null`` until only independent entries are positive."""
    amounts = amounts.copy()
    while null.shape[1]:
        slopes = cost @ null
        if np.linalg.norm(slopes) > _DESCENT * np.linalg.norm(cost):
            beta = null @ slopes
        else:
            beta = null[:, 0] * (1.0 if slopes[0] >= 0.0 else -1.0)
        falling = np.flatnonzero(beta > 0.0)
        ratios = amounts[falling] / beta[falling]
        step = float(ratios.min())
        leaving = int(falling[np.argmin(ratios)])
        amounts = np.maximum(amounts - step * beta, 0.0)
        amounts[leaving] = 0.0
        null = _without(null, leaving)
    return amounts


def _without(null: Float64Array, row: int) -> Float64Array:
    """A basis of the columns' combinations that vanish in ``row``: one Householder reflection."""
    reflector = null[row].copy()
    length = float(np.linalg.norm(reflector))
    if length == 0.0:
        return null[:, 1:]
    reflector[0] += np.copysign(length, reflector[0])
    reflector /= np.linalg.norm(reflector)
    kept = null[:, 1:] - 2.0 * np.outer(null @ reflector, reflector[1:])
    kept[row] = 0.0
    return np.asarray(kept)


def _null_space(hidden: Float64Array, outputs: Float64Array) -> Float64Array:
    """An orthonormal basis (m, k) of the dependencies between the unit contributions ``z_b a_b^T``."""
    (n, m), c = hidden.shape, outputs.shape[1]
    if m <= n * c:
        if m > _GRAM_LIMIT:
            return np.zeros((m, 0))
        gram = (hidden.T @ hidden) * (outputs @ outputs.T)
        gram[np.diag_indices(m)] -= 1e-6
        if scipy.linalg.lapack.dpotrf(gram.T, overwrite_a=True)[1] == 0:
            return np.zeros((m, 0))
    columns = np.einsum("nm,mc->ncm", hidden, outputs).reshape(n * c, m)
    # Of many samples the triangle says as much, and what the decomposition completes is no larger than m.
    triangle = scipy.linalg.qr(columns, mode="r")[0][:m]
    _, singular, rows = np.linalg.svd(triangle, full_matrices=True)
    tolerance = 10.0 * max(n * c, m) * np.finfo(np.float64).eps * singular[0]
    rank = int(np.count_nonzero(singular > tolerance))
    return np.ascontiguousarray(rows[rank:].T)
