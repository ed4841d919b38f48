"""How affine CVXPY atoms that only move and add entries act on arrays: forward and adjoint side by side.

A rule is linear in its ``inputs``; a constant factor (a matrix, a mask, a kernel) is its
``coefficient``, handed in at every call so that Parameters can change. A ``None`` among the inputs
stands for zeros. Shapes are CVXPY's; arrays are the backend's.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from cvxpy.atoms.affine.add_expr import AddExpression
from cvxpy.atoms.affine.broadcast_to import broadcast_to
from cvxpy.atoms.affine.concatenate import Concatenate
from cvxpy.atoms.affine.conj import conj
from cvxpy.atoms.affine.cumsum import cumsum
from cvxpy.atoms.affine.diag import diag_mat, diag_vec
from cvxpy.atoms.affine.hstack import Hstack
from cvxpy.atoms.affine.index import index, special_index
from cvxpy.atoms.affine.promote import Promote
from cvxpy.atoms.affine.real import real
from cvxpy.atoms.affine.reshape import reshape
from cvxpy.atoms.affine.sum import Sum
from cvxpy.atoms.affine.trace import Trace
from cvxpy.atoms.affine.transpose import transpose
from cvxpy.atoms.affine.unary_operators import NegExpression
from cvxpy.atoms.affine.upper_tri import upper_tri
from cvxpy.atoms.affine.vstack import Vstack
from cvxpy.atoms.affine.wraps import Wrap

from convexnn_solvers.backends import Array
from convexnn_solvers.reading.loading import Loader

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Coefficient:
    """A constant expression and how its value is brought to the backend."""

    expr: Any
    load: Callable[[Any], Any]


@dataclass(frozen=True)
class Rule:
    """One linear step of a tape. ``view`` marks results that may share memory, with the input or inside.

    ``operator``: what makes the products, where methods that know its structure want to find it.
    """

    inputs: tuple[Any, ...]
    forward: Callable[[Any, list[Array | None]], Array]
    adjoint: Callable[[Any, Array], list[Array]]
    coefficient: Coefficient | None = None
    view: bool = False
    operator: Any = None


def unary(
    expr: Any,
    forward: Callable[[Array], Array],
    adjoint: Callable[[Array], Array],
    view: bool = False,
) -> Rule:
    """The rule of an atom with one argument and no coefficient."""
    return Rule((expr.args[0],), lambda _, args: forward(args[0]), lambda _, g: [adjoint(g)], view=view)


# Sums and stacks: several inputs, any of which may be constant.


def _add(expr: Any, loader: Loader) -> Rule:
    xp, shapes = loader.xp, [arg.shape for arg in expr.args]

    def forward(_: Any, args: list[Array | None]) -> Array:
        total: Any = None
        for arg in args:
            if arg is not None:
                total = arg if total is None else total + arg
        return total if tuple(total.shape) == expr.shape else xp.broadcast_to(total, expr.shape)

    def adjoint(_: Any, g: Array) -> list[Array]:
        return [unbroadcast(g, shape, xp) for shape in shapes]

    return Rule(tuple(expr.args), forward, adjoint, view=True)


def _stack(expr: Any, loader: Loader, axis: int, shapes: list[Shape]) -> Rule:
    """Concatenation of the arguments, reshaped to ``shapes`` first."""
    xp, backend = loader.xp, loader.backend
    ends = np.cumsum([0, *(shape[axis] for shape in shapes)])
    pieces = [(slice(None),) * axis + (slice(int(a), int(b)),) for a, b in itertools.pairwise(ends)]

    def forward(_: Any, args: list[Array | None]) -> Array:
        parts = [
            backend.zeros(shape) if arg is None else xp.reshape(arg, shape)
            for arg, shape in zip(args, shapes, strict=True)
        ]
        return xp.reshape(xp.concat(parts, axis=axis), expr.shape)

    def adjoint(_: Any, g: Array) -> list[Array]:
        whole = xp.reshape(g, (*shapes[0][:axis], int(ends[-1]), *shapes[0][axis + 1 :]))
        return [xp.reshape(whole[p], a.shape) for p, a in zip(pieces, expr.args, strict=True)]

    return Rule(tuple(expr.args), forward, adjoint, view=True)


def _hstack(expr: Any, loader: Loader) -> Rule:
    shapes = [a.shape or (1,) for a in expr.args]
    return _stack(expr, loader, 0 if len(shapes[0]) == 1 else 1, shapes)


def _vstack(expr: Any, loader: Loader) -> Rule:
    return _stack(expr, loader, 0, [a.shape if a.ndim >= 2 else (1, a.size) for a in expr.args])


def _concatenate(expr: Any, loader: Loader) -> Rule | None:
    if expr.axis is None:
        if any(a.ndim > 1 for a in expr.args):
            return None  # CVXPY's value flattens by rows here, its canonicalisation by columns
        return _stack(expr, loader, 0, [(a.size,) for a in expr.args])
    return _stack(expr, loader, int(expr.axis), [a.shape for a in expr.args])


# One input, no coefficient.


def _identity(expr: Any, loader: Loader) -> Rule:
    return unary(expr, lambda x: x, lambda g: g, view=True)


def _negative(expr: Any, loader: Loader) -> Rule:
    return unary(expr, lambda x: -x, lambda g: -g)


def _sum(expr: Any, loader: Loader) -> Rule:
    xp, inner = loader.xp, expr.args[0].shape
    axis = tuple(range(len(inner))) if expr.axis is None else np.atleast_1d(expr.axis)
    axes = tuple(int(a) % len(inner) for a in axis) if inner else ()
    kept = tuple(1 if i in axes else size for i, size in enumerate(inner))
    return unary(
        expr,
        lambda x: xp.reshape(xp.sum(x, axis=axes) if axes else x, expr.shape),
        lambda g: xp.broadcast_to(xp.reshape(g, kept), inner),
        view=True,
    )


def _reshape(expr: Any, loader: Loader) -> Rule:
    xp, inner, outer = loader.xp, expr.args[0].shape, expr.shape
    if expr.order == "F":
        return unary(
            expr,
            lambda x: reshape_columns(x, outer, xp),
            lambda g: reshape_columns(g, inner, xp),
            view=True,
        )
    return unary(expr, lambda x: xp.reshape(x, outer), lambda g: xp.reshape(g, inner), view=True)


def _transpose(expr: Any, loader: Loader) -> Rule:
    xp, ndim = loader.xp, expr.ndim
    axes = tuple(reversed(range(ndim))) if expr.axes is None else tuple(int(a) % ndim for a in expr.axes)
    back = tuple(int(i) for i in np.argsort(axes))
    return unary(expr, lambda x: xp.permute_dims(x, axes), lambda g: xp.permute_dims(g, back), view=True)


def _broadcast(expr: Any, loader: Loader) -> Rule:
    xp, inner, outer = loader.xp, expr.args[0].shape, expr.shape
    return unary(
        expr,
        lambda x: xp.broadcast_to(xp.reshape(x, ()) if isinstance(expr, Promote) else x, outer),
        lambda g: xp.reshape(xp.sum(g), inner) if isinstance(expr, Promote) else unbroadcast(g, inner, xp),
        view=True,
    )


def _slice(expr: Any, loader: Loader) -> Rule:
    key = expr.get_data()[1]
    parts = key if isinstance(key, tuple) else (key,)
    if any(isinstance(part, slice) and (part.step or 1) < 0 for part in parts):
        return _gather(expr, loader)  # torch has no negative steps
    xp, inner = loader.xp, expr.args[0].shape

    def adjoint(g: Array) -> Array:
        result = loader.backend.zeros(inner)
        result[key] = xp.reshape(g, tuple(result[key].shape))
        return result

    return unary(expr, lambda x: xp.reshape(x[key], expr.shape), adjoint, view=True)


def _gather(expr: Any, loader: Loader) -> Rule:
    """Atoms that only select entries, or put them among zeros; which ones, the atom itself tells."""
    xp, inner = loader.xp, expr.args[0].shape
    numbered = np.arange(1.0, 1.0 + math.prod(inner)).reshape(inner)
    positions = np.ravel(expr.numeric([numbered])).astype(np.int64)
    targets = loader.positions(np.flatnonzero(positions))
    sources = loader.positions(positions[positions > 0] - 1)
    size = positions.size

    def forward(x: Array) -> Array:
        result = loader.backend.zeros((size,))
        result[targets] = xp.reshape(x, (-1,))[sources]
        return xp.reshape(result, expr.shape)

    def adjoint(g: Array) -> Array:
        picked = xp.reshape(g, (-1,))[targets]
        return xp.reshape(loader.scatter_add(picked, sources, math.prod(inner)), inner)

    return unary(expr, forward, adjoint)


def _trace(expr: Any, loader: Loader) -> Rule:
    xp, inner = loader.xp, expr.args[0].shape
    n, batch = inner[-1], math.prod(inner[:-2])

    def adjoint(g: Array) -> Array:
        result = loader.backend.zeros((batch, n * n))
        result[:, :: n + 1] = xp.reshape(g, (batch, 1))
        return xp.reshape(result, inner)

    return unary(
        expr,
        lambda x: xp.reshape(xp.sum(xp.reshape(x, (batch, n * n))[:, :: n + 1], axis=1), expr.shape),
        adjoint,
    )


def _cumsum(expr: Any, loader: Loader) -> Rule:
    xp, inner = loader.xp, expr.args[0].shape
    if not inner:
        return unary(expr, lambda x: xp.reshape(x, expr.shape), lambda g: xp.reshape(g, inner), view=True)
    flat = expr.axis is None
    axis, shape = (0, (math.prod(inner),)) if flat else (int(expr.axis) % len(inner), inner)

    def adjoint(g: Array) -> Array:
        reverse = xp.flip(xp.cumsum(xp.flip(g, axis=axis), axis), axis=axis)
        return xp.reshape(reverse, inner)

    return unary(expr, lambda x: xp.cumsum(xp.reshape(x, shape), axis), adjoint)


#: Atom -> its rule; the atoms with a constant factor are in ``affine_products``.
MOVES: dict[type, Callable[[Any, Loader], Rule | None]] = {
    AddExpression: _add,
    Hstack: _hstack,
    Vstack: _vstack,
    Concatenate: _concatenate,
    Wrap: _identity,
    conj: _identity,
    real: _identity,
    NegExpression: _negative,
    Sum: _sum,
    reshape: _reshape,
    transpose: _transpose,
    Promote: _broadcast,
    broadcast_to: _broadcast,
    index: _slice,
    special_index: _gather,
    diag_mat: _gather,
    diag_vec: _gather,
    upper_tri: _gather,
    Trace: _trace,
    cumsum: _cumsum,
}


def unbroadcast(g: Array, shape: Shape, xp: Any) -> Array:
    """The adjoint of broadcasting an array of ``shape`` to ``g.shape``."""
    if tuple(g.shape) == shape:
        return g
    extra = g.ndim - len(shape)
    axes = tuple(range(extra)) + tuple(
        extra + i for i, size in enumerate(shape) if size == 1 and g.shape[extra + i] != 1
    )
    return xp.reshape(xp.sum(g, axis=axes) if axes else g, shape)


def reshape_columns(x: Array, shape: Shape, xp: Any) -> Array:
    """Reshape in column-major order, CVXPY's ``order="F"``."""
    reversed_axes = tuple(reversed(range(x.ndim)))
    flat = xp.reshape(xp.permute_dims(x, reversed_axes), tuple(reversed(shape)))
    return xp.permute_dims(flat, tuple(reversed(range(len(shape)))))
