"""How a plain CVXPY problem reaches our solvers, and what comes back through CVXPY."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import cvxpy as cp
import numpy as np
import pytest

import convexnn_models as cnn
from convexnn_solvers import RFISTA, AugmentedLagrangian, Certificate, DualPoint, Status, certificate, doors
from convexnn_solvers.reading import compiler

Problem: Any = cp.Problem  # its private parts are tested here


def small_problem(relu: bool) -> Any:
    """A ReLU (with cones) or gated (without) problem that everybody solves in a moment."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((40, 4))
    y = np.maximum(X @ rng.standard_normal((4, 3)), 0.0) @ rng.standard_normal(3)
    formulation = cnn.relu if relu else cnn.gated_relu
    return formulation(X, cnn.sample_gates(X, 10, seed=0)).problem(y, reg=0.02)


WAYS: dict[str, dict[str, Any]] = {
    "instance": {"solver": AugmentedLagrangian()},
    "name": {"solver": "AugmentedLagrangian"},
    "name in capitals": {"solver": "AUGMENTEDLAGRANGIAN"},
    "public door": {"method": "AugmentedLagrangian"},
    "path": {"solver_path": ["AugmentedLagrangian"]},
    "path with options": {"solver_path": [("AugmentedLagrangian", {"max_iter": 5000})]},
    "path past a refusal": {"solver_path": ["RFISTA", "AugmentedLagrangian"]},
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_in_gives_the_same_certified_optimum(way: str) -> None:
    problem = small_problem(relu=True)
    value = problem.solve(**WAYS[way], **({} if "solver_path" in WAYS[way] else {"tol": 1e-6}))
    assert problem.status == cp.OPTIMAL
    assert value == pytest.approx(problem.objective.value, rel=1e-12)
    assert certificate(problem).relative_gap == pytest.approx(0.0, abs=1.01e-4)


@pytest.mark.parametrize(("relu", "solver"), [(False, RFISTA()), (True, AugmentedLagrangian())])
def test_unpacks_status_value_variables_duals_and_statistics(relu: bool, solver: Any) -> None:
    problem = small_problem(relu)
    value = problem.solve(solver=solver, tol=1e-6)
    stats = problem.solver_stats
    extra = stats.extra_stats
    assert (problem.status, stats.solver_name) == (cp.OPTIMAL, type(solver).__name__)
    assert isinstance(extra["certificate"], Certificate)
    assert isinstance(extra["dual_point"], DualPoint)
    assert extra["status"] is Status.OPTIMAL
    assert extra["certificate"].primal == pytest.approx(value, rel=1e-12)
    assert 0 < stats.num_iters == extra["iterations"] >= extra["history"][-1]["iteration"]
    assert stats.solve_time > 0.0
    assert stats.setup_time == extra["compile_seconds"] > 0.0
    assert all(v.value.shape == v.shape for v in problem.variables())
    assert all(c.dual_value.shape == c.shape and c.dual_value.min() >= 0.0 for c in problem.constraints)
    assert value == pytest.approx(problem.solve(solver=cp.CLARABEL), rel=1e-5)


def test_prints_a_table_of_fixed_width(capsys: pytest.CaptureFixture[str]) -> None:
    problem = small_problem(relu=False)
    problem.solve(method="RFISTA", verbose=True)
    lines = capsys.readouterr().out.splitlines()
    title, heading, *rows, end = lines
    assert title == "R-FISTA"
    assert heading.split() == ["iteration", "seconds", "primal", "dual", "rel.", "gap", "violation"]
    assert {len(row) for row in rows} == {len(heading)}
    assert len(rows) == len(problem.solver_stats.extra_stats["history"])
    assert end.startswith("OPTIMAL: objective ")


def test_is_silent_unless_asked(capsys: pytest.CaptureFixture[str]) -> None:
    small_problem(relu=False).solve(solver=RFISTA())
    assert capsys.readouterr() == ("", "")


def test_a_parameter_is_solved_again_without_compiling(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    original = compiler.compile_problem

    def counted(*args: Any) -> Any:
        calls.append(args)
        return original(*args)

    monkeypatch.setattr(compiler, "compile_problem", counted)
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((40, 4)), rng.standard_normal(40)
    model = cnn.gated_relu(X, cnn.sample_gates(X, 10, seed=0))
    problem = model.problem(y, reg=0.1)
    for reg in (0.1, 0.05, 0.02):
        model.reg.value = reg
        for tol in (1e-3, 1e-6):
            problem.solve(solver=RFISTA(tol=tol))
        fresh = cnn.gated_relu(X, cnn.sample_gates(X, 10, seed=0)).problem(y, reg=reg)
        assert problem.value == pytest.approx(fresh.solve(solver=cp.CLARABEL), rel=1e-5)
    assert len(calls) == 1


def test_warm_starts_from_values_and_cold_starts_when_told_to() -> None:
    problem = small_problem(relu=False)
    iterations = []
    for warm_start in (True, False, True):
        problem.solve(solver=RFISTA(tol=1e-5), warm_start=warm_start)
        iterations.append(problem.solver_stats.num_iters)
    assert iterations[0] == iterations[1] > 0 == iterations[2]
    problem.variables()[0].value = np.full(problem.variables()[0].shape, 1e3)
    problem.solve(solver=RFISTA(tol=1e-5))
    assert problem.status == cp.OPTIMAL


def test_starts_warm_from_another_solver() -> None:
    problem = small_problem(relu=True)
    problem.solve(solver=cp.CLARABEL)
    problem.solve(solver=AugmentedLagrangian())
    assert problem.solver_stats.num_iters == 0


def test_instances_with_equal_options_are_equal() -> None:
    callback = print
    same = [RFISTA(tol=1e-3, callback=callback) for _ in range(2)]
    assert same[0] == same[1]
    assert hash(same[0]) == hash(same[1])
    different: list[Any] = [
        RFISTA(),
        RFISTA(tol=1e-3),
        RFISTA(verbose=True),
        AugmentedLagrangian(),
        "RFISTA",
        1,
    ]
    assert all(a != b for k, a in enumerate(different) for b in different[k + 1 :])


def test_cvxpy_keeps_its_cache_for_equal_instances() -> None:
    problem = small_problem(relu=False)
    problem.solve(solver=RFISTA())
    chain = problem._cache.solving_chain
    problem.solve(solver=RFISTA())
    assert problem._cache.solving_chain is chain


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda p: pickle.loads(pickle.dumps(p)), copy.copy])
def test_solved_problems_can_be_copied_and_solved(copier: Callable[[Any], Any]) -> None:
    problem = small_problem(relu=False)
    value = problem.solve(solver=RFISTA(tol=1e-6))
    assert copier(problem).solve(solver=RFISTA(tol=1e-6)) == pytest.approx(value, rel=2e-6)


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s)), copy.copy])
@pytest.mark.parametrize("solver", [RFISTA(tol=1e-3), AugmentedLagrangian(max_iter=7)])
def test_instances_can_be_copied(solver: Any, copier: Callable[[Any], Any]) -> None:
    assert copier(solver) == solver


@pytest.mark.parametrize("sense", [cp.Minimize, cp.Maximize])
def test_values_are_in_the_users_direction(sense: Any) -> None:
    x = cp.Variable(3)
    loss = cp.sum_squares(x - np.arange(3.0)) + cp.norm1(x)
    problem: Any = cp.Problem(cp.Minimize(loss) if sense is cp.Minimize else cp.Maximize(-loss))
    value = problem.solve(solver=RFISTA(tol=1e-8))
    sign = 1.0 if sense is cp.Minimize else -1.0
    assert value == pytest.approx(sign * 2.5, rel=1e-7)
    certified = problem.solver_stats.extra_stats["certificate"]
    assert sign * (certified.primal - certified.dual) >= -1e-12


def test_constant_problems_are_left_to_cvxpy() -> None:
    for way in ({"solver": RFISTA()}, {"method": "RFISTA"}, {"solver": "rfista"}):
        problem: Any = cp.Problem(cp.Minimize(3.0))
        assert problem.solve(**way) == 3.0
        assert problem.status == cp.OPTIMAL
    impossible: Any = cp.Problem(cp.Minimize(3.0), [cp.Constant(1.0) <= 0.0])
    impossible.solve(solver=RFISTA())
    assert impossible.status == cp.INFEASIBLE


BAD_OPTIONS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"tolerance": 1e-3}, TypeError, "RFISTA has no option 'tolerance'\\. The options are tol, "),
    ({"max_iters": 3}, TypeError, "did you mean 'max_iter'"),
    ({"tol": -1.0}, ValueError, "tol must be a number >= 0"),
    ({"tol": float("nan")}, ValueError, "tol must be a number >= 0"),
    ({"tol": "small"}, ValueError, "tol must be a number >= 0"),
    ({"max_iter": 1.5}, ValueError, "max_iter must be an integer >= 0"),
    ({"max_iter": True}, ValueError, "max_iter must be an integer >= 0"),
    ({"time_limit": -1}, ValueError, "time_limit must be seconds >= 0"),
    ({"callback": 3}, TypeError, "callback must be a function"),
    ({"device": "tpu"}, ValueError, "device must be 'cpu' or 'cuda'"),
    ({"dtype": "float16"}, ValueError, "dtype must be 'float32' or 'float64'"),
    ({"backend": "jax"}, ValueError, "backend must be 'numpy' or 'torch'"),
    ({"backend": "numpy", "device": "cuda"}, ValueError, "backend='numpy' runs on device='cpu' only"),
]


@pytest.mark.parametrize(("options", "error", "message"), BAD_OPTIONS)
def test_bad_options_are_refused_by_name(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        small_problem(relu=False).solve(solver=RFISTA(), **options)
    with pytest.raises(error, match=message):
        small_problem(relu=False).solve(solver=RFISTA(**options))


def test_cuda_without_cuda_is_one_sentence() -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    with pytest.raises(
        ValueError, match=r"^device='cuda' was asked for, but torch sees no CUDA device; .*'cpu'\.$"
    ):
        small_problem(relu=False).solve(solver=RFISTA(device="cuda"))


x, whole = cp.Variable(3, name="x"), cp.Variable(3, name="k", integer=True)
nothing = cp.Parameter(nonneg=True, name="lam")
infinite = cp.Parameter(nonneg=True, name="mu", value=1.0)
SQUARES: Any = cp.sum_squares(x - 1)
REFUSED: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "not DCP": (lambda: cp.Problem(cp.Maximize(SQUARES)), cp.DCPError, "DCP"),
    "mixed-integer": (lambda: cp.Problem(cp.Minimize(cp.sum_squares(whole))), cp.SolverError, "integer.*k"),
    "unknown atom": (
        lambda: cp.Problem(cp.Minimize(SQUARES + cp.lambda_max(cp.diag(x)))),
        cp.SolverError,
        "lambda_max.*CLARABEL",
    ),
    "no Parameter value": (
        lambda: cp.Problem(cp.Minimize(SQUARES + nothing * cp.norm1(x))),
        Exception,
        "lam",
    ),
    "NaN in the data": (
        lambda: cp.Problem(cp.Minimize(cp.sum_squares(x - np.array([1.0, np.nan, 2.0])))),
        ValueError,
        "NaN or infinite",
    ),
    "infinite data": (
        lambda: cp.Problem(cp.Minimize(cp.sum_squares(np.array([[1.0, np.inf, 2.0]]) @ x))),
        ValueError,
        "NaN or infinite",
    ),
    "power cone": (
        lambda: cp.Problem(cp.Minimize(SQUARES), [cp.PowCone3D(x[0], x[1], x[2], 0.5)]),
        cp.SolverError,
        "PowCone3D.*CLARABEL",
    ),
}


@pytest.mark.parametrize("way", [{"solver": AugmentedLagrangian()}, {"method": "AugmentedLagrangian"}])
@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_solved_is_refused_by_name(name: str, way: dict[str, Any]) -> None:
    make, error, message = REFUSED[name]
    with pytest.raises(error, match=message):
        make().solve(**way)


@pytest.mark.parametrize("flag", ["gp", "qcp", "requires_grad", "nlp"])
def test_other_disciplines_are_refused(flag: str) -> None:
    with pytest.raises(cp.SolverError, match=f"without {flag}=True"):
        small_problem(relu=False).solve(method="RFISTA", **{flag: True})


def test_geometric_programs_are_refused_at_the_natural_door_too() -> None:
    y = cp.Variable(pos=True)
    with pytest.raises(cp.SolverError, match="without gp=True"):
        cp.Problem(cp.Minimize(y + 1 / y)).solve(solver=RFISTA(), gp=True)


def test_a_method_and_a_solver_at_once_are_refused() -> None:
    with pytest.raises(cp.SolverError, match="names the solver already"):
        small_problem(relu=False).solve(method="RFISTA", solver=cp.CLARABEL)


def test_other_solvers_pass_the_door_untouched() -> None:
    problem = small_problem(relu=False)
    exact = problem.solve(solver=cp.CLARABEL)
    # Never `solve()` alone: CVXPY prefers an installed MOSEK, and the test environment has no licence for it.
    assert problem.solve(solver="SCS", eps=1e-7) == pytest.approx(exact, rel=1e-4)
    assert problem.solve(solver=RFISTA()) == pytest.approx(exact, rel=2e-4)


def test_an_unknown_signature_leaves_cvxpy_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def changed(self: Any, solver: Any, something_new: Any) -> None:
        raise AssertionError("never called")

    monkeypatch.setattr(Problem, "_construct_chain", changed)
    assert not doors.hang_natural_door(lambda problem, solver: None)
    assert Problem._construct_chain is changed


def test_without_the_natural_door_the_message_names_the_public_one(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Problem._construct_chain.__wrapped__
    monkeypatch.setattr(Problem, "_construct_chain", original)
    problem = small_problem(relu=False)
    with pytest.raises(cp.SolverError, match=r"use problem\.solve\(method='RFISTA'\)"):
        problem.solve(solver=RFISTA())
    assert problem.solve(method="RFISTA") > 0.0


def test_the_door_is_hung_once() -> None:
    before = Problem._construct_chain
    assert doors.hang_natural_door(lambda problem, solver: None)
    assert Problem._construct_chain is before


def test_a_class_instead_of_an_instance_is_refused() -> None:
    with pytest.raises(cp.SolverError, match=r"solver=RFISTA is a class; write solver=RFISTA\(\)\."):
        small_problem(relu=False).solve(solver=RFISTA)
