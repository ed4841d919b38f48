"""Augmented Lagrangian method: constraints and nonsmooth losses through multipliers, on top of R-FISTA.

Every term ``G(q)`` of an affine ``q = B x + b`` that has no gradient, be it a nonsmooth loss or the indicator
of a constraint's cone, gets a copy ``z = q`` and multipliers ``mu``; minimising over ``z`` leaves its Moreau
envelope (:mod:`envelope`), so that the inner problem

    minimise  smooth losses(x) + penalties(x) + sum of envelopes(B x + b; mu, delta)

is a composite problem once more, for R-FISTA. The multipliers follow the signed residual, ``mu+ = mu - delta
(q - z)``: for ``q >= 0`` this is ``(mu - delta q)_+``. Inner problems are solved only as well as the outer
residual deserves, and delta balances the two. The multipliers of losses are dual candidates as they are:
they lie in the domain of the conjugate. Pattern cones whose projection is exact may stay inside the prox
instead (as bounds do in any augmented Lagrangian code); then their multipliers come from the projection.
Rows are normalised by powers of two, which multipliers undo exactly.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convexnn_solvers.backends import Array, Float64Array
from convexnn_solvers.certify.recession import excludes_every_point, settled
from convexnn_solvers.composite import Composite, DualPoint, LossTerm, Point
from convexnn_solvers.first_order.accelerated import (
    Descent,
    Smooth,
    advance,
    descend_from,
    packed_descent,
    unpacked_descent,
)
from convexnn_solvers.first_order.curvature import (
    curvature_alone,
    largest_curvature,
    loss_hessian,
    positive_scales,
)
from convexnn_solvers.first_order.envelope import Envelope
from convexnn_solvers.first_order.proximal import ConeProjector, ProximalMap, projectable_cones, proximal_map
from convexnn_solvers.first_order.rfista import nonsmooth_losses
from convexnn_solvers.first_order.split_terms import SplitTerm, row_hessian, split_terms
from convexnn_solvers.loop.checkpoint import Arrays, packed_point, whole_point
from convexnn_solvers.loop.iterate import Candidate
from convexnn_solvers.reading.output_selection import selected
from convexnn_solvers.status import Status

Multipliers = tuple[Array, ...]

# At the start delta times the constraints' curvature is this multiple of the losses' curvature.
_BALANCE = 2.0
_OUTWEIGH = 10.0
# An inner problem counts as solved when its residual is this share of the multipliers' change. Larger shares
# end it before momentum has built up, and what the residual leaves of the dual conditions costs bounds.
_INNER = 0.1
_INNER_LOOK = 10
_MAX_INNER = 300
# The constraints' residual should fall by the first factor from update to update; it stagnates by the second.
_PROGRESS = 0.5
_STAGNATION = 0.9
# Slow progress lets delta grow, as long as violations dominate; unsolved inner problems let it shrink.
_DELTA_FACTOR = 2.0


@dataclass(frozen=True, eq=False)
class Outer:
    """One state: R-FISTA's on the inner problem, and what makes that problem.

    ``multipliers`` and ``envelopes`` (the inner problem's extra terms) belong to the normalised rows.
    ``inner`` counts steps since the last update, ``violation`` is the copies' residual at that update,
    ``share`` how well the next inner problem is to be solved. ``evidence`` holds the multipliers (in the
    user's units, one per split term) that prove infeasibility.
    """

    descent: Descent
    smooth: Smooth
    envelopes: tuple[Envelope, ...]
    multipliers: Multipliers
    delta: float
    inner: int = 0
    violation: float = math.inf
    share: float = _INNER
    infeasible: bool = False
    evidence: Multipliers = ()


@dataclass(frozen=True, eq=False)
class AugmentedLagrangianMethod:
    """The method for :func:`loop.iterate.iterate`.

    ``base`` is the problem of the smooth losses; its affine outputs are theirs, then those of ``splits``,
    which have multipliers. The cones at ``projected`` are in ``prox``. ``row_curvature`` is the largest
    eigenvalue of the normalised rows' Gram matrix.
    """

    problem: Composite
    base: Composite
    scales: tuple[float, ...]
    prox: ProximalMap
    splits: tuple[SplitTerm, ...]
    projected: tuple[int, ...]
    loss_curvature: float
    row_curvature: float
    warm: DualPoint
    name: str = "augmented Lagrangian"
    judges_itself: bool = False

    def start(self, x: Point) -> Outer:
        """Multipliers from a warm start or zero; ``delta`` gives losses and constraints equal curvature."""
        backend = self.problem.backend
        multipliers = []
        for split in self.splits:
            warm = self.warm.multipliers if split.constraint else self.warm.thetas
            given = warm[split.position] if split.position < len(warm) else None
            fits = given is not None and np.shape(given) == split.shape
            multipliers.append(backend.asarray(given) / split.rows if fits else backend.zeros(split.shape))
        delta = self._first_delta()
        smooth, envelopes = self._inner_problem(tuple(multipliers), delta)
        descent = descend_from(smooth, x, self._step_length(delta))
        return Outer(descent, smooth, envelopes, tuple(multipliers), delta)

    def step(self, state: Outer) -> Outer:
        """One step of R-FISTA on the inner problem, and an update of the multipliers when that is solved."""
        descent = advance(state.smooth, self.prox, state.descent)
        moved = replace(state, descent=descent, inner=state.inner + 1)
        if not self.splits or moved.inner % _INNER_LOOK != 0:
            return moved
        updated = self._updated(moved)
        change = self._distance(updated, state.multipliers)
        solved = descent.residual <= moved.share * change
        if solved or moved.inner >= _MAX_INNER:
            return self._outer_step(moved, updated, change, solved)
        return moved

    def residual(self, state: Outer) -> float:
        """NaN when the last step produced one."""
        return 0.0 if math.isinf(state.descent.residual) else state.descent.residual

    def wants_look(self, state: Outer) -> bool:
        """When there is evidence that nothing satisfies the constraints."""
        return state.infeasible

    def candidate(self, state: Outer) -> Candidate:
        """The iterate, with the losses' gradients and the updated multipliers as a dual candidate."""
        backend = self.problem.backend
        finding = Status.INFEASIBLE if state.infeasible else None
        return Candidate(tuple(backend.to_numpy(a) for a in state.descent.x), (self._dual(state),), finding)

    def multipliers(self, state: Outer) -> tuple[Float64Array, ...]:
        """One array per constraint, in the user's units."""
        given = self._dual(state).multipliers
        if state.evidence:
            to_numpy, pairs = self.problem.backend.to_numpy, zip(self.splits, state.evidence, strict=True)
            proof = {split.position: to_numpy(mu) for split, mu in pairs if split.constraint}
            given = tuple(proof.get(m) for m in range(len(self.problem.constraints)))
        shapes = [constraint.shape for constraint in self.problem.constraints]
        return tuple(np.zeros(s) if mu is None else mu for mu, s in zip(given, shapes, strict=True))

    def packed(self, state: Outer) -> Arrays:
        """The state, and the active rows of the cones: the next proximal step starts from them."""
        arrays = packed_descent(state.descent, self.problem.backend)
        arrays |= packed_point("multipliers", state.multipliers, self.problem.backend.to_numpy)
        scalars = [state.delta, state.inner, state.violation, state.share, state.infeasible]
        arrays["outer"] = np.asarray(scalars, dtype=np.float64)
        for k, projector in self._projectors().items():
            arrays |= packed_point(f"cone.{k}", projector.packed())
        return arrays

    def unpacked(self, arrays: Mapping[str, NDArray[Any]]) -> Outer:
        """The state that was packed."""
        backend = self.problem.backend
        multipliers = tuple(backend.asarray(a) for a in whole_point("multipliers", arrays))
        delta, inner, violation, share, infeasible = (float(value) for value in arrays["outer"])
        for k, projector in self._projectors().items():
            projector.unpack(*whole_point(f"cone.{k}", arrays))
        smooth, squares = self._inner_problem(multipliers, delta)
        descent = unpacked_descent(arrays, backend)
        return Outer(
            descent, smooth, squares, multipliers, delta, int(inner), violation, share, bool(infeasible)
        )

    def _projectors(self) -> dict[int, ConeProjector]:
        return {k: block.cone for k, block in enumerate(self.prox.blocks) if block.cone is not None}

    def _first_delta(self) -> float:
        """Envelopes as curved as the smooth losses; without those, sized to the multipliers to expect."""
        if self.row_curvature == 0.0:
            return 1.0
        if self.loss_curvature > 0.0:
            return _BALANCE * self.loss_curvature / self.row_curvature
        backend, count = self.problem.backend, len(self.base.losses)
        offsets = self.base.affine.forward(self.base.zeros())[count:]
        size = slope = 0.0
        for split, e in zip(self.splits, offsets, strict=True):
            size += float(backend.xp.sum((split.rows * e) ** 2))
            if not split.constraint:
                loss = self.problem.losses[split.position].loss
                slopes = loss.gradient(e, split.weight, backend.xp) / split.rows
                slope += float(backend.xp.sum(slopes**2))
        size = math.sqrt(size)
        if slope > 0.0 and size > 0.0:
            return math.sqrt(slope) / size
        weights = [float(backend.xp.max(term.weight)) for term in self.problem.penalties]
        largest = max(weights, default=0.0) or 1.0
        return _OUTWEIGH * largest / (math.sqrt(self.row_curvature) * (size or 1.0))

    def _outer_step(self, state: Outer, updated: Multipliers, change: float, solved: bool) -> Outer:
        """New multipliers; ``delta`` and the inner accuracy follow from what the last inner problem did."""
        violation, delta, share = change / state.delta, state.delta, _INNER
        evidence: Multipliers = ()
        slow = solved and violation > _PROGRESS * state.violation
        if violation > _STAGNATION * state.violation:
            evidence = self._excluded(state, updated)
            share = state.share / _DELTA_FACTOR if solved else _INNER
        if not solved:
            delta /= _DELTA_FACTOR
        elif slow and self._violation_dominates(state, updated, violation):
            delta *= _DELTA_FACTOR
        smooth, envelopes = self._inner_problem(updated, delta)
        step = state.descent.step * self._step_length(delta) / self._step_length(state.delta)
        x, outputs = state.descent.x, state.descent.outputs
        descent = Descent(x, outputs, x, outputs, 1.0, step, step, math.inf)
        infeasible = bool(evidence)
        return Outer(descent, smooth, envelopes, updated, delta, 0, violation, share, infeasible, evidence)

    def _violation_dominates(self, state: Outer, updated: Multipliers, violation: float) -> bool:
        """Whether violations cost the duality gap more than the inner solution's residual does."""
        multipliers = math.sqrt(sum(float(self.problem.backend.xp.sum(mu * mu)) for mu in updated))
        size = math.sqrt(state.smooth.norm_squared(state.descent.x))
        return violation * multipliers >= state.descent.residual * size

    def _excluded(self, state: Outer, updated: Multipliers) -> Multipliers:
        """Multipliers of size one that prove that no point satisfies the constraints, or nothing.

        Tried are the multipliers and their last change, both also without their smallest entries.
        """
        backend, rays = self.problem.backend, list[list[Array | None]]()
        changes = tuple(new - old for new, old in zip(updated, state.multipliers, strict=True))
        # Losses are finite everywhere and exclude nothing.
        kept = [self.problem.constraints[s.position].cone if s.constraint else None for s in self.splits]
        for held in (changes, updated):
            given = [backend.to_numpy(s.rows * mu) for s, mu in zip(self.splits, held, strict=True)]
            for tried in (given, settled(given)):
                pairs = zip(kept, tried, strict=True)
                rays.append([None if c is None else backend.asarray(c.nearest_dual(mu)) for c, mu in pairs])
        cones = {k: block.cone.columns for k, block in enumerate(self.prox.blocks) if block.cone is not None}
        for ray in rays:
            sizes = [float(backend.xp.max(backend.xp.abs(mu))) for mu in ray if mu is not None]
            size = max(sizes, default=0.0)
            if size > 0.0 and excludes_every_point(self.base, ray, state.descent.x, cones):
                return tuple(0.0 * r if mu is None else mu / size for mu, r in zip(ray, updated, strict=True))
        return ()

    def _updated(self, state: Outer) -> Multipliers:
        """The signed-residual update."""
        backend, count = self.problem.backend, len(self.base.losses)
        weight = backend.asarray(np.asarray(state.delta))
        pairs = zip(state.envelopes, state.descent.outputs[count:], strict=True)
        return tuple(envelope.updated(q, weight, backend.xp) for envelope, q in pairs)

    def _distance(self, a: Multipliers, b: Multipliers) -> float:
        xp = self.problem.backend.xp
        return math.sqrt(sum(float(xp.sum((u - v) ** 2)) for u, v in zip(a, b, strict=True)))

    def _inner_problem(self, multipliers: Multipliers, delta: float) -> tuple[Smooth, tuple[Envelope, ...]]:
        weight = self.problem.backend.asarray(np.asarray(delta))
        envelopes = tuple(
            Envelope(split.term, split.weight, mu, split.rows)
            for split, mu in zip(self.splits, multipliers, strict=True)
        )
        terms = (LossTerm(e, weight, split.text) for e, split in zip(envelopes, self.splits, strict=True))
        composite = replace(self.base, losses=(*self.base.losses, *terms))
        return Smooth(composite, self.scales), envelopes

    def _step_length(self, delta: float) -> float:
        curvature = self.loss_curvature + (delta * self.row_curvature if self.splits else 0.0)
        return 1.0 / curvature if curvature > 0.0 else 1.0

    def _dual(self, state: Outer) -> DualPoint:
        """Gradients of smooth losses and the updated multipliers of all else, in the user's units."""
        backend, descent = self.problem.backend, state.descent
        gradients = iter(self.base.loss_gradients(descent.outputs))
        found: dict[int, Float64Array] = {}
        split_thetas: dict[int, Float64Array] = {}
        for split, mu in zip(self.splits, self._updated(state), strict=True):
            values = backend.to_numpy(split.rows * mu)
            (found if split.constraint else split_thetas)[split.position] = values
        thetas = tuple(
            split_thetas[k] if k in split_thetas else backend.to_numpy(-next(gradients))
            for k in range(len(self.problem.losses))
        )
        for position in self.projected:
            cone = self.problem.constraints[position].pattern_cone
            assert cone is not None
            projector = self.prox.blocks[cone.variable].cone
            assert projector is not None
            found[position] = projector.multipliers(descent.last_step / self.scales[cone.variable])
        return DualPoint(thetas, tuple(found.get(m) for m in range(len(self.problem.constraints))))


def augmented_lagrangian_method(
    composite: Composite, project_cones: bool = True, warm: Sequence[Float64Array | None] | DualPoint = ()
) -> AugmentedLagrangianMethod:
    """The method for a problem with constraints and nonsmooth losses.

    ``warm`` holds the constraints' multipliers, or a whole dual point, in the user's units.
    ``project_cones`` keeps exactly projectable pattern cones in the prox. Raises UnsupportedProblem where
    penalties and bounds have no proximal map.
    """
    projected = projectable_cones(composite) if project_cones else ()
    positions = tuple(m for m in range(len(composite.constraints)) if m not in projected)
    count, sharp = len(composite.losses), nonsmooth_losses(composite)
    gentle = tuple(k for k in range(count) if k not in sharp)
    outputs = (*gentle, *sharp, *(count + m for m in positions))
    base = replace(
        composite,
        affine=selected(composite.affine, outputs, count + len(composite.constraints)),
        losses=tuple(composite.losses[k] for k in gentle),
        constraints=(),
    )
    splits = split_terms(composite, base, sharp, positions)
    losses, squares = loss_hessian(base), row_hessian(len(gentle), splits)
    alone, constrained = curvature_alone(base, losses), [0.0] * len(base.variables)
    if splits:
        constrained = curvature_alone(base, squares)
        share = (max(alone, default=0.0) or 1.0) / (max(constrained, default=0.0) or 1.0)
        alone = [a + share * g for a, g in zip(alone, constrained, strict=True)]
    scales = positive_scales(alone)
    every = range(len(scales))
    return AugmentedLagrangianMethod(
        problem=composite,
        base=base,
        scales=scales,
        prox=proximal_map(composite, projected),
        splits=splits,
        projected=projected,
        loss_curvature=largest_curvature(base, losses, scales, every),
        row_curvature=largest_curvature(base, squares, scales, every) if splits else 0.0,
        warm=warm if isinstance(warm, DualPoint) else DualPoint((), tuple(warm)),
    )
