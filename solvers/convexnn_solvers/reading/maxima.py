"""Maxima in their many writings: the affine pieces of one, and when it is a sum of hinges.

``pos(abs(q) - e)``, ``maximum(q - e, -q - e, 0)`` and ``maximum(maximum(q, -q) - e, 0)`` are one function.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import cvxpy as cp
import numpy as np
from cvxpy.atoms.affine.add_expr import AddExpression
from cvxpy.atoms.affine.promote import Promote
from cvxpy.atoms.elementwise.abs import abs as absolute
from cvxpy.atoms.elementwise.maximum import maximum

from convexnn_solvers.backends import Float64Array
from convexnn_solvers.reading.loading import to_dense
from convexnn_solvers.reading.multiples import as_hinge, as_maximum, as_multiple, is_a, is_same


def affine_pieces(expr: Any) -> list[Any] | None:
    """Affine expressions of which ``expr`` is the entrywise maximum; None if it is no such maximum.

    Their shapes are broadcast to that of ``expr``. Maxima and absolute values of affine expressions are read,
    their multiples, sums of one of them with an affine expression, and maxima of all of these.
    """
    if expr.is_affine():
        return [expr]
    factor, base = as_multiple(expr)
    if factor < 0.0:
        factor, base = -factor, as_maximum(base)
    inner = None if base is None else _pieces_of_atom(base)
    return inner if inner is None or factor == 1.0 else [factor * piece for piece in inner]


def _pieces_of_atom(atom: Any) -> list[Any] | None:
    """The pieces of a maximum, an absolute value or a sum with one of them."""
    if is_a(atom, maximum):
        parts = [affine_pieces(argument) for argument in atom.args]
        return None if any(part is None for part in parts) else [p for part in parts for p in part or ()]
    if is_a(atom, absolute) and atom.args[0].is_affine():
        return [atom.args[0], -atom.args[0]]
    if is_a(atom, Promote):
        return affine_pieces(atom.args[0])
    if is_a(atom, AddExpression):
        curved = [argument for argument in atom.args if not argument.is_affine()]
        parts = [affine_pieces(argument) for argument in curved]
        if len(parts) == 1 and parts[0] is not None:
            rest = sum(argument for argument in atom.args if argument.is_affine())
            return [piece + rest for piece in parts[0]]
    return None


def hinges(expr: Any) -> list[Any] | None:
    """Affine ``q`` with ``expr = sum max(q, 0)``, of which at most one is positive; None if there are none.

    One piece and zero, or zero and two whose sum is a constant ``<= 0``: intervals around a target.
    """
    pieces = affine_pieces(expr)
    if pieces is None:
        return None
    rest = [piece for piece in pieces if not _is_zero(piece)]
    if len(rest) == len(pieces) or not 1 <= len(rest) <= 2:
        return None
    return rest if len(rest) == 1 or _cannot_both_be_positive(*rest) else None


def hinge_rows(expr: Any) -> tuple[Any, Callable[[Float64Array], Float64Array]] | None:
    """``q`` where the expression is ``max(q, 0)``, or hinges of which at most one is positive, as its rows.

    And the weights of the hinges from those of the expression.
    """
    hinge = as_hinge(expr)
    if hinge is not None and hinge.is_affine():
        return hinge, lambda w: w
    parts = hinges(expr)
    if parts is None:
        return None
    count = len(parts)
    return rows(parts, expr.shape), lambda w: _repeated(w, expr.shape, count)


def _repeated(weight: Float64Array, shape: tuple[int, ...], count: int) -> Float64Array:
    """The weights of entries of this shape, for ``count`` rows of them."""
    return weight if weight.ndim == 0 else np.tile(np.ravel(np.broadcast_to(weight, shape)), (count, 1))


def rows(pieces: list[Any], shape: tuple[int, ...]) -> Any:
    """The pieces, broadcast to ``shape``, as rows of one expression."""
    size = int(np.prod(shape))
    return cp.vstack([cp.reshape(piece + np.zeros(shape), (1, size), order="C") for piece in pieces])


def _cannot_both_be_positive(first: Any, second: Any) -> bool:
    """Whether the sum of two affine expressions is a constant that is positive nowhere."""
    left = [*_summands(first), *_summands(second)]
    constant: Float64Array | float = 0.0
    while left:
        factor, term = left.pop()
        if term.parameters():
            return False
        if term.is_constant():
            constant = constant + factor * to_dense(term.value)
            continue
        opposite = [k for k, (f, other) in enumerate(left) if f == -factor and is_same(term, other)]
        if not opposite:
            return False
        del left[opposite[0]]
    return bool(np.all(constant <= 0.0))


def _summands(expr: Any, factor: float = 1.0) -> Iterator[tuple[float, Any]]:
    """Factors and terms of a sum."""
    multiple, base = as_multiple(expr)
    if is_a(base, AddExpression):
        for argument in base.args:
            yield from _summands(argument, factor * multiple)
    else:
        yield factor * multiple, base


def _is_zero(expr: Any) -> bool:
    return bool(expr.is_constant()) and not expr.parameters() and not np.any(to_dense(expr.value))
