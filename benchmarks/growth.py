"""``python -m benchmarks.growth``: time and peak memory against samples, features and gates, one at a time.

Planted data (see ``cases``), the gated program, every solve from cold to a certified relative gap in a
process of its own. Prints a table and the exponents of least-squares lines in logarithms, and draws a figure;
``--report`` makes a page of all that.
``--minutes`` starts nothing after that time and shortens the last solve: what is left out is named.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cases import planted_data
from benchmarks.machine import described, machine
from benchmarks.workers import limit_threads
from convexnn_models import gated_relu, lambda_max, sample_gates
from convexnn_solvers import Auto, compare

TARGET = 1e-3
_REPORT = """# How time and memory grow

Made by `python -m benchmarks.growth` (`make growth`).

{machine}

C-GReLU on planted data, squared loss, one thread, `Auto(tol={target:g})` from cold in a process of its own
for every row. `ratio` is the regularisation over the smallest one whose optimum is zero; `gap` the certified
relative gap at the returned point; `MB` the peak above a process that only imports CVXPY. One size grows at
a time.

![time and memory]({figure})

| grows | exponent of seconds | exponent of MB |
|---|---|---|
{exponents}
| grows | samples | features | gates | ratio | seconds | compile seconds | MB | gap |
|---|---|---|---|---|---|---|---|---|
{rows}"""


@dataclass(frozen=True)
class Size:
    """One program: n samples, d features, P gates, and the regularisation over the largest useful one."""

    samples: int = 2000
    features: int = 50
    gates: int = 500
    ratio: float = 0.01


@dataclass(frozen=True)
class Measured:
    """A program and what solving it took; None where it was not solved in time."""

    axis: str
    size: Size
    engine_seconds: float | None
    compile_seconds: float | None
    peak_mb: float | None
    gap: float | None


#: What grows, with its sizes; the other two stay at their values in :class:`Size`.
AXES: dict[str, tuple[int, ...]] = {
    "samples": (500, 1000, 2000, 5000, 10_000, 20_000),
    "features": (10, 20, 50, 100, 200, 500),
    "gates": (100, 200, 500, 1000, 2000, 5000, 10_000),
}
_TINY: dict[str, tuple[int, ...]] = {"samples": (60, 120), "features": (3, 6), "gates": (10, 20)}
#: The programs that the axes do not reach: large in everything.
LARGE = (Size(20_000, 100, 2000, 0.1), Size(20_000, 100, 2000, 0.01))


def measure(axis: str, size: Size, seconds: float) -> Measured:
    """Solve one program in a process of its own."""
    X, y = planted_data(size.samples, size.features)
    model = gated_relu(X, sample_gates(X, size.gates))
    problem = model.problem(y, size.ratio * lambda_max(model, y))
    (row,) = compare(problem, [Auto(tol=TARGET)], time_limit=seconds, verbose=False).rows
    gap = row["relative_gap"]
    solved = gap is not None and gap <= TARGET
    return Measured(
        axis, size, row["solve_seconds"] if solved else None, row["compile_seconds"], row["peak_mb"], gap
    )


def exponent(sizes: Sequence[float], values: Sequence[float | None]) -> float | None:
    """The slope of the least-squares line through the logarithms; None with fewer than two values."""
    pairs = [(s, v) for s, v in zip(sizes, values, strict=True) if v is not None and v > 0.0]
    if len(pairs) < 2:
        return None
    x, y = np.log(np.asarray(pairs, dtype=np.float64)).T
    x, y = x - x.mean(), y - y.mean()
    return float(x @ y / (x @ x)) if np.any(x != 0.0) else None


@dataclass(frozen=True)
class Budget:
    """``seconds`` for each solve, and nothing beyond the ``deadline`` (of ``time.perf_counter``)."""

    seconds: float
    deadline: float = float("inf")

    @property
    def left(self) -> float:
        """Seconds for the next solve; at most 0 when time is up."""
        return min(self.seconds, self.deadline - time.perf_counter())


def run(
    axes: Mapping[str, tuple[int, ...]], base: Size, large: Sequence[Size], budget: Budget
) -> list[Measured]:
    """The axes side by side in order of size, then what is large; along an axis, nothing larger than what was
    not solved in time."""
    found: list[Measured] = []
    ended: set[str] = set()
    steps = max((len(values) for values in axes.values()), default=0)
    planned = [
        (axis, replace(base, **{axis: values[k]}))
        for k in range(steps)
        for axis, values in axes.items()
        if k < len(values)
    ]
    for axis, size in [*planned, *(("large", size) for size in large)]:
        if axis in ended:
            continue
        if budget.left <= 0.0:
            print(f"{axis:>9} {_sizes(size)}  out of time: not run", flush=True)
            continue
        found.append(measure(axis, size, budget.left))
        print(line(found[-1]), flush=True)
        if found[-1].engine_seconds is None and axis != "large":
            ended.add(axis)
    return found


def _sizes(size: Size) -> str:
    return f"{size.samples:>7} {size.features:>5} {size.gates:>7} {size.ratio:>6g}"


def line(measured: Measured) -> str:
    """One row of the table."""
    numbers = (measured.engine_seconds, measured.compile_seconds, measured.peak_mb)
    shown = "".join(f" {'-':>10}" if value is None else f" {value:10.2f}" for value in numbers)
    gap = "-" if measured.gap is None else f"{measured.gap:.1e}"
    return f"{measured.axis:>9} {_sizes(measured.size)}{shown} {gap:>9}"


def fitted(found: Sequence[Measured], axis: str) -> dict[str, float | None]:
    """The exponents of time and memory along an axis."""
    rows = [row for row in found if row.axis == axis and row.engine_seconds is not None]
    sizes = [float(getattr(row.size, axis)) for row in rows]
    return {
        "seconds": exponent(sizes, [row.engine_seconds for row in rows]),
        "peak MB": exponent(sizes, [row.peak_mb for row in rows]),
    }


def draw(found: Sequence[Measured], axes: Sequence[str], path: Path) -> None:
    """Two rows of panels, time and memory, one column per axis."""
    try:
        import matplotlib
    except ImportError:
        print("no figure: pip install 'convexnn[plot]'")
        return
    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.6 * len(axes), 6.0), layout="constrained")
    panels: Any = figure.subplots(2, len(axes), squeeze=False)
    for column, axis in enumerate(axes):
        rows = [row for row in found if row.axis == axis and row.engine_seconds is not None]
        sizes, slopes = [getattr(row.size, axis) for row in rows], fitted(found, axis)
        curves = {"seconds": [r.engine_seconds for r in rows], "peak MB": [r.peak_mb for r in rows]}
        for panel, (name, values) in zip(panels[:, column], curves.items(), strict=True):
            slope = slopes[name]
            panel.loglog(sizes, values, "o-")
            panel.set_xlabel(axis)
            panel.set_ylabel(name)
            panel.set_title("" if slope is None else f"exponent {slope:.2f}")
    figure.savefig(path, dpi=150)


def page(found: Sequence[Measured], axes: Sequence[str], figure: str) -> str:
    """All of it in Markdown."""
    order = [*axes, "large"]
    rows = sorted(found, key=lambda row: order.index(row.axis))
    lines = ["| " + " | ".join(line(row).split()) + " |\n" for row in rows]
    slopes = [f"| {axis} | {' | '.join(_slopes(found, axis).values())} |\n" for axis in axes]
    head = described(machine())
    return _REPORT.format(
        machine=head, target=TARGET, figure=figure, exponents="".join(slopes), rows="".join(lines)
    )


def _slopes(found: Sequence[Measured], axis: str) -> dict[str, str]:
    return {name: "-" if s is None else f"{s:.2f}" for name, s in fitted(found, axis).items()}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=900.0, help="time limit of every solve")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start nothing new after these")
    parser.add_argument("--out", type=Path, default=Path("output"), help="folder for growth.json, growth.png")
    parser.add_argument("--report", type=Path, help="the page to write; its figure goes beside it")
    parser.add_argument("--tiny", action="store_true", help="sizes that take seconds, to see that it works")
    chosen = parser.parse_args()
    limit_threads()
    axes = _TINY if chosen.tiny else AXES
    base = Size(80, 4, 15) if chosen.tiny else Size()
    sizes = f"{'samples':>7} {'feat.':>5} {'gates':>7} {'ratio':>6}"
    print(f"{'axis':>9} {sizes} {'solve s':>10} {'compile s':>10} {'peak MB':>10} {'gap':>9}")
    budget = Budget(chosen.seconds, time.perf_counter() + 60.0 * chosen.minutes)
    found = run(axes, base, () if chosen.tiny else LARGE, budget)
    for axis in axes:
        print(f"exponents in {axis}: {', '.join(f'{n}: {s}' for n, s in _slopes(found, axis).items())}")
    chosen.out.mkdir(parents=True, exist_ok=True)
    (chosen.out / "growth.json").write_text(json.dumps([asdict(row) for row in found], indent=1))
    draw(found, list(axes), chosen.out / "growth.png")
    if chosen.report is not None:
        chosen.report.parent.mkdir(parents=True, exist_ok=True)
        figure = chosen.report.with_suffix(".png")
        draw(found, list(axes), figure)
        chosen.report.write_text(page(found, list(axes), figure.name))


if __name__ == "__main__":
    main()
