"""The loop of branch and bound: what it is asked for, what searches do in it, and what it returns."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from convexnn_models._arrays import Float64Array


@dataclass(frozen=True)
class Goal:
    """When a search may stop: the maximum is known well enough, or the limits are reached.

    Attributes
    ----------
    tol : float
        ``upper <= (1 + tol) lower`` is enough.
    floor : float
        ``upper <= floor`` is enough: values up to here need not be told apart.
    enough : float
        ``lower > enough`` is enough: a point with such a value was all that was wanted.
    time_limit : float
        Seconds, counted from the making of this value.
    max_nodes : int
        How many nodes may be split.
    """

    tol: float = 1e-4
    floor: float = 0.0
    enough: float = math.inf
    time_limit: float = 60.0
    max_nodes: int = 1_000_000
    started: float = field(default_factory=time.monotonic)

    def level(self, lower: float) -> float:
        """Nodes with bounds up to here can be dropped when ``lower`` is attained."""
        return max(self.floor, lower * (1.0 + self.tol))

    @property
    def seconds_left(self) -> float:
        """Until the time limit, or 0."""
        return max(0.0, self.started + self.time_limit - time.monotonic())


@dataclass(frozen=True, eq=False)
class Bracket:
    """``lower <= maximum <= upper``, where ``point`` in the unit ball attains ``lower`` up to rounding.

    ``finished`` tells whether ``upper`` is as low as the goal asks; ``nodes`` were split on the way.
    """

    lower: float
    upper: float
    point: Float64Array
    nodes: int
    finished: bool


class Search(Protocol):
    """Branch and bound for one function: nodes are open until their bounds are low enough to drop them."""

    @property
    def lower(self) -> float:
        """The best value so far, at least 0 (the origin's)."""
        ...

    @property
    def point(self) -> Float64Array:
        """Where that value is attained, in the unit ball."""
        ...

    @property
    def top(self) -> float:
        """The largest bound of an open node: infinite before the first round, 0 when none is open."""
        ...

    @property
    def dropped(self) -> float:
        """The largest bound of a dropped node."""
        ...

    @property
    def nodes(self) -> int:
        """How many nodes have been split."""
        ...

    @property
    def rounding(self) -> float:
        """More than the rounding errors of every bound."""
        ...

    @property
    def full(self) -> bool:
        """Whether the open nodes fill the memory they may take."""
        ...

    def advance(self, level: float) -> None:
        """One round: split the open nodes with the largest bounds, drop what is at most ``level``."""
        ...


def bracketed(searches: Sequence[Search], goal: Goal) -> Bracket:
    """Bracket the largest of the searched maxima; a round goes to the search with the largest bound.

    The first round of each search takes place whatever the limits, so that there is a bound.
    """
    while True:
        best = max(searches, key=lambda search: search.lower)
        hardest = max(searches, key=lambda search: search.top)
        split = sum(search.nodes for search in searches)
        level = max(goal.level(best.lower), *(search.rounding for search in searches))
        finished = hardest.top <= level
        stopped = best.lower > goal.enough or split >= goal.max_nodes or goal.seconds_left == 0.0
        if finished or (hardest.top < math.inf and (stopped or hardest.full)):
            break
        hardest.advance(level)
    uppers = [max(search.top, search.dropped) + search.rounding for search in searches]
    return Bracket(best.lower, max(best.lower, *uppers), best.point, split, finished)
