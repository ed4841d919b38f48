"""What ADMM works on: a gated program on a backend, and its matrix."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from convexnn_solvers.admm.gram_factor import GramFactor, gram_factor
from convexnn_solvers.admm.memory_plan import Plan, matrix_bytes
from convexnn_solvers.backends import Array, Backend, Float64Array
from convexnn_solvers.gated_programs.fits import excess
from convexnn_solvers.gated_programs.program import GatedProgram, Indices
from convexnn_solvers.reading.operators import GateArrays

# The name under which a program keeps its matrix.
_KEPT = "gram"


def forget_matrix(program: GatedProgram) -> None:
    """Give back the memory of a matrix that an earlier solve left."""
    program.kept.take(_KEPT)


@dataclass(frozen=True, eq=False)
class AdmmProblem:
    """A gated program without cones on a backend.

    ``program`` holds the data, its own weights aside: ``taus`` (g, B) are those of the groups, g = 1 for
    groups that the outputs share and g = c otherwise. ``features`` is X on the backend. ``keeps``: whether
    the matrix of all gates stays with the program for solves at other regularisations.
    """

    program: GatedProgram
    taus: Float64Array
    backend: Backend
    plan: Plan
    features: Array
    keeps: bool = False

    def restricted(self, gates: Indices) -> AdmmProblem:
        """The problem with only some of the gates."""
        signs = len(self.program.signs)
        chosen = self.taus.reshape(len(self.taus), signs, -1)[:, :, gates]
        taus = chosen.reshape(len(self.taus), -1)
        return replace(self, program=self.program.restricted(gates), taus=taus, keeps=False)

    def load(self) -> GateArrays:
        """Features and patterns on the backend."""
        bits = self.backend.asbits(self.program.patterns)
        masks = self.backend.asarray(bits) if self.plan.masks else None
        return GateArrays(self.backend, self.features, bits, masks, self.plan.block)

    def gram(self, gates: GateArrays) -> GramFactor:
        """The matrix for the loaded gates, that of an earlier solve where it was kept."""
        program = self.program

        if not self.keeps:
            return gram_factor(gates, program.slope, len(program.signs), program.fit.centred)
        kept = program.kept.take(_KEPT)
        if kept is None or kept[0] != self.backend:
            kept = None  # its memory first
            kept = self.backend, gram_factor(gates, program.slope, len(program.signs), program.fit.centred)
        factor: GramFactor = kept[1]
        program.kept.once(
            _KEPT, lambda: (self.backend, factor), matrix_bytes(program.X.shape[0], self.backend)
        )
        return factor

    def norms(self, U: Array, xp: Any = None) -> Array:
        """The norms of the groups of (c, d, m) blocks, (g, m); ``xp``: of an array that is elsewhere."""
        xp = self.backend.xp if xp is None else xp
        axes = (0, 1) if len(self.taus) == 1 else (1,)
        return xp.reshape(xp.sqrt(xp.sum(U * U, axis=axes)), (len(self.taus), -1))

    def best_dual(self, W: Float64Array, largest: float) -> tuple[float, float]:
        """Value and scale of the best feasible point on the ray of ``W``.

        ``largest``: the largest norm of a group of ``A^T W`` over its weight.
        """
        fit = self.program.fit
        largest = max(largest, excess(fit, W))
        wanted = fit.wanted_scale(-W)
        scale = wanted / max(1.0, wanted * largest) if wanted > 0.0 else 0.0
        return -fit.conjugate(-scale * W), scale


@dataclass(frozen=True, eq=False)
class Bounds:
    """What a look found, in float64 from the iteration's own arithmetic: not yet a certificate."""

    primal: float
    dual: float
    dual_point: Float64Array
    offset: Float64Array
