"""R-FISTA: right on every loss, penalty and backend, and no more products than a step needs."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
from interior_point import optimum
from numpy.typing import NDArray
from planted import LossName, plant

import convexnn_models as cnn
from convexnn_solvers import RFISTA, AugmentedLagrangian, Status, UnsupportedProblem
from convexnn_solvers.backends import Array, numpy_backend
from convexnn_solvers.certify.certifier import Certifier
from convexnn_solvers.composite import AffineMap, Composite, Point
from convexnn_solvers.first_order.accelerated import bregman, smooth_part
from convexnn_solvers.first_order.proximal import proximal_map
from convexnn_solvers.first_order.rfista import rfista_method
from convexnn_solvers.loop.iterate import Candidate, Limits, iterate
from convexnn_solvers.loop.result import Result
from convexnn_solvers.reading.compiler import compile_problem

Float = NDArray[np.float64]

RNG = np.random.default_rng(1)
A: Float = RNG.standard_normal((30, 6))
B: Float = RNG.standard_normal((30, 3))
SIGNS: Float = np.sign(RNG.standard_normal((30, 3)))
CLASSES: Float = np.eye(3)[RNG.integers(0, 3, 30)]

HALF: Any = 0.5  # CVXPY annotates thresholds as integers

LOSSES: dict[str, Callable[[Any], Any]] = {
    "squared": lambda q: cp.sum_squares(q - B) / 60,
    "weighted squares": lambda q: cp.sum(cp.multiply(np.abs(SIGNS + 0.5), cp.square(q - B))) / 60,
    "huber": lambda q: cp.sum(cp.huber(q - B, HALF)) / 60,
    "logistic": lambda q: cp.sum(cp.logistic(cp.multiply(-SIGNS, q))) / 30,
    "squared hinge": lambda q: cp.sum(cp.square(cp.pos(1 - cp.multiply(SIGNS, q)))) / 60,
    "softmax": lambda q: (cp.sum(cp.log_sum_exp(q, axis=1)) - cp.sum(cp.multiply(CLASSES, q))) / 30,
    "two losses": lambda q: cp.sum_squares(q - B) / 60 + cp.sum(cp.logistic(q)) / 90,
}
PENALTIES: dict[str, Callable[[Any], Any]] = {
    "columns": lambda W: 0.05 * cp.sum(cp.norm(W, 2, axis=0)),
    "weighted rows": lambda W: cp.norm(W, 2, axis=1) @ np.linspace(0.01, 0.1, 6),
    "whole": lambda W: 0.1 * cp.norm(W, "fro"),
    "entries": lambda W: 0.02 * cp.norm1(W),
    "ridge": lambda W: 0.05 * cp.sum_squares(W),
}


def problem_of(loss: str, penalty: str, variable: Any | None = None) -> Any:
    W = cp.Variable((6, 3), name="W") if variable is None else variable
    return cp.Problem(cp.Minimize(LOSSES[loss](A @ W) + PENALTIES[penalty](W)))


@pytest.mark.parametrize("backend", ["numpy", "torch"])
@pytest.mark.parametrize("solver", [RFISTA, AugmentedLagrangian])
@pytest.mark.parametrize(
    ("loss", "penalty"), [*((x, "columns") for x in LOSSES), *(("squared", y) for y in PENALTIES)]
)
def test_agrees_with_an_interior_point_method(loss: str, penalty: str, solver: Any, backend: str) -> None:
    if backend == "torch":
        pytest.importorskip("torch")
    problem = problem_of(loss, penalty)
    value = problem.solve(solver=solver(tol=1e-7, backend=backend))
    assert problem.status == cp.OPTIMAL
    assert value == pytest.approx(optimum(problem), rel=2e-7)


@pytest.mark.parametrize(
    "bounds",
    [{"nonneg": True}, {"nonpos": True}, {"bounds": [0.0, None]}, {"bounds": [-0.1, 0.2]}],
    ids=["nonneg", "nonpos", "lower", "box"],
)
@pytest.mark.parametrize("penalty", ["columns", "entries", "ridge"])
def test_bounds_hold_exactly(bounds: dict[str, Any], penalty: str) -> None:
    if "bounds" in bounds and penalty == "columns" and bounds["bounds"][1] is not None:
        pytest.skip("a group norm in a box has no proximal map, and is refused")
    problem = problem_of("squared", penalty, cp.Variable((6, 3), **bounds))
    with warnings.catch_warnings():  # where bounds leave a gap, the status is honest and CVXPY warns
        warnings.filterwarnings("ignore", message="Solution may be inaccurate")
        value = problem.solve(solver=RFISTA(tol=1e-7, max_iter=1000))
    W = problem.variables()[0]
    assert np.all(W.project(W.value) == W.value)
    assert value == pytest.approx(optimum(problem), rel=1e-6)


def test_takes_a_free_bias_and_blocks_in_very_different_units() -> None:
    W, b = cp.Variable((6, 3)), cp.Variable(3)
    iterations = []
    for unit in (1.0, 1e3, 1e-3):
        fit = cp.sum_squares(
            A @ W + unit * cp.multiply(np.ones((30, 3)), cp.reshape(b, (1, 3), order="C")) - B
        )
        problem = cp.Problem(cp.Minimize(fit / 60 + 0.05 * cp.sum(cp.norm(W, 2, axis=0))))
        W.value, b.value = None, None
        value = problem.solve(solver=RFISTA(tol=1e-8))
        iterations.append(problem.solver_stats.num_iters)
        assert value == pytest.approx(optimum(problem), rel=1e-8)
    assert max(iterations) <= 2 * min(iterations)


@pytest.mark.parametrize("loss", ["squared", "huber", "logistic"])
@pytest.mark.parametrize(("outputs", "shared", "bias"), [(1, True, False), (2, False, True), (3, True, True)])
def test_reaches_planted_optima(loss: LossName, outputs: int, shared: bool, bias: bool) -> None:
    planted = plant(3, cones=False, outputs=outputs, shared=shared, loss=loss, bias=bias)
    result = run(planted.composite(), tol=1e-9)
    assert result.status is Status.OPTIMAL
    assert result.certificate.primal == pytest.approx(planted.value, rel=2e-9)
    assert planted.value <= result.certificate.primal * (1 + 1e-12)


def run(composite: Composite, **limits: Any) -> Result:
    starts = [Candidate(tuple(np.zeros(v.shape) for v in composite.variables))]
    return iterate(rfista_method(composite), composite, Certifier(composite), starts, Limits(**limits))


@dataclass
class Counted:
    """An affine map that counts its products."""

    inner: AffineMap
    forwards: int = 0
    adjoints: int = 0

    def forward(self, x: Point) -> Point:
        self.forwards += 1
        return self.inner.forward(x)

    def linear(self, x: Point) -> Point:
        return self.inner.linear(x)

    def adjoint(self, cotangents: tuple[Array | None, ...]) -> Point:
        self.adjoints += 1
        return self.inner.adjoint(cotangents)


def test_a_step_is_one_forward_and_one_adjoint_product() -> None:
    composite = plant(0, cones=False).composite()
    counted = Counted(composite.affine)
    composite = replace(composite, affine=counted)
    method = rfista_method(composite)
    state = method.start(composite.zeros())
    state = replace(state, step=1e-3 * state.step)  # far from where the line search has work to do
    before = (counted.forwards, counted.adjoints)
    for _ in range(7):
        state = method.step(state)
    assert (counted.forwards - before[0], counted.adjoints - before[1]) == (7, 7)


def test_extrapolated_outputs_are_those_of_the_extrapolated_point() -> None:
    composite = plant(1, cones=False, loss="logistic", bias=True).composite()
    method = rfista_method(composite)
    state = method.start(composite.zeros())
    for _ in range(60):
        state = method.step(state)
    for outputs, point in ((state.outputs, state.x), (state.y_outputs, state.y)):
        for q, expected in zip(outputs, composite.affine.forward(point), strict=True):
            np.testing.assert_allclose(q, expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("reg", [0.0, 1e-12])
def test_steps_stay_long_where_the_data_are_fitted_exactly(reg: float) -> None:
    """The outputs are then rounding of the offsets: measured by their own size, steps shrank to 1e-324."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((15, 5))
    problem = cnn.gated_relu(X, cnn.sample_gates(X, 20)).problem(rng.standard_normal(15), reg)
    composite = compile_problem(problem, numpy_backend()).composite()
    method = rfista_method(composite)
    state = method.start(composite.zeros())
    first = state.step
    for _ in range(400):
        state = method.step(state)
    assert composite.smooth_value(state.x, state.outputs) < 1e-20
    assert state.last_step > 1e-3 * first


@pytest.mark.parametrize("distance", [1.0, 1e-3, 1e-7])
def test_bregman_distances_do_not_cancel(distance: float) -> None:
    planted = plant(2, cones=False, loss="logistic")
    composite = planted.composite()
    rng = np.random.default_rng(0)
    old = composite.affine.forward(planted.point)
    new = tuple(q + distance * rng.standard_normal(q.shape) for q in old)
    exact = sum(
        _softplus_bregman(float(a), float(b)) for a, b in zip(new[0].ravel(), old[0].ravel(), strict=True)
    )
    value = bregman(composite, new, old, composite.loss_gradients(old))
    assert value == pytest.approx(exact / new[0].size, rel=1e-4)


def _softplus_bregman(a: float, b: float) -> float:
    """The integral form, by Gauss-Legendre quadrature: (a-b)^2 int_0^1 (1-t) s'(b + t(a-b)) dt."""
    nodes, weights = np.polynomial.legendre.leggauss(20)
    t = 0.5 * (nodes + 1.0)
    p = 1.0 / (1.0 + np.exp(-(b + t * (a - b))))
    return float((a - b) ** 2 * np.sum(0.5 * weights * (1.0 - t) * p * (1.0 - p)))


def test_the_proximal_map_minimises_its_formula() -> None:
    composite = plant(4, cones=True, outputs=2, shape=(12, 3, 5)).composite()
    rng = np.random.default_rng(0)
    prox, step = proximal_map(composite, (0, 1)), 3.0
    point = tuple(rng.standard_normal(v.shape) for v in composite.variables)
    found = prox(point, [step, step])
    judge = Certifier(composite)

    def objective(x: Point) -> float:
        distance = sum(float(np.sum((a - b) ** 2)) for a, b in zip(x, point, strict=True))
        return float(composite.penalty_value(x)) + distance / (2.0 * step)

    for scale in (1.0, 1e-2, 1e-4):
        for _ in range(20):
            moved = tuple(a + scale * rng.standard_normal(a.shape) for a in found)
            assert objective(found) <= objective(judge.repair(moved)) + 1e-12


@pytest.mark.parametrize("factor", [0.999, 1.001])
def test_zero_is_returned_exactly_when_it_is_optimal(factor: float) -> None:
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((25, 4)), rng.standard_normal(25)
    model = cnn.gated_relu(X, cnn.sample_gates(X, 10))
    problem = model.problem(y, reg=factor * cnn.lambda_max(model, y))
    problem.solve(solver=RFISTA(tol=1e-10))
    zero = not np.any(problem.variables()[0].value)
    assert zero == (factor > 1.0)
    assert problem.status == cp.OPTIMAL
    assert (problem.solver_stats.num_iters == 0) == zero


def test_single_precision_is_certified_in_double() -> None:
    problem = problem_of("squared", "columns")
    value = problem.solve(solver=RFISTA(tol=1e-5, dtype="float32"))
    assert problem.status == cp.OPTIMAL
    assert value == pytest.approx(optimum(problem), rel=1e-5)
    assert problem.variables()[0].value.dtype == np.float64


def test_the_same_problem_gives_the_same_bits() -> None:
    points = []
    for _ in range(2):
        problem = problem_of("logistic", "columns")
        problem.solve(solver=RFISTA())
        points.append(problem.variables()[0].value)
    assert np.array_equal(points[0], points[1])


def test_scales_do_not_depend_on_the_units_of_the_variables() -> None:
    composite = plant(5, cones=False, bias=True).composite()
    smooth = smooth_part(composite)
    assert smooth.lipschitz() <= len(composite.variables) * (1.0 + 1e-9)
    assert all(math.isfinite(scale) and scale > 0.0 for scale in smooth.scales)


def test_refuses_constraints_by_name() -> None:
    W = cp.Variable((6, 3))
    objective = cp.Minimize(cp.sum_squares(A @ W - B))
    constraints: list[Any] = [cp.sum(W) == 1]
    with pytest.raises(
        UnsupportedProblem, match=r"RFISTA takes no constraints.*AugmentedLagrangian.*CLARABEL"
    ):
        cp.Problem(objective, constraints).solve(solver=RFISTA())
