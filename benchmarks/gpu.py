"""``python -m benchmarks.gpu --device cuda``: is the device used well, and does it give the right answers?

First correctness: the gated map, its adjoint and a whole solve against NumPy in float64. Then the rate of a
large matrix product is measured, and the forward and adjoint maps are judged by it: their operations are
counted (2 n d P c each), and so are the bytes that they move at least. Then one program is solved on the
device and on the CPU to the same certified gap, and last, one with a group per output, as scnn has them, by
scnn on the same device too. ``--device cpu`` runs it all on torch's CPU, at a small size.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

import convexnn_models as cnn
from benchmarks.cases import Case, Instance
from benchmarks.peers import Scnn
from benchmarks.referee import Referee
from convexnn_solvers import ADMM
from convexnn_solvers.backends import Backend, numpy_backend, torch_backend
from convexnn_solvers.reading.operators import GatedOperator, load_gates

# Sizes (n, d, P, c) of the products that are timed, and the side of the matrix product beside them.
SIZES = {"cpu": (4_000, 100, 200, 10), "cuda": (60_000, 784, 5_000, 10)}
SIDES = {"cpu": 1_000, "cuda": 16_384}
# The program that is solved on both: the first n samples of the same.
SOLVED = {"cpu": (500, 20, 50, 3), "cuda": (10_000, 784, 500, 10)}
_REPEATS = 3
# scnn gets so many times our time, and so many seconds at least.
_TIMES, _LEAST_CAP = 100.0, 20.0


@dataclass(frozen=True)
class Timing:
    """What one product took: seconds, floating-point operations and the bytes it has to move."""

    seconds: float
    operations: float
    moved: float

    @property
    def rate(self) -> float:
        """Operations per second."""
        return self.operations / self.seconds


def main() -> None:
    """Correctness first, then rates, then a solve."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=sorted(SIZES), default="cuda")
    parser.add_argument("--dtype", choices=["float32", "float64"], default="float32")
    parser.add_argument("--tol", type=float, default=1e-3, help="certified gap of the solve")
    chosen = parser.parse_args()
    backend = torch_backend(chosen.device, chosen.dtype)
    refuse_tf32(backend)
    for name, error in map_errors(backend).items():
        print(f"{name:8s} differs from NumPy in float64 by {error:.1e} of its size")
    product = matrix_product(backend, SIDES[chosen.device])
    print(f"\nmatrix product {product.rate / 1e9:12.1f} GFLOP/s")
    for name, timing in timings(backend, SIZES[chosen.device]).items():
        print(
            f"{name:14s} {timing.rate / 1e9:12.1f} GFLOP/s   {timing.rate / product.rate:6.1%} of it   "
            f"{timing.seconds:.3f} s   {timing.operations:.2e} operations   {timing.moved:.2e} bytes at least"
        )
    solve_on_both(chosen.device, chosen.dtype, chosen.tol)
    beside_scnn(chosen.device, chosen.dtype, chosen.tol)


def refuse_tf32(backend: Backend) -> None:
    """Stop when the device would round the factors of float32 products to ten bits."""
    if backend.xp.backends.cuda.matmul.allow_tf32:
        raise SystemExit("TF32 is on: set torch.backends.cuda.matmul.allow_tf32 = False.")


def gated_data(sizes: tuple[int, int, int, int]) -> tuple[Any, Any]:
    """Random features (n, d) and the patterns (n, P) of random gates."""
    n, d, P, _ = sizes
    rng = np.random.default_rng(0)
    X, G = rng.standard_normal((n, d)), rng.standard_normal((d, P))
    return X, np.concatenate([X[i : i + 1000] @ G >= 0.0 for i in range(0, n, 1000)])


def map_errors(backend: Backend, sizes: tuple[int, int, int, int] = (300, 20, 50, 3)) -> dict[str, float]:
    """The largest deviation of each map from NumPy's, relative to the largest entry."""
    X, patterns = gated_data(sizes)
    c = sizes[3]
    exact, other = (
        GatedOperator(load_gates(X, patterns, b), c, slope=0.1) for b in (numpy_backend(), backend)
    )
    rng = np.random.default_rng(1)
    U, r = rng.standard_normal((sizes[1] * c, sizes[2])), rng.standard_normal((sizes[0], c))
    pairs = {
        "forward": (exact.forward(U), other.forward(backend.asarray(U))),
        "adjoint": (exact.adjoint(r), other.adjoint(backend.asarray(r))),
    }
    return {name: _error(a, backend.to_numpy(b)) for name, (a, b) in pairs.items()}


def matrix_product(backend: Backend, side: int) -> Timing:
    """A square product of this side."""
    A = backend.asarray(np.random.default_rng(0).standard_normal((side, side)))
    return Timing(seconds_of(lambda: A @ A, backend), 2.0 * side**3, 3.0 * side**2 * A.dtype.itemsize)


def timings(backend: Backend, sizes: tuple[int, int, int, int]) -> dict[str, Timing]:
    """The forward and the adjoint map."""
    n, d, P, c = sizes
    X, patterns = gated_data(sizes)
    operator = GatedOperator(load_gates(X, patterns, backend), c)
    U, r = backend.zeros((d * c, P)) + 1.0, backend.zeros((n, c)) + 1.0
    operations, item = 2.0 * n * d * P * c, backend.dtype.itemsize
    # The products of rows and weights are written and read once; so are the scaled rows of the adjoint.
    forward = item * (2.0 * n * P * c + n * d + d * c * P) + n * P
    adjoint = item * (2.0 * n * d * c + n * d + d * c * P) + n * P
    return {
        "forward": Timing(seconds_of(lambda: operator.forward(U), backend), operations, forward),
        "adjoint": Timing(seconds_of(lambda: operator.adjoint(r), backend), operations, adjoint),
    }


def seconds_of(work: Callable[[], Any], backend: Backend) -> float:
    """The shortest of some runs after a first one, the device idle before and after."""
    work()
    shortest = float("inf")
    for _ in range(_REPEATS):
        _wait(backend)
        started = time.perf_counter()
        work()
        _wait(backend)
        shortest = min(shortest, time.perf_counter() - started)
    return shortest


def solve_on_both(device: str, dtype: str, tol: float) -> None:
    """One program on the device and with NumPy on the CPU."""
    X, Y = training_data(device)
    model = cnn.gated_relu(X, cnn.sample_gates(X, SOLVED[device][2]), outputs=Y.shape[1])
    problem = model.problem(Y, 0.01 * cnn.lambda_max(model, Y))
    print(f"\n{_sizes(device)} to a certified gap of {tol:g}:")
    on_device = ADMM(tol=tol, device=device, dtype=dtype, backend="torch")
    values = [timed_solve(problem, solver)[0] for solver in (on_device, ADMM(tol=tol, dtype=dtype))]
    if abs(values[0] - values[1]) > 2.0 * tol * abs(values[1]):
        raise SystemExit("the device and the CPU disagree")


def beside_scnn(device: str, dtype: str, tol: float) -> None:
    """One group per output, by us and by scnn, both on the device (scnn with torch there too)."""
    X, Y = training_data(device)
    gates, c = cnn.sample_gates(X, SOLVED[device][2]), Y.shape[1]
    model = cnn.gated_relu(X, gates, outputs=c, grouping="per-output")
    reg = 0.01 * cnn.lambda_max(model, Y)
    print(f"\n{_sizes(device)}, a group per output, to a certified gap of {tol:g}:")
    _, seconds = timed_solve(
        model.problem(Y, reg), ADMM(tol=tol, device=device, dtype=dtype, backend="torch")
    )
    case = Case("random", "gated", len(gates), 0.01)
    numbers = Instance(case, X, Y, gates, c, "per-output", reg)
    scnn = Scnn(device=device, dtype=dtype, torch=True)
    reason = scnn.can_take(numbers)
    if reason is not None:
        print(f"scnn {reason} (pip install --no-deps pyscnn linalg-backends)")
        return
    # Its answers are judged after every fifth of more time, while its clock stands still.
    referee = Referee(numbers, max(_LEAST_CAP, _TIMES * seconds), goal=tol, late=0.2)
    scnn.solve(numbers, referee)
    last = referee.samples[-1]
    ratio = f"{last['seconds'] / seconds:.1f} times as long"
    if not referee.reached(tol):
        ratio = f"not reached after {ratio}"
    gap = "unknown" if last["gap"] is None else f"{last['gap']:.2e}"
    print(f"{'scnn':70s} {last['seconds']:8.2f} s   gap {gap}   {ratio}")


def training_data(device: str) -> tuple[Any, Any]:
    """Features (n, d) and targets (n, c) of random ReLU neurons."""
    n, d, _, c = SOLVED[device]
    X = np.random.default_rng(0).standard_normal((n, d)) / np.sqrt(d)
    return X, np.maximum(X @ np.random.default_rng(1).standard_normal((d, c)), 0.0)


def timed_solve(problem: Any, solver: ADMM) -> tuple[float, float]:
    """The optimal value and the seconds of a solve from zero; prints them with the certificate."""
    started = time.perf_counter()
    value = problem.solve(solver=solver, warm_start=False)
    seconds = time.perf_counter() - started
    proof = problem.solver_stats.extra_stats["certificate"]
    print(
        f"{solver!r:70s} {seconds:8.2f} s   {problem.solver_stats.num_iters} iterations   {proof}", flush=True
    )
    return value, seconds


def _sizes(device: str) -> str:
    return "n = {}, d = {}, P = {}, c = {}".format(*SOLVED[device])


def _error(exact: Any, found: Any) -> float:
    return float(np.max(np.abs(exact - found)) / np.max(np.abs(exact)))


def _wait(backend: Backend) -> None:
    if str(backend.device) != "cpu":
        backend.xp.cuda.synchronize(backend.device)


if __name__ == "__main__":
    main()
