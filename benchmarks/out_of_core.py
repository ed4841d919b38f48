"""Training on features that lie on a disk: `python -m benchmarks.out_of_core`, or `make bench-out-of-core`.

Makes a file of random features, solves a gated program on its memory map in a process that may hold only
``--limit`` MB of private memory more than after its imports, certifies the result, and deletes the file.

The limit is RLIMIT_DATA, which the kernel enforces: it counts every private writable page that the process
has asked for (heap, NumPy arrays, thread stacks), touched or not. Pages of the read-only memory map are not
counted: they are the system's file cache, which it drops whenever somebody needs the memory. RLIMIT_AS
would count the size of the file, however little of it is in memory, and the resident size what the cache
happens to keep; both are the wrong question.
"""

from __future__ import annotations

import argparse
import json
import re
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

_BLOCK = 2**22  # entries of the file that are made at once
_MB = 10**6


@dataclass(frozen=True)
class Size:
    """A run: ``samples`` x ``features`` on disk, ``gates``, and the private memory allowed in MB."""

    samples: int = 1_000_000
    features: int = 128
    gates: int = 20
    limit: int = 600
    tol: float = 1e-2

    @property
    def file_gb(self) -> float:
        """The features on disk, in GB (1e9 bytes)."""
        return 8e-9 * self.samples * self.features

    @property
    def expanded_gb(self) -> float:
        """What the n x dP matrix of the program would take, in GB."""
        return self.file_gb * self.gates


def make_files(folder: Path, size: Size) -> None:
    """Features with a slowly falling spectrum, and targets from a few ReLU neurons with noise."""
    rng = np.random.default_rng(0)
    shape = (size.samples, size.features)
    X = np.memmap(folder / "X.f64", dtype=np.float64, mode="w+", shape=shape)
    scales = 1.0 / np.sqrt(1.0 + np.arange(size.features))
    neurons = rng.standard_normal((size.features, 4))
    y = np.empty(size.samples)
    step = max(1, _BLOCK // size.features)
    for start in range(0, size.samples, step):
        rows = slice(start, min(start + step, size.samples))
        block = scales * rng.standard_normal((rows.stop - rows.start, size.features))
        X[rows] = block
        y[rows] = np.maximum(block @ neurons, 0.0) @ np.array([1.0, -1.0, 0.5, 0.5])
        y[rows] += 0.1 * rng.standard_normal(rows.stop - rows.start)
    X.flush()
    np.save(folder / "y.npy", y)


def solve_within_limit(folder: Path, size: Size) -> dict[str, Any]:
    """The run itself: limits its own process for good, so it belongs into a process of its own."""
    import convexnn_models as cnn
    from convexnn_solvers import RFISTA, certificate

    before = _private_bytes()
    allowed = before + size.limit * _MB
    resource.setrlimit(resource.RLIMIT_DATA, (allowed, allowed))
    started = time.perf_counter()
    X = np.memmap(folder / "X.f64", dtype=np.float64, mode="r", shape=(size.samples, size.features))
    y = np.load(folder / "y.npy")
    gates = cnn.sample_gates(X, size.gates, seed=0)
    model = cnn.gated_relu(X, gates)
    reg = 0.1 * cnn.lambda_max(model, y)
    problem = model.problem(y, reg)
    problem.solve(solver=RFISTA(tol=size.tol))
    proof = certificate(problem)
    return {
        **asdict(size),
        "file_gb": size.file_gb,
        "expanded_gb": size.expanded_gb,
        "status": problem.status,
        "relative_gap": proof.relative_gap,
        "iterations": problem.solver_stats.num_iters,
        "seconds": time.perf_counter() - started,
        "private_mb_at_end": (_private_bytes() - before) / _MB,
    }


def run(size: Size, folder: Path | None = None) -> dict[str, Any]:
    """Make the files, solve in a limited process of its own, delete the files; what the process reported."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        make_files(Path(place), size)
        child = subprocess.run(
            [sys.executable, "-m", "benchmarks.out_of_core", "--child", place, *_arguments(size)],
            check=False,
            capture_output=True,
            text=True,
        )
    if child.returncode != 0:
        raise RuntimeError(f"the limited process ended with {child.returncode}:\n{child.stderr[-2000:]}")
    report: dict[str, Any] = json.loads(child.stdout.splitlines()[-1])
    return report


def _arguments(size: Size) -> list[str]:
    return [f"--{name}={value}" for name, value in asdict(size).items()]


def _private_bytes() -> int:
    """What RLIMIT_DATA counts, on Linux."""
    found = re.search(r"^VmData:\s*(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    if found is None:
        raise OSError("this measurement needs Linux: /proc/self/status has no VmData.")
    return int(found.group(1)) * 1024


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    for name, value in asdict(Size()).items():
        parser.add_argument(f"--{name}", type=type(value), default=value)
    parser.add_argument("--folder", type=Path, help="where the file may lie for the time being")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    given = vars(parser.parse_args())
    child, folder = given.pop("child"), given.pop("folder")
    size = Size(**given)
    report = run(size, folder) if child is None else solve_within_limit(child, size)
    print(json.dumps(report, indent=None if child else 2))


if __name__ == "__main__":
    main()
