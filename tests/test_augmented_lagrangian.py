"""The augmented Lagrangian: right values and multipliers, through projections and through multipliers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
from interior_point import optimum
from numpy.typing import NDArray
from planted import LossName, Planted, plant

import convexnn_models as cnn
from convexnn_solvers import RFISTA, AugmentedLagrangian, Status
from convexnn_solvers.certify.certifier import Certifier
from convexnn_solvers.composite import Composite
from convexnn_solvers.first_order.augmented_lagrangian import augmented_lagrangian_method
from convexnn_solvers.first_order.proximal import proximal_map
from convexnn_solvers.loop.iterate import Candidate, Limits, iterate
from convexnn_solvers.loop.result import Result

Float = NDArray[np.float64]
RNG = np.random.default_rng(2)
A: Float = RNG.standard_normal((30, 5))
B: Float = RNG.standard_normal(30)
WIDE: Float = RNG.standard_normal((4, 12))
RIGHT: Float = RNG.standard_normal(4)


def run(composite: Composite, project: bool, warm: Any = (), start: Any = None, **limits: Any) -> Result:
    method = augmented_lagrangian_method(composite, project_cones=project, warm=warm)
    point = tuple(np.zeros(v.shape) for v in composite.variables) if start is None else start
    return iterate(method, composite, Certifier(composite), [Candidate(point)], Limits(**limits))


@pytest.mark.parametrize(("project", "tol"), [(True, 1e-6), (False, 1e-5)], ids=["projected", "multipliers"])
@pytest.mark.parametrize(
    ("loss", "outputs", "shared", "bias"),
    [
        ("squared", 1, True, True),
        ("squared", 2, False, False),
        ("huber", 2, True, False),
        ("logistic", 1, True, True),
        ("absolute", 1, True, True),
        ("hinge", 2, False, False),
        ("quantile", 2, True, True),
    ],
)
def test_reaches_planted_optima(
    loss: LossName, outputs: int, shared: bool, bias: bool, project: bool, tol: float
) -> None:
    shape = (16, 3, 6)
    planted = plant(1, cones=True, outputs=outputs, shared=shared, loss=loss, bias=bias, shape=shape)
    if loss in ("absolute", "hinge", "quantile"):
        tol *= 100.0  # a first-order method on a piecewise linear loss
    result = run(planted.composite(), project, tol=tol)
    assert result.status is Status.OPTIMAL
    assert result.certificate.max_violation <= 1e-12
    assert result.certificate.primal == pytest.approx(planted.value, rel=1.1 * tol)
    assert_multipliers_prove_it(planted, result, max(1e-2, 100.0 * tol))


def assert_multipliers_prove_it(planted: Planted, result: Result, accuracy: float) -> None:
    """mu >= 0, complementary, and ``||A_g^T theta + B_g^T mu|| <= weight`` up to the accuracy."""
    composite = planted.composite()
    outputs = composite.affine.forward(result.point)
    assert result.certificate.dual_point is not None
    thetas = result.certificate.dual_point.thetas
    z = composite.affine.adjoint((*thetas, *result.multipliers))
    for weight, image in zip(planted.weights, z, strict=False):
        assert np.all(planted.group_norms(image) <= weight * (1.0 + accuracy))
    for mu, slack in zip(result.multipliers, outputs[1:], strict=True):
        assert mu.shape == slack.shape
        assert np.all(mu >= 0.0)
        assert float(np.sum(mu * slack)) <= accuracy * planted.value


@pytest.mark.parametrize(("outputs", "shared"), [(1, True), (2, True), (2, False)])
def test_groups_ruled_out_without_projections_are_those_that_vanish(outputs: int, shared: bool) -> None:
    """Proximal points do not depend on the past, and multipliers prove which groups are zero."""
    planted = plant(4, cones=True, outputs=outputs, shared=shared, shape=(20, 3, 8))
    composite, rng = planted.composite(), np.random.default_rng(5)
    count, zeros = len(composite.losses), 0
    prox, steps = proximal_map(composite, (0, 1)), [0.7, 1.9]
    point = tuple(rng.standard_normal(v.shape) for v in composite.variables)
    for _ in range(25):
        point = tuple(v + 0.2 * rng.standard_normal(v.shape) for v in point)
        found, fresh = prox(point, steps), proximal_map(composite, (0, 1))(point, steps)
        for k, (v, step) in enumerate(zip(point, steps, strict=True)):
            np.testing.assert_allclose(found[k], fresh[k], atol=1e-12)
            projector = prox.blocks[k].cone
            assert projector is not None
            mu = projector.multipliers(step)
            cotangents: list[Any] = [None] * (count + 2)
            cotangents[count + k] = mu
            moved = v + step * composite.affine.adjoint(tuple(cotangents))[k]
            norms, limits = planted.group_norms(moved), step * planted.weights[k]
            assert np.all(mu >= 0.0)
            np.testing.assert_array_equal(planted.group_norms(found[k]) > 0.0, norms > limits)
            shrunk = np.maximum(norms - limits, 0.0)
            np.testing.assert_allclose(planted.group_norms(found[k]), shrunk, atol=1e-12)
            zeros += int(np.sum(norms <= limits))
    assert zeros > 20


CONSTRAINED: dict[str, Callable[[Any], list[Any]]] = {
    "one equality": lambda x: [cp.sum(x) == 1],
    "many inequalities": lambda x: [A[:12] @ x <= B[:12] + 1],
    "both": lambda x: [cp.sum(x) == 1, x >= -0.2, A[:5] @ x >= B[:5] - 1],
    "inactive": lambda x: [cp.sum(x) <= 100],
    "equality twice": lambda x: [cp.sum(x) == 1, cp.sum(x) == 1],
    "chained shapes": lambda x: [
        cp.reshape(x[:4], (2, 2), order="C") @ np.ones((2, 2)) <= 0.3 * np.ones((2, 2))
    ],
}
OBJECTIVES: dict[str, Callable[[Any], Any]] = {
    "squared + l1": lambda x: cp.sum_squares(A @ x - B) / 60 + 0.05 * cp.norm1(x),
    "huber + l2": lambda x: cp.sum(cp.huber(A @ x - B)) / 60 + 0.05 * cp.norm(x, 2),
    "logistic": lambda x: cp.sum(cp.logistic(A @ x)) / 30 + 0.1 * cp.sum_squares(x),
}


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("constraints", CONSTRAINED)
def test_linear_constraints_agree_with_an_interior_point_method(objective: str, constraints: str) -> None:
    x = cp.Variable(5)
    problem: Any = cp.Problem(cp.Minimize(OBJECTIVES[objective](x)), CONSTRAINED[constraints](x))
    value = problem.solve(solver=AugmentedLagrangian(tol=1e-7))
    duals = [np.array(c.dual_value) for c in problem.constraints]
    assert problem.status == cp.OPTIMAL
    assert max(float(np.max(c.violation())) for c in problem.constraints) <= 1e-5
    assert value == pytest.approx(optimum(problem), abs=2e-6)
    if constraints != "equality twice":  # there the multipliers are not unique
        for constraint, dual in zip(problem.constraints, duals, strict=True):
            np.testing.assert_allclose(dual, constraint.dual_value, atol=1e-3)


WITHOUT_LOSS: dict[str, tuple[Callable[[Any], Any], Callable[[Any], list[Any]]]] = {
    "basis pursuit": (cp.norm1, lambda x: [WIDE @ x == RIGHT]),
    "least norm": (lambda x: cp.norm(x, 2), lambda x: [WIDE @ x == RIGHT]),
    "linear program": (lambda x: cp.sum(x), lambda x: [x >= -1, WIDE @ x >= RIGHT]),
    "maximise": (lambda x: 0.5 * x[0] - cp.norm1(x), lambda x: [WIDE @ x == RIGHT]),
}


@pytest.mark.parametrize("name", WITHOUT_LOSS)
def test_problems_without_a_loss(name: str) -> None:
    objective, constraints = WITHOUT_LOSS[name]
    x = cp.Variable(12)
    sense = cp.Maximize if name == "maximise" else cp.Minimize
    problem = cp.Problem(sense(objective(x)), constraints(x))
    value = problem.solve(solver=AugmentedLagrangian(tol=1e-5))
    assert problem.status == cp.OPTIMAL
    assert value == pytest.approx(optimum(problem), rel=2e-5)


def relu_problem(extra: bool) -> Any:
    rng = np.random.default_rng(5)
    X, y = rng.standard_normal((30, 3)), rng.standard_normal(30)
    model = cnn.relu(X, cnn.sample_gates(X, 8, seed=0))
    problem = model.problem(y, reg=0.03)
    return (
        cp.Problem(problem.objective, [*problem.constraints, model.prediction >= -0.3]) if extra else problem
    )


@pytest.mark.parametrize(
    ("extra", "backend"),
    [(False, "numpy"), (True, "numpy"), (False, "torch")],
    ids=["cones", "more", "torch"],
)
def test_relu_networks_agree_with_an_interior_point_method(extra: bool, backend: str) -> None:
    if backend == "torch":
        pytest.importorskip("torch")
    problem = relu_problem(extra)
    value = problem.solve(solver=AugmentedLagrangian(tol=1e-5, backend=backend))
    assert problem.status == cp.OPTIMAL
    assert value == pytest.approx(optimum(problem, 1e-8), rel=1.1e-5)


@pytest.mark.parametrize("factor", [2.0**-13, 2.0**13])
def test_rows_in_other_units_change_the_multipliers_and_nothing_else(factor: float) -> None:
    x = cp.Variable(5)
    duals = []
    for unit in (1.0, factor):
        objective = cp.Minimize(OBJECTIVES["squared + l1"](x))
        problem: Any = cp.Problem(objective, [unit * (A[:6] @ x) <= unit * B[:6]])
        with pytest.warns(UserWarning, match="Solution may be inaccurate"):  # tol=0 ends at max_iter
            problem.solve(solver=AugmentedLagrangian(tol=0.0, max_iter=300), warm_start=False)
        duals.append(unit * problem.constraints[0].dual_value)
    assert np.max(duals[0]) > 1e-2
    np.testing.assert_allclose(duals[1], duals[0], rtol=1e-12)


IMPOSSIBLE: dict[str, tuple[str, Callable[[Any, Any], Any]]] = {
    "opposite inequalities": (cp.INFEASIBLE, lambda x, z: ([x >= 0.2, cp.sum(x) <= 0.5], 0)),
    "opposite equalities": (cp.INFEASIBLE, lambda x, z: ([x[0] == 1, x[0] == 2], 0)),
    "a false constant": (cp.INFEASIBLE, lambda x, z: ([0 * x >= 1], 0)),
    "more equations than unknowns": (cp.INFEASIBLE, lambda x, z: ([A[:8] @ x == B[:8]], 0)),
    "a free linear term": (cp.UNBOUNDED, lambda x, z: ([], z)),
    "a linear term past its penalty": (cp.UNBOUNDED, lambda x, z: ([], 0.5 * cp.abs(z) - z)),
    "a half line": (cp.UNBOUNDED, lambda x, z: ([z >= 1], -z)),
}


@pytest.mark.parametrize("sense", [cp.Minimize, cp.Maximize])
@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_infeasible_and_unbounded_problems_end_with_their_status(name: str, sense: Any) -> None:
    x, z = cp.Variable(5), cp.Variable()
    status, make = IMPOSSIBLE[name]
    constraints, extra = make(x, z)
    objective = OBJECTIVES["squared + l1"](x) + extra
    problem = cp.Problem(
        cp.Minimize(objective) if sense is cp.Minimize else cp.Maximize(-objective), constraints
    )
    value = problem.solve(solver=AugmentedLagrangian())
    assert problem.status == status
    infinite = np.inf if (status == cp.INFEASIBLE) == (sense is cp.Minimize) else -np.inf
    assert value == infinite
    assert all(v.value is None for v in problem.variables())


@pytest.mark.parametrize("seed", range(12))
def test_feasible_and_bounded_problems_are_never_called_otherwise(seed: int) -> None:
    """Thin feasible sets far from the origin, weak penalties, redundant and nearly parallel rows."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, 6))
    x = cp.Variable(n)
    inside = rng.standard_normal(n) * 10.0 ** rng.uniform(-2, 3)
    G = rng.standard_normal((int(rng.integers(1, 9)), n))
    G = np.vstack([G, G[:1] + 1e-3 * rng.standard_normal(n), -G[:1]])
    slack = rng.exponential(size=len(G)) * 10.0 ** rng.uniform(-4, 1) * (rng.random(len(G)) < 0.7)
    weight = 10.0 ** rng.uniform(-4, 0)
    problem = cp.Problem(cp.Minimize(weight * cp.sum_squares(x) / n), [G @ x >= G @ inside - slack])
    solver = AugmentedLagrangian(max_iter=3000, callback=lambda info: False)
    status = Status.OPTIMAL
    try:
        problem.solve(solver=solver)
    except UserWarning:
        status = Status.ITERATION_LIMIT  # honest, and CVXPY warns of it
    assert problem.status in (cp.OPTIMAL, cp.USER_LIMIT) or status is Status.ITERATION_LIMIT
    if problem.status == cp.OPTIMAL:
        assert problem.value == pytest.approx(optimum(problem, 1e-8), rel=2e-4, abs=1e-7)


def test_multipliers_follow_signed_residuals_down_as_well_as_up() -> None:
    """From multipliers ten times too large the method comes back to the optimum."""
    planted = plant(2, cones=True, shape=(16, 3, 6))
    composite = planted.composite()
    first = run(composite, False, tol=1e-4)
    large = tuple(10.0 * mu + 1e-3 for mu in first.multipliers)
    again = run(composite, False, warm=large, tol=1e-4)
    assert again.status is Status.OPTIMAL
    assert_multipliers_prove_it(planted, again, 1e-2)


@pytest.mark.parametrize("project", [True, False], ids=["projected", "multipliers"])
def test_a_warm_start_reduces_work(project: bool) -> None:
    composite = plant(7, cones=True, shape=(16, 3, 6)).composite()
    tol = 1e-6 if project else 1e-4
    cold = run(composite, project, tol=tol)
    heavier = replace(
        composite, penalties=tuple(replace(term, weight=1.02 * term.weight) for term in composite.penalties)
    )
    from_zero = run(heavier, project, tol=tol)
    warm = run(heavier, project, warm=cold.multipliers, start=cold.point, tol=tol)
    assert warm.iterations < 0.7 * from_zero.iterations
    assert warm.certificate.primal == pytest.approx(from_zero.certificate.primal, rel=3 * tol)


def test_without_constraints_it_is_rfista() -> None:
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((30, 4)), rng.standard_normal(30)
    problem = cnn.gated_relu(X, cnn.sample_gates(X, 8)).problem(y, reg=0.01)
    values = [problem.solve(solver=cls(tol=1e-6), warm_start=False) for cls in (RFISTA, AugmentedLagrangian)]
    assert values[0] == values[1]
