"""The splitting: proximal maps of weights and rows on one side, the affine map on the other.

For ``minimise h(x) + <c, x> + G(B x + b)`` with weights x and rows q = B x + b, one iteration of
Douglas-Rachford (ADMM with two copies) at the arguments (a, g), in the metric ``rho (D, R)``, is

    z = prox_h(a),   y = prox_G(g),
    (x, q) = the point of q = B x + b nearest to (2 z - a - c / (rho D), 2 y - g),
    a+ = a + alpha (x - z),   g+ = g + alpha (q - y).

One Cholesky factor, of ``B D^-1 B^T + R^-1`` or ``D + B^T R B``, serves all iterations and all rho. At a
fixed point ``rho R (g - y)`` is a subgradient of G and ``rho D (a - z)`` one of h: dual points.

After Lions and Mercier (1979), Boyd et al. (2011), section 5, and O'Donoghue et al. (2016), SCS.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve

from convexnn_solvers.backends import Float64Array
from convexnn_solvers.composite import Composite
from convexnn_solvers.first_order.proximal import ProximalMap, VariableProx
from convexnn_solvers.packing import Arrays, Held, packed_attributes
from convexnn_solvers.splitting.dense_rows import DenseRows, flat
from convexnn_solvers.splitting.row_jacobians import RowJacobian, row_jacobian
from convexnn_solvers.splitting.row_terms import RowTerms
from convexnn_solvers.splitting.weight_jacobians import WeightJacobian, weight_jacobian

# Over-relaxation; how often the balance of the residuals is looked at, how far they may be out of it, and the
# most by which rho then changes. Changes become rarer, so that the iteration converges.
_RELAX, _EVERY, _UNBALANCED, _MOST_CHANGE, _RARER = 1.6, 10, 1.5, 5.0, 100
# The metric of variables that nothing but rows hold, beside that of others: nearly none.
_FREE = 1e-3
# Rows are zero but for rounding when their squares are this share of the largest.
_NO_ROW = 1e-28
_PLACE = ("a", "g", "z", "y", "rho")


@dataclass(frozen=True, eq=False)
class Place:
    """Arguments (a, g) and what the proximal maps make of them, (z, y), at a penalty rho."""

    a: Float64Array
    g: Float64Array
    z: Float64Array
    y: Float64Array
    rho: float

    def packed(self) -> Arrays:
        """Everything as arrays."""
        return packed_attributes(self, _PLACE)


def unpacked_place(held: Held) -> Place:
    """The inverse of :meth:`Place.packed`."""
    a, g, z, y, rho = (held[name] for name in _PLACE)
    return Place(a, g, z, y, float(rho))


@dataclass(frozen=True, eq=False)
class Splitting:
    """The problem and its metric: ``D`` (N,), constant on every variable, and ``R`` (m,).

    ``free`` (N,): the entries of variables that nothing but rows hold. ``lengths``: ``1/D`` per variable.
    """

    rows: DenseRows
    terms: RowTerms
    prox: ProximalMap
    linear: Float64Array
    D: Float64Array
    R: Float64Array
    free: NDArray[np.bool_]
    lengths: tuple[float, ...]
    first_rho: float
    _solve: Callable[[Float64Array, Float64Array], Float64Array] = field(repr=False)

    def place(self, a: Float64Array, g: Float64Array, rho: float) -> Place:
        """The proximal maps at these arguments."""
        z = flat(self.prox(self.rows.point(a), self.steps(rho)))
        return Place(a, g, z, self.terms.prox(g, 1.0 / (rho * self.R)), rho)

    def steps(self, rho: float) -> tuple[float, ...]:
        """The steps of the variables."""
        return tuple(length / rho for length in self.lengths)

    def at(self, x: Float64Array, gradient: Float64Array, rho: float) -> Place:
        """Where a point and subgradients (m,) of the rows' terms lead."""
        a = x - (self.linear + self.rows.matrix.T @ gradient) / (rho * self.D)
        return self.place(a, self.rows.forward(x) + gradient / (rho * self.R), rho)

    def gradient(self, place: Place) -> Float64Array:
        """A subgradient of the rows' terms at ``y``."""
        return np.asarray(place.rho * self.R * (place.g - place.y))

    def nearest(self, place: Place) -> tuple[Float64Array, Float64Array]:
        """The reflected point on the graph of the affine map."""
        aim = 2.0 * place.z - place.a - self.linear / (place.rho * self.D)
        x = self._solve(aim, 2.0 * place.y - place.g - self.rows.offsets)
        return x, self.rows.forward(x)

    def row_jacobian(self, place: Place) -> RowJacobian | None:
        """That of the rows' proximal map at the place."""
        return row_jacobian(self.terms, place.g, place.y, 1.0 / (place.rho * self.R))

    def weight_jacobian(self, place: Place) -> WeightJacobian:
        """That of the weights' proximal map, at the place that was made last."""
        return weight_jacobian(self.prox, self.rows, place.z, self.steps(place.rho))

    def residual(self, place: Place) -> float:
        """How far the place is from a fixed point, in the metric."""
        x, q = self.nearest(place)
        return self.size(x - place.z, q - place.y)

    def size(self, x: Float64Array, q: Float64Array) -> float:
        """The norm of the metric at rho = 1."""
        return float(np.sqrt(np.sum(self.D * x * x) + np.sum(self.R * q * q)))

    def moved(self, place: Place, iteration: int) -> Place:
        """One iteration, and another rho where the residuals ask for it."""
        x, q = self.nearest(place)
        a, g = place.a + _RELAX * (x - place.z), place.g + _RELAX * (q - place.y)
        new = self.place(a, g, place.rho)
        if iteration % (_EVERY * (1 + iteration // _RARER)) != 0:
            return new
        change = self._change(place, new, x, q)
        if change == 1.0:
            return new
        a, g = new.z + (new.a - new.z) / change, new.y + (new.g - new.y) / change
        # Subgradients are as they were: the proximal maps give the same points.
        return replace(new, a=a, g=g, rho=change * new.rho)

    def _change(self, old: Place, new: Place, x: Float64Array, q: Float64Array) -> float:
        """The factor that brings the residuals, each relative to its variables, into balance."""
        apart = self.size(x - new.z, q - new.y)
        step = self.size(new.z - old.z, new.y - old.y)
        primal = self.size(new.z, new.y - self.rows.offsets)
        dual = self.size(new.a - new.z, new.g - new.y)
        sizes = (apart, step, primal, dual)
        if primal == 0.0:  # thresholds are too large
            return _MOST_CHANGE
        if not (np.isfinite(sizes).all() and min(sizes) > 0.0):
            return 1.0
        factor = float(np.sqrt((apart / primal) / (step / dual)))
        factor = float(np.clip(factor, 1.0 / _MOST_CHANGE, _MOST_CHANGE))
        return factor if max(factor, 1.0 / factor) > _UNBALANCED else 1.0


def splitting(composite: Composite, rows: DenseRows, terms: RowTerms, prox: ProximalMap) -> Splitting:
    """The splitting of a problem, factored."""
    B = rows.matrix
    # Rows of size one; where the proximal map ties rows together, by the largest of them.
    R = 1.0 / terms.even(_squares(rows))
    held = {k for k, block in enumerate(prox.blocks) if _holds(block)}
    D, lengths = _metric(rows, R, held)
    weights = [float(np.mean(np.asarray(term.weight))) for term in composite.penalties]
    size = float(np.sqrt(np.sum(R * rows.offsets**2)))
    rho = (float(np.mean(weights)) if weights else 1.0) * np.sqrt(B.shape[1]) / (3.0 * (size or 1.0))
    linear = flat(tuple(np.broadcast_to(c, s) for c, s in zip(composite.linear, rows.variables, strict=True)))
    free = np.concatenate(
        [
            np.zeros(0, dtype=np.bool_),
            *(np.full(math.prod(s), k not in held) for k, s in enumerate(rows.variables)),
        ]
    )
    return Splitting(rows, terms, prox, linear, D, R, free, lengths, float(rho) or 1.0, _factored(B, D, R))


def _squares(rows: DenseRows) -> Float64Array:
    """The squared sizes (m,) of the rows. Those that no gate sees are like their output's."""
    found = np.sum(rows.matrix**2, axis=1)
    usual = float(np.max(found, initial=0.0)) or 1.0
    parts = [np.where(part > _NO_ROW * usual, part, 0.0) for part in rows.parts(found)]
    return flat(tuple(np.where(p > 0.0, p, float(np.max(p, initial=0.0)) or usual) for p in parts))


def _holds(block: VariableProx) -> bool:
    bounded = block.lower is not None or block.upper is not None
    return bool(block.terms) or block.cone is not None or bounded


def _metric(rows: DenseRows, R: Float64Array, held: set[int]) -> tuple[Float64Array, tuple[float, ...]]:
    """One number per variable: the mean of its columns' squares, little for those that are not ``held``."""
    columns = rows.point(R @ rows.matrix**2)
    means = [float(np.mean(c)) if np.size(c) else 0.0 for c in columns]
    usual = [means[k] for k in sorted(held) if means[k] > 0.0] or [m for m in means if m > 0.0] or [1.0]
    unit = float(np.mean(usual))
    sizes = [(m / unit if m > 0.0 else 1.0) * (1.0 if k in held else _FREE) for k, m in enumerate(means)]
    D = flat(tuple(np.full(s, size) for s, size in zip(rows.variables, sizes, strict=True)))
    return D, tuple(1.0 / size for size in sizes)


def _factored(
    B: Float64Array, D: Float64Array, R: Float64Array
) -> Callable[[Float64Array, Float64Array], Float64Array]:
    """``argmin_x |x - aim|_D^2 + |B x - rest|_R^2``, through the smaller of two matrices."""
    if B.shape[1] <= B.shape[0]:
        matrix = B.T @ (R[:, None] * B)
        matrix.flat[:: len(D) + 1] += D
        own = cho_factor(matrix, overwrite_a=True)
        return lambda aim, rest: np.asarray(cho_solve(own, D * aim + B.T @ (R * rest)))
    over = B / D
    matrix = over @ B.T
    matrix.flat[:: len(R) + 1] += 1.0 / R
    factor = cho_factor(matrix, overwrite_a=True)
    return lambda aim, rest: np.asarray(aim + over.T @ cho_solve(factor, rest - B @ aim))
