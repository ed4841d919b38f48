"""How solves end: limits, callbacks, interrupts and bad numbers all hand back the best certified point."""

from __future__ import annotations

import itertools
import time
import warnings
from dataclasses import replace
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
from planted import Planted, plant

import convexnn_models as cnn
from convexnn_solvers import (
    ADMM,
    RFISTA,
    AugmentedLagrangian,
    Auto,
    BlockDescent,
    Progress,
    SemismoothNewton,
    Status,
    certificate,
)
from convexnn_solvers.certify.certifier import Certifier
from convexnn_solvers.composite import Composite
from convexnn_solvers.first_order.accelerated import Descent
from convexnn_solvers.first_order.augmented_lagrangian import augmented_lagrangian_method
from convexnn_solvers.first_order.rfista import AcceleratedGradient, rfista_method
from convexnn_solvers.loop.iterate import Candidate, Limits, iterate
from convexnn_solvers.loop.result import Result

SOLVERS = pytest.mark.parametrize("solver", [RFISTA, AugmentedLagrangian])
# Those that know their gap at every step.
GATED = pytest.mark.parametrize("solver", [ADMM, BlockDescent, SemismoothNewton])


def problem_for(solver: Any, reg: float = 0.02) -> Any:
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((30, 4)), rng.standard_normal(30)
    formulation = cnn.relu if solver in (AugmentedLagrangian, SemismoothNewton) else cnn.gated_relu
    return formulation(X, cnn.sample_gates(X, 10, seed=0)).problem(y, reg=reg)


def solve(problem: Any, **options: Any) -> Any:
    """Solve without CVXPY's warning of a limit; the statistics."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Solution may be inaccurate")
        problem.solve(**options)
    return problem.solver_stats


def interrupt(info: Progress) -> None:
    if info.iteration >= 20:
        raise KeyboardInterrupt


def dawdle(info: Progress) -> None:
    """So that the time is over long before the solve is, on any machine."""
    time.sleep(0.02)


ENDS: dict[str, tuple[dict[str, Any], Status, str]] = {
    "max_iter": ({"max_iter": 25}, Status.ITERATION_LIMIT, cp.USER_LIMIT),
    "no iterations": ({"max_iter": 0}, Status.ITERATION_LIMIT, cp.USER_LIMIT),
    "time_limit": ({"time_limit": 0.05, "callback": dawdle}, Status.TIME_LIMIT, cp.USER_LIMIT),
    "no time": ({"time_limit": 0.0}, Status.TIME_LIMIT, cp.USER_LIMIT),
    "callback": ({"callback": lambda info: info.iteration >= 20}, Status.STOPPED, cp.USER_LIMIT),
    "interrupt": ({"callback": interrupt}, Status.INTERRUPTED, cp.USER_LIMIT),
    "tol": ({"tol": 0.5}, Status.OPTIMAL, cp.OPTIMAL),
}


@SOLVERS
@pytest.mark.parametrize("end", ENDS)
def test_every_end_hands_back_the_best_certified_point(solver: Any, end: str) -> None:
    options, status, name = ENDS[end]
    problem = problem_for(solver)
    stats = solve(problem, solver=solver(**{"tol": 1e-13, **options}))
    extra = stats.extra_stats
    assert (extra["status"], problem.status) == (status, name)
    if end == "max_iter":
        assert stats.num_iters == 25
    own = extra["certificate"]
    judged = certificate(problem)
    assert problem.value == pytest.approx(own.primal, rel=1e-12)
    assert judged.max_violation <= 1e-12
    assert judged.relative_gap <= own.relative_gap * (1 + 1e-6) + 1e-12
    assert own.primal <= min(row["primal"] for row in extra["history"]) * (1 + 1e-12)


@GATED
@pytest.mark.parametrize(
    ("option", "status"),
    [({"max_iter": 3}, Status.ITERATION_LIMIT), ({"time_limit": 0.0}, Status.TIME_LIMIT)],
)
def test_limits_of_gated_programs_hand_back_the_best_certified_point(
    solver: Any, option: dict[str, float], status: Status
) -> None:
    problem = problem_for(solver, reg=0.001)
    extra = solve(problem, solver=solver(tol=1e-9, **option)).extra_stats
    assert (problem.status, extra["status"]) == (cp.USER_LIMIT, status)
    assert extra["certificate"].relative_gap > 1e-9
    assert problem.value == pytest.approx(extra["certificate"].primal)


@GATED
def test_a_limit_after_a_warm_start_proves_no_less_than_the_start(solver: Any) -> None:
    """Dual points of the first steps can be worse than the one that the last regularisation left."""
    rng = np.random.default_rng(3)
    X = rng.standard_normal((40, 4))
    y = np.sin(2.0 * X[:, 0]) + 0.3 * rng.standard_normal(40)
    gates = cnn.sample_gates(X, 20, seed=0)
    bounds = []
    for steps in range(5):
        model = (cnn.relu if solver is SemismoothNewton else cnn.gated_relu)(X, gates)
        problem = model.problem(y, reg=0.02)
        problem.solve(solver=solver(tol=1e-6))
        model.reg.value = 0.015
        bounds.append(solve(problem, solver=solver(tol=1e-9, max_iter=steps)).extra_stats["certificate"].dual)
    assert min(bounds) >= bounds[0] * (1.0 - 1e-9)


@GATED
def test_an_unreachable_tolerance_stalls_instead_of_running_on(solver: Any) -> None:
    problem = problem_for(solver, reg=0.05)
    extra = solve(problem, solver=solver(tol=0.0)).extra_stats
    assert extra["status"] in (Status.STALLED, Status.OPTIMAL)
    assert extra["certificate"].relative_gap <= 1e-11


@pytest.mark.parametrize("solver", [Auto, AugmentedLagrangian])
@pytest.mark.parametrize("formulation", [cnn.gated_relu, cnn.relu])
def test_targets_that_free_variables_fit_end_the_solve(formulation: Any, solver: Any) -> None:
    """The optimum is zero, and what is left of it to rounding is no reason to go on."""
    rng = np.random.default_rng(1)
    X = rng.standard_normal((20, 3))
    model = formulation(X, cnn.sample_gates(X, 5, seed=0))
    w: Any = cp.Variable(3)
    b: Any = cp.Variable()
    y = 0.3 * (X @ rng.standard_normal(3)) + 0.7
    cost = cp.sum_squares(model.prediction + X @ w + b - y) / 40
    problem: Any = cp.Problem(cp.Minimize(cost + 0.01 * model.penalty), model.constraints)
    problem.solve(solver=solver(max_iter=20_000))
    assert problem.status == cp.OPTIMAL
    assert not model.penalty.value
    assert problem.value <= 1e-27
    np.testing.assert_allclose(X @ w.value + b.value, y, rtol=1e-13, atol=1e-13)


@SOLVERS
def test_solving_on_continues_from_where_a_limit_stopped(solver: Any) -> None:
    stopped, whole = problem_for(solver), problem_for(solver)
    cold = solve(whole, solver=solver(tol=1e-4)).num_iters
    solve(stopped, solver=solver(tol=1e-4, max_iter=(4 * cold) // 5))
    gap = stopped.solver_stats.extra_stats["certificate"].relative_gap
    rest = solve(stopped, solver=solver(tol=1e-4))
    assert rest.extra_stats["history"][0]["relative_gap"] <= gap * (1 + 1e-9)
    assert rest.num_iters < 0.7 * cold
    assert stopped.status == whole.status == cp.OPTIMAL


@SOLVERS
def test_the_history_never_gets_worse(solver: Any) -> None:
    problem = problem_for(solver)
    seen: list[Progress] = []
    history = solve(problem, solver=solver(tol=1e-4), callback=seen.append).extra_stats["history"]
    assert [row["iteration"] for row in history] == [info.iteration for info in seen]
    gaps = [row["relative_gap"] for row in history]
    assert all(a >= b for a, b in itertools.pairwise(gaps))
    assert all(row["dual"] <= row["primal"] * (1 + 1e-12) for row in history)
    seconds = [row["seconds"] for row in history]
    assert seconds == sorted(seconds)


def test_certificates_come_at_iterations_that_do_not_depend_on_the_clock() -> None:
    problem = problem_for(RFISTA)
    solver = RFISTA(tol=1e-13, max_iter=300, callback=lambda info: False)
    history = solve(problem, solver=solver).extra_stats["history"]
    looks = [row["iteration"] for row in history]
    expected = [0]
    while expected[-1] < 300:
        expected.append(min(300, expected[-1] + max(10, expected[-1] // 10)))
    assert looks == expected


def run(composite: Composite, **limits: Any) -> Result:
    method: Any = (augmented_lagrangian_method if composite.constraints else rfista_method)(composite)
    starts = [Candidate(tuple(np.zeros(v.shape) for v in composite.variables))]
    return iterate(method, composite, Certifier(composite), starts, Limits(**limits))


def test_rounding_ends_in_a_stall_and_not_in_a_hang() -> None:
    planted = plant(0, cones=False)
    result = run(planted.composite(), tol=0.0, max_iter=100_000)
    assert result.status in (Status.STALLED, Status.OPTIMAL)
    assert result.certificate.relative_gap is not None
    assert 0.0 <= result.certificate.relative_gap <= 1e-9


@pytest.mark.parametrize("again", [False, True], ids=["once", "twice"])
def test_an_interrupt_hands_back_the_latest_point(again: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    composite = plant(0, cones=False).composite()
    points = [run(composite, tol=0.0, max_iter=iterations).point[0] for iterations in (60, 66)]
    step, candidate, count = AcceleratedGradient.step, AcceleratedGradient.candidate, 0

    def interrupted(self: AcceleratedGradient, state: Descent) -> Descent:
        nonlocal count
        count += 1
        if count > 66:
            raise KeyboardInterrupt
        return step(self, state)

    def impatient(self: AcceleratedGradient, state: Descent) -> Candidate:
        if again and count > 66:
            raise KeyboardInterrupt
        return candidate(self, state)

    monkeypatch.setattr(AcceleratedGradient, "step", interrupted)
    monkeypatch.setattr(AcceleratedGradient, "candidate", impatient)
    result = run(composite, tol=0.0)
    assert (result.status, result.iterations) == (Status.INTERRUPTED, 66)
    np.testing.assert_array_equal(result.point[0], points[0 if again else 1])


class _Exploding:
    """A method that diverges after a while: into NaN residuals, or into points that are not finite."""

    name = "exploding"
    judges_itself = False

    def __init__(self, planted: Planted, through: str) -> None:
        self.planted, self.through = planted, through

    def start(self, x: Any) -> int:
        return 0

    def step(self, state: int) -> int:
        return state + 1

    def residual(self, state: int) -> float:
        return np.nan if self.through == "residual" and state > 15 else 1.0

    def wants_look(self, state: int) -> bool:
        return False

    def candidate(self, state: int) -> Candidate:
        bad = self.through == "point" and state > 15
        return Candidate(tuple((np.inf if bad else 0.9) * a for a in self.planted.point))

    def multipliers(self, state: int) -> tuple[Any, ...]:
        return ()


@pytest.mark.parametrize("through", ["residual", "point"])
def test_numbers_that_are_not_finite_end_with_the_best_point_before(through: str) -> None:
    planted = plant(0, cones=False)
    composite = planted.composite()
    starts = [Candidate(tuple(np.zeros(v.shape) for v in composite.variables))]
    with np.errstate(invalid="ignore"):
        result = iterate(
            _Exploding(planted, through), composite, Certifier(composite), starts, Limits(tol=0.0)
        )
    assert result.status is Status.NOT_FINITE
    assert result.status.cvxpy == "user_limit"
    np.testing.assert_array_equal(result.point[0], 0.9 * planted.point[0])


def test_an_optimal_start_ends_the_solve_without_a_step() -> None:
    planted = plant(3, cones=True)
    composite = planted.composite()
    starts = [Candidate(planted.point), Candidate(tuple(np.zeros(v.shape) for v in composite.variables))]
    method = augmented_lagrangian_method(composite)
    result = iterate(method, composite, Certifier(composite), starts, Limits(tol=1e-9))
    assert (result.status, result.iterations) == (Status.OPTIMAL, 0)
    assert all(np.any(mu > 0.0) for mu in result.multipliers)  # the bound's, though no step was taken


def test_a_bad_start_is_not_where_it_begins() -> None:
    planted = plant(4, cones=False)
    composite = planted.composite()
    zero = Candidate(tuple(np.zeros(v.shape) for v in composite.variables))
    far = Candidate(tuple(1e6 * (a + 1.0) for a in planted.point))
    results = [
        iterate(rfista_method(composite), composite, Certifier(composite), starts, Limits(tol=1e-6))
        for starts in ([far, zero], [zero])
    ]
    assert results[0].iterations == results[1].iterations
    assert results[0].status is Status.OPTIMAL


def test_a_term_without_a_bound_ends_stalled_and_never_optimal() -> None:
    """Without dual bounds the point still converges, and the status claims nothing."""
    planted = plant(5, cones=False)
    composite = planted.composite()

    class Unbounded(Certifier):
        def certify(self, x: Any, candidates: Any = (), thorough: bool = True) -> Any:
            found = super().certify(x, candidates, thorough)
            return replace(found, dual=None, gap=None, relative_gap=None, dual_point=None)

    starts = [Candidate(tuple(np.zeros(v.shape) for v in composite.variables))]
    result = iterate(rfista_method(composite), composite, Unbounded(composite), starts, Limits())
    assert result.status is Status.STALLED
    assert result.certificate.primal == pytest.approx(planted.value, rel=1e-9)


@pytest.mark.parametrize("falling", ["gap", "violation"])
def test_a_solve_goes_on_while_gap_or_violation_fall(falling: str) -> None:
    """They were compared with the objective where the solve began: zero, below which they never fall."""
    planted = plant(5, cones=False)
    composite = planted.composite()

    class Slow(Certifier):
        def certify(self, x: Any, candidates: Any = (), thorough: bool = True) -> Any:
            looks = next(count)
            found = super().certify(x, candidates, thorough)
            nothing = replace(found, primal=0.0, dual=None, gap=None, relative_gap=None, dual_point=None)
            if looks == 0 or falling == "violation":
                return replace(nothing, excess=100.0 * 0.98**looks)
            return replace(found, primal=100.0, dual=100.0 * (1.0 - 0.98**looks))

    count = itertools.count()
    starts = [Candidate(tuple(np.zeros(v.shape) for v in composite.variables))]
    method = _Exploding(planted, "nothing")
    limits = Limits(tol=1e-9, max_iter=20_000)
    result = iterate(method, composite, Slow(composite), starts, limits)
    assert (result.status, result.iterations) == (Status.ITERATION_LIMIT, 20_000)


def test_statuses_are_sentences() -> None:
    assert all(status.value.endswith(".") and len(status.value.split()) > 5 for status in Status)
    assert [status for status in Status if status.cvxpy == cp.OPTIMAL] == [Status.OPTIMAL]
