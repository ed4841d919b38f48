"""The file of a checkpoint: whose it may be, when it is written, and that no claim of it is believed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
from resumable import Y, constrained, gated, relu, solve

from convexnn_solvers import RFISTA, AugmentedLagrangian, Auto, certificate


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
from resumable import *
from convexnn_solvers import RFISTA
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
