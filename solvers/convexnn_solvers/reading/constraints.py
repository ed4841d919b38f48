"""Linear constraints as outputs of the affine map, and the pattern cones among them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import cvxpy as cp
import numpy as np
from cvxpy.atoms.affine.binary_operators import MulExpression, multiply
from cvxpy.atoms.affine.unary_operators import NegExpression
from cvxpy.constraints.nonpos import Inequality, NonNeg, NonPos
from cvxpy.constraints.psd import PSD
from cvxpy.constraints.second_order import SOC
from cvxpy.constraints.zero import Equality, Zero

from convexnn_solvers.backends import Float64Array
from convexnn_solvers.composite import ConstraintTerm, PatternCone
from convexnn_solvers.functions.constraint_cones import NONNEGATIVE, ZERO, Cone, SecondOrder, Semidefinite
from convexnn_solvers.reading.affine import UnsupportedProblem, shortened
from convexnn_solvers.reading.atoms import pattern_slack
from convexnn_solvers.reading.convex_constraints import Epigraph, WeightedNorm, epigraph
from convexnn_solvers.reading.loading import is_sparse


def read_constraints(
    constraints: Sequence[Any], variables: tuple[Any, ...]
) -> tuple[tuple[ConstraintTerm, ...], list[Any], list[Any], dict[int, tuple[WeightedNorm, ...]]]:
    """The constraints and, for each, the affine expression that has to lie in its cone.

    Then the convex atoms that count as zero inside these expressions (see ``convex_constraints``), and last,
    by their positions, the norms in the constraints that bound norms of variables by a number.

    A pattern cone is recorded where the expression is ``pattern_slack`` of a whole variable, or the same
    in plain CVXPY, ``multiply(S, X @ V)`` with S of +-1; but only if the variable has that one cone and
    no bounds, so that a projection on it is a projection on all there is.
    """
    terms: list[ConstraintTerm] = []
    outputs: list[Any] = []
    atoms: list[Any] = []
    norms: dict[int, tuple[WeightedNorm, ...]] = {}
    for position, constraint in enumerate(constraints):
        if isinstance(constraint, SOC | PSD):
            term, output = _conic(constraint)
            terms.append(term)
            outputs.append(output)
            continue
        cone, output = _cone_and_output(constraint)
        if not output.is_affine():
            found = epigraph(constraint, output)
            terms.append(_bounded_atom(constraint, found))
            outputs.append(found.output)
            atoms.extend(found.atoms)
            if found.norms:
                norms[position] = found.norms
            continue
        slack = _as_pattern_slack(output, variables) if cone == NONNEGATIVE else None
        pattern_cone = None
        if slack is not None:
            output, variable = slack
            pattern_cone = PatternCone(output.X, output.patterns, output.outputs, variable)
        terms.append(ConstraintTerm(cone, output.shape, constraint.id, shortened(constraint), pattern_cone))
        outputs.append(output)
    return _only_single_cones(terms, variables), outputs, atoms, norms


def _conic(constraint: Any) -> tuple[ConstraintTerm, Any]:
    """CVXPY's second-order and semidefinite cones."""
    if isinstance(constraint, PSD):
        (matrix,) = constraint.args
        return ConstraintTerm(Semidefinite(), matrix.shape, constraint.id, shortened(constraint)), matrix
    t, X = constraint.args
    axis = int(constraint.axis)
    heads = cp.reshape(t, (1, t.size) if axis == 0 else (t.size, 1), order="C")
    rest = cp.reshape(X, (X.size, 1), order="C") if X.ndim < 2 else X
    output: Any = (cp.vstack if axis == 0 else cp.hstack)([heads, rest])

    def flat(mu: Float64Array) -> Float64Array:
        return np.ravel(mu.T if axis == 0 else mu)

    def stacked(value: Any) -> Float64Array:
        head, tail = (np.asarray(part, dtype=np.float64) for part in value)
        shapes = heads.shape, rest.shape
        parts = [np.reshape(a, s) for a, s in zip((head, tail), shapes, strict=True)]
        return np.concatenate(parts, axis=axis)

    term = ConstraintTerm(
        SecondOrder(axis), output.shape, constraint.id, shortened(constraint), None, flat, stacked
    )
    return term, output


def _bounded_atom(constraint: Any, found: Epigraph) -> ConstraintTerm:
    shape = constraint.shape
    return ConstraintTerm(
        found.cone,
        found.output.shape,
        constraint.id,
        shortened(constraint),
        None,
        lambda mu: np.reshape(found.dual_value(mu), shape),
        (lambda price: np.asarray(price) * found.slopes) if found.norms else _unknown,
    )


def _unknown(value: Any) -> Float64Array:
    """The dual value of a bound on a norm says nothing of the multipliers inside the norm."""
    return np.full((), np.nan)


def _cone_and_output(constraint: Any) -> tuple[Cone, Any]:
    """The cone and the expression in it, signed so that multipliers are CVXPY's dual values."""
    cone: Cone = ZERO if isinstance(constraint, Equality | Zero) else NONNEGATIVE
    if isinstance(constraint, Inequality | Equality):
        small, large = constraint.args
    elif isinstance(constraint, NonPos | Zero):
        small, large = constraint.args[0], cp.Constant(0.0)
    elif isinstance(constraint, NonNeg):
        small, large = cp.Constant(0.0), constraint.args[0]
    else:
        raise UnsupportedProblem(
            f"the constraint {shortened(constraint)} is of type {type(constraint).__name__}, which has no "
            "matrix-free form; solve with cp.CLARABEL."
        )
    return cone, _difference(large, small, constraint.shape)


def _difference(large: Any, small: Any, shape: tuple[int, ...]) -> Any:
    """``large - small``, leaving out a zero on either side."""
    if large.shape == shape and _is_zero(small):
        return large
    if small.shape == shape and _is_zero(large):
        return small.args[0] if isinstance(small, NegExpression) else -small
    return large - small


def _is_zero(expr: Any) -> bool:
    if not expr.is_constant() or expr.parameters():
        return False
    value = expr.value
    return not np.any(value.data if is_sparse(value) else value)


def _as_pattern_slack(expr: Any, variables: tuple[Any, ...]) -> tuple[pattern_slack, int] | None:
    """The atom and the position of its variable, if the expression is the slack of a whole variable."""
    slack = expr if isinstance(expr, pattern_slack) else _recognised(expr)
    if slack is None:
        return None
    positions = [k for k, variable in enumerate(variables) if variable is slack.args[0]]
    return (slack, positions[0]) if positions else None


def _recognised(expr: Any) -> pattern_slack | None:
    """``pattern_slack`` for ``multiply(S, X @ V)`` with V a variable and S constant, all entries +-1."""
    if not isinstance(expr, multiply):
        return None
    for signs, product in (expr.args, expr.args[::-1]):
        if not _is_matrix(signs) or type(product) is not MulExpression:
            continue
        features, variable = product.args
        if _is_matrix(features) and isinstance(variable, cp.Variable) and variable.ndim == 2:
            S: Any = signs.value
            if S.shape == expr.shape and bool(np.all(np.abs(S) == 1.0)):
                return pattern_slack(features.value, S > 0.0, variable)
    return None


def _is_matrix(expr: Any) -> bool:
    """Whether the expression is a dense constant matrix without Parameters."""
    return isinstance(expr, cp.Constant) and expr.ndim == 2 and not is_sparse(expr.value)


def _only_single_cones(terms: list[ConstraintTerm], variables: tuple[Any, ...]) -> tuple[ConstraintTerm, ...]:
    cones = Counter(term.pattern_cone.variable for term in terms if term.pattern_cone is not None)
    attributes = [variable.attributes for variable in variables]
    plain = {
        k
        for k, a in enumerate(attributes)
        if a["bounds"] is None and not any(a[sign] for sign in ("nonneg", "nonpos", "pos", "neg"))
    }
    return tuple(
        term
        if term.pattern_cone is None
        or (cones[term.pattern_cone.variable] == 1 and term.pattern_cone.variable in plain)
        else replace(term, pattern_cone=None)
        for term in terms
    )
