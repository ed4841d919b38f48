"""The largest data (n, d) on which training reaches a certified global optimum within a time budget.

    python benchmarks/global_reach.py --minutes 10 --gap 1e-4

For every dimension the number of samples grows by half until a run misses the gap in its share of the
time. Data: three planted neurons, a constant feature, noise; reg is a fraction of the smallest value at
which the zero network is optimal. Run alone on a machine; rows are printed as they come.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

import convexnn_models as cnn
from convexnn_solvers import Status

Array = NDArray[np.float64]
HEADER = f"{'d':>3} {'n':>6} {'patterns <=':>15} {'seconds':>8} {'relative gap':>12} {'neurons':>7}  status"


@dataclass(frozen=True)
class Run:
    """One attempt: data size, seconds, the gap that is proved at their end."""

    samples: int
    features: int
    seconds: float
    gap: float
    width: int
    status: Status

    @property
    def certified(self) -> bool:
        """Whether the gap was reached."""
        return self.status is Status.OPTIMAL

    def __str__(self) -> str:
        return (
            f"{self.features:3d} {self.samples:6d} {cnn.count_patterns(self.samples, self.features):15.3g} "
            f"{self.seconds:8.1f} {self.gap:12.2e} {self.width:7d}  {self.status.name}"
        )


def planted(samples: int, features: int, fraction: float) -> tuple[Array, Array, float]:
    """Data, targets and reg."""
    rng = np.random.default_rng(samples + features)
    X = rng.standard_normal((samples, features))
    X[:, -1] = 1.0
    hidden = np.maximum(X @ rng.standard_normal((features, 3)), 0.0)
    y = hidden @ np.array([1.0, -1.0, 1.0]) + 0.3 * rng.standard_normal(samples)
    return X, y, fraction * cnn.price(X, y / samples).lower


def attempt(samples: int, features: int, fraction: float, gap: float, seconds: float) -> Run:
    """Train once."""
    X, y, reg = planted(samples, features, fraction)
    started = time.perf_counter()
    found = cnn.train_to_global_optimum(X, y, reg, gap=gap, time_limit=seconds)
    spent = time.perf_counter() - started
    return Run(samples, features, spent, found.relative_gap, found.network.width, found.status)


def largest(features: int, fraction: float, gap: float, seconds: float) -> Run | None:
    """Grow the data until the time is up; the largest certified run, after printing all."""
    best, samples = None, 20
    end = time.perf_counter() + seconds
    while (left := end - time.perf_counter()) > 0.0:
        run = attempt(samples, features, fraction, gap, left)
        print(run, flush=True)
        if not run.certified:
            break
        best, samples = run, samples * 3 // 2
    return best


def main() -> None:
    """All dimensions, then the table of the largest certified sizes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=10.0, help="for all dimensions together")
    parser.add_argument("--gap", type=float, default=1e-4, help="relative gap to certify")
    parser.add_argument("--fraction", type=float, default=0.02, help="reg as a fraction of its largest value")
    parser.add_argument("--features", type=int, nargs="+", default=[2, 3, 4, 5, 6, 8])
    arguments = parser.parse_args()
    print(HEADER, flush=True)
    share = 60.0 * arguments.minutes / len(arguments.features)
    best = [largest(d, arguments.fraction, arguments.gap, share) for d in arguments.features]
    print(f"\nlargest data certified to {arguments.gap:g}, {share:.0f} s for each d\n{HEADER}")
    for features, run in zip(arguments.features, best, strict=True):
        print(run if run else f"{features:3d} none")


if __name__ == "__main__":
    main()
