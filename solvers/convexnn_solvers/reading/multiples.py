"""What expressions are, and what two of them have in common: kinds, factors, hinges, the same writing."""

from __future__ import annotations

from typing import Any

import cvxpy as cp
import numpy as np
from cvxpy.atoms.affine.binary_operators import DivExpression, MulExpression, multiply
from cvxpy.atoms.affine.hstack import Hstack
from cvxpy.atoms.affine.index import index, special_index
from cvxpy.atoms.affine.promote import Promote
from cvxpy.atoms.affine.reshape import reshape
from cvxpy.atoms.affine.transpose import transpose
from cvxpy.atoms.affine.unary_operators import NegExpression
from cvxpy.atoms.affine.vstack import Vstack
from cvxpy.atoms.elementwise.maximum import maximum
from cvxpy.atoms.elementwise.minimum import minimum
from cvxpy.atoms.max import max as maximal
from cvxpy.atoms.min import min as minimal
from numpy.typing import NDArray

from convexnn_solvers.reading.loading import to_dense

# Atoms that only move entries.
_MOVES = (reshape, transpose, index, special_index, Hstack, Vstack)


def is_a(expr: Any, *kinds: type) -> bool:
    """``isinstance`` that leaves CVXPY's expressions untyped, as their annotations are too narrow."""
    return isinstance(expr, kinds)


def as_multiple(expr: Any) -> tuple[float, Any]:
    """A factor and what it multiplies, through signs and products with constant numbers."""
    factor = 1.0
    while True:
        if is_a(expr, NegExpression):
            factor, expr = -factor, expr.args[0]
            continue
        if is_a(expr, multiply, MulExpression, DivExpression):
            first, second = expr.args
            if _is_number(second):
                value = _number(second)
                factor *= 1.0 / value if is_a(expr, DivExpression) and value else value
                expr = first
                continue
            if _is_number(first) and not is_a(expr, DivExpression):
                factor, expr = factor * _number(first), second
                continue
        return factor, expr


def as_entrywise_multiple(expr: Any) -> tuple[Any, Any]:
    """Factors, a number or an array, and what they multiply entry by entry, in the same shape."""
    factors: Any
    factors, rest = as_multiple(expr)
    while is_a(rest, multiply):
        first, second = rest.args if rest.args[0].is_constant() else rest.args[::-1]
        if not first.is_constant() or first.parameters() or second.shape != rest.shape:
            break
        number, rest = as_multiple(second)
        factors = factors * number * to_dense(first.value)
    return factors, rest


def as_maximum(expr: Any) -> Any | None:
    """The maximum whose negative a minimum is; None for other expressions."""
    if is_a(expr, minimum):
        return maximum(*(-argument for argument in expr.args))
    return maximal(-expr.args[0], expr.axis, expr.keepdims) if is_a(expr, minimal) else None


def as_hinge(expr: Any) -> Any | None:
    """``q`` if the expression is ``max(q, 0)``, CVXPY's ``pos``, or ``-min(-q, 0)``, its ``neg``."""
    if is_a(expr, NegExpression) and is_a(expr.args[0], minimum):
        expr = as_maximum(expr.args[0])
    if not is_a(expr, maximum) or len(expr.args) != 2:
        return None
    for constant, other in (expr.args, expr.args[::-1]):
        if constant.is_constant() and not constant.parameters() and not np.any(to_dense(constant.value)):
            return other if other.shape == expr.shape else None
    return None


def as_selection(expr: Any) -> tuple[Any, NDArray[np.int64]] | None:
    """A variable and the positions of the expression's entries in it, if these are all that there is."""
    if is_a(expr, cp.Variable):
        return expr, np.arange(expr.size).reshape(expr.shape)
    if not is_a(expr, *_MOVES):
        return None
    parts = [as_selection(argument) for argument in expr.args]
    if any(part is None for part in parts) or len({id(part[0]) for part in parts if part}) != 1:
        return None
    moved = expr.numeric([part[1].astype(np.float64) for part in parts if part])
    positions = np.asarray(np.rint(to_dense(moved)), dtype=np.int64).reshape(expr.shape)
    if np.unique(positions).size != positions.size:
        return None
    return next(part[0] for part in parts if part), positions


def _is_number(expr: Any) -> bool:
    """Whether the expression is one constant number, possibly promoted to a shape."""
    while is_a(expr, Promote):
        expr = expr.args[0]
    return bool(expr.is_constant()) and not expr.parameters() and expr.size == 1


def _number(expr: Any) -> float:
    return float(np.ravel(to_dense(expr.value))[0])


def is_same(first: Any, second: Any) -> bool:
    """Whether two expressions are written the same way: the same atoms of the same leaves, in the same order.

    Constants count as the same when their values are. Atoms with data of their own are only the same as
    themselves.
    """
    if first is second:
        return True
    if type(first) is not type(second) or first.shape != second.shape:
        return False
    if is_a(first, cp.Constant):
        return bool(np.array_equal(to_dense(first.value), to_dense(second.value)))
    if not first.args or first.get_data() is not None or len(first.args) != len(second.args):
        return False
    return all(is_same(a, b) for a, b in zip(first.args, second.args, strict=True))
