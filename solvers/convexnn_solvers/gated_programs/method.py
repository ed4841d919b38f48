"""Solvers of gated programs as a method of the common loop: composites in, certified points out."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from convexnn_solvers.backends import Float64Array
from convexnn_solvers.composite import DualPoint, Point
from convexnn_solvers.cones.projections import ActiveRows
from convexnn_solvers.gated_programs.program import GatedProgram, Scaling, scaled
from convexnn_solvers.gated_programs.structure import GatedStructure
from convexnn_solvers.loop.iterate import Candidate
from convexnn_solvers.packing import Arrays, Held, below, part
from convexnn_solvers.status import Status

# The loop is asked for a certificate when our own gap is this share of the tolerance, and then by steps.
_MARGIN, _SHRINK = 0.9, 0.5
# Below this the certificate will not follow, whatever our own gap says.
_LEAST_GOAL = 1e-17


class ProgramSolver(Protocol):
    """An iteration on one gated program that knows its duality gap, in units of its own."""

    @property
    def gap(self) -> float:
        """The relative gap over all gates; NaN when something was not finite."""
        ...

    @property
    def stalled(self) -> bool:
        """Whether it can get no better."""
        ...

    @property
    def point(self) -> Float64Array:
        """The best point so far (c, d, B)."""
        ...

    @property
    def offset(self) -> Float64Array:
        """The offset (c,) that goes with the point."""
        ...

    @property
    def dual_point(self) -> Float64Array:
        """The best feasible W (n, c) so far."""
        ...

    @property
    def dual_rows(self) -> tuple[ActiveRows, ...]:
        """With cones, for each output, the active rows of the blocks' latest projections."""
        ...

    def step(self, tol: float) -> None:
        """One step towards a gap of ``tol``; none if it is reached."""
        ...

    def look_again(self) -> None:
        """Find both bounds anew from the best points, and forget those that these do not prove."""
        ...

    def packed(self) -> Arrays:
        """Everything that the next steps depend on, copied."""
        ...


#: Starts a solver on a scaled program at a point (c, d, B), and where they are known at a dual point W (n, c)
#: with its products (c, d, P).
Begin = Callable[[GatedProgram, Float64Array, Float64Array | None, Float64Array | None], ProgramSolver]
#: Goes on with a solver on a scaled program from what it packed.
Resume = Callable[[GatedProgram, Held], ProgramSolver]


@dataclass(eq=False)
class GatedState:
    """One solver per program, each in units of its own; steps change them in place.

    ``goal`` is the relative gap to reach before the next certificate, ``failed`` whether a linear system
    could not be solved in working precision.
    """

    solvers: list[ProgramSolver]
    scalings: list[Scaling]
    goal: float
    failed: bool = False

    @property
    def working(self) -> ProgramSolver | None:
        """The first solver that is not done."""
        open_ends = (solver for solver in self.solvers if not solver.gap <= self.goal and not solver.stalled)
        return next(open_ends, None)


@dataclass(frozen=True, eq=False)
class GatedMethod:
    """The method for :func:`loop.iterate.iterate`; one step is one step of one program's solver.

    Programs whose outputs have groups of their own fall apart into one program per output. ``warm`` is the
    dual point that an earlier solve left, feasible or not.
    """

    structure: GatedStructure
    tol: float
    begin: Begin
    resume: Resume
    name: str
    warm: DualPoint | None = None
    judges_itself: bool = True
    steps_in_place: bool = True

    def start(self, x: Point) -> GatedState:
        """The solvers at a point of the composite."""
        solvers: list[ProgramSolver] = []
        scalings: list[Scaling] = []
        warm = None if self.warm is None else self.structure.directions(self.warm)
        known = None if self.warm is None or warm is None else self.structure.products(self.warm)
        blocks = self.structure.blocks(x)
        for k, program in enumerate(self.structure.programs):
            inside, scaling = scaled(program)
            dual = None if warm is None else warm[k] / scaling.dual
            products = None if known is None else known[k] / (scaling.features * scaling.dual)
            solvers.append(self.begin(inside, blocks[k] / scaling.point, dual, products))
            scalings.append(scaling)
        return GatedState(solvers, scalings, _MARGIN * self.tol)

    def step(self, state: GatedState) -> GatedState:
        """One step; if all programs were done, towards a smaller gap than before.

        Then a certificate was not content, and what the solvers take for bounds is found anew: a bound that
        is none would stand in the way of all true ones.
        """
        try:
            solver = state.working
            if solver is None:
                state.goal *= _SHRINK
                state.failed = state.goal < _LEAST_GOAL
                for each in state.solvers:
                    each.look_again()
                solver = state.working
            if solver is not None:
                solver.step(state.goal)
        except (FloatingPointError, np.linalg.LinAlgError):
            state.failed = True
        return state

    def residual(self, state: GatedState) -> float:
        """The largest relative gap; NaN ends the solve."""
        gaps = [solver.gap for solver in state.solvers]
        return math.nan if any(math.isnan(gap) for gap in gaps) else max(gaps)

    def wants_look(self, state: GatedState) -> bool:
        """Whether all programs are as good as asked for, or can get no better."""
        return state.failed or state.working is None

    def candidate(self, state: GatedState) -> Candidate:
        """The best point, and the best dual point of every program."""
        pairs = list(zip(state.solvers, state.scalings, strict=True))
        point = self.structure.point(
            [solver.point * scaling.point for solver, scaling in pairs],
            [solver.offset * scaling.prediction for solver, scaling in pairs],
        )
        duals = self.structure.dual(
            [solver.dual_point * scaling.dual for solver, scaling in pairs],
            [active for solver, _ in pairs for active in solver.dual_rows],
        )
        stalled = state.failed or any(solver.stalled for solver, _ in pairs)
        return Candidate(point, (duals,), Status.STALLED if stalled else None)

    def packed(self, state: GatedState) -> Arrays:
        """The goal and the solvers."""
        arrays: Arrays = {"goal": np.asarray(state.goal), "failed": np.asarray(state.failed)}
        for k, solver in enumerate(state.solvers):
            arrays |= below(f"{k}", solver.packed())
        return arrays

    def unpacked(self, arrays: Held) -> GatedState:
        """The state that was packed."""
        pairs = [scaled(program) for program in self.structure.programs]
        solvers = [self.resume(inside, part(f"{k}", arrays)) for k, (inside, _) in enumerate(pairs)]
        scalings = [scaling for _, scaling in pairs]
        return GatedState(solvers, scalings, float(arrays["goal"]), bool(arrays["failed"]))

    def multipliers(self, state: GatedState) -> tuple[Float64Array, ...]:
        """None of its own: those of pattern cones follow from the dual point."""
        return ()
