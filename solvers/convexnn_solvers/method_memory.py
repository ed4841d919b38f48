"""What every method keeps besides the data, so that an impossible problem is refused before it starts."""

from __future__ import annotations

import math

from convexnn_solvers.affine import TapeMap, UnsupportedProblem
from convexnn_solvers.backends import Backend
from convexnn_solvers.composite import Composite
from convexnn_solvers.gated_structure import GatedStructure
from convexnn_solvers.memory_budget import budget, itemsize, readable

# Counted in the least that was measured: who is refused could not have been solved. Arrays of the size of the
# weights and of the affine outputs that an accelerated step has at a time; those of multipliers; those that a
# certificate has, in float64 on the host; those of cones that are projected on instead.
_STEPS, _MULTIPLIERS, _JUDGED, _PROJECTED = 6, 6, 4, 3
# The same for solvers of gated programs, which judge themselves.
_NEWTON_POINTS, _DESCENT_POINTS = 10, 6
# Gates of a first working set of Newton's method, and of block descent.
_WORKING, _SWEPT = 100, 10


def check_first_order(name: str, composite: Composite, memory: float | None) -> None:
    """Refuse a problem whose weights, predictions and multipliers do not fit into ``memory``."""
    item = itemsize(composite.backend)
    weights = sum(math.prod(block.shape) for block in composite.variables)
    affine = composite.affine
    shapes = affine.program.output_shapes if isinstance(affine, TapeMap) else ()
    losses = sum(math.prod(shape) for shape in shapes[: len(composite.losses)])
    on_cpu = str(composite.backend.device) == "cpu"
    rows = sum(
        (_PROJECTED if on_cpu and term.pattern_cone is not None else _STEPS + _MULTIPLIERS)
        * math.prod(term.shape)
        for term in composite.constraints
    )
    needed = {
        "the weights": (_STEPS * item + 8 * _JUDGED) * weights,
        "predictions": (_STEPS * item + 8 * _JUDGED) * losses,
        "constraints": item * rows,
    }
    _refuse(name, needed, memory, composite.backend, "use dtype='float32', fewer gates or samples")


def check_newton(structure: GatedStructure, memory: float | None) -> None:
    """Refuse a gated program whose features and weights do not fit into ``memory``."""
    n = structure.mirror.shape[0]
    needed = _gated_needs(structure, _NEWTON_POINTS)
    needed["the slopes of a working set"] = 8 * n * min(structure.programs[0].gates, _WORKING)
    _refuse("SemismoothNewton", needed, memory, structure.composite.backend, "use RFISTA()")


def check_descent(structure: GatedStructure, memory: float | None) -> None:
    """The same for block descent, whose gates have a basis each."""
    program = structure.programs[0]
    needed = _gated_needs(structure, _DESCENT_POINTS)
    needed["the bases of a working set"] = 8 * program.X.shape[1] ** 2 * min(program.gates, _SWEPT)
    _refuse("BlockDescent", needed, memory, structure.composite.backend, "use RFISTA()")


def _gated_needs(structure: GatedStructure, points: int) -> dict[str, int]:
    program = structure.programs[0]
    features = program.X.size + (0 if program.stored is None else program.stored.size)
    weights = math.prod(program.point_shape) * len(structure.programs)
    return {"a copy of the features": 8 * features, "the weights": 8 * points * weights}


def _refuse(name: str, needed: dict[str, int], memory: float | None, backend: Backend, remedy: str) -> None:
    allowed, total = budget(memory, backend), sum(needed.values())
    if total > allowed:
        largest = max(needed, key=lambda part: needed[part])
        most = f"{readable(needed[largest])} of it for {largest}"
        raise UnsupportedProblem(
            f"{name} would need at least {readable(total)} on {backend.device} ({most}), and may use "
            f"{readable(allowed)}; raise memory= or {remedy} instead."
        )
