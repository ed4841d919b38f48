"""A path solves every regularisation to a certified gap, warm, and agrees with solving each one alone."""

from __future__ import annotations

from typing import Any

import cvxpy as cp
import numpy as np
import pytest

import convexnn_models as cnn
from convexnn_models import paths
from convexnn_solvers import DualPoint, SemismoothNewton, certificate
from convexnn_solvers.newton.system import NewtonSystems

_RNG = np.random.default_rng(0)
_X = _RNG.standard_normal((60, 4))
_Y = np.maximum(_X @ _RNG.standard_normal(4), 0.0) - 0.3 * _X[:, 0]
_GATES = cnn.sample_gates(_X, 15)


@pytest.mark.parametrize("formulation", [cnn.gated_relu, cnn.relu])
@pytest.mark.parametrize("loss", ["squared", "huber", "logistic"])
def test_every_point_is_certified_and_no_worse_than_alone(formulation: Any, loss: str) -> None:
    y = np.sign(_Y - np.median(_Y)) if loss == "logistic" else _Y
    y = np.where(y == 0.0, 1.0, y)
    path = cnn.regularization_path(formulation(_X, _GATES), y, 4, ratio=0.05, loss=loss)
    assert len(path) == 4
    assert path[0].network.width == 0  # lambda_max: the zero network
    assert np.all(np.diff(path.regs) < 0.0)
    for point in path:
        assert point.status == cp.OPTIMAL
        assert point.certificate.relative_gap is not None
        assert point.certificate.relative_gap <= 1e-4
        problem = formulation(_X, _GATES).problem(y, point.reg, loss)
        problem.solve(solver=cp.CLARABEL)
        assert point.certificate.dual is not None
        assert point.certificate.dual <= problem.value * (1.0 + 1e-6) + 1e-9
        assert point.certificate.primal >= problem.value * (1.0 - 1e-6) - 1e-9
    assert path[-1].network.width > 0


def test_points_keep_their_dual_points_without_an_array_of_samples_by_gates() -> None:
    model = cnn.relu(_X, _GATES)
    path = cnn.regularization_path(model, _Y, 3, ratio=0.05)
    problem = model.problem(_Y, path[0].reg)
    for variable in model.variables:
        variable.value = np.zeros(variable.shape)  # the bound of a dual point needs no other point
    for point in path:
        dual = point.certificate.dual_point
        assert dual is not None
        assert sum(a.size for a in (*dual.thetas, *dual.multipliers) if a is not None) == _Y.size
        model.reg.value = point.reg
        assert point.certificate.dual is not None
        again = certificate(problem, dual).dual
        assert again is not None
        assert again >= point.certificate.dual * (1.0 - 1e-9)


def test_a_path_leaves_the_model_as_it_was() -> None:
    """A program of the user's own goes on from its own solution, at its own reg, also after a failed path."""
    model, fresh = cnn.relu(_X, _GATES), cnn.relu(_X, _GATES)
    problem = model.problem(_Y, 0.05)
    problem.solve(solver=SemismoothNewton())
    training, reg, network = model.training, model.reg, cnn.recover(model)
    held = [variable.value.copy() for variable in model.variables]
    cnn.regularization_path(model, 2.0 * _Y, 3, loss="huber")
    with pytest.raises(cp.SolverError):
        cnn.regularization_path(model, _Y, regs=[0.1], solver="a solver that nobody has")
    assert (model.training, model.reg) == (training, reg)
    assert reg.value == 0.05
    for variable, value in zip(model.variables, held, strict=True):
        np.testing.assert_array_equal(variable.value, value)
    np.testing.assert_array_equal(cnn.recover(model).predict(_X), network.predict(_X))
    cnn.regularization_path(fresh, _Y, 2)
    assert fresh.training is None
    assert all(variable.value is None for variable in fresh.variables)


def test_points_and_paths_read_well() -> None:
    path = cnn.regularization_path(cnn.gated_relu(_X, _GATES), _Y, regs=[1000.0, 2000.0])
    heading, *rows = str(path).splitlines()
    assert len(rows) == 2
    assert str(path[0]) == f"{heading}\n{rows[0]}"
    assert repr(path) == "RegularizationPath(2 points, reg from 2000 to 1000)"
    assert repr(path[0]) == "PathPoint(reg=2000, optimal, Network(gated: 4 inputs, 0 neurons, 1 output))"


@pytest.mark.parametrize("formulation", [cnn.gated_relu, cnn.relu])
@pytest.mark.parametrize("loss", ["squared", "huber", "logistic"])
def test_the_last_dual_point_saves_newton_steps_at_the_next_regularisation(
    formulation: Any, loss: str
) -> None:
    y = np.where(np.median(_Y) > _Y, -1.0, 1.0) if loss == "logistic" else _Y
    largest = cnn.lambda_max(formulation(_X, _GATES), y, loss)

    def steps(ratios: list[float]) -> int:
        model = formulation(_X, _GATES)
        problem = model.problem(y, largest, loss)
        for ratio in ratios:
            model.reg.value = ratio * largest
            problem.solve(solver=SemismoothNewton(tol=1e-8), warm_start=True)
            assert problem.status == cp.OPTIMAL
        return int(problem.solver_stats.num_iters)

    assert steps([0.05, 0.045]) < steps([0.045])
    assert steps([0.05, 0.05]) == 0


@pytest.fixture
def solved_systems(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many linear systems Newton's method has solved with a factor of their own."""
    solved, solve = [0], NewtonSystems.solve

    def counted(*arguments: Any, **options: Any) -> Any:
        solved[0] += 1
        return solve(*arguments, **options)

    monkeypatch.setattr(NewtonSystems, "solve", counted)
    return solved


@pytest.mark.parametrize(("formulation", "most"), [(cnn.gated_relu, 1.5), (cnn.relu, 3.0)])
def test_points_of_a_path_take_few_newton_systems_each(
    formulation: Any, most: float, solved_systems: list[int]
) -> None:
    rng = np.random.default_rng(3)
    X = rng.standard_normal((120, 6))
    y = np.maximum(X @ rng.standard_normal((6, 3)), 0.0).sum(axis=1) + 0.1 * rng.standard_normal(120)
    gates = cnn.sample_gates(X, 40)
    path = cnn.regularization_path(formulation(X, gates), y, 30, solver=SemismoothNewton())
    assert all(point.status == cp.OPTIMAL for point in path)
    assert 10 < solved_systems[0] <= most * 30


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("loss", ["squared", "logistic"])
def test_the_factor_of_a_regularisation_serves_the_one_beside_it(
    loss: str, bias: bool, solved_systems: list[int]
) -> None:
    y = np.where(np.median(_Y) > _Y, -1.0, 1.0) if loss == "logistic" else _Y
    model = cnn.gated_relu(_X, _GATES, output_bias=bias)
    largest = cnn.lambda_max(model, y, loss)
    problem = model.problem(y, 0.05 * largest, loss)
    problem.solve(solver=SemismoothNewton(tol=1e-9))
    assert solved_systems[0] > 0
    model.reg.value, solved_systems[0] = 0.0499 * largest, 0
    problem.solve(solver=SemismoothNewton(tol=1e-7), warm_start=True)
    assert problem.status == cp.OPTIMAL
    assert problem.solver_stats.num_iters > 0
    assert solved_systems[0] == 0


def test_a_dual_point_of_other_labels_is_no_start() -> None:
    """The dual variable of a logistic loss has the signs of its labels."""
    model, labels = cnn.gated_relu(_X, _GATES), cp.Parameter(60)
    loss = cp.sum(cp.logistic(cp.multiply(-labels, model.prediction))) / 60
    problem = cp.Problem(cp.Minimize(loss + 0.01 * model.penalty))
    y = np.where(np.median(_Y) > _Y, -1.0, 1.0)
    values = []
    for signs in (y, -y):
        labels.value = signs
        problem.solve(solver=SemismoothNewton(tol=1e-8), warm_start=True)
        assert problem.status == cp.OPTIMAL
        values.append(problem.value)
    assert values[0] == pytest.approx(values[1], rel=1e-7)  # weights of the other sign


def test_the_dual_point_moves_on_as_if_it_were_linear_in_the_square() -> None:
    rng = np.random.default_rng(0)
    values = [tuple(rng.standard_normal(shape) for shape in ((4, 15), (2,), ())) for _ in range(2)]
    values[0][0][:, 3] = 0.0  # a block that was not there before stays
    slope, start = rng.standard_normal((2, 60))
    regs = (3.0, 2.0, 1.0)
    ends = [
        paths._End(reg, value, DualPoint((start + slope * reg**2,)))  # pyright: ignore[reportPrivateUsage]
        for reg, value in zip(regs, values, strict=False)
    ]
    found = paths._extrapolated(ends, regs[2])  # pyright: ignore[reportPrivateUsage]
    assert found is not None
    assert found.dual is not None
    np.testing.assert_allclose(found.dual.thetas[0], start + slope, atol=1e-12)
    for value, old, new in zip(found.values, *values, strict=True):
        expected = np.asarray(new + (new - old))
        if value.ndim == 2:
            expected[:, 3] = new[:, 3]
        np.testing.assert_allclose(value, expected, atol=1e-12)


def test_a_solver_goes_by_its_name_too() -> None:
    """And starts where the last two points lead, as it does when it comes as an instance."""
    named, given = (
        cnn.regularization_path(cnn.relu(_X, _GATES), _Y, 5, solver=solver)
        for solver in ("semismoothnewton", SemismoothNewton())
    )
    for one, other in zip(named, given, strict=True):
        assert one.certificate.primal == other.certificate.primal
        np.testing.assert_array_equal(one.network.W1, other.network.W1)


def test_points_that_a_limit_ended_say_so() -> None:
    model = cnn.relu(_X, _GATES)
    with pytest.warns(UserWarning, match=r"At reg = 0\.03: max_iter"):
        (point,) = cnn.regularization_path(model, _Y, regs=[0.03], solver=SemismoothNewton(max_iter=0))
    assert point.status == "user_limit"
    assert point.certificate.relative_gap is not None
    assert point.certificate.relative_gap > 1e-4


def test_given_regularisations_are_solved_in_falling_order_by_any_solver() -> None:
    path = cnn.regularization_path(cnn.gated_relu(_X, _GATES), _Y, regs=[0.01, 0.1, 0.03], solver=cp.CLARABEL)
    assert list(path.regs) == [0.1, 0.03, 0.01]
    widths = str(path).splitlines()
    assert len(widths) == 4
    objectives = [point.certificate.primal for point in path]
    assert objectives == sorted(objectives, reverse=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_regs": 0}, "n_regs"),
        ({"ratio": 1.5}, "ratio"),
        ({"regs": []}, "regs"),
        ({"regs": [0.1, -1.0]}, "regs"),
        ({"regs": [np.nan]}, "regs"),
        ({"loss": "absolute"}, "gradient"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cnn.regularization_path(cnn.gated_relu(_X, _GATES), _Y, **arguments)


def test_nothing_to_fit_is_said() -> None:
    with pytest.raises(ValueError, match="zero network"):
        cnn.regularization_path(cnn.gated_relu(_X, _GATES), np.zeros(60))
