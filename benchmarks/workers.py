"""Contestants in processes of their own: warmed up once, timed by their own clock, ended at the cap."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import time
import warnings
from collections.abc import Sequence
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import TypedDict

from benchmarks.cases import Case, instance
from benchmarks.contestants import Ours, contestants
from benchmarks.referee import Referee, Sample

# Grace beyond the cap for a contestant that can stop by itself and hand in its point.
_GRACE = 2.0
# Imports, compiling machine code and making the data must end some time.
_SETUP_LIMIT = 300.0
_THREADS = ("OMP", "OPENBLAS", "MKL", "NUMBA", "RAYON", "VECLIB", "BLIS")


class Run(TypedDict):
    """One contestant on one case. ``declined``: why it did not take part, or "" ."""

    declined: str
    reason: str
    timed_out: bool
    samples: list[Sample]


def limit_threads() -> None:
    """One thread for every library that is imported by processes started from now on."""
    for name in _THREADS:
        os.environ[f"{name}_NUM_THREADS"] = "1"


class Worker:
    """A process that runs one contestant on case after case; replaced after it had to be ended."""

    def __init__(self, name: str, memory_gb: float, core: int | None = None) -> None:
        self._arguments = (name, memory_gb, core)
        self._process: SpawnProcess | None = None
        self._pipe: Connection | None = None
        self._idle = True

    def run(self, case: Case, cap: float) -> Run:
        """The contestant on a case, with ``cap`` seconds of its own time for every solve from cold."""
        if self._process is None or not self._process.is_alive():
            self._start()
        assert self._pipe is not None
        self._pipe.send((case, cap))
        self._idle = False
        run = self._follow(self._pipe, cap)
        self._idle = True
        return run

    def close(self) -> None:
        """Let the process go if it is idle, else end it."""
        if self._process is not None and self._pipe is not None:
            if self._idle:
                with contextlib.suppress(OSError):
                    self._pipe.send(None)
                self._process.join(_GRACE)
            self._process.kill()
            self._process.join()
        self._process = None

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, *self._arguments), daemon=True)
        process.start()
        self._process = process
        theirs.close()

    def _follow(self, pipe: Connection, cap: float) -> Run:
        """Listen until the run is over, its clock has passed the cap, or the process has died."""
        run = Run(declined="", reason="", timed_out=False, samples=[])
        used, since, limit = 0.0, time.perf_counter(), _SETUP_LIMIT
        solving = False
        while True:
            left = limit - used - (time.perf_counter() - since)
            if not pipe.poll(max(left, 0.0)):
                run["timed_out"] = solving
                run["reason"] = f"ended after {limit:g} s"
                self.close()
                return run
            try:
                name, value = pipe.recv()
            except (EOFError, ConnectionResetError):
                self.close()
                run["reason"] = "its process died (of memory?)"
                return run
            if name == "sample":
                run["samples"].append(value)
                used, since, limit, solving = value["seconds"], time.perf_counter(), cap + _GRACE, True
            elif name == "begin":
                used, since, limit, solving = value, time.perf_counter(), cap + _GRACE, True
            elif name == "pause":
                used, since, limit, solving = 0.0, time.perf_counter(), _SETUP_LIMIT, False
            elif name == "declined":
                run["declined"] = value
                return run
            else:
                run["reason"] = value
                run["timed_out"] = bool(run["samples"]) and run["samples"][-1]["seconds"] >= 0.8 * cap
                return run


def _serve(pipe: Connection, name: str, memory_gb: float, core: int | None) -> None:
    """What a process does: warm up for every kind of program, then solve and report."""
    _confine(memory_gb, core)
    warnings.simplefilter("ignore")  # limits that are reached are what the rows say
    contestant, warmed = contestants()[name], set[tuple[str, int]]()

    def tell(what: str, value: object) -> None:
        pipe.send((what, value))

    while True:
        task: tuple[Case, float] | None = pipe.recv()
        if task is None:
            return
        case, cap = task
        try:
            numbers = instance(case)
            declined = contestant.can_take(numbers)
            if declined is not None:
                tell("declined", declined)
                continue
            kind = (case.formulation, numbers.outputs)
            if kind not in warmed:
                tiny = instance(warm_case(name, *kind))
                contestant.solve(tiny, Referee(tiny, 1.0))
                warmed.add(kind)
            referee = Referee(numbers, cap, tell)
            contestant.solve(numbers, referee)
            tell("done", referee.reason)
        except Exception as error:
            tell("done", f"{type(error).__name__}: {' '.join(str(error).split())}"[:300])


def warm_case(name: str, formulation: str, outputs: int) -> Case:
    """What this contestant solves first; ours with so many gates that they load their machine code."""
    gates = 2000 if isinstance(contestants()[name], Ours) else 5
    return Case("tiny3" if outputs > 1 else "tiny", formulation, gates, 0.1)


def _confine(memory_gb: float, core: int | None) -> None:
    """Where the system can: no more memory than this, and one core."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        size = int(memory_gb * 2**30)
        resource.setrlimit(resource.RLIMIT_DATA, (size, size))
    if core is not None and hasattr(os, "sched_setaffinity"):
        cores: Sequence[int] = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[core % len(cores)]})
