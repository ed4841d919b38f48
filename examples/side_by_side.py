"""What the image examples share: the solver of the command line, a report, scnn and torch beside it."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np

import convexnn_models as cnn
from convexnn_models.datasets import Dataset
from convexnn_solvers import Auto, certificate
from convexnn_solvers.comparison.peak_memory import peak_mb


def arguments(description: str | None, samples: int, gates: int, reg: float) -> argparse.ArgumentParser:
    """The options that all image examples have."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=int, default=samples, help="training images")
    parser.add_argument("--gates", type=int, default=gates, help="sampled gates")
    parser.add_argument("--test", type=int, default=10_000, help="images to test on")
    parser.add_argument("--reg", type=float, default=reg, help="regularisation")
    parser.add_argument("--tol", type=float, default=0.1, help="relative certified gap to reach")
    parser.add_argument("--seconds", type=float, default=600.0, help="time limit of one program")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--dtype", default="float32", help="float32 or float64")
    parser.add_argument("--no-scnn", action="store_true", help="leave out scnn")
    parser.add_argument("--no-torch", action="store_true", help="leave out the networks of torch")
    return parser


def solver(chosen: argparse.Namespace) -> Auto:
    """Auto, on the device and in the arithmetic of the command line."""
    return Auto(tol=chosen.tol, device=chosen.device, dtype=chosen.dtype, time_limit=chosen.seconds)


def train_gated(name: str, data: Dataset, gates: cnn.Gates, chosen: argparse.Namespace) -> float:
    """A gated network: squared loss on one-hot labels, one group of weights per gate; seconds taken."""
    started = time.perf_counter()
    model = cnn.gated_relu(data.X_train, gates, outputs=10, bias=True)
    problem = model.problem(np.eye(10)[data.y_train], chosen.reg)
    problem.solve(solver=solver(chosen))
    seconds = time.perf_counter() - started
    report(name, problem, model, data, seconds)
    return seconds


def report(name: str, problem: Any, model: cnn.ConvexModel, data: Dataset, seconds: float) -> None:
    """Accuracy, certificate, time and memory of a solved program."""
    memory = peak_mb()
    statistics = problem.solver_stats
    right = cnn.recover(model, prune=False).predict(data.X_test).argmax(axis=1) == data.y_test
    print(f"\n{name:28s} accuracy {right.mean():7.2%}   {seconds:7.1f} s   {problem.status}")
    for engine in statistics.extra_stats["engines"]:
        print(f"  {engine['engine']}: {engine['reason']}")
    print(f"  {statistics.num_iters} iterations; {statistics.extra_stats['certificate']}")
    print("  peak memory " + ("unknown" if memory is None else f"{memory:.0f} MB"), flush=True)


def beside_scnn(
    name: str, data: Dataset, gates: cnn.Gates, seconds: float, chosen: argparse.Namespace
) -> None:
    """scnn on the same gates, with as much time as our program took, judged like ours.

    It has one group of weights per gate and output. Such penalties are larger, by sqrt(outputs) where the
    weights are spread evenly: it gets as much less regularisation. Its answer is the last one in time.
    """
    if chosen.no_scnn:
        return
    try:
        from benchmarks.scnn_run import ScnnRun, load_scnn

        load_scnn()
    except ImportError as error:
        remedy = "in a checkout, pip install --no-deps pyscnn linalg-backends opt_einsum tqdm"
        print(f"(no comparison with scnn, {error}: {remedy})")
        return
    Y = np.eye(10)[data.y_train]
    model = cnn.gated_relu(data.X_train, gates, outputs=10, bias=True, grouping="per-output")
    reg = chosen.reg / np.sqrt(10.0)
    problem = model.problem(Y, reg)
    assert model.gates is not None
    started, iterations, spent, aside = time.perf_counter(), 0, 0.0, 0.0

    def enough(fetch: Callable[[], list[Any]]) -> bool:
        nonlocal iterations, spent, aside
        now = time.perf_counter()
        own = now - started - aside
        if iterations == 0 or own <= seconds:
            iterations, spent = iterations + 1, own
            model.variables[0].value = fetch()[0]
            aside += time.perf_counter() - now  # its clock stands still while we take its weights
        return own >= seconds

    try:
        ScnnRun(model.X, Y, model.gates, reg, device=chosen.device, dtype=chosen.dtype).until(enough)
    except (MemoryError, RuntimeError) as error:  # a device that is too small
        print(f"scnn failed: {error}")
        return
    right = cnn.recover(model, prune=False).predict(data.X_test).argmax(axis=1) == data.y_test
    print(f"\n{f'scnn, {name}':28s} accuracy {right.mean():7.2%}   {spent:7.1f} s")
    print(f"  {iterations} iterations of its R-FISTA; {certificate(problem)}", flush=True)


def beside_torch(data: Dataset, build: Callable[[], Any], text: str, seconds: float, device: str) -> None:
    """SGD and Adam on a network of torch, each with as much time as the convex program took."""
    try:
        from baselines import compare_with_sgd
    except ImportError:
        print("(no comparison with SGD: pip install torch)")
        return
    train, test = (data.X_train, data.y_train), (data.X_test, data.y_test)
    print(f"\ntorch, {text}, cross-entropy, {seconds:.0f} s each with tuning:")
    for outcome in compare_with_sgd(build, train, test, seconds, device):
        print(outcome, flush=True)
