"""Weights of samples: Newton's method and Auto against certificates, repetitions and Clarabel."""

from __future__ import annotations

from typing import Any

import cvxpy as cp
import numpy as np
import pytest
from numpy.typing import NDArray

import convexnn_models as cnn
from convexnn_solvers import Auto, SemismoothNewton, certificate

Float = NDArray[np.float64]

BEND: Any = 0.4
LOSSES = {
    "squared": lambda p, y, w: cp.sum(cp.multiply(w, cp.square(p - y))),
    "huber": lambda p, y, w: cp.sum(cp.multiply(w, cp.huber(p - y, BEND))),
    "logistic": lambda p, y, w: cp.sum(cp.multiply(w, cp.logistic(cp.multiply(-np.sign(y), p)))),
}
ABSOLUTE = {"absolute": lambda p, y, w: cp.sum(cp.multiply(w, cp.abs(p - y)))}


def data(outputs: int = 1, n: int = 30, d: int = 3) -> tuple[Float, Float, Float]:
    """Features, targets, and weights of which a fifth are zero and others differ by orders of magnitude."""
    rng = np.random.default_rng(outputs)
    X = rng.standard_normal((n, d))
    y = np.maximum(X @ rng.standard_normal((d, 3)), 0.0) @ np.array([1.0, -1.0, 0.5]) - 0.3
    weights = rng.exponential(size=n) ** 2 * (np.arange(n) % 5 > 0)
    return X, y if outputs == 1 else np.column_stack([y, np.sin(3.0 * y)]), weights


def network(X: Float, relu: bool, outputs: int = 1, shared: bool = True, bias: bool = False) -> Any:
    options: dict[str, Any] = {"outputs": outputs, "output_bias": bias}
    options["grouping"] = "shared" if shared else "per-output"
    return (cnn.relu if relu else cnn.gated_relu)(X, cnn.sample_gates(X, 6, seed=1), **options)


def weighted(model: Any, y: Float, weights: Any, loss: str = "squared", reg: float = 0.02) -> Any:
    """The mean of weighted losses; weights of samples count for all outputs."""
    w = weights if y.ndim == 1 else cp.reshape(weights, (len(y), 1), order="F") @ np.ones((1, y.shape[1]))
    fit = (LOSSES | ABSOLUTE)[loss](model.prediction, y, w) / len(y)
    return cp.Problem(cp.Minimize(fit + reg * model.penalty), model.constraints)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize(("outputs", "shared"), [(1, True), (2, True), (2, False)])
@pytest.mark.parametrize("relu", [False, True], ids=["gated", "relu"])
def test_weighted_programs_are_solved(relu: bool, outputs: int, shared: bool, bias: bool, loss: str) -> None:
    X, y, w = data(outputs)
    problem = weighted(network(X, relu, outputs, shared, bias), y, w, loss)
    value = problem.solve(solver=SemismoothNewton(tol=1e-7))
    assert problem.status == cp.OPTIMAL
    assert certificate(problem).relative_gap == pytest.approx(0.0, abs=1e-7)
    assert value == pytest.approx(problem.solve(solver=cp.CLARABEL), rel=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("relu", [False, True], ids=["gated", "relu"])
def test_whole_weights_are_repetitions(relu: bool, loss: str) -> None:
    X, y, _ = data()
    times = 1 + np.arange(len(y)) % 3
    model = network(X, relu, bias=True)
    value = weighted(model, y, times.astype(float), loss).solve(solver=SemismoothNewton(tol=1e-8))
    repeated, Y = np.repeat(X, times, axis=0), np.repeat(y, times)
    gates = cnn.Gates(model.gates.vectors, np.repeat(model.gates.patterns, times, axis=0), "repeated")
    other = (cnn.relu if relu else cnn.gated_relu)(repeated, gates, output_bias=True)
    fit = LOSSES[loss](other.prediction, Y, np.ones(len(Y))) / len(y)
    problem = cp.Problem(cp.Minimize(fit + 0.02 * other.penalty), other.constraints)
    assert value == pytest.approx(problem.solve(solver=SemismoothNewton(tol=1e-8)), rel=2e-8)


@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize("loss", [*LOSSES, "absolute"])
def test_samples_of_weight_zero_have_no_say(loss: str, bias: bool) -> None:
    X, y, w = data()
    model = network(X, relu=True, bias=bias)
    value = weighted(model, y, w, loss).solve(solver=SemismoothNewton(tol=1e-8))
    wrong = np.where(w == 0.0, 1e6 * y, y)
    problem = weighted(model, wrong, w, loss)
    found = problem.solve(solver=SemismoothNewton(tol=1e-8), warm_start=False)
    assert found == pytest.approx(value, rel=1e-12)
    theta = problem.solver_stats.extra_stats["dual_point"].thetas[0]
    assert not theta[w == 0.0].any()
    assert theta.any()


@pytest.mark.parametrize("relu", [False, True], ids=["gated", "relu"])
def test_weights_may_be_parameters(relu: bool) -> None:
    X, y, w = data()
    parameter = cp.Parameter(len(y), nonneg=True)
    problem = weighted(network(X, relu), y, parameter)
    for value in (w, w[::-1], 5.0 * w, np.ones(len(y)), w):
        parameter.value = value
        found = problem.solve(solver=SemismoothNewton(tol=1e-8))
        fresh = weighted(network(X, relu), y, value).solve(solver=SemismoothNewton(tol=1e-8))
        assert found == pytest.approx(fresh, rel=2e-8)


@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("relu", [False, True], ids=["gated", "relu"])
def test_auto_takes_newton_or_what_is_as_good(relu: bool, loss: str, bias: bool) -> None:
    X, y, w = data()
    problem = weighted(network(X, relu, bias=bias), y, w, loss, reg=0.003)
    problem.solve(solver=Auto(tol=1e-7))
    ran = [run["engine"] for run in problem.solver_stats.extra_stats["engines"]]
    exact = not relu and loss == "squared" and not bias  # like samples without weights, for all engines
    assert ran == (["ADMM"] if exact else ["SemismoothNewton"])
    assert certificate(problem).relative_gap == pytest.approx(0.0, abs=1e-7)


@pytest.mark.parametrize("spread", [1e-6, 1e6])
def test_weights_of_any_size_are_taken(spread: float) -> None:
    X, y, w = data()
    w = np.where(np.arange(len(y)) < 3, spread, 1.0) * w
    problem = weighted(network(X, relu=True, bias=True), y, w, reg=0.02 * float(np.mean(w)))
    problem.solve(solver=SemismoothNewton(tol=1e-6))
    assert problem.status == cp.OPTIMAL
    assert certificate(problem).relative_gap == pytest.approx(0.0, abs=1e-6)
