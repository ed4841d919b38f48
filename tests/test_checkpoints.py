"""Solves that end early: resumed, they go on as if nothing had happened, whatever the method."""

from __future__ import annotations

import itertools
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
from resumable import GATES, X, Y, constrained, gated, relu, solve

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
)
from convexnn_solvers.admm.method import AdmmState, admm_method
from convexnn_solvers.admm.working_set import AdmmEngine
from convexnn_solvers.backends import numpy_backend
from convexnn_solvers.cones import projections as cones
from convexnn_solvers.cones.active_sets import machine_code
from convexnn_solvers.gated_programs.method import GatedMethod
from convexnn_solvers.gated_programs.program import scaled
from convexnn_solvers.gated_programs.structure import gated_structure
from convexnn_solvers.kept import Kept
from convexnn_solvers.newton.start import NewtonStart
from convexnn_solvers.newton.working_set import WorkingSetNewton, WorkingSetPolicy
from convexnn_solvers.reading.compiler import compile_problem


@pytest.fixture(autouse=True)
def _interruptible() -> Iterator[None]:
    """Python's own handler, also where the tests run in the background and Ctrl-C is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


SOLVES = {
    "R-FISTA": (gated, RFISTA()),
    "R-FISTA, torch": (gated, RFISTA(backend="torch")),
    "R-FISTA, float32": (gated, RFISTA(dtype="float32")),
    "augmented Lagrangian, cones": (relu, AugmentedLagrangian()),
    "augmented Lagrangian, multipliers": (constrained, AugmentedLagrangian()),
    "Auto": (constrained, Auto()),
}


def ctrl_c(info: Progress) -> None:
    if 30 <= info.iteration < 60:
        signal.raise_signal(signal.SIGINT)


def interrupt(info: Progress) -> None:
    if info.iteration >= 30:
        signal.raise_signal(signal.SIGINT)


LOOKING: dict[str, Any] = {"callback": lambda info: False}
ENDS: dict[str, dict[str, Any]] = {
    "Ctrl-C": {"callback": ctrl_c, "max_iter": 150},
    "a limit between two looks": {"max_iter": 47, **LOOKING},
    "a callback": {"callback": lambda info: info.iteration >= 50, "max_iter": 150},
}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("case", SOLVES)
def test_interrupted_and_resumed_history_is_that_of_the_whole_solve(
    case: str, end: str, tmp_path: Path
) -> None:
    """With looks at the same iterations, which an estimate of the gap would not ask for."""
    make, solver = SOLVES[case]
    if "torch" in case:
        pytest.importorskip("array_api_compat")
    file = tmp_path / "solve.npz"
    whole = solve(make(), solver, tol=0.0, max_iter=150, **LOOKING)
    first = solve(make(), solver, tol=0.0, checkpoint=file, **ENDS[end])
    assert first["status"] in (Status.INTERRUPTED, Status.STOPPED, Status.ITERATION_LIMIT)
    assert first["iterations"] < 150
    resumed = solve(make(), solver, tol=0.0, max_iter=150, checkpoint=file, resume=True, **LOOKING)
    assert resumed["iterations"] == whole["iterations"] == 150
    assert [row["iteration"] for row in resumed["history"]] == [row["iteration"] for row in whole["history"]]
    for key in ("primal", "dual", "relative_gap"):
        ours, theirs = ([row[key] for row in extra["history"]] for extra in (resumed, whole))
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-12)
    seconds = [row["seconds"] for row in resumed["history"]]
    assert seconds == sorted(seconds)
    assert resumed["certificate"].primal == pytest.approx(whole["certificate"].primal, rel=1e-12)


def three_outputs() -> Any:
    targets = np.stack([np.sin(k + Y) for k in range(3)], axis=1)
    return cnn.gated_relu(X, GATES, outputs=3, output_bias=True).problem(targets, 0.002)


def labels() -> Any:
    return cnn.gated_relu(X, GATES).problem(np.sign(Y), 0.01, loss="logistic")


ADMMS = {
    "float64": (three_outputs, ADMM()),
    "torch float32": (three_outputs, ADMM(backend="torch", dtype="float32")),
    "logistic": (labels, ADMM()),
}


@pytest.mark.parametrize("case", ADMMS)
@pytest.mark.parametrize("end", [13, 27, "Ctrl-C"])
def test_admm_goes_on_exactly_where_it_was(end: int | str, case: str, tmp_path: Path) -> None:
    """With looks at the same iterations, which its own gap would not ask for."""
    make, solver = ADMMS[case]
    if "torch" in case:
        pytest.importorskip("array_api_compat")
    file = tmp_path / "solve.npz"
    stop: dict[str, Any] = {"callback": interrupt} if end == "Ctrl-C" else {"max_iter": end, **LOOKING}
    whole = solve(make(), solver, tol=0.0, max_iter=60, **LOOKING)
    first = solve(make(), solver, tol=0.0, checkpoint=file, **stop)
    assert first["iterations"] < whole["iterations"]
    resumed = solve(make(), solver, tol=0.0, max_iter=60, checkpoint=file, resume=True, **LOOKING)
    assert len(whole["history"]) >= 6
    for key in ("iteration", "primal", "dual", "relative_gap"):
        assert [row[key] for row in resumed["history"]] == [row[key] for row in whole["history"]]


def test_admm_goes_on_with_its_set_of_gates() -> None:
    """Round by round, from a state in the middle of one."""
    exact = compile_problem(three_outputs(), numpy_backend()).composite()
    method = admm_method(exact, gated_structure(exact), 1e-8)
    start = np.concatenate(method.structure.blocks(exact.zeros()))
    engine = AdmmEngine(method.problem, start, 12, first=3)
    for _ in range(60):
        engine.step(1e-8)
    assert engine.rounds > 1
    other = method.unpacked(method.packed(AdmmState(engine, 1e-8))).engine
    for _ in range(140):
        engine.step(1e-8)
        other.step(1e-8)
        assert other.working_set.tolist() == engine.working_set.tolist()
        assert (other.rounds, other.gap) == (engine.rounds, engine.gap)


def huber() -> Any:
    return cnn.gated_relu(X, GATES, output_bias=True).problem(Y, 0.001, loss="huber")


def absolute() -> Any:
    return cnn.gated_relu(X, GATES, output_bias=True).problem(Y, 0.02, loss="absolute")


def largest() -> Any:
    model = cnn.relu(X, GATES)
    return cp.Problem(cp.Minimize(cp.norm_inf(model.prediction - Y) + 0.1 * model.penalty), model.constraints)


def two_relu_outputs() -> Any:
    targets = np.stack([np.sin(k + Y) for k in range(2)], axis=1)
    return cnn.relu(X, GATES, outputs=2, grouping="per-output").problem(targets, 0.01)


IN_PLACE: dict[str, tuple[Any, Any, tuple[int | str, ...]]] = {
    "block descent": (gated, BlockDescent(), (1, 6, "Ctrl-C")),
    "block descent, Huber": (huber, BlockDescent(), (3, "Ctrl-C")),
    "Newton": (three_outputs, SemismoothNewton(), (1, 6, 11, "Ctrl-C")),
    "Newton, Huber": (huber, SemismoothNewton(), (7, "Ctrl-C")),
    "Newton, absolute values": (absolute, SemismoothNewton(), (8, "Ctrl-C")),
    "Newton, largest residual": (largest, SemismoothNewton(), (6,)),
    "Newton, logistic": (labels, SemismoothNewton(), (5,)),
    "Newton, cones": (relu, SemismoothNewton(), (2, 9, "Ctrl-C")),
    "Newton, one program per output": (two_relu_outputs, SemismoothNewton(), (4, 13)),
}


@pytest.mark.parametrize(
    ("case", "end"), [(case, end) for case, (_, _, ends) in IN_PLACE.items() for end in ends]
)
def test_methods_that_change_their_states_go_on_exactly_too(
    end: int | str, case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Certified after every step. Ctrl-C comes when a step is half done."""
    make, solver, _ = IN_PLACE[case]
    often(monkeypatch)
    file = tmp_path / "solve.npz"
    whole = solve(make(), solver, tol=1e-10, max_iter=25)
    assert len(whole["history"]) >= 9
    with monkeypatch.context() as patch:
        if end == "Ctrl-C":
            interrupt_a_step(patch, 5)
        limit: dict[str, Any] = {} if end == "Ctrl-C" else {"max_iter": end}
        first = solve(make(), solver, tol=1e-10, checkpoint=file, **limit)
    assert first["iterations"] < whole["iterations"]
    resumed = solve(make(), solver, tol=1e-10, max_iter=25, checkpoint=file, resume=True)
    for key in ("iteration", "primal"):
        assert [row[key] for row in resumed["history"]] == [row[key] for row in whole["history"]]
    # The best bound of the file is computed anew, from a dual point that has been scaled before.
    ours, theirs = ([row["dual"] for row in extra["history"]] for extra in (resumed, whole))
    np.testing.assert_allclose(ours, theirs, rtol=1e-14)


def test_newton_goes_on_where_projections_remember_their_factors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Machine code keeps factors of active rows; they are made anew, equal to rounding."""
    if machine_code() is None:
        pytest.skip("numba is not installed")
    monkeypatch.setattr(cones, "_COMPILED_FROM", 0)
    often(monkeypatch)
    file = tmp_path / "solve.npz"
    whole = solve(relu(), SemismoothNewton(), tol=1e-9)
    solve(relu(), SemismoothNewton(), tol=1e-9, checkpoint=file, max_iter=whole["iterations"] // 2)
    resumed = solve(relu(), SemismoothNewton(), tol=1e-9, checkpoint=file, resume=True)
    assert [row["iteration"] for row in resumed["history"]] == [row["iteration"] for row in whole["history"]]
    for key in ("primal", "dual"):
        ours, theirs = ([row[key] for row in extra["history"]] for extra in (resumed, whole))
        np.testing.assert_allclose(ours, theirs, rtol=1e-9)


def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """A certificate after every step of a gated method."""
    monkeypatch.setattr(GatedMethod, "wants_look", lambda self, state: True)


def interrupt_a_step(patch: pytest.MonkeyPatch, number: int) -> None:
    """Ctrl-C when a gated method has made this step, and its state is not what it was."""
    step, steps = GatedMethod.step, itertools.count(1)

    def interrupted(self: GatedMethod, state: Any) -> Any:
        done = step(self, state)
        if next(steps) == number:
            raise KeyboardInterrupt
        return done

    patch.setattr(GatedMethod, "step", interrupted)


@pytest.mark.parametrize("cones", [False, True])
def test_newton_goes_on_with_its_set_of_gates(cones: bool) -> None:
    """Round by round, from a state in the middle of one."""
    exact = compile_problem((relu if cones else gated)(), numpy_backend()).composite()
    program, _ = scaled(gated_structure(exact).programs[0])
    engine = WorkingSetNewton(program, sets=WorkingSetPolicy(first=2, growth=1.0))
    for _ in range(6):
        engine.step(1e-10)
    assert engine.rounds > 1
    other = WorkingSetNewton(replace(program, kept=Kept()), start=NewtonStart(held=engine.packed()))
    other.sets = engine.sets
    for _ in range(30):
        engine.step(1e-10)
        other.step(1e-10)
        assert other.working_set.tolist() == engine.working_set.tolist()
        assert (other.rounds, other.gap) == (engine.rounds, engine.gap)
    assert engine.newton_steps > 8


def test_a_long_silence_is_broken_by_a_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from convexnn_solvers.loop import progress_table

    monkeypatch.setattr(progress_table, "_SILENCE", 0.0)
    solve(gated(), RFISTA(tol=0.0), max_iter=25, verbose=True)
    printed = {
        int(line.split()[0]) for line in capsys.readouterr().out.splitlines() if line.split()[0].isdigit()
    }
    assert set(range(1, 26)) <= printed
