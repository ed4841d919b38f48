"""``python -m benchmarks.floor``: where Newton's method spends its time, and what arithmetic would take.

Every case is solved twice in this process, on one thread, in CPU time: as it is, and with a clock around the
parts. The operations of every product, Gram matrix and factorisation are counted from their sizes and divided
by the rate of a large double-precision product, measured here: a floor that no rearrangement of the same
algorithm passes. Projections on cones, mostly comparisons and small solves, are timed and not counted.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import wraps
from typing import Any

import numpy as np

from benchmarks.cases import Case, instance
from benchmarks.workers import limit_threads
from convexnn_solvers import SemismoothNewton
from convexnn_solvers.certify.certifier import Certifier
from convexnn_solvers.cones.projections import PatternCones
from convexnn_solvers.gated_programs import features as block_features
from convexnn_solvers.gated_programs.features import GatedFeatures
from convexnn_solvers.newton import factors as newton_factors
from convexnn_solvers.newton import system as newton_system
from convexnn_solvers.newton.cone_splitting import ConeSplitting
from convexnn_solvers.newton.dual_newton import DualNewton
from convexnn_solvers.newton.system import NewtonSystems

CASES = (
    Case("diabetes", "gated", 500, 0.01),
    Case("synthetic-500", "gated", 500, 0.01),
    Case("german", "gated", 500, 0.01),
    Case("diabetes", "relu", 100, 0.01),
    Case("synthetic-500", "relu", 100, 0.01),
    Case("german", "relu", 100, 0.001),
)
_TINY = (Case("tiny", "gated", 10, 0.1), Case("tiny", "relu", 10, 0.1))
_SQUARE = 1500


@dataclass
class Tally:
    """CPU seconds by part, each without the parts inside it, and floating-point operations."""

    seconds: dict[str, float] = field(default_factory=dict)
    operations: float = 0.0
    _open: list[float] = field(default_factory=list)

    def timed(self, name: str, function: Callable[..., Any], count: Callable[..., float] | None) -> Any:
        """``function`` with a clock; ``count`` gives its operations from its arguments."""

        @wraps(function)
        def around(*arguments: Any, **named: Any) -> Any:
            self.operations += 0.0 if count is None else count(*arguments)
            self._open.append(0.0)
            started = time.process_time()
            try:
                return function(*arguments, **named)
            finally:
                spent = time.process_time() - started
                inside = self._open.pop()
                self.seconds[name] = self.seconds.get(name, 0.0) + spent - inside
                if self._open:
                    self._open[-1] += spent

        return around


def rate() -> float:
    """Operations per second of a product of two square matrices on one thread: the best of three."""
    A = np.random.default_rng(0).standard_normal((_SQUARE, _SQUARE))
    best = np.inf
    for _ in range(3):
        started = time.process_time()
        np.matmul(A, A)
        best = min(best, time.process_time() - started)
    return 2.0 * _SQUARE**3 / best


def solve(case: Case, tol: float) -> tuple[float, int]:
    """CPU seconds from an uncompiled problem to the certified gap, and Newton steps."""
    _, problem = instance(case).problem()
    started = time.process_time()
    problem.solve(solver=SemismoothNewton(tol=tol))
    return time.process_time() - started, int(problem.solver_stats.num_iters)


def profile(case: Case, tol: float) -> Tally:
    """The same solve with clocks; what was changed for it is put back."""
    tally = Tally()
    places: tuple[tuple[Any, str, str, Callable[..., float] | None], ...] = (
        (GatedFeatures, "forward", "products", lambda self, U: U.shape[0] * self.work),
        (GatedFeatures, "adjoint", "products", lambda self, r: r.shape[1] * self.work),
        (GatedFeatures, "times", "products", lambda self, v, *_: 2.0 * self.X.size * v.shape[1]),
        (NewtonSystems, "solve", "systems", None),
        # Of a symmetric matrix only one half is made.
        (block_features, "outer", "systems", lambda F, *_: float(F.shape[0] ** 2 * F.shape[1])),
        (newton_system, "outer", "systems", lambda F, *_: float(F.shape[0] ** 2 * F.shape[1])),
        (newton_factors, "outer", "systems", lambda F, *_: float(F.shape[0] ** 2 * F.shape[1])),
        (newton_system, "woodbury", "systems", lambda W, _: float(W.shape[0] * W.shape[1] ** 2)),
        (newton_factors, "woodbury", "systems", lambda W, _: float(W.shape[0] * W.shape[1] ** 2)),
        (newton_factors, "_factorised", "systems", lambda H: H.shape[0] ** 3 / 3.0),
        (ConeSplitting, "_factorise", "systems", lambda self: self._program.fit.shape[0] ** 3 / 3.0),
        (ConeSplitting, "_plain", "systems", lambda self, r: 2.0 * r.size * len(r)),
        (PatternCones, "project", "projections", None),
        (PatternCones, "project_in_place", "projections", None),
        (Certifier, "__init__", "certificate", None),
        (Certifier, "certify", "certificate", None),
        (DualNewton, "step", "line search and bookkeeping", None),
        (ConeSplitting, "run", "line search and bookkeeping", None),
    )
    originals = [(owner, name, getattr(owner, name)) for owner, name, _, _ in places]
    try:
        for owner, name, part, count in places:
            setattr(owner, name, tally.timed(part, getattr(owner, name), count))
        whole = tally.timed("compiling, start and CVXPY", solve, None)
        whole(case, tol)
    finally:
        for owner, name, function in originals:
            setattr(owner, name, function)
    return tally


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.floor", description=__doc__)
    parser.add_argument("--tol", type=float, default=1e-6, help="relative certified gap")
    parser.add_argument("--tiny", action="store_true", help="small programs, to see that it works")
    given = parser.parse_args(arguments)
    limit_threads()
    speed = rate()
    print(f"product of {_SQUARE} x {_SQUARE} matrices: {speed / 1e9:.1f} Gflop/s on one thread")
    for case in _TINY if given.tiny else CASES:
        solve(case, given.tol)  # what is loaded once
        seconds, steps = solve(case, given.tol)
        tally = profile(case, given.tol)
        floor = tally.operations / speed
        print(f"\n{case.key}: {seconds:.3f} s, {steps} Newton steps")
        print(
            f"  {tally.operations / 1e9:.2f} Gflop: at least {floor:.3f} s, {seconds / floor:.1f} times less"
        )
        for name, spent in sorted(tally.seconds.items(), key=lambda part: -part[1]):
            print(f"  {spent:8.3f} s  {name}")


if __name__ == "__main__":
    main()
