"""Whatever a user composes: losses, penalties and constraints of a table, against interior points."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
from interior_point import assert_agrees, optimum
from numpy.typing import NDArray

import convexnn_models as cnn
from convexnn_solvers import RFISTA, AugmentedLagrangian, Status, certificate

Float = NDArray[np.float64]
RNG = np.random.default_rng(0)
A: Float = RNG.standard_normal((24, 6))
B: Float = RNG.standard_normal(24)
M: Float = RNG.standard_normal((12, 12))
TARGET: Float = RNG.standard_normal(12)
G: Float = RNG.standard_normal((4, 6))
START: Float = RNG.standard_normal((4, 3))
LEVELS = np.array([[0.1, 0.5, 0.9]])
LABELS = np.sign(B)
tv: Any = cp.tv
huber: Any = cp.huber


def fit(x: Any) -> Any:
    return cp.sum_squares(A @ x - B) / 48


def squares_and_tilt(q: Any) -> Any:
    return (cp.sum_squares(q) - np.arange(24.0) @ q) / 48


def fit_matrix(U: Any) -> Any:
    return cp.sum_squares(M @ cp.vec(U, order="C") - TARGET) / 24


# Objectives of a vector x (6,), a matrix U (4, 3) and a number b without any penalty of its own.
OBJECTIVES: dict[str, Callable[[Any, Any, Any], Any]] = {
    "elastic net": lambda x, U, b: fit(x) + 0.1 * cp.norm1(x) + 0.05 * cp.sum_squares(x),
    "sparse group": lambda x, U, b: fit_matrix(U) + 0.03 * cp.norm1(U) + 0.05 * cp.sum(cp.norm(U, 2, axis=0)),
    "columns one by one": lambda x, U, b: fit_matrix(U) + 0.05 * sum(cp.norm(U[:, j]) for j in range(3)),
    "rows of several kinds": lambda x, U, b: fit_matrix(U) + 0.05 * cp.norm(U[0]) + 0.02 * cp.norm1(U[1:]),
    "crossing groups": lambda x, U, b: (
        fit_matrix(U) + 0.05 * cp.sum(cp.norm(U, 2, axis=0)) + 0.05 * cp.sum(cp.norm(U, 2, axis=1))
    ),
    "the same norm twice": lambda x, U, b: fit(x) + 0.02 * cp.norm1(x) + 0.03 * cp.norm1(x),
    "quantiles of several levels": lambda x, U, b: (
        cp.sum(cp.maximum(cp.multiply(LEVELS, START - U - b), cp.multiply(LEVELS - 1.0, START - U - b))) / 12
        + 0.05 * cp.sum(cp.norm(U, 2, axis=0))
    ),
    "squares of absolute values": lambda x, U, b: (
        (cp.sum(cp.abs(A @ x - B) ** 2) + cp.sum_squares(cp.abs(x))) / 48 + 0.05 * cp.norm1(x)
    ),
    "nested groups": lambda x, U, b: (
        fit_matrix(U) + 0.05 * cp.sum(cp.norm(U, 2, axis=1)) + 0.05 * cp.norm(U, "fro")
    ),
    "nuclear norm": lambda x, U, b: fit_matrix(U) + 0.1 * cp.normNuc(U),
    "nuclear norms of blocks": lambda x, U, b: (
        fit_matrix(U) + 0.05 * sum(cp.normNuc(cp.reshape(U[:, j], (2, 2), order="C")) for j in range(3))
    ),
    "nuclear and l1": lambda x, U, b: fit_matrix(U) + 0.05 * cp.normNuc(U) + 0.02 * cp.norm1(U),
    "infinity norm": lambda x, U, b: fit(x) + 0.1 * cp.norm_inf(x),
    "total variation": lambda x, U, b: fit(x) + 0.1 * tv(x),
    "total variation of a matrix": lambda x, U, b: fit_matrix(U) + 0.05 * tv(U),
    "all but one entry": lambda x, U, b: fit(x) + 0.1 * cp.norm(x[:-1]),
    "a penalty of weight zero": lambda x, U, b: fit(x) + 0.0 * cp.norm(x) + 0.1 * cp.norm1(x[:2]),
    "norm of a residual": lambda x, U, b: cp.norm(A @ x - B) + 0.3 * cp.norm1(x),
    "largest residual": lambda x, U, b: cp.norm_inf(A @ x - B) + 0.05 * cp.norm1(x),
    "largest residual alone": lambda x, U, b: cp.norm_inf(A @ x - B),
    "absolute residuals alone": lambda x, U, b: cp.norm1(A @ x - B) / 24,
    "max alone": lambda x, U, b: cp.max(cp.hstack([A @ x - B, -A @ x + B])),
    "hinge with bias": lambda x, U, b: (
        cp.sum(cp.pos(1 - cp.multiply(LABELS, A @ x + b))) / 24 + 0.05 * cp.norm1(x)
    ),
    "quantile with bias": lambda x, U, b: (
        cp.sum(cp.maximum(0.8 * (B - A @ x - b), -0.2 * (B - A @ x - b))) / 24 + 0.05 * cp.norm(x)
    ),
    "weighted absolute residuals": lambda x, U, b: (
        cp.sum(cp.multiply(np.abs(B), cp.abs(A @ x - B - b))) / 24 + 0.02 * cp.sum_squares(x)
    ),
    "poisson": lambda x, U, b: (
        (cp.sum(cp.exp(A @ x + b)) - np.floor(3 * np.abs(B)) @ (A @ x + b)) / 24 + 0.05 * cp.norm(x)
    ),
    "largest entry": lambda x, U, b: cp.max(A @ x - B) + 0.05 * cp.norm1(x) + 0.05 * cp.norm(x),
    "maxima of three": lambda x, U, b: (
        cp.sum(cp.maximum(A @ x - B, 0.3 * (A @ x) + 1, -1)) / 24 + 0.05 * cp.norm1(x)
    ),
    "log-sum-exp": lambda x, U, b: cp.log_sum_exp(A @ x - B) + 0.1 * cp.norm(x) + fit(x),
    "a linear term beyond its penalty": lambda x, U, b: fit(x) - cp.sum(x) + 0.1 * cp.norm(x),
    "negative parts": lambda x, U, b: (
        (cp.sum_squares(cp.neg(A @ x - B)) + cp.sum(cp.neg(A @ x + b)) - 2 * cp.sum(cp.minimum(B - b, 1.0)))
        / 24
        - 0.1 * cp.min(A @ x - B)
        + 0.05 * cp.norm1(x)
    ),
    "beyond an interval": lambda x, U, b: (
        LABELS**2 @ cp.pos(cp.abs(A @ x - B) - 0.3) / 24
        + cp.sum(cp.maximum(A @ x - B - 0.2, B - A @ x - 0.1, 0)) / 24
        + 0.02 * cp.norm1(x)
    ),
    "beyond an interval that is empty": lambda x, U, b: (
        cp.sum(cp.maximum(A @ x - B + 0.2, B - A @ x + 0.1, 0)) / 24 + 0.02 * cp.norm1(x)
    ),
    "squares beyond an interval": lambda x, U, b: (
        (np.abs(B) @ cp.square(cp.pos(cp.abs(A @ x - B) - 0.3)) + cp.sum_squares(cp.pos(cp.abs(x) - 0.1)))
        / 24
        + 0.02 * cp.norm1(x)
    ),
    "maxima of maxima": lambda x, U, b: (
        cp.sum(cp.maximum(1 + 2 * cp.maximum(A @ x, -0.5 * (A @ x) - b), cp.abs(A @ x - B))) / 24
        + cp.sum(cp.pos(-cp.minimum(A @ x, B) - 0.5)) / 24
        + 0.02 * cp.norm1(x)
        + 0.1 * cp.square(b)
    ),
    "squares and a linear term of the same expression": lambda x, U, b: (
        squares_and_tilt(A @ x) + 0.05 * cp.norm1(x)
    ),
    "huber and l1": lambda x, U, b: cp.sum(huber(A @ x - B - b, 0.5)) / 48 + 0.05 * cp.norm1(x),
}


HEAVY = np.diag(np.arange(1.0, 7.0))


def lasso(x: Any) -> Any:
    return fit(x) + 0.02 * cp.norm1(x)


def near(U: Any) -> Any:
    return cp.sum_squares(U - START)


# Objective and constraints; every constraint is active at the optimum.
CONSTRAINED: dict[str, Callable[[Any, Any, Any], tuple[Any, list[Any]]]] = {
    "second-order cone": lambda x, U, b: (lasso(x) + 0.1 * b, [cp.SOC(b, x), b <= 0.3]),
    "second-order cones of columns": lambda x, U, b: (near(U), [cp.SOC(0.5 * np.ones(3), U)]),
    "second-order cones of rows": lambda x, U, b: (near(U), [cp.SOC(0.5 * np.ones(4), U, axis=1)]),
    "bounded norm": lambda x, U, b: (lasso(x), [cp.norm(x) <= 0.2]),
    "scaled norm beside affine terms": lambda x, U, b: (
        lasso(x),
        [2 * cp.norm(G @ x - 0.1) + x[0] <= 0.7 + x[1]],
    ),
    "bounded norms of columns": lambda x, U, b: (
        near(U),
        [cp.norm(U, 2, axis=0) <= np.array([0.5, 0.4, 0.3])],
    ),
    "bounded sums of norms": lambda x, U, b: (
        near(U) + 0.1 * cp.sum(cp.norm(U, 2, axis=0)),
        [cp.sum(cp.norm(U, 2, axis=0)) + 2 * cp.sum(cp.norm(U[:, 1:], 2, axis=0)) <= 1.0 + b, b <= 0.1],
    ),
    "bounded l1 norm": lambda x, U, b: (lasso(x), [cp.norm1(x) <= 0.3]),
    "bounded sum of absolute values": lambda x, U, b: (lasso(x), [cp.sum(cp.abs(G @ x)) <= 0.3]),
    "bounded hinges": lambda x, U, b: (lasso(x), [cp.sum(cp.pos(G @ x)) <= 0.1]),
    "bounded hinges beyond an interval": lambda x, U, b: (
        lasso(x),
        [cp.sum(cp.pos(cp.abs(G @ x) - 0.1)) <= 0.1],
    ),
    "bounds beyond an interval": lambda x, U, b: (
        lasso(x),
        [cp.maximum(G @ x - 0.1, -0.2 - G @ x, 0) <= 0.01],
    ),
    "bounds on quantile losses": lambda x, U, b: (
        near(U),
        [cp.maximum(cp.multiply(LEVELS, U), cp.multiply(LEVELS - 1.0, U)) <= 0.1],
    ),
    "bounded absolute values": lambda x, U, b: (lasso(x), [cp.abs(x) <= 0.1]),
    "bounded positive parts": lambda x, U, b: (lasso(x), [cp.pos(x) <= b, b <= 0.1]),
    "bounded maximum": lambda x, U, b: (lasso(x), [cp.max(G @ x) <= 0.05]),
    "bounded minimum": lambda x, U, b: (lasso(x), [cp.min(-G @ x) >= -0.05]),
    "bounded negative parts": lambda x, U, b: (lasso(x), [cp.neg(-G @ x) <= 0.05]),
    "bounded infinity norm": lambda x, U, b: (lasso(x), [cp.norm_inf(x) <= 0.1]),
    "bounded sum of squares": lambda x, U, b: (lasso(x), [cp.sum_squares(x) <= 0.05]),
    "bounded squares": lambda x, U, b: (lasso(x), [cp.square(x) <= 0.01]),
    "bounded quadratic form": lambda x, U, b: (lasso(x), [cp.quad_form(x, HEAVY) <= 0.1]),
    "simplex": lambda x, U, b: (fit(x), [x >= 0, cp.sum(x) == 1]),
    "semidefinite": lambda x, U, b: (near(U), [U[:3] >> 0, U[:3] == U[:3].T]),
    "linear objective": lambda x, U, b: (
        cp.sum(cp.multiply(np.arange(6.0) - 2.0, x)),
        [cp.norm_inf(x) <= 1, cp.sum(x) == 0],
    ),
    "huber with an active inequality": lambda x, U, b: (
        cp.sum(huber(A @ x - B, 0.3)) / 48 + 0.05 * cp.norm(x),
        [G @ x <= -0.05],
    ),
}


@pytest.mark.parametrize("name", CONSTRAINED)
def test_constraints_and_their_dual_values(name: str) -> None:
    x, U, b = cp.Variable(6, name="x"), cp.Variable((4, 3), name="U"), cp.Variable(name="b")
    objective, constraints = CONSTRAINED[name](x, U, b)
    problem = cp.Problem(cp.Minimize(objective), constraints)
    optimum(problem, 1e-9, 1e-8)
    theirs = [np.hstack([np.ravel(part) for part in listed(c.dual_value)]) for c in constraints]
    assert_agrees(problem, 1e-6)
    for constraint, expected in zip(constraints, theirs, strict=True):
        ours = np.hstack([np.ravel(part) for part in listed(constraint.dual_value)])
        np.testing.assert_allclose(ours, expected, atol=2e-3 * (1.0 + float(np.abs(expected).max())))
    assert max(float(np.abs(expected).max()) for expected in theirs) > 1e-3


@pytest.mark.parametrize("sense", [cp.Minimize, cp.Maximize])
@pytest.mark.parametrize("name", CONSTRAINED)
def test_certificates_of_constraints_after_an_interior_point_solver(name: str, sense: Any) -> None:
    """It says one price for a bounded norm, and nothing of the multipliers inside."""
    x, U, b = cp.Variable(6, name="x"), cp.Variable((4, 3), name="U"), cp.Variable(name="b")
    objective, constraints = CONSTRAINED[name](x, U, b)
    minimised = sense is cp.Minimize
    problem = cp.Problem(sense(objective if minimised else -objective), constraints)
    value = optimum(problem, 1e-9, 1e-8)
    found = certificate(problem)
    assert found.relative_gap is not None
    assert found.relative_gap <= 1e-4
    assert found.dual is not None
    assert (found.dual <= value + 1e-8) if minimised else (found.dual >= value - 1e-8)


def listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


ATTRIBUTES: dict[str, dict[str, Any]] = {
    "nonneg": {"nonneg": True},
    "nonpos": {"nonpos": True},
    "box": {"bounds": [-0.1, 0.1]},
    "lower bound": {"bounds": [-0.1, None]},
}


@pytest.mark.parametrize("penalised", [True, False])
@pytest.mark.parametrize("name", ATTRIBUTES)
def test_bounds_of_variables(name: str, penalised: bool) -> None:
    z = cp.Variable(6, **ATTRIBUTES[name])
    objective = cp.norm1(A @ z - B) / 24 + (0.05 * cp.norm(z) if penalised else 0.0)
    assert_agrees(cp.Problem(cp.Minimize(objective)))


@pytest.mark.parametrize("attribute", ["symmetric", "PSD", "NSD"])
def test_matrix_attributes(attribute: str) -> None:
    attributes: dict[str, Any] = {attribute: True}
    S = cp.Variable((3, 3), **attributes)
    assert_agrees(cp.Problem(cp.Minimize(cp.sum_squares(S - START[:3]) + cp.trace(S))), 1e-6)


SENSES: list[tuple[str, Any]] = [
    *((name, cp.Minimize) for name in OBJECTIVES),
    *(
        (name, cp.Maximize)
        for name in ("sparse group", "hinge with bias", "a linear term beyond its penalty")
    ),
]


@pytest.mark.parametrize(("name", "sense"), SENSES)
def test_objectives(name: str, sense: Any) -> None:
    x, U, b = cp.Variable(6, name="x"), cp.Variable((4, 3), name="U"), cp.Variable(name="b")
    objective = OBJECTIVES[name](x, U, b)
    assert_agrees(cp.Problem(cp.Minimize(objective) if sense is cp.Minimize else cp.Maximize(-objective)))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_no_point_makes_a_bound_wrong(name: str) -> None:
    """Certificates of points from anywhere: the gap is at least the true suboptimality."""
    rng = np.random.default_rng(1)
    x, U, b = cp.Variable(6, name="x"), cp.Variable((4, 3), name="U"), cp.Variable(name="b")
    problem = cp.Problem(cp.Minimize(OBJECTIVES[name](x, U, b)))
    value = optimum(problem, 1e-9, 1e-8)
    best = {v: np.asarray(v.value) for v in problem.variables()}
    for scale in (0.0, 1e-6, 1e-3, 0.1, 1.0, 30.0):
        for v, optimal in best.items():
            v.value = optimal + scale * rng.standard_normal(optimal.shape)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = certificate(problem)
        if found.dual is not None:
            assert found.dual <= value + 1e-7 * (1.0 + abs(value))


def test_quadratic_forms_of_a_parameter_follow_its_value() -> None:
    """One compilation, a new root at every solve, and a sentence for a matrix that is not convex."""
    x, P = cp.Variable(6), cp.Parameter((6, 6), PSD=True)
    problem = cp.Problem(cp.Minimize(cp.quad_form(x - 1.0, P) + 0.1 * cp.norm1(x)))
    for k in range(3):
        P.value = HEAVY + k * np.ones((6, 6))
        assert_agrees(problem)


@pytest.mark.parametrize("solver", [RFISTA(dtype="float32"), AugmentedLagrangian(dtype="float32")], ids=repr)
@pytest.mark.filterwarnings("ignore:Solution may be inaccurate", "ignore:overflow", "ignore:invalid value")
def test_data_beyond_the_arithmetic_end_with_a_status(solver: Any) -> None:
    model = cnn.gated_relu if isinstance(solver, RFISTA) else cnn.relu
    X = 1e150 * A[:, :3]
    problem = model(X, cnn.sample_gates(X, 5)).problem(B, 0.1)
    problem.solve(solver=solver)
    assert problem.status == "user_limit"
    assert problem.solver_stats.extra_stats["status"] is Status.NOT_FINITE


def test_an_overflowing_trial_is_shortened() -> None:
    """From far below its optimum the exponential asks for a step that would overflow."""
    x = cp.Variable()
    x.value = np.asarray(-40.0)
    problem = cp.Problem(cp.Minimize(cp.exp(x) - 50.0 * x + 0.1 * cp.abs(x)))
    problem.solve(solver=RFISTA())
    assert problem.status == cp.OPTIMAL
    assert float(x.value) == pytest.approx(np.log(49.9), abs=0.05)


def test_a_linear_term_beyond_its_penalty_has_no_dual_at_zero() -> None:
    """D(0) is no bound: with the linear term -50 x only multiples near one of the residual are feasible."""
    x = cp.Variable()
    problem = cp.Problem(cp.Minimize(cp.exp(x) - 50.0 * x + 0.1 * cp.abs(x)))
    value = 49.9 - 49.9 * np.log(49.9)
    for point in (0.0, 1.0, 3.9, np.log(50.0), np.log(49.9)):
        x.value = np.asarray(point)
        found = certificate(problem)
        assert found.dual is None or found.dual <= value + 1e-9


def test_duals_have_to_be_a_list() -> None:
    x = cp.Variable(6)
    x.value = np.ones(6)
    with pytest.raises(TypeError, match="duals must be a list"):
        certificate(cp.Problem(cp.Minimize(lasso(x))), duals=None)  # type: ignore[arg-type]


def test_quantiles_of_several_levels_after_an_interior_point_solver() -> None:
    """Their intervals of subgradients differ in width, and meet in one equation."""
    U, b = cp.Variable((4, 3)), cp.Variable()
    problem = cp.Problem(cp.Minimize(OBJECTIVES["quantiles of several levels"](None, U, b)))
    value, found = optimum(problem, 1e-9, 1e-8), certificate(problem)
    assert found.relative_gap is not None
    assert found.relative_gap <= 1e-5
    assert found.dual is not None
    assert found.dual <= value + 1e-9
