"""``python -m benchmarks.run``: run the grid side by side, interleaved, resumable.

Every round visits every program and, within it, one contestant after the other. Runs under five seconds are
repeated in later rounds, up to three times. A contestant that did not reach the last target at a larger
regularisation within the cap is not run at smaller ones (unless ``--every-reg``).
"""

from __future__ import annotations

import argparse
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.cases import DATA, RATIOS, Case, grid
from benchmarks.contestants import contestants
from benchmarks.referee import TARGETS
from benchmarks.store import Store
from benchmarks.workers import Run, Worker, limit_threads

_REPEATS = 3
_SHORT = 5.0


@dataclass(frozen=True)
class Schedule:
    """What to run: cases in order, contestants by name, and the limits."""

    cases: Sequence[Case]
    names: Sequence[str]
    cap: float
    repeats: int = _REPEATS
    memory_gb: float = 12.0
    every_reg: bool = False
    deadline: float = float("inf")


def run(schedule: Schedule, store: Store, lanes: int = 1) -> bool:
    """Run what is not in the store, programs dealt to ``lanes`` threads; False: the deadline came first."""
    limit_threads()
    programs = list(dict.fromkeys((c.data, c.formulation, c.gates) for c in schedule.cases))
    complete = [True] * lanes

    def drive(lane: int) -> None:
        own = set(programs[lane::lanes])
        cases = [c for c in schedule.cases if (c.data, c.formulation, c.gates) in own]
        workers = {
            name: Worker(name, schedule.memory_gb, lane if lanes > 1 else None) for name in schedule.names
        }
        try:
            complete[lane] = _drive(schedule, cases, workers, store)
        finally:
            for worker in workers.values():
                worker.close()

    threads = [threading.Thread(target=drive, args=(lane,)) for lane in range(lanes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return all(complete)


def seconds_to(run: Run, target: float) -> float | None:
    """The shortest time in which a solve of this run was certified to the target, or None."""
    samples = (s for s in run["samples"] if s["in_time"])
    times = [s["seconds"] for s in samples if s["gap"] is not None and s["gap"] <= target]
    return min(times, default=None)


def best_gap(run: Run) -> float | None:
    """The smallest certified relative gap of a run."""
    return min((s["gap"] for s in run["samples"] if s["gap"] is not None), default=None)


def _drive(schedule: Schedule, cases: Sequence[Case], workers: dict[str, Worker], store: Store) -> bool:
    for repeat in range(schedule.repeats):
        for case in cases:
            for name, worker in workers.items():
                done = store.runs(case, name)
                if len(done) > repeat or (repeat and not _short(done)) or len(done) < repeat:
                    continue
                if time.perf_counter() > schedule.deadline:
                    return False
                hopeless = None if schedule.every_reg else _failed_before(case, name, store)
                outcome = hopeless or worker.run(case, schedule.cap)
                store.add(case, name, outcome)
                print(f"{case.key:36} {name:20} {_words(outcome)}", flush=True)
    return True


def _short(done: Sequence[Run]) -> bool:
    """Whether runs are to be repeated: they reached the last target in a short time."""
    seconds = [seconds_to(run, TARGETS[-1]) for run in done]
    return all(s is not None and s < _SHORT for s in seconds)


def _failed_before(case: Case, name: str, store: Store) -> Run | None:
    """What to record instead of a run that is hopeless, since an easier one timed out."""
    for larger in case.larger_regs():
        for done in store.runs(larger, name):
            if done["timed_out"] and seconds_to(done, TARGETS[-1]) is None:
                reason = f"not run: not reached at {larger.ratio:g} lam_max"
                return Run(declined="", reason=reason, timed_out=True, samples=[])
    return None


def _words(run: Run) -> str:
    if run["declined"]:
        return run["declined"]
    shown = []
    for target in TARGETS:
        seconds = seconds_to(run, target)
        shown.append(f"{target:g}: " + ("not reached" if seconds is None else f"{seconds:.3g} s"))
    gap = best_gap(run)
    got = "" if gap is None else f"gap {gap:.1e}"
    return "  ".join(part for part in (*shown, got, run["reason"]) if part)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.add_argument("--full", action="store_true", help="the whole grid (days)")
    parser.add_argument("--data", nargs="+", choices=sorted(DATA), help="only these data sets")
    parser.add_argument("--formulation", choices=("gated", "relu"))
    parser.add_argument("--gates", type=int, help="this many gates, instead of the grid's numbers")
    parser.add_argument("--ratios", nargs="+", type=float, help="only these lam / lam_max")
    parser.add_argument("--methods", nargs="+", choices=sorted(contestants()), help="only these contestants")
    parser.add_argument("--cap", type=float, default=60.0, help="seconds per solve")
    parser.add_argument("--repeats", type=int, default=_REPEATS, help="runs of those under five seconds")
    parser.add_argument(
        "--lanes", type=int, default=1, help="programs solved at a time, each on its own core"
    )
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start nothing new after these")
    parser.add_argument("--memory", type=float, default=12.0, help="GB per process")
    parser.add_argument("--every-reg", action="store_true", help="run also where a larger reg timed out")
    parser.add_argument("--remark", default="", help="what readers should know, such as other work meanwhile")
    parser.add_argument("--out", type=Path, default=Path("output/bench.json"))
    given = parser.parse_args(arguments)
    cases = _selected(grid(given.full), given)
    schedule = Schedule(
        cases=cases,
        names=given.methods or list(contestants()),
        cap=given.cap,
        repeats=given.repeats,
        memory_gb=given.memory,
        every_reg=given.every_reg,
        deadline=time.perf_counter() + 60.0 * given.minutes,
    )
    complete = run(schedule, Store(given.out, given.cap, given.remark), given.lanes)
    print("complete" if complete else "out of time: the same command goes on from here", given.out)
    return 0


def _selected(cases: Sequence[Case], given: argparse.Namespace) -> list[Case]:
    """The grid, restricted and changed as asked for."""
    known = {case.data for case in cases}
    extra = [name for name in given.data or () if name not in known]
    cases = [*cases, *(Case(name, f, 100, r) for name in extra for f in ("gated", "relu") for r in RATIOS)]
    changed = [
        Case(case.data, case.formulation, given.gates or case.gates, case.ratio)
        for case in cases
        if (given.data is None or case.data in given.data)
        and (given.formulation is None or case.formulation == given.formulation)
        and (given.ratios is None or case.ratio in given.ratios)
    ]
    return list(dict.fromkeys(changed))


if __name__ == "__main__":
    raise SystemExit(main())
