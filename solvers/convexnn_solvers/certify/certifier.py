"""How far a point is from the optimum, proved by a dual bound, whoever found the point.

The primal value is that of a *feasible* point (a repaired copy when the point as held leaves its pattern
cones), the dual value a bound on every feasible point, and both are computed in float64 from the problem
data alone: a solver can offer dual points, but they are verified like anybody else's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from convexnn_solvers.backends import Float64Array
from convexnn_solvers.certify.budget_bounds import verified_bounds
from convexnn_solvers.certify.dual_bounds import Bound
from convexnn_solvers.certify.free_variables import Arrays
from convexnn_solvers.certify.known_images import images_of
from convexnn_solvers.certify.row_sizes import row_sizes, term_sizes
from convexnn_solvers.composite import Alone, Composite, DualPoint, PatternCone, Point
from convexnn_solvers.functions.constraint_cones import NONNEGATIVE, ZERO
from convexnn_solvers.gaps import relative_gap
from convexnn_solvers.reading.output_selection import selected

# A violation up to this, in the units of its row (see :func:`_allowances`), still counts as feasible.
_FEASIBLE = 1e-6
# Rounding in the constraints of a repaired point is not worth a word.
_SILENT = 1e-12
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
    ``scope``: for which gates the bound holds.
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

    def with_bound(self, dual: float, sign: float) -> Certificate:
        """The same point with another bound; ``sign`` is -1 for Maximize."""
        gap = sign * (self.primal - dual) if self.excess <= 1.0 else None
        relative = None if gap is None else relative_gap(sign * self.primal, sign * dual, self.rounding)
        note = self.note.partition("no lower bound")[0].rstrip("; ")
        return replace(self, dual=dual, gap=gap, relative_gap=relative, note=note, dual_point=None)


class _Violation(NamedTuple):
    """Of one constraint: the ``largest`` violation, and the ``worst`` one for what may pass there.

    ``excess`` is that one over what may pass.
    """

    largest: float
    worst: float
    excess: float
    text: str


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
            composite.kept["allowances"] = _allowances(composite)
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
        violations = self._violations(held, outputs)
        violation = max((v.largest for v in violations), default=0.0)
        feasible = self._bounds.norms.repair(held)
        repaired = any(a is not b and bool(np.any(a != b)) for a, b in zip(feasible, held, strict=True))
        if repaired:
            outputs = self._outputs(feasible)
            violations = self._violations(feasible, outputs)
        nothing = _Violation(0.0, 0.0, 0.0, "")
        left = max(violations, key=lambda v: v.excess, default=nothing)
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
        elif excess > 2.0 * _SILENT / _FEASIBLE and bound is not None:
            notes.append(f"up to the violation of {left.text} by {left.worst:.1e}")
        if bound is None:
            notes.append(self._obstacle())
        rounding = self._rounding(feasible, outputs, penalty)
        return self._certificate(primal, bound, violation, excess, rounding, repaired, "; ".join(notes))

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

    def _violations(self, x: Arrays, outputs: Point) -> list[_Violation]:
        """Of each constraint and bound."""
        found: list[_Violation] = []
        composite = self.composite
        slacks = outputs[len(composite.losses) :]
        for term, output, allowed in zip(composite.constraints, slacks, self._allowances, strict=True):
            value = np.asarray(output, dtype=np.float64)
            if term.pattern_cone is not None:
                size = _sizes_of_rays(term.pattern_cone, x[term.pattern_cone.variable])
                outside = term.cone.violations(np.min(value, axis=1, initial=0.0))
                beyond, allowed = np.maximum(outside - _SILENT * size, 0.0), _FEASIBLE * np.minimum(size, 1.0)
            else:
                outside = beyond = term.cone.violations(value)
                if term.cone not in (ZERO, NONNEGATIVE):  # there entries of a cone lend each other their size
                    allowed = allowed + _FEASIBLE * term.cone.even(np.abs(value))
            if outside.size:
                shares, outside = np.broadcast_arrays(beyond / allowed, outside)
                worst = np.unravel_index(int(np.argmax(shares)), shares.shape)
                found.append(
                    _Violation(float(outside.max()), float(outside[worst]), float(shares[worst]), term.text)
                )
        for value, block in zip(x, composite.variables, strict=True):
            for limit, sign in ((block.lower, 1.0), (block.upper, -1.0)):
                if limit is not None:
                    past = float(np.max(sign * (limit - value), initial=0.0))
                    found.append(_Violation(past, past, past / _FEASIBLE, f"the bounds of {block.name}"))
        return found

    def _obstacle(self) -> str:
        return self._bounds.obstacle or (
            "no lower bound: no dual candidate satisfies the condition of a variable without penalty"
        )


def _allowances(composite: Composite) -> list[Float64Array]:
    """Of every row of ``G x + e`` the violation that may pass as rounding: its unit's millionth.

    The unit is 1, or less in a row in small units: the size of e or, if larger, that of G x for x of size
    one. A row such as ``1e-8 x >= 1e-7`` would otherwise hold everywhere. Inequalities in large units, of
    an e beyond 1, may miss more. None for pattern cones, which have no such unit (:func:`_sizes_of_rays`).
    """
    offsets = composite.offsets()[len(composite.losses) :]
    found = []
    for term, slopes, offset in zip(composite.constraints, row_sizes(composite), offsets, strict=True):
        if term.pattern_cone is not None:
            found.append(np.empty(0))
            continue
        e = term.cone.even(np.abs(np.asarray(offset, dtype=np.float64)))
        size = np.maximum(slopes, e)
        unit = np.where(size > 0.0, np.minimum(size, 1.0), 1.0)
        found.append(_FEASIBLE * (unit if term.cone == ZERO else unit + e))
    return found


def _sizes_of_rays(cone: PatternCone, weights: Float64Array) -> Float64Array:
    """Per sample and output the unit of violations of ``(2 D_j - I) X u_j >= 0``: what neurons predict there.

    Multiples of a point in the cone are in it, so that only the point says what is large: for all neurons
    ``a_i = sum_k |x_ik| max_j |u_kj|`` at sample i, and the unit is ``||x_i||`` times the largest
    ``a_i / ||x_i||`` of all samples. A violation is what a recovered neuron predicts at the sample beyond the
    program's. Up to ``1e-12`` units, of the order of what predictions are rounded by, it is none; beyond
    that a millionth of the unit, or of 1 where that is less, may pass.
    """
    largest = np.max(np.abs(weights), axis=1, initial=0.0).reshape(cone.outputs, -1)
    norms = np.linalg.norm(cone.X, axis=1)
    unit = np.where(norms > 0.0, norms, 1.0)
    size = np.max(largest @ np.abs(cone.X / unit[:, None]).T, axis=1, initial=0.0)
    sizes = (size[:, None] * unit).ravel()
    return np.asarray(
        np.maximum(sizes, np.finfo(np.float64).tiny / _FEASIBLE)
    )  # nothing is violated where all is zero
