"""The curvature of the smooth part of a problem, by power iterations: scales of variables, first steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from convexnn_solvers.backends import Array
from convexnn_solvers.composite import Composite, LossTerm, Point

_POWER_ITERATIONS = 8

#: Curvature with respect to affine outputs, as a map of outputs; None where there is none.
OutputHessian = Callable[[Point], tuple[Array | None, ...]]


def curvature_alone(composite: Composite, hessian: OutputHessian) -> list[float]:
    """The largest curvature with respect to each variable alone."""
    ones = [1.0] * len(composite.variables)
    return [largest_curvature(composite, hessian, ones, (k,)) for k in range(len(ones))]


def positive_scales(curvatures: Sequence[float]) -> tuple[float, ...]:
    """Scales of the metric: the curvatures, and the largest of them for variables without any."""
    largest = max(curvatures, default=0.0)
    return tuple(a if a > 0.0 else largest or 1.0 for a in curvatures)


def loss_hessian(composite: Composite) -> OutputHessian:
    """An upper bound of the losses' Hessian with respect to the affine outputs, as a map of outputs."""

    def apply(outputs: Point) -> tuple[Array | None, ...]:
        curved = [
            _curved(term, q, composite.backend.xp) for term, q in zip(composite.losses, outputs, strict=False)
        ]
        return (*curved, *(None for _ in outputs[len(curved) :]))

    return apply


def largest_curvature(
    composite: Composite, hessian: OutputHessian, scales: Sequence[Any], variables: Sequence[int]
) -> float:
    """The largest eigenvalue of ``S^-1/2 A^T H A S^-1/2`` on some variables, by power iterations."""
    backend, rng = composite.backend, np.random.default_rng(0)

    def size(v: Sequence[Array]) -> float:
        own = sum(float(backend.xp.sum(scales[k] * v[k] * v[k])) for k in variables)
        return math.sqrt(composite.across.sum(own))

    v = list(composite.zeros())
    for k in variables:
        v[k] = backend.asarray(composite.across.normal(rng, k, composite.variables[k].shape))
    estimate = size(v)
    for _ in range(_POWER_ITERATIONS):
        if estimate == 0.0:
            return 0.0
        pulled = composite.affine.adjoint(hessian(composite.affine.linear(tuple(a / estimate for a in v))))
        for k in variables:
            v[k] = pulled[k] / scales[k]
        estimate = size(v)
    return estimate


def _curved(term: LossTerm, q: Array, xp: Any) -> Array:
    """An upper bound of the loss's Hessian times ``q``; weights per group count with their largest."""
    weight = term.weight
    if tuple(getattr(weight, "shape", ())) not in ((), tuple(q.shape)):
        weight = xp.max(weight)
    return term.loss.curvature * weight * q
