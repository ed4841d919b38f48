"""The benchmark harness: exact conversions, an honest clock and judge, one row from end to end."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import floor, growth, path_cost, polynomial
from benchmarks.cases import Case, grid, instance
from benchmarks.contestants import contestants
from benchmarks.referee import TARGETS, Referee
from benchmarks.report import write
from benchmarks.results import OURS, contradictions, defeats, outcomes, ratios
from benchmarks.run import Schedule, best_gap, run, seconds_to
from benchmarks.scalings import from_groups, gated_features, scnn_terms
from benchmarks.store import Store
from benchmarks.workers import Run, warm_case
from convexnn_solvers import SemismoothNewton
from convexnn_solvers.block_descent import method as block_descent
from convexnn_solvers.cones import projections
from convexnn_solvers.gated_programs import features as block_features

GATED = Case("tiny", "gated", 6, 0.1)
RELU = Case("tiny", "relu", 6, 0.1)


def _objective(case: Case, values: list[Any]) -> float:
    model, problem = instance(case).problem()
    for variable, value in zip(model.variables, values, strict=True):
        variable.value = value
    return float(problem.objective.value)


@pytest.mark.parametrize(("data", "formulation"), [("tiny", "gated"), ("tiny3", "gated"), ("tiny3", "relu")])
def test_scnn_objective_is_ours_over_the_outputs(data: str, formulation: str) -> None:
    case = Case(data, formulation, 6, 0.1)
    numbers = instance(case)
    c, P, d, n = numbers.outputs, len(numbers.gates), numbers.X.shape[1], len(numbers.X)
    terms = scnn_terms(numbers.X, numbers.reg, c)
    signs = (1.0, -1.0) if numbers.relu else (1.0,)
    weights = [np.random.default_rng(k).standard_normal((c, P, d)) for k in range(len(signs))]
    masked = numbers.gates.patterns.astype(float)
    outputs = sum(
        s * np.einsum("nd,cpd,np->nc", terms.X, w, masked) for s, w in zip(signs, weights, strict=True)
    )
    residual = outputs - numbers.Y.reshape(n, c)
    theirs = np.sum(residual**2) / (2 * n * c)
    theirs += terms.lam * sum(np.sum(np.linalg.norm(w, axis=2)) for w in weights)
    assert _objective(case, [terms.ours(w) for w in weights]) == pytest.approx(c * theirs, rel=1e-12)


@pytest.mark.parametrize("name", list(OURS))
@pytest.mark.parametrize("formulation", ["gated", "relu"])
@pytest.mark.parametrize("outputs", [1, 3])
def test_machine_code_is_loaded_before_the_clock_starts(name: str, formulation: str, outputs: int) -> None:
    # A warm-up that was too small left seconds of compiling to the first row.
    numbers = instance(warm_case(name, formulation, outputs))
    work = numbers.X.size * len(numbers.gates)
    assert work >= projections._COMPILED_FROM  # pyright: ignore[reportPrivateUsage]
    assert work >= block_descent._COMPILED_FROM  # pyright: ignore[reportPrivateUsage]


@pytest.mark.parametrize("data", ["tiny", "tiny3"])
def test_group_lasso_on_features_is_the_gated_program(data: str) -> None:
    case = Case(data, "gated", 6, 0.1)
    numbers = instance(case)
    n, d = numbers.X.shape
    features = gated_features(numbers.X, numbers.gates.patterns)
    coefficients = np.random.default_rng(0).standard_normal((features.shape[1], numbers.outputs))
    residual = features @ coefficients - numbers.Y.reshape(n, -1)
    norms = np.linalg.norm(coefficients.reshape(-1, d, numbers.outputs), axis=1)
    theirs = np.sum(residual**2) / (2 * n) + numbers.reg * norms.sum()
    assert _objective(case, [from_groups(coefficients, d)]) == pytest.approx(theirs, rel=1e-12)


@pytest.mark.parametrize("case", [GATED, RELU], ids=["gated", "relu"])
@pytest.mark.parametrize("name", ["SemismoothNewton", "RFISTA", "AugmentedLagrangian", "CLARABEL", "SCS"])
@pytest.mark.filterwarnings("ignore:Solution may be inaccurate")
def test_contestants_reach_both_targets_or_say_why_not(case: Case, name: str) -> None:
    numbers = instance(case)
    contestant = contestants()[name]
    reason = contestant.can_take(numbers)
    if reason is not None:
        assert name in ("RFISTA", "AugmentedLagrangian")
        return
    referee = Referee(numbers, cap=120.0)
    contestant.solve(numbers, referee)
    assert all(referee.reached(target) for target in TARGETS), referee.reason
    assert all(0.0 < s["compile_seconds"] <= s["seconds"] for s in referee.samples)


def test_peers_that_are_not_there_say_so() -> None:
    numbers = instance(GATED)
    reasons = {name: contestants()[name].can_take(numbers) for name in ("scnn", "skglm", "celer", "MOREAU")}
    assert all(reason is None or "import" in reason or "installed" in reason for reason in reasons.values())


def test_the_clock_stands_still_while_a_point_is_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("benchmarks.referee.time.perf_counter", lambda: now)
    numbers = instance(GATED)
    referee = Referee(numbers, cap=10.0)
    certify = referee.certifier.certify

    def slowly(*arguments: Any) -> Any:
        nonlocal now
        now += 5.0
        return certify(*arguments)

    monkeypatch.setattr(referee.certifier, "certify", slowly)
    referee.begin(1.0)
    now += 0.5
    assert not referee.look([np.zeros((numbers.X.shape[1], len(numbers.gates)))])
    assert referee.seconds == 1.5
    assert not referee.due


def test_the_judge_believes_no_contestant() -> None:
    numbers = instance(GATED)
    model, problem = numbers.problem()
    problem.solve(solver=SemismoothNewton(tol=1e-8))
    referee = Referee(numbers, cap=10.0)
    referee.look([1.01 * model.variables[0].value])
    assert referee.samples[0]["gap"] is not None
    assert referee.samples[0]["gap"] > 1e-5
    assert not referee.reached(TARGETS[-1])


def test_a_point_after_the_cap_is_no_success() -> None:
    numbers = instance(GATED)
    model, problem = numbers.problem()
    problem.solve(solver=SemismoothNewton(tol=1e-8))
    referee = Referee(numbers, cap=1.0)
    referee.begin(2.0)
    assert referee.look([model.variables[0].value], [problem.solver_stats.extra_stats["dual_point"]])
    late = Run(declined="", reason="", timed_out=True, samples=referee.samples)
    assert (best_gap(late) or 0.0) <= 1e-6
    assert seconds_to(late, TARGETS[0]) is None


def _run(seconds: float | None, dual: float = 1.0, timed_out: bool = False) -> Run:
    sample = {"compile_seconds": 0.0, "dual": dual, "violation": 0.0, "in_time": True}
    reached = {**sample, "seconds": seconds, "primal": dual, "gap": 0.0}
    far = {**sample, "seconds": 60.0, "primal": 1.5, "gap": 0.5}
    made: Any = {"declined": "", "reason": "", "timed_out": timed_out}
    made["samples"] = [far] if seconds is None else [reached]
    return made  # type: ignore[no-any-return]


def test_a_time_out_counts_as_the_cap_and_makes_a_bound(tmp_path: Path) -> None:
    store = Store(tmp_path / "b.json", cap=60.0)
    for seconds in (1.0, 2.0, 3.0):
        store.add(GATED, OURS[0], _run(seconds))
    store.add(GATED, "scnn", _run(None, timed_out=True))
    store.add(GATED, "skglm", _run(1.0))
    found = outcomes(store.content, 1e-6)
    timed_out, won = ratios(found, "scnn", OURS[0], 60.0), ratios(found, "skglm", OURS[0], 60.0)
    assert timed_out.value == pytest.approx(30.0)
    assert timed_out.bound
    assert timed_out.rows == 1
    assert won.value == pytest.approx(0.5)
    assert not won.bound
    assert contradictions(store.content) == []
    store.add(GATED, "celer", _run(1.0, dual=2.0))
    assert contradictions(store.content) == [GATED.key]


def test_defeats_are_by_others_and_all_of_them(tmp_path: Path) -> None:
    store = Store(tmp_path / "b.json", cap=60.0)
    store.add(GATED, OURS[0], _run(2.0))
    store.add(GATED, OURS[1], _run(1.0))
    store.add(GATED, "skglm", _run(0.5))
    store.add(GATED, "celer", _run(3.0))
    store.add(RELU, OURS[0], _run(None, timed_out=True))
    store.add(RELU, "CLARABEL", _run(30.0))
    lost = defeats(outcomes(store.content, 1e-6), OURS[0], ["skglm", "celer", "CLARABEL"])
    assert [(o.contestant, factor) for o, factor in lost] == [("CLARABEL", np.inf), ("skglm", 4.0)]


def test_a_results_file_with_another_cap_is_refused(tmp_path: Path) -> None:
    store = Store(tmp_path / "b.json", cap=60.0)
    store.add(GATED, OURS[0], _run(1.0))
    with pytest.raises(ValueError, match="another file"):
        Store(tmp_path / "b.json", cap=5.0)


def test_a_results_file_names_every_code_that_it_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for commit, remark in (("one", "Alone."), ("one", "Alone."), ("two", ""), ("one-dirty", "Beside tests.")):
        monkeypatch.setattr("benchmarks.store.machine", lambda commit=commit: {"commit": commit})
        Store(tmp_path / "b.json", cap=60.0, remark=remark).add(GATED, OURS[0], _run(1.0))
    made = Store(tmp_path / "b.json", cap=60.0).content["machine"]
    assert made["commit"] == "one, later rows two, later rows one-dirty"
    assert made["remark"] == "Alone. Beside tests."


def test_smaller_regs_are_not_run_after_a_time_out(tmp_path: Path) -> None:
    store = Store(tmp_path / "b.json", cap=60.0)
    easier, harder = Case("tiny", "gated", 6, 0.1), Case("tiny", "gated", 6, 0.01)
    store.add(easier, OURS[0], _run(None, timed_out=True))
    run(Schedule([easier, harder], [OURS[0]], cap=60.0), store)
    (skipped,) = store.runs(harder, OURS[0])
    assert skipped["timed_out"]
    assert "not reached at 0.1" in skipped["reason"]


@pytest.mark.filterwarnings("ignore:There appear to be")
def test_a_row_from_end_to_end_and_again(tmp_path: Path) -> None:
    path = tmp_path / "b.json"
    schedule = Schedule([GATED], [OURS[0]], cap=120.0, repeats=2)
    assert run(schedule, Store(path, 120.0))
    first = json.loads(path.read_text())
    runs = Store(path, 120.0).runs(GATED, OURS[0])
    assert len(runs) == 2
    assert all((best_gap(r) or 0.0) <= 1e-6 and seconds_to(r, 1e-6) is not None for r in runs)
    assert run(schedule, Store(path, 120.0))
    assert json.loads(path.read_text()) == first
    text = write(path, tmp_path / "report").read_text()
    assert "C-GReLU, relative gap 1e-06" in text
    assert (tmp_path / "report" / "speedup.png").exists()
    assert (tmp_path / "report" / "profile.png").exists()


def test_the_grids() -> None:
    small, full = grid(False), grid(True)
    assert len({case.data for case in small}) == 6
    assert {(case.formulation, case.gates) for case in small} == {("gated", 500), ("relu", 100)}
    assert {case.gates for case in full} == {100, 500, 1000}
    assert {case.data for case in small} <= {case.data for case in full}
    assert len(set(full)) == len(full)


@pytest.mark.parametrize("formulation", ["gated", "relu"])
def test_path_cost_certifies_every_point_of_its_path(formulation: str) -> None:
    given = instance(Case("tiny", formulation, 10, 1.0))
    cost = path_cost.measure(given, [given.reg, 0.3 * given.reg, 0.1 * given.reg], 1e-4, 1)
    assert cost.worst_gap <= 1e-4
    assert cost.ratio == cost.path / cost.alone


def test_the_floor_counts_every_part_and_puts_back_what_it_changed() -> None:
    before = block_features.GatedFeatures.forward
    tally = floor.profile(Case("tiny", "relu", 10, 0.1), 1e-6)
    assert block_features.GatedFeatures.forward is before
    assert tally.operations > 0.0
    assert {"products", "systems", "projections", "certificate"} <= set(tally.seconds)
    assert floor.rate() > 1e6


def test_growth_measures_and_fits_exponents() -> None:
    assert growth.exponent([1.0, 2.0, 4.0], [3.0, 12.0, 48.0]) == pytest.approx(2.0)
    assert growth.exponent([1.0, 2.0], [3.0, None]) is None
    axes: dict[str, tuple[int, ...]] = {"samples": (40, 60)}
    found = growth.run(axes, growth.Size(40, 3, 8, 0.1), (), growth.Budget(600.0))
    assert [row.size.samples for row in found] == [40, 60]
    for row in found:
        assert row.gap is not None
        assert row.gap <= growth.TARGET
    assert growth.fitted(found, "samples")["seconds"] is not None
    text = growth.page(found, ["samples"], "growth.png")
    assert "\n| samples | 40 | 3 | 8 | 0.1 |" in text
    assert text.count("\n| samples |") == 3  # two rows, and the exponents


def test_polynomial_runs_are_kept_and_a_time_out_makes_a_bound(tmp_path: Path) -> None:
    settings = {"samples": 30, "reg": 1e-3, "cap": 600.0, "gap": 1e-6}
    path = tmp_path / "p.json"
    results = polynomial.Results(path, settings)
    results.add({"width": 3, "solver": "SCS", "seconds": 600.0, "status": "ended at the cap"})
    results.add(
        {"width": 3, "solver": "CLARABEL", "seconds": 2.0, "value": 1.0, "gap": 1e-3, "status": "optimal"}
    )
    rows = list(polynomial.rows(polynomial.Results(path, settings), [3]))  # only our own is still to be run
    assert [row["solver"] for row in rows] == list(polynomial.SOLVERS)
    held = polynomial.Results(path, settings)
    assert [row["solver"] for row in held.content["rows"]] == ["SCS", "CLARABEL", polynomial.OWN]
    own, clarabel, scs = [held.cells(row) for row in rows]
    assert own[6] == "yes"
    assert own[3] == "1.0"
    assert (scs[2], scs[6]) == (">=600.00", "no")
    assert clarabel[3].startswith(">=")  # it ended by itself, but far from the optimum
    held.write_report(tmp_path / "p.md")
    assert (tmp_path / "p.md").read_text().count("| 3 |") == 3
    with pytest.raises(ValueError, match="another file"):
        polynomial.Results(path, {**settings, "cap": 5.0})


def test_a_polynomial_run_that_was_killed_is_no_time_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*arguments: Any, **options: Any) -> Any:
        raise subprocess.CalledProcessError(-9, "python", stderr="")

    monkeypatch.setattr(subprocess, "run", killed)
    results = polynomial.Results(tmp_path / "p.json", {"samples": 9, "reg": 1.0, "cap": 60.0, "gap": 1e-6})
    for row in polynomial.rows(results, [3]):
        assert results.cells(row)[2:4] == ("-", "-")
        assert "out of memory" in results.cells(row)[7]
