"""The tape against CVXPY: values, canonical matrices, adjoints, Parameters; one table row per atom."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
import scipy.sparse as sp

from convexnn_solvers.backends import Backend, numpy_backend, torch_backend
from convexnn_solvers.reading.affine import Tape, TapeMap
from convexnn_solvers.reading.atoms import gated, pattern_slack
from convexnn_solvers.reading.loading import Loader, to_dense
from convexnn_solvers.reading.operators import GatedOperator

RNG = np.random.default_rng(0)
A43, A34, A33 = RNG.standard_normal((4, 3)), RNG.standard_normal((3, 4)), RNG.standard_normal((3, 3))
A4, A3, A2 = RNG.standard_normal(4), RNG.standard_normal(3), RNG.standard_normal(2)
S43: Any = sp.random_array((4, 3), density=0.5, rng=np.random.default_rng(1), format="csc")
X62, D64 = RNG.standard_normal((6, 2)), RNG.random((6, 4)) < 0.5
partial_trace: Any = cp.partial_trace  # annotated for one dimension only
Builder = Callable[[Any, Any, Any, Any], Any]

# M is (3, 4), v is (4,), s is a scalar, T is (2, 3, 4)
TABLE: dict[str, Builder] = {
    "variable": lambda M, v, s, T: M,
    "add": lambda M, v, s, T: M + 2.0 * M - A34,
    "constant first": lambda M, v, s, T: A34 - M,
    "row broadcast": lambda M, v, s, T: M + v,
    "column broadcast": lambda M, v, s, T: M - A3[:, None] + s,
    "negative": lambda M, v, s, T: -(M - 1.0),
    "scalar times": lambda M, v, s, T: 3.0 * M,
    "variable scalar times": lambda M, v, s, T: s * A34,
    "divide": lambda M, v, s, T: M / 3.0,
    "divide entries": lambda M, v, s, T: M / (1.0 + A34**2),
    "multiply": lambda M, v, s, T: cp.multiply(A34, M),
    "multiply right": lambda M, v, s, T: cp.multiply(M, A34),
    "multiply broadcast": lambda M, v, s, T: cp.multiply(A34, v),
    "multiply by row": lambda M, v, s, T: cp.multiply(M, A4),
    "multiply sparse": lambda M, v, s, T: cp.multiply(S43.T, M),
    "matrix matrix": lambda M, v, s, T: A43 @ M,
    "matrix vector": lambda M, v, s, T: A34 @ v,
    "vector matrix": lambda M, v, s, T: A3 @ M,
    "vector vector": lambda M, v, s, T: A4 @ v,
    "matrix right": lambda M, v, s, T: M @ A43,
    "matrix right vector": lambda M, v, s, T: M @ A4,
    "vector right matrix": lambda M, v, s, T: v @ A43,
    "vector right vector": lambda M, v, s, T: v @ A4,
    "sparse left": lambda M, v, s, T: S43 @ M,
    "sparse left vector": lambda M, v, s, T: S43.T @ v,
    "sparse right": lambda M, v, s, T: M @ S43,
    "sparse right vector": lambda M, v, s, T: v @ S43,
    "batched left": lambda M, v, s, T: A43 @ T,
    "batched right": lambda M, v, s, T: T @ A43,
    "batched vector": lambda M, v, s, T: T @ A4,
    "outer": lambda M, v, s, T: cp.outer(A3, v),
    "vdot": lambda M, v, s, T: cp.vdot(A4, v),
    "sum": lambda M, v, s, T: cp.sum(M),
    "sum rows": lambda M, v, s, T: cp.sum(M, axis=0),
    "sum columns": lambda M, v, s, T: cp.sum(M, axis=1, keepdims=True),
    "sum negative axis": lambda M, v, s, T: cp.sum(M, axis=-1),
    "sum two axes": lambda M, v, s, T: cp.sum(T, axis=(0, 2)),
    "sum keep all": lambda M, v, s, T: cp.sum(T, keepdims=True),
    "sum of scalar": lambda M, v, s, T: cp.sum(s),
    "mean": lambda M, v, s, T: cp.mean(M, axis=0),
    "reshape F": lambda M, v, s, T: cp.reshape(M, (2, 6), order="F"),
    "reshape C": lambda M, v, s, T: cp.reshape(M, (6, 2), order="C"),
    "reshape 3-d F": lambda M, v, s, T: cp.reshape(T, (4, 6), order="F"),
    "reshape scalar": lambda M, v, s, T: cp.reshape(s, (1, 1), order="F"),
    "vec F": lambda M, v, s, T: cp.vec(M, order="F"),
    "vec C": lambda M, v, s, T: cp.vec(M, order="C"),
    "transpose": lambda M, v, s, T: M.T,
    "permute": lambda M, v, s, T: cp.permute_dims(T, [2, 0, 1]),
    "swapaxes": lambda M, v, s, T: cp.swapaxes(T, 0, 2),
    "moveaxis": lambda M, v, s, T: cp.moveaxis(T, 0, -1),
    "squeeze": lambda M, v, s, T: cp.squeeze(cp.reshape(v, (1, 4), order="F")),
    "index": lambda M, v, s, T: M[1, 2],
    "negative index": lambda M, v, s, T: M[-1],
    "slice": lambda M, v, s, T: M[0:2, 1:],
    "stepped slice": lambda M, v, s, T: M[:, ::2],
    "reversed slice": lambda M, v, s, T: M[::-1, 3:0:-2],
    "slice of 3-d": lambda M, v, s, T: T[1, :, 2:],
    "ellipsis": lambda M, v, s, T: T[..., 0],
    "new axis": lambda M, v, s, T: v[:, None] + A4,
    "integer arrays": lambda M, v, s, T: M[[0, 0, 2], [1, 1, 3]],
    "integer rows": lambda M, v, s, T: M[[2, 0, 2]],
    "boolean mask": lambda M, v, s, T: M[A34 > 0],
    "hstack": lambda M, v, s, T: cp.hstack([M, A34, 2 * M]),
    "hstack vectors": lambda M, v, s, T: cp.hstack([v, s, A3]),
    "vstack": lambda M, v, s, T: cp.vstack([M, v, A34[:1]]),
    "vstack vectors": lambda M, v, s, T: cp.vstack([v, v, A4]),
    "concatenate": lambda M, v, s, T: cp.concatenate([T, T[:, :1]], axis=1),
    "concatenate flat": lambda M, v, s, T: cp.concatenate([v, 2 * v], axis=None),
    "stack": lambda M, v, s, T: cp.stack([v, A4, 2 * v], axis=1),
    "bmat": lambda M, v, s, T: cp.bmat([[M, A33], [A43, M.T @ A34]]),
    "trace": lambda M, v, s, T: cp.trace(M @ A43),
    "trace of a sum": lambda M, v, s, T: cp.trace(M[:, :3] + A33),
    "batched trace": lambda M, v, s, T: cp.trace(T[:, :, :3]),
    "diagonal": lambda M, v, s, T: cp.diag(M[:, 1:]),
    "upper diagonal": lambda M, v, s, T: cp.diag(M[:, 1:], k=1),
    "diagonal matrix": lambda M, v, s, T: cp.diag(v),
    "lower diagonal matrix": lambda M, v, s, T: cp.diag(v, k=-2),
    "upper triangle": lambda M, v, s, T: cp.upper_tri(M[:, :3]),
    "triangle from vector": lambda M, v, s, T: cp.vec_to_upper_tri(v[:3]),
    "kron left": lambda M, v, s, T: cp.kron(A43, M),
    "kron right": lambda M, v, s, T: cp.kron(M, A43),
    "convolve": lambda M, v, s, T: cp.convolve(A3, v),
    "convolve short": lambda M, v, s, T: cp.convolve(A2, v),
    "cumsum": lambda M, v, s, T: cp.cumsum(M, axis=0),
    "cumsum columns": lambda M, v, s, T: cp.cumsum(M, axis=1),
    "cumsum flat": lambda M, v, s, T: cp.cumsum(M, axis=None),
    "difference": lambda M, v, s, T: cp.diff(M, axis=1),
    "promote": lambda M, v, s, T: s + np.zeros((2, 3)),
    "broadcast_to": lambda M, v, s, T: cp.broadcast_to(v, (3, 4)),
    "einsum": lambda M, v, s, T: cp.einsum("ij,jk->ik", M, A43),
    "partial trace": lambda M, v, s, T: partial_trace(cp.kron(M[:2, :2], A33), (2, 3), axis=0),
    "wrap": lambda M, v, s, T: cp.psd_wrap(M[:, :3]),
    "real": lambda M, v, s, T: cp.real(M),
    "gated": lambda M, v, s, T: gated(X62, D64, M[:2], slope=0.3),
    "gated outputs": lambda M, v, s, T: gated(X62, D64, cp.vstack([M, M[:1]])) - 1.0,
    "pattern slack": lambda M, v, s, T: pattern_slack(X62, D64, M[:2] - A34[:2]),
    "plain gated": lambda M, v, s, T: cp.sum(cp.multiply(D64.astype(float), X62 @ M[:2]), axis=1),
}
BACKENDS = [pytest.param(numpy_backend, id="numpy"), pytest.param(torch_backend, id="torch")]


@pytest.fixture(autouse=True)
def _needs_torch(request: pytest.FixtureRequest) -> None:
    if "torch" in request.node.name:
        pytest.importorskip("torch")
        pytest.importorskip("array_api_compat")


def variables() -> tuple[cp.Variable, ...]:
    result = (cp.Variable((3, 4)), cp.Variable(4), cp.Variable(), cp.Variable((2, 3, 4)))
    rng = np.random.default_rng(5)
    for variable in result:
        variable.value = rng.standard_normal(variable.shape)
    return result


def compiled(leaves: tuple[Any, ...], exprs: list[Any], backend: Backend) -> TapeMap:
    tape = Tape(Loader(backend), leaves)
    for expr in exprs:
        tape.add_output(expr)
    return tape.with_values()


def point(leaves: tuple[Any, ...], backend: Backend) -> tuple[Any, ...]:
    return tuple(backend.asarray(leaf.value) for leaf in leaves)


def inner(a: Any, b: Any, backend: Backend) -> float:
    return sum(float(np.sum(backend.to_numpy(x) * backend.to_numpy(y))) for x, y in zip(a, b, strict=True))


def check(leaves: tuple[Any, ...], exprs: list[Any], backend: Backend, atol: float = 1e-12) -> TapeMap:
    """Values and the adjoint identity <A x, r> = <x, A^T r>."""
    affine = compiled(leaves, exprs, backend)
    x = point(leaves, backend)
    before = [backend.to_numpy(part).copy() for part in x]
    values, images = affine.forward(x), affine.linear(x)
    for expr, value in zip(exprs, values, strict=True):
        assert tuple(value.shape) == expr.shape
        expected = np.reshape(to_dense(expr.value), expr.shape)
        np.testing.assert_allclose(backend.to_numpy(value), expected, atol=atol, rtol=1e-10)
    rng = np.random.default_rng(9)
    r = tuple(backend.asarray(rng.standard_normal(expr.shape)) for expr in exprs)
    kept = [backend.to_numpy(part).copy() for part in r]
    back = affine.adjoint(r)
    assert [tuple(g.shape) for g in back] == [leaf.shape for leaf in leaves]
    assert inner(images, r, backend) == pytest.approx(inner(x, back, backend), rel=1e-9, abs=1e-9)
    for array in (*values, *images, *back):  # results are ours to write into, the inputs are not touched
        array *= 2.0
    for old, new in zip((*before, *kept), (*x, *r), strict=True):
        np.testing.assert_array_equal(old, backend.to_numpy(new))
    return affine


@pytest.mark.parametrize("make_backend", BACKENDS)
@pytest.mark.parametrize("name", TABLE)
def test_atom_matches_its_value(name: str, make_backend: Callable[[], Backend]) -> None:
    leaves = variables()
    check(leaves, [TABLE[name](*leaves)], make_backend())


#: Atoms that CVXPY canonicalises with auxiliary variables, or only together with a complex variable.
INDIRECT = ("cumsum", "cumsum columns", "cumsum flat")
NOT_REAL = ("real",)


@pytest.mark.parametrize("name", [name for name in TABLE if name not in INDIRECT + NOT_REAL])
def test_atom_matches_the_canonical_matrix(name: str) -> None:
    """The tape's matrix against the one that CVXPY makes of ``expr == 0``."""
    leaves = variables()
    expr = TABLE[name](*leaves)
    affine = compiled(leaves, [expr], numpy_backend())
    rows = [affine.adjoint((e.reshape(expr.shape, order="F"),)) for e in np.eye(expr.size)]
    problem = cp.Problem(cp.Minimize(0), [cp.reshape(expr, (expr.size,), order="F") == 0])
    data = problem.get_problem_data(cp.CLARABEL, canon_backend="SCIPY")[0]
    starts = data["param_prob"].var_id_to_col
    for k, leaf in enumerate(leaves):
        if leaf.id in starts:
            ours = np.stack([row[k].ravel(order="F") for row in rows])
            theirs = data["A"].toarray()[:, starts[leaf.id] : starts[leaf.id] + leaf.size]
            np.testing.assert_allclose(ours, theirs, atol=1e-12)


@pytest.mark.parametrize("name", INDIRECT)
def test_atom_with_auxiliary_variables_matches_the_canonical_problem(name: str) -> None:
    leaves = variables()
    expr = TABLE[name](*leaves)
    weights = np.random.default_rng(3).standard_normal(expr.shape)
    fixed = [leaf == leaf.value for leaf in expr.variables()]
    problem = cp.Problem(cp.Minimize(cp.sum(cp.multiply(weights, expr))), fixed)
    x = point(leaves, numpy_backend())
    ours = compiled(leaves, [expr], numpy_backend()).forward(x)[0]
    problem.solve(solver=cp.CLARABEL)
    assert problem.value == pytest.approx(float(np.sum(weights * ours)), abs=1e-6)


def random_expression(rng: np.random.Generator, leaves: tuple[Any, ...], depth: int) -> Any:
    """A random tree over the 2-d parts of the table, always of shape (3, 4)."""
    if depth == 0:
        M, v, s, T = leaves
        return [M, cp.outer(A3, v), s * A34, T[0], cp.Constant(A34)][rng.integers(5)]
    a = random_expression(rng, leaves, depth - 1)
    b = random_expression(rng, leaves, depth - 1)
    choices: list[Callable[[], Any]] = [
        lambda: a + b,
        lambda: a - 2.0 * b,
        lambda: A33 @ a,
        lambda: cp.multiply(A34, a) + b,
        lambda: (a.T @ A33).T - A34,
        lambda: cp.vstack([a[1:], b[:1]]),
        lambda: cp.hstack([b[:, 2:], a[:, :2]]),
        lambda: cp.cumsum(a, axis=1) / 2.0,
        lambda: cp.reshape(cp.reshape(a, (2, 6), order="C"), (3, 4), order="F"),
        lambda: a + cp.sum(b, axis=0),
        lambda: a - cp.sum(b, axis=1, keepdims=True),
        lambda: a[::-1, [1, 0, 3, 3]] + cp.trace(b @ A43),
        lambda: cp.diag(cp.sum(a, axis=1)) @ A34 + b,
        lambda: cp.broadcast_to(gated(X62, D64, a[:2])[:4], (3, 4)) + b,
        lambda: pattern_slack(X62, D64, a[1:])[:3] - b,
    ]
    return choices[rng.integers(len(choices))]()


@pytest.mark.parametrize("make_backend", BACKENDS)
@pytest.mark.parametrize("seed", range(25))
def test_random_trees(seed: int, make_backend: Callable[[], Backend]) -> None:
    rng = np.random.default_rng(seed)
    leaves = variables()
    exprs = [random_expression(rng, leaves, 3) for _ in range(2)]
    exprs.append(exprs[0] + cp.sum(exprs[1]))  # shared subexpressions
    check(leaves, exprs, make_backend(), atol=1e-9)


@pytest.mark.parametrize("make_backend", BACKENDS)
def test_parameters_are_refreshed_without_recompiling(make_backend: Callable[[], Backend]) -> None:
    backend = make_backend()
    leaves = variables()
    M = leaves[0]
    scale, shift, factor = cp.Parameter(nonneg=True), cp.Parameter((3, 4)), cp.Parameter((2, 3))
    tape = Tape(Loader(backend), leaves)
    exprs: list[Any] = [
        scale * M + shift,
        factor @ M / (1 + scale),
        cp.multiply(cp.exp(shift), M),
        shift - shift,
    ]
    for expr in exprs:
        tape.add_output(expr)
    maps = []
    for seed in (1, 2):
        rng = np.random.default_rng(seed)
        scale.value = rng.random()
        shift.value, factor.value = rng.standard_normal((3, 4)), rng.standard_normal((2, 3))
        maps.append(tape.with_values())
        for expr, value in zip(exprs, maps[-1].forward(point(leaves, backend)), strict=True):
            np.testing.assert_allclose(backend.to_numpy(value), expr.value, atol=1e-12)
    first, second = (m.forward(point(leaves, backend))[0] for m in maps)
    assert float(abs(first - second).max()) > 1e-3  # the earlier map kept its own values


def test_a_shared_subexpression_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    original = GatedOperator.forward

    def counted(self: GatedOperator, U: Any) -> Any:
        calls.append(U)
        return original(self, U)

    monkeypatch.setattr(GatedOperator, "forward", counted)
    leaves = variables()
    shared = gated(X62, D64, leaves[0][:2])
    affine = compiled(leaves, [shared + 1.0, 2.0 * shared, shared], numpy_backend())
    affine.forward(point(leaves, numpy_backend()))
    assert len(calls) == 1


def test_constants_are_shared_not_copied() -> None:
    rng = np.random.default_rng(0)
    leaves = variables()
    A = cp.Constant(rng.standard_normal((500, 3)))
    affine = compiled(leaves, [A @ leaves[0], A @ (2 * leaves[0])], numpy_backend())
    big = [c for c in affine.constants if np.shape(c) == A.shape]
    assert len(big) == 2
    assert all(c is A.value for c in big)


def test_missing_cotangents_count_as_zero() -> None:
    leaves = variables()
    affine = compiled(leaves, [leaves[0], leaves[1]], numpy_backend())
    back = affine.adjoint((None, np.ones(4)))
    np.testing.assert_array_equal(back[0], 0.0)
    np.testing.assert_array_equal(back[1], 1.0)
