"""The loop, written once: limits, NaN stop, best certified point so far, table, callback, interrupts.

A method only says how to start, how to step and what it would hand in now. Everything that is claimed
about a point is said by the judge, in float64, from the problem's data.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from copy import copy
from dataclasses import dataclass, replace
from typing import Generic, Protocol, TypeVar, runtime_checkable

import numpy as np

from convexnn_solvers.backends import Float64Array
from convexnn_solvers.composite import Composite, DualPoint, Point
from convexnn_solvers.loop.checkpoint import Arrays, Keeper, Resumable, StepsInPlace, whole_point
from convexnn_solvers.loop.result import Result
from convexnn_solvers.loop.watch import Candidate as Candidate
from convexnn_solvers.loop.watch import Judge, Watch, packed_candidate
from convexnn_solvers.loop.watch import Limits as Limits
from convexnn_solvers.packing import below, part
from convexnn_solvers.status import Status

State = TypeVar("State")


class Method(Protocol[State]):
    """An algorithm, without any loop of its own; states are values."""

    @property
    def name(self) -> str:
        """The title of the table."""
        ...

    @property
    def judges_itself(self) -> bool:
        """Whether it knows its gap at every step, so that only ``wants_look`` asks for certificates."""
        ...

    def start(self, x: Point) -> State:
        """The state before the first step, at a point of the composite's backend."""
        ...

    def step(self, state: State) -> State:
        """One iteration."""
        ...

    def residual(self, state: State) -> float:
        """How far from stationary the state is, in the method's own units; NaN ends the solve."""
        ...

    def wants_look(self, state: State) -> bool:
        """Whether a certificate is due, besides those that the loop computes anyway."""
        ...

    def candidate(self, state: State) -> Candidate:
        """What to certify now."""
        ...

    def multipliers(self, state: State) -> tuple[Float64Array, ...]:
        """One array per constraint, in the user's units; taken where no bound comes with its own."""
        ...


@runtime_checkable
class StartsFromDuals(Protocol):
    """A method that judges itself from its first step on, with the dual point that an earlier solve left.

    Points to start from may lie outside their cones; it takes them in.
    """

    @property
    def warm(self) -> DualPoint | None:
        """That point, perhaps an empty one; None: it is not asked for."""
        ...


def iterate(
    method: Method[State],
    composite: Composite,
    judge: Judge,
    starts: Sequence[Candidate],
    limits: Limits,
    keeper: Keeper | None = None,
    again: bool = False,
) -> Result:
    """Run a method until the certified gap or a limit ends it.

    The best of ``starts`` is where the method begins. They are certified first, and an optimal one ends the
    solve without a step, unless the method starts from duals too and will say so; ``again``: they are what
    another method got, which has to be kept. ``composite`` is the method's own; ``judge`` may work on another
    backend. What a ``keeper`` found is where the solve goes on instead.
    """
    watch = Watch(judge, limits, composite.sign, method.name, starts[0].point)
    state: State | None = None
    iteration, next_look = 0, 10
    mark: _Mark[State] | None = None
    saved = None if keeper is None else keeper.taken()
    unseen: tuple[DualPoint, ...] = ()
    try:
        periodic = not method.judges_itself or limits.verbose or limits.callback is not None
        certify = periodic or again or not isinstance(method, StartsFromDuals) or method.warm is None
        # What an uncertified start proves may be more than the first steps do: a limit looks at that too.
        unseen = () if certify or saved is not None else starts[0].duals
        verdict = watch.look_at_starts(starts, certify) if saved is None else watch.take_up(saved)
        if verdict is None:
            if saved is None:
                state = method.start(tuple(composite.backend.asarray(a) for a in watch.start))
            else:
                iteration, next_look = (int(k) for k in saved["loop"])
                state = _state_from(saved, method, composite)
            while verdict is None:
                if keeper is not None:
                    left: Arrays | None = method.packed(state) if isinstance(method, StepsInPlace) else None
                    mark = _Mark(iteration, next_look, state, copy(watch), len(watch.history), left)
                    if keeper.due():
                        keeper.write(mark.packed(method))
                watch.break_silence(iteration)
                if not math.isfinite(method.residual(state)):
                    verdict = Status.NOT_FINITE
                elif (
                    (asked := method.wants_look(state))
                    or (periodic and iteration >= next_look)
                    or iteration >= limits.max_iter
                    or limits.out_of_time
                ):
                    # A method that knows its gap and asks has a dual point that goes with its point.
                    thorough = not (asked and method.judges_itself)
                    candidate = method.candidate(state)
                    if not asked:
                        candidate = replace(candidate, duals=(*candidate.duals, *unseen))
                    verdict = watch.look(iteration, candidate, thorough)
                    next_look = iteration + max(10, iteration // 10)
                if verdict is None:
                    state = method.step(state)
                    iteration += 1
    except KeyboardInterrupt:
        verdict = Status.INTERRUPTED
        # The latest certificate may be old; who does not want to wait for this one interrupts again.
        with suppress(KeyboardInterrupt):
            if state is not None:
                candidate = method.candidate(state)
                watch.keep(replace(candidate, duals=(*candidate.duals, *unseen)))
    if keeper is not None and mark is not None:
        keeper.write(mark.packed(method))
    multipliers = () if state is None else method.multipliers(state)
    return watch.result(verdict, multipliers, iteration)


@dataclass(frozen=True, eq=False)
class _Mark(Generic[State]):
    """The loop between two iterations; what a limit or an interrupt then looks at is not part of it.

    ``left``: the state as arrays, of a method whose steps change it.
    """

    iteration: int
    next_look: int
    state: State
    watch: Watch
    looks: int
    left: Arrays | None

    def packed(self, method: Method[State]) -> Arrays:
        """Everything as arrays. A method whose states cannot be packed leaves its best point."""
        arrays: Arrays = {
            "loop": np.asarray([self.iteration, self.next_look]),
            **self.watch.packed(self.looks),
        }
        if isinstance(method, Resumable):
            state: Arrays = method.packed(self.state) if self.left is None else self.left
            return arrays | below("state", state)
        candidate = method.candidate(self.state)
        return arrays | packed_candidate("candidate", candidate.point, candidate.duals)


def _state_from(saved: Arrays, method: Method[State], composite: Composite) -> State:
    state = part("state", saved)
    if isinstance(method, Resumable) and state:
        resumed: State = method.unpacked(state)
        return resumed
    point = whole_point("watch.point" if state else "candidate.point", saved)
    return method.start(tuple(composite.backend.asarray(a) for a in point))
