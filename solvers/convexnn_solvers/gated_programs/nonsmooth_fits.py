"""Losses without a gradient as data fits of the semismooth Newton method.

With targets Y and signs m, ``F(p) = G(m o (p - Y))`` for a loss G of :mod:`functions.nonsmooth_losses`
that is positively homogeneous. Its conjugate is ``<Y, xi>`` on a bounded set, the domain: a box for absolute
values, hinges and quantile losses, the ball of the dual norm for norms. It has no curvature; that comes from
proximal terms, see :mod:`newton.copies`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import cast

import numpy as np

from convexnn_solvers.backends import Float64Array
from convexnn_solvers.functions.losses import Loss
from convexnn_solvers.functions.nonsmooth_losses import Norms, PiecewiseLinear, ProxJacobian, Supremum
from convexnn_solvers.gated_programs.fits import Fitted, LineFunction, increasing_roots

Homogeneous = PiecewiseLinear | Norms | Supremum


@dataclass(frozen=True, eq=False)
class NonsmoothFit:
    """``sum(weight * loss(mirror * (p - Y)))``; ``weight`` is a number or one per entry, as of the loss.

    With ``centred`` the offset of every output is eliminated: the domain is that of columns of sum zero.
    The only ``scales`` are zeros, of samples without weight, and ones.
    """

    loss: Homogeneous
    weight: Float64Array
    mirror: Float64Array
    Y: Float64Array
    centred: bool = False
    outliers: float | None = None
    scales: Float64Array | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(n, c)."""
        return int(self.Y.shape[0]), int(self.Y.shape[1])

    @property
    def separable(self) -> bool:
        """Whether the loss is a sum over all entries; a norm is not."""
        return isinstance(self.loss, PiecewiseLinear)

    def at(self, prediction: Float64Array) -> Fitted:
        """Value, a subgradient and the best offset."""
        residual = prediction - self.Y
        if self.centred:
            offset, xi = self._best_offset(residual)
        else:
            offset = np.zeros(self.shape[1])
            xi = self.mirror * self.loss.gradient(self.mirror * residual, self.weight, np)
        value = float(self.loss.value(self.mirror * (residual + offset), self.weight, np))
        return Fitted(value, np.asarray(xi, dtype=np.float64), offset)

    def conjugate(self, xi: Float64Array) -> float:
        """``<Y, xi>``, inside the domain."""
        return float(np.vdot(self.Y, xi))

    def derivative(self, xi: Float64Array) -> Float64Array:
        """``Y``, inside the domain."""
        return self.Y

    def curvature(self, xi: Float64Array) -> Float64Array:
        """None."""
        return np.zeros(self.shape)

    def along(self, xi: Float64Array, direction: Float64Array) -> LineFunction:
        """A line."""
        slope = float(np.vdot(self.Y, direction))
        return lambda t: (t * slope, slope)

    def room(self, xi: Float64Array, direction: Float64Array) -> float:
        """Everywhere: proximal terms stand for the domain."""
        return np.inf

    def admits(self, xi: Float64Array) -> bool:
        """Always: see :meth:`nearest`."""
        return True

    def nearest(self, xi: Float64Array) -> Float64Array:
        """A point of the domain, near ``xi``; with ``centred`` the columns of ``xi`` have sum zero."""
        if not self.centred:
            return np.asarray(self.mirror * self.loss.nearest(self.mirror * xi, self.weight))
        if isinstance(self.loss, PiecewiseLinear):
            low, high = self._slopes()
            width = float(np.max(np.abs(xi), initial=0.0) + np.max(high - low, initial=0.0))
            shift = increasing_roots(lambda b: np.clip(xi + b, low, high).sum(axis=0), width)
            return np.clip(xi + shift, low, high)
        inside = self.loss.nearest(self.mirror * xi, self.weight)
        size = float(np.sum(np.abs(xi))) if isinstance(self.loss, Supremum) else float(np.linalg.norm(xi))
        held = float(np.sum(np.abs(inside))) if isinstance(self.loss, Supremum) else np.linalg.norm(inside)
        return xi * (held / size) if size > 0.0 else xi

    def wanted_scale(self, xi: Float64Array) -> float:
        """One: what is best is a corner of the domain."""
        return 1.0

    def scaled(self, factor: float) -> NonsmoothFit:
        """Targets and weights scaled alike."""
        return replace(self, Y=self.Y / factor, weight=self.weight / factor)

    def prox(self, q: Float64Array, step: float) -> Float64Array:
        """``argmin_z F(Y + z) + ||z - q||^2 / (2 step)``."""
        found = self.loss.prox(self.mirror * q, self.weight, np.asarray(step), np)
        return np.asarray(self.mirror * found, dtype=np.float64)

    def prox_jacobian(self, q: Float64Array, step: float) -> ProxJacobian:
        """A generalised Jacobian of :meth:`prox`."""
        found = self.loss.prox_jacobian(self.mirror * q, self.weight, step)
        return found if found.column is None else replace(found, column=self.mirror * found.column)

    def output(self, k: int) -> NonsmoothFit:
        """The part that concerns one output, of a loss that is :attr:`separable`."""
        weight = self.weight if self.weight.ndim == 0 else self.weight[:, k : k + 1]
        return replace(self, weight=weight, mirror=self.mirror[:, k : k + 1], Y=self.Y[:, k : k + 1])

    def _slopes(self) -> tuple[Float64Array, Float64Array]:
        """The bounds (n, c) of the box."""
        loss = cast(PiecewiseLinear, self.loss)
        sides = self.mirror * loss.low * self.weight, self.mirror * loss.high * self.weight
        return np.minimum(*sides), np.maximum(*sides)

    def _best_offset(self, residual: Float64Array) -> tuple[Float64Array, Float64Array]:
        """The offset (c,) that minimises the loss, and a subgradient there whose columns have sum zero."""
        if isinstance(self.loss, PiecewiseLinear):
            return _weighted_quantiles(residual, *self._slopes())
        if isinstance(self.loss, Norms):
            offset = -residual.mean(axis=0)
            return offset, self.loss.gradient(residual + offset, self.weight, np)
        top, bottom = residual.argmax(axis=0), residual.argmin(axis=0)
        k = int(np.argmax(np.ptp(residual, axis=0)))
        xi = np.zeros(self.shape)
        xi[top[k], k] += 0.5 * self.weight
        xi[bottom[k], k] -= 0.5 * self.weight
        return -0.5 * (residual.max(axis=0) + residual.min(axis=0)), xi


def _weighted_quantiles(
    residual: Float64Array, low: Float64Array, high: Float64Array
) -> tuple[Float64Array, Float64Array]:
    """Where ``sum_i max(low_i (r_i + b), high_i (r_i + b))`` is smallest, column by column.

    The slope in b grows by ``high_i - low_i`` at ``b = -r_i``; the entry where it passes zero takes up what
    the others leave.
    """
    offset, xi = np.zeros(residual.shape[1]), high.copy()
    for k in range(residual.shape[1]):
        order = np.argsort(-residual[:, k])
        rises = np.cumsum((high - low)[order, k]) + low[:, k].sum()
        turn = min(int(np.searchsorted(rises, 0.0)), order.size - 1)
        offset[k] = -residual[order[turn], k]
        xi[order[turn:], k] = low[order[turn:], k]
        xi[order[turn], k] = np.clip(
            low[order[turn], k] - xi[:, k].sum(), low[order[turn], k], high[order[turn], k]
        )
    return offset, xi


def nonsmooth_fit(
    loss: Loss,
    weight: Float64Array,
    mirror: Float64Array,
    Y: Float64Array,
    centred: bool,
    seen: Float64Array | None = None,
) -> tuple[NonsmoothFit, float] | None:
    """The fit of a loss, and what its value was divided by: subgradients are about as long as the targets.

    ``seen`` (n, 1): zero where samples have weight zero, and targets too, else one. None for a loss that
    Newton's method does not take: with groups, or without zero in its domain, or of weight zero.
    """
    if not isinstance(loss, Homogeneous) or not np.all((weight > 0.0) | (seen is not None)):
        return None
    if isinstance(loss, PiecewiseLinear):
        if not loss.low <= 0.0 <= loss.high:
            return None
        usual = float(np.mean(weight)) * np.sqrt(Y.size)
        weight = weight if weight.ndim == 0 else np.reshape(weight, Y.shape)
    else:
        if loss.axis is not None:
            return None
        usual = float(weight)
    scale = usual / (float(np.linalg.norm(Y)) or 1.0)
    return NonsmoothFit(loss, np.asarray(weight / scale), mirror, Y, centred, scales=seen), scale
