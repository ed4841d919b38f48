"""ADMM as a method of the common loop: gated programs in, certified points out, on any backend."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convexnn_solvers.admm.memory_plan import Plan, Sizes, plan_memory
from convexnn_solvers.admm.problem import AdmmProblem, forget_matrix
from convexnn_solvers.admm.working_set import AdmmEngine
from convexnn_solvers.backends import Backend, Float64Array, numpy_backend
from convexnn_solvers.composite import Composite, DualPoint, Point
from convexnn_solvers.gated_programs.fits import Fit, LogisticFit, SquaredFit
from convexnn_solvers.gated_programs.nonsmooth_fits import NonsmoothFit
from convexnn_solvers.gated_programs.program import GatedProgram, Scaling, scaled
from convexnn_solvers.gated_programs.structure import GatedStructure
from convexnn_solvers.loop.checkpoint import Arrays
from convexnn_solvers.loop.iterate import Candidate
from convexnn_solvers.reading.affine import UnsupportedProblem
from convexnn_solvers.status import Status

# The loop is asked for a certificate when our own gap is this share of the tolerance.
_MARGIN = 0.7
# A factor, n^3 / 3 operations, may cost as much as so many thirds of 4 n d P c for every sample. Measured on
# 8 000 to 20 000 samples against Newton's method: each of its operations takes a third of the time or less.
_PRODUCTS = 7000
# Fewer gates at a time are not worth a factorisation.
_FEWEST = 100
# After a certificate that was refused the goal shrinks by this factor; after so many our gap is rounding.
_SHRINK, _MOST_REFUSALS = 0.3, 4


@dataclass(frozen=True, eq=False)
class AdmmState:
    """The engine and the relative gap to reach before the next certificate."""

    engine: AdmmEngine
    goal: float
    refusals: int = 0

    @property
    def failed(self) -> bool:
        """Whether the iteration can get no further in its arithmetic."""
        return self.engine.stalled or self.refusals >= _MOST_REFUSALS


@dataclass(frozen=True, eq=False)
class AdmmMethod:
    """The method for :func:`loop.iterate.iterate`; one step is one iteration of ADMM."""

    structure: GatedStructure
    problem: AdmmProblem
    scaling: Scaling
    most: int
    tol: float
    warm: DualPoint | None = None
    name: str = "ADMM"
    judges_itself: bool = True

    @property
    def affordable(self) -> bool:
        """Whether the factor takes no longer than the products of a few hundred iterations.

        In single precision a factorisation gains more than the products do.
        """
        program = self.problem.program
        n, d = program.X.shape
        products = _PRODUCTS * 8 // int(self.problem.backend.dtype.itemsize)
        return bool(n**2 <= products * d * program.gates * program.outputs)

    def start(self, x: Point) -> AdmmState:
        """The engine at a point of the composite, and at the dual point that an earlier solve left."""
        backend = self.problem.backend
        held = tuple(backend.to_numpy(array) for array in x)
        blocks = np.concatenate(self.structure.blocks(held)) / self.scaling.point
        parts = None if self.warm is None else self.structure.directions(self.warm)
        dual = None if parts is None else np.hstack(parts) / self.scaling.dual
        engine = AdmmEngine(self.problem, blocks, self.most, dual=dual)
        return AdmmState(engine, _MARGIN * self.tol)

    def step(self, state: AdmmState) -> AdmmState:
        """One iteration; if the goal was reached and did not do, towards a smaller one.

        Then from bounds found anew: one of single precision that is none would stand in the way of true ones.
        """
        goal, refusals, engine = state.goal, state.refusals, state.engine
        if engine.gap <= goal:
            goal, refusals = goal * _SHRINK, refusals + 1
            engine = engine.copied()
            engine.look_again()
        if not engine.gap <= goal:
            engine = engine.copied()
            engine.step(goal)
        return AdmmState(engine, goal, refusals)

    def residual(self, state: AdmmState) -> float:
        """The relative gap of the latest look; NaN ends the solve."""
        return state.engine.gap

    def wants_look(self, state: AdmmState) -> bool:
        """Whether the gap is as good as asked for, or can get no better."""
        return state.failed or state.engine.gap <= state.goal

    def candidate(self, state: AdmmState) -> Candidate:
        """The best point and the best dual point."""
        engine = state.engine.copied()
        engine.look_now()
        bounds, scaling = engine.bounds, self.scaling
        outputs = len(self.structure.programs)
        point = self.structure.point(
            np.split(engine.point * scaling.point, outputs),
            np.split(bounds.offset * scaling.prediction, outputs),
        )
        dual = self.structure.dual(np.split(bounds.dual_point * scaling.dual, outputs, axis=1), [])
        finding = Status.STALLED if state.failed else None
        return Candidate(point, (dual,), finding)

    def multipliers(self, state: AdmmState) -> tuple[Float64Array, ...]:
        """None: the problem has no constraints."""
        return ()

    def packed(self, state: AdmmState) -> Arrays:
        """The whole state; a factor is made anew from its penalty."""
        arrays = {f"engine.{name}": array for name, array in state.engine.packed().items()}
        return arrays | {"goal": np.asarray([state.goal, state.refusals])}

    def unpacked(self, arrays: Mapping[str, NDArray[Any]]) -> AdmmState:
        """The state that was packed."""
        held = {name.removeprefix("engine."): a for name, a in arrays.items() if name != "goal"}
        engine = AdmmEngine(self.problem, held["point"], self.most, held=held)
        goal, refusals = (float(value) for value in arrays["goal"])
        return AdmmState(engine, goal, int(refusals))


def admm_method(
    composite: Composite,
    structure: GatedStructure,
    tol: float,
    memory: float | None = None,
    single: bool = False,
    warm: DualPoint | None = None,
) -> AdmmMethod:
    """The method for a problem that is a gated program without cones.

    ``structure`` was read from the problem in float64 with NumPy, ``composite`` is the same on the backend
    where the method works; ``single``: it works in float32 with NumPy instead. ``warm``: the dual point
    that an earlier solve left. Raises UnsupportedProblem for cones, and for what does not fit.
    """
    programs = structure.programs
    if programs[0].stored is not None:
        raise UnsupportedProblem(
            "ADMM takes gated predictions as they are, but these are pooled; use SemismoothNewton() instead."
        )
    if programs[0].cones:
        raise UnsupportedProblem(
            "ADMM takes gated programs whose weights are free, but these lie in pattern cones; use "
            "SemismoothNewton() or AugmentedLagrangian() instead."
        )
    if isinstance(programs[0].fit, NonsmoothFit):
        raise UnsupportedProblem(
            "ADMM takes squared, Huber and logistic losses, but this one has no gradient; use "
            "SemismoothNewton() or AugmentedLagrangian() instead."
        )
    if programs[0].fit.scales is not None:
        raise UnsupportedProblem(
            "ADMM takes weights of samples in squared and Huber losses without an output bias only; use "
            "SemismoothNewton() instead."
        )
    joint = programs[0]
    if len(programs) > 1:  # with a place of its own for what is kept: the outputs are others
        joint = replace(
            joint, fit=_joined([program.fit for program in programs]), kept=joint.kept.part("joint")
        )
    backend = numpy_backend("float32") if single else composite.backend
    inside, scaling = scaled(joint)
    plan, most = _plan_beside_kept(inside, backend, memory)
    taus = np.stack([program.weights for program in programs]) / scaling.features / scaling.targets
    problem = AdmmProblem(inside, taus, backend, plan, backend.asarray(inside.X), keeps=True)
    return AdmmMethod(structure, problem, scaling, most, tol, warm)


def _joined(fits: list[Fit]) -> Fit:
    """The fits of single outputs as one of all outputs."""
    squares = [fit for fit in fits if isinstance(fit, SquaredFit)]
    if squares:
        return replace(squares[0], Y=np.hstack([fit.Y for fit in squares]))
    logistic = [fit for fit in fits if isinstance(fit, LogisticFit)]
    signs, shift = (np.hstack(parts) for parts in zip(*((f.signs, f.shift) for f in logistic), strict=True))
    return replace(logistic[0], signs=signs, shift=shift)


def _plan_beside_kept(program: GatedProgram, backend: Backend, memory: float | None) -> tuple[Plan, int]:
    """See :func:`_plan`; a matrix that an earlier solve left goes where it stands in the way."""
    try:
        plan, most = _plan(program, backend, memory)
        if most == program.gates:
            return plan, most
    except UnsupportedProblem:
        pass
    forget_matrix(program)
    return _plan(program, backend, memory)


def _plan(program: GatedProgram, backend: Backend, memory: float | None) -> tuple[Plan, int]:
    """A plan, and how many gates it allows to be worked on at a time: all of them if they fit."""
    n, d = program.X.shape
    sizes = Sizes(n, d, program.gates, program.gates, program.outputs, len(program.signs))
    try:
        return plan_memory(sizes, backend, memory), program.gates
    except UnsupportedProblem:
        while (fewer := sizes.working // 2) >= _FEWEST:
            sizes = replace(sizes, working=fewer)
            try:
                return plan_memory(sizes, backend, memory), fewer
            except UnsupportedProblem:
                continue
        raise
