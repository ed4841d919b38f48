"""Solves that end early: resumed, they go on as if nothing had happened; no claim of a file is believed."""

from __future__ import annotations

import itertools
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cvxpy as cp
import numpy as np
import pytest

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
    cones,
)
from convexnn_solvers.active_sets import machine_code
from convexnn_solvers.admm import AdmmState, admm_method
from convexnn_solvers.admm_problem import AdmmPolicy
from convexnn_solvers.admm_working_set import AdmmEngine
from convexnn_solvers.backends import numpy_backend
from convexnn_solvers.compiler import compile_problem
from convexnn_solvers.gate_working_set import WorkingSetNewton, WorkingSetPolicy
from convexnn_solvers.gated_method import GatedMethod
from convexnn_solvers.gated_program import scaled
from convexnn_solvers.gated_structure import gated_structure
from convexnn_solvers.kept import Kept
from convexnn_solvers.newton_start import NewtonStart

RNG = np.random.default_rng(0)
X, Y = RNG.standard_normal((40, 4)), RNG.standard_normal(40)
GATES = cnn.sample_gates(X, 12, seed=0)


@pytest.fixture(autouse=True)
def _interruptible() -> Iterator[None]:
    """Python's own handler, also where the tests run in the background and Ctrl-C is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def gated(y: Any = Y, reg: float = 0.01) -> Any:
    return cnn.gated_relu(X, GATES, output_bias=True).problem(y, reg)


def relu() -> Any:
    return cnn.relu(X, GATES).problem(Y, 0.01)


def constrained() -> Any:
    model = cnn.gated_relu(X, GATES)
    problem = model.problem(Y, 0.01)
    return cp.Problem(problem.objective, [model.prediction >= -0.2])


SOLVES = {
    "R-FISTA": (gated, RFISTA()),
    "R-FISTA, torch": (gated, RFISTA(backend="torch")),
    "R-FISTA, float32": (gated, RFISTA(dtype="float32")),
    "augmented Lagrangian, cones": (relu, AugmentedLagrangian()),
    "augmented Lagrangian, multipliers": (constrained, AugmentedLagrangian()),
    "Auto": (constrained, Auto()),
}


def solve(problem: Any, solver: Any, **options: Any) -> Any:
    """Solve from zero, without CVXPY's warning of a limit; what our solver says about it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Solution may be inaccurate")
        problem.solve(solver=solver, warm_start=False, **options)
    return problem.solver_stats.extra_stats


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
    engine = AdmmEngine(method.problem, start, AdmmPolicy(), 12, first=3)
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
    assert engine.newton_steps > 10


@pytest.mark.parametrize("other", [lambda: gated(Y[::-1]), lambda: gated(reg=0.02), relu, constrained])
def test_a_checkpoint_of_another_problem_is_refused(other: Any, tmp_path: Path) -> None:
    file = tmp_path / "solve.npz"
    solve(gated(), RFISTA(), max_iter=20, checkpoint=file)
    held = file.read_bytes()
    with pytest.raises(ValueError, match="belongs to another problem"):
        solve(other(), Auto(), checkpoint=file, resume=True)
    assert file.read_bytes() == held


def test_a_checkpoint_of_another_engine_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "solve.npz"
    solve(gated(), RFISTA(), max_iter=20, checkpoint=file)
    with pytest.raises(ValueError, match="written by RFISTA"):
        solve(gated(), AugmentedLagrangian(), checkpoint=file, resume=True)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off", b"something else", "arrays"])
def test_what_is_no_checkpoint_is_refused(content: bytes | str, tmp_path: Path) -> None:
    file = tmp_path / "solve.npz"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        np.savez(file, x=np.zeros(3))
    with pytest.raises(ValueError, match=r"checkpoint=.*solve\.npz"):
        solve(gated(), RFISTA(), checkpoint=file, resume=True)


def test_without_a_file_resume_starts_anew_and_without_resume_the_file_is_replaced(tmp_path: Path) -> None:
    file = tmp_path / "solve.npz"
    first = solve(gated(), RFISTA(), max_iter=30, checkpoint=file, resume=True)
    again = solve(gated(), RFISTA(), max_iter=20, checkpoint=file)
    assert (first["iterations"], again["iterations"]) == (30, 20)
    assert [path.name for path in tmp_path.iterdir()] == [file.name]
    with np.load(file, allow_pickle=False) as held:
        assert all(held[name].dtype.kind in "biufU" for name in held.files)


def test_bounds_are_certified_anew_whatever_the_file_says(tmp_path: Path) -> None:
    file = tmp_path / "solve.npz"
    solve(gated(), RFISTA(), max_iter=40, checkpoint=file)
    with np.load(file) as held:
        arrays = {name: held[name] for name in held.files}
    arrays["watch.thetas.0"] = 50.0 * arrays["watch.thetas.0"]
    arrays["watch.point.0"] = 0.0 * arrays["watch.point.0"]
    arrays["watch.history"][:, 3] = arrays["watch.history"][:, 2]  # "the bound is tight"
    np.savez(file, **arrays)
    problem = gated()
    extra = solve(problem, RFISTA(tol=1e-6), checkpoint=file, resume=True)
    assert extra["iterations"] > 40
    gap = certificate(problem).relative_gap
    assert gap is not None
    assert gap <= 1e-6


_KILLED = """
import os, sys
sys.path[:0] = {path!r}
from test_checkpoints import *
def end(info):
    if info.iteration >= 60:
        os._exit(3)
solve(gated(), RFISTA(tol=0.0), checkpoint={file!r}, checkpoint_interval=0.0, callback=end)
"""


def test_a_killed_process_loses_at_most_the_last_interval(tmp_path: Path) -> None:
    file = tmp_path / "solve.npz"
    code = _KILLED.format(path=sys.path, file=str(file))
    ended = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert ended.returncode == 3, ended.stderr
    with np.load(file) as held:
        assert held["loop"][0] == 60
    whole = solve(gated(), RFISTA(), tol=0.0, max_iter=150)
    resumed = solve(gated(), RFISTA(), tol=0.0, max_iter=150, checkpoint=file, resume=True)
    assert resumed["certificate"].primal == pytest.approx(whole["certificate"].primal, rel=1e-12)


def test_a_full_disk_is_a_warning_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    problem = gated()
    with pytest.warns(UserWarning, match=r"was not written: .*No space left"):
        problem.solve(solver=RFISTA(tol=1e-3), checkpoint=tmp_path / "solve.npz")
    assert problem.status == cp.OPTIMAL
    assert list(tmp_path.iterdir()) == []


BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "no folder": ({"checkpoint": "/nowhere/at/all.npz"}, ValueError, "folder that exists"),
    "a folder": ({"checkpoint": "."}, ValueError, "must be a file"),
    "a number": ({"checkpoint": 3}, TypeError, "path of a file"),
    "an interval": ({"checkpoint": "a.npz", "checkpoint_interval": -1.0}, ValueError, "seconds >= 0"),
    "resume what": ({"resume": True}, ValueError, "needs checkpoint"),
    "resume how": ({"checkpoint": "a.npz", "resume": "yes"}, TypeError, "True or False"),
}


@pytest.mark.parametrize("bad", BAD)
def test_bad_options_are_refused_by_name(bad: str) -> None:
    options, kind, message = BAD[bad]
    with pytest.raises(kind, match=message):
        RFISTA(**options)


def test_a_long_silence_is_broken_by_a_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from convexnn_solvers import progress_table

    monkeypatch.setattr(progress_table, "_SILENCE", 0.0)
    solve(gated(), RFISTA(tol=0.0), max_iter=25, verbose=True)
    printed = {
        int(line.split()[0]) for line in capsys.readouterr().out.splitlines() if line.split()[0].isdigit()
    }
    assert set(range(1, 26)) <= printed
