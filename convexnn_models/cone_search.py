"""The largest value of ``sum_i theta_i (x_i . u)_+`` over the unit ball, by branch and bound on directions.

A node is a simplicial cone, given by r unit vectors v_k. On it, with ``u = sum_k lambda_k v_k``:

* a term with ``theta_i > 0`` is convex, so it is at most its interpolation ``sum_k lambda_k (x_i . v_k)_+``;
* a term with ``theta_i < 0`` is concave, so it is at most ``theta_i tau_i x_i . u`` for any tau_i in [0, 1].

Together the sum is at most ``g . lambda``, and for every c with ``c . v_k >= g_k`` at most ``||c||``: the
shortest such c is the bound. It is exact where no hyperplane ``x_i . u = 0`` crosses the cone, so a cone is
split where the hyperplane with the largest interpolation error meets one of its edges. All nodes of a batch
are treated at once. The cones start as the orthants, so edges never form obtuse angles, coefficients
lambda_k of unit vectors stay below 1, and rounding of a new edge moves a cone by rounding only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from convexnn_models._arrays import Float64Array

_EPS = float(np.finfo(np.float64).eps)
# |x . v| <= this times ||x|| counts as zero: a hyperplane through an edge does not cross the cone.
_ON_EDGE = 1e-13
_REGULAR = 1e-13  # keeps the Gram matrices of flat cones invertible
_STORED_ENTRIES = 100_000_000  # of the edges of the open nodes
_BATCH = 2000  # nodes split at once ...
_BATCH_ENTRIES = 2_000_000  # ... with at most this many products of samples and edges

#: From this dimension on there are too many orthants to start from.
MAX_DIMENSION = 13


@dataclass(frozen=True, eq=False)
class _Nodes:
    """Cones with edges ``vertices[b]`` (r, r), their bounds, and the row by which each would be split.

    ``cut`` (m, r) holds that row's products with the edges, ``gaps`` its interpolation error.
    """

    vertices: Float64Array
    bounds: Float64Array
    cut: Float64Array
    gaps: Float64Array

    def take(self, index: NDArray[np.intp] | NDArray[np.bool_]) -> _Nodes:
        return _Nodes(self.vertices[index], self.bounds[index], self.cut[index], self.gaps[index])

    @staticmethod
    def joined(*parts: _Nodes) -> _Nodes:
        return _Nodes(
            np.concatenate([p.vertices for p in parts]),
            np.concatenate([p.bounds for p in parts]),
            np.concatenate([p.cut for p in parts]),
            np.concatenate([p.gaps for p in parts]),
        )


class ConeSearch:
    """A :class:`bracket.Search` for ``max sum_i theta_i (x_i . u)_+`` over ``||u|| <= 1``.

    X is (n, r) with r <= MAX_DIMENSION; fast for r up to 4. The better the start ``point`` (r,), the fewer
    nodes are needed.
    """

    def __init__(self, X: Float64Array, theta: Float64Array, point: Float64Array) -> None:
        lengths = np.sqrt(np.einsum("ij,ij->i", X, X))
        used = (theta != 0.0) & (lengths > 0.0)
        weights = np.abs(theta) * lengths
        rows = X[used] / lengths[used, None]
        convex = theta[used] > 0.0
        self._convex, self._gain = rows[convex], weights[used][convex]
        self._concave, self._loss = rows[~convex], weights[used][~convex]
        self._scale = float(weights.sum())
        self._dimension = X.shape[1]
        self._batch = max(1, min(_BATCH, _BATCH_ENTRIES // (self._dimension * max(len(rows), 1))))
        self._rounds = 0
        self._open: _Nodes | None = None
        self.lower, self.point = 0.0, np.zeros(self._dimension)
        self.dropped, self.nodes = 0.0, 0
        self._offer(point[None])

    @property
    def top(self) -> float:
        """See :class:`bracket.Search`."""
        return np.inf if self._open is None else float(np.max(self._open.bounds, initial=0.0))

    @property
    def rounding(self) -> float:
        """See :class:`bracket.Search`: errors of products, of sums, and of one new edge per round."""
        terms = len(self._gain) + len(self._loss)
        units = 4.0 * _ON_EDGE / _EPS + 4.0 * terms + 16.0 * self._dimension + 8.0 * self._rounds
        return float(self._scale * units * _EPS)

    @property
    def full(self) -> bool:
        """See :class:`bracket.Search`."""
        return self._open is not None and self._open.vertices.size > _STORED_ENTRIES

    def advance(self, level: float) -> None:
        """See :class:`bracket.Search`; the first round looks at the orthants."""
        self._rounds += 1
        if self._open is None:
            self._open = self._without_dropped(self._orthants(), level)
            return
        nodes = self._without_dropped(self._open, level)
        order = np.argsort(-nodes.bounds)
        chosen, rest = order[: self._batch], order[self._batch :]
        self.nodes += chosen.size
        if chosen.size:
            children = self._without_dropped(self._children(nodes.take(chosen)), level)
            nodes = _Nodes.joined(nodes.take(rest), children)
        self._open = nodes

    def _without_dropped(self, nodes: _Nodes, level: float) -> _Nodes:
        high = nodes.bounds > level
        self.dropped = max(self.dropped, float(np.max(nodes.bounds[~high], initial=0.0)))
        return nodes.take(high)

    def _orthants(self) -> _Nodes:
        """The cones of all sign vectors."""
        r = self._dimension
        signs = 1.0 - 2.0 * ((np.arange(2**r)[:, None] >> np.arange(r)) & 1)
        vertices = signs[:, :, None] * np.eye(r)
        parts = [vertices[b : b + self._batch] for b in range(0, len(vertices), self._batch)]
        return _Nodes.joined(*(self._evaluated(part) for part in parts))

    def _children(self, nodes: _Nodes) -> _Nodes:
        """Both halves of every node."""
        index = np.arange(len(nodes.bounds))
        V, cut = nodes.vertices, nodes.cut
        first, second = cut.argmax(axis=1), cut.argmin(axis=1)
        up, down = cut[index, first], -cut[index, second]
        uncut = np.flatnonzero(nodes.gaps <= 0.0)
        if uncut.size:  # halve the longest edge
            cosines = V[uncut] @ V[uncut].transpose(0, 2, 1)
            widest = cosines.reshape(uncut.size, -1).argmin(axis=1)
            first[uncut], second[uncut] = np.divmod(widest, self._dimension)
            up[uncut] = down[uncut] = 1.0
        edge = down[:, None] * V[index, first] + up[:, None] * V[index, second]
        edge /= np.sqrt(np.einsum("bk,bk->b", edge, edge))[:, None]
        halves = np.concatenate([V, V])
        halves[index, first] = edge
        halves[index.size + index, second] = edge
        evaluated = self._evaluated(halves)
        bounds = np.minimum(evaluated.bounds, np.concatenate([nodes.bounds, nodes.bounds]))
        return _Nodes(halves, bounds, evaluated.cut, evaluated.gaps)

    def _evaluated(self, V: Float64Array) -> _Nodes:
        """The bounds of the cones with edges V (m, r, r)."""
        convex, concave = _products(V, self._convex), _products(V, self._concave)
        convex_gap, _ = _crossings(convex, self._gain)
        concave_gap, crossing = _crossings(concave, self._loss)
        highest = concave.max(axis=1)
        span = np.where(crossing, highest - concave.min(axis=1), 1.0)
        slopes = np.where(crossing, highest / span, highest > 0.0)
        interpolated = np.maximum(convex, 0.0) @ self._gain
        bounds, shortest = _shortest(V, interpolated - np.matvec(concave, slopes * self._loss))
        # Once more, with slopes moved towards those of the point that the first bound belongs to.
        slopes = np.where(crossing, 0.5 * (slopes + (shortest @ self._concave.T > 0.0)), slopes)
        again, other = _shortest(V, interpolated - np.matvec(concave, slopes * self._loss))
        self._offer(np.where((again < bounds)[:, None], other, shortest))
        gaps = np.concatenate([convex_gap, concave_gap], axis=1)
        row = gaps.argmax(axis=1)
        index = np.arange(len(V))
        cut = np.concatenate([convex, concave], axis=2)[index, :, row]
        return _Nodes(V, np.minimum(bounds, again), cut, gaps[index, row])

    def _values(self, points: Float64Array) -> Float64Array:
        gain = np.maximum(points @ self._convex.T, 0.0) @ self._gain
        loss = np.maximum(points @ self._concave.T, 0.0) @ self._loss
        return np.asarray(gain - loss)

    def _offer(self, directions: Float64Array) -> None:
        """Keep the best of these directions as ``point`` if it is better."""
        lengths = np.sqrt(np.einsum("bk,bk->b", directions, directions))
        unit = directions / np.where(lengths > 0.0, lengths, 1.0)[:, None]
        values = self._values(unit)
        best = int(np.argmax(values))
        if values[best] > self.lower:
            self.lower, self.point = float(values[best]), unit[best]


def _products(V: Float64Array, rows: Float64Array) -> Float64Array:
    """``x_i . v_k`` as (m, r, rows), with what is zero up to rounding set to zero."""
    m, r, _ = V.shape
    products = (V.reshape(m * r, r) @ rows.T).reshape(m, r, len(rows))
    products[np.abs(products) <= _ON_EDGE] = 0.0
    return products


def _crossings(products: Float64Array, weights: Float64Array) -> tuple[Float64Array, NDArray[np.bool_]]:
    """For each cone and row the interpolation error of ``weight * (t)_+``, and whether the row crosses."""
    high = products.max(axis=1)
    low = products.min(axis=1)
    crossing = (high > 0.0) & (low < 0.0)
    error = high * -low / np.where(crossing, high - low, 1.0)
    return np.where(crossing, weights * error, 0.0), crossing


def _shortest(V: Float64Array, g: Float64Array) -> tuple[Float64Array, Float64Array]:
    """``||c||`` and c (m, r) for a short c with ``V_b c >= g_b``; the length is valid whatever the rounding.

    The multipliers of the constraints come from an active-set method that only drops constraints. What a
    constraint is then violated by is made up for by a multiple of the cone's middle.
    """
    r = V.shape[1]
    gram = V @ V.transpose(0, 2, 1) + _REGULAR * np.eye(r)
    middle = V.sum(axis=1)
    middle /= np.sqrt(np.einsum("bk,bk->b", middle, middle))[:, None]
    inner = np.matvec(V, middle).min(axis=1)
    active = np.ones(g.shape, dtype=np.bool_)
    best = np.full(len(V), np.inf)
    shortest = np.zeros_like(g)
    for _ in range(r + 1):
        both = active[:, :, None] & active[:, None, :]
        system = np.where(both, gram, np.eye(r))
        multipliers = np.linalg.solve(system, np.where(active, g, 0.0)[:, :, None])[:, :, 0]
        c = np.vecmat(multipliers, V)
        missing = np.max(g - np.matvec(V, c), axis=1).clip(0.0)
        length = np.sqrt(np.einsum("bk,bk->b", c, c)) + missing / inner
        better = length < best
        best = np.where(better, length, best)
        shortest[better] = c[better]
        negative = active & (multipliers < 0.0)
        if not negative.any():
            break
        active &= ~negative
    return best * (1.0 + 16.0 * r * _EPS), shortest
