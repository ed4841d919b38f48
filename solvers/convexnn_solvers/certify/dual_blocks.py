"""The nearest dual point that lies in all domains and meets a linear condition, by Newton's method.

With ``y`` the blocks of a dual point, ``P`` the projection on their domains and ``C`` the columns of the
condition, ``P(y + C t)`` is that point when ``t`` solves ``C^T P(y + C t) = c``, the optimality condition
of a smooth concave problem in as many unknowns as the condition has rows. Blocks move in proportion to their
size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from convexnn_solvers.backends import Float64Array
from convexnn_solvers.composite import LossTerm
from convexnn_solvers.functions.constraint_cones import NONNEGATIVE, ZERO, Cone

Projection = Callable[[Float64Array], Float64Array]

_NEWTON_STEPS = 60
# Blocks below this share of the largest one may still move as if they were of that size.
_SMALL_BLOCK = 1e-3


@dataclass(frozen=True, eq=False)
class DualBlock:
    """A part of a dual point, its ``columns`` (entries, N), dense or sparse, and the map onto its domain.

    ``slopes`` gives the projection's derivative entry by entry; None where it ties entries together.
    """

    held: Float64Array
    columns: Any
    project: Projection
    slopes: Projection | None = None

    def moved(self, shift: Float64Array) -> Float64Array:
        """The block after a shift (entries,), before the projection."""
        return self.held + shift.reshape(self.held.shape)

    def jacobian(self, shift: Float64Array, size: float, unit: Float64Array) -> Float64Array:
        """The derivative (N, N) of ``C^T P(y + size C t)`` in t; or differences of length ``unit`` (N,)."""
        if self.slopes is not None:
            slopes = size * self.slopes(self.moved(shift)).ravel()
            if isinstance(self.columns, np.ndarray):
                return np.asarray((self.columns.T * slopes) @ self.columns)
            return np.asarray((self.columns.T.multiply(slopes) @ self.columns).toarray())
        here = self.project(self.moved(shift)).ravel()
        steps = self.columns if isinstance(self.columns, np.ndarray) else self.columns.toarray()
        apart = np.zeros(steps.shape)
        for j in np.flatnonzero(np.any(steps, axis=0)):  # unknowns that the block does not hold move nothing
            moved = self.project(self.moved(shift + size * unit[j] * steps[:, j])).ravel()
            apart[:, j] = (moved - here) / unit[j]
        return np.asarray(self.columns.T @ apart)


def in_domain(term: LossTerm) -> Projection:
    """The projection of a theta on the domain of its loss's conjugate."""
    return lambda theta: -term.loss.nearest(-theta, term.weight)


def slopes_of(cone: Cone) -> Projection | None:
    """The derivative of the projection on a dual cone, where that acts on every entry alone."""
    if cone == NONNEGATIVE:
        return lambda mu: np.where(mu > 0.0, 1.0, 0.0)
    return np.ones_like if cone == ZERO else None


def nearest_meeting(
    blocks: Sequence[DualBlock],
    linear: Float64Array,
    unit: Float64Array,
    met: Callable[[Sequence[Float64Array], bool], bool],
) -> list[Float64Array]:
    """The blocks of the nearest point with ``C^T P = linear``; ``met``: whether they meet that, or exactly.

    ``unit`` (N,) is the length of differences in the unknowns.
    """
    rms = np.array([float(np.sqrt(np.mean(b.held**2))) if b.held.size else 0.0 for b in blocks])
    sizes = np.where(rms > _SMALL_BLOCK * rms.max(), rms, _SMALL_BLOCK * rms.max() or 1.0)

    def projected(t: Float64Array) -> tuple[list[Float64Array], Float64Array]:
        parts = [b.project(b.moved(s * (b.columns @ t))) for b, s in zip(blocks, sizes, strict=True)]
        return parts, sum(b.columns.T @ part.ravel() for b, part in zip(blocks, parts, strict=True)) - linear

    t, finer = np.zeros(linear.size), 2
    point, gap = projected(t)
    for _ in range(_NEWTON_STEPS):
        if met(point, True):
            break
        pairs = zip(blocks, sizes, strict=True)
        jacobian = sum(b.jacobian(s * (b.columns @ t), s, unit) for b, s in pairs)
        if not np.isfinite(jacobian).all():  # domains that exclude the condition let t run away
            break
        step = -np.linalg.lstsq(jacobian, gap, rcond=1e-13)[0]
        length = 1.0
        while length > 1e-4:
            trial, left = projected(t + length * step)
            if np.linalg.norm(left) < np.linalg.norm(gap):
                break
            length *= 0.5
        else:
            if not finer or met(point, False):
                break
            # Differences that reach beyond the projections' next kink mislead: closer ones do not.
            unit, finer = 1e-2 * unit, finer - 1
            continue
        t, point, gap = t + length * step, trial, left
    return point
