"""How far offsets move free variables: what a dual condition that is missed a little can make of a bound.

The condition on a free variable is met to rounding, and what is left counts as often as the variable is
large. Nothing bounds a free variable, so that its size is what the offsets of losses and constraints ask for.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from convexnn_solvers.backends import Float64Array

_EPS = float(np.finfo(np.float64).eps)
_LARGEST = float(np.finfo(np.float64).max)
# Over how many constraints the size of one variable makes larger what was reached before; what was not is
# reached over as many as it takes.
_LINKS = 2


@dataclass(frozen=True, eq=False)
class Offsets:
    """The largest offset of all ``losses`` and that of each of the ``constraints``.

    ``equalities`` (k,) are those of the rows of all equalities, and ``bounds`` (N,) the sizes of the free
    variables' largest finite bounds, or zero.
    """

    losses: float
    constraints: tuple[float, ...]
    equalities: Float64Array
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
    count = len(blocks)
    sizes = np.reshape([np.max(np.abs(b), axis=0, initial=0.0) for b in blocks], (count, offsets.bounds.size))

    def farthest(found: Float64Array) -> Float64Array:
        sides = np.broadcast_to(found, sizes.shape)
        with np.errstate(over="ignore"):
            quotients = np.divide(sides, sizes, out=np.zeros(sizes.shape), where=sizes > 0.0)
        return np.asarray(np.minimum(np.max(quotients, axis=0, initial=0.0), _LARGEST))

    reach = np.maximum(offsets.bounds, farthest(np.reshape(offsets.constraints, (count, 1))))
    for rounds in itertools.count():
        with np.errstate(over="ignore"):
            sides = np.linalg.norm(sizes * reach, axis=1, keepdims=True)
        further = np.maximum(reach, farthest(sides))
        if rounds >= _LINKS:  # round a circle of constraints sizes may grow for ever
            further = np.where(reach > 0.0, reach, further)
        if np.array_equal(further, reach):
            break
        reach = further
    return reach


def reach_of_equalities(columns: Float64Array, offsets: Float64Array) -> Float64Array:
    """Rows ``R`` (k, N) with ``|b . v| <= sum(|R v|)`` for all v, ``b`` the least ``columns b = o``.

    For any ``|o| <= offsets`` (outputs,). Two rows almost alike take b much further than each alone.
    """
    if not np.any(offsets):  # without singular values, which take a while
        return np.zeros((0, columns.shape[1]))
    rows = np.linalg.norm(columns, axis=1)
    rows = np.where(rows > 0.0, rows, 1.0)
    unit = columns / rows[:, None]
    largest = np.max(np.abs(unit), axis=0, initial=0.0)
    scale = np.where(largest > 0.0, largest, 1.0)
    inverse = np.linalg.pinv(unit / scale, rcond=_EPS * max(columns.shape)).T / scale
    reached = inverse * (np.abs(offsets) / rows)[:, None]
    return np.asarray(reached[offsets != 0.0], dtype=np.float64)
