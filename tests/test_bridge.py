"""Gated and ReLU optima of the same gates: the order of the three values, and where the first two meet."""

from __future__ import annotations

from typing import Any

import cvxpy as cp
import numpy as np
import pytest
from numpy.typing import NDArray

import convexnn_models as cnn

Array = NDArray[np.float64]


def data(name: str) -> tuple[Array, Array]:
    rng = np.random.default_rng(3)
    X = rng.standard_normal((12, 2 if name != "wide" else 15))
    y = np.abs(X[:, 0]) + 0.3 * rng.standard_normal(12)
    return (X, np.where(y > np.median(y), 1.0, -1.0)) if name == "labels" else (X, y)


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("plain", {}),
        ("plain", {"bias": True, "output_bias": True}),
        ("plain", {"loss": "huber", "threshold": 0.5}),
        ("labels", {"loss": "logistic"}),
        ("wide", {}),
    ],
)
def test_the_relu_optimum_is_between_gated_and_decomposed(name: str, kinds: dict[str, Any]) -> None:
    X, y = data(name)
    bias = bool(kinds.get("bias", False))
    gates = cnn.sample_gates(X, 8, bias=bias) if name == "wide" else cnn.all_gates(X, bias=bias)
    regs = (1e-3, 1e-2, 1e-1)
    points = cnn.gated_bridge(X, y, regs, gates, **kinds)
    for reg, point in zip(regs, points, strict=True):
        assert point.reg == reg
        assert point.gated <= point.relu_upper * (1.0 + 1e-9)
        assert point.relu_lower <= point.relu_upper
        assert point.relu_upper - point.relu_lower <= 1e-5 * point.relu_upper
        assert point.relu_lower <= point.decomposed * (1.0 + 1e-9)
        assert point.decomposed <= min(point.raw, point.zero) * (1.0 + 1e-9)
        assert point.relu_lower <= point.approximate * (1.0 + 1e-9)
        assert point.approximate <= min(point.approximate_raw, point.zero) * (1.0 + 1e-9)
        assert point.raw <= point.approximate_raw * (1.0 + 1e-6) <= 1.5 * point.raw
        assert point.approximate <= 1.1 * point.decomposed
        assert 0.0 <= point.gap <= 1.0
    assert points[0].gated < points[1].gated < points[2].gated
    if name == "plain" and not kinds:  # with every pattern p* is the optimum over all networks
        best = cnn.train_to_global_optimum(X, y, regs[1], gap=1e-5)
        assert best.upper == pytest.approx(points[1].relu_upper, rel=2e-5)
        assert points[1].gated < 0.99 * best.lower  # the gated optimum is no ReLU optimum


# Two opposite samples and one across: of each program the best fit of (1, -1, 1) is known.
X_TIE, Y_TIE = np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]]), np.array([1.0, -1.0, 1.0])


def optima(gate: list[float], reg: float) -> tuple[float, float]:
    vector = np.array(gate)[:, None]
    gates = cnn.Gates(vector, X_TIE @ vector >= 0.0, "one gate")
    values = []
    for formulation in (cnn.gated_relu, cnn.relu):
        problem = formulation(X_TIE, gates).problem(Y_TIE, reg)
        problem.solve(solver=cp.CLARABEL)
        values.append(float(problem.value))
    return values[0], values[1]


def test_without_regularisation_the_optima_meet_for_gates_with_an_interior() -> None:
    for reg in (1e-2, 1e-4, 1e-6):
        gated, exact = optima([0.5, 1.0], reg)  # pattern 1, 0, 1: its cone is a quadrant
        assert gated <= exact + 1e-9
        assert abs(gated - 1.0 / 6.0) <= 2.0 * reg
        assert abs(exact - 1.0 / 6.0) <= 2.0 * reg


def test_without_regularisation_a_gate_through_samples_keeps_them_apart() -> None:
    gated, exact = optima([0.0, 1.0], 1e-7)  # ties count as active: 1, 1, 1, whose cone is a half-line
    assert gated == pytest.approx(0.0, abs=1e-6)
    assert exact == pytest.approx(1.0 / 3.0, abs=1e-6)


def test_random_gates_meet_as_regularisation_vanishes() -> None:
    X, y = data("plain")
    gates = cnn.sample_gates(X, 4, seed=1)  # too few to fit exactly
    points = cnn.gated_bridge(X, y, (1e-1, 1e-3, 1e-5, 1e-7), gates, solver=cp.CLARABEL)
    apart = [(p.relu_upper - p.gated) / p.relu_upper for p in points]
    assert apart[0] > 1e-2
    assert apart[-1] < 1e-3
    assert points[-1].gated > 1e-3
    assert points[-1].gap < 1e-2


def quartic(prediction: Any, y: Any) -> Any:
    return cp.sum(cp.power(prediction - y, 4))


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda g: cnn.gated_bridge(X_TIE, Y_TIE, [0.0], g), "regs must be positive"),
        (lambda g: cnn.gated_bridge(X_TIE, Y_TIE, [0.1], g, loss=quartic, solver=cp.CLARABEL), "no bound"),
        (lambda g: cnn.gated_bridge(X_TIE, Y_TIE, [0.1], g, bias=True), "features"),
    ],
)
def test_bad_arguments_are_named(call: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        call(cnn.sample_gates(X_TIE, 2))


def test_a_gate_through_samples_cannot_be_decomposed() -> None:
    vector = np.array([[0.0], [1.0]])
    gates = cnn.Gates(vector, X_TIE @ vector >= 0.0, "one gate")
    with pytest.raises(ValueError, match="passes through a sample"):
        cnn.gated_bridge(X_TIE, Y_TIE, [1e-3], gates)
