"""How far offsets move free variables: what a dual condition that is missed a little can make of a bound.

The condition on a free variable is met to rounding, and what is left counts as often as the variable is
large. Nothing bounds a free variable, so that its size is what the offsets of losses and constraints ask for.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from convexnn_solvers.backends import Float64Array

_EPS = float(np.finfo(np.float64).eps)


def reach_of_losses(columns: Float64Array) -> Float64Array:
    """Rows ``R`` (k, N) with ``|b . v| <= |R v|`` for all v, ``b`` the least fit of offsets of size one.

    From the singular values of the ``columns`` (outputs, N) of all losses, in units of one offset per row.
    """
    largest = np.max(np.abs(columns), axis=0, initial=0.0)
    if not np.any(largest > 0.0):
        return np.zeros((0, largest.size))
    scale = np.where(largest > 0.0, largest, 1.0)
    _, values, right = np.linalg.svd(np.linalg.qr(columns / scale, mode="r"))
    kept = values > _EPS * max(columns.shape) * values[0]
    reached = right[: values.size][kept] / values[kept, None]
    return np.asarray(np.sqrt(columns.shape[0]) * reached / scale)


def reach_of_constraints(blocks: Sequence[Float64Array], offsets: Sequence[float]) -> Float64Array:
    """Per variable (N,) how far constraints with columns ``blocks`` (outputs, N) and largest offsets move it.

    By the largest offset of a constraint over the largest entry of the column there.
    """
    count = blocks[0].shape[1]
    reach = np.zeros(count)
    for block, offset in zip(blocks, offsets, strict=True):
        entry = np.max(np.abs(block), axis=0, initial=0.0)
        reach = np.maximum(reach, np.where(entry > 0.0, offset / np.where(entry > 0.0, entry, 1.0), 0.0))
    return reach
