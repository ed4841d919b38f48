"""One process of the jobs in ``test_distributed``: ``python distributed_worker.py SCENARIO FOLDER``."""

from __future__ import annotations

import os
import pickle
import signal
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np

import convexnn_models as cnn
from convexnn_solvers import Progress, certificate
from convexnn_solvers.distributed import GateParallel, RankLost
from convexnn_solvers.first_order.rfista import AcceleratedGradient

RANK = int(os.environ.get("RANK", "0"))
METHOD: Any = AcceleratedGradient  # whose steps are watched
N, GATES = 60, 13  # 13 gates are divided unevenly among 2 and 3 processes
RNG = np.random.default_rng(3)
X = RNG.standard_normal((N, 4))
SCORES = np.maximum(X @ RNG.standard_normal((4, 3)), 0.0) + 0.1 * RNG.standard_normal((N, 3))


def squared() -> Any:
    return cnn.gated_relu(X, cnn.sample_gates(X, GATES)), SCORES[:, 0], "squared"


def softmax() -> Any:
    return cnn.gated_relu(X, cnn.sample_gates(X, GATES), outputs=3), SCORES.argmax(axis=1), "softmax"


def huber() -> Any:
    gates = cnn.sample_gates(X, GATES)
    return cnn.gated_relu(X, gates, outputs=3, grouping="per-output"), SCORES, "huber"


PROGRAMS = {"squared": squared, "softmax": softmax, "huber": huber}


def problem_of(name: str, share_of_lambda_max: float = 0.2) -> Any:
    model, y, loss = PROGRAMS[name]()
    return model.problem(y, share_of_lambda_max * cnn.lambda_max(model, y, loss), loss)


def solve(problem: Any, solver: Any, **options: Any) -> dict[str, Any]:
    """Solve without CVXPY's warning of a limit; what the process holds afterwards."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Solution may be inaccurate")
        problem.solve(solver=solver, **options)
    extra = problem.solver_stats.extra_stats
    return {
        "status": extra["status"].name,
        "iterations": extra["iterations"],
        "value": problem.value,
        "dual": extra["certificate"].dual,
        "judged": certificate(problem).relative_gap,
        "points": [np.array(variable.value) for variable in problem.variables()],
        "history": [{k: v for k, v in row.items() if k != "seconds"} for row in extra["history"]],
    }


class Recorder:
    """Every step of R-FISTA in this process: its numbers to the last bit, and what was sent for it."""

    def __init__(self) -> None:
        self.steps: list[tuple[str, ...]] = []
        self.sent: list[tuple[int, int, int]] = []
        self.before = METHOD.step
        METHOD.step = lambda method, state: self.step(method, state)

    def step(self, method: Any, state: Any) -> Any:
        traffic = method.smooth.composite.across.ranks.traffic
        before = traffic.predictions, traffic.prediction_bytes, traffic.others
        following = self.before(method, state)
        after = traffic.predictions, traffic.prediction_bytes, traffic.others
        a, b, c = (new - old for new, old in zip(after, before, strict=True))
        self.sent.append((a, b, c))
        numbers = (following.step, following.last_step, following.momentum, following.residual)
        self.steps.append(tuple(value.hex() for value in numbers))
        return following


def everything(folder: Path) -> dict[str, Any]:
    """All programs to a small gap, then an interrupted solve and the rest of it."""
    recorder = Recorder()
    found: dict[str, Any] = {}
    for name in PROGRAMS:
        del recorder.steps[:], recorder.sent[:]
        # Torch tensors are summed in place, NumPy arrays through a view.
        solver = GateParallel(tol=1e-10, backend="torch" if name == "softmax" else "numpy")
        found[name] = solve(problem_of(name), solver)
        found[name] |= {"steps": list(recorder.steps), "sent": list(recorder.sent)}
    found["warm"] = warm()
    file = folder / "solve.npz"
    found["whole"] = solve(problem_of("squared", 1e-3), GateParallel(tol=0.0, max_iter=90))
    found["interrupted"] = solve(
        problem_of("squared", 1e-3), GateParallel(tol=0.0, max_iter=90, checkpoint=file, callback=ctrl_c)
    )
    if RANK == 0:
        (folder / "interrupted.npz").write_bytes(file.read_bytes())
    resumed = GateParallel(tol=0.0, max_iter=90, checkpoint=file, resume=True)
    found["resumed"] = solve(problem_of("squared", 1e-3), resumed)
    found["late"] = solve(
        problem_of("squared", 1e-3), GateParallel(tol=0.0, time_limit=0.2 if RANK else None)
    )
    return found


def warm() -> dict[str, Any]:
    """A second solve, from a point at which a single gate is active: the others start from zeros."""
    model, y, loss = squared()
    problem = model.problem(y, 0.9 * cnn.lambda_max(model, y, loss), loss)
    first = solve(problem, GateParallel(tol=1e-8))
    model.reg.value *= 0.8
    second = solve(problem, GateParallel(tol=1e-8))
    active = np.flatnonzero(np.any(first["points"][0] != 0.0, axis=0))
    return {"active": active.tolist(), "first": first, "second": second}


def ctrl_c(progress: Progress) -> None:
    """As if somebody had pressed Ctrl-C in one process only."""
    if progress.iteration == 30:
        signal.raise_signal(signal.SIGINT)


def resume(folder: Path) -> dict[str, Any]:
    """Go on with what another number of processes began."""
    solver = GateParallel(tol=0.0, max_iter=90, checkpoint=folder / "interrupted.npz", resume=True)
    return {"resumed": solve(problem_of("squared", 1e-3), solver)} | {
        name: solve(problem_of(name), GateParallel(tol=1e-10)) for name in ("squared",)
    }


def lose_one(folder: Path) -> None:
    """The last process does not answer until the other has given it up, and then dies."""
    before, count = METHOD.step, 0

    def step(method: Any, state: Any) -> Any:
        nonlocal count
        count += 1
        while RANK == 1 and count == 20 and not (folder / "silent0").exists():
            time.sleep(0.1)
        if RANK == 1 and count == 40:
            os._exit(7)
        return before(method, state)

    METHOD.step = step
    try:
        solve(problem_of("squared"), GateParallel(tol=0.0, timeout=5.0))
    except RankLost as error:
        (folder / f"silent{RANK}").write_text(str(error))
    count = 20
    solver = GateParallel(tol=0.0, checkpoint=folder / "lost.npz", checkpoint_interval=0.0)
    solve(problem_of("squared", 1e-3), solver)


if __name__ == "__main__":
    scenario, place = sys.argv[1], Path(sys.argv[2])
    signal.signal(signal.SIGINT, signal.default_int_handler)
    report = everything(place) if scenario == "everything" else resume(place)
    (place / f"{scenario}{RANK}.pickle").write_bytes(pickle.dumps(report))
    if scenario == "everything":
        lose_one(place)
