"""How affine CVXPY atoms with a constant factor act on arrays: products, Kronecker, convolution, gates."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import cvxpy as cp
import numpy as np
from cvxpy.atoms.affine.binary_operators import DivExpression, MulExpression, multiply
from cvxpy.atoms.affine.broadcast_to import broadcast_to
from cvxpy.atoms.affine.conv import conv, convolve
from cvxpy.atoms.affine.kron import kron
from cvxpy.atoms.affine.promote import Promote

from convexnn_solvers.backends import Array
from convexnn_solvers.reading.affine_rules import Coefficient, Rule, unary, unbroadcast
from convexnn_solvers.reading.atoms import gated, pattern_slack
from convexnn_solvers.reading.loading import (
    Loader,
    SparseMatrix,
    is_sparse,
    matmul_left,
    matmul_right,
    to_dense,
)
from convexnn_solvers.reading.operators import GatedOperator, SlackOperator
from convexnn_solvers.reading.pooled import PooledOperator, pooling_of, storable


def _split(expr: Any) -> tuple[Any, Any, bool]:
    """The constant argument, the other one, and whether the constant comes first."""
    first, second = expr.args
    return (first, second, True) if first.is_constant() else (second, first, False)


def _times(expr: Any, loader: Loader) -> Rule:
    constant, operand, _ = _split(expr)
    return _scaled(expr, loader, constant, operand, loader.dense)


def _divide(expr: Any, loader: Loader) -> Rule:
    operand, constant = expr.args

    def reciprocal(value: Any) -> Array:
        divisor = to_dense(value)
        if not np.all(divisor):
            raise ValueError(f"{expr.args[1].name()} divides by zero; change its value.")
        return loader.dense(1.0 / divisor)

    return _scaled(expr, loader, constant, operand, reciprocal)


def _scaled(expr: Any, loader: Loader, constant: Any, operand: Any, load: Callable[[Any], Any]) -> Rule:
    xp, inner, outer = loader.xp, operand.shape, expr.shape

    def forward(c: Array, args: list[Array | None]) -> Array:
        product = args[0] * c
        return product if tuple(product.shape) == outer else xp.reshape(product, outer)

    return Rule(
        (operand,),
        forward,
        lambda c, g: [unbroadcast(g * c, inner, xp)],
        Coefficient(unpromoted(constant), load),
    )


def _matmul(expr: Any, loader: Loader) -> Rule:
    constant, operand, left = _split(expr)
    if constant.ndim == 0 or operand.ndim == 0:
        return _scaled(expr, loader, constant, operand, loader.dense)
    if left and isinstance(operand, gated) and not constant.parameters():
        pooled = _pooled(constant, operand, loader)
        if pooled is not None:
            return pooled
    xp, inner, outer = loader.xp, operand.shape, expr.shape
    multiply_by = matmul_left if left else matmul_right

    def adjoint(c: Any, g: Array) -> list[Array]:
        if c.ndim == 1 and operand.ndim == 1:
            return [c * g]
        if c.ndim == 1:  # a vector on either side of a matrix: the transpose is an outer product
            outer_product = c[:, None] * g[..., None, :] if left else g[..., :, None] * c[None, :]
            return [xp.reshape(outer_product, inner)]
        flipped = c.transposed() if isinstance(c, SparseMatrix) else xp.matrix_transpose(c)
        return [xp.reshape(multiply_by(flipped, g, xp), inner)]

    return Rule(
        (operand,),
        lambda c, args: xp.reshape(multiply_by(c, args[0], xp), outer),
        adjoint,
        Coefficient(constant, loader.matrix if constant.ndim == 2 else loader.dense),
    )


def _kron(expr: Any, loader: Loader) -> Rule:
    constant, operand, left = _split(expr)
    xp, outer = loader.xp, expr.shape
    (a, b), (p, q) = expr.args[0].shape, expr.args[1].shape

    def forward(c: Array, args: list[Array | None]) -> Array:
        first, second = (c, args[0]) if left else (args[0], c)
        assert first is not None
        assert second is not None
        return xp.reshape(first[:, None, :, None] * second[None, :, None, :], outer)

    def adjoint(c: Array, g: Array) -> list[Array]:
        blocks = xp.reshape(g, (a, p, b, q))
        if left:
            return [xp.tensordot(c, blocks, axes=((0, 1), (0, 2)))]
        return [xp.tensordot(blocks, c, axes=((1, 3), (0, 1)))]

    return Rule((operand,), forward, adjoint, Coefficient(constant, loader.dense))


def _convolve(expr: Any, loader: Loader) -> Rule:
    kernel, operand = expr.args
    xp, outer, inner, length = loader.xp, expr.shape, operand.shape, operand.size

    def forward(c: Array, args: list[Array | None]) -> Array:
        x, result = xp.reshape(args[0], (-1,)), loader.backend.zeros((math.prod(outer),))
        for shift in range(kernel.size):
            result[shift : shift + length] += c[shift] * x
        return xp.reshape(result, outer)

    def adjoint(c: Array, g: Array) -> list[Array]:
        flat, result = xp.reshape(g, (-1,)), loader.backend.zeros((length,))
        for shift in range(kernel.size):
            result += c[shift] * flat[shift : shift + length]
        return [xp.reshape(result, inner)]

    return Rule(
        (operand,), forward, adjoint, Coefficient(kernel, lambda v: loader.dense(np.ravel(to_dense(v))))
    )


# The atoms of this package.


def _gated(expr: Any, loader: Loader) -> Rule:
    operator = GatedOperator(loader.gates(expr.X, expr.patterns), expr.outputs, expr.slope)
    return replace(unary(expr, operator.forward, operator.adjoint), operator=operator)


def _pooled(constant: Any, operand: gated, loader: Loader) -> Rule | None:
    """A sparse matrix times a gated prediction in one step, where stored blocks make it cheaper."""
    if not is_sparse(constant.value) or not np.isfinite(constant.value.data).all():
        return None
    pooling = pooling_of(constant.value)
    X, patterns = operand.X, operand.patterns
    if pooling is None or not storable(pooling, X.shape[1], patterns.shape[1], loader.backend):
        return None
    operator = PooledOperator(loader.gates(X, patterns), pooling, operand.outputs, operand.slope, X, patterns)
    return replace(unary(operand, operator.forward, operator.adjoint), operator=operator)


def _pattern_slack(expr: Any, loader: Loader) -> Rule:
    operator = SlackOperator(loader.gates(expr.X, expr.patterns), expr.outputs)
    return unary(expr, operator.forward, operator.adjoint)


#: Atom -> its rule.
PRODUCTS: dict[type, Callable[[Any, Loader], Rule | None]] = {
    multiply: _times,
    DivExpression: _divide,
    MulExpression: _matmul,
    kron: _kron,
    conv: _convolve,
    convolve: _convolve,
    gated: _gated,
    pattern_slack: _pattern_slack,
}


def unpromoted(constant: Any) -> Any:
    """The smallest constant that broadcasts to ``constant``: a weight stays one number."""
    while isinstance(constant, Promote | broadcast_to):
        inner = constant.args[0]
        if isinstance(constant, Promote) and inner.ndim:
            return cp.reshape(inner, (), order="F")
        constant = inner
    return constant
