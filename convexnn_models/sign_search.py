"""The largest value of ``sum_i theta_i (x_i . u)_+`` over the unit ball, by branch and bound on signs.

A node prescribes the signs of some ``x_i . u``; its bound is the relaxation of :mod:`relaxation`, and it is
split by the sign of the row whose term the relaxation overestimates most. Without any prescribed sign the
relaxation is often within some per cent of the maximum already, in any dimension, and it is useful for any
number of samples. All nodes of a batch are treated at once.
"""

from __future__ import annotations

import numpy as np

from convexnn_models._arrays import Float64Array
from convexnn_models.ascent import ascend
from convexnn_models.relaxation import Nodes, Relaxation, joined

_ROOT_STEPS = 100
# Steps of a new node, and how many times as many it may have while its bound is too high. They start from
# the parent's dual point, so they are as short as those of a sequence that has already begun.
_STEPS, _ROUNDS, _FIRST = 6, 3, 7
_BATCH_ENTRIES = 1_000_000  # of the matrices that one step of a batch works on
_STORED_ENTRIES = 100_000_000  # of the open nodes


class SignSearch:
    """A :class:`bracket.Search` for ``max sum_i theta_i (x_i . u)_+`` over ``||u|| <= 1``.

    X is (n, d), theta (n,) and not zero. The better the start ``point`` (d,), the fewer nodes are needed.
    The first round is the relaxation alone.
    """

    def __init__(self, X: Float64Array, theta: Float64Array, point: Float64Array) -> None:
        self._relaxation = Relaxation(X, theta)
        n, d = self._relaxation.rows.shape
        self._entries = n + d * d
        self._batch = max(1, min(100, _BATCH_ENTRIES // (2 * self._entries)))
        self._open: Nodes | None = None
        self._lower, self._dropped = 0.0, 0.0
        self.point, self.nodes = np.zeros(d), 0
        self._offer(point[None])

    @property
    def lower(self) -> float:
        """See :class:`bracket.Search`."""
        return self._relaxation.scale * self._lower

    @property
    def dropped(self) -> float:
        """See :class:`bracket.Search`."""
        return self._relaxation.scale * self._dropped

    @property
    def top(self) -> float:
        """See :class:`bracket.Search`."""
        if self._open is None:
            return np.inf
        return self._relaxation.scale * float(np.max(self._open.bounds, initial=0.0))

    @property
    def rounding(self) -> float:
        """See :class:`bracket.Search`."""
        return self._relaxation.scale * self._relaxation.rounding

    @property
    def full(self) -> bool:
        """See :class:`bracket.Search`."""
        if self._open is None:
            return False
        k = self._open.rows.shape[1]
        return bool(self._open.bounds.size * (self._entries + k * k) > _STORED_ENTRIES)

    def advance(self, level: float) -> None:
        """See :class:`bracket.Search`."""
        goal = level / self._relaxation.scale
        if self._open is None:
            self._open = self._root(goal)
            return
        nodes = self._without_dropped(self._open, goal)
        order = np.argsort(-nodes.bounds)
        chosen, rest = order[: self._batch], order[self._batch :]
        self.nodes += chosen.size
        if chosen.size:
            nodes = joined(nodes.take(rest), self._improved(nodes.take(chosen).split(), goal))
        self._open = nodes

    def _root(self, goal: float) -> Nodes:
        """The node without prescribed signs, with a good bound."""
        nodes = self._relaxation.root()
        for first in range(0, _ROOT_STEPS, 10):
            nodes = self._tightened(nodes, 10, first)
            if nodes.bounds[0] <= goal:
                break
        return self._without_dropped(nodes, goal)

    def _improved(self, nodes: Nodes, goal: float) -> Nodes:
        """New nodes after as many steps as they need, without those that can be dropped."""
        complete = ~np.any(nodes.signs == 0, axis=1)
        if complete.any():
            self._drop(np.minimum(self._relaxation.exact(nodes.signs[complete]), nodes.bounds[complete]))
            nodes = nodes.take(~complete)
        for round_ in range(_ROUNDS):
            if nodes.bounds.size == 0:
                break
            nodes = self._tightened(nodes, _STEPS, _FIRST + round_ * _STEPS)
            nodes = self._without_dropped(nodes, goal)
        return nodes

    def _without_dropped(self, nodes: Nodes, goal: float) -> Nodes:
        high = nodes.bounds > goal
        self._drop(nodes.bounds[~high])
        return nodes.take(high)

    def _drop(self, bounds: Float64Array) -> None:
        self._dropped = max(self._dropped, float(np.max(bounds, initial=0.0)))

    def _tightened(self, nodes: Nodes, steps: int, first: int) -> Nodes:
        nodes = self._relaxation.tightened(nodes, steps, first)
        self._offer(nodes.points)
        return nodes

    def _offer(self, points: Float64Array) -> None:
        """Keep the best of these directions as ``point`` if it is better, after some local ascent."""
        relaxation = self._relaxation
        lengths = np.sqrt(np.einsum("bk,bk->b", points, points))
        unit = points / np.where(lengths > 0.0, lengths, 1.0)[:, None]
        values = relaxation.values(unit)
        best = int(np.argmax(values))
        if values[best] > self._lower:
            _, risen = ascend(relaxation.rows, relaxation.weights[:, None], unit[best][:, None], 30)
            self.point, self._lower = risen[:, 0], float(relaxation.values(risen.T)[0])
