"""How large the rows of constraints are: the units in which a violation is large or small."""

from __future__ import annotations

import numpy as np

from convexnn_solvers.backends import Float64Array
from convexnn_solvers.composite import Composite

_PROBES = 4


def row_sizes(composite: Composite) -> list[Float64Array]:
    """Per constraint ``G x + e`` the size of every entry of ``G x``, for entries of x of size one.

    Found by random points whose entries have sizes between one and two, so that no row cancels in all of
    them; those of a pattern cone are the norms of its samples. Entries that a cone ties together count with
    the largest of them. To be broadcast to the constraint's shape; on the NumPy backend.
    """
    count, rng = len(composite.losses), np.random.default_rng(0)
    sizes = [np.zeros(term.shape) for term in composite.constraints]
    cones = [term.pattern_cone for term in composite.constraints]
    for _ in range(_PROBES if any(cone is None for cone in cones) else 0):
        point = tuple(
            rng.choice([-1.0, 1.0], block.shape) * rng.uniform(1.0, 2.0, block.shape)
            for block in composite.variables
        )
        slopes = composite.affine.linear(point)[count:]
        sizes = [np.maximum(size, np.abs(slope)) for size, slope in zip(sizes, slopes, strict=True)]
    return [
        term.cone.even(size)
        if cone is None
        else np.tile(np.linalg.norm(cone.X, axis=1), cone.outputs)[:, None]
        for term, cone, size in zip(composite.constraints, cones, sizes, strict=True)
    ]
