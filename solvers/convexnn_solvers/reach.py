"""How far offsets move free variables: what a dual condition that is missed a little can make of a bound.

The condition on a free variable is met to rounding, and what is left counts as often as the variable is
large. Nothing bounds a free variable, so that its size is what the offsets of losses and constraints ask for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from convexnn_solvers.backends import Float64Array

_EPS = float(np.finfo(np.float64).eps)
# Over how many constraints the size of one variable makes others large.
_LINKS = 2


@dataclass(frozen=True, eq=False)
class Offsets:
    """The largest offset of all ``losses`` and that of each of the ``constraints``.

    ``bounds`` (N,) are the sizes of the free variables' largest finite bounds, or zero.
    """

    losses: float
    constraints: tuple[float, ...]
    bounds: Float64Array


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


def reach_of_constraints(blocks: Sequence[Float64Array], offsets: Offsets) -> Float64Array:
    """Per variable (N,) how far constraints with the columns ``blocks`` (outputs, N), and bounds, move it.

    By the largest offset of a constraint over the largest entry of the column there. Of the variables in one
    constraint all can become as large as one: an epigraph ``||x|| <= t`` has no offset, and t is that of x.
    """
    reach = offsets.bounds
    sizes = np.reshape([np.max(np.abs(b), axis=0, initial=0.0) for b in blocks], (len(blocks), reach.size))
    found = np.broadcast_to(np.reshape(offsets.constraints, (len(blocks), 1)), sizes.shape)
    for _ in range(1 + _LINKS):
        quotients = np.divide(found, sizes, out=np.zeros(sizes.shape), where=sizes > 0.0)
        reach = np.maximum(reach, np.max(quotients, axis=0, initial=0.0))
        found = np.broadcast_to(np.linalg.norm(sizes * reach, axis=1, keepdims=True), sizes.shape)
    return reach
