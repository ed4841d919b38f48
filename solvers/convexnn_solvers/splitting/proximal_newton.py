"""Proximal point steps whose dual problems Newton's method solves, from where the splitting has got to.

The step from (z_k, y_k) minimises ``h(x) + <c, x> + G(y) + rho/2 (|x - z_k|_D^2 + |y - y_k|_R^2)`` under
``y = B x + b``. For the gradient ``theta`` of G it is the maximum of a concave function with gradient

    B x + b - y,   x = prox_h(z_k - (c + B^T theta) / (rho D)),   y = prox_G(y_k + theta / (rho R)),

and a generalised Hessian made of the proximal maps' Jacobians, few of whose columns are not zero. Slopes
alone decide on step lengths: values would drown in rounding. Smaller rho makes fewer and harder steps.

After Li, Sun and Toh (2018), SSNAL, and Rockafellar (1976).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from convexnn_solvers.backends import Float64Array
from convexnn_solvers.packing import Arrays, Held, below, packed_attributes, part
from convexnn_solvers.splitting.splitting import Place, Splitting, unpacked_place

# What is added to the Hessian, relative to that of rows that move freely.
_SHIFT = 1e-8
# A dual problem is solved when its gradient is this share of the step, of this one and of the last.
_SOLVED = 0.2
# So many Newton steps make a problem an easy one, or a hard one; after the most, the next point is taken.
_EASY, _HARD, _MOST, _CHANGE = 6, 25, 50, 3.0
# On a line: the slope may have turned to this share of the first one; trials; the least that one shortens.
_TURNED, _TRIALS, _LEAST = 0.3, 12, 0.1
# Gradients below this, relative to the point, are rounding.
_ROUNDING = 1e-14
_ARRAYS, _NUMBERS = ("z", "y", "theta", "gradient"), ("inner", "last", "done", "hard")


@dataclass(frozen=True, eq=False)
class ProximalStep:
    """One dual problem: its centre (z, y), the place of the current ``theta``, and the gradient there.

    ``inner`` Newton steps were taken, ``last`` is how far the step before moved. ``done``: the place is the
    next centre. ``hard``: how many steps, in all, went beyond those of easy problems.
    """

    z: Float64Array
    y: Float64Array
    theta: Float64Array
    place: Place
    gradient: Float64Array
    inner: int = 0
    last: float = np.inf
    done: bool = False
    hard: int = 0

    def packed(self) -> Arrays:
        """Everything as arrays."""
        return packed_attributes(self, _ARRAYS + _NUMBERS) | below("place", self.place.packed())


def unpacked_step(held: Held) -> ProximalStep:
    """The inverse of :meth:`ProximalStep.packed`."""
    z, y, theta, gradient = (held[name] for name in _ARRAYS)
    inner, last, done, hard = (held[name].item() for name in _NUMBERS)
    return ProximalStep(z, y, theta, unpacked_place(part("place", held)), gradient, inner, last, done, hard)


def begun(splitting: Splitting, place: Place) -> ProximalStep:
    """The first dual problem, from the splitting's place."""
    return _tried(splitting, place.z, place.y, splitting.gradient(place), place.rho)


def advanced(splitting: Splitting, state: ProximalStep) -> ProximalStep | None:
    """One Newton step, or the next dual problem when this one is done; None: there is no Jacobian."""
    if state.done:
        return _next(splitting, state)
    direction = _direction(splitting, state)
    if direction is None:
        return None
    new = _searched(splitting, state, direction)
    inner = state.inner + 1
    size = splitting.size(np.zeros(new.z.shape), new.gradient)
    moved = splitting.size(new.place.z - state.z, new.place.y - state.y)
    rounding = _ROUNDING * splitting.size(new.place.z, new.place.y)
    done = size <= max(_SOLVED * min(moved, state.last), rounding) or inner >= _MOST
    hard = state.hard + (1 if inner > _EASY else 0)
    return replace(new, inner=inner, last=moved if done else state.last, done=done, hard=hard)


def _next(splitting: Splitting, state: ProximalStep) -> ProximalStep:
    """The proximal point is the next centre; rho follows from how hard it was to find."""
    rho = state.place.rho
    if state.inner <= _EASY:
        rho /= _CHANGE
    elif state.inner >= _HARD:
        rho *= _CHANGE
    fresh = _tried(splitting, state.place.z, state.place.y, state.theta, rho)
    return replace(fresh, last=state.last, hard=state.hard)


def _tried(
    splitting: Splitting, z: Float64Array, y: Float64Array, theta: Float64Array, rho: float
) -> ProximalStep:
    a = z - (splitting.linear + splitting.rows.matrix.T @ theta) / (rho * splitting.D)
    place = splitting.place(a, y + theta / (rho * splitting.R), rho)
    return ProximalStep(z, y, theta, place, splitting.rows.forward(place.z) - place.y)


def _searched(splitting: Splitting, state: ProximalStep, direction: Float64Array) -> ProximalStep:
    """The first of ever shorter steps at which the slope has not turned, or not by much."""
    slope, length = float(state.gradient @ direction), 1.0
    for left in reversed(range(_TRIALS)):
        theta = state.theta + length * direction
        new = _tried(splitting, state.z, state.y, theta, state.place.rho)
        turned = float(new.gradient @ direction)
        if not (left and turned < -_TURNED * slope):
            return new
        length *= max(slope / (slope - turned), _LEAST)
    raise AssertionError("the last trial always returns")


def _direction(splitting: Splitting, state: ProximalStep) -> Float64Array | None:
    """``(B J_h (rho D)^-1 B^T + (J_G + shift) (rho R)^-1)^-1 gradient``, by the smaller of two matrices."""
    place, rho = state.place, state.place.rho
    bent = splitting.row_jacobian(place)
    if bent is None:
        return None
    weights = splitting.weight_jacobian(place)
    used = np.flatnonzero(np.any(weights.vectors != 0.0, axis=1))
    pulled = splitting.rows.matrix[:, used] @ weights.vectors[used]
    own = (weights.vectors**2).T @ splitting.D
    tied = bent.columns / np.sqrt(splitting.R)[:, None]
    columns = np.hstack([pulled * np.sqrt(weights.values / own), tied])
    diagonal = (bent.diagonal + _SHIFT) / splitting.R
    right = rho * state.gradient
    if columns.shape[1] < len(right):
        over = columns / diagonal[:, None]
        matrix = columns.T @ over
        matrix.flat[:: len(matrix) + 1] += 1.0
        return np.asarray(right / diagonal - over @ np.linalg.solve(matrix, over.T @ right), dtype=np.float64)
    matrix = columns @ columns.T
    matrix.flat[:: len(right) + 1] += diagonal
    return np.asarray(np.linalg.solve(matrix, right), dtype=np.float64)
