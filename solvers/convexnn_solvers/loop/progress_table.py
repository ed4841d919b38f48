"""The table that ``verbose=True`` prints while a solve goes on: one line per certificate."""

from __future__ import annotations

import math
from collections.abc import Callable

from convexnn_solvers.loop.result import HistoryRow, Progress

# A line is printed at least this often, in seconds, certificate or not.
_SILENCE = 30.0


class ProgressTable:
    """Prints its heading at once. ``seconds`` is the clock that says how long nothing was printed."""

    def __init__(self, title: str, seconds: Callable[[], float]) -> None:
        self._seconds = seconds
        self._printed = seconds()
        print(f"{title}\n{_HEADING}", flush=True)

    def add(self, progress: Progress) -> None:
        """Print a line."""
        print(_line(progress), flush=True)
        self._printed = self._seconds()

    def break_silence(self, latest: HistoryRow, iteration: int, seconds: float) -> None:
        """Say after a while that the solve is alive; the ``latest`` certificate's values stand."""
        if self._seconds() - self._printed >= _SILENCE:
            row = HistoryRow({**latest, "iteration": iteration, "seconds": seconds})
            self.add(Progress(**row, max_violation=math.nan))


_HEADING = f"{'iteration':>10} {'seconds':>9} {'primal':>15} {'dual':>15} {'rel. gap':>9} {'violation':>9}"


def _line(progress: Progress) -> str:
    dual = "-" if progress.dual is None else f"{progress.dual:.8e}"
    gap = "-" if progress.relative_gap is None else f"{progress.relative_gap:.2e}"
    return (
        f"{progress.iteration:>10d} {progress.seconds:>9.2f} {progress.primal:>15.8e} {dual:>15} "
        f"{gap:>9} {progress.max_violation:>9.1e}"
    )
