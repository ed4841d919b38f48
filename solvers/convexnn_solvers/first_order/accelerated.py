"""Proximal gradient steps with momentum, backtracking through the prox, and restarts: those of R-FISTA.

For a smooth f of affine outputs, ``f(x) = sum_k w_k f_k(A_k x + b_k) + <c, x>``, one step from y is

    x+ = prox(y - step grad f(y)),    y+ = x+ + (t - 1)/t+ (x+ - x),    t+ = (1 + sqrt(1 + 4 t^2))/2.

Outputs are affine, so those of ``y+`` follow from those of ``x+`` and ``x``: a step costs one forward and one
adjoint product, and one forward product more whenever the step has to shrink. Every variable has a scale of
its own, so that blocks in different units (an output bias beside hundreds of gates) share one step length.
After Beck and Teboulle (2009), O'Donoghue and Candes (2015), and Mishkin, Sahiner and Pilanci (2022).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from convexnn_solvers.backends import Array, Backend
from convexnn_solvers.composite import Composite, Point
from convexnn_solvers.first_order.curvature import (
    curvature_alone,
    largest_curvature,
    loss_hessian,
    positive_scales,
)
from convexnn_solvers.functions.tilted import Tilted
from convexnn_solvers.loop.checkpoint import Arrays, packed_point, whole_point

# A step that breaks the quadratic bound shrinks to this share of what would have kept it, by at most the
# factor below at a time, ...
_SHRINK, _LEAST_SHRINK = 0.95, 0.5
# ... and grows by this factor for the next iteration when the bound was slack by the ratio below.
_GROW = 1.25
_SLACK = 5.0
_MAX_SHRINKS = 200
# Steps that rounding alone has shrunk stay above this.
_SHORTEST = 1e-150
# A Bregman distance smaller than this many rounding errors of its terms is taken from gradients instead.
_CANCELLATION = 1e3
_ROUNDING = 16.0


@dataclass(frozen=True, eq=False)
class Smooth:
    """The smooth part of a problem and its metric: ``scales[k]`` estimates ``||A_k||^2`` of variable k.

    It is a number, or an array of numbers for parts of the variable that broadcasts against it.
    """

    composite: Composite
    scales: tuple[Any, ...]

    def gradient(self, outputs: Point) -> tuple[tuple[Array, ...], Point]:
        """Gradients with respect to the losses' outputs, and with respect to x."""
        cotangents = self.composite.loss_gradients(outputs)
        pulled = self.composite.affine.adjoint(cotangents)
        return cotangents, tuple(g + c for g, c in zip(pulled, self.composite.linear, strict=True))

    def norm_squared(self, dx: Point) -> float:
        """The squared norm of a displacement in the metric."""
        return self.composite.across.sum(float(self._inner(dx, dx)))

    def tried(self, x: Point, state: Descent) -> Trial:
        """All that a step from ``state`` asks about the point ``x``; one forward product."""
        outputs = self.composite.affine.forward(x)
        return Trial(outputs, *(self.composite.across.sum(value) for value in self.own_products(x, state)))

    def own_products(self, x: Point, state: Descent) -> tuple[float, float]:
        """``||x - y||^2`` and ``<y - x, x - state.x>`` in the metric, on the variables that are here."""
        step, backend = _difference(x, state.y), self.composite.backend
        # Both at once: a device is asked, and waited for, one time.
        both = backend.xp.stack([self._inner(step, step), self._inner(step, _difference(x, state.x))])
        moved, turned = backend.to_numpy(both).tolist()
        return moved, -turned

    def _inner(self, a: Point, b: Point) -> Array:
        xp, total = self.composite.backend.xp, self.composite.backend.zeros(())
        for scale, u, v in zip(self.scales, a, b, strict=True):
            inner = scale * xp.sum(u * v) if isinstance(scale, float) else xp.sum(scale * u * v)
            total = total + inner
        return total

    def rounding(self, x: Point, outputs: Point) -> float:
        """Bregman distances below this are rounding of the outputs, and say nothing about the step.

        Near an exact fit the outputs are small differences of products and offsets, with the rounding of the
        offsets.
        """
        xp = self.composite.backend.xp
        eps = _ROUNDING * float(xp.finfo(self.composite.backend.dtype).eps)
        return eps * eps * max(abs(float(self.composite.smooth_value(x, outputs))), self.at_zero)

    @cached_property
    def at_zero(self) -> float:
        """The smooth part at zero, where the outputs are the offsets; 0 where that is not finite."""
        zeros = self.composite.zeros()
        value = abs(float(self.composite.smooth_value(zeros, self.composite.affine.forward(zeros))))
        return value if math.isfinite(value) else 0.0

    def lipschitz(self) -> float:
        """An estimate of the Lipschitz constant of the gradient in the metric, by power iterations."""
        if len(self.scales) == 1:
            return 1.0  # the metric is the curvature of the only variable
        every = range(len(self.scales))
        return largest_curvature(self.composite, loss_hessian(self.composite), self.scales, every)


@dataclass(frozen=True, eq=False)
class Trial:
    """A point's affine outputs, its squared distance ``moved`` from y, and how far it ``turned`` back."""

    outputs: Point
    moved: float
    turned: float


def smooth_part(composite: Composite) -> Smooth:
    """Scales from the curvature of each variable alone; a variable outside the losses gets the largest."""
    return Smooth(composite, positive_scales(curvature_alone(composite, loss_hessian(composite))))


@dataclass(frozen=True, eq=False)
class Descent:
    """One state of the accelerated iteration; ``y`` is the extrapolated point.

    ``residual`` is the norm of the gradient mapping, in the metric's dual norm.
    """

    x: Point
    outputs: Point
    y: Point
    y_outputs: Point
    momentum: float
    step: float
    last_step: float
    residual: float


def descend_from(smooth: Smooth, x: Point, step: float) -> Descent:
    """The state before the first step; one forward product."""
    outputs = smooth.composite.affine.forward(x)
    return Descent(x, outputs, x, outputs, 1.0, step, step, math.inf)


def packed_descent(state: Descent, backend: Backend) -> Arrays:
    """A state as arrays for a checkpoint."""
    points = {"x": state.x, "outputs": state.outputs, "y": state.y, "y_outputs": state.y_outputs}
    arrays: Arrays = {"scalars": np.asarray([state.momentum, state.step, state.last_step, state.residual])}
    for name, point in points.items():
        arrays |= packed_point(name, point, backend.to_numpy)
    return arrays


def unpacked_descent(arrays: Mapping[str, NDArray[Any]], backend: Backend) -> Descent:
    """The inverse of :func:`packed_descent`."""
    x, outputs, y, y_outputs = (
        tuple(backend.asarray(a) for a in whole_point(name, arrays))
        for name in ("x", "outputs", "y", "y_outputs")
    )
    momentum, step, last_step, residual = (float(value) for value in arrays["scalars"])
    return Descent(x, outputs, y, y_outputs, momentum, step, last_step, residual)


@dataclass(frozen=True, eq=False)
class _Step:
    """A proximal step that satisfies the quadratic bound: ``distance <= moved`` (both of f's dimension)."""

    x: Point
    outputs: Point
    length: float
    moved: float
    turned: float
    distance: float


class Prox(Protocol):
    """The proximal map of all that is not smooth."""

    def __call__(self, point: Point, steps: Sequence[Any]) -> Point:
        """The proximal point, with one step per variable: a number, or an array as of its scales."""
        ...


def advance(smooth: Smooth, prox: Prox, state: Descent) -> Descent:
    """One accelerated proximal gradient step."""
    found = _backtracked(smooth, prox, state)
    x, outputs = found.x, found.outputs
    residual = math.sqrt(2.0 * found.moved / found.length) if math.isfinite(found.distance) else math.nan
    following = found.length * _GROW if found.moved > _SLACK * found.distance else found.length
    change = _difference(x, state.x)
    if found.turned > 0.0:
        return Descent(x, outputs, x, outputs, 1.0, following, found.length, residual)
    momentum = (1.0 + math.sqrt(1.0 + 4.0 * state.momentum**2)) / 2.0
    beta = (state.momentum - 1.0) / momentum
    return Descent(
        x=x,
        outputs=outputs,
        y=_combined(x, change, [beta] * len(x)),
        y_outputs=_combined(outputs, _difference(outputs, state.outputs), [beta] * len(outputs)),
        momentum=momentum,
        step=following,
        last_step=found.length,
        residual=residual,
    )


def _backtracked(smooth: Smooth, prox: Prox, state: Descent) -> _Step:
    """The proximal step from ``y``, shortened until the quadratic bound holds."""
    cotangents, gradient = smooth.gradient(state.y_outputs)
    length = max(state.step, _SHORTEST)
    for shrinks_left in reversed(range(_MAX_SHRINKS)):
        steps = [length / scale for scale in smooth.scales]
        x = prox(_combined(state.y, gradient, [-step for step in steps]), steps)
        trial = smooth.tried(x, state)
        outputs, moved = trial.outputs, trial.moved / (2.0 * length)
        distance = bregman(smooth.composite, outputs, state.y_outputs, cotangents)
        # A trial that overflows was too long, unless there is nothing finite to start from.
        holds = distance <= moved or (not math.isfinite(distance) and not _finite(gradient, smooth))
        if holds or not shrinks_left or distance <= smooth.rounding(x, outputs):
            return _Step(x, outputs, length, moved, trial.turned, distance)
        length *= _shrink(moved, distance)
    raise AssertionError("the last trial always returns")


def _shrink(moved: float, distance: float) -> float:
    """By how much a step has to shrink: the curvature that the trial met is what the next one will meet.

    A power of one number, so that steps do not depend on rounding, nor on the number of processes.
    """
    if not (math.isfinite(distance) and distance > 0.0 and moved > 0.0):
        return _LEAST_SHRINK
    power = math.ceil((math.log(distance) - math.log(moved)) / -math.log(_SHRINK))
    return max(_LEAST_SHRINK, _SHRINK ** (1 + power))


def _finite(point: Point, smooth: Smooth) -> bool:
    xp = smooth.composite.backend.xp
    return all(math.isfinite(float(xp.sum(xp.abs(a)))) for a in point)


def bregman(composite: Composite, new: Point, old: Point, cotangents: Sequence[Array]) -> float:
    """``f(new) - f(old) - <grad f(old), new - old>`` for affine outputs, safe against cancellation.

    Exact for quadratic losses. Where the difference of values drowns in their rounding, half the
    symmetrised distance stands in, which agrees up to third order.
    """
    xp = composite.backend.xp
    eps = float(xp.finfo(composite.backend.dtype).eps)
    total = 0.0
    for term, q, p, g in zip(composite.losses, new, old, cotangents, strict=False):
        # A formula that does not cancel; by name, since asking a Protocol takes longer than a small product.
        formula: Callable[..., Array] | None = getattr(term.loss, "bregman", None)
        if formula is not None:
            total += float(formula(q, p, term.weight, xp))
            continue
        d = q - p
        if term.loss.quadratic:
            # Linear terms add nothing.
            square = term.loss.loss if isinstance(term.loss, Tilted) else term.loss
            total += float(square.value(d, term.weight, xp))
            continue
        before, after = float(term.loss.value(p, term.weight, xp)), float(term.loss.value(q, term.weight, xp))
        linear = float(xp.sum(g * d))
        distance = after - before - linear
        if abs(distance) <= _CANCELLATION * eps * max(abs(before), abs(after), abs(linear)):
            distance = 0.5 * float(xp.sum((term.loss.gradient(q, term.weight, xp) - g) * d))
        total += distance
    return total


def _difference(a: Point, b: Point) -> Point:
    return tuple(u - v for u, v in zip(a, b, strict=True))


def _combined(a: Point, b: Point, factors: Sequence[float]) -> Point:
    return tuple(u + f * v for u, v, f in zip(a, b, factors, strict=True))
