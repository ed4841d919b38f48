"""What it costs to list every activation pattern: seconds against the number of patterns.

    python benchmarks/enumeration_cost.py --seconds 60 --plot output/enumeration.png

Output-sensitive means: the time grows with the patterns that there are, not with the 2^n sign vectors that
there could be. A pattern has n bits and its vector n walls to keep away from, so the last column, time for
each pattern and sample, should hardly grow. Shown for generic data of growing n and for integer data, whose
hyperplanes meet in common lines so that there are fewer patterns.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import convexnn_models as cnn

Array = NDArray[np.float64]
Row = tuple[int, int, float]  # n, patterns, seconds


def generic(n: int, d: int) -> Array:
    """Standard normal rows: as many patterns as n rows can have."""
    return np.random.default_rng(n).standard_normal((n, d))


def integers(n: int, d: int) -> Array:
    """Rows of small integers: many share hyperplanes or meet in common lines."""
    return np.random.default_rng(n).integers(-1, 2, (n, d)).astype(np.float64) + 0.0


def measured(make: Callable[[int, int], Array], d: int, seconds: float) -> list[Row]:
    """Growing n until the next step would take longer than ``seconds``."""
    rows: list[Row] = []
    n = 8
    while not rows or rows[-1][2] * 1.5**d < seconds:
        X = make(n, d)
        started = time.perf_counter()
        count = len(cnn.all_gates(X, max_patterns=10_000_000))
        rows.append((n, count, time.perf_counter() - started))
        if n > 2000 or (len(rows) > 1 and rows[-2][1] == count):  # integer data has no more patterns
            break
        n = n * 3 // 2
    return rows


def plot(series: dict[str, list[Row]], path: Path) -> None:
    """Both axes logarithmic."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise SystemExit("--plot needs matplotlib; pip install 'convexnn[plot]'") from None
    figure = Figure(figsize=(7.0, 4.5), layout="constrained")
    axes = figure.subplots()
    for name, rows in series.items():
        axes.loglog([row[1] for row in rows], [row[2] for row in rows], marker="o", label=name)
    axes.set(xlabel="patterns", ylabel="seconds", title="Listing every activation pattern")
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(os.fspath(path), dpi=150)


def main() -> None:
    """Measure, print, draw."""
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=plain)
    parser.add_argument("--seconds", type=float, default=20.0, help="for the largest run of each series")
    parser.add_argument("--features", type=int, nargs="+", default=[2, 3, 4, 5])
    parser.add_argument("--plot", type=Path, help="where to save a picture")
    arguments = parser.parse_args()
    series: dict[str, list[Row]] = {}
    for name, make in (("generic", generic), ("integers", integers)):
        for d in arguments.features:
            rows = series[f"{name}, d = {d}"] = measured(make, d, arguments.seconds)
            print(f"{name}, d = {d}\n{'n':>6} {'patterns':>9} {'seconds':>8} {'us/(n patterns)':>16}")
            for n, count, seconds in rows:
                print(f"{n:6d} {count:9d} {seconds:8.3f} {1e6 * seconds / (n * count):16.2f}")
    if arguments.plot:
        plot(series, arguments.plot)


if __name__ == "__main__":
    main()
