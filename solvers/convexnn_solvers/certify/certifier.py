"""How far a point is from the optimum, proved by a dual bound, whoever found the point.

The primal value is that of a *feasible* point (a repaired copy when the point as held leaves its pattern
cones), the dual value a bound on every feasible point, and both are computed in float64 from the problem
data alone: a solver can offer dual points, but they are verified like anybody else's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from convexnn_solvers.backends import Float64Array
from convexnn_solvers.certify.budget_bounds import verified_bounds
from convexnn_solvers.certify.dual_bounds import Bound
from convexnn_solvers.certify.free_variables import Arrays
from convexnn_solvers.certify.known_images import images_of
from convexnn_solvers.certify.row_sizes import term_sizes
from convexnn_solvers.certify.violations import (
    FEASIBLE,
    SILENT,
    Violation,
    allowances,
    price_of_violations,
    violations,
)
from convexnn_solvers.composite import Alone, Composite, DualPoint, Point
from convexnn_solvers.gaps import relative_gap, relative_price
from convexnn_solvers.reading.output_selection import selected

# Targets and what fits them perfectly differ by this share, a few roundings.
_ROUNDED = 16.0 * float(np.finfo(np.float64).eps)


@dataclass(frozen=True)
class Certificate:
    """What is proved about a point; all values are in the user's units and for the user's direction.

    ``primal``: the objective of a feasible point, ``dual``: the bound that no feasible point can pass
    (from below for Minimize, from above for Maximize), ``gap = |primal - dual|``, and
    ``relative_gap = gap / max(|primal|, |dual|)`` (at least 1 where underflow may be all of both, and 0 where
    neither is larger than ``rounding``: the value that the losses of a perfect fit have because its
    predictions and targets are rounded; 0 at points that cost any penalty, or miss any target by more than
    what it is itself rounded by); the last three are None when
    nothing is proved, and ``note`` says why. ``max_violation``: the largest violation of
    a constraint by the point as held; ``repaired``: whether ``primal`` belongs to a repaired copy, whose
    violations, each over what may pass as rounding in its row, are at most ``excess``: feasible up to 1.
    ``scope``: for which gates the bound holds. ``price``: what those violations may have saved, by the
    multipliers that prove the bound: with it, the primal value is above the bound at every point.
    ``dual_point``, as large as the data, is neither printed nor compared.
    """

    primal: float
    dual: float | None
    gap: float | None
    relative_gap: float | None
    max_violation: float
    scope: str
    repaired: bool = False
    note: str = ""
    dual_point: DualPoint | None = field(default=None, repr=False, compare=False)
    excess: float = 0.0
    rounding: float = 0.0
    price: float = 0.0

    def __str__(self) -> str:
        parts = [f"objective {self.primal:.9g}"]
        if self.dual is not None:
            parts.append(f"bound {self.dual:.9g}")
        if self.gap is not None:
            parts.append(f"gap {self.gap:.2e} (relative {self.relative_gap:.2e})")
        worth = f" (worth up to {self.price:.1e})" if self.price > self.rounding else ""
        parts.append(f"max violation {self.max_violation:.1e}{worth}")
        if self.scope:
            parts.append(self.scope if self.scope.startswith("for ") else f"for {self.scope}")
        if self.note:
            parts.append(self.note)
        return ", ".join(parts)

    def within(self, tol: float) -> bool:
        """Whether the relative gap and what violations may have saved are together at most ``tol``.

        Constraints hold up to a tolerance only, in units in which the point itself may be small: the price of
        what it misses is in the units of the objective.
        """
        gap = self.proved_gap
        return gap is not None and gap <= tol

    @property
    def proved_gap(self) -> float | None:
        """How far from optimal the point may be: the relative gap plus the price, in its unit, or None."""
        if self.relative_gap is None or self.dual is None:
            return None
        return abs(self.relative_gap) + relative_price(self.price, self.primal, self.dual, self.rounding)

    def with_bound(self, dual: float, sign: float) -> Certificate:
        """The same point with another bound; ``sign`` is -1 for Maximize."""
        gap = sign * (self.primal - dual) if self.excess <= 1.0 else None
        relative = None if gap is None else relative_gap(sign * self.primal, sign * dual, self.rounding)
        note = self.note.partition("no lower bound")[0].rstrip("; ")
        return replace(self, dual=dual, gap=gap, relative_gap=relative, note=note, dual_point=None)


class Certifier:
    """Certificates for one problem at many points (solvers call it as they go).

    ``composite`` must be on the float64 NumPy backend. Nothing is written to the points given.
    """

    def __init__(self, composite: Composite) -> None:
        if composite.backend.name != "numpy" or composite.backend.dtype != np.float64:
            raise ValueError("a Certifier needs a composite on the NumPy backend in float64.")
        self.composite = composite
        self._bounds = verified_bounds(composite)
        if "allowances" not in composite.kept:
            composite.kept["allowances"] = allowances(composite)
        self._allowances: list[Float64Array] = composite.kept["allowances"]
        # Of the thetas alone: where no multiplier enters the image, and all of it is here.
        alone = not self._bounds.general and isinstance(composite.across, Alone)
        self._images = images_of(composite) if alone else None
        self._added = False

    @property
    def obstacle(self) -> str:
        """Why no dual point can have a bound; empty where one can."""
        return self._bounds.obstacle

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
        outputs = self._outputs(held)
        found = violations(self.composite, held, outputs, self._allowances)
        violation = max((v.largest for v in found), default=0.0)
        feasible = self._bounds.norms.repair(held)
        repaired = any(a is not b and bool(np.any(a != b)) for a, b in zip(feasible, held, strict=True))
        if repaired:
            outputs = self._outputs(feasible)
            found = violations(self.composite, feasible, outputs, self._allowances)
        nothing = Violation(0.0, 0.0, 0.0, "")
        left = max(found, key=lambda v: v.excess, default=nothing)
        penalty = float(self.composite.penalty_value(feasible))
        primal = self._objective(feasible, outputs, penalty)
        directions, ignored = self._directions(outputs, candidates)
        notes = [f"{ignored} dual candidates were ignored: wrong shape or not finite"] if ignored else []
        bound = self._bounds.best(directions, thorough, feasible)
        if bound is not None and self._images is not None:
            self._images.add(bound.point.thetas, bound.image, instead=self._added)
            self._added = True
        excess = left.excess
        if excess > 1.0:
            notes.append(f"no upper bound: the point violates {left.text} by {left.worst:.1e}")
        elif excess > 2.0 * SILENT / FEASIBLE and bound is not None:
            notes.append(f"up to the violation of {left.text} by {left.worst:.1e}")
        if bound is None:
            notes.append(self._obstacle())
        rounding = self._rounding(feasible, outputs, penalty)
        price = 0.0
        if bound is not None and excess > 0.0:
            price = price_of_violations(self.composite, outputs, bound.point.multipliers)
        note = "; ".join(notes)
        return self._certificate(primal, bound, violation, excess, rounding, repaired, note, price)

    def objective(self, x: Point) -> float:
        """The objective at ``x`` as it is, in the user's sign."""
        held = self._checked(x)
        penalty = float(self.composite.penalty_value(held))
        return self.composite.sign * self._objective(held, self._arguments(held), penalty)

    def _rounding(self, x: Arrays, outputs: Point, penalty: float) -> float:
        """The value at which a point has no other than rounding, so that gaps cannot be relative to it.

        Where losses are all that the objective has, how much it moves with targets (the offsets of the affine
        outputs) that differ by rounding; 0 elsewhere, and where an entry costs anything that is off by more
        than its own terms are rounded by: a target of 1e-6 is no rounding of another one of 1e10.
        """
        composite = self.composite
        if composite.constant != 0.0 or penalty != 0.0:
            return 0.0
        if any(np.any(c) for c in composite.linear):
            return 0.0
        here, moved = float(composite.smooth_value(x, outputs)), 0.0
        for side in (_ROUNDED, -_ROUNDED):
            shifted = tuple(q + side * np.abs(b) for q, b in zip(outputs, composite.offsets(), strict=True))
            moved = max(moved, abs(float(composite.smooth_value(x, shifted)) - here))
        if not 0.0 < moved < np.inf or abs(here) > moved:
            return 0.0
        sizes = term_sizes(composite, x)
        off = tuple(np.where(np.abs(q) <= _ROUNDED * s, 0.0, q) for q, s in zip(outputs, sizes, strict=True))
        return moved if float(composite.smooth_value(x, off)) == 0.0 else 0.0

    def _certificate(
        self,
        primal: float,
        bound: Bound | None,
        violation: float,
        excess: float,
        rounding: float,
        repaired: bool,
        note: str,
        price: float,
    ) -> Certificate:
        sign = self.composite.sign
        gap = primal - bound.value if bound is not None and excess <= 1.0 else None
        dual = None if bound is None else sign * bound.value
        relative = None if gap is None or bound is None else relative_gap(primal, bound.value, rounding)
        return Certificate(
            primal=sign * primal,
            dual=dual,
            gap=gap,
            relative_gap=relative,
            max_violation=violation,
            scope=self.composite.scope,
            repaired=repaired,
            note=note,
            dual_point=None if bound is None else bound.point,
            excess=excess,
            rounding=rounding,
            price=price,
        )

    def _objective(self, x: Arrays, outputs: Point, penalty: float) -> float:
        return float(self.composite.smooth_value(x, outputs)) + penalty + self.composite.constant

    def _outputs(self, x: Arrays) -> Point:
        """The affine map at ``x``; the origin's is known where nobody else has a share."""
        return self.composite.offsets() if self._known(x) else self.composite.affine.forward(x)

    def _arguments(self, x: Arrays) -> Point:
        """What the losses read of that: there may be many more outputs in constraints."""
        affine, count = self.composite.affine, len(self.composite.losses)
        if self._known(x) or not self.composite.constraints:
            return self._outputs(x)
        held = self.composite.kept.get("arguments")
        if held is None or held[0] is not affine:
            total = count + len(self.composite.constraints)
            held = self.composite.kept["arguments"] = affine, selected(affine, range(count), total)
        arguments: Point = held[1].forward(x)
        return arguments

    def _known(self, x: Arrays) -> bool:
        return isinstance(self.composite.across, Alone) and not any(a.any() for a in x)

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
            self._bounds.norms.begin_at(candidate.rows)
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

    def _obstacle(self) -> str:
        return self._bounds.obstacle or (
            "no lower bound: no dual candidate satisfies the condition of a variable without penalty"
        )
