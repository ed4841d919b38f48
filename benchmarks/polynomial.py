"""Polynomial networks of growing width: the structured solver against Clarabel and SCS on the same problem.

    python benchmarks/polynomial.py --widths 50 100 200 --samples 1000 --cap 300

Every run is a process of its own with one thread, ended after ``--cap`` seconds; a run that is ended counts
as the cap, and its ratio is then a lower bound. Seconds include what CVXPY needs to hand the problem over.
The relative gap is certified by ``polynomial_certificate`` from the point that the solver left, in the same
way for all, and "reached" says whether it is at most ``--gap``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from typing import Any

import cvxpy as cp
import numpy as np

import convexnn_models as cnn

SOLVERS: dict[str, dict[str, Any]] = {
    "structured": {"tol": 1e-7},
    cp.CLARABEL: {},
    cp.SCS: {"eps_abs": 1e-7, "eps_rel": 1e-7, "max_iters": 100_000},
}


def planted(samples: int, width: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Five hidden neurons and noise; rows of norm about one."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((samples, width)) / np.sqrt(width)
    hidden = rng.standard_normal((width, 5))
    t = X @ (hidden / np.linalg.norm(hidden, axis=0))
    y = (0.09 * t * t + 0.5 * t + 0.47) @ np.array([1.0, -1.0, 1.0, -1.0, 1.0])
    return X, y + 0.1 * rng.standard_normal(samples)


def one_run(solver: str, samples: int, width: int, reg: float) -> dict[str, Any]:
    """Solve once; seconds, value and certified gap."""
    X, y = planted(samples, width)
    model = cnn.polynomial(X, 0.09, 0.5, 0.47)
    problem = model.problem(y, reg)
    started = time.perf_counter()
    if solver == "structured":
        cnn.solve_polynomial(model, **SOLVERS[solver])
    else:
        problem.solve(solver=solver, **SOLVERS[solver])
    seconds = time.perf_counter() - started
    proof = cnn.polynomial_certificate(model)
    return {"seconds": seconds, "value": proof.primal, "gap": proof.relative_gap, "status": problem.status}


def capped_run(solver: str, samples: int, width: int, reg: float, cap: float) -> dict[str, Any]:
    """The same in a process of its own, ended after ``cap`` seconds."""
    command = [sys.executable, __file__, "--run", solver, str(samples), str(width), str(reg)]
    one_thread = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS"), "1")
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=cap, check=True, env={**os.environ, **one_thread}
        )
    except subprocess.TimeoutExpired:
        return {"seconds": cap, "status": "ended at the cap"}
    except subprocess.CalledProcessError as error:
        last = error.stderr.strip().splitlines()[-1:] or ["ended by the system"]
        return {"seconds": cap, "status": last[0][:60]}
    return dict(json.loads(done.stdout))


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
    parser.add_argument(
        "--run", nargs=4, metavar=("SOLVER", "SAMPLES", "WIDTH", "REG"), help=argparse.SUPPRESS
    )
    chosen = parser.parse_args()
    if chosen.run:
        solver, samples, width, reg = chosen.run
        print(json.dumps(one_run(solver, int(samples), int(width), float(reg))))
        return
    print(f"{'width':>5} {'solver':<10} {'seconds':>8} {'ratio':>7} {'objective':>14} {'gap':>9} reached")
    for width in chosen.widths:
        own = 0.0
        for solver in SOLVERS:
            row = capped_run(solver, chosen.samples, width, chosen.reg, chosen.cap)
            own = own or row["seconds"]
            ended = "value" not in row
            value = f"{'-':>14} {'-':>9}" if ended else f"{row['value']:14.9f} {row['gap']:9.1e}"
            reached = "no" if ended or row["gap"] > chosen.gap else "yes"
            ratio = f"{'>=' if ended else ''}{row['seconds'] / own:.1f}"
            figures = f"{row['seconds']:8.2f} {ratio:>7} {value} {reached:>7}"
            print(f"{width:5d} {solver:<10} {figures}  {row['status']}", flush=True)


if __name__ == "__main__":
    main()
