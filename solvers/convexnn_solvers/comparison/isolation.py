"""Solve in a process of its own, with a time limit that is enforced by ending the process.

The process is started from nothing (never forked, and without importing the caller's ``__main__``), so
that this works in notebooks and in scripts without a main guard, that solvers which cannot live in one
process do not meet, and that peak memory is the contestant's own.
"""

from __future__ import annotations

import contextlib
import functools
import os
import pickle
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convexnn_solvers.comparison import peak_memory
from convexnn_solvers.comparison.isolated_solve import Outcome, Task

# How long a process may take to import CVXPY and load its problem before the clock starts.
_START_LIMIT = 120.0


@dataclass(frozen=True)
class Report:
    """How a process ended. ``failure`` is empty exactly if there is an ``outcome``.

    ``timed_out``: it was ended at its time limit. ``compile_seconds`` and ``peak_mb`` are what is known
    even then; ``seconds`` counts from the moment that the problem was loaded.
    """

    outcome: Outcome | None
    failure: str
    timed_out: bool
    seconds: float
    compile_seconds: float | None
    peak_mb: float | None


def solve_isolated(task: Task) -> Report:
    """Run a task in a new Python process and end it at ``task.time_limit`` seconds.

    Raises whatever pickling raises when the problem or the solver cannot be sent to another process.
    """
    with tempfile.TemporaryDirectory(prefix="convexnn-") as folder:
        payload, errors = Path(folder, "task"), Path(folder, "errors")
        payload.write_bytes(pickle.dumps(task))
        code = f"from convexnn_solvers.comparison.isolated_solve import main; main({str(payload)!r})"
        with errors.open("wb") as stderr, _child(code, stderr) as process:
            messages: queue.Queue[tuple[str, Any]] = queue.Queue()
            reader = threading.Thread(target=_read, args=(process, messages), daemon=True)
            reader.start()
            try:
                return _follow(process, messages, task.time_limit, errors)
            finally:
                _end(process)
                reader.join()


@functools.cache
def cvxpy_peak_mb() -> float | None:
    """The peak memory in MB of a process that only imports CVXPY."""
    code = f"import cvxpy, runpy; print(runpy.run_path({peak_memory.__file__!r})['peak_mb']())"
    finished = subprocess.run(_command(code), capture_output=True, text=True, check=True)
    words = finished.stdout.split()[-1]
    return None if words == "None" else float(words)


def _follow(
    process: subprocess.Popen[bytes],
    messages: queue.Queue[tuple[str, Any]],
    time_limit: float,
    errors: Path,
) -> Report:
    """Take messages until the process has an outcome, fails, dies, or is out of time."""
    heard: dict[str, Any] = {}
    started, limit = time.perf_counter(), _START_LIMIT
    while not heard.keys() & {"outcome", "failed", "closed"}:
        try:
            name, value = messages.get(timeout=max(0.0, started + limit - time.perf_counter()))
        except queue.Empty:
            break
        heard[name] = value
        if name == "ready":
            started, limit = time.perf_counter(), time_limit
    seconds = time.perf_counter() - started
    outcome: Outcome | None = heard.get("outcome")
    timed_out = not heard.keys() & {"outcome", "failed", "closed"}
    return Report(
        outcome=outcome,
        failure="" if outcome else _failure(process, heard, limit, errors),
        timed_out=timed_out and "ready" in heard,
        seconds=seconds,
        compile_seconds=outcome.compile_seconds if outcome else heard.get("compiled"),
        peak_mb=outcome.peak_mb if outcome else heard.get("peak", peak_memory.peak_mb(process.pid)),
    )


def _failure(process: subprocess.Popen[bytes], heard: dict[str, Any], limit: float, errors: Path) -> str:
    if "failed" in heard:
        return str(heard["failed"])
    if "closed" not in heard:
        return f"ended at its limit of {limit:g} s" + ("" if "ready" in heard else " before it had started")
    code = process.wait()
    how = f"by signal {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
    words = errors.read_text(errors="replace").strip().splitlines()
    return f"the process ended {how}" + (f": {words[-1]}" if words else "")


def _read(process: subprocess.Popen[bytes], messages: queue.Queue[tuple[str, Any]]) -> None:
    assert process.stdout is not None
    try:
        while True:
            messages.put(pickle.load(process.stdout))
    except (EOFError, OSError, ValueError, pickle.UnpicklingError):
        messages.put(("closed", None))


def _child(code: str, stderr: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        _command(code),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=stderr,
        start_new_session=True,  # so that what a solver starts can be ended with it
    )


def _command(code: str) -> list[str]:
    """Python with this process's import path, whatever changed it."""
    return [sys.executable, "-c", f"import sys; sys.path[:] = {sys.path!r}; {code}"]


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the process unless it has been waited for, and on POSIX all that it started."""
    if process.returncode is not None:
        return
    if sys.platform == "win32":
        process.kill()
    else:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()
