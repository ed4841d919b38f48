"""Hostile calls of the solvers: wrong options, wrong problems, awkward data, spoiled starting values.

A refusal is one sentence and leaves the problem as it was; "optimal" is said only of what is optimal.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
from interior_point import optimum
from numpy.typing import NDArray

import convexnn_models as cnn
from convexnn_solvers import RFISTA, AugmentedLagrangian, certificate

Float = NDArray[np.float64]

RNG = np.random.default_rng(0)
X: Float = RNG.standard_normal((12, 3))
Y: Float = np.maximum(X @ [1.0, -1.0, 0.5], 0.0) + 0.1 * RNG.standard_normal(12)
GATES = cnn.sample_gates(X, 5)


def gated_problem(reg: float = 0.05) -> Any:
    return cnn.gated_relu(X, GATES).problem(Y, reg)


def relu_problem(reg: float = 0.05) -> Any:
    return cnn.relu(X, GATES).problem(Y, reg)


def state(problem: Any) -> tuple[Any, ...]:
    values = (None if v.value is None else v.value.tobytes() for v in problem.variables())
    duals = (None if c.dual_value is None else c.dual_value.tobytes() for c in problem.constraints)
    return (problem.status, problem.value, *values, *duals)


BAD_OPTIONS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"tol": -1}, ValueError, "tol must be a number >= 0"),
    ({"tol": np.nan}, ValueError, "tol must be a number >= 0"),
    ({"tol": "small"}, ValueError, "tol must be a number >= 0"),
    ({"tol": None}, ValueError, "tol must be a number >= 0"),
    ({"max_iter": -1}, ValueError, "max_iter must be an integer >= 0"),
    ({"max_iter": 1.5}, ValueError, "max_iter must be an integer >= 0"),
    ({"max_iter": True}, ValueError, "max_iter must be an integer >= 0"),
    ({"time_limit": -1}, ValueError, "time_limit must be seconds >= 0"),
    ({"time_limit": np.nan}, ValueError, "time_limit must be seconds >= 0"),
    ({"dtype": "float16"}, ValueError, "dtype must be 'float32' or 'float64', not 'float16'"),
    ({"dtype": None}, ValueError, "dtype must be"),
    ({"device": "tpu"}, ValueError, "device must be 'cpu' or 'cuda'"),
    ({"device": None}, ValueError, "device must be 'cpu' or 'cuda', not None"),
    ({"device": 0}, ValueError, "device must be 'cpu' or 'cuda', not 0"),
    ({"backend": "jax"}, ValueError, "backend must be 'numpy' or 'torch'"),
    ({"backend": "numpy", "device": "cuda"}, ValueError, "backend='numpy' runs on device='cpu'"),
    ({"callback": 3}, TypeError, "callback must be a function"),
    ({"max_iters": 3}, TypeError, "no option 'max_iters'; did you mean 'max_iter'"),
    ({"eps": 1.0}, TypeError, "no option 'eps'[.] The options"),
    ({"gp": True}, cp.SolverError, "without gp=True"),
]


@pytest.mark.parametrize("solved", [False, True])
@pytest.mark.parametrize(("options", "error", "message"), BAD_OPTIONS)
def test_a_wrong_option_is_refused_and_nothing_changes(
    options: dict[str, Any], error: type[Exception], message: str, solved: bool
) -> None:
    problem = relu_problem()
    if solved:
        problem.solve(solver=cp.CLARABEL)
    before = state(problem)
    for way in ({"solver": AugmentedLagrangian()}, {"method": "AugmentedLagrangian"}):
        with pytest.raises(error, match=message) as refusal:
            problem.solve(**way, **options)
        assert "\n" not in str(refusal.value)
        assert state(problem) == before


@pytest.mark.parametrize(
    "options",
    [
        {"tol": np.float32(1e-3)},
        {"tol": np.float64(1e-3)},
        {"max_iter": np.int64(10**6)},
        {"time_limit": np.inf},
    ],
)
def test_numbers_of_numpy_are_numbers(options: dict[str, Any]) -> None:
    problem = gated_problem()
    problem.solve(solver=RFISTA(**options))
    assert problem.status == cp.OPTIMAL


@pytest.mark.filterwarnings("ignore:Solution may be inaccurate")
@pytest.mark.parametrize("options", [{"max_iter": 0}, {"time_limit": 0}, {"callback": lambda progress: True}])
def test_no_time_at_all_gives_a_certified_point(options: dict[str, Any]) -> None:
    for problem, solver in ((gated_problem(), RFISTA()), (relu_problem(), AugmentedLagrangian())):
        value = problem.solve(solver=solver, **options)
        assert problem.status == "user_limit"
        found = certificate(problem)
        assert found.primal == pytest.approx(value, rel=1e-12)
        assert found.gap is not None
        assert found.gap > 0.0


def refused_problems() -> dict[str, tuple[Any, type[Exception], str]]:
    v, U, z = cp.Variable(3), cp.Variable((3, 4)), cp.Variable(2, integer=True)
    fit = cp.sum_squares(X @ v - Y)
    return {
        "concave": (cp.Problem(cp.Minimize(-fit)), cp.DCPError, "not convex"),
        "maximise convex": (cp.Problem(cp.Maximize(fit)), cp.DCPError, "not concave"),
        "integer": (cp.Problem(cp.Minimize(fit + cp.sum_squares(z))), cp.SolverError, "mixed-integer"),
        "other norm": (
            cp.Problem(cp.Minimize(fit + cp.pnorm(v, 3))),
            cp.SolverError,
            "p = 1, 2, inf.*CLARABEL",
        ),
        "eigenvalue": (
            cp.Problem(cp.Minimize(cp.lambda_max(U[:, :3]))),
            cp.SolverError,
            "lambda_max.*CLARABEL",
        ),
        "exponential cone": (
            cp.Problem(cp.Minimize(fit), [cp.exp(v) <= 1]),
            cp.SolverError,
            "exp",
        ),
        "diagonal": (
            cp.Problem(cp.Minimize(cp.sum_squares(cp.Variable((2, 2), diag=True) - 1.0))),
            cp.SolverError,
            "attribute diag",
        ),
        "complex": (
            cp.Problem(cp.Minimize(cp.sum_squares(cp.Variable(2, complex=True)))),
            cp.SolverError,
            "attribute complex",
        ),
        "NaN": (
            cp.Problem(cp.Minimize(cp.sum_squares(X @ v - np.where(Y > 0, np.nan, Y)))),
            ValueError,
            "NaN or infinite",
        ),
        "no parameter value": (
            cp.Problem(cp.Minimize(fit + cp.Parameter(nonneg=True) * cp.norm(v))),
            Exception,
            "does not have a value",
        ),
    }


@pytest.mark.parametrize("solver", [RFISTA(), AugmentedLagrangian()], ids=["rfista", "al"])
@pytest.mark.parametrize("name", refused_problems())
def test_a_problem_beyond_us_is_refused_and_nothing_changes(name: str, solver: Any) -> None:
    problem, error, message = refused_problems()[name]
    for variable in problem.variables():
        variable.save_value(np.full(variable.shape, 2.0))
    before = state(problem)
    with pytest.raises(error, match=message) as refusal:
        problem.solve(solver=solver)
    assert "\n" not in str(refusal.value)
    assert state(problem) == before


def test_constraints_are_refused_by_rfista_and_nothing_changes() -> None:
    problem = relu_problem()
    problem.solve(solver=cp.CLARABEL)
    before = state(problem)
    for way in ({"solver": RFISTA()}, {"solver": "RFISTA"}, {"method": "RFISTA"}):
        with pytest.raises(cp.SolverError, match=r"RFISTA takes no constraints.*AugmentedLagrangian\(\)"):
            problem.solve(**way)
        assert state(problem) == before


@pytest.mark.filterwarnings("ignore:overflow")
@pytest.mark.parametrize("value", [np.nan, np.inf, 1e200])
def test_spoiled_values_do_not_spoil_the_solve(value: float) -> None:
    problem = gated_problem()
    expected = problem.solve(solver=RFISTA(), tol=1e-8)
    for variable in problem.variables():
        variable.save_value(np.full(variable.shape, value))
    assert problem.solve(solver=RFISTA(), tol=1e-8) == pytest.approx(expected, rel=1e-7)
    assert problem.status == cp.OPTIMAL


def test_problems_that_share_variables_keep_their_own_answers() -> None:
    model = cnn.gated_relu(X, GATES)
    one, two = model.problem(Y, 0.01), model.problem(-Y, 0.1)
    first = one.solve(solver=RFISTA(), tol=1e-7)
    second = two.solve(solver=RFISTA(), tol=1e-7)
    assert certificate(two).relative_gap == pytest.approx(0.0, abs=1e-6)
    other = certificate(one)  # now at the other problem's point, with a dual point of its own
    assert other.dual is not None
    assert other.dual <= first <= other.primal
    assert one.solve(solver=RFISTA(), tol=1e-7) == pytest.approx(first, rel=1e-6)
    assert two.solve(solver=RFISTA(), tol=1e-7) == pytest.approx(second, rel=1e-6)


@pytest.mark.filterwarnings("ignore:Solution may be inaccurate")
def test_the_answer_follows_the_parameter() -> None:
    model = cnn.gated_relu(X, GATES)
    problem = model.problem(Y, 0.05)
    for reg in (0.05, 0.5, 1e-3, 0.05, 10.0, 0.0):
        model.reg.value = reg
        value = problem.solve(solver=RFISTA(), tol=1e-6 if reg else 0.0, max_iter=3000 if reg else 0)
        fresh = cnn.gated_relu(X, GATES).problem(Y, reg)
        assert value >= optimum(fresh) * (1.0 - 1e-7)
        if reg:
            assert problem.status == cp.OPTIMAL
            assert value == pytest.approx(optimum(fresh), rel=2e-6)


COPIES: list[Callable[[Any], Any]] = [copy.copy, copy.deepcopy, lambda p: pickle.loads(pickle.dumps(p))]


@pytest.mark.parametrize("duplicate", COPIES, ids=["copy", "deepcopy", "pickle"])
def test_copies_of_solved_problems_and_solvers_work(duplicate: Callable[[Any], Any]) -> None:
    problem, solver = relu_problem(), AugmentedLagrangian(tol=1e-5)
    value = problem.solve(solver=solver)
    twin = duplicate(problem)
    assert twin.solve(solver=duplicate(solver), warm_start=False) == pytest.approx(value, rel=2e-5)
    assert certificate(twin).relative_gap == pytest.approx(0.0, abs=1e-5)
    assert duplicate(solver) == solver


def awkward_data() -> dict[str, tuple[Float, Float, float]]:
    columns = np.diag([1e2, 1.0, 1e-2])
    return {
        "samples x 1e8": (1e8 * X, Y, 0.02e8),
        "samples x 1e-8": (1e-8 * X, Y, 0.02e-8),
        "targets x 1e8": (X, 1e8 * Y, 0.02e8),
        "targets x 1e-8": (X, 1e-8 * Y, 0.02e-8),
        "columns apart": (X @ columns, Y, 0.3),
        "repeated rows": (np.repeat(X[:4], 3, axis=0), Y, 0.02),
        "rank one": (np.outer(X[:, 0], [1.0, 2.0, 3.0]), Y, 0.02),
        "constant columns": (np.column_stack([X, np.ones((12, 2)), np.zeros(12)]), Y, 0.02),
        "zero rows": (np.vstack([X[:9], np.zeros((3, 3))]), Y, 0.02),
        "one row": (X[:1], Y[:1] + 1.0, 0.02),
        "zero targets": (X, 0.0 * Y, 0.02),
        "zero targets, no penalty": (X, 0.0 * Y, 0.0),
        "penalty 1e12": (X, Y, 1e12),
        "penalty 1e-9": (X, Y, 1e-9),
    }


@pytest.mark.filterwarnings("ignore:Solution may be inaccurate")
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", awkward_data())
def test_optimal_is_said_of_optima_only(name: str, dtype: str) -> None:
    """Truth for scaled data comes from the same data unscaled: Clarabel's own tolerances are absolute."""
    samples, target, reg = awkward_data()[name]
    scale_x, scale_y = (float(np.abs(a).max(initial=0.0)) or 1.0 for a in (samples, target))
    gates = cnn.sample_gates(samples, 5)
    model = cnn.gated_relu(samples, gates)
    problem = model.problem(target, reg)
    value = problem.solve(solver=RFISTA(), tol=1e-5, max_iter=1500, dtype=dtype)
    unit = cnn.gated_relu(samples / scale_x, cnn.sample_gates(samples / scale_x, 5))
    assert np.array_equal(unit.gates.patterns, gates.patterns)  # type: ignore[union-attr]
    # Above lambda_max nothing depends on reg, and Clarabel is spared its size.
    strength = min(reg / (scale_x * scale_y), 1.0 + 2.0 * cnn.lambda_max(unit, target / scale_y))
    truth = scale_y**2 * optimum(unit.problem(target / scale_y, strength))
    assert value >= truth - 1e-7 * scale_y**2
    if problem.status == cp.OPTIMAL:
        assert value <= truth * (1.0 + 1e-5) + 1e-7 * scale_y**2
    else:
        assert name in ("columns apart", "penalty 1e-9") or dtype == "float32"
    assert all(np.isfinite(v.value).all() for v in model.variables)
