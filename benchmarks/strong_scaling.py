"""What dividing the gates gains on this machine or cluster, measured and from the model of docs/scaling.md.

    torchrun --standalone --nproc-per-node 2 -m benchmarks.strong_scaling

Measures the constants of the model (one step of one process, its part that every process repeats, latency and
bandwidth of an all-reduce), then a step of the whole job, and prints the model beside it.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

import convexnn_models as cnn
from convexnn_solvers.backends import numpy_backend
from convexnn_solvers.distributed import GateParallel
from convexnn_solvers.first_order import accelerated
from convexnn_solvers.first_order.proximal import proximal_map
from convexnn_solvers.first_order.rfista import AcceleratedGradient
from convexnn_solvers.reading.compiler import compile_problem

_REPEATS = 7


@dataclass(frozen=True)
class Constants:
    """Seconds of a step (``alone``), of its part that all processes repeat (``rows``), and of messages.

    An all-reduce of B bytes by R processes takes ``2 (R - 1) latency + 2 (R - 1) / R * B / bandwidth``.
    """

    alone: float
    rows: float
    latency: float
    bandwidth: float

    def step(self, processes: int, message: int) -> float:
        """Seconds of a step by the model, T(R)."""
        divided = (self.alone - self.rows) / processes
        hops = 2.0 * (processes - 1)
        return divided + self.rows + hops * (self.latency + message / (processes * self.bandwidth))


def timed(action: Callable[[], object]) -> float:
    """The median of a few runs, in seconds."""
    seconds = []
    for _ in range(_REPEATS):
        started = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def alone_and_rows(problem: Any) -> tuple[float, float]:
    """Seconds of a step with one trial point in this process alone, and of its work on the predictions."""
    composite = compile_problem(problem, numpy_backend()).composite()
    smooth, prox = accelerated.smooth_part(composite), proximal_map(composite)
    state = accelerated.descend_from(smooth, composite.zeros(), 1e-3 / smooth.lipschitz())
    state = accelerated.advance(smooth, prox, state)
    cotangents = composite.loss_gradients(state.outputs)

    def rows() -> None:
        composite.loss_gradients(state.y_outputs)
        accelerated.bregman(composite, state.outputs, state.y_outputs, cotangents)
        tuple(q + 0.5 * (q - p) for q, p in zip(state.outputs, state.y_outputs, strict=True))

    return timed(lambda: accelerated.advance(smooth, prox, state)), timed(rows)


def message_seconds(numbers: int) -> float:
    """Seconds of one all-reduce of so many float64 numbers."""
    import torch
    import torch.distributed as dist

    values = torch.zeros(numbers, dtype=torch.float64)
    return timed(lambda: dist.all_reduce(values))


def job_step(problem: Any, steps: int) -> float:
    """Seconds per trial point of the whole job."""
    solver = GateParallel(tol=0.0, max_iter=steps)
    spent, trials = 0.0, 0
    method: Any = AcceleratedGradient
    before = method.step

    def step(self: Any, state: Any) -> Any:
        nonlocal spent, trials
        traffic = self.smooth.composite.across.ranks.traffic
        started, sent = time.perf_counter(), traffic.predictions
        following = before(self, state)
        spent, trials = spent + time.perf_counter() - started, trials + traffic.predictions - sent
        return following

    method.step = step
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Solution may be inaccurate")
            problem.solve(solver=solver, warm_start=False)
    finally:
        method.step = before
    return spent / trials


def main() -> None:
    """Measure in all processes, print in the first."""
    import torch.distributed as dist

    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    for name, value in {"samples": 5000, "features": 100, "gates": 200, "outputs": 10, "steps": 10}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    given = parser.parse_args()
    if "RANK" not in os.environ:
        parser.error("start it with torchrun, see --help")
    dist.init_process_group("gloo")
    processes, rng = dist.get_world_size(), np.random.default_rng(0)
    X = rng.standard_normal((given.samples, given.features))
    Y = rng.standard_normal((given.samples, given.outputs))
    model = cnn.gated_relu(X, cnn.sample_gates(X, given.gates), outputs=given.outputs)
    problem = model.problem(Y, 1e-4)
    alone, rows = alone_and_rows(problem) if dist.get_rank() == 0 else (0.0, 0.0)
    dist.barrier()
    numbers = given.samples * given.outputs + 5
    short, long = message_seconds(1), message_seconds(numbers)
    measured = job_step(problem, given.steps)
    if dist.get_rank() == 0:
        hops = 2.0 * max(processes - 1, 1)
        bandwidth = hops / processes * 8 * numbers / max(long - short, 1e-9)
        constants = Constants(alone, rows, short / hops, bandwidth)
        print(f"n={given.samples} d={given.features} P={given.gates} c={given.outputs}")
        print(f"one process: {alone:.4f} s a step, of which {rows:.5f} s are repeated by every process")
        print(f"all-reduce: latency {constants.latency:.2e} s, bandwidth {bandwidth:.2e} bytes/s")
        print(f"{'processes':>9} {'model':>9} {'measured':>9} {'efficiency':>10}")
        for count in sorted({1, 2, 4, 8, 16, 32, 64, processes}):
            seconds = constants.step(count, 8 * numbers)
            seen = {1: f"{alone:.4f}", processes: f"{measured:.4f}"}.get(count, "-")
            print(f"{count:>9d} {seconds:>9.4f} {seen:>9} {alone / (count * seconds):>10.1%}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
