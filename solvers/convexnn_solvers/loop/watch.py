"""What a solve knows so far: the best certified point and bound, the history, and whether that is enough."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from convexnn_solvers.backends import Float64Array
from convexnn_solvers.certify.certifier import Certificate
from convexnn_solvers.certify.dual_values import dual_values
from convexnn_solvers.certify.recession import descends_for_ever
from convexnn_solvers.composite import Composite, DualPoint, Point
from convexnn_solvers.gaps import relative_gap, relative_price
from convexnn_solvers.loop.checkpoint import (
    Arrays,
    packed_history,
    packed_point,
    unpacked_history,
    unpacked_point,
    whole_point,
)
from convexnn_solvers.loop.progress_table import ProgressTable
from convexnn_solvers.loop.result import HistoryRow, Progress, Result
from convexnn_solvers.status import Status

# The solve has stalled when nothing improved during so many iterations, and half of all of them.
_PATIENCE = 5000
# An improvement by less than this share is none.
_IMPROVEMENT = 1e-3


@dataclass(frozen=True)
class Candidate:
    """What a method hands in: a point (float64, NumPy), duals for the judge to verify, and its findings.

    ``finding`` is ``Status.INFEASIBLE`` or ``Status.UNBOUNDED`` when the method holds evidence of that,
    ``Status.STALLED`` when it cannot get any better.
    """

    point: tuple[Float64Array, ...]
    duals: tuple[DualPoint, ...] = ()
    finding: Status | None = None


class Judge(Protocol):
    """What the loop needs of a :class:`~certify.certifier.Certifier`."""

    @property
    def composite(self) -> Composite:
        """The problem in float64 on the NumPy backend."""
        ...

    def certify(self, x: Point, candidates: Sequence[DualPoint] = (), thorough: bool = True) -> Certificate:
        """The certificate of a point (judged on a repaired copy where that is possible).

        Unless ``thorough``, the candidates alone are tried while they give a bound.
        """
        ...

    def objective(self, x: Point) -> float:
        """The objective at a point as it is, in the user's sign."""
        ...

    def repair(self, x: Point) -> tuple[Float64Array, ...]:
        """The feasible point that the certificate is about."""
        ...


@dataclass(frozen=True)
class Limits:
    """When to stop. ``tol``: relative certified gap; ``time_limit``: seconds since ``started``."""

    tol: float = 1e-4
    max_iter: int = 100_000
    time_limit: float | None = None
    verbose: bool = False
    callback: Callable[[Progress], object] | None = None
    started: float = field(default_factory=time.perf_counter)

    def seconds(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self.started

    @property
    def out_of_time(self) -> bool:
        """Whether ``time_limit`` has passed."""
        return self.time_limit is not None and self.seconds() >= self.time_limit


class Watch:
    """Keeps the best certified primal point and dual bound, and decides when it is enough."""

    def __init__(
        self, judge: Judge, limits: Limits, sign: float, title: str, start: tuple[Float64Array, ...]
    ) -> None:
        self.judge, self.limits, self.sign = judge, limits, sign
        self.start = self.point = self.previous = start
        self.best: Certificate | None = None
        self.dual: float | None = None
        self.dual_point: DualPoint | None = None
        self.history: list[HistoryRow] = []
        self.confirmed: tuple[tuple[tuple[Float64Array, ...], DualPoint | None], Certificate] | None = None
        self.improved_at, self.improved_to, self.lowest = 0, math.inf, math.inf
        self.seconds_before = 0.0
        self.table = ProgressTable(title, limits.seconds) if limits.verbose else None

    def look_at_starts(self, starts: Sequence[Candidate], certify: bool = True) -> Status | None:
        """Certify the first point to start from and all that are lower, and begin at the lowest.

        Unless ``certify``, only find it: a method that knows its gap asks for the first certificate.
        """
        if not certify:
            self.start = self.point = self._lowest(starts)
            return None
        lowest = math.inf
        for candidate in starts:
            if math.isfinite(lowest) and not self.sign * self.judge.objective(candidate.point) < lowest:
                continue
            verdict = self.look(0, candidate)
            if verdict is Status.NOT_FINITE and candidate is not starts[-1]:
                continue  # values that somebody left there; the origin comes last
            if verdict is not None:
                return verdict
            if self.objective < lowest:
                self.start, lowest = candidate.point, self.objective
        return None

    def _lowest(self, starts: Sequence[Candidate]) -> tuple[Float64Array, ...]:
        """The point of the lowest objective as it is; the last one when no other is finite."""
        points = [c.point for c in starts if all(np.isfinite(array).all() for array in c.point)]
        if len(points) == 1:
            return points[0]
        values = [self.sign * self.judge.objective(point) for point in points]
        known = [k for k, value in enumerate(values) if math.isfinite(value)]
        return points[min(known, key=values.__getitem__)] if known else starts[-1].point

    def take_up(self, saved: Arrays) -> Status | None:
        """Go on from a checkpoint. Only points are taken from it: what is known of them is computed anew."""
        self.history = list(unpacked_history(saved["watch.history"]))
        at, self.improved_to, self.lowest = (float(value) for value in saved["watch.improved"])
        self.improved_at = int(at)
        self.seconds_before = float(saved["watch.seconds"])
        best = unpacked_candidate("watch", saved)
        self.point = best.point
        found = [best]
        if "candidate.point.count" in saved:
            found.append(unpacked_candidate("candidate", saved))
        if not all(self.keep(candidate) for candidate in found):
            return Status.NOT_FINITE
        self.previous = whole_point("watch.previous", saved)
        return None

    def keep(self, candidate: Candidate) -> bool:
        """Certify a candidate and take over what is better, without a word; whether it is finite."""
        if not all(np.isfinite(array).all() for array in candidate.point):
            return False
        certificate = self.judge.certify(candidate.point, candidate.duals, thorough=False)
        if math.isfinite(certificate.primal):
            self._keep(candidate.point, certificate)
        return math.isfinite(certificate.primal)

    def packed(self, looks: int) -> Arrays:
        """What :meth:`take_up` needs, after the first ``looks`` looks."""
        duals = () if self.dual_point is None else (self.dual_point,)
        return {
            "watch.history": packed_history(self.history[:looks]),
            "watch.improved": np.asarray([self.improved_at, self.improved_to, self.lowest]),
            "watch.seconds": np.asarray(self._seconds()),
            **packed_candidate("watch", self.point, duals),
            **packed_point("watch.previous", self.previous),
        }

    def break_silence(self, iteration: int) -> None:
        """With ``verbose``, say after a while that the solve is alive."""
        if self.table is not None and self.history:
            self.table.break_silence(self.history[-1], iteration, self._seconds())

    def _seconds(self) -> float:
        """Since the start, that of the solve which left the checkpoint included."""
        return self.seconds_before + self.limits.seconds()

    def look(self, iteration: int, candidate: Candidate, thorough: bool = True) -> Status | None:
        """Certify a candidate, keep what is best, report; a status if the solve ends here.

        Unless ``thorough``, the candidate's own dual points are taken while they give a bound.
        """
        if not all(np.isfinite(array).all() for array in candidate.point):
            return Status.NOT_FINITE
        certificate = self.judge.certify(candidate.point, candidate.duals, thorough)
        self.objective = self.sign * certificate.primal
        if not math.isfinite(self.objective):
            return Status.NOT_FINITE
        best = self._keep(candidate.point, certificate)
        row = HistoryRow(
            iteration=iteration,
            seconds=self._seconds(),
            primal=best.primal,
            dual=self.dual,
            relative_gap=self._relative_gap(best),
        )
        self.history.append(row)
        progress = Progress(**row, max_violation=certificate.max_violation)
        if self.table is not None:
            self.table.add(progress)
        stop = self.limits.callback is not None and bool(self.limits.callback(progress))
        unbounded = self._descends_for_ever(candidate.point) and _feasible(certificate)
        finding = Status.UNBOUNDED if unbounded else candidate.finding
        return self._verdict(row, stop, finding)

    def result(self, status: Status, multipliers: tuple[Float64Array, ...], iterations: int) -> Result:
        """The best point, with a certificate computed at this very point."""
        certificate = self._confirmed()
        if self.limits.verbose:
            print(f"{status.name}: {certificate}", flush=True)
        return Result(
            status=status,
            point=self.point,
            certificate=certificate,
            make_multipliers=partial(
                dual_values,
                self.judge.composite,
                None if status is Status.INFEASIBLE else certificate.dual_point,
                multipliers,
            ),
            iterations=iterations,
            seconds=self.limits.seconds(),
            history=tuple(self.history),
        )

    def _confirmed(self) -> Certificate:
        """The certificate of the best point with the best dual point, computed once per pair."""
        if self.best is not None and not self.best.repaired and self.best.dual_point is self.dual_point:
            return self.best
        pair = (self.point, self.dual_point)
        if self.confirmed is None or any(a is not b for a, b in zip(pair, self.confirmed[0], strict=True)):
            duals = () if self.dual_point is None else (self.dual_point,)
            self.confirmed = pair, self.judge.certify(self.point, duals)
        return self.confirmed[1]

    def _keep(self, point: tuple[Float64Array, ...], new: Certificate) -> Certificate:
        """Take over what is better than before: the point, the bound, or both; the best certificate."""
        if new.dual is not None and (self.dual is None or self.sign * new.dual > self.sign * self.dual):
            self.dual, self.dual_point = new.dual, new.dual_point
        if self.best is None or self._better(new, self.best):
            self.point = self.judge.repair(point) if new.repaired else point
            self.best = new
        if self.best is new and self.dual_point is new.dual_point and not new.repaired:
            # Both are those of one certificate, which is then theirs: a large problem's takes a while.
            self.confirmed = (self.point, self.dual_point), new
        return self.best

    def _better(self, new: Certificate, old: Certificate) -> bool:
        """Feasible before infeasible; then the smaller violation, or what is closer to the bound.

        Constraints hold up to a tolerance only, so that a lower objective can mean a larger violation, and
        one that is close to the bound can owe that to what it misses.
        """
        if _feasible(new) != _feasible(old):
            return _feasible(new)
        if not _feasible(new):
            return new.excess < old.excess
        if self.dual is None:
            return self.sign * new.primal < self.sign * old.primal
        return abs(new.primal - self.dual) + new.price < abs(old.primal - self.dual) + old.price

    def _descends_for_ever(self, point: tuple[Float64Array, ...]) -> bool:
        """Whether the point, or what it moved since the last look, leads down without end; no bound then."""
        previous, self.previous = self.previous, point
        if self.dual is not None:
            return False
        moved = tuple(a - b for a, b in zip(point, previous, strict=True))
        return any(descends_for_ever(self.judge.composite, direction) for direction in (moved, point))

    def _relative_gap(self, best: Certificate) -> float | None:
        """The gap between the best point and the best bound, which need not come from one candidate."""
        if self.dual is None or not _feasible(best):
            return None
        return relative_gap(self.sign * best.primal, self.sign * self.dual, best.rounding)

    def _owed(self) -> float:
        """What the best point's violations may have saved, in the unit of the relative gap."""
        best = self.best
        if best is None or self.dual is None:
            return 0.0
        return relative_price(best.price, best.primal, self.dual, best.rounding)

    def _verdict(self, row: HistoryRow, stop: bool, finding: Status | None) -> Status | None:
        gap, iteration, limits = row["relative_gap"], row["iteration"], self.limits
        if gap is not None and abs(gap) <= limits.tol:
            confirmed = self._confirmed()
            if confirmed.within(limits.tol):
                return Status.OPTIMAL
            if self.best is not None:  # what its violations cost is known at the best multipliers now
                self.best = replace(self.best, price=confirmed.price)
        if finding is not None:
            return finding
        if stop:
            return Status.STOPPED
        if limits.out_of_time:
            return Status.TIME_LIMIT
        if iteration >= limits.max_iter:
            return Status.ITERATION_LIMIT
        return Status.STALLED if self._stalled(row) else None

    def _stalled(self, row: HistoryRow) -> bool:
        iteration, objective, gap = row["iteration"], self.sign * row["primal"], row["relative_gap"]
        # Violations count until there is a gap; a bound may be worthless for long while the objective falls.
        excess = 1.0 if self.best is None else max(1.0, self.best.excess)
        distance = excess if gap is None else abs(gap) + self._owed()
        if _improved(distance, self.improved_to) or _improved(objective, self.lowest):
            self.improved_at = iteration
            self.improved_to, self.lowest = min(distance, self.improved_to), min(objective, self.lowest)
        return iteration - self.improved_at > max(_PATIENCE, iteration // 2)


def _improved(value: float, before: float) -> bool:
    return math.isinf(before) or value < before - _IMPROVEMENT * abs(before)


def packed_candidate(name: str, point: Sequence[Float64Array], duals: Sequence[DualPoint]) -> Arrays:
    """A point and the first of its duals as arrays for a checkpoint."""
    arrays = packed_point(f"{name}.point", point)
    for dual in duals[:1]:
        arrays |= packed_point(f"{name}.thetas", dual.thetas)
        arrays |= packed_point(f"{name}.multipliers", dual.multipliers)
    return arrays


def unpacked_candidate(name: str, arrays: Mapping[str, NDArray[Any]]) -> Candidate:
    """The inverse of :func:`packed_candidate`."""
    duals: tuple[DualPoint, ...] = ()
    if f"{name}.thetas.count" in arrays:
        thetas = whole_point(f"{name}.thetas", arrays)
        duals = (DualPoint(thetas, unpacked_point(f"{name}.multipliers", arrays)),)
    return Candidate(whole_point(f"{name}.point", arrays), duals)


def _feasible(certificate: Certificate) -> bool:
    """Whether the certificate's primal value is that of a feasible point."""
    return certificate.excess <= 1.0
