"""The semismooth Newton augmented Lagrangian method on a gated program, one Newton step at a time.

Outer iteration: ``U <- prox(U - sigma A^T xi)`` with thresholds ``sigma tau``, where ``xi`` minimises

    phi(xi) = F*(xi) + sum_b 1/(2 sigma) (||P(U_b - sigma (A^T xi)_b)|| - sigma tau_b)_+^2

for the conjugate F* of the data fit. Its gradient is ``F*'(xi) - A prox(...)``, and Newton's method finds
its zero with the generalised Jacobian of the proximal map. At every step ``prox(...)`` is a feasible point of
the program and ``-xi``, scaled, one of the dual, so the duality gap is known without extra products.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from convexnn_solvers.backends import Float64Array
from convexnn_solvers.cones.active_sets import ActiveRows
from convexnn_solvers.gaps import relative_gap
from convexnn_solvers.gated_programs.features import BlockFeatures
from convexnn_solvers.gated_programs.fits import balanced, step_length, summed
from convexnn_solvers.gated_programs.program import GatedProgram, Indices, block_norms
from convexnn_solvers.newton.blocks import (
    BlockProx,
    PlainProx,
    envelope_line,
    packed_rows,
    unpacked_blocks,
    unpacked_rows,
)
from convexnn_solvers.newton.cone_splitting import SplittingStart
from convexnn_solvers.newton.copies import residual_copy
from convexnn_solvers.newton.duals import best_multiple, bounds_anew, warm_multiple
from convexnn_solvers.newton.factors import Solve
from convexnn_solvers.newton.operator import NewtonOperator, newton_operator
from convexnn_solvers.newton.pairs import pair_operator, pair_step
from convexnn_solvers.newton.start import (
    NewtonPolicy,
    NewtonStart,
    given_dual,
    given_products,
    kept_cones,
    kept_features,
    kept_systems,
    usual_policy,
)
from convexnn_solvers.packing import Arrays, Held, below, packed_attributes, part, restore_attributes

_EPS = float(np.finfo(np.float64).eps)
# A dual variable to start from whose value is as close to the primal one may be optimal.
_CLOSE = 1e-6
# What a checkpoint keeps as it is.
_STATE = (
    "newton_steps", "primal", "dual", "dual_point", "offset", "sigma", "_U", "_xi", "_products",
    "short_steps", "_inner_steps", "_damping", "_best_gap", "_best_step", "_paired", "_pairs_below",
    "_old_within", "_later_sigma", "_offered",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class _Here:
    """At the proximal point of now: features of the active blocks, prediction (n, c), gradient of phi, and
    ``||V - U||^2`` for the proximal point V."""

    features: BlockFeatures
    prediction: Float64Array
    gradient: Float64Array
    squared_change: float


class DualNewton:
    """The iteration; ``primal`` and ``dual`` are the best bounds so far, in the program's own units.

    ``dual_point`` is the feasible W = -xi that goes with ``dual``, and ``dual_rows`` hold, with cones and for
    each output, multipliers that prove it; ``offset`` goes with ``point``. ``short_steps``: how many steps a
    line search shortened since the start or the latest move, with cones.
    """

    def __init__(
        self, program: GatedProgram, policy: NewtonPolicy | None = None, start: NewtonStart | None = None
    ) -> None:
        first = start or NewtonStart()
        self.program = program
        self.policy = policy or usual_policy(program.fit)
        self.systems = first.systems or kept_systems(program)
        self._fit = program.fit
        self.features = kept_features(program)
        self._signs = np.repeat(np.asarray(program.signs), program.gates)
        self._cones = (first.cones or kept_cones(program)) if program.cones else None
        self._copy = residual_copy(self._fit)
        self.newton_steps = self.short_steps = self._inner_steps = 0
        # Steps on the optimality conditions, and up to which gap over the tolerance those with an old factor.
        self._pairs_possible = program.outputs == 1 and not self._copy.needed
        self._paired, self._pairs_below, self._old_within = False, 1.0, 0.0
        self._later_sigma = self._damping = 0.0
        self._most_curvature = np.zeros(1)
        if program.cones:
            self._most_curvature = len(program.signs) * self.features.squares(np.ones(program.gates))
        self.primal, self.dual = np.inf, -np.inf
        self.dual_point = np.zeros(self._fit.shape)
        self.dual_rows: tuple[ActiveRows, ...] = ()
        self._best_gap, self._best_step = np.inf, 0
        self.prox: BlockProx = PlainProx() if self._cones is None else self._cones
        self._shifted: Float64Array
        # Whether the direction of the dual variable has been offered: with cones that takes projections.
        self._offered = False
        self._seen: _Here | None = None
        self._chosen: tuple[Indices, BlockFeatures] | None = None
        if first.held is None:
            self._begin(first)
        else:
            self._restore(first.held)

    def _begin(self, first: NewtonStart) -> None:
        program = self.program
        self._U = np.zeros(program.point_shape) if first.point is None else first.point.copy()
        active = np.flatnonzero(np.any(self._U != 0.0, axis=(0, 1)))
        if self._cones is not None and active.size:
            self._U[:, :, active] = self._cones.project(self._U[:, :, active], active)[0]
        own = self.features.select(program.block_gates(active))
        prediction = own.forward(self._U[:, :, active] * self._signs[active])
        fitted = self._fit.at(prediction)
        given = given_dual(program, first)
        self._xi = fitted.xi if given is None else given
        primal = self._offer_primal(prediction, active, self._U[:, :, active])
        known = None if given is None else given_products(first, given)
        self._products = self.features.adjoint(self._xi) if known is None else known
        if given is not None:
            scale = warm_multiple(program, self._U, prediction, self._xi, self._offer_dual)
            self._xi, self._products, self._offered = scale * self._xi, scale * self._products, False
            self._paired = active.size > 0
        gap = self._guessed_gap(primal) if self._cones is not None and self._paired else None
        if gap is None:
            self._offer_dual()
            gap = self.gap
        scales = 1.0 if self._fit.scales is None else self._fit.scales
        self._copy.begin(prediction + scales * fitted.offset, self._xi)
        self.sigma = self.policy.first_sigma(given is not None, gap)
        if self._paired and self._pairs_possible and not program.cones:
            self._later_sigma, self.sigma = self.sigma, min(self.sigma, self.policy.pair_sigma)
            self._old_within = np.inf
        self._set_products(self._products)

    def _guessed_gap(self, primal: float) -> float | None:
        """About the gap at a start in cones, where a bound takes projections; None where it is worth them.

        How much ``-xi`` breaks the dual's conditions is of first order, and how far its value is from the
        primal one of second order: the gap of its best multiple was measured to be about the root of that.
        """
        missed = relative_gap(primal, -self._fit.conjugate(self._xi))
        return float(np.sqrt(missed)) if _CLOSE <= missed <= 1.0 else None

    def packed(self) -> Arrays:
        """The state as arrays; a factor is made anew from its operator."""
        arrays = packed_attributes(self, _STATE)
        blocks, values = self._best_blocks
        arrays |= {"best.blocks": blocks, "best.values": values}
        arrays |= below("dual rows", packed_rows(self.dual_rows)) | below("active", self._active.packed())
        arrays |= below("systems", self.systems.packed())
        arrays["copy"] = self._copy.held
        return arrays if self._cones is None else arrays | below("cones", self._cones.packed())

    def _restore(self, held: Held) -> None:
        restore_attributes(self, _STATE, held)
        self._best_blocks = held["best.blocks"], held["best.values"]
        self.dual_rows = unpacked_rows(part("dual rows", held))
        self.systems.restore(part("systems", held))
        self._copy.restore(held["copy"])
        if self._cones is not None:
            self._cones.restore(part("cones", held))
        self._set_shifted()
        self._active = unpacked_blocks(part("active", held))

    @property
    def gap(self) -> float:
        """The relative gap of the best bounds, 1 before there is a lower one; NaN when something was not
        finite."""
        unknown = self.dual == -np.inf and self.primal < np.inf
        return 1.0 if unknown else relative_gap(self.primal, self.dual)

    @property
    def xi(self) -> Float64Array:
        """The current dual variable (n, c), any sign and scale."""
        return self._xi

    @property
    def stalled(self) -> bool:
        """Whether the gap has not become smaller for a long time."""
        return self.newton_steps - self._best_step > self.policy.patience

    @property
    def point(self) -> Float64Array:
        """The best point so far (c, d, B)."""
        return self.program.spread(*self._best_blocks)

    @property
    def _proximal(self) -> Float64Array:
        return self.program.spread(self._active.blocks, self._active.values)

    def step(self, tol: float) -> None:
        """One Newton step, after closing the inner problem if it is solved; none if gap <= tol.

        Where the inner problem is solved, the step may be one on the optimality conditions; see newton_pairs.
        """
        here, solved = self._look(tol)
        ready = (solved or self._paired) and tol < self.gap <= self._pairs_below
        if ready and self._pairs_possible:
            if self._old_pair_step(tol, here) or self._pair_step(here):
                return
            if self._later_sigma > 0.0:
                self.sigma, self._later_sigma = self._later_sigma, 0.0
                self._set_products(self._products)
                here, solved = self._look(tol)
        if solved and not self.gap <= tol:
            self._close_inner()
            here, _ = self._look(tol)
        if not self.gap <= tol:
            self._newton_step(here)

    def look_again(self) -> None:
        """Find the best bounds anew, and go on with products that are: theirs add up over many steps."""
        found = bounds_anew(self.program, self.point, self.dual_point, self._cones)
        self.primal, self.offset, best = found.primal, found.offset, found.dual
        self.dual, self.dual_point, self.dual_rows = best.value, best.scale * self.dual_point, best.rows
        self._set_products(self.features.adjoint(self._xi))
        self._offer_dual()
        self._best_gap, self._best_step = self.gap, self.newton_steps

    @property
    def split(self) -> SplittingStart:
        """The proximal point and what is left of its argument."""
        return SplittingStart(self._proximal, self._shifted - self._proximal, 1.0 / self.sigma, self._xi)

    def move(
        self,
        U: Float64Array,
        xi: Float64Array,
        products: Float64Array,
        sigma: float,
        prediction: Float64Array,
    ) -> None:
        """Offer these, and go on from there with a pair step; ``products`` are ``A^T xi``, and losses without
        a gradient want the ``prediction`` (n, c), with its offset."""
        self._U, self._xi, self.sigma, self._offered = U, xi, sigma, False
        self._inner_steps, self._damping, self.short_steps = 0, 0.0, 0
        self._paired, self._pairs_below = True, 1.0
        self._copy.begin(prediction, xi)
        self._set_products(products)
        self._look(np.inf)

    def _look(self, tol: float) -> tuple[_Here, bool]:
        """What is known at the proximal point, and whether the inner problem is solved.

        On the way the proximal point, and where it may help the dual point, are offered as the best so far.
        """
        here = self._here()
        solved = self._inner_solved(here)
        self._offer_primal(here.prediction, self._active.blocks, self._active.values)
        # Without cones that costs little; with them, where the gap could be that small were -xi feasible.
        least = self.primal + self._fit.conjugate(self._xi)
        close = solved or self._cones is None or least <= 3.0 * tol * abs(self.primal)
        if close and not self._offered:
            self._offer_dual()
        return here, solved

    def _here(self) -> _Here:
        """What is known at the proximal point, found out once: who takes a step has looked where it leads."""
        if self._seen is None:
            active, fit = self._active, self._fit
            values = active.values
            # Many steps leave the active blocks what they were.
            if self._chosen is None or not np.array_equal(self._chosen[0], active.blocks):
                own = self.features.select(self.program.block_gates(active.blocks))
                self._chosen = active.blocks, own
            features = self._chosen[1]
            prediction = features.forward(values * self._signs[active.blocks])
            copy = self._copy.at(self._xi, self.sigma).values
            gradient = balanced(fit, fit.derivative(self._xi) - prediction - copy)
            self._seen = _Here(features, prediction, gradient, self._squared_change(values))
        return self._seen

    def _inner_solved(self, here: _Here) -> bool:
        size = float(np.linalg.norm(here.gradient))
        rounding = 10.0 * _EPS * float(np.linalg.norm(self._xi) + np.linalg.norm(here.prediction))
        if size <= rounding or not 0 < self._inner_steps < self.policy.inner_limit:
            return size <= rounding or self._inner_steps > 0
        return bool(size <= self.policy.inner * np.sqrt(here.squared_change / self.sigma))

    def _squared_change(self, values: Float64Array) -> float:
        """``||V - U||^2`` for the proximal point V, whose active blocks have these values."""
        here = self._U[:, :, self._active.blocks]
        moved = (values - here).ravel()
        elsewhere = float(np.vdot(self._U, self._U) - np.vdot(here, here))
        square = float(moved @ moved) + max(elsewhere, 0.0)
        return square + self._copy.squared_change(self._xi, self.sigma)

    def _pair_step(self, here: _Here) -> bool:
        """A step on the optimality conditions, kept if their residual becomes much smaller."""
        self._paired = False
        if self._active.blocks.size == 0:
            return False
        operator = pair_operator(self.program, self._active, here.features, self._fit.curvature(self._xi))
        if not self.systems.can_factorise(operator):
            return False
        self.newton_steps += 1
        forcing, gain = self.policy.pair_forcing, self.policy.pair_gain
        if self._later_sigma > 0.0 and self.newton_steps == 1:
            gain = self.policy.first_gain
        kept = self._take(operator, here, lambda r: self.systems.solve(operator, r, forcing), gain)
        if kept and self._later_sigma > 0.0:
            self._old_within = self.policy.near
        elif not kept and self.newton_steps > 1:  # a start may not be close enough at first
            self._pairs_below = 0.1 * self.gap
        return kept

    def _old_pair_step(self, tol: float, here: _Here) -> bool:
        """The same with the latest factor, of another regularisation or of the step before."""
        if not self.gap <= self._old_within * tol:
            return False
        latest = self.systems.latest_pair(self.program)
        kept = latest is not None and self._take(latest[0], here, latest[1], self.policy.old_gain)
        self._old_within = self.policy.near if kept else 0.0
        return kept

    def _take(self, operator: NewtonOperator, here: _Here, solve: Solve, gain: float) -> bool:
        """Take a step on the optimality conditions if no more than the share ``gain`` of them is left."""
        blocks, before = operator.active.blocks, self._residual(here)
        U = self._proximal
        values = U[:, :, blocks]
        missed = (self._U[:, :, blocks] - values) / self.sigma
        centred, adjoint = lambda right: solve(balanced(self._fit, right)), self.features.adjoint
        try:
            with np.errstate(over="raise", invalid="raise"):
                step = pair_step(self.program, operator, values, missed, here.gradient, centred, adjoint)
        except FloatingPointError:  # its penalty is too large for the working precision; others are not
            return False
        if not self._fit.room(self._xi, step.xi) >= 1.0:
            return False
        state = self._U, self._xi, self._products, self._shifted, self._active, self._seen, self._offered
        U[:, :, blocks] = step.values
        self._U, self._xi, self._offered = U, self._xi + step.xi, False
        self._set_products(self._products + step.products)
        if self._residual(self._here()) <= gain * before:
            self._inner_steps, self._paired = 0, True
            return True
        self._U, self._xi, self._products, self._shifted, self._active, self._seen, self._offered = state
        return False

    def _residual(self, here: _Here) -> float:
        """How far point and dual variable are from optimal together."""
        return float(np.sqrt(np.vdot(here.gradient, here.gradient) + here.squared_change / self.sigma))

    def _close_inner(self) -> None:
        """Take the proximal point, choose the next penalty."""
        self._copy.accept(self._xi, self.sigma)
        self._U = self._proximal
        self.sigma = self.policy.next_sigma(self.sigma, self._inner_steps)
        self._inner_steps = 0
        self._set_products(self.features.adjoint(self._xi))

    def _newton_step(self, here: _Here) -> None:
        gradient = here.gradient
        copy = self._copy.at(self._xi, self.sigma)
        diagonal = self._fit.curvature(self._xi) + copy.curvature
        diagonal = diagonal + self._damping * self.sigma * self._most_curvature[:, None]
        operator = newton_operator(
            self.program, self._active, here.features, self.sigma, diagonal, copy.column
        )
        direction = -self.systems.solve(operator, gradient, self.policy.forcing)
        products = self.features.adjoint(direction)
        rate = float(np.vdot(gradient, direction))
        change = -self.sigma * self.program.by_block(products)
        blocks = self.prox.along(self._shifted, change, self._thresholds)
        noise = self._active.envelope / self.sigma + 0.5 * float(np.vdot(self._xi, self._xi))
        room = self._fit.room(self._xi, direction)
        envelope = envelope_line(blocks, self._active.envelope, self.sigma)
        copied = self._copy.along(self._xi, direction, self.sigma)
        line = summed([self._fit.along(self._xi, direction), envelope, copied])
        length = step_length(line, rate, room, 10.0 * _EPS * noise)
        if self.program.cones:
            self._damping = self.policy.damped(self._damping, length)
            self.short_steps += length < 1.0
        self._xi, self._offered = self._xi + length * direction, False
        self._products = self._products + length * products
        self._set_shifted()
        self._active, self._seen = blocks.at(length), None
        self.newton_steps += 1
        self._inner_steps += 1

    def _offer_primal(self, prediction: Float64Array, blocks: Indices, values: Float64Array) -> float:
        fitted = self._fit.at(prediction)
        primal = fitted.value + float(self.program.weights[blocks] @ block_norms(values))
        if not primal >= self.primal:
            self.primal, self.offset, self._best_blocks = primal, fitted.offset, (blocks, values)
            self._note_gap()
        return primal

    def _offer_dual(self) -> float:
        """The best multiple of ``-xi`` that is dual feasible."""
        self._offered = True
        xi = self._fit.nearest(self._xi)
        products = self._products if xi is self._xi else self.features.adjoint(xi)
        found = best_multiple(self.program, xi, self.program.by_block(products), self._cones)
        if not found.value <= self.dual:
            self.dual, self.dual_point, self.dual_rows = found.value, -found.scale * xi, found.rows
            self._note_gap()
        return found.scale

    def _note_gap(self) -> None:
        if not self.gap >= 0.99 * self._best_gap:
            self._best_gap, self._best_step = self.gap, self.newton_steps

    def _set_products(self, products: Float64Array) -> None:
        """``A^T xi``, and with it the argument of the proximal map and its active blocks."""
        self._products = products
        self._set_shifted()
        self._active, self._seen = self.prox.at(self._shifted, self._thresholds), None

    def _set_shifted(self) -> None:
        self._shifted = self._U - self.sigma * self.program.by_block(self._products)
        self._thresholds = self.sigma * self.program.weights
