"""Dual values of constraints that go with a verified bound, whatever method found it.

A bound dualises pattern cones exactly: its proof is ``||P_K(z)|| <= lam`` for ``z`` the image of the other
dual variables. The multipliers of that projection are the cone's dual values, or others that prove the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from convexnn_solvers.backends import Float64Array
from convexnn_solvers.certify.cone_columns import ConeColumns, cone_columns
from convexnn_solvers.certify.known_images import images_of
from convexnn_solvers.composite import Composite, ConstraintTerm, DualPoint
from convexnn_solvers.cones.active_sets import ActiveRows
from convexnn_solvers.functions.penalties import GroupNorm

# What dual norms may be above their bounds, as rounding.
_ROUNDING = 1e-12


def dual_values(
    composite: Composite, dual: DualPoint | None, otherwise: Sequence[Float64Array]
) -> tuple[Float64Array, ...]:
    """One array per constraint, in CVXPY's sign and shape, for a composite on the NumPy backend.

    Without a dual point these are the arrays ``otherwise`` (one per constraint, or none at all: zeros).
    """
    constraints = composite.constraints
    if dual is None:
        known = otherwise if len(otherwise) >= len(constraints) else [None] * len(constraints)
        return _filled(composite, known)
    cones: dict[int, int] = {}
    for position, constraint in enumerate(constraints):
        if constraint.pattern_cone is not None:
            cones.setdefault(constraint.pattern_cone.variable, position)
    given = (*dual.multipliers, *(None for _ in constraints[len(dual.multipliers) :]))
    values = [None if m in cones.values() else mu for m, mu in enumerate(given)]
    if cones:
        alone = all(mu is None for mu in values)
        image = images_of(composite).newest(dual.thetas) if alone else None
        if image is None:
            image = composite.affine.adjoint((*dual.thetas, *values))
        for variable, position in cones.items():
            z = np.asarray(image[variable] - composite.linear[variable], dtype=np.float64)
            values[position] = _cone_values(composite, constraints[position], z)
    return _filled(composite, values)


def _filled(composite: Composite, values: Sequence[Float64Array | None]) -> tuple[Float64Array, ...]:
    """Zeros where there is no value: arrays of samples x gates are not made to be thrown away."""
    pairs = zip(composite.constraints, values, strict=False)
    return tuple(np.zeros(c.shape) if value is None else value for c, value in pairs)


def _held_multiplier(term: ConstraintTerm, value: Any) -> Float64Array | None:
    """A term's multiplier from the dual value that CVXPY's constraint holds; None if it says too little."""
    if value is None or (isinstance(value, list) and any(part is None for part in value)):
        return None
    known = term.from_dual_value
    array = np.asarray(value, dtype=np.float64) if known is None else known(value)
    return array if array.shape == term.shape and bool(np.isfinite(array).all()) else None


def held_multipliers(problem: Any, composite: Composite) -> tuple[Float64Array | None, ...]:
    """Those of all constraints that CVXPY's problem holds."""
    values = {constraint.id: constraint.dual_value for constraint in problem.constraints}
    return tuple(_held_multiplier(term, values.get(term.id)) for term in composite.constraints)


def left_dual_point(problem: Any) -> DualPoint | None:
    """The dual point that our solver left, if it solved last."""
    extra = getattr(problem.solver_stats, "extra_stats", None)
    found = extra.get("dual_point") if isinstance(extra, dict) else None
    return found if isinstance(found, DualPoint) else None


def _cone_values(composite: Composite, constraint: ConstraintTerm, z: Float64Array) -> Float64Array:
    """Multipliers ``rho >= 0`` with ``||z + B^T rho|| <= lam``: those of the projection of ``z``, or what was
    remembered of a look at the bound if it proves as much."""
    assert constraint.pattern_cone is not None
    columns = cone_columns(composite, constraint.pattern_cone)
    split = columns.split(z)
    points, known, _ = columns.remembered(split)
    terms = [term for term in composite.penalties if term.variable == constraint.pattern_cone.variable]
    proved = len(terms) == 1 and isinstance(terms[0].penalty, GroupNorm)
    if proved:
        norms = terms[0].penalty.dual_norms(terms[0].view(columns.join(points)), np)
        proved = bool(np.all(norms <= (1.0 + _ROUNDING) * np.asarray(terms[0].weight, dtype=np.float64)))
    active = known if proved else columns.polar(split)
    return cone_multipliers(columns, active).reshape(constraint.shape)


def cone_multipliers(columns: ConeColumns, active: ActiveRows) -> Float64Array:
    """The multipliers of all columns' active rows as an array (outputs * n, P), like the constraint."""
    n, P = columns.row_norms.size, columns.gate_count
    dense = np.zeros((columns.outputs, n + 1, P))  # the padding goes to the last row
    output, gate = np.divmod(np.arange(columns.gates.size)[:, None], P)
    dense[output, active.rows, gate] = active.multipliers
    return dense[:, :n].reshape(columns.outputs * n, P)
