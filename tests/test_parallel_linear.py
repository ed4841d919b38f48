"""Deep linear networks: closed forms, planted optima, recovered layers, non-convex training, certificates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import minimize

import convexnn_models as cnn
from convexnn_models.deep_network import DeepNetwork, parallel_branches, standard_layers
from convexnn_solvers import RFISTA, AugmentedLagrangian, Auto, certificate
from convexnn_solvers.status import Status

Array = NDArray[np.float64]
DEPTHS = [2, 3, 4, 5]


def data(n: int, d: int, c: int, seed: int, spread: float = 1.0) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, d)) * np.geomspace(1.0, 1.0 / spread, d)
    return X, X @ rng.standard_normal((d, c)) + 0.3 * rng.standard_normal((n, c))


@pytest.mark.parametrize("depth", DEPTHS)
def test_one_branch_per_singular_value_costs_the_nuclear_norm(depth: int) -> None:
    M = np.random.default_rng(depth).standard_normal((5, 3))
    singular = np.linalg.svd(M, compute_uv=False)
    parallel = DeepNetwork(parallel_branches(M, depth), (5, 3))
    np.testing.assert_allclose(parallel.predict(np.eye(5)), M, atol=1e-13)
    assert len(parallel.branches) == 3
    assert parallel.depth == depth
    assert parallel.penalty == pytest.approx(depth / 2 * singular.sum(), rel=1e-13)
    standard = DeepNetwork((standard_layers(M, depth),), (5, 3))
    np.testing.assert_allclose(standard.predict(np.eye(5)), M, atol=1e-13)
    assert standard.weight_decay == pytest.approx(depth / 2 * np.sum(singular ** (2 / depth)), rel=1e-13)
    if depth > 2:
        assert standard.penalty > parallel.penalty * 1.01  # everything in one branch costs more


@pytest.mark.parametrize("depth", DEPTHS)
def test_interpolation_values_are_attained_and_bounded(depth: int) -> None:
    X, _ = data(8, 5, 1, seed=depth)
    Y = X @ np.random.default_rng(1).standard_normal((5, 3))
    found = cnn.linear_interpolation(X, Y, depth)
    np.testing.assert_allclose(X @ found.matrix, Y, atol=1e-11)
    assert found.parallel_network.penalty == pytest.approx(found.parallel, rel=1e-12)
    assert found.standard_network.weight_decay == pytest.approx(found.standard, rel=1e-12)
    for network in (found.parallel_network, found.standard_network):
        np.testing.assert_allclose(network.predict(X), Y, atol=1e-11)
    if depth == 2:
        assert found.standard_gap == pytest.approx(0.0, abs=1e-12)
        assert found.standard == pytest.approx(found.parallel, rel=1e-12)
    else:
        assert found.standard_gap > 0.01 * found.standard


@pytest.mark.parametrize("depth", [3, 4])
def test_the_interpolation_values_are_those_of_the_programs(depth: int) -> None:
    """The parallel program, and the standard network's dual for a fixed norm of its first layers."""
    rng = np.random.default_rng(5)
    X = rng.standard_normal((4, 7))  # many solutions
    Y = rng.standard_normal((4, 3))
    found = cnn.linear_interpolation(X, Y, depth)
    model = cnn.parallel_linear(X, depth, outputs=3)
    problem = model.interpolation(Y)
    problem.solve(solver=cp.CLARABEL)
    assert problem.value == pytest.approx(found.parallel, rel=1e-6)
    np.testing.assert_allclose(model.variables[0].value, found.matrix, atol=1e-4)
    T = cp.Variable((4, 3))
    dual = cp.Problem(cp.Maximize(cp.sum(cp.multiply(T, Y))), [cp.sigma_max(X.T @ T) <= 1.0])
    dual.solve(solver=cp.CLARABEL)
    t = np.geomspace(1e-2, 1e2, 200_001)
    least = float(np.min((depth - 2) / 2 * t**2 + float(str(dual.value)) * t ** -(depth - 2.0)))
    assert found.standard_dual == pytest.approx(least, rel=1e-6)


def test_a_single_direction_has_no_gap_at_any_depth() -> None:
    X, _ = data(6, 4, 1, seed=0)
    found = cnn.linear_interpolation(X, X @ np.array([1.0, -2.0, 0.5, 0.0]), 5)
    assert found.standard_gap == pytest.approx(0.0, abs=1e-12)


def trained(X: Array, Y: Array, reg: float, depth: int, branches: int, seed: int) -> float:
    """The best penalised parallel network of 15 non-convex trainings."""
    (n, d), c = X.shape, Y.shape[1]
    m = 3
    shapes = [(d, m)] + [(m, m)] * (depth - 2) + [(m, c)]
    sizes = [a * b for a, b in shapes]
    rng = np.random.default_rng(seed)

    def unpack(v: Array) -> list[list[Array]]:
        parts = np.split(v, np.cumsum(sizes * branches)[:-1])
        return [
            [p.reshape(s) for p, s in zip(parts[b * depth : (b + 1) * depth], shapes, strict=True)]
            for b in range(branches)
        ]

    def objective(v: Array) -> tuple[float, Array]:
        nets = unpack(v)
        residual = sum((np.linalg.multi_dot([X, *W]) for W in nets), -Y)
        value = float(np.sum(residual**2)) / (2 * n)
        slopes: list[Array] = []
        for W in nets:
            for k, layer in enumerate(W):
                norm = float(np.linalg.norm(layer))
                value += reg / 2 * norm**depth
                before = np.linalg.multi_dot([X, *W[:k]]) if k else X
                after = np.linalg.multi_dot([*W[k + 1 :], np.eye(c)]) if k < depth - 1 else np.eye(c)
                slopes.append(
                    (
                        before.T @ residual @ after.T / n + reg * depth / 2 * norm ** (depth - 2) * layer
                    ).ravel()
                )
        return value, np.concatenate(slopes)

    best = np.inf
    for _ in range(15):
        start = 0.7 * rng.standard_normal(sum(sizes) * branches)
        result = minimize(objective, start, jac=True, method="L-BFGS-B", options={"maxiter": 2000})
        best = min(best, float(result.fun))
    return best


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_the_penalised_value_is_that_of_the_best_trained_network(depth: int) -> None:
    X, Y = data(12, 3, 2, seed=3)
    model = cnn.parallel_linear(X, depth, outputs=2)
    model.problem(Y, 0.05)
    value = cnn.solve_parallel_linear(model).certificate.primal
    best = trained(X, Y, 0.05, depth, branches=3, seed=4)
    assert value * (1.0 - 1e-9) <= best <= value * (1.0 + 1e-4)


def planted(n: int, d: int, c: int, reg: float, depth: int, seed: int) -> tuple[Array, Array, float]:
    """Targets with known optimal value: theta on the sphere ``||X^T theta||_2 = reg L / 2``, M along it."""
    rng = np.random.default_rng(seed)
    X, theta = rng.standard_normal((n, d)), rng.standard_normal((n, c))
    U, singular, Vt = np.linalg.svd(X.T @ theta, full_matrices=False)
    theta *= reg * depth / 2 / singular[0]
    M = 1.3 * np.outer(U[:, 0], Vt[0])
    Y = X @ M + n * theta
    return X, Y, float(np.sum(theta * Y) - n / 2 * np.sum(theta**2))


@pytest.mark.parametrize(("n", "d", "c"), [(20, 4, 3), (5, 9, 2), (30, 4, 1), (1, 1, 1)])
def test_planted_optima_are_found_and_certified(n: int, d: int, c: int) -> None:
    X, Y, value = planted(n, d, c, reg=0.1, depth=3, seed=n)
    model = cnn.parallel_linear(X, 3, outputs=c)
    model.problem(Y, 0.1)
    fit = cnn.solve_parallel_linear(model, tol=1e-10)
    assert fit.status is Status.OPTIMAL
    assert fit.certificate.primal == pytest.approx(value, rel=1e-9)
    network = cnn.recover(model)
    assert len(network.branches) == 1
    assert network.objective(X, Y, 0.1) == pytest.approx(value, rel=1e-9)


OPTIONS: list[dict[str, Any]] = [
    {},
    {"bias": True},
    {"output_bias": True},
    {"outputs": 3, "output_bias": True},
]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("reg", [1e-3, 0.05])
def test_solvers_agree_and_the_network_has_the_value(options: dict[str, Any], reg: float) -> None:
    c = options.get("outputs", 1)
    X, Y = data(25, 5, c, seed=6)
    y = Y + 1.0 if c > 1 else Y[:, 0] + 1.0
    model = cnn.parallel_linear(X, 3, **options)
    problem = model.problem(y, reg)
    assert problem.is_dcp(dpp=True)
    fit = cnn.solve_parallel_linear(model, tol=1e-9)
    assert fit.status is Status.OPTIMAL
    assert fit.certificate.primal == pytest.approx(float(problem.objective.value), rel=1e-10)
    for solver, settings, tol in ((cp.CLARABEL, {}, 1e-6), (cp.SCS, {"eps": 1e-7}, 1e-4)):
        problem.solve(solver=solver, **settings)
        assert problem.value == pytest.approx(fit.certificate.primal, rel=tol)
        proof = cnn.parallel_linear_certificate(model)
        assert proof.relative_gap is not None
        assert -1e-12 <= proof.relative_gap <= tol
        network = cnn.recover(model)
        assert network.objective(X, y, reg) == pytest.approx(proof.primal, rel=2e-8)
        np.testing.assert_allclose(network.predict(X), model.prediction.value, atol=1e-3)


@pytest.mark.parametrize("options", [{"outputs": 3}, {"outputs": 3, "output_bias": True}, {}])
@pytest.mark.parametrize("make", ["parallel", "nuclear"])
def test_the_general_solvers_take_nuclear_norms(make: str, options: dict[str, Any]) -> None:
    """Cold starts, an interior-point solver as reference, and the network's own objective."""
    rng = np.random.default_rng(8)
    X, Y = rng.standard_normal((40, 4)), rng.standard_normal((40, 3))
    if make == "parallel":
        model: cnn.ConvexModel = cnn.parallel_linear(X, 3, **options)
    else:
        model = cnn.gated_relu(X, cnn.sample_gates(X, 5, seed=0), grouping="nuclear", **options)
    y = Y if model.outputs == 3 else Y[:, 0]
    problem = model.problem(y, 0.02)
    problem.solve(solver=cp.CLARABEL)
    value = float(problem.value)
    for solver in (RFISTA(tol=1e-6), AugmentedLagrangian(tol=1e-6), Auto(tol=1e-6)):
        for variable in model.variables:
            variable.value = None
        problem.solve(solver=solver)
        proof = certificate(problem)
        assert problem.status == "optimal"
        assert proof.relative_gap is not None
        assert -1e-12 <= proof.relative_gap <= 1e-6
        assert problem.value == pytest.approx(value, rel=2e-6)
        assert cnn.recover(model).objective(X, y, 0.02) == pytest.approx(value, rel=2e-6)


@pytest.mark.parametrize("reg", [0.3, 1e-2])
def test_orthogonal_features_have_a_closed_form(reg: float) -> None:
    """``X^T X = q I``: thresholding at ``n reg L / 2``; for other data that is not the optimum."""
    rng = np.random.default_rng(7)
    X = 2.0 * np.linalg.qr(rng.standard_normal((20, 4)))[0]
    Y = X @ rng.standard_normal((4, 3)) + 0.2 * rng.standard_normal((20, 3))
    model = cnn.parallel_linear(X, 4, outputs=3)
    problem = model.problem(Y, reg)
    fit = cnn.solve_parallel_linear(model, tol=1e-12)
    assert fit.iterations == 1
    assert fit.certificate.relative_gap is not None
    assert fit.certificate.relative_gap <= 1e-12
    problem.solve(solver=cp.CLARABEL)
    assert problem.value == pytest.approx(fit.certificate.primal, rel=1e-6)


@pytest.mark.parametrize("spread", [1.0, 1e2, 1e4])
@pytest.mark.parametrize("reg", [1e-1, 1e-4])
def test_ill_conditioned_data_is_certified(spread: float, reg: float) -> None:
    X, Y = data(120, 30, 6, seed=8, spread=spread)
    model = cnn.parallel_linear(X, 3, outputs=6)
    model.problem(Y, reg)
    fit = cnn.solve_parallel_linear(model)
    assert fit.status is Status.OPTIMAL
    assert fit.iterations <= 500


def test_no_point_and_no_candidate_can_fool_the_certificate() -> None:
    X, Y, value = planted(15, 4, 3, reg=0.2, depth=4, seed=1)
    model = cnn.parallel_linear(X, 4, outputs=3)
    model.problem(Y, 0.2)
    rng = np.random.default_rng(2)
    for _ in range(300):
        model.variables[0].save_value(rng.standard_normal((4, 3)) * 10.0 ** rng.uniform(-3, 1))
        wild = rng.standard_normal((15, 3)) * 10.0 ** rng.uniform(-3, 3)
        proof = cnn.parallel_linear_certificate(model, [wild])
        assert proof.dual is not None
        assert proof.dual <= value * (1.0 + 1e-12) <= proof.primal * (1.0 + 2e-12)


def test_zero_is_optimal_from_the_largest_useful_reg_on() -> None:
    X, Y = data(20, 4, 2, seed=9)
    model = cnn.parallel_linear(X, 3, outputs=2)
    largest = 2.0 / 3.0 * float(np.linalg.norm(X.T @ Y, 2)) / 20
    for factor, zero in ((1.01, True), (0.99, False)):
        model.problem(Y, factor * largest)
        assert cnn.solve_parallel_linear(model).status is Status.OPTIMAL
        assert (float(np.abs(model.variables[0].value).max()) == 0.0) is zero


@pytest.mark.parametrize("X", [np.zeros((4, 2)), np.ones((4, 3)), np.ones((1, 1)), np.eye(3)[:, :1]])
def test_degenerate_data_is_solved(X: Array) -> None:
    model = cnn.parallel_linear(X, 3, output_bias=True)
    model.problem(np.arange(float(X.shape[0])), 0.05)
    fit = cnn.solve_parallel_linear(model)
    assert fit.status is Status.OPTIMAL
    network = cnn.recover(model)
    assert network.objective(X, np.arange(float(X.shape[0])), 0.05) == pytest.approx(fit.certificate.primal)


def test_limits_and_other_losses_are_honest() -> None:
    X, Y = data(120, 30, 6, seed=8, spread=1e3)
    model = cnn.parallel_linear(X, 3, outputs=6)
    model.problem(Y, 1e-4)
    short = cnn.solve_parallel_linear(model, max_iter=5)
    assert short.status is Status.ITERATION_LIMIT
    assert short.certificate.relative_gap is not None
    assert short.certificate.relative_gap > 1e-8
    assert cnn.solve_parallel_linear(model, time_limit=1e-9).status is Status.TIME_LIMIT
    labels = np.sign(Y)
    model.problem(labels, 1e-2, loss="logistic").solve(solver=cp.CLARABEL)
    proof = cnn.parallel_linear_certificate(model)
    assert proof.relative_gap is not None
    assert -1e-12 <= proof.relative_gap <= 1e-5
    hinge = model.problem(labels, 1e-2, loss="hinge").solve(solver=cp.CLARABEL)
    proof = cnn.parallel_linear_certificate(model)
    assert proof.dual is not None  # loose, because only the residual is known as a dual point
    assert 0.0 < proof.dual <= hinge * (1.0 + 1e-9)


X0, Y0 = np.ones((4, 2)), np.arange(4.0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: cnn.parallel_linear(X0, 1), "depth must be at least 2"),
        (lambda: cnn.parallel_linear(X0[:, 0], 3), "shape"),
        (lambda: cnn.linear_interpolation(X0, Y0, 3), "not in the range"),
        (lambda: cnn.linear_interpolation(X0, np.ones(3), 3), "Y must have shape"),
        (lambda: cnn.solve_parallel_linear(cnn.parallel_linear(X0, 3)), "model.problem"),
        (lambda: cnn.recover(cnn.parallel_linear(X0, 3)), "solve a problem"),
        (lambda: solved(0.0), "reg must be positive"),
        (lambda: solved(0.1, "huber"), "huber"),
        (lambda: DeepNetwork(((np.ones((2, 3)), np.ones((2, 1))),), (2, 1)), "must chain"),
        (lambda: DeepNetwork((), (2, 1)).predict(np.ones((3, 5))), "2 columns"),
    ],
)
def test_bad_input_is_one_clear_sentence(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def solved(reg: float, loss: str = "squared") -> cnn.ParallelLinearFit:
    model = cnn.parallel_linear(X0, 3)
    model.problem(Y0, reg, loss=loss)
    return cnn.solve_parallel_linear(model)
