"""What every method keeps besides the data, so that an impossible problem is refused before it starts."""

from __future__ import annotations

import math
from collections.abc import Sequence

from convexnn_solvers.backends import Backend
from convexnn_solvers.composite import Composite
from convexnn_solvers.gated_programs.program import GatedProgram
from convexnn_solvers.gated_programs.structure import GatedStructure
from convexnn_solvers.memory_budget import budget, itemsize, readable
from convexnn_solvers.newton.blocks import cone_bytes
from convexnn_solvers.newton.system import SystemLimits
from convexnn_solvers.newton.working_set import gates_at_a_time, splits
from convexnn_solvers.reading.affine import TapeMap, UnsupportedProblem

# Counted in about the least that was measured: who is refused could hardly have been solved. Arrays of the
# size of the weights and of the affine outputs that an accelerated step has at a time; those of multipliers;
# those that a certificate has, in float64 on the host; those of cones that are projected on instead.
_STEPS, _MULTIPLIERS, _JUDGED, _PROJECTED = 6, 6, 4, 5
# The same for solvers of gated programs, which judge themselves.
_NEWTON_POINTS, _DESCENT_POINTS, _INTERIOR_POINTS = 10, 6, 10
# Arrays of the size of all rows of all cones that an interior-point step has at a time.
_SLACKS = 10
# Bytes that are there wherever this runs; asking the system takes longer than some solves from a good start.
_LITTLE = 2**26
# Gates of a first working set of block descent.
_SWEPT = 10


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
    """Refuse a gated program whose features, weights and linear systems do not fit into ``memory``."""
    needed = _gated_needs(structure, _NEWTON_POINTS) | newton_needs(structure.programs)
    _refuse("SemismoothNewton", needed, memory, structure.composite.backend, "use RFISTA()")


def newton_needs(programs: Sequence[GatedProgram]) -> dict[str, int]:
    """Bytes of Newton's method besides the weights: one program at a time has a linear system.

    Active are as many blocks as there are gates at a time: with cones half of them, and of the rows of each
    cone at most a third and at most four fifths of the features, as measured at first steps. Bases of free
    directions are there twice while they are made.
    """
    program = programs[0]
    n, d, c = program.X.shape[0], program.X.shape[1], program.outputs
    gates = gates_at_a_time(program)
    # Those of all gates are one for all outputs, of a working set each has its own.
    sets = 1 if gates == program.gates else len(programs)
    everything = 8 * n * gates * sets if program.stored is None else 0
    own = n if program.stored is None else program.stored.shape[0] * program.stored.shape[1]
    needed = {"the features of a working set": everything + 8 * own * gates}
    free = d
    if program.cones:
        blocks = gates * len(program.signs)
        # Those of all gates are remembered beside those of a working set.
        known = blocks + (program.blocks if gates < program.gates else 0)
        needed["active rows"] = len(programs) * cone_bytes(program, known, blocks)
        free = max(d - int(min(n / 3, 0.8 * d)), 1)
        needed["free directions"] = 8 * c * gates * (2 * d * d + free * (d + 2 * n))
    means = d + gates if c == 1 and not program.cones else n
    needed["linear systems"] = 8 * _factor_entries(n, gates, gates * free, means, program.cones)
    if splits(program, gates):
        needed["linear systems"] += 8 * n * n
    return needed


def check_interior(structure: GatedStructure, memory: float | None) -> None:
    """The same for the interior-point method, which has slacks of all rows of all cones, and their steps."""
    program = structure.programs[0]
    needed = _gated_needs(structure, _INTERIOR_POINTS)
    n, rows = program.fit.shape[0], len(program.cone_features) if program.cones else 0
    needed["slacks"] = 8 * _SLACKS * rows * program.blocks * len(structure.programs)
    # A root and the inverse of a factor per block are there at a time.
    needed["linear systems"] = 8 * 2 * (n * n + program.X.shape[1] ** 2 * program.blocks)
    _refuse("InteriorPoint", needed, memory, structure.composite.backend, "use SemismoothNewton()")


def check_descent(structure: GatedStructure, memory: float | None) -> None:
    """The same for block descent, whose gates have a basis each."""
    program = structure.programs[0]
    needed = _gated_needs(structure, _DESCENT_POINTS)
    n, d = program.X.shape
    needed["the bases of a working set"] = 2 * 8 * d**2 * min(program.gates, _SWEPT)
    needed["the slopes of some gates"] = 8 * n * min(program.gates, program.gates_at_a_time)
    _refuse("BlockDescent", needed, memory, structure.composite.backend, "use RFISTA()")


def _gated_needs(structure: GatedStructure, points: int) -> dict[str, int]:
    program = structure.programs[0]
    features = program.X.size + (0 if program.stored is None else program.stored.size)
    weights = math.prod(program.point_shape) * len(structure.programs)
    return {"a copy of the features": 8 * features, "the weights": 8 * points * weights}


def _refuse(name: str, needed: dict[str, int], memory: float | None, backend: Backend, remedy: str) -> None:
    total = sum(needed.values())
    if memory is None and total <= _LITTLE:
        return
    allowed = budget(memory, backend)
    if total > allowed:
        largest = max(needed, key=lambda part: needed[part])
        most = f"{readable(needed[largest])} of it for {largest}"
        raise UnsupportedProblem(
            f"{name} would need at least {readable(total)} on {backend.device} ({most}), and may use "
            f"{readable(allowed)}; raise memory= or {remedy} instead."
        )


def _factor_entries(n: int, blocks: int, rank: int, means: int, cones: bool) -> int:
    """How many numbers the cheapest factor takes, with the matrices that it is made of.

    ``rank``: of all ``blocks`` together; the columns of blocks in cones are not counted here. ``means``: of
    the mean of the gates, which replaces the exact factors where it is at most half of the samples.
    """
    most = SystemLimits().memory / 8.0
    dense, low = n * (2 * n if cones else 3 * n + blocks), 2 * rank * (n + rank)
    columns = 0 if cones else 2 * n * rank
    work = (n * n * rank if cones else 2.0 * n * n * blocks) + n**3 / 3.0
    low_work = n * float(rank) ** 2 + rank**3 / 3.0
    choices = [(work, dense, dense), (low_work, low, low + columns)]
    if 2 * means <= n:
        own = n * float(means) ** 2 + means**3 / 3.0
        choices.append((own, 2 * means * (n + means), means * (3 * n + 2 * means)))
    fitting = [(operations, taken) for operations, entries, taken in choices if entries <= most]
    return min(fitting)[1] if fitting else 0
