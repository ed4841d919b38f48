"""Small networks beside constraints, or with losses without a gradient: the splitting with Newton steps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
from resumable import solve

import convexnn_models as cnn
from benchmarks import beside
from convexnn_solvers import Auto, certificate
from convexnn_solvers.backends import numpy_backend
from convexnn_solvers.first_order.proximal import projectable_cones, proximal_map
from convexnn_solvers.functions.constraint_cones import NONNEGATIVE, ZERO, Cone, SecondOrder
from convexnn_solvers.functions.losses import Exponential, Huber, Loss, Softplus, Square, SquaredHinge
from convexnn_solvers.functions.nonsmooth_losses import Maximum, Norms, PiecewiseLinear, Supremum
from convexnn_solvers.reading.compiler import compile_problem
from convexnn_solvers.splitting.dense_rows import DenseRows, dense_rows, flat
from convexnn_solvers.splitting.method import splitting_newton_method
from convexnn_solvers.splitting.row_jacobians import row_jacobian
from convexnn_solvers.splitting.row_terms import ConeRows, LossRows, RowTerms
from convexnn_solvers.splitting.weight_jacobians import weight_jacobian

N = 30
RNG = np.random.default_rng(0)
X = RNG.standard_normal((N, 4))
Y = np.abs(X[:, 0]) + 0.5 * X[:, 1] + 0.3 * RNG.standard_normal(N)
LABELS = np.sign(X[:, 0] * X[:, 1] + 0.3 + 0.3 * RNG.standard_normal(N))
GATES = cnn.sample_gates(X, 6, seed=0)
REG = 0.01


def program(loss: Any, *models: cnn.ConvexModel, constraints: Any = ()) -> cp.Problem:
    penalty = sum(model.penalty for model in models)
    cones = [cone for model in models for cone in model.constraints]
    return cp.Problem(cp.Minimize(loss + REG * penalty), [*cones, *constraints])


def relu() -> cnn.ConvexModel:
    return cnn.relu(X, GATES)


def pinball(error: Any, level: float) -> Any:
    return cp.sum(cp.maximum(level * error, (level - 1.0) * error)) / N


def squares(error: Any) -> Any:
    return cp.sum_squares(error) / (2 * N)


def quantiles_that_do_not_cross() -> cp.Problem:
    low, high = relu(), relu()
    loss = pinball(Y - low.prediction, 0.2) + pinball(Y - high.prediction, 0.8)
    return program(loss, low, high, constraints=[low.prediction <= high.prediction])


def median_in_a_box() -> cp.Problem:
    model = relu()
    box = [model.prediction >= 0.0, model.prediction <= 2.0]
    return program(pinball(Y - model.prediction, 0.5), model, constraints=box)


def slacks_of_a_margin() -> cp.Problem:
    model, slack = relu(), cp.Variable(N)
    margins = cp.multiply(LABELS, model.prediction)
    return program(cp.sum(slack) / N, model, constraints=[slack >= 0.0, slack >= 1.0 - margins])


def slacks_of_an_error() -> cp.Problem:
    model, over, under = relu(), cp.Variable(N, nonneg=True), cp.Variable(N, nonneg=True)
    parted = [Y - model.prediction == over - under]
    return program(cp.sum(over + under) / N, model, constraints=parted)


def squares_in_a_box() -> cp.Problem:
    model = relu()
    box = [model.prediction >= 0.0, model.prediction <= 2.0]
    return program(squares(model.prediction - Y), model, constraints=box)


def bounded_derivatives() -> cp.Problem:
    model = relu()
    V, W = model.variables
    slopes = GATES.patterns.astype(float) @ (V - W).T
    return program(squares(model.prediction - Y), model, constraints=[cp.abs(slopes) <= 0.5])


def sums_of_weights() -> cp.Problem:
    model = relu()
    V, W = model.variables
    return program(squares(model.prediction - Y), model, constraints=[cp.sum(V - W, axis=1) == 0.1])


def fair_hinge() -> cp.Problem:
    model, group = relu(), X[:, 2] > 0.0
    means = [cp.sum(model.prediction[side]) / side.sum() for side in (group, ~group)]
    loss = cp.sum(cp.pos(1.0 - cp.multiply(LABELS, model.prediction))) / N
    return program(loss, model, constraints=[cp.abs(means[0] - means[1]) <= 0.02])


def orders_and_a_store() -> cp.Problem:
    model = relu()
    missing, left = cp.pos(Y - model.prediction), cp.pos(model.prediction - Y)
    store = [model.prediction >= 0.0, cp.sum(model.prediction) <= 0.6 * N]
    return program((2.0 * cp.sum(missing) + 0.5 * cp.sum(left)) / N, model, constraints=store)


def zone_without_loss() -> cp.Problem:
    model = relu()
    return program(cp.sum(cp.pos(cp.abs(model.prediction - Y) - 0.1)) / N, model)


def logistic_with_equal_means() -> cp.Problem:
    model, group = cnn.gated_relu(X, GATES), X[:, 2] > 0.0
    loss = cp.sum(cp.logistic(-cp.multiply(LABELS, model.prediction))) / N
    equal = [cp.sum(model.prediction[group]) == cp.sum(model.prediction[~group])]
    return program(loss, model, constraints=equal)


PROGRAMS: tuple[Callable[[], cp.Problem], ...] = (
    *(quantiles_that_do_not_cross, median_in_a_box, slacks_of_a_margin, slacks_of_an_error, squares_in_a_box),
    *(bounded_derivatives, sums_of_weights, fair_hinge, orders_and_a_store, zone_without_loss),
    logistic_with_equal_means,
)


@pytest.mark.parametrize("make", PROGRAMS, ids=lambda make: make.__name__)
def test_both_roads_certify_one_optimum(make: Callable[[], cp.Problem]) -> None:
    theirs: Any = make()
    problem: Any = make()
    theirs.solve(solver=cp.CLARABEL)
    problem.solve(solver=Auto(), max_iter=4000)
    assert problem.status == cp.OPTIMAL
    assert [run["engine"] for run in problem.solver_stats.extra_stats["engines"]] == ["SplittingNewton"]
    found = certificate(problem)
    assert found.within(1.01e-4)
    assert problem.value == pytest.approx(theirs.value, rel=1.5e-4)
    assert found.dual is not None
    assert found.dual <= theirs.value + 1e-6 * abs(theirs.value)


@pytest.mark.parametrize("make", [median_in_a_box, squares_in_a_box], ids=lambda make: make.__name__)
def test_small_tolerances_are_reached(make: Callable[[], cp.Problem]) -> None:
    problem = make()
    problem.solve(solver=Auto(tol=1e-8), max_iter=4000)
    assert problem.status == cp.OPTIMAL
    assert certificate(problem).within(1.01e-8)


def test_a_second_solve_begins_where_the_first_one_ended() -> None:
    problem: Any = median_in_a_box()
    problem.solve(solver=Auto(), max_iter=4000)
    first = problem.solver_stats.num_iters
    problem.solve(solver=Auto(tol=5e-5), max_iter=4000)
    assert problem.status == cp.OPTIMAL
    assert problem.solver_stats.num_iters < first


def test_what_was_left_of_targets_of_another_size_is_forgotten_at_once() -> None:
    rng = np.random.default_rng(3)
    features = rng.standard_normal((20, 3))
    targets = np.abs(features[:, 0]) + 0.3 * rng.standard_normal(20)
    model = cnn.relu(features, cnn.sample_gates(features, 5, seed=0))
    target, reg = cp.Parameter(20, value=targets), cp.Parameter(nonneg=True, value=1e-6)
    objective = cp.sum(cp.abs(model.prediction - target)) / 20 + reg * model.penalty
    box: list[Any] = [model.prediction <= 0.5, cp.sum(model.prediction) == 5.0]
    problem: Any = cp.Problem(cp.Minimize(objective), [*model.constraints, *box])
    problem.solve(solver=Auto())
    cold, value = problem.solver_stats.num_iters, problem.value
    target.value, reg.value = 1e5 * targets, 0.01
    problem.solve(solver=Auto())
    target.value, reg.value = targets, 1e-6
    problem.solve(solver=Auto(max_iter=2 * cold))
    assert problem.status == cp.OPTIMAL
    assert problem.value == pytest.approx(value, rel=1e-4)


@pytest.mark.parametrize("make", [median_in_a_box, squares_in_a_box], ids=lambda make: make.__name__)
@pytest.mark.parametrize("stop", [60, 215], ids=["in the splitting", "in a Newton phase"])
def test_resumed_from_a_file_it_goes_on_as_if_nothing_had_happened(
    stop: int, make: Callable[[], cp.Problem], tmp_path: Path
) -> None:
    file, looking = tmp_path / "solve.npz", {"callback": lambda info: False}
    whole = solve(make(), Auto(tol=0.0, max_iter=230), **looking)
    solve(make(), Auto(tol=0.0, max_iter=stop, checkpoint=file), **looking)
    resumed = solve(make(), Auto(tol=0.0, max_iter=230, checkpoint=file, resume=True), **looking)
    assert resumed["engines"][-1]["engine"] == "SplittingNewton"
    assert [row["iteration"] for row in resumed["history"]] == [row["iteration"] for row in whole["history"]]
    assert max(row["iteration"] for row in whole["history"]) > 215
    for key in ("primal", "dual"):
        ours, theirs = ([row[key] for row in extra["history"]] for extra in (resumed, whole))
        np.testing.assert_allclose(ours, theirs, rtol=1e-7)


def test_dual_values_are_those_of_another_solver() -> None:
    theirs: Any = squares_in_a_box()
    problem: Any = squares_in_a_box()
    theirs.solve(solver=cp.CLARABEL)
    problem.solve(solver=Auto(tol=1e-8), max_iter=4000)
    for ours, reference in zip(problem.constraints[2:], theirs.constraints[2:], strict=True):
        np.testing.assert_allclose(ours.dual_value, reference.dual_value, atol=1e-4)


def test_what_no_point_satisfies_is_proved_infeasible() -> None:
    model = relu()
    impossible = [cp.sum(model.prediction) >= 1.0, cp.sum(model.prediction) <= -1.0]
    problem = program(squares(model.prediction - Y), model, constraints=impossible)
    problem.solve(solver=Auto(), max_iter=4000)
    assert problem.status == cp.INFEASIBLE


@pytest.mark.parametrize("units", [1e-4, 1e4])
def test_units_of_the_features_do_not_matter(units: float) -> None:
    model = cnn.relu(units * X, GATES)
    box = [model.prediction >= 0.0, model.prediction <= 2.0]
    loss = pinball(Y - model.prediction, 0.5)
    problem = cp.Problem(cp.Minimize(loss + units * REG * model.penalty), [*model.constraints, *box])
    problem.solve(solver=Auto(), max_iter=4000)
    same = median_in_a_box()
    same.solve(solver=Auto(), max_iter=4000)
    assert problem.status == cp.OPTIMAL
    assert problem.value == pytest.approx(same.value, rel=2e-4)


def _in_units(units: float, size: float) -> cp.Problem:
    """One pattern, whose gate does not see some samples: their rows are zero. A norm in a box."""
    model = cnn.relu(X, cnn.sample_gates(X, 1, seed=0))
    box = [units * model.prediction <= units, size * cp.sum(model.prediction) >= -size]
    return program(cp.norm(Y - model.prediction), model, constraints=box)


@pytest.mark.parametrize(("units", "size"), [(1e6, 1e-6), (1e6, 1.0), (1e-6, 1e6)])
def test_units_of_constraints_do_not_matter(units: float, size: float) -> None:
    problem, same = _in_units(units, size), _in_units(1.0, 1.0)
    problem.solve(solver=Auto(), max_iter=1000)
    same.solve(solver=Auto(), max_iter=1000)
    assert problem.status == cp.OPTIMAL
    assert problem.value == pytest.approx(same.value, rel=2e-4)


def _differences(apply: Callable[[Any], Any], q: Any) -> Any:
    h = 1e-6
    unit = np.eye(q.size)
    return np.column_stack([(apply(q + h * e) - apply(q - h * e)) / (2.0 * h) for e in unit])


LOSSES: tuple[Loss, ...] = (
    *(Square(), Huber(0.3), Softplus(), Exponential(), SquaredHinge(), PiecewiseLinear(-0.2, 0.8)),
    *(Norms(), Supremum(), Maximum()),
)


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.name)
def test_jacobians_of_losses_are_differences(loss: Loss) -> None:
    q = np.random.default_rng(1).standard_normal(6)
    steps = np.full(6, 0.7)
    _compare_rows(LossRows(loss, np.asarray(0.9), 0.2), q, steps)


def test_jacobians_of_grouped_maxima_are_differences() -> None:
    q = np.random.default_rng(2).standard_normal(6)
    terms = LossRows(Maximum(0), np.asarray([0.5, 1.5]), 0.0)
    _compare_rows(terms, q, np.full(6, 0.7), (3, 2))


@pytest.mark.parametrize("cone", [NONNEGATIVE, ZERO, SecondOrder()], ids=lambda cone: cone.name)
def test_jacobians_of_cones_are_differences(cone: Cone) -> None:
    _compare_rows(ConeRows(cone), np.random.default_rng(3).standard_normal(6), np.ones(6), (6, 1))


def _compare_rows(term: LossRows | ConeRows, q: Any, steps: Any, shape: tuple[int, ...] = (6,)) -> None:
    rows = DenseRows(np.zeros((6, 1)), np.zeros(6), ((1,),), (shape,))
    terms = RowTerms(rows, (term,), ())
    found = row_jacobian(terms, q, terms.prox(q, steps), steps)
    assert found is not None
    wanted = _differences(lambda p: terms.prox(p, steps), q)
    np.testing.assert_allclose(np.diag(found.diagonal) + found.columns @ found.columns.T, wanted, atol=1e-5)


@pytest.mark.parametrize("outputs", [1, 2])
@pytest.mark.parametrize("cones", [True, False])
def test_jacobians_of_weights_are_differences(outputs: int, cones: bool) -> None:
    make = cnn.relu if cones else cnn.gated_relu
    model = make(X, GATES, outputs=outputs)
    composite = compile_problem(program(cp.sum_squares(model.prediction), model), numpy_backend()).composite()
    projected = projectable_cones(composite)
    rows = dense_rows(composite, (), None)
    prox = proximal_map(composite, projected)
    lengths = (30.0,) * len(rows.variables)
    a: Any = np.random.default_rng(4).standard_normal(rows.matrix.shape[1])
    found = weight_jacobian(prox, rows, flat(prox(rows.point(a), lengths)), lengths)
    wanted = _differences(lambda p: flat(prox(rows.point(p), lengths)), a)
    ours = found.vectors @ np.diag(found.values) @ found.vectors.T
    np.testing.assert_allclose(ours, wanted, atol=1e-5)
    np.testing.assert_allclose(found.vectors.T @ found.vectors, np.eye(found.values.size), atol=1e-12)


def test_rows_are_those_of_the_affine_map() -> None:
    composite = compile_problem(slacks_of_an_error(), numpy_backend()).composite()
    method = splitting_newton_method(composite, 1e-4)
    rows, rng = method.parts.rows, np.random.default_rng(5)
    x: Any = rng.standard_normal(rows.matrix.shape[1])
    np.testing.assert_allclose(rows.forward(x), flat(composite.affine.forward(rows.point(x))[2:]), atol=1e-12)


def test_the_table_beside_another_solver_has_a_row_per_program(capsys: pytest.CaptureFixture[str]) -> None:
    size = ["--samples", "12", "--features", "3", "--gates", "3"]
    beside.main([*size, "--only", "sums_of_weights", "squares_in_a_box"])
    rows = capsys.readouterr().out.splitlines()[1:]
    assert [row.split()[0] for row in rows] == ["squares_in_a_box", "sums_of_weights"]
    assert all(row.count("optimal") == 2 for row in rows)
