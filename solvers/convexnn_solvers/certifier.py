"""How far a point is from the optimum, proved by a dual bound, whoever found the point.

The primal value is that of a *feasible* point (a repaired copy when the point as held leaves its pattern
cones), the dual value a bound on every feasible point, and both are computed in float64 from the problem
data alone: a solver can offer dual points, but they are verified like anybody else's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from convexnn_solvers.composite import Composite, DualPoint, Point
from convexnn_solvers.constraint_cones import ZERO
from convexnn_solvers.dual_bounds import Bound, DualBounds
from convexnn_solvers.free_variables import Arrays

# A violation up to this, relative to 1 + the size of the constraint, still counts as feasible; instead of 1
# the size of the constraint's data counts where that is smaller, found by so many random points.
_FEASIBLE = 1e-6
_PROBES = 4
# Rounding in the constraints of a repaired point is not worth a word.
_SILENT = 1e-12


@dataclass(frozen=True)
class Certificate:
    """What is proved about a point; all values are in the user's units and for the user's direction.

    ``primal``: the objective of a feasible point, ``dual``: the bound that no feasible point can pass
    (from below for Minimize, from above for Maximize), ``gap = |primal - dual|``, and
    ``relative_gap = gap / max(|primal|, |dual|, tiny)``; the last three are None when nothing is proved,
    and ``note`` says why. ``max_violation``: the largest violation of a constraint by the point as held;
    ``repaired``: whether ``primal`` belongs to a repaired copy. ``scope``: for which gates the bound holds.
    """

    primal: float
    dual: float | None
    gap: float | None
    relative_gap: float | None
    max_violation: float
    scope: str
    repaired: bool = False
    note: str = ""
    dual_point: DualPoint | None = None

    def __str__(self) -> str:
        parts = [f"objective {self.primal:.9g}"]
        if self.dual is not None:
            parts.append(f"bound {self.dual:.9g}")
        if self.gap is not None:
            parts.append(f"gap {self.gap:.2e} (relative {self.relative_gap:.2e})")
        parts.append(f"max violation {self.max_violation:.1e}")
        if self.scope:
            parts.append(self.scope if self.scope.startswith("for ") else f"for {self.scope}")
        if self.note:
            parts.append(self.note)
        return ", ".join(parts)


class Certifier:
    """Certificates for one problem at many points (solvers call it as they go).

    ``composite`` must be on the float64 NumPy backend. Nothing is written to the points given.
    """

    def __init__(self, composite: Composite) -> None:
        if composite.backend.name != "numpy" or composite.backend.dtype != np.float64:
            raise ValueError("a Certifier needs a composite on the NumPy backend in float64.")
        self.composite = composite
        self._bounds = DualBounds(composite)
        self._units = _units(composite)

    def repair(self, x: Point) -> Arrays:
        """``x`` with every pattern-cone block projected on its cone and bounded variables clipped."""
        return self._bounds.norms.repair(self._checked(x))

    def certify(self, x: Point, candidates: Sequence[DualPoint] = (), thorough: bool = True) -> Certificate:
        """The certificate of a point (one array per variable), with the best of the dual candidates.

        Besides the candidates, the scaled residual of the point itself is tried, with and without the
        candidates' multipliers; a candidate without thetas only offers its multipliers. Candidates with
        wrong shapes or NaN are ignored, and the note says so. Unless ``thorough``, the residual is tried only
        when no candidate gives a bound.
        """
        held = self._checked(x)
        outputs = self.composite.affine.forward(held)
        violation = max((v for v, _, _ in self._violations(held, outputs)), default=0.0)
        feasible = self._bounds.norms.repair(held)
        repaired = any(a is not b and bool(np.any(a != b)) for a, b in zip(feasible, held, strict=True))
        if repaired:
            outputs = self.composite.affine.forward(feasible)
        left, allowed, text = max(
            self._violations(feasible, outputs), key=lambda v: v[0] / v[1], default=(0.0, _FEASIBLE, "")
        )
        primal = self._objective(feasible, outputs)
        directions, ignored = self._directions(outputs, candidates)
        notes = [f"{ignored} dual candidates were ignored: wrong shape or not finite"] if ignored else []
        bound = self._bounds.best(directions, thorough)
        if left > allowed:
            notes.append(f"no upper bound: the point violates {text} by {left:.1e}")
        elif left > 2.0 * _SILENT * (allowed / _FEASIBLE) and bound is not None:
            notes.append(f"up to the violation of {text} by {left:.1e}")
        if bound is None:
            notes.append(self._obstacle())
        proved = bound is not None and left <= allowed
        return self._certificate(primal, bound, proved, violation, repaired, "; ".join(notes))

    def objective(self, x: Point) -> float:
        """The objective at ``x`` as it is, in the user's sign."""
        held = self._checked(x)
        return self.composite.sign * self._objective(held, self.composite.affine.forward(held))

    def _certificate(
        self, primal: float, bound: Bound | None, proved: bool, violation: float, repaired: bool, note: str
    ) -> Certificate:
        sign = self.composite.sign
        gap = primal - bound.value if bound is not None and proved else None
        dual = None if bound is None else sign * bound.value
        return Certificate(
            primal=sign * primal,
            dual=dual,
            gap=gap,
            relative_gap=None if gap is None or dual is None else _relative(gap, primal, dual),
            max_violation=violation,
            scope=self.composite.scope,
            repaired=repaired,
            note=note,
            dual_point=None if bound is None else bound.point,
        )

    def _objective(self, x: Arrays, outputs: Point) -> float:
        composite = self.composite
        return float(composite.smooth_value(x, outputs) + composite.penalty_value(x)) + composite.constant

    def _checked(self, x: Point) -> Arrays:
        blocks = self.composite.variables
        if len(x) != len(blocks):
            raise ValueError(f"the point must hold {len(blocks)} arrays, one per variable, not {len(x)}.")
        arrays = tuple(np.asarray(value, dtype=np.float64) for value in x)
        for array, block in zip(arrays, blocks, strict=True):
            if array.shape != block.shape:
                raise ValueError(f"variable {block.name} has shape {block.shape}, not {array.shape}.")
            if not np.isfinite(array).all():
                raise ValueError(f"variable {block.name} holds NaN or infinite entries; solve again first.")
        return arrays

    def _directions(self, outputs: Point, candidates: Sequence[DualPoint]) -> tuple[list[DualPoint], int]:
        """Dual directions to try, the residual first, and how many candidates were unusable."""
        directions = [self._bounds.residual(outputs)]
        ignored = 0
        for candidate in candidates:
            bare = not candidate.thetas
            thetas = directions[0].thetas if bare else candidate.thetas
            usable = self._bounds.sanitised(DualPoint(thetas, candidate.multipliers))
            if usable is None:
                ignored += 1
                continue
            if not bare:
                directions.append(usable)
            if any(usable.multipliers[m] is not None for m in self._bounds.general):
                directions.append(self._bounds.residual(outputs, usable.multipliers))
            elif bare:  # multipliers of pattern cones only: they make the same bound faster
                directions[0] = DualPoint(directions[0].thetas, usable.multipliers)
        return directions, ignored

    def _violations(self, x: Arrays, outputs: Point) -> list[tuple[float, float, str]]:
        """Of each constraint and bound the violation, what may pass as rounding there, and its name."""
        found: list[tuple[float, float, str]] = []
        composite = self.composite
        slacks = outputs[len(composite.losses) :]
        for term, output, unit in zip(composite.constraints, slacks, self._units, strict=True):
            value = np.asarray(output, dtype=np.float64)
            scale = 0.0 if term.cone == ZERO else float(np.max(np.abs(value), initial=0.0))
            found.append((abs(term.cone.violation(value)), _FEASIBLE * (unit + scale), term.text))
        for value, block in zip(x, composite.variables, strict=True):
            for limit, sign in ((block.lower, 1.0), (block.upper, -1.0)):
                if limit is not None:
                    outside = float(np.max(sign * (limit - value), initial=0.0))
                    found.append((outside, _FEASIBLE, f"the bounds of {block.name}"))
        return found

    def _obstacle(self) -> str:
        return self._bounds.obstacle or (
            "no lower bound: no dual candidate satisfies the condition of a variable without penalty"
        )


def _units(composite: Composite) -> list[float]:
    """Per constraint ``G x + e`` the size of e, or of G x for random signs x if larger; at most 1.

    A constraint in small units, such as ``1e-8 x >= 1e-7``, would otherwise hold everywhere.
    """
    count, rng = len(composite.losses), np.random.default_rng(0)
    offsets = composite.affine.forward(composite.zeros())[count:]
    sizes = [float(np.max(np.abs(e), initial=0.0)) for e in offsets]
    for _ in range(_PROBES if sizes else 0):
        signs = tuple(rng.choice([-1.0, 1.0], block.shape) for block in composite.variables)
        slopes = composite.affine.linear(signs)[count:]
        sizes = [max(a, float(np.max(np.abs(q), initial=0.0))) for a, q in zip(sizes, slopes, strict=True)]
    return [min(size, 1.0) if size > 0.0 else 1.0 for size in sizes]


def _relative(gap: float, primal: float, dual: float) -> float:
    """``gap / max(|primal|, |dual|, tiny)``."""
    return gap / max(abs(primal), abs(dual), float(np.finfo(np.float64).tiny))
