"""``compare``: every kind of ending is a row, and the judge believes no contestant."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
from odd_solvers import Crasher, Glutton, Liar, Sleeper

import convexnn_models as cnn
from convexnn_solvers import RFISTA, ComparisonRow, Contestant, certificate, compare
from convexnn_solvers.comparison.peak_memory import peak_mb

Rows = dict[str, ComparisonRow]


def make(gated: bool = False) -> Any:
    """A convex ReLU (or gated) program that the size-limited commercial licences take."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((20, 3))
    gates = cnn.sample_gates(X, 8, seed=0)
    model = cnn.gated_relu(X, gates) if gated else cnn.relu(X, gates)
    return model.problem(X[:, 0] ** 2 - 1.0, reg=0.01)


@pytest.fixture(scope="module")
def optimum() -> float:
    problem = make()
    problem.solve(solver=cp.CLARABEL)
    return float(problem.value)


@pytest.fixture(scope="module")
def rows() -> Rows:
    contestants = [
        cp.CLARABEL,
        "scs",
        "NO_SUCH_SOLVER",
        Crasher(),
        Liar(),
        Glutton(),
        Contestant(cp.CLARABEL, options={"max_iter": 3}, name="hasty"),
        Contestant(cp.CLARABEL, problem=make(gated=True), name="gated"),
        Contestant(cp.CLARABEL, options={"no_such_option": 1}, name="wrong option"),
    ]
    return {row["solver"]: row for row in compare(make(), contestants, verbose=False).rows}


@pytest.mark.parametrize(("name", "tolerance"), [("CLARABEL", 1e-6), ("SCS", 1e-3)])
def test_open_solvers_are_measured_and_certified(
    rows: Rows, optimum: float, name: str, tolerance: float
) -> None:
    row = rows[name]
    assert row["status"] == cp.OPTIMAL
    assert row["objective"] == pytest.approx(optimum, rel=tolerance)
    assert row["relative_gap"] is not None
    assert 0.0 <= row["relative_gap"] <= tolerance
    assert row["max_violation"] is not None
    assert 0.0 <= row["max_violation"] <= tolerance
    assert row["compile_seconds"] is not None
    assert row["solve_seconds"] is not None
    assert row["compile_seconds"] > 0.0
    assert row["solve_seconds"] > 0.0
    assert row["iterations"] is not None
    assert row["width"] == 16  # interior and first-order points are dense: both blocks of all 8 gates
    assert row["reason"] == ""


def test_the_judge_is_the_certificate_of_the_returned_point(rows: Rows) -> None:
    problem = make()
    problem.solve(solver=cp.CLARABEL)
    expected = certificate(problem)
    found = rows["CLARABEL"]["certificate"]
    assert found is not None
    assert found.primal == pytest.approx(expected.primal, rel=1e-12)
    assert found.dual == pytest.approx(expected.dual, rel=1e-12)
    assert found.scope == expected.scope
    returned = rows["CLARABEL"]["values"]
    assert returned is not None
    for value, variable in zip(returned, problem.variables(), strict=True):
        np.testing.assert_allclose(value, variable.value, atol=1e-12)


def test_a_wrong_claim_does_not_pass(rows: Rows, optimum: float) -> None:
    row = rows["LIAR"]
    assert row["status"] == cp.OPTIMAL  # what it says
    assert row["objective"] is not None
    assert row["relative_gap"] is not None
    true_excess = (row["objective"] - optimum) / row["objective"]
    assert row["relative_gap"] >= true_excess > 0.1


def test_a_limit_shows_in_the_gap(rows: Rows) -> None:
    gap = rows["hasty"]["relative_gap"]
    assert rows["hasty"]["status"] == cp.settings.USER_LIMIT  # pyright: ignore[reportAttributeAccessIssue]
    assert gap is not None
    assert gap > 1e-4


def test_a_contestant_may_bring_its_own_problem(rows: Rows) -> None:
    problem = make(gated=True)
    problem.solve(solver=cp.CLARABEL)
    assert rows["gated"]["objective"] == pytest.approx(problem.value, rel=1e-7)
    assert rows["gated"]["width"] == 8


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("NO_SUCH_SOLVER", ["SolverError", "NO_SUCH_SOLVER", "not installed"]),
        ("CRASHER", ["SIGSEGV", "last words"]),
        ("wrong option", ["no_such_option"]),
    ],
)
def test_failures_are_rows_with_their_own_words(rows: Rows, name: str, words: list[str]) -> None:
    row = rows[name]
    assert row["status"] == "failed"
    assert row["objective"] is None
    assert row["certificate"] is None
    assert row["values"] is None
    for word in words:
        assert word in row["reason"]


def test_memory_is_the_contestants_own(rows: Rows) -> None:
    plain, hungry = rows["CLARABEL"]["peak_mb"], rows["GLUTTON"]["peak_mb"]
    if peak_mb() is None:
        assert plain is None
        assert hungry is None
        return
    assert plain is not None
    assert hungry is not None
    assert 270.0 < hungry - plain < 330.0  # it wastes 300
    assert 0.0 <= plain < 60.0


def test_the_time_limit_ends_the_process() -> None:
    (row,) = compare(make(), [Sleeper()], time_limit=1.5, verbose=False).rows
    assert row["status"] == "time limit"
    assert "1.5 s" in row["reason"]
    assert row["objective"] is None


def test_solvers_that_can_stop_in_time_hand_in_their_point() -> None:
    tireless = {"eps_abs": 1e-300, "eps_rel": 1e-300, "max_iters": 10**9}
    contestants = [Contestant(cp.SCS, options=tireless), RFISTA(tol=1e-300, max_iter=10**9)]
    scs, ours = compare(make(gated=True), contestants, time_limit=8.0, verbose=False).rows
    assert scs["status"] == cp.OPTIMAL_INACCURATE
    assert ours["status"] == cp.settings.USER_LIMIT  # pyright: ignore[reportAttributeAccessIssue]
    assert "best certified point" in ours["reason"] or "improved any more" in ours["reason"]
    for row in (scs, ours):
        assert row["relative_gap"] is not None
        assert row["relative_gap"] < 1e-6
        assert row["solve_seconds"] is not None


@pytest.mark.parametrize("name", ["MOSEK", "GUROBI", "COPT", "CPLEX"])
def test_commercial_solvers_agree_or_say_why_not(name: str, optimum: float) -> None:
    if name not in cp.installed_solvers():
        pytest.skip(f"{name} is not installed (pip install 'convexnn[commercial]')")
    (row,) = compare(make(), [name], verbose=False).rows
    if row["status"] == "failed":
        licence = "err_missing_license_file(1008)" if name == "MOSEK" else "icense"
        assert licence in row["reason"]
        return
    assert row["status"] == cp.OPTIMAL
    assert row["objective"] == pytest.approx(optimum, rel=1e-3)
    assert row["relative_gap"] is not None
    assert 0.0 <= row["relative_gap"] <= 1e-2


def test_the_problem_is_left_as_it_was(capsys: pytest.CaptureFixture[str]) -> None:
    problem = make()
    variables: list[Any] = problem.variables()
    constraints: list[Any] = problem.constraints
    variables[0].value = np.ones(variables[0].shape)
    table = compare(problem, [cp.CLARABEL])
    np.testing.assert_array_equal(variables[0].value, 1.0)
    assert all(variable.value is None for variable in variables[1:])
    assert all(constraint.dual_value is None for constraint in constraints)
    assert problem.value is None
    printed = capsys.readouterr().out
    assert printed == f"{table}\n"
    assert "CLARABEL" in printed
    assert repr(table) == "<Comparison of CLARABEL>"
    assert "certified" in printed


def test_what_cannot_be_sent_is_a_row() -> None:
    class Local(Liar):
        pass

    (row,) = compare(make(), [Local()], verbose=False).rows
    assert row["status"] == "failed"
    assert "define it in a module" in row["reason"]


def test_a_problem_beyond_the_certificate_still_gets_its_row() -> None:
    x = cp.Variable(2, name="x")
    problem = cp.Problem(cp.Minimize(cp.quad_over_lin(x, x[0] + 2.0) + cp.norm(x - 1.0, "inf")))
    (row,) = compare(problem, [cp.CLARABEL], verbose=False).rows
    assert row["status"] == cp.OPTIMAL
    assert row["relative_gap"] is None
    assert row["width"] is None
    assert "quad_over_lin" in row["reason"]


SCRIPT = """
import cvxpy as cp
from convexnn_solvers.comparison.compare import compare

x = cp.Variable(3)
table = compare(cp.Problem(cp.Minimize(cp.sum_squares(x - 1) + cp.norm(x))), [cp.CLARABEL, cp.SCS])
print([row["status"] for row in table.rows])
"""


def test_scripts_need_no_main_guard() -> None:
    code = f"import sys; sys.path[:] = {sys.path!r}\n{SCRIPT}"
    run = subprocess.run([sys.executable, "-"], input=code, capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == "['optimal', 'optimal']"
    assert run.stdout.count("CLARABEL") == 1


@pytest.mark.parametrize(
    ("problem", "solvers", "options", "error", "text"),
    [
        ("a problem", [cp.CLARABEL], {}, TypeError, "problem must be a cp.Problem, not str"),
        (None, [cp.CLARABEL], {}, TypeError, "CLARABEL has no cp.Problem"),
        (make(), cp.CLARABEL, {}, TypeError, "solvers must be a list"),
        (make(), [], {}, ValueError, "at least one solver"),
        (make(), [Liar], {}, TypeError, "solver instances"),
        (make(), [3], {}, TypeError, "solver instances"),
        (make(), [cp.CLARABEL], {"time_limit": 0}, ValueError, "time_limit"),
        (make(), [cp.CLARABEL], {"time_limit": np.inf}, ValueError, "time_limit"),
        (make(), [cp.CLARABEL], {"time_limit": "9"}, ValueError, "time_limit"),
    ],
)
def test_bad_arguments_are_named(
    problem: Any, solvers: Any, options: dict[str, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        compare(problem, solvers, **options)
