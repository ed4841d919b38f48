"""``python -m benchmarks.path_cost``: a whole regularisation path beside its smallest regularisation alone.

Both in this process, one thread, in CPU time, from models of their own that nothing was compiled for; the
path includes what it returns for every point, a certificate and a network. Interleaved, the median of
``--repeats``.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.cases import Case, Instance, instance
from benchmarks.workers import limit_threads
from convexnn_models import RegularizationPath, recover, regularization_path
from convexnn_solvers import Auto

#: Data set, formulation, gates.
PROGRAMS = (
    ("diabetes", "gated", 500),
    ("synthetic-500", "gated", 500),
    ("breast_cancer", "gated", 500),
    ("german", "gated", 500),
    ("diabetes", "relu", 100),
    ("synthetic-500", "relu", 100),
    ("breast_cancer", "relu", 100),
    # Larger: what is paid per point counts less beside the linear systems, one or two of them at every point.
    ("digits", "gated", 500),
    ("synthetic-2000", "gated", 500),
)
_TINY = (("tiny", "gated", 20), ("tiny", "relu", 10))


@dataclass(frozen=True, eq=False)
class PathCost:
    """CPU seconds of the smallest regularisation alone and of the path; the path's largest relative gap."""

    alone: float
    path: float
    worst_gap: float

    @property
    def ratio(self) -> float:
        """How many times the smallest regularisation the path costs."""
        return self.path / self.alone


def measure(given: Instance, regs: Sequence[float], tol: float, repeats: int) -> PathCost:
    """Both sides, one after the other, ``repeats`` times."""
    alone, path, worst = [], [], 0.0
    for _ in range(repeats):
        model, problem = given.problem()
        model.reg.value = regs[-1]
        started = time.process_time()
        problem.solve(solver=Auto(tol=tol))
        recover(model)
        alone.append(time.process_time() - started)
        model, _ = given.problem()
        started = time.process_time()
        points = regularization_path(model, given.Y, regs=regs, tol=tol)
        path.append(time.process_time() - started)
        worst = max(worst, worst_gap(points))
    return PathCost(float(np.median(alone)), float(np.median(path)), worst)


def worst_gap(path: RegularizationPath) -> float:
    """The largest certified relative gap of a path; infinite where there is no certificate."""
    gaps = [point.certificate.relative_gap for point in path]
    return max(np.inf if gap is None else gap for gap in gaps)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.path_cost", description=__doc__)
    parser.add_argument("--regs", type=int, default=30, help="points of the path")
    parser.add_argument("--ratio", type=float, default=1e-2, help="smallest over largest regularisation")
    parser.add_argument("--tol", type=float, default=1e-4, help="relative certified gap of every point")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tiny", action="store_true", help="small programs, to see that it works")
    given = parser.parse_args(arguments)
    limit_threads()
    print(f"{'program':28} {'alone, s':>9} {'path, s':>9} {'ratio':>6} {'worst gap':>10}")
    for data, formulation, gates in _TINY if given.tiny else PROGRAMS:
        largest = instance(Case(data, formulation, gates, 1.0))
        regs = largest.reg * np.geomspace(1.0, given.ratio, given.regs)
        cost = measure(largest, list(regs), given.tol, given.repeats)
        name = f"{data} {formulation} P={gates}"
        times = f"{cost.alone:9.3f} {cost.path:9.3f} {cost.ratio:6.2f}"
        print(f"{name:28} {times} {cost.worst_gap:10.1e}", flush=True)


if __name__ == "__main__":
    main()
