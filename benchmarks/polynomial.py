"""Polynomial networks of growing width: the structured solver against Clarabel and SCS on the same problem.

    python benchmarks/polynomial.py --widths 50 100 200 --samples 1000 --cap 300

Every run is a process of its own with one thread. Its seconds include what CVXPY needs to hand the problem
over, and it is ended after ``--cap`` of them (and a few more for starting and for the certificate). The
relative gap is certified by ``polynomial_certificate`` from the point that the solver left, in the same way
for all. The results file and the report are written after every run; runs that the results file holds are
not made again, so that a stopped benchmark goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cvxpy as cp
import numpy as np

import convexnn_models as cnn
from benchmarks.machine import described, machine

OWN = "structured"
#: The settings of each, tried from cold one after the other until one reaches the gap; its seconds count.
SOLVERS: dict[str, list[dict[str, Any]]] = {
    OWN: [{"tol": 1e-7}],
    cp.CLARABEL: [{}],
    cp.SCS: [{"eps_abs": eps, "eps_rel": eps, "max_iters": 10_000_000} for eps in (1e-7, 1e-8, 1e-9)],
}
_STARTING = 20.0  # seconds beyond the cap for imports, data and the certificate
_REPORT = """\
# Polynomial networks: time to a certified optimum

Made by `python benchmarks/polynomial.py` (`make bench-polynomial`).

{machine}

n = {samples} samples, activation 0.09 t^2 + 0.5 t + 0.47, reg = {reg:g}; planted data. One process and one
thread a run. Reached: the relative gap, certified in the same way for all from the point that the solver
left, is at most {gap:g}. The ratio is theirs over ours; a run that was ended at the cap of {cap:g} s counts
as that, a ratio of a run that did not reach the gap is a lower bound (`>=`), and one that failed has none.
SCS is tried at tolerances of 1e-7, 1e-8 and 1e-9 until it reaches the gap, each time from cold, and only the
last try counts.

| width | solver | seconds | ratio | objective | certified gap | reached | status |
|---|---|---|---|---|---|---|---|
"""


def planted(samples: int, width: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Five hidden neurons and noise; rows of norm about one."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((samples, width)) / np.sqrt(width)
    hidden = rng.standard_normal((width, 5))
    t = X @ (hidden / np.linalg.norm(hidden, axis=0))
    y = (0.09 * t * t + 0.5 * t + 0.47) @ np.array([1.0, -1.0, 1.0, -1.0, 1.0])
    return X, y + 0.1 * rng.standard_normal(samples)


def one_run(solver: str, attempt: int, samples: int, width: int, reg: float) -> dict[str, Any]:
    """Solve once; seconds, value and certified gap."""
    X, y = planted(samples, width)
    model = cnn.polynomial(X, 0.09, 0.5, 0.47)
    problem = model.problem(y, reg)
    started = time.perf_counter()
    if solver == OWN:
        cnn.solve_polynomial(model, **SOLVERS[solver][attempt])
    else:
        problem.solve(solver=solver, **SOLVERS[solver][attempt])
    seconds = time.perf_counter() - started
    proof = cnn.polynomial_certificate(model)
    return {"seconds": seconds, "value": proof.primal, "gap": proof.relative_gap, "status": problem.status}


def capped_run(solver: str, attempt: int, samples: int, width: int, reg: float, cap: float) -> dict[str, Any]:
    """The same in a process of its own, ended after ``cap`` seconds."""
    command = [sys.executable, "-m", "benchmarks.polynomial"]
    command += ["--run", solver, *map(str, (attempt, samples, width, reg))]
    one_thread = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS"), "1")
    environment = {**os.environ, **one_thread}
    ended = {"seconds": cap, "status": "ended at the cap"}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=cap + _STARTING, check=True, env=environment
        )
    except subprocess.TimeoutExpired:
        return ended
    except subprocess.CalledProcessError as error:
        killed = f"ended by signal {-error.returncode}" + (
            ": out of memory?" if error.returncode == -9 else ""
        )
        last = [killed] if error.returncode < 0 else error.stderr.strip().splitlines()[-1:]
        return {"failed": True, "status": (last or ["failed"])[0][:60]}
    found = dict(json.loads(done.stdout))
    return found if found["seconds"] <= cap else ended


class Results:
    """Runs on disk under the settings that they were made with."""

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self.path = path
        if path.exists():
            self.content: dict[str, Any] = json.loads(path.read_text())
        else:
            self.content = {"settings": settings, "machine": machine(), "rows": []}
        held = self.content["settings"]
        if held != settings:
            raise ValueError(f"{path} holds runs with {held}, not {settings}: name another file.")

    def find(self, width: int, solver: str) -> dict[str, Any] | None:
        """The run, if it was made already."""
        rows = self.content["rows"]
        return next((row for row in rows if (row["width"], row["solver"]) == (width, solver)), None)

    def add(self, row: dict[str, Any]) -> None:
        """One more run, on disk when this returns."""
        self.content["rows"].append(row)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        draft = self.path.with_suffix(".part")
        draft.write_text(json.dumps(self.content, indent=1))
        os.replace(draft, self.path)

    def reached(self, row: dict[str, Any]) -> bool:
        """Whether a run came back with a point of which the gap was proved."""
        return "value" in row and row["gap"] is not None and row["gap"] <= self.content["settings"]["gap"]

    def cells(self, row: dict[str, Any]) -> tuple[str, ...]:
        """A row as it is shown, set against our own run of the same width."""
        own = self.find(row["width"], OWN)
        reached = self.reached(row)
        ratio = "-"
        if row.get("failed"):  # neither a time nor a time-out
            return str(row["width"]), row["solver"], "-", ratio, "-", "-", "no", row["status"]
        if own is not None and self.reached(own):
            ratio = f"{'' if reached else '>='}{row['seconds'] / own['seconds']:.1f}"
        value, gap = (f"{row['value']:.9f}", f"{row['gap']:.1e}") if "value" in row else ("-", "-")
        over = "" if "value" in row else ">="
        answer = "yes" if reached else "no"
        shown = (f"{over}{row['seconds']:.2f}", ratio, value, gap, answer, row["status"])
        return (str(row["width"]), row["solver"], *shown)

    def write_report(self, path: Path) -> None:
        """A Markdown page of all runs."""
        head = _REPORT.format(machine=described(self.content["machine"]), **self.content["settings"])
        lines = [f"| {' | '.join(self.cells(row))} |\n" for row in self.content["rows"]]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(head + "".join(lines))


def rows(results: Results, widths: list[int]) -> Iterator[dict[str, Any]]:
    """Every run in order of width, made unless it is on disk."""
    for width in widths:
        for solver in SOLVERS:
            row = results.find(width, solver)
            if row is None:
                row = _fastest(results, width, solver)
                results.add(row)
            yield row


def _fastest(results: Results, width: int, solver: str) -> dict[str, Any]:
    """The first attempt that reached the gap, or the last one; none is made after one that was ended."""
    settings = results.content["settings"]
    row: dict[str, Any] = {}
    for attempt in range(len(SOLVERS[solver])):
        found = capped_run(solver, attempt, settings["samples"], width, settings["reg"], settings["cap"])
        row = {"width": width, "solver": solver, **found}
        if results.reached(row) or "value" not in row:
            break
    return row


def main() -> None:
    """Print one row per width and solver."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--widths", type=int, nargs="+", default=[50, 100, 200])
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--reg", type=float, default=1e-3)
    parser.add_argument("--cap", type=float, default=300.0)
    parser.add_argument("--gap", type=float, default=1e-6)
    parser.add_argument("--out", type=Path, default=Path("output/polynomial.json"), help="the results file")
    parser.add_argument(
        "--report", type=Path, default=Path("output/polynomial.md"), help="the page made of it"
    )
    parser.add_argument(
        "--run", nargs=5, metavar=("SOLVER", "ATTEMPT", "SAMPLES", "WIDTH", "REG"), help=argparse.SUPPRESS
    )
    chosen = parser.parse_args()
    if chosen.run:
        solver, attempt, samples, width, reg = chosen.run
        print(json.dumps(one_run(solver, int(attempt), int(samples), int(width), float(reg))))
        return
    settings = {"samples": chosen.samples, "reg": chosen.reg, "cap": chosen.cap, "gap": chosen.gap}
    try:
        results = Results(chosen.out, settings)
    except ValueError as error:
        parser.error(str(error))
    layout = "{:>5} {:<10} {:>8} {:>8} {:>14} {:>9} {:>7}  {}"
    print(layout.format("width", "solver", "seconds", "ratio", "objective", "gap", "reached", "status"))
    for row in rows(results, chosen.widths):
        print(layout.format(*results.cells(row)), flush=True)
        results.write_report(chosen.report)


if __name__ == "__main__":
    main()
