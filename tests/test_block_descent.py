"""Block descent against planted optima, semismooth Newton, and data that break naive code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
from numpy.typing import NDArray
from planted import LossName, plant, problem_of

import convexnn_models as cnn
from convexnn_solvers import BlockDescent, SemismoothNewton, Status, UnsupportedProblem, certificate
from convexnn_solvers.block_descent import method as block_descent_module
from convexnn_solvers.block_descent.sweeps import gate_basis, machine_code, radius
from convexnn_solvers.gated_programs.fits import SquaredFit
from convexnn_solvers.gated_programs.program import GatedProgram

Float = NDArray[np.float64]


@pytest.fixture(params=["numpy", "machine code"])
def arithmetic(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways to sweep, whatever the size of the data."""
    if request.param == "machine code" and machine_code() is None:
        pytest.skip("numba is not installed")
    least = np.inf if request.param == "numpy" else 0
    monkeypatch.setattr(block_descent_module, "_COMPILED_FROM", least)


@pytest.mark.usefixtures("arithmetic")
@pytest.mark.parametrize("loss", ["squared", "huber"])
@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize(("outputs", "shared"), [(1, True), (3, True), (3, False)])
def test_planted_optima_are_found(outputs: int, shared: bool, bias: bool, loss: LossName) -> None:
    planted = plant(3, cones=False, outputs=outputs, shared=shared, loss=loss, bias=bias)
    problem, variables = problem_of(planted)
    value = problem.solve(solver=BlockDescent(tol=1e-9))
    assert problem.status == cp.OPTIMAL
    assert value == pytest.approx(planted.value, rel=2e-9)
    found = tuple(np.asarray(variable.value) for variable in variables)
    prediction = planted.prediction(planted.point)
    np.testing.assert_allclose(planted.prediction(found), prediction, atol=1e-3)


def training_data(seed: int = 0, n: int = 60, d: int = 5) -> tuple[Float, Float]:
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, d))
    y = np.maximum(X @ rng.standard_normal((d, 3)), 0.0) @ np.array([1.0, -1.0, 0.5])
    return X, y + 0.1 * rng.standard_normal(n)


def _program(outputs: int = 1, centred: bool = False, slope: float = 0.0) -> GatedProgram:
    rng = np.random.default_rng(1)
    X = rng.standard_normal((30, 4))
    X[:, 3] = X[:, 0] - X[:, 1]
    patterns = rng.random((30, 5)) < 0.5
    patterns[:, 4] = False
    fit = SquaredFit(rng.standard_normal((30, outputs)), centred)
    return GatedProgram(X, patterns, fit, np.full(5, 2.0), slope=slope)


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("slope", [0.0, 0.3])
def test_a_block_update_is_the_minimum_over_the_block(outputs: int, centred: bool, slope: float) -> None:
    program = _program(outputs, centred, slope)
    Y = program.fit.at(np.zeros(program.fit.shape)).xi
    for gate in range(5):
        basis = gate_basis(program, gate)
        features = program.slopes(np.array([gate])) * program.X
        turned = -(features.T @ Y).T @ basis.basis.T
        h = radius(np.sum(turned**2, axis=0), basis.curvatures, 2.0, 0.0)
        u = (turned * (h / (basis.curvatures * h + 2.0))) @ basis.basis
        if centred:
            features = features - features.mean(axis=0)
        gradient = (features.T @ (features @ u.T + Y)).T
        norm = np.linalg.norm(u)
        if norm == 0.0:
            assert np.linalg.norm(gradient) <= 2.0
        else:
            assert norm == pytest.approx(h, rel=1e-9)
            np.testing.assert_allclose(gradient, -2.0 * u / norm, atol=1e-9)


def _rank_deficient(X: Float, y: Float) -> tuple[Float, Float]:
    return np.hstack([X, X @ np.ones((X.shape[1], 2))]), y


def _repeated_rows(X: Float, y: Float) -> tuple[Float, Float]:
    return np.vstack([X, X, X]), np.concatenate([y, y, -y])


def _uneven_columns(X: Float, y: Float) -> tuple[Float, Float]:
    return X * np.geomspace(1e-4, 1e4, X.shape[1]), y


AWKWARD: dict[str, Callable[[Float, Float], tuple[Float, Float]]] = {
    "as it is": lambda X, y: (X, y),
    "repeated rows": _repeated_rows,
    "rank-deficient": _rank_deficient,
    "zero rows": lambda X, y: (np.where(np.arange(len(X))[:, None] < 8, 0.0, X), y),
    "no signal": lambda X, y: (X, 0.0 * y),
    "huge features": lambda X, y: (1e8 * X, y),
    "tiny features": lambda X, y: (1e-8 * X, y),
    "uneven columns": _uneven_columns,
    "large targets": lambda X, y: (X, 1e6 * y),
    "more features than samples": lambda X, y: (X.T.copy(), y[: X.shape[1]]),
}


@pytest.mark.usefixtures("arithmetic")
@pytest.mark.parametrize("share", [1.0 + 1e-9, 0.3, 0.05])
@pytest.mark.parametrize("name", AWKWARD)
def test_awkward_data_are_solved(name: str, share: float) -> None:
    X, y = AWKWARD[name](*training_data(n=30, d=3))
    model = cnn.gated_relu(X, cnn.sample_gates(X, 6, seed=4))
    largest = cnn.lambda_max(model, y)
    problem = model.problem(y, reg=share * largest if largest > 0.0 else share)
    problem.solve(solver=BlockDescent(tol=1e-6))
    judged = certificate(problem)
    assert problem.status == cp.OPTIMAL
    assert judged.relative_gap is not None
    assert -1e-12 <= judged.relative_gap <= 1e-6
    assert (not model.variables[0].value.any()) == (share > 1.0 or name == "no signal")


@pytest.mark.filterwarnings("ignore:Solution may be inaccurate")
@pytest.mark.parametrize("share", [1e-4, 1e-9])
def test_tiny_regularisation_ends_right_or_with_an_honest_gap(share: float) -> None:
    X, y = training_data()
    model = cnn.gated_relu(X, cnn.sample_gates(X, 15, seed=4))
    problem = model.problem(y, reg=share * cnn.lambda_max(model, y))
    problem.solve(solver=BlockDescent(tol=1e-6, max_iter=60))
    judged = certificate(problem)
    assert judged.relative_gap is not None
    assert judged.relative_gap >= -1e-12
    assert (problem.status == cp.OPTIMAL) == (judged.relative_gap <= 1e-6)


@pytest.mark.filterwarnings("ignore:Solution may be inaccurate")
def test_a_limit_within_a_working_set_returns_what_its_sweeps_reached() -> None:
    X, y = training_data(n=80, d=6)
    model = cnn.gated_relu(X, cnn.sample_gates(X, 60, seed=5))
    problem = model.problem(y, reg=0.1 * cnn.lambda_max(model, y))
    found = []
    for cycles in (0, 1):
        problem.solve(solver=BlockDescent(tol=1e-9, max_iter=cycles), warm_start=False)
        stats = problem.solver_stats.extra_stats
        assert stats["status"] is Status.ITERATION_LIMIT
        found.append(stats["certificate"])
    assert found[1].primal < found[0].primal
    assert found[1].relative_gap < found[0].relative_gap


def test_small_working_sets_are_certified_over_all_gates() -> None:
    X, y = training_data(n=80, d=6)
    model = cnn.gated_relu(X, cnn.sample_gates(X, 300, seed=5))
    problem = model.problem(y, reg=0.1 * cnn.lambda_max(model, y))
    value = problem.solve(solver=BlockDescent(tol=1e-8))
    assert problem.status == cp.OPTIMAL
    assert certificate(problem).relative_gap == pytest.approx(0.0, abs=1e-8)
    assert value == pytest.approx(problem.solve(solver=SemismoothNewton(tol=1e-8)), rel=2e-8)


def test_what_has_no_exact_update_is_refused_by_name() -> None:
    X, y = training_data()
    gates = cnn.sample_gates(X, 15, seed=3)
    programs: dict[str, Any] = {
        "pattern cones": cnn.relu(X, gates).problem(y, 0.1),
        "logistic": cnn.gated_relu(X, gates).problem(np.sign(y), 0.1, "logistic"),
        "without a gradient": cnn.gated_relu(X, gates).problem(y, 0.1, "absolute"),
    }
    for word, problem in programs.items():
        with pytest.raises((cp.SolverError, UnsupportedProblem), match=word):
            problem.solve(solver=BlockDescent())
