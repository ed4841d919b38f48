"""Pictures of comparisons; needs matplotlib (``pip install 'convexnn[plot]'``)."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

from convexnn_solvers.named_options import checked_options

# Certified gaps can be exactly zero, which a logarithmic axis cannot show.
_SMALLEST_GAP = 1e-14


@checked_options
def plot_convergence(
    rows: Iterable[Mapping[str, Any]], path: str | os.PathLike[str] | None = None, title: str = ""
) -> Any:
    """Certified relative gap against seconds (compiling included), both on logarithmic axes.

    Solvers that report their certified progress are curves. Of the others only the final point is known:
    a marker. Contestants without a certified point are named in the legend with their status.

    Parameters
    ----------
    rows : iterable of mappings
        ``compare(...).rows``.
    path : path, optional
        Where to save the picture; the ending chooses the format.
    title : str
        Above the picture.

    Returns the ``matplotlib.figure.Figure``. Raises ImportError without matplotlib.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plot_convergence needs matplotlib; pip install 'convexnn[plot]'") from error
    listed = list(rows) if isinstance(rows, Iterable) else [rows]
    if not all(isinstance(row, Mapping) and {"solver", "history"} <= row.keys() for row in listed):
        raise TypeError("rows must be the dictionaries that compare(...).rows holds.")
    figure: Any = Figure(figsize=(7.5, 4.5), layout="constrained")
    axes = figure.subplots()
    for row in listed:
        seconds, gaps = _progress(row)
        if len(seconds) > 1:
            (line,) = axes.plot(seconds, gaps, label=row["solver"], linewidth=1.6)
            axes.plot(seconds[-1:], gaps[-1:], "o", color=line.get_color())
        elif seconds:
            axes.plot(seconds, gaps, "D", label=f"{row['solver']} (final point)")
        else:
            axes.plot([], [], " ", label=f"{row['solver']}: {row['status']}")
    axes.set(xscale="log", yscale="log", xlabel="seconds, compiling included", title=title)
    axes.set_ylabel("certified relative gap")
    axes.grid(visible=True, which="major", alpha=0.3)
    axes.legend(fontsize="small")
    if path is not None:
        figure.savefig(path, dpi=150)
    return figure


def _progress(row: Mapping[str, Any]) -> tuple[list[float], list[float]]:
    """Seconds and gaps: along the history if there is one, else of the final point, else nothing."""
    known = [(h["seconds"], h["relative_gap"]) for h in row["history"] if h["relative_gap"] is not None]
    if not known and row["relative_gap"] is not None:
        known = [((row["compile_seconds"] or 0.0) + row["solve_seconds"], row["relative_gap"])]
    return [seconds for seconds, _ in known], [max(gap, _SMALLEST_GAP) for _, gap in known]
