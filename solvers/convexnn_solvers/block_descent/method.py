"""Block coordinate descent with exact updates on a working set of gates, certified over all gates.

Where few gates are active, one sweep over them costs a fraction of one product with the whole map, and
the blocks hardly interact: at large regularisation this needs less work than Newton's method. At small
regularisation it needs thousands of sweeps, and says that it stalled. Sweeps with Anderson extrapolation
after Bertrand and Massias (2021), working sets after Massias, Gramfort and Salmon (2018).
"""

from __future__ import annotations

import numpy as np

from convexnn_solvers.backends import Float64Array
from convexnn_solvers.block_descent.sweeps import BlockSweeps, GateBasis, Sweep, gate_basis, machine_code
from convexnn_solvers.cones.projections import ActiveRows
from convexnn_solvers.gaps import relative_gap
from convexnn_solvers.gated_programs.fits import SquaredFit
from convexnn_solvers.gated_programs.maps import refusal
from convexnn_solvers.gated_programs.method import GatedMethod, ProgramSolver
from convexnn_solvers.gated_programs.program import GatedProgram, Indices, block_norms, next_working_set
from convexnn_solvers.gated_programs.structure import GatedStructure
from convexnn_solvers.newton.duals import best_multiple, bounds_anew
from convexnn_solvers.packing import Arrays, Held, below, packed_attributes, part, restore_attributes

# Gates to begin with; then at least so many times the active ones.
_FIRST, _GROWTH = 10, 1.5
# A round on a working set ends at this share of the gap that the whole program had before it, or after so
# many cycles. So many sweeps without a better gap are a stall.
_SHARE, _MOST_CYCLES, _PATIENCE = 0.3, 50, 3000
# Samples x features x gates from which loading machine code pays.
_COMPILED_FROM = 100_000
# What a checkpoint keeps, besides the sweeps on a working set.
_STATE = (
    "sweeps", "rounds", "primal", "dual", "point", "dual_point", "offset", "working_set",
    "_xi", "_best_gap", "_best_sweep", "_gap_before", "_cycles",
)  # fmt: skip


class BlockDescent:
    """The method on one program; ``primal`` and ``dual`` are the best bounds so far, in its own units.

    ``most_sweeps`` altogether are a stall.
    ``dual_point`` is the feasible W = -xi that goes with ``dual``; ``offset`` goes with ``point`` (c, d, B).
    ``held`` is what :meth:`packed` gave: then everything is taken from there.
    """

    dual_rows: tuple[ActiveRows, ...] = ()

    point: Float64Array
    primal: float
    offset: Float64Array
    _xi: Float64Array

    def __init__(
        self,
        program: GatedProgram,
        start: Float64Array | None = None,
        held: Held | None = None,
        most_sweeps: float = np.inf,
    ) -> None:
        self.program, self._most_sweeps = program, most_sweeps
        self.sweeps = self.rounds = 0
        self.dual, self.dual_point = -np.inf, np.zeros(program.fit.shape)
        self._bases: dict[int, GateBasis] = {}
        self._sweep = compiled_sweep(program)
        self._best_gap, self._best_sweep = np.inf, 0
        self.working_set: Indices = np.zeros(0, dtype=np.intp)
        self._inner: BlockSweeps | None = None
        if held is None:
            self._begin(np.zeros(program.point_shape) if start is None else start.copy())
        else:
            self._restore(held)

    def _begin(self, point: Float64Array) -> None:
        self.point = point
        fitted = self.program.fit.at(self.program.forward(point))
        self.primal = fitted.value + float(self.program.weights @ block_norms(point))
        self.offset, self._xi = fitted.offset, fitted.xi
        self._begin_round()

    def packed(self) -> Arrays:
        """The state as arrays; bases are made anew."""
        arrays = packed_attributes(self, _STATE)
        return arrays if self._inner is None else arrays | below("inner", self._inner.packed())

    def _restore(self, held: Held) -> None:
        restore_attributes(self, _STATE, held)
        inner = part("inner", held)
        if inner:
            self._inner = self._prepared()
            self._inner.restore(inner)

    @property
    def gap(self) -> float:
        """The relative gap over all gates; NaN when something was not finite."""
        return relative_gap(self.primal, self.dual)

    @property
    def stalled(self) -> bool:
        """Whether the gap has not become smaller for a long time, or all sweeps are used up."""
        return self.sweeps - self._best_sweep > _PATIENCE or self.sweeps >= self._most_sweeps

    def step(self, tol: float) -> None:
        """Some sweeps on the working set, and the next set if it is solved; none if gap <= tol."""
        if self.gap <= tol:
            return
        if self._inner is None:
            self._inner = self._prepared()
        goal = max(_SHARE * self._gap_before, 0.5 * tol)
        self.sweeps += self._inner.cycle()
        self._cycles += 1
        self._take_over(self._inner)
        if not self._inner.gap > goal or self._cycles >= _MOST_CYCLES or self.stalled:
            self._begin_round()

    def look_again(self) -> None:
        """Find the best bounds anew, and the next set, whose residuals do not go on from the last one's."""
        found = bounds_anew(self.program, self.point, self.dual_point, None)
        self.primal, self.offset, best = found.primal, found.offset, found.dual
        self.dual, self.dual_point = best.value, best.scale * self.dual_point
        self._best_gap, self._best_sweep = self.gap, self.sweeps
        self._begin_round()

    @property
    def _blocks(self) -> Indices:
        """The blocks of the working set among all blocks."""
        return self.program.blocks_of(self.working_set)

    def _take_over(self, inner: BlockSweeps) -> None:
        """The point of the working set, in the numbering of all gates."""
        self._xi = inner.xi
        if not inner.primal >= self.primal:
            self.primal, self.offset = inner.primal, inner.offset
            self.point = np.zeros(self.program.point_shape)
            self.point[:, :, self._blocks] = inner.point

    def _begin_round(self) -> None:
        """One pass over all gates: the dual bound of the whole program, and the next working set."""
        products = self.program.by_block(self.program.adjoint(self._xi))
        found = best_multiple(self.program, self._xi, products, None)
        if not found.value <= self.dual:
            self.dual, self.dual_point = found.value, -found.scale * self._xi
        slow = not self.gap <= 0.5 * self._best_gap
        if not self.gap >= 0.99 * self._best_gap:
            self._best_gap, self._best_sweep = self.gap, self.sweeps
        self._gap_before, self._cycles = self.gap, 0
        self.rounds += 1
        self.working_set = self._chosen(found.ratios, slow)
        self._inner = None  # made when it is needed: the gap may be small enough

    def _prepared(self) -> BlockSweeps:
        """The iteration on the working set; bases of gates that left it are dropped."""
        kept = self._bases
        self._bases = {
            gate: kept[gate] if gate in kept else gate_basis(self.program, gate)
            for gate in map(int, self.working_set)
        }
        inside = self.program.restricted(self.working_set)
        bases = [self._bases[gate] for gate in map(int, self.working_set)]
        return BlockSweeps(inside, bases, self.point[:, :, self._blocks], self._sweep)

    def _chosen(self, ratios: Float64Array, slow: bool) -> Indices:
        """The gates in use and those of the largest ratios; more of them when the last set gained little."""
        used = self.program.used_gates(self.point)
        size = max(
            _FIRST,
            int(_GROWTH * used.sum()),
            2 * self.working_set.size if slow and self.rounds > 1 else 0,
        )
        return next_working_set(used, ratios.reshape(-1, used.size).max(axis=0), size)


def block_descent_method(structure: GatedStructure, tol: float, most_sweeps: float = np.inf) -> GatedMethod:
    """The method for gated programs of squared and Huber losses without cones; refuses others by name.

    One step of the loop is one cycle of sweeps of one program. Machine code is loaded here.
    """
    for program in structure.programs:
        _check(program)
        compiled_sweep(program)

    def begin(program: GatedProgram, point: Float64Array, *_: object) -> ProgramSolver:
        return BlockDescent(program, point, most_sweeps=most_sweeps)

    def resume(program: GatedProgram, held: Held) -> ProgramSolver:
        return BlockDescent(program, held=held, most_sweeps=most_sweeps)

    return GatedMethod(structure, tol, begin, resume, "block descent")


def compiled_sweep(program: GatedProgram) -> Sweep | None:
    """Machine code where the program is large enough for loading it to pay, and numba installed."""
    return machine_code() if program.X.size * program.gates >= _COMPILED_FROM else None


def _check(program: GatedProgram) -> None:
    """Squared and Huber losses without cones have exact updates."""
    remedy = "SemismoothNewton()"
    if program.stored is not None:
        raise refusal("its predictions are pooled", remedy)
    if program.cones:
        raise refusal("the weights lie in pattern cones", remedy)
    if not isinstance(program.fit, SquaredFit):
        raise refusal("blocks have no exact update for logistic losses and those without a gradient", remedy)
    if program.fit.scales is not None:
        raise refusal("an output bias and weights of the samples go together in no exact update", remedy)
