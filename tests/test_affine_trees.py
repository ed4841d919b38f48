"""Random trees of affine atoms, every shape: our tape against CVXPY's values and canonical matrices.

A tree is a list of steps; each takes expressions that are there already and adds one. So hypothesis can
shorten a tree that fails. The atoms one by one are in ``test_affine.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from test_affine import BACKENDS, check, compiled, point, variables

from convexnn_solvers.backends import Backend, numpy_backend
from convexnn_solvers.reading.affine import Tape
from convexnn_solvers.reading.loading import Loader

Rng = np.random.Generator
Step = Callable[[Rng, Any, Any], Any]
LARGEST = 40


def constant(rng: Rng, shape: tuple[int, ...]) -> Any:
    """Numbers of this shape: dense, sparse, or a Parameter."""
    values: NDArray[np.float64] = rng.standard_normal(shape)
    kind = rng.integers(4)
    if kind == 0:
        return cp.Parameter(shape, value=values)
    if kind == 1 and len(shape) == 2:
        return sp.csr_array(np.where(rng.random(shape) < 0.5, values, 0.0))
    return cp.Constant(values) if kind == 2 else values


def matrix(expr: Any) -> Any:
    return expr if expr.ndim == 2 else cp.reshape(expr, (1, expr.size), order="F")


def vector(expr: Any) -> Any:
    return cp.vec(expr, order="C")


def square(expr: Any) -> Any:
    expr = matrix(expr)
    size = min(expr.shape)
    return expr[:size, :size]


def added(rng: Rng, a: Any, b: Any) -> Any:
    """Sums with every kind of broadcasting."""
    if a.shape == b.shape:
        return a - b if rng.random() < 0.5 else a + b + a
    kind = rng.integers(4)
    if kind == 0:
        return a + cp.sum(b)
    if kind == 1 and a.ndim == 2:
        return a - constant(rng, (1, a.shape[1])) + cp.sum(b)
    if kind == 2 and a.ndim == 1 and b.ndim == 2 and a.shape[0] == b.shape[1]:
        return b - a
    return constant(rng, (2, *a.shape)) - a if a.ndim == 1 else a - np.ones(a.shape)


def reshaped(rng: Rng, a: Any, b: Any) -> Any:
    divisors = [k for k in range(1, a.size + 1) if a.size % k == 0]
    rows = int(rng.choice(divisors))
    return cp.reshape(a, (rows, a.size // rows), order="F" if rng.random() < 0.5 else "C")


def sliced(rng: Rng, a: Any, b: Any) -> Any:
    key: list[Any] = []
    for size in a.shape:
        start, step = int(rng.integers(size)), int(rng.choice([1, 2, -1]))
        key.append(slice(start, None, step) if rng.random() < 0.8 else start - size)
    return a[tuple(key)] if key else a


def fancy(rng: Rng, a: Any, b: Any) -> Any:
    if a.ndim == 0:
        return a
    if rng.random() < 0.3:
        mask = rng.random(a.shape) < 0.6
        assume(bool(mask.any()))
        return a[mask]
    return a[rng.integers(a.shape[0], size=3)]


def multiplied(rng: Rng, a: Any, b: Any) -> Any:
    kind = rng.integers(5)
    if kind == 0 or a.ndim == 0:
        return constant(rng, ()) * a
    if kind == 1:
        return cp.multiply(constant(rng, a.shape), a)
    if kind == 2:
        return a / (1.0 + rng.random(a.shape[-1:]))
    if kind == 3:
        return cp.multiply(a, rng.standard_normal(a.shape[-1:]))
    return constant(rng, (2, a.shape[0])) @ a if a.ndim == 2 else constant(rng, (3, a.shape[0])) @ a


def right(rng: Rng, a: Any, b: Any) -> Any:
    a = a if a.ndim else matrix(a)
    other = constant(rng, (a.shape[-1],) if rng.random() < 0.3 else (a.shape[-1], 2))
    return a @ other


def stacked(rng: Rng, a: Any, b: Any) -> Any:
    a, b = matrix(a), matrix(b)
    kind = rng.integers(5)
    if kind == 0:
        return cp.hstack([vector(a), b[0, 0], np.ones(2)])
    if kind == 1:
        return cp.vstack([a, np.ones((1, a.shape[1])), cp.sum(a, axis=0, keepdims=True)])
    if kind == 2:
        return cp.bmat([[a, np.ones((a.shape[0], 1))], [np.ones((1, a.shape[1])), matrix(cp.sum(b))]])
    if kind == 3:
        return cp.concatenate([a, 2.0 * a[:, :1]], axis=1)
    return cp.hstack([a, -a]) if a.shape != b.shape else cp.vstack([b, a])


def summed(rng: Rng, a: Any, b: Any) -> Any:
    if a.ndim == 0:
        return cp.sum(a)
    axis = int(rng.integers(-a.ndim, a.ndim)) if rng.random() < 0.8 else None
    keepdims = bool(rng.random() < 0.5)
    return (cp.sum if rng.random() < 0.6 else cp.mean)(a, axis=axis, keepdims=keepdims)


def diagonal(rng: Rng, a: Any, b: Any) -> Any:
    k = int(rng.integers(-1, 2))
    if a.ndim == 1 or a.size <= 4:
        return cp.diag(vector(a)[:4], k=k)
    return cp.diag(square(a), k=k if min(a.shape) > 1 else 0)


def kron(rng: Rng, a: Any, b: Any) -> Any:
    other = rng.standard_normal((2, 1) if rng.random() < 0.5 else (1, 3))
    return cp.kron(other, matrix(a)) if rng.random() < 0.5 else cp.kron(matrix(a), other)


def convolved(rng: Rng, a: Any, b: Any) -> Any:
    return cp.convolve(rng.standard_normal(int(rng.integers(1, 4))), vector(a))


def broadcast(rng: Rng, a: Any, b: Any) -> Any:
    return cp.broadcast_to(a, (2, *a.shape) if a.ndim < 2 else a.shape)


#: Atom -> how it is applied; CVXPY canonicalises cumsum with further variables.
STEPS: dict[str, Step] = {
    "add": added,
    "negative": lambda rng, a, b: -a,
    "multiply": multiplied,
    "matrix on the right": right,
    "sum or mean": summed,
    "reshape": reshaped,
    "transpose": lambda rng, a, b: a.T,
    "slice": sliced,
    "fancy": fancy,
    "stack": stacked,
    "trace": lambda rng, a, b: cp.trace(square(a)),
    "diag": diagonal,
    "kron": kron,
    "conv": convolved,
    "broadcast": broadcast,
    "cumsum": lambda rng, a, b: cp.cumsum(a, axis=int(rng.integers(a.ndim)) if a.ndim else None),
}
TREES = st.lists(
    st.tuples(st.sampled_from(sorted(STEPS)), st.integers(0, 9), st.integers(0, 9), st.integers(0, 99)),
    min_size=1,
    max_size=7,
)
Tree = list[tuple[str, int, int, int]]
hundred = settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


def grown(tree: Tree, leaves: tuple[Any, ...]) -> list[Any]:
    """The expressions that the steps add, without those that become too large."""
    pool = list(leaves)
    for name, first, second, seed in tree:
        a, b = (pool[-1 - k % len(pool)] for k in (first, second))
        expr = STEPS[name](np.random.default_rng(seed), a, b)
        if 0 < expr.size <= LARGEST and expr.ndim <= 2:
            pool.append(expr)
    return pool[len(leaves) :]


@pytest.mark.parametrize("make_backend", BACKENDS)
@hundred
@given(tree=TREES)
def test_values_and_adjoints(make_backend: Callable[[], Backend], tree: Tree) -> None:
    leaves = variables()
    exprs = [expr for expr in grown(tree, leaves[:3]) if not expr.is_constant()]
    check(leaves, exprs, make_backend(), atol=1e-9)


@hundred
@given(tree=TREES.filter(lambda tree: all(name != "cumsum" for name, *_ in tree)))
def test_the_matrix_is_cvxpys(tree: Tree) -> None:
    leaves = variables()[:3]
    exprs = [expr for expr in grown(tree, leaves) if not expr.is_constant()]
    assume(bool(exprs))
    expr = exprs[-1]
    affine = compiled(leaves, [expr], numpy_backend())
    rows = [affine.adjoint((e.reshape(expr.shape, order="F"),)) for e in np.eye(expr.size)]
    offset = affine.forward(tuple(np.zeros(leaf.shape) for leaf in leaves))[0]
    flat = cp.reshape(expr, (expr.size,), order="F")
    problem = cp.Problem(cp.Minimize(0), [flat == 0])
    data = problem.get_problem_data(cp.CLARABEL, canon_backend="SCIPY", ignore_dpp=True)[0]
    starts = data["param_prob"].var_id_to_col
    theirs = data["A"].toarray()
    np.testing.assert_allclose(offset.ravel(order="F"), -data["b"], atol=1e-9)
    for k, leaf in enumerate(leaves):
        ours = np.stack([row[k].ravel(order="F") for row in rows])
        columns = slice(starts[leaf.id], starts[leaf.id] + leaf.size) if leaf.id in starts else slice(0)
        expected = theirs[:, columns] if leaf.id in starts else np.zeros_like(ours)
        np.testing.assert_allclose(ours, expected, atol=1e-9)


@hundred
@given(tree=TREES, seed=st.integers(0, 99))
def test_parameters_count_at_every_refresh(tree: Tree, seed: int) -> None:
    leaves = variables()
    exprs = [expr for expr in grown(tree, leaves[:3]) if expr.parameters() and not expr.is_constant()]
    assume(bool(exprs))
    tape = Tape(Loader(numpy_backend()), leaves)
    for expr in exprs:
        tape.add_output(expr)
    tape.with_values()
    rng = np.random.default_rng(seed)
    for parameter in {id(p): p for expr in exprs for p in expr.parameters()}.values():
        parameter.value = rng.standard_normal(parameter.shape)
    values = tape.with_values().forward(point(leaves, numpy_backend()))
    for expr, value in zip(exprs, values, strict=True):
        np.testing.assert_allclose(value, np.reshape(expr.value, expr.shape), atol=1e-9)
