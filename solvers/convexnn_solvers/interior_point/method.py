"""The interior-point method as a method of the common loop, and what it takes."""

from __future__ import annotations

from convexnn_solvers.gated_programs.fits import SquaredFit
from convexnn_solvers.gated_programs.method import GatedMethod, ProgramSolver
from convexnn_solvers.gated_programs.program import GatedProgram
from convexnn_solvers.gated_programs.structure import GatedStructure
from convexnn_solvers.interior_point.iteration import InteriorPoint
from convexnn_solvers.packing import Held

# Floating-point operations of one step, and bytes of the matrix of the samples, that are still worth it.
_MOST_WORK, _MOST_MATRIX = 1e11, 2**30
# From so many operations for the blocks' factors on, with at most so many samples for each feature, Newton's
# method was measured to be up to 25 times as fast: it sees few faces where features explain all targets.
_DEAR, _WIDE = 5e7, 2


def can_take(structure: GatedStructure) -> bool:
    """Whether all programs have squares, one output each, and steps of a bearable price.

    Of other losses the conjugates' gradients grow without bound towards small weights, and steps are short.
    """
    return all(_can_take(program) for program in structure.programs)


def _can_take(program: GatedProgram) -> bool:
    n, width = program.fit.shape[0], program.X.shape[1] * program.blocks
    squares = isinstance(program.fit, SquaredFit) and program.fit.outliers is None
    work = max(float(n) ** 2 * width, _work_of_blocks(program))
    return squares and program.outputs == 1 and work <= _MOST_WORK and 8 * n * n <= _MOST_MATRIX


def _work_of_blocks(program: GatedProgram) -> float:
    """Operations of a step for a factor per block, and its inverse."""
    d, rows = program.X.shape[1], len(program.cone_features) if program.cones else 0
    return float(2 * (rows + 2 * d) * d**2 * program.blocks)


def dear_and_wide(program: GatedProgram) -> bool:
    """Whether Newton's method is faster, unless weights are so small that it does not end."""
    n, d = program.X.shape
    return n <= _WIDE * d and _work_of_blocks(program) > _DEAR


def interior_point_method(structure: GatedStructure, tol: float) -> GatedMethod:
    """The method for programs that it can take; a step of the loop is one of one program.

    It begins in the middle of the cones, wherever an earlier solve ended.
    """

    def begin(program: GatedProgram, *_: object) -> ProgramSolver:
        return InteriorPoint(program)

    def resume(program: GatedProgram, held: Held) -> ProgramSolver:
        return InteriorPoint(program, held)

    return GatedMethod(structure, tol, begin, resume, "interior point")
