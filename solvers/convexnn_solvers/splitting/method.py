"""The splitting and proximal Newton steps in turn, as a method of the loop.

The splitting comes near from anywhere but is slow at the end; Newton's method is fast where the active rows,
groups and kinks are nearly right, and may wander before. So they alternate: every phase of the splitting is
twice as long as the one before, and a phase of Newton steps ends when too many of them were hard.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from convexnn_solvers.backends import Float64Array
from convexnn_solvers.certify.cone_columns import ConeColumns
from convexnn_solvers.certify.recession import excludes_every_point, settled
from convexnn_solvers.composite import Composite, DualPoint, Point
from convexnn_solvers.first_order.proximal import ConeProjector, projectable_cones, proximal_map
from convexnn_solvers.first_order.rfista import nonsmooth_losses
from convexnn_solvers.loop.checkpoint import packed_point, whole_point
from convexnn_solvers.loop.iterate import Candidate
from convexnn_solvers.packing import Arrays, Held, below, packed_attributes, part
from convexnn_solvers.reading.affine import UnsupportedProblem
from convexnn_solvers.splitting.dense_rows import dense_rows, flat
from convexnn_solvers.splitting.proximal_newton import ProximalStep, advanced, begun, unpacked_step
from convexnn_solvers.splitting.row_terms import row_terms
from convexnn_solvers.splitting.splitting import Place, Splitting, splitting, unpacked_place
from convexnn_solvers.splitting.weight_jacobians import has_jacobian
from convexnn_solvers.status import Status

# Iterations of the first phase of the splitting, and between two looks at it.
_FIRST, _LOOK = 200, 50
# Hard Newton steps that end their phase: some, and a share of the splitting's iterations so far.
_HARD_STEPS, _HARD_SHARE = 100, 0.1
# So many times as many projections as elsewhere are made, measured in when machine code pays.
_PROJECTED = 30.0
# What penalties are less by, as a share of the tolerance, where dual points cannot be scaled.
_EASED = 0.3
# After so many iterations others may get further.
_LAST = 2**13


@dataclass(frozen=True, eq=False)
class Alternation:
    """One state: the splitting's place, and the Newton phase while there is one.

    ``iteration`` counts the splitting's, ``until`` is where its phase ends, ``looked`` is its gradient at the
    look before. ``newton`` is None outside of such a phase.
    """

    place: Place
    iteration: int = 0
    until: int = _FIRST
    newton: ProximalStep | None = None
    looked: Float64Array | None = None


@dataclass(frozen=True, eq=False)
class SplittingNewtonMethod:
    """The method for :func:`loop.iterate.iterate`."""

    problem: Composite
    parts: Splitting
    warm: DualPoint
    name: str = "splitting with Newton steps"
    judges_itself: bool = True

    def start(self, x: Point) -> Alternation:
        """From a point and the multipliers of an earlier solve, unless zeros are nearer to a fixed point.

        What was left may be of other targets or units, and then takes long to be forgotten.
        """
        given, gradient = flat(x), self.parts.terms.gradient(self.warm)
        warm, cold = (
            self.parts.at(share * given, share * gradient, self.parts.first_rho) for share in (1, 0)
        )
        return Alternation(min(warm, cold, key=self.parts.residual))

    def step(self, state: Alternation) -> Alternation:
        """One iteration of the splitting, or one Newton step."""
        if state.newton is not None:
            return self._newton_step(state, state.newton)
        looked = self.parts.gradient(state.place) if state.iteration % _LOOK == 0 else state.looked
        place = self.parts.moved(state.place, state.iteration + 1)
        new = replace(state, place=place, iteration=state.iteration + 1, looked=looked)
        return new if new.iteration < state.until else replace(new, newton=begun(self.parts, place))

    def _newton_step(self, state: Alternation, newton: ProximalStep) -> Alternation:
        following = advanced(self.parts, newton)
        if following is not None and following.hard <= _HARD_STEPS + _HARD_SHARE * state.iteration:
            return replace(state, newton=following)
        until = 2 * state.iteration
        reached = self.parts.at(newton.place.z, newton.theta, state.place.rho)
        better = following is not None and self.parts.residual(reached) < self.parts.residual(state.place)
        return replace(state, place=reached if better else state.place, newton=None, until=until)

    def residual(self, state: Alternation) -> float:
        """NaN when the last step produced one."""
        place = state.place if state.newton is None else state.newton.place
        return 0.0 if np.isfinite(place.z).all() and np.isfinite(place.y).all() else np.nan

    def wants_look(self, state: Alternation) -> bool:
        """After some iterations of the splitting, and at every proximal point."""
        if state.newton is not None:
            return state.newton.done
        return state.iteration % _LOOK == 0

    def candidate(self, state: Alternation) -> Candidate:
        """The weights, in their cones, with subgradients of the rows' terms, and the multipliers as found."""
        newton = state.newton
        place = state.place if newton is None else newton.place
        gradients = [self.parts.gradient(place)]
        if newton is not None:
            gradients.append(newton.theta)
        duals = tuple(self._dual(self._balanced(place, gradient)) for gradient in gradients)
        finding = Status.INFEASIBLE if self._evidence(state) is not None else None
        if newton is None and state.iteration >= _LAST:
            finding = finding or Status.STALLED
        return Candidate(self._point(place), duals, finding)

    def multipliers(self, state: Alternation) -> tuple[Float64Array, ...]:
        """One array per constraint, in the user's units."""
        gradient = self._evidence(state)
        if gradient is None:
            gradient = self.parts.gradient(state.place)
        given = self._dual(gradient).multipliers
        shapes = [constraint.shape for constraint in self.problem.constraints]
        return tuple(np.zeros(s) if mu is None else mu for mu, s in zip(given, shapes, strict=True))

    def packed(self, state: Alternation) -> Arrays:
        """The state, and the active rows of the cones: the next projections start from them."""
        arrays = below("place", state.place.packed()) | packed_attributes(state, ("iteration", "until"))
        if state.newton is not None:
            arrays |= below("newton", state.newton.packed())
        if state.looked is not None:
            arrays["looked"] = state.looked
        for k, projector in self._projectors().items():
            arrays |= packed_point(f"cone.{k}", projector.packed())
        return arrays

    def unpacked(self, arrays: Held) -> Alternation:
        """The state that was packed."""
        for k, projector in self._projectors().items():
            projector.unpack(*whole_point(f"cone.{k}", arrays))
        place, held = unpacked_place(part("place", arrays)), part("newton", arrays)
        newton = unpacked_step(held) if held else None
        # Jacobians are those of the proximal maps at the place that was made last.
        last = place if newton is None else newton.place
        self.parts.place(last.a, last.g, last.rho)
        counts = int(arrays["iteration"]), int(arrays["until"])
        return Alternation(place, *counts, newton, arrays.get("looked"))

    def _point(self, place: Place) -> tuple[Float64Array, ...]:
        return tuple(np.asarray(a, dtype=np.float64) for a in self.parts.rows.point(place.z))

    def _dual(self, gradient: Float64Array) -> DualPoint:
        return self.parts.terms.dual(gradient, len(self.problem.constraints))

    def _balanced(self, place: Place, gradient: Float64Array) -> Float64Array:
        """With the condition ``c + B^T gradient = 0`` of free variables met exactly.

        By the least change that leaves the terms' subdifferentials to first order: in the range of ``1 - J``.
        """
        free = self.parts.free
        if not free.any():
            return gradient
        bent = self.parts.row_jacobian(place)
        if bent is None:
            return gradient
        own = self.parts.rows.matrix[:, free]
        moves = (1.0 - bent.diagonal)[:, None] * own - bent.columns @ (bent.columns.T @ own)
        missing = self.parts.linear[free] + own.T @ gradient
        return np.asarray(gradient - moves @ np.linalg.lstsq(own.T @ moves, missing, rcond=None)[0])

    def _evidence(self, state: Alternation) -> Float64Array | None:
        """Minus multipliers (m,) of size one that prove that no point satisfies the constraints.

        Tried are the latest change of the multipliers and they themselves, both also without small entries.
        """
        gradient = self.parts.gradient(state.place)
        if state.newton is not None or state.looked is None:
            return None
        x, cones = self._point(state.place), self._cones()
        for held in (gradient - state.looked, gradient):
            given = self._dual(held).multipliers
            for tried in (given, self._settled(given)):
                ray = tuple(
                    None if mu is None else term.cone.nearest_dual(mu)
                    for mu, term in zip(tried, self.problem.constraints, strict=True)
                )
                size = max(
                    (float(np.max(np.abs(mu), initial=0.0)) for mu in ray if mu is not None), default=0.0
                )
                if size > 0.0 and excludes_every_point(self.problem, ray, x, cones):
                    scaled = DualPoint((), tuple(None if mu is None else mu / size for mu in ray))
                    return self.parts.terms.gradient(scaled)
        return None

    def _settled(self, given: tuple[Float64Array | None, ...]) -> tuple[Float64Array | None, ...]:
        found = iter(settled([mu for mu in given if mu is not None]))
        return tuple(None if mu is None else next(found) for mu in given)

    def _cones(self) -> dict[int, ConeColumns]:
        return {k: projector.columns for k, projector in self._projectors().items()}

    def _projectors(self) -> dict[int, ConeProjector]:
        return {k: block.cone for k, block in enumerate(self.parts.prox.blocks) if block.cone is not None}


def splitting_newton_method(
    composite: Composite, tol: float, memory: float | None = None, warm: DualPoint | None = None
) -> SplittingNewtonMethod:
    """The method for a small problem in float64 with NumPy, to a relative gap of ``tol``.

    Raises UnsupportedProblem where a term has no proximal map or no Jacobian of it, or rows are too many.
    """
    projected = projectable_cones(composite)
    positions = tuple(m for m in range(len(composite.constraints)) if m not in projected)
    prox = proximal_map(_eased(composite, tol), projected, _PROJECTED)
    rows = dense_rows(composite, positions, memory)
    parts = splitting(composite, rows, row_terms(composite, rows, positions), prox)
    method = SplittingNewtonMethod(composite, parts, warm or DualPoint(()))
    if not has_jacobian(prox) or parts.row_jacobian(method.start(composite.zeros()).place) is None:
        raise UnsupportedProblem("a proximal map has no Jacobian of few numbers")
    return method


def _eased(composite: Composite, tol: float) -> Composite:
    """With slightly smaller penalties where dual points have to be feasible as they are.

    Where none of their multiples is one, because of a linear term or of a loss whose conjugate is infinite at
    zero, a dual point that satisfies its conditions with equality is out by rounding. That of penalties
    smaller by a share of ``tol`` is inside, and its bound is lower by at most that share of the penalties.
    """
    pairs = zip(composite.losses, composite.offsets(), strict=False)
    pinned = any(np.isinf(term.loss.conjugate(np.zeros(np.shape(b)), term.weight)) for term, b in pairs)
    if not pinned and not any(bool(np.any(c)) for c in composite.linear):
        return composite
    share = 1.0 - _EASED * tol
    eased = tuple(replace(term, weight=share * term.weight) for term in composite.penalties)
    return replace(composite, penalties=eased)


def method_beside(
    exact: Composite, tol: float, memory: float | None, warm: DualPoint
) -> SplittingNewtonMethod | None:
    """For small networks beside constraints or with losses without a gradient, no gated programs; else None.

    Where pattern cones of a smooth loss are all there is, first-order steps on working sets need no rows, and
    budgets of norms, whose cones tie all weights together, have a search or multipliers of their own.
    """
    networks = bool(exact.scope) or any(term.pattern_cone is not None for term in exact.constraints)
    others = any(term.pattern_cone is None for term in exact.constraints) or bool(nonsmooth_losses(exact))
    if not (networks and others) or any(term.budget for term in exact.constraints):
        return None
    try:
        return splitting_newton_method(exact, tol, memory, warm)
    except UnsupportedProblem:
        return None
