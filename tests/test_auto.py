"""Auto picks an engine that takes the problem, says why, and goes on with another one when it is stuck."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any, cast

import cvxpy as cp
import numpy as np
import pytest

import convexnn_models as cnn
from convexnn_solvers import Auto, certificate, gated_case
from convexnn_solvers import auto as auto_module
from convexnn_solvers.auto import engines
from convexnn_solvers.backends import numpy_backend
from convexnn_solvers.certify.certifier import Certifier
from convexnn_solvers.composite import DualPoint
from convexnn_solvers.first_order.rfista import rfista_method
from convexnn_solvers.loop.iterate import Candidate, Limits
from convexnn_solvers.loop.relay import Engine, run_engines
from convexnn_solvers.options import Options
from convexnn_solvers.reading.compiler import compile_problem
from convexnn_solvers.status import Status

_RNG = np.random.default_rng(0)
_X = _RNG.standard_normal((40, 4))
_Y = np.maximum(_X @ _RNG.standard_normal(4), 0.0) - 0.3 * _X[:, 0]
_GATES = cnn.sample_gates(_X, 12)
_DIRECTION = np.linalg.qr(np.random.default_rng(0).standard_normal((4, 4)))[0][:, 0]


def _gated() -> Any:
    return cnn.gated_relu(_X, _GATES).problem(_Y, 0.02)


def _strongly_regularised() -> Any:
    """A linear function where one gate is open and its negative elsewhere: other gates explain it badly."""
    seen = np.where(_GATES.patterns[:, 3], _X @ _DIRECTION, -_X @ _DIRECTION)
    model = cnn.gated_relu(_X, _GATES)
    return model.problem(seen, 0.2 * cnn.lambda_max(model, seen))


def _gates_alike() -> Any:
    model = cnn.gated_relu(_X, _GATES)
    return model.problem(_Y, 0.2 * cnn.lambda_max(model, _Y))


def _several_alike() -> Any:
    model = cnn.gated_relu(_X, _GATES, outputs=2)
    Y = np.stack([_Y, -_Y], axis=1)
    return model.problem(Y, 0.2 * cnn.lambda_max(model, Y))


def _strongly_regularised_classes() -> Any:
    model = cnn.gated_relu(_X, _GATES)
    return model.problem(np.where(_Y > 0.0, 1.0, -1.0), 0.02, "logistic")


def _relu() -> Any:
    return cnn.relu(_X, _GATES).problem(_Y, 0.02)


def _ridge() -> Any:
    model = cnn.gated_relu(_X, _GATES)
    problem = model.problem(_Y, 0.02)
    return cp.Problem(cp.Minimize(problem.objective.args[0] + 0.1 * cp.sum_squares(model.variables[0])))


def _bounded_below() -> Any:
    model = cnn.relu(_X, _GATES)
    problem = model.problem(_Y, 0.02)
    return cp.Problem(problem.objective, [*problem.constraints, model.prediction >= -0.1])


@pytest.mark.parametrize(
    ("make", "engine"),
    [
        (_gated, "SemismoothNewton"),
        (_strongly_regularised, "BlockDescent"),
        (_gates_alike, "SemismoothNewton"),
        (_several_alike, "BlockDescent"),
        (_strongly_regularised_classes, "SemismoothNewton"),
        (_relu, "SemismoothNewton"),
        (_ridge, "RFISTA"),
        (_bounded_below, "SplittingNewton"),
    ],
)
def test_the_engine_fits_the_problem_and_is_named(make: Any, engine: str) -> None:
    problem = make()
    problem.solve(solver=Auto())
    (run,) = problem.solver_stats.extra_stats["engines"]
    assert run["engine"] == engine
    assert run["status"] == "OPTIMAL"
    assert run["reason"]
    proof = certificate(problem)
    assert proof.relative_gap is not None
    assert proof.relative_gap <= 1e-4


def test_a_solve_from_the_last_dual_point_is_newtons() -> None:
    problem, picked = _strongly_regularised(), []
    (reg,) = problem.parameters()
    for share in (1.0, 0.9):
        reg.value = share * reg.value
        problem.solve(solver=Auto(), warm_start=True)
        assert problem.status == cp.OPTIMAL
        picked += [run["engine"] for run in problem.solver_stats.extra_stats["engines"]]
    assert picked == ["BlockDescent", "SemismoothNewton"]
    problem.solve(solver=Auto(), warm_start=False)
    assert problem.solver_stats.extra_stats["engines"][0]["engine"] == "BlockDescent"


def _steps_on_few_gates(monkeypatch: pytest.MonkeyPatch, most: int) -> list[dict[str, str]]:
    monkeypatch.setattr(gated_case, "_MANY", len(_X))
    monkeypatch.setattr(gated_case, "_TALL", len(_X) // _X.shape[1])
    monkeypatch.setattr(auto_module, "_MOST_STEPS", most)
    problem = _gates_alike()
    problem.solve(solver=Auto())
    assert problem.status == cp.OPTIMAL
    runs: list[dict[str, str]] = problem.solver_stats.extra_stats["engines"]
    return runs


def test_many_samples_and_few_active_gates_are_for_first_order_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    (run,) = _steps_on_few_gates(monkeypatch, 1000)
    assert run["engine"] == "RFISTA (1000 steps)"
    assert "samples are many" in run["reason"]


def test_no_two_engines_have_one_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gated_case, "_MANY", len(_X))
    monkeypatch.setattr(gated_case, "_TALL", len(_X) // _X.shape[1])
    composite = compile_problem(_gates_alike(), numpy_backend()).composite()
    names = [engine.name for engine in engines(composite, composite, DualPoint(()), Options())]
    assert names == ["RFISTA (1000 steps)", "SemismoothNewton", "RFISTA"]


def test_a_threshold_that_changes_is_not_mistaken_for_the_one_before() -> None:
    model, threshold = cnn.gated_relu(_X, _GATES), cast("Any", cp.Parameter(pos=True))
    seen = np.where(_GATES.patterns[:, 3], _X @ _DIRECTION, -_X @ _DIRECTION)
    loss = cp.sum(cp.huber(model.prediction - seen, threshold)) / (2 * len(seen))
    reg = 0.2 * cnn.lambda_max(model, seen)
    problem: Any = cp.Problem(cp.Minimize(loss + reg * model.penalty))
    reasons: list[str] = []
    for value, fresh in ((10.0, False), (0.5, False), (0.5, True)):
        threshold.value = value
        if fresh:
            problem = cp.Problem(problem.objective)
        problem.solve(solver=Auto(), warm_start=False)
        reasons.append(problem.solver_stats.extra_stats["engines"][0]["reason"])
    assert reasons[1] == reasons[2] != reasons[0]


def test_first_order_steps_that_lead_nowhere_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    tried, finished = _steps_on_few_gates(monkeypatch, 3)
    assert (tried["engine"], tried["status"]) == ("RFISTA (3 steps)", "STALLED")
    assert (finished["engine"], finished["status"]) == ("SemismoothNewton", "OPTIMAL")
    assert finished["reason"] == "RFISTA (3 steps) made too little progress"


def test_too_many_samples_to_factor_go_to_a_first_order_method(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gated_case, "_GRAM_BYTES", 8 * 39 * 39)
    problem = _gated()
    problem.solve(solver=Auto(memory=10_000, dtype="float32"))
    (run,) = problem.solver_stats.extra_stats["engines"]
    assert run["engine"] == "RFISTA"
    assert "ADMM would need" in run["reason"]
    problem = _two_outputs()
    problem.solve(solver="Auto", warm_start=False)
    (run,) = problem.solver_stats.extra_stats["engines"]
    assert run["engine"] == "ADMM"
    assert "40 x 40" in run["reason"]


@pytest.mark.parametrize(
    ("limits", "limit", "make", "engine", "word"),
    [
        (gated_case, "_GRAM_BYTES", _gated, "SemismoothNewton", "gated program"),
        (auto_module, "_FEATURE_BYTES", _gated, "RFISTA", "copy"),
        (gated_case, "_CACHE_BYTES", _strongly_regularised, "SemismoothNewton", "gated program"),
        (auto_module, "_MOST_SWEEPS", _strongly_regularised, "SemismoothNewton", "progress"),
    ],
)
def test_what_is_too_large_for_an_engine_goes_to_the_next(
    limits: Any, limit: str, make: Any, engine: str, word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, limit, 1)
    problem = make()
    problem.solve(solver="Auto")
    run = problem.solver_stats.extra_stats["engines"][-1]
    assert run["engine"] == engine
    assert run["status"] == "OPTIMAL"
    assert word in run["reason"]


def _two_outputs() -> Any:
    return cnn.gated_relu(_X, _GATES, outputs=2).problem(np.stack([_Y, -(_Y**2)], axis=1), 0.02)


def _small_weight() -> Any:
    return cnn.gated_relu(_X, _GATES).problem(_Y, 1e-4)


def _rather_small_weight(stretch: float) -> Any:
    X = _X * np.array([stretch, 1.0, 1.0, 1.0])
    model = cnn.gated_relu(X, cnn.sample_gates(X, 12))
    return model.problem(_Y, 0.01 * cnn.lambda_max(model, _Y))


def _many_samples_per_product() -> Any:
    rng = np.random.default_rng(0)
    X = rng.standard_normal((1300, 2))
    return cnn.gated_relu(X, cnn.sample_gates(X, 1)).problem(np.abs(X[:, 0]), 0.02)


@pytest.mark.parametrize(
    ("make", "options", "engine", "reason"),
    [
        (_two_outputs, {}, "ADMM", "all outputs"),
        (_small_weight, {}, "ADMM", "regularisation is small"),
        (partial(_rather_small_weight, 1.0), {}, "ADMM", "rather small"),
        (partial(_rather_small_weight, 5.0), {}, "SemismoothNewton", "gated program"),
        (_small_weight, {"tol": 1e-9}, "SemismoothNewton", "gated program"),
        (_gated, {"dtype": "float32"}, "ADMM", "ADMM need not"),
        (_gated, {"backend": "torch"}, "ADMM", "ADMM need not"),
        (_many_samples_per_product, {"dtype": "float32"}, "RFISTA", "costs more than"),
    ],
)
def test_one_factor_for_all_steps_is_preferred_where_it_pays(
    make: Any, options: dict[str, Any], engine: str, reason: str
) -> None:
    problem = make()
    problem.solve(solver=Auto(**options))
    (run,) = problem.solver_stats.extra_stats["engines"]
    assert (run["engine"], run["status"]) == (engine, "OPTIMAL")
    assert reason in run["reason"]


class _Stuck:
    """An engine that is stuck after some steps of another one."""

    def __init__(self, method: Any) -> None:
        self._method = method

    def __getattr__(self, name: str) -> Any:
        return getattr(self._method, name)

    def candidate(self, state: Any) -> Candidate:
        handed_in: Candidate = self._method.candidate(state)
        return replace(handed_in, finding=Status.STALLED)


@pytest.mark.parametrize("tol", [1e-3, 1e-5])
def test_a_factor_in_single_precision_serves_where_none_fits_in_double(
    tol: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gated_case, "_GRAM_BYTES", 8 * 39 * 39)
    problem = _gated()
    problem.solve(solver=Auto(tol=tol))
    assert problem.status == cp.OPTIMAL
    (ran,) = problem.solver_stats.extra_stats["engines"]
    assert ran["engine"] == ("ADMM" if tol == 1e-3 else "SemismoothNewton")
    assert ("float32" in ran["reason"]) == (tol == 1e-3)
    proof = certificate(problem)
    assert proof.relative_gap is not None
    assert proof.relative_gap <= tol


def test_a_stuck_engine_hands_its_point_to_the_next() -> None:
    composite = compile_problem(_gated(), numpy_backend()).composite()

    def candidates() -> Iterator[Engine]:
        yield Engine("first", "a test", lambda: cast("Any", _Stuck(rfista_method(composite))))
        yield Engine("second", "first got no further", lambda: rfista_method(composite))

    zero = Candidate(composite.zeros())
    judge = Certifier(composite)
    result, log = run_engines(candidates(), composite, judge, [zero], Limits(tol=1e-6))
    assert [row["engine"] for row in log] == ["first", "second"]
    assert [row["status"] for row in log] == ["STALLED", "OPTIMAL"]
    assert result.status is Status.OPTIMAL
    assert [row["iteration"] for row in result.history] == sorted(row["iteration"] for row in result.history)
    objectives = [row["primal"] for row in result.history]
    assert min(objectives) == objectives[-1]


@pytest.mark.parametrize("make", [cnn.gated_relu, cnn.relu])
@pytest.mark.filterwarnings("ignore:Solution may be inaccurate")
def test_a_gap_of_rounding_is_the_end(make: Any) -> None:
    """With ``tol=0`` the first engine gets as far as float64 does: others would run for nothing."""
    X = np.random.default_rng(0).standard_normal((30, 3))
    problem = make(X, cnn.sample_gates(X, 8)).problem(np.abs(X[:, 0]), 0.01)
    problem.solve(solver=Auto(tol=0.0))
    (engine,) = problem.solver_stats.extra_stats["engines"]
    assert (engine["engine"], engine["status"]) == ("SemismoothNewton", "STALLED")
    assert abs(certificate(problem).relative_gap or 0.0) <= 1e-12


def test_the_order_ends_with_a_method_that_takes_everything() -> None:
    composite = compile_problem(_relu(), numpy_backend()).composite()
    names = [engine.name for engine in engines(composite, composite, DualPoint(()), Options())]
    assert names == ["SemismoothNewton", "AugmentedLagrangian"]
