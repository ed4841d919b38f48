"""Losses of affine expressions: value, gradient, curvature and conjugate side by side.

A loss ``f`` acts on ``q = A x + b`` with a non-negative weight ``w`` (a number, or one per entry of the
atom's value): the term is ``sum(w * f(q))``. Labels live inside ``q`` (the logistic loss of a label
``y`` is ``Softplus`` at ``q = -y * prediction``), so each class is one function of one variable.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from convexnn_solvers.backends import Array, Float64Array
from convexnn_solvers.functions.norm_balls import nearest_on_simplex, rounding, to_exact_sum


class Loss(Protocol):
    """What solvers and certificates need to know of a loss; implementations are small frozen values."""

    @property
    def name(self) -> str:
        """The word that messages use."""
        ...

    @property
    def quadratic(self) -> bool:
        """Whether ``f`` is exactly quadratic (closed-form line searches)."""
        ...

    @property
    def curvature(self) -> float:
        """A Lipschitz constant of the gradient of ``f`` for weight one; where there is none, that at zero."""
        ...

    def value(self, q: Array, weight: Array, xp: Any) -> Array:
        """``sum(weight * f(q))`` as a zero-dimensional array."""
        ...

    def gradient(self, q: Array, weight: Array, xp: Any) -> Array:
        """The gradient of :meth:`value` with respect to ``q``."""
        ...

    def conjugate(self, v: Float64Array, weight: Any) -> float:
        """The conjugate of ``q -> sum(weight * f(q))`` at ``v``, in float64; ``inf`` outside its domain."""
        ...

    def nearest(self, v: Float64Array, weight: Any) -> Float64Array:
        """The nearest point of the conjugate's domain."""
        ...


@runtime_checkable
class ThinDomain(Protocol):
    """A loss whose conjugate is finite only where sums have a value that rounding misses a little."""

    def missed(self, v: Float64Array) -> Float64Array:
        """How far each entry of ``v`` may be from a point of the domain; bounds pay for it."""
        ...

    def shift(self, v: Float64Array, weight: Any) -> Float64Array:
        """What takes a point that the conjugate lets pass all the way into the domain, from exact sums."""
        ...

    def nearest(self, v: Float64Array, weight: Any) -> Float64Array:
        """The nearest point of the conjugate's domain."""
        ...


@dataclass(frozen=True)
class SumSquares:
    """``f(q) = ||q||^2``, CVXPY's ``sum_squares``; the weight is one number."""

    name: str = "sum_squares"
    quadratic: bool = True
    curvature: float = 2.0

    def value(self, q: Array, weight: Array, xp: Any) -> Array:
        return weight * xp.sum(q * q)

    def gradient(self, q: Array, weight: Array, xp: Any) -> Array:
        return (2.0 * weight) * q

    def conjugate(self, v: Float64Array, weight: Any) -> float:
        peak = float(np.max(np.abs(v), initial=0.0))
        if peak == 0.0:
            return 0.0
        if not float(weight) > 0.0:
            return np.inf
        # Squares of tiny entries would underflow, and a bound without them be above the optimum.
        return float(np.sum((v / peak) ** 2)) * peak * (peak / float(weight)) / 4.0

    def nearest(self, v: Float64Array, weight: Any) -> Float64Array:
        return v if float(weight) > 0.0 else np.zeros_like(v)


@dataclass(frozen=True)
class Huber:
    """CVXPY's ``huber``: ``q^2`` for ``|q| <= M`` and ``2 M |q| - M^2`` beyond (twice the textbook one)."""

    threshold: float = 1.0
    name: str = "huber"
    quadratic: bool = False
    curvature: float = 2.0

    def value(self, q: Array, weight: Array, xp: Any) -> Array:
        inside = xp.clip(q, -self.threshold, self.threshold)
        return xp.sum(weight * inside * (2.0 * q - inside))

    def gradient(self, q: Array, weight: Array, xp: Any) -> Array:
        return 2.0 * weight * xp.clip(q, -self.threshold, self.threshold)

    def conjugate(self, v: Float64Array, weight: Any) -> float:
        outside = np.any(np.abs(v) > 2.0 * self.threshold * np.asarray(weight, dtype=np.float64))
        return np.inf if outside else Square().conjugate(v, weight)

    def nearest(self, v: Float64Array, weight: Any) -> Float64Array:
        limit = 2.0 * self.threshold * np.asarray(weight, dtype=np.float64)
        return np.clip(v, -limit, limit)


@dataclass(frozen=True)
class Softplus:
    """CVXPY's ``logistic``: ``log(1 + exp(q))``."""

    name: str = "logistic"
    quadratic: bool = False
    curvature: float = 0.25

    def value(self, q: Array, weight: Array, xp: Any) -> Array:
        return xp.sum(weight * (xp.clip(q, 0.0, None) + xp.log1p(xp.exp(-xp.abs(q)))))

    def gradient(self, q: Array, weight: Array, xp: Any) -> Array:
        tail = xp.exp(-xp.abs(q))
        return weight * xp.where(q >= 0.0, 1.0 / (1.0 + tail), tail / (1.0 + tail))

    def conjugate(self, v: Float64Array, weight: Any) -> float:
        w = _per_entry(weight, v.shape)
        if np.any(v < 0.0) or np.any(v > w):
            return np.inf
        active = w > 0.0
        p = v[active] / w[active]
        entropy = np.where(p > 0.0, p * np.log(np.where(p > 0.0, p, 1.0)), 0.0)
        entropy += np.where(p < 1.0, (1.0 - p) * np.log1p(-np.where(p < 1.0, p, 0.0)), 0.0)
        return float(np.sum(w[active] * entropy))

    def nearest(self, v: Float64Array, weight: Any) -> Float64Array:
        return np.clip(v, 0.0, np.asarray(weight, dtype=np.float64))


@dataclass(frozen=True)
class Exponential:
    """``f(q) = exp(q)``, as in Poisson regression, ``exp(q) - y q``.

    Its gradient has no Lipschitz constant: ``curvature`` is the one at zero, and step lengths have to be
    searched for. Far above every optimum, where ``exp`` overflows, it goes on linearly.
    """

    name: str = "exp"
    quadratic: bool = False
    curvature: float = 1.0

    def value(self, q: Array, weight: Array, xp: Any) -> Array:
        """``sum(weight * exp(q))``."""
        low, over = self._parts(q, xp)
        return xp.sum(weight * xp.exp(low) * (1.0 + over))

    def gradient(self, q: Array, weight: Array, xp: Any) -> Array:
        """``weight exp(q)``."""
        return weight * xp.exp(self._parts(q, xp)[0])

    def conjugate(self, v: Float64Array, weight: Any) -> float:
        """``sum(v log(v / weight) - v)`` for ``v >= 0``, infinite elsewhere."""
        w = _per_entry(weight, v.shape)
        if np.any(v < 0.0) or np.any(v[w == 0.0] > 0.0):
            return np.inf
        positive = v > 0.0
        p = v[positive]
        return float(np.sum(p * (np.log(p) - np.log(w[positive]) - 1.0)))

    def nearest(self, v: Float64Array, weight: Any) -> Float64Array:
        """The positive part, but zero where the weight is zero."""
        return Square().nearest(np.clip(v, 0.0, None), weight)

    def _parts(self, q: Array, xp: Any) -> tuple[Array, Array]:
        """``q`` where ``exp`` is safe, and what is above that."""
        limit = 0.5 * float(np.log(float(xp.finfo(q.dtype).max)))
        return xp.clip(q, None, limit), xp.clip(q - limit, 0.0, None)


@dataclass(frozen=True)
class Square:
    """``f(q) = q^2`` entry by entry, with one weight per entry; see :class:`SumSquares` for one number."""

    name: str = "square"
    quadratic: bool = True
    curvature: float = 2.0

    def value(self, q: Array, weight: Array, xp: Any) -> Array:
        """``sum(weight * q^2)``."""
        return xp.sum(weight * q * q)

    def gradient(self, q: Array, weight: Array, xp: Any) -> Array:
        """``2 weight q``."""
        return 2.0 * weight * q

    def conjugate(self, v: Float64Array, weight: Any) -> float:
        """``sum(v^2 / (4 weight))``; infinite where the weight is zero and ``v`` is not."""
        w = _per_entry(weight, v.shape)
        if np.any(v[w == 0.0] != 0.0):
            return np.inf
        active = w > 0.0
        return float(np.sum(v[active] * (v[active] / w[active])) / 4.0)

    def nearest(self, v: Float64Array, weight: Any) -> Float64Array:
        """``v``, but zero where the weight is zero."""
        return np.where(np.broadcast_to(weight, v.shape) > 0.0, v, 0.0)


@dataclass(frozen=True)
class SquaredHinge:
    """``f(q) = max(q, 0)^2``, CVXPY's ``square(pos(q))``."""

    name: str = "squared hinge"
    quadratic: bool = False
    curvature: float = 2.0

    def value(self, q: Array, weight: Array, xp: Any) -> Array:
        """``sum(weight * max(q, 0)^2)``."""
        positive = xp.clip(q, 0.0, None)
        return xp.sum(weight * positive * positive)

    def gradient(self, q: Array, weight: Array, xp: Any) -> Array:
        """``2 weight max(q, 0)``."""
        return 2.0 * weight * xp.clip(q, 0.0, None)

    def conjugate(self, v: Float64Array, weight: Any) -> float:
        """``sum(v^2 / (4 weight))`` for ``v >= 0``, infinite elsewhere."""
        return np.inf if np.any(v < 0.0) else Square().conjugate(v, weight)

    def nearest(self, v: Float64Array, weight: Any) -> Float64Array:
        """The positive part, but zero where the weight is zero."""
        return Square().nearest(np.clip(v, 0.0, None), weight)


@dataclass(frozen=True)
class LogSumExp:
    """``f(q) = log(sum(exp(q)))`` along ``axis`` (``None``: of the whole array), CVXPY's ``log_sum_exp``.

    The weight is one number or one per group. The conjugate is finite only where each group of ``v`` is
    non-negative and sums to its weight (to within :meth:`missed`, since sums are rounded).
    """

    axis: int | None = None
    name: str = "log_sum_exp"
    quadratic: bool = False
    curvature: float = 0.5

    def value(self, q: Array, weight: Array, xp: Any) -> Array:
        """``sum(weight * log(sum(exp(q))))``."""
        top = self._top(q, xp)
        sums = xp.sum(xp.exp(q - top), axis=self.axis)
        return xp.sum(weight * (xp.log(sums) + xp.reshape(top, tuple(sums.shape))))

    def gradient(self, q: Array, weight: Array, xp: Any) -> Array:
        """The weighted softmax."""
        exponentials = xp.exp(q - self._top(q, xp))
        if self.axis is None:
            return weight * exponentials / xp.sum(exponentials)
        scale = weight / xp.sum(exponentials, axis=self.axis)
        return exponentials * xp.expand_dims(scale, axis=self.axis)

    def conjugate(self, v: Float64Array, weight: Any) -> float:
        """``sum(v log(v / weight))`` on the scaled simplices, infinite elsewhere."""
        totals = np.sum(v, axis=self.axis)
        w = _per_entry(weight, np.shape(totals))
        if np.any(v < 0.0) or np.any(np.abs(totals - w) > self._slack(v) * w):
            return np.inf
        spread = w if self.axis is None else np.expand_dims(w, self.axis)
        logarithms = np.log(np.where(v > 0.0, v, 1.0)) - np.log(np.where(v > 0.0, spread, 1.0))
        return float(np.sum(v * logarithms))

    def nearest(self, v: Float64Array, weight: Any) -> Float64Array:
        """The projection on the scaled simplices."""
        return np.asarray(nearest_on_simplex(v, weight, self.axis), dtype=np.float64)

    def missed(self, v: Float64Array) -> Float64Array:
        """What the sums of groups may be rounded, entry by entry."""
        return self._slack(v) * np.abs(v)

    def shift(self, v: Float64Array, weight: Any) -> Float64Array:
        """A multiple of each group."""
        return to_exact_sum(v, weight, self.axis)

    def _slack(self, v: Float64Array) -> float:
        return 2.0 * rounding(v.size if self.axis is None else v.shape[self.axis])

    def _top(self, q: Array, xp: Any) -> Array:
        return xp.max(q) if self.axis is None else xp.max(q, axis=self.axis, keepdims=True)


def _per_entry(weight: Any, shape: tuple[int, ...]) -> Float64Array:
    """The weight of every entry, in float64."""
    return np.broadcast_to(np.asarray(weight, dtype=np.float64), shape)
