"""R-FISTA on working sets: the same solutions, from few gates, in metrics of their own, to the same bits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
from interior_point import optimum
from numpy.typing import NDArray

import convexnn_models as cnn
from convexnn_solvers import RFISTA, Status
from convexnn_solvers.backends import numpy_backend
from convexnn_solvers.certify.certifier import Certifier
from convexnn_solvers.composite import Composite
from convexnn_solvers.first_order.gate_columns import gate_columns
from convexnn_solvers.first_order.gate_descent import GateDescent, GateState, gradient_method
from convexnn_solvers.first_order.rfista import AcceleratedGradient, rfista_method
from convexnn_solvers.functions.group_shrinkage import shrunk
from convexnn_solvers.loop.iterate import Candidate, Limits, iterate
from convexnn_solvers.loop.result import Result
from convexnn_solvers.reading.compiler import compile_problem

Float = NDArray[np.float64]
RNG = np.random.default_rng(3)
UNEVEN: Float = RNG.standard_normal((50, 6)) * 10.0 ** np.linspace(0.0, -3.0, 6)
EVEN: Float = RNG.standard_normal((50, 6))
Y: Float = RNG.standard_normal(50)
Y3: Float = RNG.standard_normal((50, 3))

LABELS: dict[str, tuple[Any, dict[str, Any]]] = {
    "squared": (Y, {}),
    "huber": (Y, {}),
    "logistic": (np.sign(Y), {}),
    "squared, shared": (Y3, {"outputs": 3, "grouping": "shared"}),
    "squared, per-output": (Y3, {"outputs": 3, "grouping": "per-output"}),
    "logistic, bias": (np.sign(Y), {"output_bias": True}),
    "squared, biases": (Y3, {"outputs": 3, "output_bias": True}),
    "softmax": (np.argmax(Y3, axis=1), {"outputs": 3}),
}


def composite_of(problem: Any) -> Composite:
    return compile_problem(problem, numpy_backend()).composite()


def problem_of(case: str, X: Float = UNEVEN, share: float = 0.05, gates: int = 40) -> Any:
    labels, keywords = LABELS[case]
    loss = case.split(",")[0]
    model = cnn.gated_relu(X, cnn.sample_gates(X, gates, seed=1), **keywords)
    return model.problem(labels, reg=share * cnn.lambda_max(model, labels, loss=loss), loss=loss)


def method_of(composite: Composite, tol: float, first: int) -> GateDescent:
    method = gradient_method(composite, composite, tol)
    assert isinstance(method, GateDescent)
    return replace(method, first=first)


def run(composite: Composite, method: Any, **limits: Any) -> Result:
    starts = [Candidate(tuple(np.zeros(v.shape) for v in composite.variables))]
    return iterate(method, composite, Certifier(composite), starts, Limits(**limits))


@pytest.mark.parametrize("features", ["even", "uneven"])
@pytest.mark.parametrize("case", LABELS)
def test_a_growing_set_finds_the_optimum(case: str, features: str) -> None:
    X = EVEN if features == "even" else UNEVEN
    problem = problem_of(case, X)
    composite = composite_of(problem)
    method = method_of(composite, 1e-8, first=2)
    assert (method.columns.metric is not None) == (features == "uneven")
    result = run(composite, method, tol=1e-8)
    assert result.status is Status.OPTIMAL
    assert result.certificate.primal == pytest.approx(optimum(problem), rel=1e-7)


@pytest.mark.parametrize("backend", ["numpy", "torch"])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_every_backend_takes_gates_and_metric(backend: str, dtype: str) -> None:
    if backend == "torch":
        pytest.importorskip("torch")
    problem = problem_of("squared, biases", gates=100, share=0.1)
    tol = 1e-4 if dtype == "float32" else 1e-7
    value = problem.solve(solver=RFISTA(tol=tol, backend=backend, dtype=dtype))
    assert problem.status == cp.OPTIMAL
    assert value == pytest.approx(optimum(problem), rel=2.0 * tol)


def test_certificates_are_asked_for_at_the_gap_of_the_whole_objective() -> None:
    """A constant in it makes the same gap a smaller share; steps went on for half as long again."""
    objective = problem_of("squared, biases").objective.expr
    results = []
    for constant in (0.0, 100.0):
        composite = composite_of(cp.Problem(cp.Minimize(objective + constant)))
        results.append(run(composite, method_of(composite, 1e-6, first=10), tol=1e-6))
    assert [result.status for result in results] == [Status.OPTIMAL] * 2
    assert results[1].iterations < 0.8 * results[0].iterations


def states(method: GateDescent, composite: Composite, steps: int) -> list[GateState]:
    found = [method.start(composite.zeros())]
    for _ in range(steps):
        found.append(method.step(found[-1]))
    return found


def test_other_gates_neither_move_the_iterate_nor_its_outputs() -> None:
    composite = composite_of(problem_of("squared", share=0.02))
    method = method_of(composite, 1e-12, first=2)
    sizes = set()
    for state in states(method, composite, 200):
        sizes.add(len(state.chosen))
        assert np.all(np.diff(state.chosen) > 0)
        x = method.columns.lifted(state.descent.x, state.chosen)
        y = method.columns.lifted(state.descent.y, state.chosen)
        for point, outputs in ((x, state.descent.outputs), (y, state.descent.y_outputs)):
            np.testing.assert_allclose(outputs[0], composite.affine.forward(point)[0], rtol=1e-9, atol=1e-10)
    assert len(sizes) > 3


def test_most_gates_stay_outside_and_the_certificate_counts_them() -> None:
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((80, 4)), rng.standard_normal(80)
    model = cnn.gated_relu(X, cnn.sample_gates(X, 400, seed=0))
    composite = composite_of(model.problem(y, 0.3 * cnn.lambda_max(model, y)))
    method = method_of(composite, 1e-8, first=10)
    result = run(composite, method, tol=1e-8)
    assert result.status is Status.OPTIMAL
    final = states(method, composite, result.iterations)[-1]
    assert len(final.chosen) < 0.2 * method.columns.count
    again = Certifier(composite).certify(result.point)
    assert again.relative_gap is not None
    assert again.relative_gap <= 1e-8


@pytest.mark.parametrize("share", [0.05, 1e-6])
@pytest.mark.parametrize("end", [7, 30, 95])
def test_a_packed_state_goes_on_to_the_same_bits(end: int, share: float) -> None:
    composite = composite_of(problem_of("squared, biases", share=share))
    method = method_of(composite, 1e-7, first=3)
    whole = states(method, composite, 140)
    state = method.unpacked(method.packed(whole[end]))
    for expected in whole[end + 1 :]:
        state = method.step(state)
        assert state.schedule == expected.schedule
        assert np.array_equal(state.chosen, expected.chosen)
        for a, b in zip(state.descent.y, expected.descent.y, strict=True):
            assert np.array_equal(a, b)


def test_a_packed_state_goes_on_where_principal_components_have_other_signs() -> None:
    """As another machine may find them: weights that were turned with these are other weights."""
    composite = composite_of(problem_of("squared, biases"))
    method = method_of(composite, 1e-7, first=3)
    state = states(method, composite, 60)[-1]
    columns = method.columns
    assert columns.metric is not None
    signs = np.array([1.0, -1.0, 1.0, -1.0, -1.0, 1.0])
    metric = replace(columns.metric, basis=columns.metric.basis * signs)
    gates = replace(columns.gates, X=columns.gates.X * signs)
    other = replace(method, columns=replace(columns, metric=metric, gates=gates))
    resumed = other.unpacked(method.packed(state))
    for found, expected in ((resumed.descent.x, state.descent.x), (resumed.descent.y, state.descent.y)):
        ours, theirs = other.columns.lifted(found, state.chosen), columns.lifted(expected, state.chosen)
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)


def test_principal_components_save_iterations_where_features_are_uneven() -> None:
    """Of those on all gates in the user's features; the small ones matter here as much as the large."""
    X = UNEVEN * 10.0 ** np.linspace(0.0, 1.5, 6)
    y = X @ (1.0 / X.std(axis=0))
    model = cnn.gated_relu(X, cnn.sample_gates(X, 40, seed=1))
    composite = composite_of(model.problem(y, 0.05 * cnn.lambda_max(model, y)))
    ours = run(composite, method_of(composite, 1e-6, first=40), tol=1e-6)
    plain = run(composite, rfista_method(composite), tol=1e-6, max_iter=int(1.5 * ours.iterations))
    assert ours.status is Status.OPTIMAL
    assert plain.status is Status.ITERATION_LIMIT


@pytest.mark.parametrize("spread", [0, 3, 6])
@pytest.mark.parametrize("weight", [1e-3, 1.0, 30.0])
def test_shrinkage_meets_its_optimality_conditions(spread: int, weight: float) -> None:
    rng = np.random.default_rng(spread)
    steps = 10.0 ** (spread * rng.random((2, 9, 1)))
    v, weights = rng.standard_normal((2, 9, 50)), weight * rng.uniform(0.5, 2.0, (2, 50))
    u = shrunk(v, weights, steps, np)
    pull, norms = (v - u) / steps, np.linalg.norm(u, axis=1)
    zero = norms == 0.0
    assert np.all(np.linalg.norm(pull, axis=1)[zero] <= weights[zero])
    wanted = weights[:, None, :] * u / np.where(zero, 1.0, norms)[:, None, :]
    used = np.broadcast_to(~zero[:, None, :], u.shape)
    np.testing.assert_allclose(pull[used], wanted[used], rtol=1e-9, atol=1e-11 * weight)
    assert np.array_equal(zero, np.linalg.norm(v / steps, axis=1) <= weights)


@pytest.mark.parametrize("spread", [2, 6, 10])
def test_shrinkage_finds_a_planted_point_wherever_its_kinks_lie(spread: int) -> None:
    """Four Newton steps, once thought enough, left errors of up to a half."""
    rng = np.random.default_rng(spread)
    planted = rng.standard_normal((1, 12, 400))
    norms = np.linalg.norm(planted, axis=1)
    steps = 10.0 ** (spread * rng.random((1, 12, 1)))
    weights = norms * 10.0 ** rng.uniform(-spread - 1.0, 1.0, norms.shape)
    v = planted * (1.0 + steps * (weights / norms)[:, None, :])
    errors = np.linalg.norm(shrunk(v, weights, steps, np) - planted, axis=1) / norms
    assert np.quantile(errors, 0.98) <= 1e-11
    assert np.max(errors) <= 1e-7


def test_the_shrinkage_leaves_no_gap_of_its_own() -> None:
    """Four Newton steps of it left 5e-8."""
    rng = np.random.default_rng(2)
    X = rng.standard_normal((60, 8)) * 10.0 ** np.linspace(0.0, -1.5, 8)
    y = X @ (1.0 / X.std(axis=0)) / 3.0 + 0.1 * rng.standard_normal(60)
    model = cnn.gated_relu(X, cnn.sample_gates(X, 15, seed=1))
    composite = composite_of(model.problem(y, 0.03 * cnn.lambda_max(model, y)))
    result = run(composite, method_of(composite, 1e-10, first=15), tol=1e-10, max_iter=1500)
    assert result.status is Status.OPTIMAL


def test_one_step_for_all_entries_is_plain_shrinkage() -> None:
    v, weights = np.random.default_rng(0).standard_normal((2, 5, 30)), np.full((2, 30), 0.8)
    np.testing.assert_allclose(
        shrunk(v, weights, 2.0, np), shrunk(v, weights, np.full((2, 5, 1), 2.0), np), rtol=1e-12, atol=1e-14
    )


def penalties() -> dict[str, Any]:
    W, X = cp.Variable((4, 3)), np.random.default_rng(0).standard_normal((20, 4))
    model = cnn.gated_relu(EVEN, cnn.sample_gates(EVEN, 10))
    U = model.variables[0]
    fit = cp.sum_squares(model.prediction - Y) / 100
    return {
        "no gates": cp.sum_squares(X @ W - 1.0) + cp.norm1(W),
        "entries": fit + 0.01 * cp.norm1(U),
        "no penalty": fit,
        "two losses": fit + cp.sum_squares(U - 1.0) + 0.01 * model.penalty,
        "zero weight": fit + 0.0 * model.penalty,
    }


@pytest.mark.parametrize("case", penalties())
def test_what_has_no_gates_is_solved_on_all_variables(case: str) -> None:
    composite = composite_of(cp.Problem(cp.Minimize(penalties()[case])))
    assert isinstance(gradient_method(composite, composite, 1e-4), AcceleratedGradient)


def test_a_warm_start_takes_up_its_gates() -> None:
    problem = problem_of("squared", gates=150)
    problem.solve(solver=RFISTA(tol=1e-7))
    cold = problem.solver_stats.num_iters
    problem.parameters()[0].value *= 0.98
    problem.solve(solver=RFISTA(tol=1e-7))
    assert problem.status == cp.OPTIMAL
    assert problem.solver_stats.num_iters < cold
    columns = gate_columns(composite_of(problem), composite_of(problem))
    start = GateDescent(columns, 1e-7, first=1).start((problem.variables()[0].value,))
    used = np.flatnonzero(np.any(problem.variables()[0].value != 0.0, axis=0))
    assert set(used) <= set(start.chosen)
