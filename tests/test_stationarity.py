"""Stationary networks are optima of the programs of their own patterns and signs; others are not."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import minimize

import convexnn_models as cnn
from convexnn_solvers import certificate

Array = NDArray[np.float64]
#: samples, features, neurons, reg
SETTINGS = [(6, 2, 2, 0.05), (8, 3, 2, 0.03), (10, 2, 3, 0.03)]


def data(n: int, d: int, seed: int) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, d))
    return X, np.sin(2.0 * X[:, 0]) + 0.3 * rng.standard_normal(n)


def trained(X: Array, y: Array, reg: float, m: int, seed: int, steps: int = 20_000) -> cnn.Network:
    """Weight decay and L-BFGS from a random start, which often ends at a kink short of a stationary point."""
    n, d = X.shape

    def objective(v: Array) -> tuple[float, Array]:
        U, a = v[: d * m].reshape(d, m), v[d * m :]
        hidden = np.maximum(X @ U, 0.0)
        residual = hidden @ a - y
        first = X.T @ ((X @ U > 0.0) * np.outer(residual, a)) / n
        gradient = np.concatenate([first.ravel(), hidden.T @ residual / n]) + reg * v
        return float(residual @ residual) / (2 * n) + reg / 2 * float(v @ v), gradient

    start = np.random.default_rng(seed).standard_normal(d * m + m)
    options: Any = {"maxiter": steps, "maxfun": 10 * steps, "ftol": 0.0, "gtol": 1e-12}
    v = minimize(objective, start, jac=True, method="L-BFGS-B", options=options).x
    return cnn.Network(v[: d * m].reshape(d, m), v[d * m :][:, None])


@cache
def judged(setting: tuple[int, int, int, float]) -> list[cnn.Stationarity]:
    n, d, m, reg = setting
    found = []
    for seed in range(30):
        X, y = data(n, d, seed)
        found.append(cnn.stationarity(trained(X, y, reg, m, seed), X, y, reg))
    return found


def stationary() -> list[cnn.Stationarity]:
    """Which starts end here depends on the last bits; about half of them do."""
    return [report for setting in SETTINGS for report in judged(setting) if report.gradient < 1e-6]


def test_stationary_networks_are_optima_of_their_own_programs() -> None:
    assert len(stationary()) >= 10
    for report in stationary():
        gap = report.own.relative_gap
        assert gap is not None
        assert -1e-12 <= gap <= 1e-5
        assert report.own.primal == pytest.approx(report.objective, rel=1e-5)
        live = np.linalg.norm(report.network.W1, axis=0) > 1e-6
        if live.all():
            np.testing.assert_allclose(report.prices, 1.0, atol=1e-4)


@pytest.mark.parametrize("setting", SETTINGS)
def test_other_networks_are_not_by_about_their_gradient(setting: tuple[int, int, int, float]) -> None:
    for report in judged(setting):
        gap = report.own.relative_gap
        assert gap is not None
        if report.gradient > 1e-2:
            assert gap > 1e-8
        assert gap <= 100.0 * report.gradient + 1e-9


def test_the_other_sign_of_the_same_pattern_gains_where_its_price_exceeds_reg() -> None:
    for report in stationary():
        gap = report.both_signs.relative_gap
        assert gap is not None
        if report.opposite_prices.max(initial=0.0) <= 1.0:
            assert gap <= 1e-5
        elif report.opposite_prices.max() > 1.1:
            assert optimum(report.both_problem) < report.objective * (1.0 - 1e-6)
            assert optimum(report.problem) == pytest.approx(report.objective, rel=1e-5)


@pytest.mark.parametrize("reg", [0.05, 0.2])
def test_one_neuron_whose_opposite_gains(reg: float) -> None:
    """Samples e1 and e2, targets 1 and -1: a neuron on e1 with output 1 - 2 reg; the other sign takes e2."""
    size = np.sqrt(1.0 - 2.0 * reg)
    network = cnn.Network(np.array([[size], [0.0]]), np.array([[size]]))
    report = cnn.stationarity(network, np.eye(2), np.array([1.0, -1.0]), reg)
    assert report.gradient <= 1e-14
    assert report.own.relative_gap == pytest.approx(0.0, abs=1e-13)
    np.testing.assert_allclose(report.prices, 1.0)
    np.testing.assert_allclose(report.opposite_prices, 0.5 / reg)
    part = reg**2 + reg * (1.0 - 2.0 * reg)
    assert report.objective == pytest.approx(part + 0.25)
    assert report.both_signs.dual is not None
    assert report.both_signs.dual <= 2.0 * part
    assert optimum(report.both_problem) == pytest.approx(2.0 * part, rel=1e-6)


def optimum(problem: Any) -> float:
    problem.solve(solver=cp.CLARABEL)
    return float(problem.value)


@pytest.mark.parametrize("loss", ["squared", "huber", "logistic"])
@pytest.mark.parametrize("biases", [(False, False), (True, False), (True, True)])
def test_the_program_is_that_of_the_networks_own_blocks(loss: str, biases: tuple[bool, bool]) -> None:
    """Two neurons of one pattern and sign make one block; the bound holds against an independent solver."""
    rng = np.random.default_rng(3)
    X = rng.standard_normal((12, 3))
    y = np.where(rng.standard_normal(12) > 0.0, 1.0, -1.0)
    W1 = np.repeat(rng.standard_normal((3, 4)), [2, 1, 1, 1], axis=1)
    network = cnn.Network(
        W1=W1,
        W2=0.3 * np.array([[1.0], [2.0], [-1.0], [1.0], [0.0]]),
        b1=np.repeat(rng.standard_normal(4), [2, 1, 1, 1]) if biases[0] else None,
        b2=np.array([0.1]) if biases[1] else None,
    )
    report = cnn.stationarity(network, X, y, 0.05, loss=loss)
    assert report.prices.shape == (3,)  # of five neurons two share a block, and one is switched off
    assert report.objective == pytest.approx(report.network.objective(X, y, 0.05, loss))
    assert report.problem.value is None  # nothing was solved, nothing is claimed
    assert certificate(report.problem).primal == pytest.approx(report.objective, rel=1e-12)
    value = optimum(report.problem)
    assert report.own.dual is not None
    assert report.own.dual <= value * (1.0 + 1e-7)
    assert value < report.objective
    assert optimum(report.both_problem) <= value * (1.0 + 1e-7)
    assert "with both signs" in str(report)


def test_pairs_with_both_signs_have_no_opposite() -> None:
    X, y = data(6, 2, 0)
    w = np.random.default_rng(0).standard_normal((2, 1))
    report = cnn.stationarity(cnn.Network(np.hstack([w, w]), np.array([[1.0], [-1.0]])), X, y, 0.1)
    np.testing.assert_array_equal(report.opposite_prices, [0.0, 0.0])
    assert report.own.dual == report.both_signs.dual


def test_the_zero_network_is_its_own_optimum() -> None:
    X, y = data(6, 2, 0)
    report = cnn.stationarity(cnn.Network(np.zeros((2, 1)), np.zeros((1, 1))), X, y, 0.1)
    assert report.gradient == 0.0
    assert report.own.primal == pytest.approx(float(y @ y) / 12)
    assert report.prices.size == 0


X0, Y0 = data(6, 2, 1)
NETWORK = cnn.Network(np.ones((2, 1)), np.ones((1, 1)))
WRONG: list[tuple[Callable[[], object], str]] = [
    (lambda: cnn.stationarity(cnn.Network(np.ones((2, 1)), np.ones((1, 2))), X0, Y0, 0.1), "one output"),
    (lambda: cnn.stationarity(NETWORK, X0[:, :1], Y0, 0.1), "X must have 2 columns"),
    (lambda: cnn.stationarity(NETWORK, X0, Y0[:3], 0.1), "y must have shape"),
    (lambda: cnn.stationarity(NETWORK, X0, Y0, 0.0), "reg must be positive"),
    (
        lambda: cnn.stationarity(NETWORK, X0, np.sign(Y0), 0.1, loss="hinge"),
        "'squared', 'huber' or 'logistic'",
    ),
    (lambda: cnn.stationarity("mine", X0, Y0, 0.1), "network must be a Network"),
]


@pytest.mark.parametrize(("call", "message"), WRONG)
def test_bad_input_is_one_clear_sentence(call: Callable[[], object], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        call()
