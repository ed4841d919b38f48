"""The semismooth Newton method as a method of the common loop."""

from __future__ import annotations

from convexnn_solvers.backends import Float64Array
from convexnn_solvers.composite import DualPoint
from convexnn_solvers.gated_programs.method import GatedMethod, ProgramSolver
from convexnn_solvers.gated_programs.program import GatedProgram
from convexnn_solvers.gated_programs.structure import GatedStructure
from convexnn_solvers.newton.start import NewtonStart
from convexnn_solvers.newton.working_set import newton_engine
from convexnn_solvers.packing import Held


def semismooth_newton_method(
    structure: GatedStructure, tol: float, warm: DualPoint | None = None
) -> GatedMethod:
    """The method for gated programs; one step of the loop is one Newton step of one program.

    ``warm``: the dual point that an earlier solve left, feasible or not.
    """

    def begin(
        program: GatedProgram,
        point: Float64Array,
        dual: Float64Array | None,
        products: Float64Array | None,
    ) -> ProgramSolver:
        start = NewtonStart(point, None if dual is None else -dual, None if products is None else -products)
        return newton_engine(program, None, start)

    def resume(program: GatedProgram, held: Held) -> ProgramSolver:
        return newton_engine(program, None, NewtonStart(held=held))

    return GatedMethod(structure, tol, begin, resume, "semismooth Newton", warm)
