"""Three-layer ReLU networks: closed forms on rank-one data, and the exact program against training."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import cvxpy as cp
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import minimize

import convexnn_models as cnn

Array = NDArray[np.float64]


def rank_one(p: Array, q: Array, seed: int = 0) -> tuple[Array, Array]:
    """``X = c a^T`` with ``||a|| = 1`` and targets ``c_i p`` and ``|c_i| q``."""
    a = np.random.default_rng(seed).standard_normal(3)
    c = np.array([1.0, 0.5, -1.0, -2.0, 0.0])
    Y = np.maximum(c, 0.0)[:, None] * p + np.maximum(-c, 0.0)[:, None] * q
    return np.outer(c, a / np.linalg.norm(a)), Y


CASES = [
    ([1.0], [0.0], "one side"),
    ([1.0], [2.0], "same sign"),
    ([1.0], [-1.0], "opposite sign"),
    ([1.0, 0.0], [np.cos(0.3), np.sin(0.3)], "acute"),
    ([1.0, 0.0], [0.0, 3.0], "right"),
    ([1.0, 0.5, 0.0], [-1.0, 0.0, 2.0], "obtuse"),
]


def unpack(v: Array, shapes: list[tuple[int, int]]) -> list[Array]:
    ends = np.cumsum([a * b for a, b in shapes])[:-1]
    return [part.reshape(shape) for part, shape in zip(np.split(v, ends), shapes, strict=True)]


def layers(X: Array, W: list[Array], slope_of: Array) -> tuple[Array, list[Array]]:
    """The residual of a three-layer network, and the gradient of half its squared norm."""
    first = X @ W[0]
    second = np.maximum(first, 0.0) @ W[1]
    residual = np.maximum(second, 0.0) @ W[2] - slope_of
    back = (residual @ W[2].T) * (second > 0.0)
    return residual, [
        X.T @ ((back @ W[1].T) * (first > 0.0)),
        np.maximum(first, 0.0).T @ back,
        np.maximum(second, 0.0).T @ residual,
    ]


def least_weight_decay(X: Array, Y: Array, tries: int) -> float:
    """The least weight decay that non-convex training (a penalty method) finds for an exact fit."""
    shapes = [(X.shape[1], 5), (5, 4), (4, Y.shape[1])]
    rng = np.random.default_rng(1)
    best = np.inf

    def penalised(v: Array, mu: float) -> tuple[float, Array]:
        residual, gradient = layers(X, unpack(v, shapes), Y)
        slope = np.concatenate([g.ravel() for g in gradient]) / mu
        return 0.5 * float(v @ v) + 0.5 * float(np.sum(residual**2)) / mu, v + slope

    for _ in range(tries):
        v = rng.standard_normal(sum(a * b for a, b in shapes))
        for mu in (1e-1, 1e-2, 1e-3, 1e-4, 1e-5):
            result = minimize(
                partial(penalised, mu=mu),
                v,
                jac=True,
                method="L-BFGS-B",
                options={"maxiter": 2000, "ftol": 1e-14},
            )
            v = np.asarray(result.x)
        residual, _ = layers(X, unpack(v, shapes), Y)
        if np.linalg.norm(residual) < 1e-3 * np.linalg.norm(Y):
            best = min(best, 0.5 * float(v @ v))
    return best


@pytest.mark.parametrize(("p", "q", "case"), CASES, ids=[case for *_, case in CASES])
def test_closed_forms_on_rank_one_data(p: list[float], q: list[float], case: str) -> None:
    X, Y = rank_one(np.array(p), np.array(q))
    found = cnn.rank_one_three_layer(X, Y)
    P, Q = float(np.linalg.norm(p)), float(np.linalg.norm(q))
    assert found.dual == pytest.approx(1.5 * (P + Q) ** (2 / 3), rel=1e-12)
    assert found.parallel == pytest.approx(1.5 * (P + Q), rel=1e-12)
    assert found.zero_gap is (case in ("one side", "same sign"))
    assert found.gap == pytest.approx(0.0, abs=1e-12) if found.zero_gap else found.gap > 0.01
    if case in ("opposite sign", "right", "obtuse"):
        assert found.standard == pytest.approx(1.5 * (P ** (2 / 3) + Q ** (2 / 3)), rel=1e-12)
    for network, value in (
        (found.standard_network.weight_decay, found.standard),
        (found.parallel_network.penalty, found.parallel),
    ):
        assert network == pytest.approx(value, rel=1e-12)
    for either in (found.standard_network, found.parallel_network):
        np.testing.assert_allclose(either.predict(X).reshape(Y.shape), Y, atol=1e-13)


@pytest.mark.parametrize(("p", "q", "case"), CASES, ids=[case for *_, case in CASES])
def test_training_finds_the_closed_form_and_nothing_better(p: list[float], q: list[float], case: str) -> None:
    """Also at acute angles, where the value lies strictly between the dual one and that of right angles."""
    X, Y = rank_one(np.array(p), np.array(q))
    value = cnn.rank_one_three_layer(X, Y).standard
    best = least_weight_decay(X, Y, tries=12)
    assert value * (1.0 - 1e-4) <= best <= value * (1.0 + 1e-3), case


@pytest.mark.parametrize("angle", [0.0, 1e-6, 0.1, 0.7, 1.5, np.pi / 2, 2.0, np.pi])
def test_the_value_grows_with_the_angle_from_the_dual_value_to_that_of_right_angles(angle: float) -> None:
    """A minimum over the ratio of the norms on a fine grid, written out from the gauge."""
    p, q = np.array([1.3, 0.0]), 0.6 * np.array([np.cos(angle), np.sin(angle)])
    found = cnn.rank_one_three_layer(*rank_one(p, q))
    z = np.geomspace(1e-2, 1e2, 100_001)
    rows = np.stack([np.tile(p, (z.size, 1)), q / z[:, None]], axis=1)  # t = 1, u = z
    if p @ q > 0.0:
        gauge = np.linalg.svd(rows, compute_uv=False).sum(axis=1)
    else:
        gauge = np.linalg.norm(rows, axis=2).sum(axis=1)
    # minimise (t^2 + u^2) / 2 + gauge / radius over the radius, then over the ratio
    value = 1.5 * float(np.min(np.sqrt(1.0 + z**2) * gauge)) ** (2 / 3)
    assert found.standard == pytest.approx(value, rel=1e-6)
    assert found.dual <= found.standard * (1.0 + 1e-14)


def test_the_parallel_program_has_the_closed_form_on_rank_one_data() -> None:
    X, Y = rank_one(np.array([1.5]), np.array([-0.7]))
    X, y = X[[0, 2, 3]], Y[[0, 2, 3], 0]
    model = cnn.three_layer(X, cnn.all_gates(X))
    problem = model.interpolation(y)
    problem.solve(solver=cp.CLARABEL)
    assert problem.value == pytest.approx(cnn.rank_one_three_layer(X, y).parallel, rel=1e-6)


def best_parallel(X: Array, y: Array, reg: float, tries: int) -> float:
    """Non-convex training of six parallel branches with the cubic penalty."""
    shapes = [(X.shape[1], 6), (6, 1), (1, 1)] * 6
    rng = np.random.default_rng(3)
    n = X.shape[0]

    def objective(v: Array) -> tuple[float, Array]:
        W = unpack(v, shapes)
        branches = [W[k : k + 3] for k in range(0, len(W), 3)]
        rest = y[:, None] - sum(layers(X, b, np.zeros((n, 1)))[0] for b in branches)
        value = float(np.sum(rest**2)) / (2 * n)
        slopes: list[Array] = []
        for b in branches:
            own = layers(X, b, np.zeros((n, 1)))[0]
            # the branch sees -rest as its residual: its own output less (own + rest)
            for layer, slope in zip(b, layers(X, b, own + rest)[1], strict=True):
                norm = float(np.linalg.norm(layer))
                value += reg / 2 * norm**3
                slopes.append((slope / n + 1.5 * reg * norm * layer).ravel())
        return value, np.concatenate(slopes)

    best = np.inf
    for _ in range(tries):
        start = 0.8 * rng.standard_normal(sum(a * b for a, b in shapes))
        best = min(best, float(minimize(objective, start, jac=True, method="L-BFGS-B").fun))
    return best


@pytest.mark.parametrize("seed", [0, 1])
def test_the_parallel_program_is_the_best_trained_network(seed: int) -> None:
    rng = np.random.default_rng(seed)
    X, y = rng.standard_normal((4, 2)), rng.standard_normal(4)
    model = cnn.three_layer(X, cnn.all_gates(X))
    problem = model.problem(y, 0.02)
    problem.solve(solver=cp.CLARABEL)
    best = best_parallel(X, y, 0.02, tries=25)
    assert problem.value * (1.0 - 1e-6) <= best <= problem.value * 1.001
    for prune in (False, True):
        network = cnn.recover(model, prune=prune)
        assert network.objective(X, y, 0.02) == pytest.approx(problem.value, rel=1e-5)
    assert len(network.branches) <= 4


def test_both_solvers_agree_and_a_bias_counts_as_a_feature() -> None:
    rng = np.random.default_rng(5)
    X, y = rng.standard_normal((3, 1)), rng.standard_normal(3)
    model = cnn.three_layer(X, cnn.all_gates(X, bias=True), bias=True)
    problem = model.problem(y, 0.01)
    assert problem.is_dcp(dpp=True)
    problem.solve(solver=cp.SCS, eps=1e-7)
    value = problem.value
    problem.solve(solver=cp.CLARABEL)
    assert value == pytest.approx(problem.value, rel=1e-4)
    ones = np.hstack([X, np.ones((3, 1))])
    other = cnn.three_layer(ones, cnn.all_gates(ones)).problem(y, 0.01)
    other.solve(solver=cp.CLARABEL)
    assert other.value == pytest.approx(problem.value, rel=1e-6)
    network = cnn.recover(model)
    assert network.objective(X, y, 0.01) == pytest.approx(problem.value, rel=1e-5)


def test_fewer_patterns_give_an_upper_bound() -> None:
    rng = np.random.default_rng(6)
    X, y = rng.standard_normal((4, 2)), rng.standard_normal(4)
    gates = cnn.all_gates(X)
    whole = cnn.three_layer(X, gates).problem(y, 0.02)
    whole.solve(solver=cp.CLARABEL)
    some = cnn.three_layer(X, gates, second=rng.random((4, 4)) < 0.5).problem(y, 0.02)
    some.solve(solver=cp.CLARABEL)
    assert whole.value <= some.value * (1.0 + 1e-7)


X0 = np.array([[1.0, 0.0], [2.0, 0.0], [-1.0, 0.0]])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: cnn.rank_one_three_layer(np.eye(3), np.ones(3)), "rank one"),
        (lambda: cnn.rank_one_three_layer(X0, np.array([1.0, 1.0, 0.0])), "proportional"),
        (lambda: cnn.rank_one_three_layer(np.zeros((2, 2)), np.ones(2)), "all zero"),
        (lambda: cnn.rank_one_three_layer(X0, np.ones(2)), "Y must have shape"),
        (lambda: cnn.three_layer(np.ones((13, 1)), cnn.sample_gates(np.ones((13, 1)), 1)), "tiny data"),
        (lambda: large(), "reference program"),
        (lambda: cnn.three_layer(X0, gates0(), second=np.zeros((3, 2), dtype=bool)), "no pattern"),
        (lambda: cnn.three_layer(X0, gates0(), second=np.ones((2, 2), dtype=bool)), "boolean array"),
        (lambda: cnn.recover(cnn.three_layer(X0, gates0())), "solve a problem"),
    ],
)
def test_bad_input_is_one_clear_sentence(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def gates0() -> cnn.Gates:
    return cnn.sample_gates(X0, 2)


def large() -> cnn.ThreeLayerModel:
    X = np.random.default_rng(0).standard_normal((12, 3))
    return cnn.three_layer(X, cnn.sample_gates(X, 10))
