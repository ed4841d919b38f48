"""Which penalties of a variable stay in its proximal map, in which order, and which become split losses.

Penalties of different entries do not meet. Of penalties of the same entries the proximal map is known where
groups are nested, each inside one group of the next (an l1 norm inside a group norm: the sparse group lasso):
it is the composition, from the inside out (Jenatton, Mairal, Obozinski and Bach, 2011). A sign of the
variable may come first. Everything else, such as a group norm inside a general box, is split.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from convexnn_solvers.backends import Float64Array
from convexnn_solvers.penalties import AbsoluteValue, GroupNorm, NuclearNorm, Penalty
from convexnn_solvers.terms import LossReading, PenaltyReading
from convexnn_solvers.variables import is_general_box, read_variable

Labels = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class ProximalPenalty:
    """Penalties of one kind on different entries of one variable, as one: ``positions`` stacks theirs."""

    readings: tuple[PenaltyReading, ...]
    penalty: Penalty
    positions: NDArray[np.int64]

    def weigh(self, weights: Sequence[Float64Array]) -> Float64Array:
        """The weights per group of the stack, from the weight of every atom."""
        groups = [r.weigh(w) for r, w in zip(self.readings, weights, strict=True)]
        if len(groups) == 1:
            return groups[0]
        if isinstance(self.penalty, AbsoluteValue):
            spread = [
                np.broadcast_to(g, r.positions.shape) for g, r in zip(groups, self.readings, strict=True)
            ]
            return np.concatenate([np.ravel(g) for g in spread])
        return np.array([float(g) for g in groups])


def arranged(
    readings: Sequence[PenaltyReading], in_cones: Collection[int]
) -> tuple[list[ProximalPenalty], list[LossReading]]:
    """What the proximal maps take, inner penalties first, and what has to be split.

    ``in_cones`` holds the ids of the variables that lie in pattern cones: their columns are projected
    exactly beside one penalty, so that further ones are split.
    """
    kept: list[PenaltyReading] = []
    split: list[PenaltyReading] = []
    for reading in sorted(readings, key=_size):
        before = [r for r in kept if r.variable is reading.variable]
        (kept if _fits(reading, before, in_cones) else split).append(reading)
    return _merged(kept), [reading.loss for reading in readings if any(reading is s for s in split)]


def _fits(reading: PenaltyReading, before: Sequence[PenaltyReading], in_cones: Collection[int]) -> bool:
    """Whether the proximal map of a variable can take a penalty around those ``before``."""
    entrywise = isinstance(reading.penalty, AbsoluteValue)
    if not entrywise and is_general_box(read_variable(reading.variable)):
        return False
    labels = _labels(reading)
    for other in before:
        inner = _labels(other)
        both = (labels >= 0) & (inner >= 0)
        if not both.any():
            continue
        if reading.variable.id in in_cones or not _nested(inner, labels, other, reading):
            return False
    return True


def _nested(inner: Labels, outer: Labels, first: PenaltyReading, second: PenaltyReading) -> bool:
    """Whether every group of the first that meets one of the second lies inside it."""
    if not isinstance(second.penalty, GroupNorm) or isinstance(first.penalty, NuclearNorm):
        return False
    inside = inner >= 0
    order = np.argsort(inner[inside], kind="stable")
    groups, around = inner[inside][order], outer[inside][order]
    same = groups[1:] == groups[:-1]
    return bool(np.all(around[1:][same] == around[:-1][same]))


def _labels(reading: PenaltyReading) -> Labels:
    """The group of every entry of the variable, -1 where the penalty does not reach."""
    labels = np.full(reading.variable.size, -1)
    shape = reading.positions.shape
    penalty = reading.penalty
    if isinstance(penalty, AbsoluteValue):
        groups = np.arange(reading.positions.size).reshape(shape)
    elif isinstance(penalty, GroupNorm) and penalty.axis is not None:
        others = tuple(np.delete(shape, penalty.axis).tolist())
        numbers = np.expand_dims(np.arange(int(np.prod(others))).reshape(others), penalty.axis)
        groups = np.broadcast_to(numbers, shape)
    else:
        groups = np.zeros(shape, dtype=np.int64)
    labels[reading.positions.ravel()] = groups.ravel()
    return labels


def _size(reading: PenaltyReading) -> tuple[int, int]:
    """Inner penalties before outer ones: entries, then groups by their size."""
    if isinstance(reading.penalty, AbsoluteValue):
        return 0, 0
    labels = _labels(reading)
    return 1, int(np.max(np.bincount(labels[labels >= 0]), initial=0))


def _merged(kept: Sequence[PenaltyReading]) -> list[ProximalPenalty]:
    """Equal penalties of disjoint entries of equal number as one, in the order of the first."""
    groups: dict[object, list[PenaltyReading]] = {}
    for k, reading in enumerate(kept):
        key: object = k
        if reading.positions.size < reading.variable.size:
            kind = reading.penalty
            if isinstance(kind, AbsoluteValue):
                key = (reading.variable.id, kind)
            elif kind == GroupNorm(None):
                key = (reading.variable.id, kind, reading.positions.size)
            elif isinstance(kind, NuclearNorm):
                key = (reading.variable.id, kind, reading.positions.shape)
        groups.setdefault(key, []).append(reading)
    found = []
    for members in groups.values():
        positions, penalty = [r.positions for r in members], members[0].penalty
        if len(members) == 1:
            found.append(ProximalPenalty((members[0],), penalty, positions[0]))
        elif isinstance(penalty, AbsoluteValue):
            flat = np.concatenate([np.ravel(p) for p in positions])
            found.append(ProximalPenalty(tuple(members), penalty, flat))
        elif isinstance(penalty, NuclearNorm):
            found.append(ProximalPenalty(tuple(members), penalty, np.stack(positions)))
        else:
            stacked = np.stack([np.ravel(p) for p in positions])
            found.append(ProximalPenalty(tuple(members), GroupNorm(1), stacked))
    return found
