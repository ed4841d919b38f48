"""How far the optimum over sampled gates is from that over all networks; writes docs/sampling.md and .png.

    python benchmarks/sampling_bias.py --folder docs

For small data sets the global optimum is certified by ``train_to_global_optimum``. The ReLU program with k
sampled gates is solved for growing k and several seeds; its certified excess over the global lower bound is
what sampling costs. Needs scikit-learn and matplotlib (``pip install 'convexnn[demo]'``).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cvxpy as cp
import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_diabetes, load_iris, load_wine
from sklearn.preprocessing import scale

import convexnn_models as cnn

Array = NDArray[np.float64]
COUNTS = (2, 4, 8, 16, 32, 64, 128)
SAMPLERS = ("gaussian", "vertices")
FRACTION = 0.01  # of the reg at which the zero network is optimal


def waves() -> tuple[Array, Array]:
    """One feature and a bias: a sine with noise."""
    rng = np.random.default_rng(0)
    t = np.sort(rng.uniform(-1.0, 1.0, 40))
    return np.column_stack([t, np.ones(40)]), np.sin(6.0 * t) + 0.1 * rng.standard_normal(40)


def planted() -> tuple[Array, Array]:
    """Three neurons in three dimensions, with noise."""
    rng = np.random.default_rng(1)
    X = rng.standard_normal((40, 3))
    y = np.maximum(X @ rng.standard_normal((3, 3)), 0.0) @ np.array([1.0, -1.0, 1.0])
    return X, y + 0.1 * rng.standard_normal(40)


def diabetes() -> tuple[Array, Array]:
    """Body mass and blood pressure of sixty patients, with a bias."""
    X, y = samples(load_diabetes)
    return with_ones(X[:60, 2:4]), np.asarray(scale(y[:60]))


def iris() -> tuple[Array, Array]:
    """Petals of two kinds that overlap, with a bias; classes as +-1."""
    X, y = samples(load_iris)
    chosen = np.flatnonzero(y > 0.0)[::2]
    return with_ones(X[chosen, 2:]), np.where(y[chosen] == 1.0, 1.0, -1.0)


def wine() -> tuple[Array, Array]:
    """Two features and a bias of sixty wines; the seventh feature is the target."""
    X, _ = samples(load_wine)
    return with_ones(X[::3, :2]), np.asarray(scale(X[::3, 6]))


def samples(load: Callable[..., Any]) -> tuple[Array, Array]:
    """Features and targets of a data set."""
    X, y = load(return_X_y=True)
    return np.asarray(X, dtype=np.float64), np.asarray(y, dtype=np.float64)


def with_ones(X: Array) -> Array:
    """Standardised features and a column of ones."""
    return np.column_stack([np.asarray(scale(X)), np.ones(len(X))])


DATA: dict[str, Callable[[], tuple[Array, Array]]] = {
    "waves": waves,
    "planted": planted,
    "diabetes": diabetes,
    "iris": iris,
    "wine": wine,
}


@dataclass(frozen=True)
class Series:
    """One data set: its size, the certified optimum, and the median excess, counts x samplers."""

    name: str
    shape: tuple[int, ...]
    patterns: int
    lower: float
    gap: float
    counts: list[int]
    excess: Array


def measured(name: str, seeds: int) -> Series:
    """The relative excess of sampled optima over the certified lower bound, median of the seeds."""
    X, y = DATA[name]()
    reg = FRACTION * cnn.price(X, y / len(y)).upper
    best = cnn.train_to_global_optimum(X, y, reg, gap=1e-5, time_limit=120.0)
    patterns = int(np.count_nonzero(cnn.all_gates(X).patterns.any(axis=0)))
    counts = [k for k in COUNTS if k < patterns]
    excess = np.zeros((len(counts), len(SAMPLERS)))
    for row, k in enumerate(counts):
        for column, sampler in enumerate(SAMPLERS):
            values = [sampled(X, y, reg, k, seed, sampler) for seed in range(seeds)]
            excess[row, column] = max(np.median(values) / best.lower - 1.0, 0.0)
    return Series(name, X.shape, patterns, best.lower, best.relative_gap, counts, excess)


def sampled(X: Array, y: Array, reg: float, k: int, seed: int, sampler: str) -> float:
    """The optimum with k sampled gates: the objective of the network that it gives."""
    model = cnn.relu(X, cnn.sample_gates(X, k, seed, sampler=sampler))
    model.problem(y, reg).solve(solver=cp.CLARABEL)
    return cnn.recover(model).objective(X, y, reg)


def written(series: list[Series], command: str) -> str:
    """The page."""
    lines = [
        "# What sampling gates costs",
        "",
        f"Written by `{command}`. Entries: by how much the ReLU",
        "optimum with k sampled gates exceeds the certified optimum over all networks of any width,",
        "relatively; medians over seeds, for Gaussian gates, then for those of the sampler `vertices`. These",
        "data are small: with more samples and dimensions there are more patterns to miss.",
        "",
        "![excess against the number of gates](sampling.png)",
        "",
        "| data | n x d | patterns | global optimum | " + " | ".join(f"k = {k}" for k in COUNTS) + " |",
        "|---|---|---|---|" + "---|" * len(COUNTS),
    ]
    for one in series:
        cells = [f"{one.excess[i, 0]:.1%}, {one.excess[i, 1]:.1%}" for i in range(len(one.counts))]
        cells += ["all"] * (len(COUNTS) - len(cells))
        size = f"{one.shape[0]} x {one.shape[1]}"
        lines.append(
            f"| {one.name} | {size} | {one.patterns} | {one.lower:.5f} | " + " | ".join(cells) + " |"
        )
    return "\n".join([*lines, ""])


def plot(series: list[Series], path: Path) -> None:
    """Excess against gates, one colour for each data set."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.0, 4.5), layout="constrained")
    axes = figure.subplots()
    for number, one in enumerate(series):
        for column, style in enumerate(("o-", "s--")):
            label = f"{one.name}, {SAMPLERS[column]}"
            axes.loglog(
                one.counts, np.maximum(one.excess[:, column], 1e-6), style, color=f"C{number}", label=label
            )
    axes.set(xlabel="sampled gates", ylabel="excess over the global optimum")
    axes.legend(fontsize="x-small", ncols=2)
    figure.savefig(path, dpi=120)


def main() -> None:
    """Measure, write, draw."""
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=plain)
    parser.add_argument("--folder", type=Path, default=Path("output"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--data", nargs="+", default=list(DATA), choices=list(DATA))
    arguments = parser.parse_args()
    series = []
    for name in arguments.data:
        series.append(measured(name, arguments.seeds))
        print(series[-1], flush=True)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    page = written(series, "python benchmarks/sampling_bias.py --folder docs")
    (arguments.folder / "sampling.md").write_text(page, encoding="utf-8")
    plot(series, arguments.folder / "sampling.png")


if __name__ == "__main__":
    main()
