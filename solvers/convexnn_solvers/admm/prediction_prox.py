"""Proximal maps of the data fits on the prediction, on any backend: what ADMM needs of losses with bends.

    prox(h) = argmin_p  F(p) + weight/2 ||p - h||^2

for the fits of :mod:`gated_programs.fits`, entry by entry and without a free offset, which
belongs to the linear step. The squared loss needs none: it is part of that step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from convexnn_solvers.backends import Array, Backend
from convexnn_solvers.gated_programs.fits import Fit, LogisticFit, SquaredFit

# Newton steps on one increasing function per entry, kept inside a bracket that halves otherwise.
_NEWTON_STEPS = 10


class PredictionProx(Protocol):
    """The proximal map of one fit; ``weight`` is fixed to the curvature of the loss."""

    @property
    def weight(self) -> float:
        """The weight of the square, in units of the fit's curvature."""
        ...

    def __call__(self, h: Array) -> Array:
        """The map at predictions (n, c)."""
        ...


def prediction_prox(fit: Fit, backend: Backend) -> PredictionProx | None:
    """The proximal map of a fit; None for squares, which need none."""
    if isinstance(fit, LogisticFit):
        return _LogisticProx(backend, backend.asarray(fit.signs), backend.asarray(fit.shift))
    assert isinstance(fit, SquaredFit)
    if fit.outliers is None:
        return None
    bend = fit.outliers if isinstance(fit.outliers, float) else backend.asarray(fit.outliers)
    return _HuberProx(backend, backend.asarray(fit.Y), bend)


@dataclass(frozen=True, eq=False)
class _HuberProx:
    backend: Backend
    Y: Array
    bend: Array | float
    weight: float = 1.0

    def __call__(self, h: Array) -> Array:
        r = h - self.Y
        pull = self.backend.xp.clip(r / (1.0 + 1.0 / self.weight), -self.bend, self.bend)
        return h - pull / self.weight


@dataclass(frozen=True, eq=False)
class _LogisticProx:
    """In ``q = signs p + shift``: the zero of ``weight (q - q0) + sigmoid(q)``, in (q0 - 1/weight, q0)."""

    backend: Backend
    signs: Array
    shift: Array
    weight: float = 0.25

    def __call__(self, h: Array) -> Array:
        xp, weight = self.backend.xp, self.weight
        start = self.signs * h + self.shift
        low, high = start - 1.0 / weight, start
        q = 0.5 * (low + high)
        for _ in range(_NEWTON_STEPS):
            rising = self._sigmoid(q)
            value = weight * (q - start) + rising
            low, high = xp.where(value < 0.0, q, low), xp.where(value < 0.0, high, q)
            step = q - value / (weight + rising * (1.0 - rising))
            q = xp.where((step >= low) & (step <= high), step, 0.5 * (low + high))
        return self.signs * (q - self.shift)

    def _sigmoid(self, q: Array) -> Array:
        xp = self.backend.xp
        tail = xp.exp(-xp.abs(q))
        return xp.where(q >= 0.0, 1.0, tail) / (1.0 + tail)
