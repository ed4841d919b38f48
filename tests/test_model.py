"""Models against the same programs in plain CVXPY, and the named losses against NumPy."""

from __future__ import annotations

import sys
import threading
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
from interior_point import optimum
from small_models import CASES, D_FEATURES, GATES, Case, Float, N, build, data, name

import convexnn_models as cnn
from convexnn_models import losses
from convexnn_solvers import Auto


def written_out(case: Case, X: Float, y: Float, reg: float, gates: cnn.Gates) -> cp.Problem:
    """The program of the text books, gate by gate and output by output."""
    data = np.hstack([X, np.ones((N, 1))]) if case.bias else X
    c, slope = case.outputs, 0.2 if case.kind == "leaky" else 0.0
    signs = [1.0] if case.kind == "gated" else [1.0, -1.0]
    prediction: Any = np.zeros((N, c))
    penalty: Any = 0.0
    constraints: list[Any] = []
    for bits in gates.patterns.T:
        for sign in signs:
            U = cp.Variable((data.shape[1], c))
            prediction = prediction + sign * np.diag(np.where(bits, 1.0, slope)) @ data @ U
            if case.kind != "gated":
                constraints.append(np.diag(np.where(bits, 1.0, -1.0)) @ data @ U >= 0)
            if case.grouping == "shared":
                penalty = penalty + cp.norm(U, "fro")
            elif case.grouping == "nuclear":
                penalty = penalty + cp.normNuc(U)
            else:
                penalty = penalty + sum(cp.norm(U[:, k]) for k in range(c))
    if case.output_bias:
        prediction = prediction + np.ones((N, 1)) @ cp.Variable((1, c))
    loss = cp.sum_squares(prediction - y.reshape(N, c)) / (2 * N)
    return cp.Problem(cp.Minimize(loss + reg * penalty), constraints)


@pytest.mark.parametrize("case", CASES, ids=name)
def test_the_problem_is_the_written_out_one(case: Case) -> None:
    X, y = data(case)
    model = build(case, X)
    assert model.gates is not None
    d, n_outputs = X.shape[1] + case.bias, case.outputs
    weights = [v for v in model.variables if v is not model.output_bias]
    assert [w.shape for w in weights] == [(d * n_outputs, GATES)] * (1 if case.kind == "gated" else 2)
    assert model.prediction.shape == ((N,) if n_outputs == 1 else (N, n_outputs))
    problem = model.problem(y, reg=0.02)
    assert problem.is_dpp()
    assert problem.parameters() == [model.reg]
    assert optimum(problem) == pytest.approx(optimum(written_out(case, X, y, 0.02, model.gates)), rel=1e-8)


@pytest.mark.parametrize("case", [CASES[1], CASES[4], CASES[8]], ids=name)
def test_scs_solves_the_same_object(case: Case) -> None:
    X, y = data(case)
    problem = build(case, X).problem(y, reg=0.05)
    expected = optimum(problem)
    problem.solve(solver=cp.SCS, eps_abs=1e-8, eps_rel=1e-8)
    assert problem.value == pytest.approx(expected, rel=1e-5)


def test_reg_is_a_parameter_of_each_problem() -> None:
    X, y = data(CASES[6])
    model = build(CASES[6], X)
    with pytest.raises(AttributeError, match=r"model.problem\(y, reg\)"):
        _ = model.reg
    first = model.problem(y, reg=0.02)
    reg_of_first = model.reg
    fresh = optimum(model.problem(y, reg=0.1))
    optimum(first)
    assert model.reg is not reg_of_first
    reg_of_first.value = 0.1
    assert optimum(first) == pytest.approx(fresh, rel=1e-8)
    shared = cp.Parameter(nonneg=True, value=0.1)
    problem = model.problem(y, reg=shared)
    assert model.reg is shared
    assert optimum(problem) == pytest.approx(fresh, rel=1e-8)


def test_a_variant_is_plain_cvxpy() -> None:
    X, y = data(CASES[0])
    model = build(CASES[0], X)
    loss = cp.sum(cp.huber(model.prediction - y)) / N
    problem = cp.Problem(
        cp.Minimize(loss + 0.01 * model.penalty), [*model.constraints, model.prediction >= 0.1]
    )
    optimum(problem)
    assert model.prediction.value.min() >= 0.1 - 1e-8


@pytest.mark.parametrize("case", [CASES[0], CASES[3], CASES[6]], ids=name)
def test_interpolation_is_the_limit_of_no_regularisation(case: Case) -> None:
    X, _ = data(case)
    model = build(case, X)
    weights = np.random.default_rng(0).standard_normal(model.variables[0].shape)
    target = cnn.gated_relu(X, cnn.sample_gates(X, GATES), outputs=case.outputs)
    target.variables[0].value = weights
    if case.kind == "relu":  # reachable: the gates themselves, in their cones
        assert model.gates is not None
        model.variables[0].value, model.variables[1].value = model.gates.vectors, 0.0 * model.gates.vectors
        Y = model.prediction.value
    else:
        Y = target.prediction.value
    smallest = optimum(model.interpolation(Y))
    assert np.abs(model.prediction.value - Y).max() < 1e-7
    optimum(model.problem(Y, reg=1e-7))
    assert model.penalty.value == pytest.approx(smallest, rel=1e-3)


def softmax_by_hand(f: Float, y: Any) -> float:
    return float(np.mean([np.log(np.exp(row).sum()) - row[k] for row, k in zip(f, y, strict=True)]))


F1 = np.array([0.3, -2.0, 1.5, 0.0])
R1 = np.array([1.0, -1.0, 0.5, 0.2])
S1 = np.array([1.0, -1.0, -1.0, 1.0])
F3 = np.random.default_rng(0).standard_normal((4, 3))
K3 = np.array([2, 0, 1, 1])
LOSSES: list[tuple[str, dict[str, Any], Float, Any, float]] = [
    ("squared", {}, F1, R1, 0.5 * float(np.mean((F1 - R1) ** 2))),
    ("squared", {}, F3, F3 + 1.0, 1.5),
    ("absolute", {}, F1, R1, float(np.mean(np.abs(F1 - R1)))),
    ("huber", {"threshold": 1e6}, F1, R1, 0.5 * float(np.mean((F1 - R1) ** 2))),
    ("huber", {"threshold": 0.5}, np.array([3.0, 0.1]), np.zeros(2), 0.5 * (0.5 * 2.75 + 0.005)),
    ("quantile", {"level": 0.9}, np.zeros(2), np.array([1.0, -1.0]), 0.5 * (0.9 + 0.1)),
    ("logistic", {}, F1, S1, float(np.mean(np.log1p(np.exp(-S1 * F1))))),
    ("hinge", {}, F1, S1, float(np.mean(np.maximum(0.0, 1.0 - S1 * F1)))),
    ("squared_hinge", {}, F1, S1, float(np.mean(np.maximum(0.0, 1.0 - S1 * F1) ** 2))),
    ("softmax", {}, F3, K3, softmax_by_hand(F3, K3)),
    ("softmax", {}, F3, np.eye(3)[K3], softmax_by_hand(F3, K3)),
]


@pytest.mark.parametrize(("loss", "options", "prediction", "y", "expected"), LOSSES)
def test_losses_are_means_over_the_samples(
    loss: str, options: dict[str, Any], prediction: Float, y: Any, expected: float
) -> None:
    assert losses.expression(loss, prediction, y, **options).value == pytest.approx(expected, rel=1e-12)
    symbolic = cp.Variable(prediction.shape, value=prediction)
    expression = losses.expression(loss, symbolic, y, **options)
    assert expression.value == pytest.approx(expected, rel=1e-12)
    assert expression.is_convex()


def test_threads_evaluate_objectives_of_their_own() -> None:
    """The variable that holds the prediction is one for all."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((N, D_FEATURES))
    model = cnn.gated_relu(X, cnn.sample_gates(X, GATES, seed=0))
    model.problem(rng.standard_normal(N), 0.1)
    training = model.training
    assert training is not None
    predictions = [rng.standard_normal(N) for _ in range(2)]
    alone = [training.objective(p, 1.0) for p in predictions]
    found: list[set[float]] = [set(), set()]

    def evaluate(k: int) -> None:
        found[k].update(training.objective(predictions[k], 1.0) for _ in range(500))

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=evaluate, args=(k,)) for k in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert found == [{alone[0]}, {alone[1]}]


@pytest.mark.parametrize("formulation", [cnn.gated_relu, cnn.relu])
def test_a_loss_of_one_entry_is_one_number(formulation: Any) -> None:
    """Of shape (1,) or (1, 1) it was solved, but the model could not be recovered."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((30, 3))
    model, y = formulation(X, cnn.sample_gates(X, 6, seed=0)), X[:, 0]
    expected = model.problem(y, 0.02).solve(solver=Auto())
    for share in (np.full((1, 30), 1.0 / 60.0), np.full(30, 1.0 / 60.0)):

        def loss(prediction: Any, targets: Any, share: Any = share) -> Any:
            return cp.reshape(share @ cp.square(prediction - targets), (1,) * share.ndim, order="F")

        assert model.problem(y, 0.02, loss).solve(solver=Auto()) == pytest.approx(expected, rel=2e-4)
        assert cnn.recover(model).objective(X, y, 0.02, loss) == pytest.approx(expected, rel=2e-4)
