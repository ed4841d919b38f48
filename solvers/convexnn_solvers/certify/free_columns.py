"""The columns of a problem's free variables: what they add to every loss and constraint."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from convexnn_solvers.backends import Float64Array
from convexnn_solvers.certify.free_variables import FreeVariables
from convexnn_solvers.certify.reach import Offsets
from convexnn_solvers.composite import Composite, VariableBlock
from convexnn_solvers.functions.constraint_cones import ZERO

# Entries of the dense columns of all free variables together.
_MAX_ENTRIES = 50_000_000
# Indexed by 1, 2, 3 and -1: one lower bound, none, a penalty, one upper bound.
_SIGN_OF_KIND = np.array([0, 1, 0, 2, -1], dtype=np.int8)


def collect_free_variables(
    composite: Composite,
    free: Sequence[NDArray[np.int8]],
    ball: Callable[[Float64Array], Float64Array] | None = None,
) -> FreeVariables | None:
    """The columns of the entries where ``free``, an array per variable, is not zero.

    1 and -1 mean one bound, below and above, 2 none, and 3 a penalty, for all of which together ``ball``
    projects on the dual ball. None when there are none. ValueError: too many to hold.
    """
    sizes = [int(np.count_nonzero(kinds)) for kinds in free]
    if not any(sizes):
        return None
    outputs = composite.offsets()
    entries = sum(int(np.size(q)) for q in outputs) * sum(sizes)
    if entries > _MAX_ENTRIES:
        name = composite.variables[int(np.argmax(sizes))].name
        raise ValueError(f"the variable {name} has no penalty and too many entries ({max(sizes)})")
    columns = []
    for index, kinds in enumerate(free):
        for entry in np.flatnonzero(kinds):
            point = [np.zeros(v.shape) for v in composite.variables]
            point[index].flat[entry] = 1.0
            columns.append([np.ravel(q) for q in composite.affine.linear(tuple(point))])
    stacked = [np.column_stack(parts) for parts in zip(*columns, strict=True)]
    count = len(composite.losses)
    largest = [float(np.max(np.abs(q), initial=0.0)) for q in outputs]
    equal = [q for q, term in zip(outputs[count:], composite.constraints, strict=True) if term.cone == ZERO]
    bounds = [_bound_sizes(v)[kinds != 0] for v, kinds in zip(composite.variables, free, strict=True)]
    touched = [bool(np.any(block)) for block in stacked[:count]]
    return FreeVariables(
        losses=tuple(stacked[:count]),
        constraints=tuple(stacked[count:]),
        linear=np.concatenate([c[kinds != 0] for c, kinds in zip(composite.linear, free, strict=True)]),
        signs=np.concatenate([_SIGN_OF_KIND[kinds[kinds != 0]] for kinds in free]),
        ball=ball,
        composite=composite,
        quadratic=all(t.loss.quadratic for t, hit in zip(composite.losses, touched, strict=True) if hit),
        offsets=Offsets(
            losses=max(largest[:count], default=0.0),
            constraints=tuple(largest[count:]),
            equalities=np.abs(np.concatenate([np.ravel(q) for q in equal] or [np.empty(0)])),
            bounds=np.concatenate(bounds),
        ),
    )


def _bound_sizes(variable: VariableBlock) -> Float64Array:
    """Per entry the size of its largest finite bound, or zero."""
    size = np.zeros(variable.shape)
    for bound in (variable.lower, variable.upper):
        if bound is not None:
            size = np.maximum(size, np.where(np.isfinite(bound), np.abs(bound), 0.0))
    return size
