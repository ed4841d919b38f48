"""Parameters, repeated solves, sums of problems and several models in one problem."""

from __future__ import annotations

from typing import Any

import cvxpy as cp
import numpy as np
import pytest
from interior_point import optimum
from numpy.typing import NDArray

import convexnn_models as cnn
from convexnn_solvers import ADMM, RFISTA, AugmentedLagrangian, Auto, SemismoothNewton, certificate
from convexnn_solvers.reading import compiler

Float = NDArray[np.float64]
RNG = np.random.default_rng(5)
X: Float = RNG.standard_normal((24, 3))
OTHER: Float = RNG.standard_normal((24, 2))
Y: Float = np.sin(2.0 * X[:, 0]) + 0.1 * RNG.standard_normal(24)
GATES = cnn.sample_gates(X, 8, seed=0)


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every problem that was compiled, once per compilation."""
    seen: list[Any] = []
    original = compiler.compile_problem

    def counted(problem: Any, *rest: Any) -> Any:
        seen.append(problem)
        return original(problem, *rest)

    monkeypatch.setattr(compiler, "compile_problem", counted)
    return seen


@pytest.mark.parametrize("solver", [RFISTA(), AugmentedLagrangian(), Auto()], ids=repr)
def test_the_second_solve_compiles_nothing(solver: Any, compilations: list[Any]) -> None:
    model = cnn.gated_relu(X, GATES)
    problem = model.problem(Y, reg=0.05)
    problem.solve(solver=solver)
    first = len(compilations)
    assert first == 1
    for reg in (0.02, 0.1):
        model.reg.value = reg
        problem.solve(solver=solver)
        assert problem.status == cp.OPTIMAL
    assert len(compilations) == first


@pytest.mark.parametrize("change", ["other rows", "other units", "one entry", "equal sums"])
@pytest.mark.parametrize(
    ("formulation", "solver", "backend"),
    [
        (cnn.gated_relu, SemismoothNewton, "numpy"),
        (cnn.gated_relu, ADMM, "numpy"),
        (cnn.gated_relu, ADMM, "torch"),
        (cnn.relu, Auto, "numpy"),
        (cnn.relu, SemismoothNewton, "numpy"),
        (cnn.relu, AugmentedLagrangian, "torch"),
    ],
)
def test_features_that_were_written_into_are_read_again(
    formulation: Any, solver: Any, backend: str, change: str
) -> None:
    """They are held by reference: what is kept for the next solve was that of the old ones."""
    pytest.importorskip("array_api_compat" if backend == "torch" else "numpy")
    own = np.round(8.0 * X) / 8.0  # such numbers are added without rounding
    model = formulation(own, cnn.sample_gates(own, 8, seed=0))
    problem = model.problem(Y, reg=0.05)
    chosen = solver(tol=1e-5, backend=backend) if backend == "torch" else solver(tol=1e-5)
    problem.solve(solver=chosen)
    if change == "other rows":
        own[:] = own[::-1].copy()
    elif change == "other units":
        own *= np.array([0.5, 2.0, 3.0])
    elif change == "equal sums":  # by rows and by columns, as of categories that samples exchange
        own[:2, :2] += np.array([[4.0, -4.0], [-4.0, 4.0]])
    else:
        own[3, 1] += 2.0
    problem.solve(solver=chosen)
    assert problem.status == cp.OPTIMAL
    found = certificate(problem).primal
    assert found == pytest.approx(optimum(cp.Problem(problem.objective, problem.constraints)), rel=1e-4)


def test_parameters_wherever_the_rules_allow_them(compilations: list[Any]) -> None:
    """Labels, two weights of penalties, offsets and bounds of constraints, each of them twice."""
    x = cp.Variable(3)
    labels, lam, level = cp.Parameter(24), cp.Parameter(nonneg=True), cp.Parameter(nonneg=True)
    right = cp.Parameter(2)
    fit = cp.sum(cp.abs(X @ x - labels)) / 24
    penalty = lam * cp.norm(x) + level * cp.norm1(x)
    problem = cp.Problem(
        cp.Minimize(fit + penalty), [OTHER[:2, :1].T @ x[:2] <= right[:1], cp.norm(x) <= right[1]]
    )
    solver = AugmentedLagrangian(tol=1e-6)
    for k in range(2):
        labels.value = Y + k
        lam.value, level.value = 0.05 + 0.1 * k, 0.02
        right.value = np.array([0.05, 0.4 + 0.3 * k])
        problem.solve(solver=solver)
        assert problem.status == cp.OPTIMAL
        assert problem.value == pytest.approx(optimum(problem, 1e-9, 1e-8), rel=3e-5)
    assert len(compilations) == 1


def agreed(problem: Any, solver: Any) -> None:
    problem.solve(solver=solver)
    assert problem.status == cp.OPTIMAL
    ours, found = problem.value, certificate(problem)
    assert found.relative_gap is not None
    assert found.relative_gap <= 1.01e-4
    assert ours == pytest.approx(optimum(problem, 1e-9, 1e-8), rel=2e-4)


def test_sums_of_problems() -> None:
    """Two problems on their own, with a shared variable, and scaled: their sums are problems like others."""
    first = cnn.gated_relu(X, GATES).problem(Y, reg=0.05)
    second = cnn.relu(X, GATES).problem(-Y, reg=0.1)
    parts = [optimum(first, 1e-9, 1e-8), optimum(second, 1e-9, 1e-8)]
    agreed(first + second, AugmentedLagrangian())
    assert optimum(first + second, 1e-8) == pytest.approx(sum(parts), rel=1e-6)
    agreed(first + 0.5 * second, AugmentedLagrangian())
    agreed(first + first, RFISTA())


def test_an_ensemble_of_models() -> None:
    """The mean of three networks on different gates, fitted together."""
    models = [cnn.gated_relu(X, cnn.sample_gates(X, 6, seed=k)) for k in range(3)]
    prediction = sum(model.prediction for model in models) / 3
    penalty = sum(model.penalty for model in models)
    objective = cp.sum_squares(prediction - Y) / 48 + 0.02 * penalty
    agreed(cp.Problem(cp.Minimize(objective)), RFISTA())


def test_two_views_that_have_to_agree() -> None:
    """One network per view, squared losses, and a bound on how much their predictions differ."""
    one, two = cnn.gated_relu(X, GATES), cnn.relu(OTHER, cnn.sample_gates(OTHER, 5, seed=1))
    fit = sum(cp.sum_squares(model.prediction - Y) / 48 + 0.02 * model.penalty for model in (one, two))
    apart = cp.norm(one.prediction - two.prediction) <= 1.0
    agreed(cp.Problem(cp.Minimize(fit), [*one.constraints, *two.constraints, apart]), AugmentedLagrangian())
