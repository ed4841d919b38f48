"""One engine after another, each from the best point so far, until one is not stuck."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from convexnn_solvers.composite import Composite
from convexnn_solvers.gaps import underflows
from convexnn_solvers.loop.checkpoint import Keeper
from convexnn_solvers.loop.iterate import Candidate, Limits, Method, iterate
from convexnn_solvers.loop.result import HistoryRow, Result
from convexnn_solvers.loop.watch import Judge
from convexnn_solvers.status import Status

# How a solve ends when another engine may get further from the same point.
_STUCK = (Status.STALLED, Status.NOT_FINITE)
# A relative gap that nobody gets below: it is rounding.
_ROUNDING = 1e-12


@dataclass(frozen=True)
class Engine:
    """One algorithm for a problem, and why it is the one; ``make`` is called when its turn comes.

    A checkpoint goes on with the engine of the name that wrote it: among those for one problem no two have
    the same.
    """

    name: str
    reason: str
    make: Callable[[], Method[Any]]


def run_engines(
    candidates: Iterator[Engine],
    composite: Composite,
    judge: Judge,
    starts: Sequence[Candidate],
    limits: Limits,
    keeper: Keeper | None = None,
) -> tuple[Result, list[dict[str, str]]]:
    """Run engine after engine, each from the best point so far, until one ends without being stuck.

    One that is stuck at a gap of rounding, or at values that underflow, is the last one, too: nobody else
    could do better.

    Returns the result (iterations and history of all engines together) and who ran, why, and how it ended.
    A ``keeper`` that found a checkpoint goes on with the engine that wrote it.
    """
    log: list[dict[str, str]] = []
    joined: Result | None = None
    iterations, history = 0, tuple[HistoryRow, ...]()
    for engine in candidates:
        if keeper is not None:
            if not keeper.begins(engine.name, iterations, history):
                continue
            iterations, history = keeper.earlier_iterations, keeper.earlier
        result = iterate(engine.make(), composite, judge, starts, limits, keeper, again=joined is not None)
        log.append({"engine": engine.name, "reason": engine.reason, "status": result.status.name})
        joined = _joined(iterations, history, result)
        gap = result.certificate.relative_gap
        if result.status not in _STUCK or (gap is not None and abs(gap) <= _ROUNDING):
            break
        found = result.certificate
        if found.dual is not None and underflows(found.primal, found.dual):
            break
        iterations, history = joined.iterations, joined.history
        dual = result.certificate.dual_point
        starts = [Candidate(result.point, () if dual is None else (dual,)), *starts]
    if joined is None:
        assert keeper is not None
        raise ValueError(
            f"the checkpoint was written by {keeper.writer}; solve with the solver that ran it to go on."
        )
    return joined, log


def _joined(iterations: int, history: tuple[HistoryRow, ...], result: Result) -> Result:
    """The result, as the continuation of what other engines did before."""
    later = [HistoryRow({**row, "iteration": row["iteration"] + iterations}) for row in result.history]
    return replace(result, iterations=iterations + result.iterations, history=(*history, *later))
