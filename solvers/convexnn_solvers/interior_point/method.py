"""The interior-point method as a method of the common loop, and what it takes."""

from __future__ import annotations

from convexnn_solvers.backends import Float64Array
from convexnn_solvers.gated_programs.fits import SquaredFit
from convexnn_solvers.gated_programs.method import GatedMethod, ProgramSolver
from convexnn_solvers.gated_programs.program import GatedProgram
from convexnn_solvers.gated_programs.structure import GatedStructure
from convexnn_solvers.interior_point.iteration import InteriorPoint
from convexnn_solvers.packing import Held

# Floating-point operations of one step, and bytes of the matrix of the samples, that are still worth it.
_MOST_WORK, _MOST_MATRIX = 1e11, 2**30


def can_take(structure: GatedStructure) -> bool:
    """Whether all programs have squares, one output each, and steps of a bearable price.

    Of other losses the conjugates' gradients grow without bound towards small weights, and steps are short.
    """
    return all(_can_take(program) for program in structure.programs)


def _can_take(program: GatedProgram) -> bool:
    n, width = program.fit.shape[0], program.X.shape[1] * program.blocks
    squares = isinstance(program.fit, SquaredFit) and program.fit.outliers is None
    affordable = float(n) ** 2 * width <= _MOST_WORK and 8 * n * n <= _MOST_MATRIX
    return squares and program.outputs == 1 and affordable


def interior_point_method(structure: GatedStructure, tol: float) -> GatedMethod:
    """The method for programs that it can take; a step of the loop is one of one program.

    It begins in the middle of the cones, wherever an earlier solve ended.
    """

    def begin(
        program: GatedProgram,
        point: Float64Array,
        dual: Float64Array | None,
        products: Float64Array | None,
    ) -> ProgramSolver:
        return InteriorPoint(program)

    def resume(program: GatedProgram, held: Held) -> ProgramSolver:
        return InteriorPoint(program, held)

    return GatedMethod(structure, tol, begin, resume, "interior point")
