"""The semismooth Newton method as a method of the common loop: gated programs in, certified points out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from convexnn_solvers.backends import Float64Array
from convexnn_solvers.composite import Composite, Point
from convexnn_solvers.cones import ActiveRows
from convexnn_solvers.dual_newton import DualNewton, NewtonPolicy, NewtonStart
from convexnn_solvers.gate_working_set import WorkingSetNewton, newton_engine
from convexnn_solvers.gated_program import Scaling, scaled
from convexnn_solvers.gated_structure import GatedStructure, gated_structure
from convexnn_solvers.iterate import Candidate
from convexnn_solvers.status import Status

# The loop is asked for a certificate when our own gap is this share of the tolerance.
_MARGIN = 0.5
# Below this the certificate will not follow, whatever our own gap says.
_LEAST_GOAL = 1e-17

Engine = DualNewton | WorkingSetNewton


@dataclass(eq=False)
class NewtonState:
    """One engine per program, each in units of its own; steps change them in place.

    ``goal`` is the relative gap to reach before the next certificate, ``failed`` whether a linear system
    could not be solved in working precision.
    """

    engines: list[Engine]
    scalings: list[Scaling]
    goal: float
    failed: bool = False

    @property
    def working(self) -> Engine | None:
        """The first engine that is not done."""
        open_ends = (engine for engine in self.engines if not engine.gap <= self.goal and not engine.stalled)
        return next(open_ends, None)


@dataclass(frozen=True, eq=False)
class SemismoothNewtonMethod:
    """The method for :func:`convexnn_solvers.iterate.iterate`; one step is one Newton step of one program.

    Programs whose outputs have groups of their own fall apart into one program per output.
    """

    structure: GatedStructure
    tol: float
    policy: NewtonPolicy
    name: str = "semismooth Newton"
    judges_itself: bool = True

    def start(self, x: Point) -> NewtonState:
        """The engines at a point of the composite."""
        engines: list[Engine] = []
        scalings: list[Scaling] = []
        for program, blocks in zip(self.structure.programs, self.structure.blocks(x), strict=True):
            inside, scaling = scaled(program)
            start = NewtonStart(point=blocks / scaling.point)
            engines.append(newton_engine(inside, self.policy, start))
            scalings.append(scaling)
        return NewtonState(engines, scalings, _MARGIN * self.tol)

    def step(self, state: NewtonState) -> NewtonState:
        """One Newton step; if all programs were done, towards a smaller gap than before."""
        engine = state.working
        if engine is None:
            state.goal *= _MARGIN
            state.failed = state.goal < _LEAST_GOAL
            engine = state.working
        try:
            if engine is not None:
                engine.step(state.goal)
        except (FloatingPointError, np.linalg.LinAlgError):
            state.failed = True
        return state

    def residual(self, state: NewtonState) -> float:
        """The largest relative gap; NaN ends the solve."""
        return float(np.max([engine.gap for engine in state.engines]))

    def wants_look(self, state: NewtonState) -> bool:
        """Whether all programs are as good as asked for, or can get no better."""
        return state.failed or state.working is None

    def candidate(self, state: NewtonState) -> Candidate:
        """The best point, and the best dual point of every program."""
        pairs = list(zip(state.engines, state.scalings, strict=True))
        point = self.structure.point(
            [engine.point * scaling.point for engine, scaling in pairs],
            [engine.offset * scaling.prediction for engine, scaling in pairs],
        )
        duals = self.structure.dual(
            [engine.dual_point * scaling.dual for engine, scaling in pairs],
            [
                ActiveRows(active.rows, scaling.dual * active.multipliers)
                for engine, scaling in pairs
                for active in engine.dual_rows
            ],
        )
        stalled = state.failed or any(engine.stalled for engine, _ in pairs)
        return Candidate(point, (duals,), Status.STALLED if stalled else None)

    def multipliers(self, state: NewtonState) -> tuple[Float64Array, ...]:
        """None of its own: those of pattern cones follow from the dual point."""
        return ()


def semismooth_newton_method(
    composite: Composite, tol: float, policy: NewtonPolicy | None = None
) -> SemismoothNewtonMethod:
    """The method for a problem that is a gated program; refuses others by name (UnsupportedProblem)."""
    return SemismoothNewtonMethod(gated_structure(composite), tol, policy or NewtonPolicy())
