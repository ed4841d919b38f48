"""Pooled gated maps: one step in place of two, the same numbers, whoever reads them."""

from __future__ import annotations

from typing import Any

import cvxpy as cp
import numpy as np
import pytest
import scipy.sparse as sp

from convexnn_solvers import RFISTA, BlockDescent, SemismoothNewton, certificate
from convexnn_solvers.backends import Backend, numpy_backend, torch_backend
from convexnn_solvers.gated_programs.features import BlockFeatures, GatedFeatures, StoredFeatures
from convexnn_solvers.reading.atoms import gated, pattern_slack
from convexnn_solvers.reading.compiler import compile_problem
from convexnn_solvers.reading.pooled import PooledOperator, Pooling, pooling_of

M, K, D, P = 30, 4, 3, 5  # pooled rows, rows of X for each, features, gates

BACKENDS = [
    pytest.param(lambda: numpy_backend(), 1e-12, id="numpy64"),
    pytest.param(lambda: numpy_backend("float32"), 2e-5, id="numpy32"),
    pytest.param(lambda: torch_backend(), 1e-12, id="torch64"),
]


def rows_and_patterns() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    rng = np.random.default_rng(0)
    X = rng.standard_normal((M * K, D))
    return X, X @ rng.standard_normal((D, P)) >= 0.0


def averaging() -> Any:
    return sp.csr_array(sp.kron(sp.eye_array(M), np.full((1, K), 1.0 / K)))


def uneven() -> Any:
    """Two to four rows with weights of both signs, one of them for two samples."""
    rng = np.random.default_rng(1)
    dense = np.zeros((M, M * K))
    for i in range(M):
        chosen = rng.choice(M * K, size=2 + i % 3, replace=False)
        dense[i, chosen] = rng.standard_normal(chosen.size)
    return sp.csr_array(dense)


MATRICES: dict[str, Any] = {"average": averaging, "uneven": uneven}


def the_operator(expression: Any, U: Any, backend: Backend) -> tuple[Any, Any]:
    """The loss's map of a problem, and the operators in it."""
    problem = cp.Problem(cp.Minimize(cp.sum_squares(expression) + cp.norm1(U)))
    affine: Any = compile_problem(problem, backend).composite().affine
    return affine, affine.operators


@pytest.mark.parametrize("matrix", MATRICES)
@pytest.mark.parametrize("outputs", [1, 2])
@pytest.mark.parametrize("slope", [0.0, -0.4])
@pytest.mark.parametrize(("make_backend", "atol"), BACKENDS)
def test_one_step_is_the_product_of_the_two(
    make_backend: Any, atol: float, slope: float, outputs: int, matrix: str
) -> None:
    if make_backend is BACKENDS[2].values[0]:
        pytest.importorskip("torch")
        pytest.importorskip("array_api_compat")
    backend, rng = make_backend(), np.random.default_rng(2)
    X, patterns = rows_and_patterns()
    U = cp.Variable((D * outputs, P))
    expression = MATRICES[matrix]() @ gated(X, patterns, U, slope)
    affine, operators = the_operator(expression, U, backend)
    assert [type(operator) for operator in operators] == [PooledOperator]
    U.value = rng.standard_normal(U.shape)
    (image,) = affine.forward((backend.asarray(U.value),))
    np.testing.assert_allclose(backend.to_numpy(image), expression.value, atol=20 * atol)
    r = rng.standard_normal(expression.shape)
    (back,) = affine.adjoint((backend.asarray(r),))
    inner = np.vdot(r, expression.value)
    assert np.vdot(backend.to_numpy(back), U.value) == pytest.approx(inner, abs=100 * atol)


def test_what_gains_nothing_or_may_change_stays_two_steps() -> None:
    X, patterns = rows_and_patterns()
    U = cp.Variable((D, P))
    assert pooling_of(sp.eye_array(M * K)) is None  # adds up nothing
    one_long_row = sp.csr_array(np.vstack([np.ones(M * K), np.eye(M * K)[: M - 1]]))
    assert pooling_of(one_long_row) is None
    weights = cp.Parameter((M, M * K), value=averaging().toarray())
    dense = averaging().toarray()
    for factor in (weights, dense, 1e3 * sp.eye_array(M * K)):
        _, operators = the_operator(factor @ gated(X, patterns, U), U, numpy_backend())
        assert not any(isinstance(operator, PooledOperator) for operator in operators)


def test_blocks_are_what_their_text_says() -> None:
    X, patterns = rows_and_patterns()
    S, slope = uneven(), 0.3
    pooling = pooling_of(S)
    assert pooling is not None
    blocks = pooling.blocks(X, patterns, slope)
    for j in range(P):
        diagonal = np.where(patterns[:, j], 1.0, slope)
        np.testing.assert_allclose(blocks[:, :, j], S @ (diagonal[:, None] * X), atol=1e-12)
        assert np.all(np.linalg.norm(blocks[:, :, j], axis=1) <= pooling.sizes(X) * (1.0 + 1e-12))


def test_stored_and_gated_features_answer_alike() -> None:
    """Stored blocks of a pooling that adds up nothing are those of the gates themselves."""
    X, patterns = rows_and_patterns()
    n = len(X)
    alone = Pooling(np.arange(n)[:, None], np.ones((n, 1)))
    rng = np.random.default_rng(3)
    plain: BlockFeatures = GatedFeatures(X, np.asfortranarray(np.where(patterns, 1.0, 0.2)))
    stored: BlockFeatures = StoredFeatures(alone.blocks(X, patterns, 0.2))
    chosen = np.array([4, 0, 4, 2])
    for a, b in ((plain, stored), (plain.select(chosen), stored.select(chosen))):
        m = a.count
        assert (b.width, b.count) == (a.width, m)
        weights, U, r = rng.random(m), rng.standard_normal((2, D, m)), rng.standard_normal((n, 2))
        columns, owners = rng.standard_normal((D, 7)), rng.integers(m, size=7)
        np.testing.assert_allclose(b.forward(U), a.forward(U), atol=1e-12)
        np.testing.assert_allclose(b.adjoint(r), a.adjoint(r), atol=1e-11)
        np.testing.assert_allclose(b.times(U[0]), a.times(U[0]), atol=1e-12)
        np.testing.assert_allclose(b.times(columns, owners), a.times(columns, owners), atol=1e-12)
        np.testing.assert_allclose(b.stacked(weights), a.stacked(weights), atol=1e-12)
        np.testing.assert_allclose(b.squares(weights), a.squares(weights), atol=1e-12)
        gram = np.triu(b.gram(weights, b.base()))
        np.testing.assert_allclose(gram, np.triu(a.gram(weights, a.base())), atol=1e-11)
        np.testing.assert_allclose(np.diag(gram), a.squares(weights), atol=1e-11)


LOSSES: dict[str, Any] = {
    "squared": lambda q, y: cp.sum_squares(q - y) / 2.0,
    "huber": lambda q, y: 2.0 * cp.sum(cp.huber(q - y)),
    "logistic": lambda q, y: cp.sum(cp.logistic(cp.multiply(np.where(y >= 0.0, -1.0, 1.0), q))),
}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("cones", [False, True])
@pytest.mark.parametrize("free", [False, True])
@pytest.mark.parametrize("matrix", MATRICES)
def test_newtons_method_takes_pooled_predictions(matrix: str, free: bool, cones: bool, loss: str) -> None:
    """Against an interior-point method, and judged by the certificate."""
    X, patterns = rows_and_patterns()
    y = np.random.default_rng(4).standard_normal(M)
    V, W, b = cp.Variable((D, P)), cp.Variable((D, P)), cp.Variable()
    prediction = MATRICES[matrix]() @ gated(X, patterns, V - W) + (b if free else 0.0)
    penalty = cp.sum(cp.norm(V, 2, axis=0)) + cp.sum(cp.norm(W, 2, axis=0))
    slacks: list[Any] = [pattern_slack(X, patterns, U) >= 0 for U in (V, W)] if cones else []
    problem = cp.Problem(cp.Minimize(LOSSES[loss](prediction, y) + 0.5 * penalty), slacks)
    problem.solve(solver=cp.CLARABEL)
    expected = problem.value
    for variable in problem.variables():
        variable.value = None
    problem.solve(solver=SemismoothNewton(tol=1e-7))
    assert problem.status == cp.OPTIMAL
    assert problem.value == pytest.approx(expected, rel=1e-5, abs=1e-7)
    proof = certificate(problem)
    assert proof.relative_gap is not None
    assert -1e-12 <= proof.relative_gap <= 2e-7


@pytest.mark.parametrize("outputs", [1, 2])
def test_cells_with_weights_of_their_own_are_one_program(outputs: int) -> None:
    """Pooled and plain cells side by side, both signs, in any order."""
    X, patterns = rows_and_patterns()
    rng = np.random.default_rng(6)
    shape = (M, outputs) if outputs > 1 else (M,)
    y = rng.standard_normal(shape)
    cells = [(averaging(), X, patterns), (uneven(), X, ~patterns), (sp.eye_array(M), X[:M], patterns[:M])]
    weights = [cp.Variable((D * outputs, P), name=f"{sign}{k}") for sign in "VW" for k in range(3)]
    order = [4, 1, 0, 3, 5, 2]
    prediction = sum(
        (1.0 if k < 3 else -1.0) * (cells[k % 3][0] @ gated(*cells[k % 3][1:], weights[k])) for k in order
    )
    norms = [cp.sum(cp.norm(U[D * k : D * (k + 1)], 2, axis=0)) for U in weights for k in range(outputs)]
    problem = cp.Problem(cp.Minimize(cp.sum_squares(prediction - y) + 2.0 * sum(norms)))
    problem.solve(solver=cp.CLARABEL)
    expected = problem.value
    for variable in weights:
        variable.value = None
    problem.solve(solver=SemismoothNewton(tol=1e-7))
    assert problem.status == cp.OPTIMAL
    assert problem.value == pytest.approx(expected, rel=1e-6)
    assert certificate(problem).relative_gap == pytest.approx(0.0, abs=2e-7)


def test_other_methods_take_them_or_say_what_does() -> None:
    X, patterns = rows_and_patterns()
    y, U = np.random.default_rng(5).standard_normal(M), cp.Variable((D, P))
    fit = cp.sum_squares(averaging() @ gated(X, patterns, U) - y)
    problem = cp.Problem(cp.Minimize(fit + cp.sum(cp.norm(U, 2, axis=0))))
    problem.solve(solver=RFISTA(tol=1e-6))
    assert problem.status == cp.OPTIMAL
    with pytest.raises(cp.SolverError, match="predictions are pooled; use SemismoothNewton"):
        problem.solve(solver=BlockDescent())
