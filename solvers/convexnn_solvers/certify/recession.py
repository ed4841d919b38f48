"""Evidence that a problem has no solution: directions of descent without end, and separating multipliers.

Both kinds are checked against the problem's data, so that a claim does not rest on an iteration having
been slow: a direction must lower the objective at a constant rate for ever, multipliers must rule out
every point up to a distance far beyond the iterates.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from convexnn_solvers.backends import Array, Float64Array
from convexnn_solvers.certify.cone_columns import ConeColumns
from convexnn_solvers.certify.row_sizes import row_sizes
from convexnn_solvers.composite import Composite, Point, VariableBlock

# How far along a unit direction the objective is followed, ...
_FAR = 1e12
# ... how fast it must fall there, relative to the size of the terms, ...
_RATE = 1e-6
# ... and how much the direction may leave the constraints, relative to the size of the row.
_TILT = 1e-9
# Multipliers must exclude all points up to so many times the size of the iterate (and of one).
_RADIUS = 1e5
# Parts of a direction below this are what the iteration has not settled yet; all checks are without them.
_NEGLIGIBLE = 1e-4
# Terms of this relative size cancel in sums that count as zero; how many random signs measure the size.
_CANCELS = 1e-8
_PROBES = 8


def descends_for_ever(composite: Composite, direction: Sequence[Float64Array]) -> bool:
    """Whether the objective falls without bound along ``direction``, from any feasible point.

    ``composite`` is on the NumPy backend in float64. The direction is first put into the recession cone of
    the variables' bounds.
    """
    inside = [_recession(d, block) for d, block in zip(direction, composite.variables, strict=True)]
    size = math.sqrt(sum(float(np.sum(d * d)) for d in inside))
    if not 0.0 < size < math.inf:
        return False
    ray = tuple(np.where(np.abs(d) > _NEGLIGIBLE * size, d / size, 0.0) for d in inside)
    outputs = composite.affine.linear(ray)
    if _bends(composite, ray, outputs):
        return False
    far = tuple(_FAR * d for d in ray)
    start = composite.smooth_value(composite.zeros(), tuple(0.0 * q for q in outputs))
    smooth = composite.smooth_value(far, tuple(_FAR * q for q in outputs)) - start
    rate = float(smooth + composite.penalty_value(far)) / _FAR
    terms = sum(float(np.sum(np.abs(c * d))) for c, d in zip(composite.linear, ray, strict=True))
    falls = rate < -_RATE * (terms + abs(float(composite.penalty_value(ray))))
    return falls and _stays(composite, outputs[len(composite.losses) :])


def _stays(composite: Composite, slopes: Sequence[Float64Array]) -> bool:
    """Whether a direction along which the constraints' outputs have these slopes leaves none of them."""
    terms = zip(composite.constraints, slopes, row_sizes(composite), strict=True)
    return not any(bool(np.any(t.cone.violations(slope) > _TILT * size)) for t, slope, size in terms)


def settled(multipliers: Sequence[Float64Array]) -> list[Float64Array]:
    """Multipliers without the entries that are negligible beside the largest of all.

    Those of ``sum ||x_g|| <= -1`` grow for ever in its right-hand side alone. The others stay as large as the
    losses' gradients, which nothing cancels.
    """
    size = max((float(np.max(np.abs(mu), initial=0.0)) for mu in multipliers), default=0.0)
    return [np.where(np.abs(mu) > _NEGLIGIBLE * size, mu, 0.0) for mu in multipliers]


def excludes_every_point(
    composite: Composite, multipliers: Sequence[Array | None], x: Point, cones: Mapping[int, ConeColumns]
) -> bool:
    """Whether ``<mu, G x + e> < 0`` for all points near and far, so that no point satisfies the constraints.

    ``multipliers`` (in the dual cones, or None) belong to the outputs after the losses'. A point also has to
    satisfy the variables' bounds and the pattern cones of the variables in ``cones``; it is "far" at
    ``_RADIUS`` times the size of the iterate ``x``.
    """
    backend, count = composite.backend, len(composite.losses)
    offsets = composite.offsets()[count:]
    pairs = ((mu, e) for mu, e in zip(multipliers, offsets, strict=True) if mu is not None)
    supremum = sum(float(np.sum(backend.to_numpy(mu) * backend.to_numpy(e))) for mu, e in pairs)
    if not supremum < 0.0:
        return False
    slopes = composite.affine.adjoint((*(None for _ in range(count)), *multipliers))
    sizes = _adjoint_sizes(composite, multipliers)
    unbounded = 0.0
    for index, (slope, block) in enumerate(zip(slopes, composite.variables, strict=True)):
        g = backend.to_numpy(slope)
        if index in cones:
            columns = cones[index]
            unbounded += float(np.sum(columns.project(columns.split(g)) ** 2))
            continue
        limit = np.where(g > 0.0, _limit(block.upper, block, np.inf), _limit(block.lower, block, -np.inf))
        finite = np.isfinite(limit)
        if np.any(np.abs(g[~finite]) > _CANCELS * sizes[index][~finite]):
            return False
        supremum += float(np.sum(g[finite] * limit[finite]))
        unbounded += float(np.sum(g[~finite] ** 2))
    size = math.sqrt(sum(float(np.sum(backend.to_numpy(v) ** 2)) for v in x))
    return supremum + _RADIUS * (1.0 + size) * math.sqrt(unbounded) < 0.0


def _bends(composite: Composite, ray: Point, outputs: Point) -> bool:
    """Whether a quadratic loss grows along the ray: then the objective falls only for a while."""
    quadratic = [k for k, term in enumerate(composite.losses) if term.loss.quadratic]
    if not quadratic:
        return False
    rng = np.random.default_rng(0)
    sizes = [np.abs(outputs[k]) for k in quadratic]
    for _ in range(_PROBES):
        flipped = composite.affine.linear(tuple(d * rng.choice([-1.0, 1.0], d.shape) for d in ray))
        sizes = [np.maximum(size, np.abs(flipped[k])) for size, k in zip(sizes, quadratic, strict=True)]
    pairs = zip(quadratic, sizes, strict=True)
    return any(bool(np.any(np.abs(outputs[k]) > _CANCELS * size)) for k, size in pairs)


def _adjoint_sizes(composite: Composite, multipliers: Sequence[Array | None]) -> list[Float64Array]:
    """About ``|G|^T |mu|``, the size of the terms that cancel in ``G^T mu``, from random signs."""
    backend, none = composite.backend, tuple(None for _ in composite.losses)
    rng = np.random.default_rng(0)
    sizes = [np.zeros(block.shape) for block in composite.variables]
    for _ in range(_PROBES):
        flipped = [
            None if mu is None else mu * backend.asarray(rng.choice([-1.0, 1.0], size=_shape(mu)))
            for mu in multipliers
        ]
        found = composite.affine.adjoint((*none, *flipped))
        sizes = [np.maximum(s, np.abs(backend.to_numpy(g))) for s, g in zip(sizes, found, strict=True)]
    return sizes


def _shape(array: Array) -> tuple[int, ...]:
    return tuple(int(k) for k in array.shape)


def _limit(bound: Float64Array | None, block: VariableBlock, default: float) -> Float64Array:
    return np.full(block.shape, default) if bound is None else bound


def _recession(direction: Float64Array, block: VariableBlock) -> Float64Array:
    """``direction`` clipped to where finite bounds allow going for ever."""
    low = -np.inf if block.lower is None else np.where(np.isfinite(block.lower), 0.0, -np.inf)
    high = np.inf if block.upper is None else np.where(np.isfinite(block.upper), 0.0, np.inf)
    return np.asarray(np.clip(direction, low, high), dtype=np.float64)
