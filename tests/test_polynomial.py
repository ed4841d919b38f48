"""Polynomial networks: planted optima, other solvers, non-convex training, degenerate data, limits."""

from __future__ import annotations

from typing import Any

import cvxpy as cp
import numpy as np
import pytest
from planted_polynomial import RELU_LIKE, VARIANTS, Array, planted, quadratic_form, variant
from scipy.optimize import minimize

import convexnn_models as cnn
from convexnn_models.polynomial_bounds import response_bound
from convexnn_solvers.status import Status


@pytest.mark.parametrize("coefficients", [RELU_LIKE, (1.0, -0.5, 0.0), (-0.4, 0.3, 0.2), (0.0, 1.0, 0.3)])
@pytest.mark.parametrize(("n", "K", "h"), [(30, 1, 3), (200, 1, 2), (6, 1, 9), (25, 4, 3)])
def test_planted_optima_are_found(n: int, K: int, h: int, coefficients: tuple[float, float, float]) -> None:
    patches, y, reg, value = planted(n, K, h, coefficients, seed=n + h)
    model = cnn.polynomial(patches, *coefficients, cells=cnn.global_pooling(K))
    model.problem(y, reg)
    fit = cnn.solve_polynomial(model, tol=1e-9)
    assert fit.status is Status.OPTIMAL
    assert fit.certificate.primal == pytest.approx(value, rel=1e-8)
    assert fit.certificate.dual is not None
    assert fit.certificate.dual <= value * (1.0 + 1e-12)
    assert value <= fit.certificate.primal * (1.0 + 1e-12)


@pytest.mark.parametrize(("coefficients", "options"), VARIANTS)
def test_all_solvers_agree_and_are_certified(
    coefficients: tuple[float, float, float], options: dict[str, Any]
) -> None:
    model, y = variant(coefficients, options)
    problem = model.problem(y, 0.02)
    assert problem.is_dcp(dpp=True)
    fit = cnn.solve_polynomial(model, tol=1e-9)
    assert fit.status is Status.OPTIMAL
    assert problem.status == cp.OPTIMAL
    assert fit.certificate.primal == pytest.approx(problem.value, rel=1e-12)
    for solver, settings, tol in ((cp.CLARABEL, {}, 1e-6), (cp.SCS, {"eps": 1e-7}, 1e-5)):
        problem.solve(solver=solver, **settings)
        assert problem.value == pytest.approx(fit.certificate.primal, rel=tol)
        proof = cnn.polynomial_certificate(model)
        assert proof.relative_gap is not None
        assert -1e-12 <= proof.relative_gap <= tol


@pytest.mark.parametrize(("coefficients", "options"), VARIANTS)
def test_the_constraints_hold_their_multipliers(
    coefficients: tuple[float, float, float], options: dict[str, Any]
) -> None:
    """``S = reg E + eta J -+ Q(theta)``, positive semidefinite and complementary; not unique where Z = 0."""
    model, y = variant(coefficients, options)
    model.problem(y, 0.02)
    cnn.solve_polynomial(model, tol=1e-9)
    definite, traces = (
        iter([np.asarray(c.dual_value) for c in model.constraints if c.ndim == axes]) for axes in (2, 0)
    )
    theta = np.asarray(model.thetas)
    for k, row in enumerate(model.pairs):
        for cell, pair in zip(model.cells, row, strict=True):
            Q = quadratic_form(model.patches[:, list(cell)], theta[:, k], coefficients)
            slacks = [next(definite), next(definite)]
            etas = [next(traces), next(traces)] if coefficients[1] else [np.zeros(()), np.zeros(())]
            for sign, S, eta, Z in zip((1.0, -1.0), slacks, etas, pair, strict=True):
                expected = -sign * Q
                expected[-1, -1] += 0.02 - eta
                expected[:-1, :-1] += float(eta) * np.eye(Q.shape[0] - 1)
                if not coefficients[1]:
                    expected = expected[:-1, :-1] + expected[-1, -1] * np.eye(Q.shape[0] - 1)
                np.testing.assert_allclose(S, expected, atol=1e-11)
                assert float(np.linalg.eigvalsh(S)[0]) >= -1e-12
                assert 0.0 <= float(np.sum(S * Z.value)) <= 1e-8


@pytest.mark.parametrize("outputs", [1, 3])
def test_several_outputs_are_separate_problems(outputs: int) -> None:
    rng = np.random.default_rng(1)
    X, Y = rng.standard_normal((20, 3)), rng.standard_normal((20, outputs))
    total = 0.0
    for k in range(outputs):
        one = cnn.polynomial(X, *RELU_LIKE)
        one.problem(Y[:, k], 0.05)
        total += cnn.solve_polynomial(one).certificate.primal
    model = cnn.polynomial(X, *RELU_LIKE, outputs=outputs)
    model.problem(Y, 0.05)
    assert cnn.solve_polynomial(model).certificate.primal == pytest.approx(total, rel=1e-7)


def test_the_pure_quadratic_program_is_a_nuclear_norm() -> None:
    rng = np.random.default_rng(2)
    X, y = rng.standard_normal((30, 4)), rng.standard_normal(30)
    M = cp.Variable((4, 4), symmetric=True)
    forms = cp.hstack([cp.sum(cp.multiply(np.outer(x, x), M)) for x in X])
    other = cp.Problem(cp.Minimize(cp.sum_squares(forms - y) / 60 + 0.1 * cp.normNuc(M)))
    other.solve(solver=cp.CLARABEL)
    model = cnn.polynomial(X, 1.0, 0.0, 0.0)
    model.problem(y, 0.1)
    assert cnn.solve_polynomial(model).certificate.primal == pytest.approx(other.value, rel=1e-6)


def best_of_restarts(
    patches: Array, y: Array, reg: float, coefficients: tuple[float, float, float], seed: int
) -> float:
    """Non-convex training; directions are normalised, and |alpha| = p^2 + q^2 at alpha = p^2 - q^2."""
    a, b, c = coefficients
    n, _, h = patches.shape
    m = 2 * (h + 1)
    rng = np.random.default_rng(seed)

    def objective(v: Array) -> tuple[float, Array]:
        U, p, q = v[: h * m].reshape(h, m), v[h * m : h * m + m], v[h * m + m :]
        norms = np.linalg.norm(U, axis=0)
        unit = U / norms
        t = patches @ unit
        hidden = (a * t * t + b * t + c).mean(axis=1)
        residual = hidden @ (p * p - q * q) - y
        value = residual @ residual / (2 * n) + reg * (p @ p + q @ q)
        back = hidden.T @ residual / n
        slopes = (2 * a * t + b) * residual[:, None, None] / n
        d_unit = np.einsum("nkh,nkm->hm", patches, slopes) / patches.shape[1] * (p * p - q * q)
        d_U = (d_unit - unit * np.sum(unit * d_unit, axis=0)) / norms
        return value, np.concatenate([d_U.ravel(), 2 * p * (back + reg), 2 * q * (reg - back)])

    best = np.inf
    for _ in range(25):
        start = rng.standard_normal(h * m + 2 * m)
        result = minimize(objective, start, jac=True, method="L-BFGS-B", options={"maxiter": 3000})
        best = min(best, float(result.fun))
    return best


@pytest.mark.parametrize("coefficients", [RELU_LIKE, (1.0, 0.0, 0.0), (0.5, -1.0, 0.2)])
@pytest.mark.parametrize("K", [1, 3])
def test_the_value_is_that_of_the_best_trained_network(
    coefficients: tuple[float, float, float], K: int
) -> None:
    rng = np.random.default_rng(8)
    patches, y = rng.standard_normal((12, K, 2)), rng.standard_normal(12)
    model = cnn.polynomial(patches, *coefficients, cells=cnn.global_pooling(K))
    model.problem(y, 0.02)
    value = cnn.solve_polynomial(model).certificate.primal
    best = best_of_restarts(patches, y, 0.02, coefficients, seed=9)
    assert value * (1.0 - 1e-7) <= best <= value * (1.0 + 1e-4)


@pytest.mark.parametrize("options", [{}, {"output_bias": True}])
def test_zero_is_optimal_from_the_largest_useful_reg_on(options: dict[str, Any]) -> None:
    rng = np.random.default_rng(12)
    X, y = rng.standard_normal((30, 3)), rng.standard_normal(30) + 2.0
    model = cnn.polynomial(X, *RELU_LIKE, **options)
    null = y - y.mean() if options else y
    largest = response_bound(model.fitted_features, null / 30)
    for factor, zero in ((1.01, True), (0.98, False)):
        model.problem(y, factor * largest)
        fit = cnn.solve_polynomial(model)
        assert fit.status is Status.OPTIMAL
        assert (fit.certificate.primal >= float(null @ null) / 60 * (1.0 - 1e-7)) is zero


@pytest.mark.parametrize(
    ("X", "y"),
    [
        (np.ones((1, 1)), np.array([3.0])),
        (np.zeros((4, 2)), np.ones(4)),
        (np.eye(3), np.zeros(3)),
        (np.tile([[1.0, 2.0]], (6, 1)), np.arange(6.0)),
        (1e4 * np.eye(5)[:, :3], np.arange(5.0)),
        (1e-4 * np.eye(5)[:, :3], np.arange(5.0)),
    ],
    ids=["one sample", "zero features", "zero targets", "repeated rows", "large", "small"],
)
def test_degenerate_data_is_solved_and_certified(X: Array, y: Array) -> None:
    model = cnn.polynomial(X, *RELU_LIKE)
    model.problem(y, 0.05)
    before = X.copy(), y.copy()
    fit = cnn.solve_polynomial(model)
    assert fit.status is Status.OPTIMAL
    assert abs(fit.certificate.primal - (fit.certificate.dual or 0.0)) <= 1e-8 * (
        1.0 + fit.certificate.primal
    )
    network = cnn.recover(model)
    assert network.objective(X, y, 0.05) == pytest.approx(fit.certificate.primal, rel=1e-7, abs=1e-12)
    np.testing.assert_array_equal(before[0], X)
    np.testing.assert_array_equal(before[1], y)


def test_limits_return_the_best_certified_point() -> None:
    rng = np.random.default_rng(13)
    model = cnn.polynomial(rng.standard_normal((40, 6)), *RELU_LIKE)
    model.problem(rng.standard_normal(40), 1e-3)
    short = cnn.solve_polynomial(model, max_iter=3)
    assert short.status is Status.ITERATION_LIMIT
    assert short.iterations == 3
    assert model.latest.status == "user_limit"
    assert short.certificate.relative_gap is not None
    assert short.certificate.relative_gap > 1e-8
    assert cnn.solve_polynomial(model, time_limit=1e-9).status is Status.TIME_LIMIT
    assert cnn.solve_polynomial(model).status is Status.OPTIMAL


def test_verbose_prints_one_line_per_iteration(capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(14)
    model = cnn.polynomial(rng.standard_normal((10, 2)), *RELU_LIKE)
    model.problem(rng.standard_normal(10), 0.1)
    fit = cnn.solve_polynomial(model, verbose=True)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == fit.iterations + 2
    assert len({len(line) for line in lines}) == 1


def test_reg_is_a_parameter_and_other_losses_solve() -> None:
    rng = np.random.default_rng(15)
    X, y = rng.standard_normal((25, 3)), np.sign(rng.standard_normal(25))
    model = cnn.polynomial(X, *RELU_LIKE)
    problem = model.problem(y, 0.1)
    problem.solve(solver=cp.CLARABEL)
    model.reg.value = 0.01
    problem.solve(solver=cp.CLARABEL)
    first = cnn.solve_polynomial(model).certificate.primal
    assert problem.value == pytest.approx(first, rel=1e-6)
    hinge = model.problem(y, 0.01, loss="hinge")
    hinge.solve(solver=cp.CLARABEL)
    proof = cnn.polynomial_certificate(model)
    assert proof.dual is not None  # loose, because only the residual is known as a dual point
    assert 0.0 < proof.dual <= hinge.value * (1.0 + 1e-9)
    network = cnn.recover(model)
    assert network.objective(X, y, 0.01, loss="hinge") == pytest.approx(hinge.value, rel=1e-6)


def test_interpolation_has_the_smallest_penalty() -> None:
    rng = np.random.default_rng(16)
    X, y = rng.standard_normal((4, 3)), rng.standard_normal(4)
    model = cnn.polynomial(X, *RELU_LIKE)
    problem = model.interpolation(y)
    problem.solve(solver=cp.CLARABEL)
    np.testing.assert_allclose(model.prediction.value, y, atol=1e-6)
    small = model.problem(y, 1e-6)
    small.solve(solver=cp.CLARABEL)
    assert float(model.penalty.value) == pytest.approx(problem.value, rel=1e-3)
