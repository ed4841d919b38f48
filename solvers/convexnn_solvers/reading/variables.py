"""Variables as blocks with entrywise bounds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cvxpy as cp
import numpy as np

from convexnn_solvers.backends import Float64Array
from convexnn_solvers.composite import VariableBlock
from convexnn_solvers.reading.affine import UnsupportedProblem, value_of
from convexnn_solvers.reading.loading import to_dense

_SIGNS = ("nonneg", "nonpos", "pos", "neg")
_MATRICES = ("symmetric", "PSD", "NSD")


def read_variable(variable: Any) -> VariableBlock:
    """Id, shape, name and bounds of a variable; :func:`implied_constraints` has symmetry and definiteness.

    Raises UnsupportedProblem for an attribute that is not a bound, ValueError for bounds without value.
    """
    others = [
        key
        for key, value in variable.attributes.items()
        if key not in (*_SIGNS, *_MATRICES, "bounds") and value is not False and value is not None
    ]
    if others:
        raise UnsupportedProblem(
            f"variable {variable.name()} has the attribute {', '.join(others)}, which has no matrix-free "
            "form; drop it, or solve with cp.CLARABEL (cp.HIGHS for integers)."
        )
    lower, upper = _bounds(variable)
    if lower is not None and upper is not None and np.any(lower > upper):
        raise ValueError(f"variable {variable.name()} has a lower bound above its upper bound.")
    return VariableBlock(variable.id, variable.shape, variable.name(), lower, upper)


def implied_constraints(variables: Sequence[Any]) -> list[Any]:
    """Symmetry and definiteness of matrix variables as constraints like any others."""
    found: list[Any] = []
    for variable in variables:
        if any(variable.attributes[key] for key in _MATRICES):
            found.append(variable == (variable.T if variable.ndim == 2 else cp.swapaxes(variable, -2, -1)))
        if variable.attributes["PSD"]:
            found.append(variable >> 0)
        if variable.attributes["NSD"]:
            found.append(-variable >> 0)
    return found


def _bounds(variable: Any) -> tuple[Float64Array | None, Float64Array | None]:
    attributes = variable.attributes
    if attributes["bounds"] is None and not any(attributes[sign] for sign in _SIGNS):
        return None, None
    low, high = np.full(variable.shape, -np.inf), np.full(variable.shape, np.inf)
    if attributes["bounds"] is not None:
        low, high = (np.broadcast_to(_bound(b), variable.shape) for b in attributes["bounds"])
    if attributes["nonneg"] or attributes["pos"]:
        low = np.maximum(low, 0.0)
    if attributes["nonpos"] or attributes["neg"]:
        high = np.minimum(high, 0.0)
    return (None if np.all(low == -np.inf) else low), (None if np.all(high == np.inf) else high)


def _bound(bound: Any) -> Float64Array:
    return to_dense(value_of(bound) if isinstance(bound, cp.Expression) else bound)


def is_general_box(block: VariableBlock) -> bool:
    """Whether the bounds are more than one sign for all entries."""
    if block.lower is not None and block.upper is not None:
        return True
    bound = block.lower if block.lower is not None else block.upper
    return bound is not None and bool(np.any(bound != 0.0))
