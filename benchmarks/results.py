"""The numbers behind the report: one outcome per case, contestant and target, and ratios between them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.cases import Case
from benchmarks.referee import Sample
from benchmarks.workers import Run

#: Whom the others are compared with: what this project recommends, and its main engine by itself.
OURS = ("Auto", "SemismoothNewton")


@dataclass(frozen=True)
class Outcome:
    """What a contestant did on a case. Seconds are medians over the runs and include compiling.

    ``seconds`` is None when the target was not certified; then ``gap`` is the best that was. ``lenient``
    is the time by the best bound that *any* contestant proved for the case, instead of the bound that goes
    with the contestant's own point. ``timed_out``: it needs more than the cap.
    """

    case: Case
    contestant: str
    seconds: float | None
    lenient: float | None
    compile_seconds: float
    gap: float | None
    timed_out: bool
    declined: str
    reason: str
    runs: int


@dataclass(frozen=True)
class Ratio:
    """A geometric mean of times over times; ``bound``: some of them stand for time-outs, so it is larger."""

    value: float
    rows: int
    bound: bool

    def __str__(self) -> str:
        return (
            f"{'>= ' if self.bound else ''}{self.value:.1f}x ({self.rows} rows)" if self.rows else "no rows"
        )


def outcomes(content: dict[str, Any], target: float) -> list[Outcome]:
    """One outcome per row of a results file, judged at a target."""
    rows = list(content["rows"].values())
    best: dict[Case, float] = {}
    for row in rows:
        case = Case(**row["case"])
        for sample in _samples(row["runs"]):
            if sample["dual"] is not None:
                best[case] = max(best.get(case, -math.inf), sample["dual"])
    return [_outcome(row, target, best.get(Case(**row["case"]))) for row in rows]


def ratios(
    found: Iterable[Outcome], slow: str | Sequence[str], fast: str, cap: float, lenient: bool = False
) -> Ratio:
    """How many times longer ``slow`` (the best of several) took than ``fast``, where ``fast`` got there.

    A time-out counts as the cap, rows where the slow one failed otherwise or took no part are left out.
    """
    names = [slow] if isinstance(slow, str) else list(slow)
    table = _table(found)
    logs, bound = [], False
    for row in table.values():
        quick = row.get(fast)
        rivals = [row[name] for name in names if name in row and not row[name].declined]
        if quick is None or quick.seconds is None or not rivals:
            continue
        times = [t for t in (o.lenient if lenient else o.seconds for o in rivals) if t is not None]
        if times:
            logs.append(math.log(min(times) / quick.seconds))
        elif any(o.timed_out for o in rivals):
            logs.append(math.log(max(cap / quick.seconds, 1.0)))
            bound = True
    return Ratio(math.exp(float(np.mean(logs))) if logs else math.nan, len(logs), bound)


def defeats(found: Iterable[Outcome], ours: str, peers: Sequence[str]) -> list[tuple[Outcome, float]]:
    """Where ``peers`` were faster than ``ours``, and how many times; infinite where ours never arrived."""
    lost: list[tuple[Outcome, float]] = []
    for row in _table(found).values():
        mine = row.get(ours)
        for outcome in (row[name] for name in peers if name in row):
            if mine is None or outcome.seconds is None:
                continue
            factor = math.inf if mine.seconds is None else mine.seconds / outcome.seconds
            if factor > 1.0:
                lost.append((outcome, factor))
    return sorted(lost, key=lambda pair: -pair[1])


def contradictions(content: dict[str, Any]) -> list[str]:
    """Cases in which a certified value lies below somebody's bound: an error of ours; none are expected."""
    low: dict[str, float] = {}
    high: dict[str, float] = {}
    for row in content["rows"].values():
        key = Case(**row["case"]).key
        for sample in _samples(row["runs"]):
            if sample["gap"] is not None and sample["dual"] is not None:
                low[key] = min(low.get(key, math.inf), sample["primal"])
                high[key] = max(high.get(key, -math.inf), sample["dual"])
    return [key for key in low if low[key] < high[key] - 1e-9 * abs(high[key])]


def _table(found: Iterable[Outcome]) -> dict[Case, dict[str, Outcome]]:
    table: dict[Case, dict[str, Outcome]] = {}
    for outcome in found:
        table.setdefault(outcome.case, {})[outcome.contestant] = outcome
    return table


def _outcome(row: dict[str, Any], target: float, bound: float | None) -> Outcome:
    runs: list[Run] = row["runs"]
    hits = [_first(run["samples"], target) for run in runs]
    times = [hit["seconds"] for hit in hits if hit is not None]
    compiling = [s["compile_seconds"] for s in (h for h in hits if h is not None)]
    compiling = compiling or [s["compile_seconds"] for s in _samples(runs)]
    lenient = [t for t in (_lenient(run["samples"], target, bound) for run in runs) if t is not None]
    gaps = [s["gap"] for s in _samples(runs) if s["gap"] is not None]
    return Outcome(
        case=Case(**row["case"]),
        contestant=row["contestant"],
        seconds=float(np.median(times)) if len(times) == len(runs) else None,
        lenient=float(np.median(lenient)) if len(lenient) == len(runs) else None,
        compile_seconds=float(np.median(compiling)) if compiling else 0.0,
        gap=min(gaps, default=None),
        timed_out=any(run["timed_out"] for run in runs),
        declined=runs[0]["declined"],
        reason=runs[-1]["reason"],
        runs=len(runs),
    )


def _samples(runs: Iterable[Run]) -> list[Sample]:
    return [sample for run in runs for sample in run["samples"]]


def _first(samples: Sequence[Sample], target: float) -> Sample | None:
    """The sample that was certified to the target in the shortest time."""
    hits = [s for s in samples if s["in_time"] and s["gap"] is not None and s["gap"] <= target]
    return min(hits, key=lambda s: s["seconds"], default=None)


def _lenient(samples: Sequence[Sample], target: float, bound: float | None) -> float | None:
    """When the objective was within the target of a bound known from elsewhere."""
    if bound is None:
        return None
    times = [
        s["seconds"]
        for s in samples
        if s["in_time"]
        and s["gap"] is not None
        and s["primal"] - bound <= target * max(abs(s["primal"]), abs(bound))
    ]
    return min(times, default=None)
