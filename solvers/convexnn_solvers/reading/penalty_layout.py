"""Which penalties of a variable stay in its proximal map, in which order, and which become split losses.

Penalties of different entries do not meet, and the same one twice is one. Of penalties of the same entries
the proximal map is known where groups are nested, each inside one group of the next (an l1 norm inside a
group norm: the sparse group lasso): it is the composition, from the inside out (Jenatton, Mairal, Obozinski
and Bach, 2011). A sign of the variable may come first. Everything else, such as a group norm inside a general
box, is split.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from convexnn_solvers.backends import Float64Array
from convexnn_solvers.functions.penalties import GroupNorm, NuclearNorm, Penalty
from convexnn_solvers.reading.terms import LossReading, PenaltyReading
from convexnn_solvers.reading.variables import is_general_box, read_variable

Labels = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class ProximalPenalty:
    """Penalties of one kind on different entries of one variable as one, whose ``positions`` are stacked, or
    the same penalty several times.
    """

    readings: tuple[PenaltyReading, ...]
    penalty: Penalty
    positions: NDArray[np.int64]

    def weigh(self, weights: Sequence[Float64Array]) -> Float64Array:
        """The weights per group of the stack, from the weight of every atom."""
        groups = [r.weigh(w) for r, w in zip(self.readings, weights, strict=True)]
        if len(groups) == 1 or _repeats(self.readings[1], self.readings[0]):
            return np.asarray(sum(groups))
        if self.penalty.entrywise:
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
    exactly beside one penalty, that of columns where there is one, so that further ones are split.
    """
    kept: list[PenaltyReading] = []
    split: list[PenaltyReading] = []

    def order(reading: PenaltyReading) -> tuple[int, int, int]:
        projectable = reading.variable.id in in_cones and _within_columns(reading)
        return (0 if projectable else 1, *_size(reading))

    for reading in sorted(readings, key=order):
        before = [r for r in kept if r.variable is reading.variable]
        fits = any(_repeats(reading, r) for r in before) or _fits(reading, before, in_cones)
        (kept if fits else split).append(reading)
    return _merged(kept), [reading.loss for reading in readings if any(reading is s for s in split)]


def _repeats(reading: PenaltyReading, other: PenaltyReading) -> bool:
    """Whether two penalties of a whole variable are the same, so that their weights add up."""
    same = reading.variable is other.variable and reading.penalty == other.penalty
    whole = reading.positions.size == reading.variable.size
    return same and whole and np.array_equal(reading.positions, other.positions)


def _fits(reading: PenaltyReading, before: Sequence[PenaltyReading], in_cones: Collection[int]) -> bool:
    """Whether the proximal map of a variable can take a penalty around those ``before``."""
    if not reading.penalty.entrywise and is_general_box(read_variable(reading.variable)):
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
    labels[reading.positions.ravel()] = reading.penalty.groups(reading.positions.shape).ravel()
    return labels


def _within_columns(reading: PenaltyReading) -> bool:
    """Whether these are Euclidean norms, each of entries of one column of a matrix."""
    variable = reading.variable
    if not isinstance(reading.penalty, GroupNorm) or len(variable.shape) != 2:
        return False
    column = np.broadcast_to(np.arange(variable.shape[1]), variable.shape).ravel()
    labels = _labels(reading)
    first = np.full(variable.size, -1)
    first[labels] = column
    return bool(np.all((labels < 0) | (first[labels] == column)))


def _size(reading: PenaltyReading) -> tuple[int, int]:
    """Inner penalties before outer ones: entries, then groups by their size."""
    if reading.penalty.entrywise:
        return 0, 0
    labels = _labels(reading)
    return 1, int(np.max(np.bincount(labels[labels >= 0]), initial=0))


def _merged(kept: Sequence[PenaltyReading]) -> list[ProximalPenalty]:
    """Equal penalties of parts of a variable as one where that is one, in the order of the first."""
    groups: list[list[PenaltyReading]] = []
    places: dict[tuple[int, Penalty], list[int]] = {}
    for reading in kept:
        if reading.positions.size == reading.variable.size:
            same = [members for members in groups if _repeats(reading, members[0])]
            if same:
                same[0].append(reading)
            else:
                groups.append([reading])
            continue
        alike = places.setdefault((reading.variable.id, reading.penalty), [])
        for k in alike:
            if reading.penalty.union([groups[k][0].positions, reading.positions]) is not None:
                groups[k].append(reading)
                break
        else:
            alike.append(len(groups))
            groups.append([reading])
    return [_united(tuple(members)) for members in groups]


def _united(members: tuple[PenaltyReading, ...]) -> ProximalPenalty:
    first = members[0]
    apart = len(members) > 1 and not _repeats(members[1], first)
    united = first.penalty.union([r.positions for r in members]) if apart else None
    penalty, positions = united or (first.penalty, first.positions)
    return ProximalPenalty(members, penalty, positions)
