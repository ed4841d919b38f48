"""Upper bounds of ``sum_i theta_i (x_i . u)_+`` over the unit ball when some signs of x_i . u are prescribed.

Let x_i be unit vectors and t_i = x_i . u. Where its sign is prescribed, (t_i)_+ is linear. Elsewhere
``(t)_+ = (t + |t|) / 2``, and

* ``|t| <= (t^2 / w_i + w_i) / 2`` for any w_i > 0, where ``theta_i > 0``;
* ``-|t| <= -t^2``, and ``-|t| <= -tau t`` for any tau in [-1, 1], where ``theta_i < 0``.

The prescribed signs s_i say ``s_i t_i >= 0`` and ``s_i t_i s_k t_k >= 0``; both are added with multipliers
>= 0. A quadratic over the ball remains, whose maximum is known, so any w, tau and multipliers give a bound.

Good ones come from the dual problem, in a point u and a matrix U of second moments (``U >= u u^T``, trace at
most 1): there the best weights are ``w_i = sqrt(x_i . U x_i)`` and the best multipliers are proportional to
the violations ``-s_i x_i . u`` and ``-s_i s_k x_i . U x_k`` (method of multipliers). Maximising the
quadratic and moving (u, U) towards its maximiser is a Frank-Wolfe step, and each step yields a valid bound.
Everything is done for a batch of m nodes, each with its own prescribed signs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from convexnn_models._arrays import Float64Array
from convexnn_solvers.cones.projections import PatternCones

Rows = NDArray[np.intp]
Signs = NDArray[np.int8]

_EPS = float(np.finfo(np.float64).eps)
_SMALLEST_WEIGHT = 1e-6
_PENALTY = 0.1  # of a violation, when the |theta_i| ||x_i|| add up to one
# How far the multiplier of the ball stays above the largest eigenvalue: sqrt(eps), see `_over_ball`.
_MARGIN = 3e-8
# Of the error of a concave term, when looking for the row with the largest error: the prescribed sign of a
# convex term tells more.
_CONCAVE_SHARE = 0.2
_OUTER_ENTRIES = 20_000_000  # of the matrices x_i x_i^T, which are kept if they have no more entries


@dataclass(frozen=True, eq=False)
class Nodes:
    """m nodes with their bounds and what the next steps start from.

    ``signs`` (m, n) are -1, 0 (free) or 1; ``rows`` (m, k) lists the prescribed rows in order, padded with
    -1; ``linear`` (m, k) and ``products`` (m, k, k) are their multipliers; ``points`` (m, d) and ``moments``
    (m, d, d) the dual point; ``worst`` (m,) the free row with the largest error, -1 when there is none.
    """

    signs: Signs
    rows: Rows
    linear: Float64Array
    products: Float64Array
    points: Float64Array
    moments: Float64Array
    bounds: Float64Array
    worst: Rows

    def take(self, index: NDArray[np.intp] | NDArray[np.bool_]) -> Nodes:
        """Some of the nodes."""
        rows = self.rows[index]
        k = int(np.max(np.sum(rows >= 0, axis=1), initial=0))
        return Nodes(
            self.signs[index],
            rows[:, :k],
            self.linear[index][:, :k],
            self.products[index][:, :k, :k],
            self.points[index],
            self.moments[index],
            self.bounds[index],
            self.worst[index],
        )

    def padded(self, k: int) -> Nodes:
        """The same nodes with lists of k prescribed rows."""
        extra = k - self.rows.shape[1]
        return replace(
            self,
            rows=np.pad(self.rows, ((0, 0), (0, extra)), constant_values=-1),
            linear=np.pad(self.linear, ((0, 0), (0, extra))),
            products=np.pad(self.products, ((0, 0), (0, extra), (0, extra))),
        )

    def split(self) -> Nodes:
        """Both signs of the worst row of every node."""
        depth = np.sum(self.rows >= 0, axis=1)
        wide = self.padded(max(self.rows.shape[1], int(depth.max(initial=0)) + 1))
        index = np.arange(depth.size)
        wide.rows[index, depth] = self.worst
        halves = []
        for sign in (1, -1):
            signs = self.signs.copy()
            signs[index, self.worst] = sign
            halves.append(replace(wide, signs=signs))
        return joined(*halves)


def joined(*parts: Nodes) -> Nodes:
    """All nodes of the parts."""
    k = max(part.rows.shape[1] for part in parts)
    wide = [part.padded(k) for part in parts]
    return Nodes(
        signs=np.concatenate([p.signs for p in wide]),
        rows=np.concatenate([p.rows for p in wide]),
        linear=np.concatenate([p.linear for p in wide]),
        products=np.concatenate([p.products for p in wide]),
        points=np.concatenate([p.points for p in wide]),
        moments=np.concatenate([p.moments for p in wide]),
        bounds=np.concatenate([p.bounds for p in wide]),
        worst=np.concatenate([p.worst for p in wide]),
    )


class Relaxation:
    """The bounds for one X (n, d) and theta (n,), in units of ``scale = sum_i |theta_i| ||x_i||`` > 0.

    Rows with a zero term are left out, so ``rows``, ``weights`` and signs are those of the others.
    """

    def __init__(self, X: Float64Array, theta: Float64Array) -> None:
        lengths = np.sqrt(np.einsum("ij,ij->i", X, X))
        used = (lengths > 0.0) & (theta != 0.0)
        self.rows = X[used] / lengths[used, None]
        weights = theta[used] * lengths[used]
        self.scale = float(np.abs(weights).sum())
        self.weights = weights / self.scale
        n, d = self.rows.shape
        self._outer: Float64Array | None = None
        if n * d * d <= _OUTER_ENTRIES:
            self._outer = (self.rows[:, :, None] * self.rows[:, None, :]).reshape(n, d * d)

    @property
    def rounding(self) -> float:
        """More than the rounding errors of a bound."""
        n, d = self.rows.shape
        return float(_EPS * (32.0 * n + 32.0 * d))

    def root(self) -> Nodes:
        """The node without prescribed signs."""
        n, d = self.rows.shape
        return Nodes(
            signs=np.zeros((1, n), dtype=np.int8),
            rows=np.zeros((1, 0), dtype=np.intp),
            linear=np.zeros((1, 0)),
            products=np.zeros((1, 0, 0)),
            points=np.zeros((1, d)),
            moments=np.eye(d)[None] / d,
            bounds=np.full(1, np.inf),
            worst=np.zeros(1, dtype=np.intp),
        )

    def values(self, points: Float64Array) -> Float64Array:
        """``sum_i theta_i (x_i . u)_+`` at points (m, d)."""
        return np.asarray(np.maximum(points @ self.rows.T, 0.0) @ self.weights)

    def tightened(self, nodes: Nodes, steps: int, first: int) -> Nodes:
        """The nodes after Frank-Wolfe steps number ``first``, ``first + 1``, ..., with lower bounds."""
        free = nodes.signs == 0
        convex, concave = free & (self.weights > 0.0), free & (self.weights < 0.0)
        known = np.where(nodes.signs > 0, self.weights, np.where(free, 0.5 * self.weights, 0.0))
        signed = self._signed(nodes)
        points, moments, bounds = nodes.points, nodes.moments, nodes.bounds
        linear, products = nodes.linear, nodes.products
        for step in range(first, first + steps):
            forms = self._forms(moments)
            values = points @ self.rows.T
            w = np.sqrt(forms) + _SMALLEST_WEIGHT
            flat = concave & (np.abs(values) > forms)
            slopes = known + np.where(flat, 0.5 * self.weights * np.sign(values), 0.0)
            curvatures = np.where(convex, 0.25 * self.weights / w, 0.0)
            curvatures += np.where(concave & ~flat, 0.5 * self.weights, 0.0)
            back = signed.transpose(0, 2, 1)
            linear = np.maximum(nodes.linear - _PENALTY * np.matvec(signed, points), 0.0)
            products = np.maximum(nodes.products - _PENALTY * (signed @ moments @ back), 0.0)
            b = slopes @ self.rows + np.matvec(back, linear)
            Q = self._weighted_outer(curvatures) + back @ products @ signed
            maxima, targets, second = _over_ball(Q, b)
            # fmin: a bound that could not be computed (NaN) is no bound.
            bounds = np.fmin(bounds, maxima + 0.25 * np.where(convex, self.weights * w, 0.0).sum(axis=1))
            size = 2.0 / (step + 3.0)
            points = points + size * (targets - points)
            moments = moments + size * (second - moments)
        worst = self._worst(free, points, moments)
        return replace(
            nodes,
            linear=linear,
            products=products,
            points=points,
            moments=moments,
            bounds=bounds,
            worst=worst,
        )

    def exact(self, signs: Signs) -> Float64Array:
        """The maxima (m,) over the cones of complete sign vectors (m, n), from above up to rounding."""
        bits = signs.T > 0
        gains = (self.weights[:, None] * bits).T @ self.rows
        cones = PatternCones(self.rows, bits)
        projected = cones.project(gains.T, np.arange(len(signs))).points
        return np.asarray(np.sqrt(np.einsum("db,db->b", projected, projected)))

    def _signed(self, nodes: Nodes) -> Float64Array:
        """``s_i x_i`` (m, k, d) for the prescribed rows, zero for the padding."""
        index = np.maximum(nodes.rows, 0)
        signs = np.where(nodes.rows >= 0, np.take_along_axis(nodes.signs, index, axis=1), 0)
        return np.asarray(self.rows[index] * signs[:, :, None])

    def _forms(self, moments: Float64Array) -> Float64Array:
        """``x_i . U x_i`` (m, n) for every node and row."""
        if self._outer is not None:
            return np.asarray((moments.reshape(len(moments), -1) @ self._outer.T).clip(0.0))
        forms = [np.einsum("ij,ij->i", self.rows @ U, self.rows) for U in moments]
        return np.asarray(np.stack(forms).clip(0.0))

    def _weighted_outer(self, weights: Float64Array) -> Float64Array:
        """``sum_i weights_i x_i x_i^T`` (m, d, d) for weights (m, n)."""
        d = self.rows.shape[1]
        if self._outer is not None:
            return np.asarray((weights @ self._outer).reshape(len(weights), d, d))
        return np.stack([(self.rows.T * row) @ self.rows for row in weights])

    def _worst(self, free: NDArray[np.bool_], points: Float64Array, moments: Float64Array) -> Rows:
        """The free row whose term the relaxation overestimates most at the dual point, -1 without any."""
        forms = self._forms(moments)
        lengths, values = np.sqrt(forms), np.abs(points @ self.rows.T)
        convex = self.weights * (lengths - values)
        concave = -_CONCAVE_SHARE * self.weights * (lengths - np.maximum(values, forms))
        errors = np.where(free, np.where(self.weights > 0.0, convex, concave), -np.inf)
        return np.where(free.any(axis=1), errors.argmax(axis=1), -1)


def _over_ball(Q: Float64Array, b: Float64Array) -> tuple[Float64Array, Float64Array, Float64Array]:
    """Upper bounds (m,) of ``max b . u + u . Q u`` over the ball, and the maximisers' two moments.

    The bound is ``nu + 1/4 b . (nu I - Q)^(-1) b`` for a nu above the eigenvalues of Q; the best nu makes
    the maximiser a unit vector. Computed eigenvalues and vectors are those of a matrix within rounding
    ``e`` of Q, which changes the second term by a factor of at most ``1 + 2 e / (nu - largest)``: the
    margin keeps that factor close to 1, and both terms are raised accordingly.
    """
    d = b.shape[1]
    eigenvalues, vectors = np.linalg.eigh(Q)
    projected = 0.5 * np.vecmat(b, vectors)
    length = 2.0 * np.sqrt(np.einsum("bk,bk->b", projected, projected))
    size = np.abs(eigenvalues).max(axis=1) + length + float(np.finfo(np.float64).tiny) / _MARGIN**2
    low = np.maximum(eigenvalues[:, -1], 0.0) + _MARGIN * size
    high = low + length
    shrinking = _squared_length(projected, low, eigenvalues) > 1.0
    left, right = low.copy(), high.copy()
    for _ in range(40):
        middle = 0.5 * (left + right)
        above = _squared_length(projected, middle, eigenvalues) > 1.0
        left, right = np.where(above, middle, left), np.where(above, right, middle)
    nu = np.where(shrinking, right, low)
    distances = nu[:, None] - eigenvalues
    inner = projected / distances
    rounding = 8.0 * d * _EPS * size
    quadratic = np.einsum("bk,bk->b", projected, inner) * (1.0 + 2.0 * rounding / distances[:, -1])
    points = np.matvec(vectors, inner)
    top = vectors[:, :, -1]
    rest = (1.0 - np.einsum("bk,bk->b", points, points)).clip(0.0) * (eigenvalues[:, -1] > 0.0)
    moments = points[:, :, None] * points[:, None, :]
    moments += rest[:, None, None] * top[:, :, None] * top[:, None, :]
    return nu + quadratic + rounding, points, moments


def _squared_length(projected: Float64Array, nu: Float64Array, eigenvalues: Float64Array) -> Float64Array:
    return np.asarray(np.sum((projected / (nu[:, None] - eigenvalues)) ** 2, axis=1))
