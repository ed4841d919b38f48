"""Pictures of comparisons: curves where there is progress, markers where only the end is known."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from convexnn_models.plotting import plot_convergence

pytest.importorskip("matplotlib", reason="pip install 'convexnn[plot]'")


def row(solver: str, gap: float | None, history: list[tuple[float, float | None]]) -> dict[str, Any]:
    return {
        "solver": solver,
        "status": "optimal" if gap is not None else "failed",
        "relative_gap": gap,
        "compile_seconds": 1.0,
        "solve_seconds": 2.0,
        "history": [{"seconds": seconds, "relative_gap": value} for seconds, value in history],
    }


ROWS = [
    row("A", 1e-6, [(0.1, None), (0.2, 1e-1), (0.5, 1e-6)]),
    row("B", 0.0, []),
    row("C", None, []),
]


def test_what_is_known_is_drawn(tmp_path: Path) -> None:
    path = tmp_path / "gaps.png"
    (axes,) = plot_convergence(ROWS, path, title="three").axes
    drawn = [(list(line.get_xdata()), list(line.get_ydata())) for line in axes.get_lines()]
    assert ([0.2, 0.5], [1e-1, 1e-6]) in drawn
    assert ([3.0], [1e-14]) in drawn  # compiling and solving; an exact zero has no logarithm
    legend = [text.get_text() for text in axes.get_legend().get_texts()]
    assert legend == ["A", "B (final point)", "C: failed"]
    assert axes.get_title() == "three"
    assert path.stat().st_size > 1000


def test_nothing_is_written_unless_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    plot_convergence(ROWS)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("rows", [5, [5], [{"solver": "A"}]])
def test_what_is_no_row_of_a_comparison_is_refused(rows: Any) -> None:
    with pytest.raises(TypeError, match=r"rows must be the dictionaries that compare\(...\).rows holds"):
        plot_convergence(rows)


def test_without_matplotlib_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install 'convexnn\[plot\]'"):
        plot_convergence(ROWS)
