"""The clock and the judge of one run: contestants report points, everything about them is said here.

The clock stands still while a point is judged. A contestant that solves from cold several times (one
tolerance after another) calls :meth:`Referee.begin` before each; a gap counts from the begin of the solve
that reached it, so that a contestant with tolerances gets the time of the right tolerance, as if known.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TypedDict

import numpy as np

from benchmarks.cases import Float64Array, Instance
from convexnn_solvers import DualPoint
from convexnn_solvers.backends import numpy_backend
from convexnn_solvers.certify.certificate import Certifier
from convexnn_solvers.reading.compiler import compile_problem

#: The certified relative gaps that are timed.
TARGETS = (1e-3, 1e-6)
# The next look during a run comes after this share of the time so far: what a reported time may be late by.
_LATE = 0.05


class Sample(TypedDict):
    """One judged point: ``seconds`` since its solve began, ``compile_seconds`` of them for compiling.

    ``in_time``: within the cap; later points only tell how small the gap became.
    """

    seconds: float
    compile_seconds: float
    primal: float
    dual: float | None
    gap: float | None
    violation: float
    in_time: bool


class Referee:
    """One contestant on one instance. ``tell`` hears of every sample, and of when the clock stands still.

    A run ends at the gap ``goal``; the next look is due after the share ``late`` of the time so far.
    """

    def __init__(
        self,
        instance: Instance,
        cap: float,
        tell: Callable[[str, object], None] = lambda name, value: None,
        goal: float = TARGETS[-1],
        late: float = _LATE,
    ) -> None:
        self.instance, self.cap, self._goal, self._late = instance, cap, goal, late
        self.samples: list[Sample] = []
        self.reason = ""
        self._tell = tell
        self._model, problem = instance.problem()
        self._composite = compile_problem(problem, numpy_backend()).composite()
        self.certifier = Certifier(self._composite)
        self.begin()

    def begin(self, seconds: float = 0.0) -> None:
        """A solve from cold begins; ``seconds`` are charged to it at once (what it need not do again)."""
        self._started, self._before = time.perf_counter(), seconds
        self._compiled, self._next_look = 0.0, 0.0
        self._tell("begin", seconds)

    @property
    def seconds(self) -> float:
        """The contestant's time in this solve."""
        return self._before + time.perf_counter() - self._started

    @property
    def remaining(self) -> float:
        """What is left of the cap."""
        return max(self.cap - self.seconds, 1e-3)

    @property
    def due(self) -> bool:
        """Whether a contestant with a callback should submit its point now."""
        return self.seconds >= self._next_look

    def compiled(self, seconds: float | None = None) -> None:
        """What went before was compiling (or so many seconds of this solve are)."""
        self._compiled = self.seconds if seconds is None else seconds

    def reached(self, target: float) -> bool:
        """Whether any point so far is certified to the target."""
        return any(sample["gap"] is not None and sample["gap"] <= target for sample in self.samples)

    def look(self, values: Sequence[Float64Array], duals: Sequence[DualPoint] = ()) -> bool:
        """Judge a point, given in the order of the model's variables; True: no need to go on."""
        seconds = self.seconds
        self._tell("pause", None)
        by_id = {v.id: value for v, value in zip(self._model.variables, values, strict=True)}
        point = tuple(
            np.asarray(by_id[block.id], dtype=np.float64).reshape(block.shape)
            for block in self._composite.variables
        )
        proof = self.certifier.certify(point, duals)
        sample = Sample(
            seconds=seconds,
            compile_seconds=self._compiled,
            primal=proof.primal,
            dual=proof.dual,
            gap=proof.relative_gap,
            violation=proof.max_violation,
            in_time=seconds <= self.cap,
        )
        self.samples.append(sample)
        self._next_look = seconds * (1.0 + self._late)
        self._started, self._before = time.perf_counter(), seconds
        self._tell("sample", sample)
        return self.reached(self._goal) or seconds >= self.cap
