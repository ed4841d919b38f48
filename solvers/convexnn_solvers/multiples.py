"""What expressions are and what two of them have in common: their kind, factors, the same writing."""

from __future__ import annotations

from typing import Any

import cvxpy as cp
import numpy as np
from cvxpy.atoms.affine.binary_operators import DivExpression, MulExpression, multiply
from cvxpy.atoms.affine.promote import Promote
from cvxpy.atoms.affine.unary_operators import NegExpression

from convexnn_solvers.loading import to_dense


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
