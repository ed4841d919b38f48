"""The augmented Lagrangian on working sets of gates in cones: planted optima, proofs for gates left out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
from numpy.typing import NDArray
from planted import LossName, Planted, plant, problem_of

import convexnn_models as cnn
from convexnn_solvers import AugmentedLagrangian, Status, certificate
from convexnn_solvers.auto import engines
from convexnn_solvers.backends import numpy_backend
from convexnn_solvers.certify.certifier import Certifier
from convexnn_solvers.composite import Composite, DualPoint
from convexnn_solvers.cones.projections import PatternCones
from convexnn_solvers.first_order.augmented_lagrangian import AugmentedLagrangianMethod
from convexnn_solvers.first_order.cone_descent import constrained_method
from convexnn_solvers.first_order.gate_descent import GateDescent, GateState
from convexnn_solvers.gated_programs.gate_cones import GateCones
from convexnn_solvers.loop.iterate import Candidate, Limits, iterate
from convexnn_solvers.loop.result import Result
from convexnn_solvers.options import Options
from convexnn_solvers.reading.compiler import compile_problem

Float = NDArray[np.float64]
RNG = np.random.default_rng(4)
X: Float = RNG.standard_normal((60, 4))
Y: Float = np.maximum(X @ RNG.standard_normal((4, 3)), 0.0).sum(axis=1)
Y2: Float = np.column_stack([Y, np.maximum(X @ RNG.standard_normal(4), 0.0)])
OUTPUTS: dict[str, dict[str, Any]] = {
    "one output": {},
    "shared": {"outputs": 2, "grouping": "shared"},
    "per output": {"outputs": 2, "grouping": "per-output"},
}


def composite_of(problem: Any) -> Composite:
    return compile_problem(problem, numpy_backend()).composite()


def relu_of(outputs: str, gates: int = 80, share: float = 0.1) -> Any:
    labels = Y if outputs == "one output" else Y2
    model = cnn.relu(X, cnn.sample_gates(X, gates, seed=0), **OUTPUTS[outputs])
    return model.problem(labels, share * cnn.lambda_max(model, labels))


def method_of(composite: Composite, tol: float, first: int) -> GateDescent:
    method = constrained_method(composite, composite, tol, DualPoint(()))
    assert isinstance(method, GateDescent)
    return replace(method, first=first)


def run(composite: Composite, method: Any, **limits: Any) -> Result:
    return iterate(method, composite, Certifier(composite), [Candidate(composite.zeros())], Limits(**limits))


@pytest.mark.parametrize("first", [1, 64])
@pytest.mark.parametrize(
    ("loss", "outputs", "shared", "bias"),
    [
        ("squared", 1, True, True),
        ("squared", 2, False, False),
        ("squared", 2, True, True),
        ("huber", 2, True, False),
        ("logistic", 1, True, True),
        ("logistic", 2, False, False),
    ],
)
def test_planted_optima_are_found_with_their_multipliers(
    loss: LossName, outputs: int, shared: bool, bias: bool, first: int
) -> None:
    planted = plant(1, cones=True, outputs=outputs, shared=shared, loss=loss, bias=bias, shape=(16, 3, 6))
    composite = composite_of(problem_of(planted)[0])
    result = run(composite, method_of(composite, 1e-7, first), tol=1e-7)
    assert result.status is Status.OPTIMAL
    assert result.certificate.max_violation <= 1e-12
    assert result.certificate.primal == pytest.approx(planted.value, rel=1.1e-7)
    assert_multipliers_prove_it(planted.group_norms, composite, result, planted)


def assert_multipliers_prove_it(norms: Any, composite: Composite, result: Result, planted: Planted) -> None:
    """mu >= 0, complementary, and ``||A_g^T theta + B_g^T mu|| <= weight``, of all gates."""
    assert result.certificate.dual_point is not None
    z = composite.affine.adjoint((*result.certificate.dual_point.thetas, *result.multipliers))
    for weight, image in zip(planted.weights, z, strict=False):
        assert np.all(norms(image) <= weight * (1.0 + 1e-9))
    slacks = composite.affine.forward(result.point)[1:]
    for mu, slack in zip(result.multipliers, slacks, strict=True):
        assert mu.shape == slack.shape
        assert np.all(mu >= 0.0)
        assert float(np.sum(mu * slack)) <= 1e-5 * planted.value


@pytest.mark.parametrize("outputs", OUTPUTS)
def test_dual_values_prove_that_the_gates_left_out_may_be(outputs: str) -> None:
    problem = relu_of(outputs, gates=150, share=0.2)
    composite = composite_of(problem)
    method = method_of(composite, 1e-6, first=5)
    result = run(composite, method, tol=1e-6)
    assert result.status is Status.OPTIMAL
    last = states(method_of(composite, 1e-6, first=5), composite, result.iterations)[-1]
    assert last.chosen.size < 0.5 * method.columns.count
    assert result.certificate.dual_point is not None
    z = composite.affine.adjoint((*result.certificate.dual_point.thetas, *result.multipliers))
    groups, bare = 2 if outputs == "per output" else 1, 0
    for image, term in zip(z, composite.penalties, strict=False):
        blocks = np.reshape(image, (groups, -1, 150))
        assert np.all(np.linalg.norm(blocks, axis=1) <= np.max(term.weight) * (1.0 + 1e-9))
    for image in composite.affine.adjoint((*result.certificate.dual_point.thetas, None, None)):
        norms = np.linalg.norm(np.reshape(image, (groups, -1, 150)), axis=1)
        outside = np.delete(norms, last.chosen, axis=1)
        bare += int(np.sum(outside > np.max(composite.penalties[0].weight)))
    assert bare > 0  # which only the multipliers rule out


def states(method: GateDescent, composite: Composite, steps: int) -> list[GateState]:
    found = [method.start(composite.zeros())]
    for _ in range(steps):
        found.append(method.step(found[-1]))
    return found


@pytest.mark.parametrize("outputs", OUTPUTS)
@pytest.mark.parametrize("end", [7, 40])
def test_a_packed_state_goes_on_as_if_nobody_had_packed_it(outputs: str, end: int) -> None:
    composite = composite_of(relu_of(outputs, share=0.03))
    method = method_of(composite, 1e-9, first=3)
    state = states(method, composite, end)[-1]
    held = {name: np.array(array) for name, array in method.packed(state).items()}
    other = method_of(composite, 1e-9, first=3)
    resumed = other.unpacked(held)
    for _ in range(40):
        state, resumed = method.step(state), other.step(resumed)
        assert np.array_equal(resumed.chosen, state.chosen)
        for a, b in zip(resumed.descent.y, state.descent.y, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11)
    assert state.chosen.size > 3


def test_a_look_changes_nothing_that_steps_remember() -> None:
    composite = composite_of(relu_of("shared", share=0.03))
    method = method_of(composite, 1e-9, first=3)
    state = states(method, composite, 25)[-1]
    before = {name: np.array(array) for name, array in method.packed(state).items()}
    method.candidate(state)
    for name, array in method.packed(state).items():
        assert np.array_equal(array, before[name]), name


@pytest.mark.parametrize("outputs", OUTPUTS)
def test_ratios_are_those_of_projections_or_bounds_of_them(outputs: str) -> None:
    composite, rng = composite_of(relu_of(outputs, gates=40)), np.random.default_rng(0)
    term, count, ruled = composite.constraints[0], 40, 0
    assert term.pattern_cone is not None
    cones, exact = GateCones(term), PatternCones(X, term.pattern_cone.patterns)
    c = cones.outputs
    groups = 2 if outputs == "per output" else 1
    prices, Z = rng.uniform(0.5, 1.5, (groups, count)), rng.standard_normal((c, 4, count))
    for _ in range(20):
        Z = Z + 0.1 * rng.standard_normal(Z.shape)
        points = np.stack([exact.project(Z[k], np.arange(count)).points for k in range(c)])
        squares = np.sum(points**2, axis=1)
        truth = np.sqrt(squares if groups == c else squares.sum(axis=0, keepdims=True)) / prices
        level = 0.8
        found = level * cones.ratios(Z, level * prices)
        np.testing.assert_allclose(found[truth > level], truth[truth > level], rtol=1e-10)
        assert np.all(found[truth <= level] <= level * (1.0 + 1e-12))
        assert np.all(found >= truth * (1.0 - 1e-10) - 1e-12)
        chosen = np.sort(rng.permutation(count)[:9])
        kept = np.repeat(truth[:, chosen] > level, c // groups, axis=0)[:, None, :]
        moved = cones.project(Z[:, :, chosen], chosen, level * prices[:, chosen])
        wanted = np.where(kept, points[:, :, chosen], 0.0)
        np.testing.assert_allclose(np.where(kept, moved, 0.0), wanted, atol=1e-10)
        short = np.sum(moved**2, axis=1)
        short = short if groups == c else np.broadcast_to(short.sum(axis=0), short.shape)
        limits = np.broadcast_to(level * prices[:, chosen], short.shape)
        assert np.all(np.where(kept[:, 0], 0.0, np.sqrt(short)) <= limits * (1.0 + 1e-12))
        ruled += int(np.sum((found < level) & (np.sum(Z**2, axis=1) > (level * prices) ** 2)))
    assert ruled > 20


def test_points_that_are_not_finite_end_the_solve() -> None:
    cones = GateCones(composite_of(relu_of("one output", gates=10)).constraints[0])
    Z = np.full((1, 4, 10), np.nan)
    assert np.all(np.isnan(cones.project(Z, np.arange(10), np.ones((1, 10)))))
    assert np.all(np.isnan(cones.ratios(Z, np.ones((1, 10)))))
    assert cones.multipliers(Z, np.ones((1, 10))) is None


@pytest.mark.parametrize("backend", ["numpy", "torch"])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_every_backend_takes_cones(backend: str, dtype: str) -> None:
    if backend == "torch":
        pytest.importorskip("torch")
    problem, tol = relu_of("shared"), 1e-4 if dtype == "float32" else 1e-7
    problem.solve(solver=AugmentedLagrangian(tol=tol, backend=backend, dtype=dtype))
    assert problem.status == cp.OPTIMAL
    assert certificate(problem).relative_gap == pytest.approx(0.0, abs=1.1 * tol)
    assert problem.solver_stats.num_iters < 1000


def test_a_warm_start_takes_up_its_gates() -> None:
    problem, solver = relu_of("one output", gates=150), AugmentedLagrangian(tol=1e-6)
    problem.solve(solver=solver)
    cold = problem.solver_stats.num_iters
    problem.parameters()[0].value *= 0.98
    problem.solve(solver=solver)
    assert problem.status == cp.OPTIMAL
    assert 0 < problem.solver_stats.num_iters < cold


def others() -> dict[str, Any]:
    model = cnn.relu(X, cnn.sample_gates(X, 10))
    fit, constraints = cp.sum_squares(model.prediction - Y) / 120, model.constraints
    sharp = cp.sum(cp.abs(model.prediction - Y)) / 60
    return {
        "another constraint": (fit + 0.01 * model.penalty, [*constraints, model.prediction >= -1.0]),
        "cones on some weights": (fit + 0.01 * model.penalty, constraints[:1]),
        "no gradient": (sharp + 0.01 * model.penalty, constraints),
        "zero weight": (fit + 0.0 * model.penalty, constraints),
        "no penalty": (fit, constraints),
    }


@pytest.mark.parametrize("case", others())
def test_what_has_more_than_cones_is_solved_on_all_gates(case: str) -> None:
    objective, constraints = others()[case]
    composite = composite_of(cp.Problem(cp.Minimize(objective), constraints))
    method = constrained_method(composite, composite, 1e-4, DualPoint(()))
    assert isinstance(method, AugmentedLagrangianMethod)


def test_auto_takes_it_where_newton_cannot_work() -> None:
    problem = relu_of("one output")
    single = compile_problem(problem, numpy_backend("float32")).composite()
    (engine,) = engines(single, composite_of(problem), DualPoint(()), Options())
    assert engine.name == "AugmentedLagrangian"
    assert isinstance(engine.make(), GateDescent)
