"""Data fits of the semismooth Newton method: the loss as a function of the prediction, and its conjugate.

A fit F acts on predictions p (n, c), plus a free offset per output when ``centred``, which is eliminated:
``F(p) = min_b f(p + 1 b^T)``. Its conjugate is that of f on the dual variables whose columns sum to zero.
The method works on the dual, so what it needs most is the conjugate: value, derivative, curvature.

Where sample i has a weight ``w_i = r_i^2`` of its own, features and predictions of the program are ``r_i``
times those of the loss: ``w f(q) = h(r q)`` for a function h of about the curvature of f, and samples of
weight zero become rows of zeros. The ``scales`` of a fit are these r (n, 1), None where it need not know
them; then an offset enters as ``r b^T``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from scipy.special import expit, xlogy

from convexnn_solvers.backends import Float64Array

#: Step length -> change of a function since length 0, and its derivative.
LineFunction = Callable[[float], tuple[float, float]]

# Steps stay this share away from the boundary of the conjugate's domain.
_INSIDE = 0.99
# Gradients of the logistic loss are handed out so far inside the conjugate's domain.
_INTERIOR = 1e-12
_TINY, _BELOW_ONE = 1e-300, float(np.nextafter(1.0, 0.0))
# Bisections of the offset of a logistic fit; more than the bits of a double.
_BISECTIONS = 200


@dataclass(frozen=True, eq=False)
class Fitted:
    """A prediction's loss, the gradient xi (n, c) there and the best offset (c,), zero if there is none."""

    value: float
    xi: Float64Array
    offset: Float64Array


class Fit(Protocol):
    """What the method needs of a loss; implementations are small frozen values."""

    @property
    def shape(self) -> tuple[int, int]:
        """(n, c)."""
        ...

    @property
    def centred(self) -> bool:
        """Whether there is a free offset per output."""
        ...

    @property
    def scales(self) -> Float64Array | None:
        """What the samples' predictions were multiplied by, (n, 1); None: one, or it makes no difference."""
        ...

    @property
    def outliers(self) -> float | Float64Array | None:
        """Bounds on the dual variable's entries, one or (n, 1): the slopes where the loss turns linear."""
        ...

    def at(self, prediction: Float64Array) -> Fitted:
        """Value, gradient and offset at a prediction (n, c) without its offset."""
        ...

    def conjugate(self, xi: Float64Array) -> float:
        """The conjugate, aside of the bounds that ``centred`` and ``outliers`` stand for."""
        ...

    def derivative(self, xi: Float64Array) -> Float64Array:
        """The gradient of the conjugate."""
        ...

    def curvature(self, xi: Float64Array) -> Float64Array:
        """The diagonal of the Hessian of the conjugate, positive."""
        ...

    def along(self, xi: Float64Array, direction: Float64Array) -> LineFunction:
        """The conjugate on a line."""
        ...

    def room(self, xi: Float64Array, direction: Float64Array) -> float:
        """The longest safe step inside the conjugate's domain."""
        ...

    def admits(self, xi: Float64Array) -> bool:
        """Whether ``xi`` lies inside the conjugate's domain, aside of what ``outliers`` stand for."""
        ...

    def nearest(self, xi: Float64Array) -> Float64Array:
        """A point near ``xi`` (n, c) in the conjugate's domain, or ``xi`` where its multiples get there."""
        ...

    def wanted_scale(self, xi: Float64Array) -> float:
        """The multiple of ``xi`` at which the dual objective ``-conjugate`` is largest, or a guess of it."""
        ...

    def scaled(self, factor: float) -> Fit | None:
        """The fit of predictions divided by ``factor``, its value divided by the square; None: impossible."""
        ...


@dataclass(frozen=True, eq=False)
class SquaredFit:
    """``1/2 ||p - Y||_F^2``; with ``outliers = M`` Huber's loss: ``M |r| - M^2/2`` where ``|r| > M``.

    Huber's loss is handled as squares of ``p + s - Y`` with outliers s at the price ``M ||s||_1``. Weights
    are in the units of Y, with ``scales`` only where there is an offset, and of M, one (n, 1) per sample.
    """

    Y: Float64Array
    centred: bool = False
    outliers: float | Float64Array | None = None
    scales: Float64Array | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(n, c)."""
        return int(self.Y.shape[0]), int(self.Y.shape[1])

    def at(self, prediction: Float64Array) -> Fitted:
        """Value, gradient and offset."""
        residual = prediction - self.Y
        offset = np.zeros(self.shape[1])
        if self.centred:
            r = np.ones((len(residual), 1)) if self.scales is None else self.scales
            offset = -(r.T @ residual)[0] / float(np.vdot(r, r))
            residual = residual + r * offset
            if self.outliers is not None:
                seen = r[:, 0] > 0.0
                width = np.ptp(residual[seen] / r[seen])
                shift = increasing_roots(lambda b: (r.T @ self._clipped(residual + r * b))[0], width)
                offset, residual = offset + shift, residual + r * shift
        xi = self._clipped(residual)
        return Fitted(float(np.sum(xi * (residual - 0.5 * xi))), xi, offset)

    def conjugate(self, xi: Float64Array) -> float:
        """``1/2 ||xi||^2 + <Y, xi>``."""
        return 0.5 * float(np.vdot(xi, xi)) + float(np.vdot(self.Y, xi))

    def derivative(self, xi: Float64Array) -> Float64Array:
        """``xi + Y``."""
        return xi + self.Y

    def curvature(self, xi: Float64Array) -> Float64Array:
        """One."""
        return np.ones_like(xi)

    def along(self, xi: Float64Array, direction: Float64Array) -> LineFunction:
        """A quadratic."""
        linear = float(np.vdot(xi + self.Y, direction))
        square = float(np.vdot(direction, direction))
        return lambda t: (t * linear + 0.5 * t * t * square, linear + t * square)

    def room(self, xi: Float64Array, direction: Float64Array) -> float:
        """Everywhere."""
        return np.inf

    def admits(self, xi: Float64Array) -> bool:
        """Always."""
        return True

    def nearest(self, xi: Float64Array) -> Float64Array:
        """Itself: outliers bound its multiples."""
        return xi

    def wanted_scale(self, xi: Float64Array) -> float:
        """``-<xi, Y> / ||xi||^2``."""
        squared = float(np.vdot(xi, xi))
        return -float(np.vdot(xi, self.Y)) / squared if squared > 0.0 else 0.0

    def scaled(self, factor: float) -> SquaredFit:
        """Targets and the bend scaled alike."""
        bend = None if self.outliers is None else self.outliers / factor
        return replace(self, Y=self.Y / factor, outliers=bend)

    def _clipped(self, residual: Float64Array) -> Float64Array:
        return residual if self.outliers is None else np.clip(residual, -self.outliers, self.outliers)


@dataclass(frozen=True, eq=False)
class LogisticFit:
    """``sum log(1 + exp(signs * p + shift))``: for labels y, signs = -y and shift = 0; arrays (n, c).

    With ``scales`` r it is ``sum r^2 log(1 + exp(signs * p / r + shift))``.
    """

    signs: Float64Array
    shift: Float64Array
    centred: bool = False
    outliers: float | None = None
    scales: Float64Array | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(n, c)."""
        return int(self.signs.shape[0]), int(self.signs.shape[1])

    @property
    def _r(self) -> Float64Array:
        return np.ones((1, 1)) if self.scales is None else self.scales

    def at(self, prediction: Float64Array) -> Fitted:
        """Value, gradient and offset (by bisection; kept finite where the labels have one class only)."""
        r = self._r
        q = self.signs * self._unscaled(prediction) + self.shift
        offset = np.zeros(self.shape[1])
        if self.centred:
            width = float(np.max(np.abs(q), initial=1.0)) + 40.0
            slopes = r**2 * self.signs
            offset = increasing_roots(lambda b: (slopes * expit(q + self.signs * b)).sum(axis=0), width)
            q = q + self.signs * offset
        xi = balanced(self, r * self.signs * np.clip(expit(q), _INTERIOR, 1.0 - _INTERIOR))
        return Fitted(float(np.sum(r**2 * np.logaddexp(0.0, q))), xi, offset)

    def conjugate(self, xi: Float64Array) -> float:
        """``sum a log a + (1 - a) log(1 - a) - a shift`` with ``a = signs xi / r`` in [0, 1], times r^2."""
        a = np.clip(self._shares(xi), 0.0, 1.0)
        return float(np.sum(self._r**2 * (xlogy(a, a) + xlogy(1.0 - a, 1.0 - a) - a * self.shift)))

    def derivative(self, xi: Float64Array) -> Float64Array:
        """``signs (log(a / (1 - a)) - shift)``, times r."""
        a = np.clip(self._shares(xi), _TINY, _BELOW_ONE)
        return np.asarray(self._r * self.signs * (np.log(a) - np.log1p(-a) - self.shift))

    def curvature(self, xi: Float64Array) -> Float64Array:
        """``1 / (a (1 - a))``, at least 4."""
        a = np.clip(self._shares(xi), _TINY, _BELOW_ONE)
        return np.asarray(1.0 / (a * (1.0 - a)))

    def along(self, xi: Float64Array, direction: Float64Array) -> LineFunction:
        """By its formula."""
        start = self.conjugate(xi)

        def line(length: float) -> tuple[float, float]:
            moved = xi + length * direction
            return self.conjugate(moved) - start, float(np.vdot(self.derivative(moved), direction))

        return line

    def room(self, xi: Float64Array, direction: Float64Array) -> float:
        """Short of the first entry to reach 0 or 1."""
        a, step = self._shares(xi), self.signs * self._unscaled(direction)
        distance = np.where(step > 0.0, 1.0 - a, a)
        moving = step != 0.0
        return _INSIDE * float(np.min(distance[moving] / np.abs(step[moving]), initial=np.inf))

    def admits(self, xi: Float64Array) -> bool:
        """Whether every ``signs xi / r`` lies between 0 and 1."""
        a = self._shares(xi)
        return bool(np.all((a > 0.0) & (a < 1.0)))

    def nearest(self, xi: Float64Array) -> Float64Array:
        """Itself: steps stay inside."""
        return xi

    def wanted_scale(self, xi: Float64Array) -> float:
        """One: the domain is a box with a corner at 0."""
        return 1.0

    def scaled(self, factor: float) -> None:
        """The loss is not homogeneous."""

    def _unscaled(self, prediction: Float64Array) -> Float64Array:
        """``prediction / r``; samples of weight zero have zeros, and keep them."""
        if self.scales is None:
            return prediction
        return prediction / np.where(self.scales > 0.0, self.scales, 1.0)

    def _shares(self, xi: Float64Array) -> Float64Array:
        """``signs xi / r``; of samples of weight zero, whose xi is zero, some share inside."""
        a = self.signs * self._unscaled(xi)
        return a if self.scales is None else np.where(self.scales > 0.0, a, 0.5)


def balanced(fit: Fit, x: Float64Array) -> Float64Array:
    """The part of ``x`` (n, c) in which columns are orthogonal to what an offset adds, if there is one."""
    if not fit.centred:
        return x
    if fit.scales is None:
        return np.asarray(x - x.mean(axis=0))
    r = fit.scales
    mean: Float64Array = r.T @ x / float(np.vdot(r, r))
    return x - r * mean


def excess(fit: Fit, xi: Float64Array) -> float:
    """How many times the bounds that ``outliers`` stand for ``xi`` is, at most; zero without bounds."""
    if fit.outliers is None:
        return 0.0
    size = np.abs(xi)
    times = np.divide(size, fit.outliers, out=np.zeros_like(size), where=size > 0.0)
    return float(np.max(times, initial=0.0))


def step_length(line: LineFunction, rate: float, room: float, noise: float) -> float:
    """Armijo's rule on a convex function, or its form in derivatives where rounding hides the decrease.

    ``rate``: the derivative at 0. That on the line is known too, so a step that is too long is shortened to
    the zero of its secant.
    """
    length = min(1.0, room)
    for _ in range(40):
        change, slope = line(length)
        if change <= 1e-4 * length * rate or (change <= noise and slope <= 0.8 * abs(rate)):
            break
        root = length * rate / (rate - slope) if slope > rate else 0.0
        length = float(np.clip(root, 0.1 * length, 0.7 * length))
    return length


def summed(lines: Sequence[LineFunction]) -> LineFunction:
    """The sum of functions on one line."""

    def line(length: float) -> tuple[float, float]:
        values, slopes = zip(*(part(length) for part in lines), strict=True)
        return sum(values), sum(slopes)

    return line


def increasing_roots(increasing: Callable[[Float64Array], Float64Array], width: float) -> Float64Array:
    """The zeros of increasing functions of one variable each, inside ``(-width, width)``, by bisection."""
    low = np.full(increasing(np.zeros(1)).shape, -width)
    high = -low
    for _ in range(_BISECTIONS):
        middle = 0.5 * (low + high)
        if np.all((middle == low) | (middle == high)):
            break
        above = increasing(middle) > 0.0
        low, high = np.where(above, low, middle), np.where(above, middle, high)
    return np.asarray(0.5 * (low + high))
