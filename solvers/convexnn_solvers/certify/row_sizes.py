"""How large the rows of constraints are: the units in which a violation is large or small."""

from __future__ import annotations

import numpy as np

from convexnn_solvers.backends import Float64Array
from convexnn_solvers.composite import Composite, Point

_PROBES = 4


def row_sizes(composite: Composite) -> list[Float64Array]:
    """Per constraint ``G x + e`` the size of every entry of ``G x``, for entries of x of size one.

    Found by random points whose entries have sizes between one and two, so that no row cancels in all of
    them; those of a pattern cone are the norms of its samples. Entries that a cone ties together count with
    the largest of them. To be broadcast to the constraint's shape; on the NumPy backend.
    """
    cones = [term.pattern_cone for term in composite.constraints]
    sizes = [np.zeros(term.shape) for term in composite.constraints]
    if any(cone is None for cone in cones):
        ones = tuple(np.ones(block.shape) for block in composite.variables)
        sizes = _largest_slopes(composite, ones)[len(composite.losses) :]
    return [
        term.cone.even(size)
        if cone is None
        else np.tile(np.linalg.norm(cone.X, axis=1), cone.outputs)[:, None]
        for term, cone, size in zip(composite.constraints, cones, sizes, strict=True)
    ]


def term_sizes(composite: Composite, x: Point) -> list[Float64Array]:
    """Per entry of the affine outputs at ``x`` the size of the terms that make it, its offset among them.

    What is left of terms that cancel is off by rounding of this size. On the NumPy backend.
    """
    offsets = composite.offsets()
    return [
        np.maximum(np.abs(b), size) for b, size in zip(offsets, _largest_slopes(composite, x), strict=True)
    ]


def _largest_slopes(composite: Composite, x: Point) -> list[Float64Array]:
    """Of the linear part of every affine output at points between ``x`` and ``2 x``, with other signs."""
    rng = np.random.default_rng(0)
    sizes = [np.zeros(np.shape(b)) for b in composite.offsets()]
    for _ in range(_PROBES):
        point = tuple(rng.choice([-1.0, 1.0], v.shape) * rng.uniform(1.0, 2.0, v.shape) * v for v in x)
        slopes = composite.affine.linear(point)
        sizes = [np.maximum(size, np.abs(slope)) for size, slope in zip(sizes, slopes, strict=True)]
    return sizes
