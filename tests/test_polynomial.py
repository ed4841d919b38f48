"""Polynomial networks: planted optima, other solvers, non-convex training, certificates and bad input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import minimize

import convexnn_models as cnn
from convexnn_models.polynomial_bounds import response_bound, sphere_maximum, squared_loss_bound
from convexnn_models.polynomial_features import (
    CellFeatures,
    CentredFeatures,
    QuadraticActivation,
    cell_features,
    centred_features,
)
from convexnn_solvers.status import Status

Array = NDArray[np.float64]
RELU_LIKE = (0.09, 0.5, 0.47)


def maximum_by_pencil(Q: Array) -> tuple[float, Array]:
    """The maximum of ``(u, 1)^T Q (u, 1)`` over the unit sphere, and where, through one eigenvalue problem.

    With ``(eta - A) u = b``, ``||u|| = 1`` at the maximum, ``eta`` is the largest real eigenvalue of
    ``[[A, I], [b b^T, A]]``; another way than the package's.
    """
    h = Q.shape[0] - 1
    A, b = Q[:h, :h], Q[:h, h]
    values = np.linalg.eigvals(np.block([[A, np.eye(h)], [np.outer(b, b), A]]))
    eta = float(values.real[np.abs(values.imag) <= 1e-7 * (1.0 + np.abs(values))].max())
    direction = np.linalg.solve(eta * np.eye(h) - A, b)
    u: Array = np.asarray(direction / np.linalg.norm(direction), dtype=np.float64)
    return float(u @ A @ u + 2.0 * b @ u + Q[h, h]), u


def quadratic_form(patches: Array, theta: Array, coefficients: tuple[float, float, float]) -> Array:
    """``sum_i theta_i Q_i`` for patches (n, K, h), sample by sample."""
    a, b, c = coefficients
    h = patches.shape[2]
    total = np.zeros((h + 1, h + 1))
    for sample, weight in zip(patches, theta, strict=True):
        for x in sample:
            Q = np.zeros((h + 1, h + 1))
            Q[:h, :h] = a * np.outer(x, x)
            Q[:h, h] = Q[h, :h] = 0.5 * b * x
            Q[h, h] = c
            total += weight / sample.shape[0] * Q
    return total


def planted(
    n: int, K: int, h: int, coefficients: tuple[float, float, float], seed: int
) -> tuple[Array, Array, float, float]:
    """Patches, targets, reg and the optimal value: one optimal neuron, theta as its own certificate."""
    rng = np.random.default_rng(seed)
    patches, theta = rng.standard_normal((n, K, h)), rng.standard_normal(n) / n
    ends = [maximum_by_pencil(sign * quadratic_form(patches, theta, coefficients)) for sign in (1.0, -1.0)]
    k = int(ends[1][0] > ends[0][0])
    reg, u = ends[k]
    a, b, c = coefficients
    t = patches @ u
    y = (1.0, -1.0)[k] * 1.7 * (a * t * t + b * t + c).mean(axis=1) + n * theta
    return patches, y, reg, float(theta @ y - 0.5 * n * theta @ theta)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("h", [1, 2, 5, 12])
def test_the_bound_on_the_sphere_is_the_maximum(h: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    Q = rng.standard_normal((h + 1, h + 1))
    Q += Q.T
    truth, _ = maximum_by_pencil(Q)
    bound = sphere_maximum(Q)
    assert truth - 1e-13 * (1.0 + abs(truth)) <= bound <= truth + 1e-9 * (1.0 + abs(truth))
    u = rng.standard_normal((h, 2000))
    u /= np.linalg.norm(u, axis=0)
    z = np.vstack([u, np.ones(2000)])
    assert np.max(np.sum(z * (Q @ z), axis=0)) <= bound


def every_kind(patches: Array, coefficients: tuple[float, float, float]) -> list[tuple[CellFeatures, bool]]:
    """One patch, averages, and both ways to centre them; whether they are centred."""
    activation = QuadraticActivation(*coefficients)
    single, average = cell_features(patches, ((1,), (0, 2)), activation)
    stored, _ = centred_features(patches, ((1,), (0, 2)), activation)
    return [(single, False), (average, False), (stored, True), (CentredFeatures(single), True)]


@pytest.mark.parametrize("coefficients", [RELU_LIKE, (1.0, 0.0, 0.0), (0.0, 1.0, 0.5), (0.25, 1.0, 1.0)])
def test_features_act_as_their_matrices(coefficients: tuple[float, float, float]) -> None:
    rng = np.random.default_rng(17)
    patches = rng.standard_normal((300, 3, 4))
    W = rng.standard_normal((5, 5))
    W, theta, less = W @ W.T, rng.standard_normal(300), rng.standard_normal(300)
    for position, (features, centred) in enumerate(every_kind(patches, coefficients)):
        cell = patches[:, [0, 2]] if position == 1 else patches[:, [1]]
        Q = np.stack([quadratic_form(cell[[i]], np.ones(1), coefficients) for i in range(300)])
        if centred:
            Q -= Q.mean(axis=0)
        np.testing.assert_allclose(features.matrix(), Q.reshape(300, 25), atol=1e-13)
        np.testing.assert_allclose(features.apply(W), np.sum(Q * W, axis=(1, 2)), atol=1e-11)
        np.testing.assert_allclose(features.adjoint(theta), np.tensordot(theta, Q, 1), atol=1e-11)
        assert np.all(np.linalg.norm(Q, axis=(1, 2)) <= features.sizes * (1.0 + 1e-12))
        H = np.zeros((300, 300))
        features.add_gram(H, W, less)
        expected = np.einsum("ikl,jkl->ij", Q, W @ Q @ W) - np.outer(less, less)
        np.testing.assert_allclose(np.tril(H), np.tril(expected), atol=1e-10 * np.abs(expected).max())


@pytest.mark.parametrize("linear", [0.0, 1e-9, 0.1])
def test_the_hard_case_of_the_sphere_is_bounded_too(linear: float) -> None:
    """No linear term along the top eigenvector: the maximum is ``top + b^2 / (top - other) + corner``."""
    Q = np.diag([2.0, 1.0, 0.5])
    Q[1, 2] = Q[2, 1] = linear
    bound = sphere_maximum(Q)
    assert 0.0 <= bound - (2.0 + linear**2 / 1.0 + 0.5) <= 1e-12


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


VARIANTS: list[tuple[tuple[float, float, float], dict[str, Any]]] = [
    (RELU_LIKE, {}),
    (RELU_LIKE, {"bias": True, "output_bias": True}),
    ((1.0, 0.0, 0.0), {}),
    ((0.7, 0.0, -0.3), {"output_bias": True}),
    ((-0.5, 0.4, 0.1), {"outputs": 2}),
    ((0.3, -0.4, 0.1), {"cells": cnn.global_pooling(4)}),
    ((0.3, -0.4, 0.1), {"cells": cnn.local_pooling(4, 2), "bias": True}),
    ((0.3, 0.0, 0.1), {"cells": cnn.flatten(4)}),
    ((0.3, -0.4, 0.1), {"cells": cnn.flatten(4), "outputs": 2, "output_bias": True}),
]


def variant(
    coefficients: tuple[float, float, float], options: dict[str, Any]
) -> tuple[cnn.PolynomialModel, Array]:
    rng = np.random.default_rng(11)
    patches = rng.standard_normal((24, 4, 3))
    y = rng.standard_normal((24, 2)) + 1.0
    model = cnn.polynomial(patches if "cells" in options else patches[:, 0], *coefficients, **options)
    return model, y if model.outputs == 2 else y[:, 0]


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
    duals = iter([np.asarray(constraint.dual_value) for constraint in model.constraints])
    theta = np.asarray(model.thetas)
    for k, row in enumerate(model.pairs):
        for cell, pair in zip(model.cells, row, strict=True):
            Q = quadratic_form(model.patches[:, list(cell)], theta[:, k], coefficients)
            slacks = [next(duals), next(duals)]
            etas = [next(duals), next(duals)] if coefficients[1] else [np.zeros(()), np.zeros(())]
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


def test_no_point_and_no_dual_candidate_can_fool_the_certificate() -> None:
    patches, y, reg, value = planted(20, 1, 3, (0.6, -0.5, 0.3), seed=3)
    model = cnn.polynomial(patches[:, 0], 0.6, -0.5, 0.3)
    model.problem(y, reg)
    rng = np.random.default_rng(0)
    for _ in range(150):
        for variable in model.variables:
            noise = rng.standard_normal(variable.shape) * 10.0 ** rng.uniform(-3, 1)
            variable.save_value(noise + noise.T)
        wild = rng.standard_normal(20) * 10.0 ** rng.uniform(-3, 3)
        proof = cnn.polynomial_certificate(model, [wild])
        assert proof.dual is not None
        assert proof.dual <= value * (1.0 + 1e-12) <= proof.primal * (1.0 + 2e-12)


def test_bounds_never_pass_a_network_that_exists() -> None:
    """Centred, pooled and plain features: D(theta) stays below the objective of random networks."""
    rng = np.random.default_rng(6)
    for coefficients, options in VARIANTS:
        model, y = variant(coefficients, options)
        if model.outputs == 2 or model.bias:
            continue
        for _ in range(20):
            theta = rng.standard_normal(24)
            if model.output_bias is not None:
                theta -= theta.mean()
            bound, scaled = squared_loss_bound(model.fitted_features, theta, y, 0.02)
            assert response_bound(model.fitted_features, scaled) <= 0.02 * (1.0 + 1e-9)
            hidden = rng.standard_normal((3, 5))
            network = cnn.PolynomialNetwork(
                model.activation,
                hidden / np.linalg.norm(hidden, axis=0),
                0.1 * rng.standard_normal((5, len(model.cells), 1)),
                cells=model.cells,
                patches=int(model.patches.shape[1]),
                output_bias=None if model.output_bias is None else np.array([y.mean()]),
            )
            assert bound <= network.objective(model.patches, y, 0.02)


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


@pytest.mark.parametrize("loss", ["huber", "logistic", "squared_hinge", "softmax"])
def test_other_losses_are_bounded_too(loss: str) -> None:
    """Close at the optimum, sound everywhere."""
    rng = np.random.default_rng(18)
    X, outputs = rng.standard_normal((30, 3)), 3 if loss == "softmax" else 1
    labels = {"huber": rng.standard_normal(30), "softmax": rng.integers(0, 3, 30)}
    y = labels.get(loss, np.sign(rng.standard_normal(30)))
    model = cnn.polynomial(X, *RELU_LIKE, outputs=outputs)
    problem = model.problem(y, 0.02, loss=loss)
    problem.solve(solver=cp.CLARABEL)
    best = problem.value
    proof = cnn.polynomial_certificate(model)
    assert proof.relative_gap is not None
    assert -1e-12 <= proof.relative_gap <= 1e-4
    for _ in range(30):
        for variable in model.variables:
            noise = rng.standard_normal(variable.shape) * 10.0 ** rng.uniform(-2, 1)
            variable.save_value(noise + noise.T)
        proof = cnn.polynomial_certificate(model)
        assert proof.dual is not None
        assert proof.dual <= best * (1.0 + 1e-6)
        assert best <= proof.primal * (1.0 + 1e-6)


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


X0 = np.ones((4, 2))
P0 = np.ones((4, 3, 2))
LINEAR = cnn.parallel_linear(X0, 2)


def wrong(value: object) -> Any:
    return value


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: cnn.polynomial(X0, 0.0, 0.0, 1.0), "constant"),
        (lambda: cnn.polynomial(X0, np.inf, 0.0, 1.0), "a must be finite"),
        (lambda: cnn.polynomial(P0, *RELU_LIKE), "global_pooling"),
        (lambda: cnn.polynomial(X0, *RELU_LIKE, cells=((0,),)), r"shape \(n, K, h\)"),
        (lambda: cnn.polynomial(P0, *RELU_LIKE, cells=((0,), (3,))), "positions from 0 to 2"),
        (lambda: cnn.polynomial(P0, *RELU_LIKE, cells=((0,), ())), "at least one"),
        (lambda: cnn.polynomial(X0 * np.nan, *RELU_LIKE), "NaN"),
        (lambda: cnn.polynomial(X0, *RELU_LIKE, outputs=0), "outputs must be at least 1"),
        (lambda: cnn.solve_polynomial(cnn.polynomial(X0, *RELU_LIKE)), "model.problem"),
        (lambda: solved(reg=0.0), "reg must be positive"),
        (lambda: solved(tol=-1.0), "tol must be positive"),
        (lambda: solved(loss="huber"), "huber"),
        (lambda: solved(n=21_000, d=210), "dense matrix of side 21000"),
        (lambda: cnn.recover(cnn.polynomial(X0, *RELU_LIKE)), "solve a problem"),
        (lambda: cnn.local_pooling(5, 2), "does not divide"),
        (lambda: cnn.window_pooling(4, 5, 2), "does not divide"),
        (lambda: cnn.image_patches(np.ones((2, 3, 3)), 4), "larger than the images"),
        (lambda: cnn.image_patches(np.ones((2, 3)), 1), "images must have shape"),
        (lambda: network(hidden=np.ones((2, 1))), "norm one"),
        (lambda: network(output=np.ones((1, 1))), "output"),
        (lambda: network().predict(np.ones((3, 5))), "2 features per sample"),
        (lambda: network().objective(X0, np.ones(4), -1.0), "reg must be at least 0"),
        (lambda: cnn.polynomial(P0, 1.0, 0.0, 0.0, cells=wrong("ab")), "of whole numbers"),
        (lambda: cnn.polynomial(P0, 1.0, 0.0, 0.0, cells=wrong(3)), "of whole numbers"),
        (
            lambda: cnn.polynomial(P0, 1.0, 0.0, 0.0, cells=wrong(((0.5,),))),
            "of whole numbers",
        ),
        (lambda: cnn.solve_polynomial(wrong(LINEAR)), r"what polynomial\(X"),
        (lambda: cnn.polynomial_certificate(wrong(LINEAR)), r"what polynomial\(X"),
        (
            lambda: cnn.solve_parallel_linear(wrong(cnn.polynomial(X0, *RELU_LIKE))),
            r"what parallel_linear\(X",
        ),
        (lambda: cnn.parallel_linear_certificate(wrong("M")), r"what parallel_linear\(X"),
    ],
)
def test_bad_input_is_one_clear_sentence(call: Callable[[], object], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        call()


def solved(
    n: int = 4, d: int = 2, reg: float = 0.1, tol: float = 1e-6, loss: str = "squared"
) -> cnn.PolynomialFit:
    model = cnn.polynomial(np.broadcast_to(1.0, (n, d)), *RELU_LIKE)
    model.problem(np.ones(n), reg, loss=loss)
    return cnn.solve_polynomial(model, tol=tol)


def network(hidden: Array | None = None, output: Array | None = None) -> cnn.PolynomialNetwork:
    return cnn.PolynomialNetwork(
        cnn.polynomial(X0, *RELU_LIKE).activation,
        np.array([[1.0], [0.0]]) if hidden is None else hidden,
        np.ones((1, 1, 1)) if output is None else output,
    )


def test_patches_and_windows_are_where_they_should_be() -> None:
    images = np.arange(2 * 4 * 4.0).reshape(2, 4, 4)
    patches = cnn.image_patches(images, 2, stride=2)
    np.testing.assert_array_equal(patches[0], [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]])
    coloured = cnn.image_patches(np.stack([images, -images], axis=3), 3)
    assert coloured.shape == (2, 4, 18)
    assert set(np.abs(coloured[0, 0]).tolist()) == {0.0, 1.0, 2.0, 4.0, 5.0, 6.0, 8.0, 9.0, 10.0}
    assert cnn.window_pooling(2, 4, 2) == ((0, 1, 4, 5), (2, 3, 6, 7))
    assert cnn.local_pooling(4, 2) == ((0, 1), (2, 3))
    assert cnn.flatten(2) == ((0,), (1,))
