"""The semismooth Newton augmented Lagrangian method on a gated program, one Newton step at a time.

Outer iteration: ``U <- prox(U - sigma A^T xi)`` with thresholds ``sigma tau``, where ``xi`` minimises

    phi(xi) = F*(xi) + sum_b 1/(2 sigma) (||P(U_b - sigma (A^T xi)_b)|| - sigma tau_b)_+^2

for the conjugate F* of the data fit. Its gradient is ``F*'(xi) - A prox(...)``, and Newton's method finds
its zero with the generalised Jacobian of the proximal map. At every step ``prox(...)`` is a feasible point of
the program and ``-xi``, scaled, one of the dual, so the duality gap is known without extra products.
"""

from __future__ import annotations

import numpy as np

from convexnn_solvers.backends import Float64Array
from convexnn_solvers.cones.active_sets import ActiveRows
from convexnn_solvers.gaps import relative_gap
from convexnn_solvers.gated_programs.fits import step_length, summed
from convexnn_solvers.gated_programs.program import GatedProgram, Indices, block_norms
from convexnn_solvers.newton.blocks import (
    BlockProx,
    PlainProx,
    envelope_line,
)
from convexnn_solvers.newton.cone_splitting import SplittingStart
from convexnn_solvers.newton.copies import residual_copy
from convexnn_solvers.newton.duals import (
    best_multiple,
    bounds_anew,
    multiple_at_proximal_point,
    warm_multiple,
)
from convexnn_solvers.newton.operator import newton_operator
from convexnn_solvers.newton.pair_steps import PairSteps
from convexnn_solvers.newton.position import Here, Position
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
# What a checkpoint keeps as it is.
_STATE = (
    "newton_steps", "primal", "dual", "dual_point", "offset", "short_steps", "_inner_steps", "_damping",
    "_best_gap", "_best_step",
)  # fmt: skip


class DualNewton:
    """The iteration; ``primal`` and ``dual`` are the best bounds so far, in the program's own units.

    ``dual_point`` is the feasible W = -xi that goes with ``dual``, and ``offset`` goes with ``point``.
    ``short_steps``: how many steps a line search shortened since the start or the latest move, with cones.
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
        self._cones = (first.cones or kept_cones(program)) if program.cones else None
        self._copy = residual_copy(self._fit)
        self.newton_steps = self.short_steps = self._inner_steps = 0
        self._damping = 0.0
        self.primal, self.dual = np.inf, -np.inf
        self.dual_point = np.zeros(self._fit.shape)
        self._best_gap, self._best_step = np.inf, 0
        self.prox: BlockProx = PlainProx() if self._cones is None else self._cones
        self._at = Position(program, self.features, self.prox, self._copy)
        self._pairs = PairSteps(self._at, self.policy, self.systems)
        if first.held is None:
            self._begin(first)
        else:
            self._restore(first.held)

    def _begin(self, first: NewtonStart) -> None:
        program, at = self.program, self._at
        at.U = np.zeros(program.point_shape) if first.point is None else first.point.copy()
        active = np.flatnonzero(np.any(at.U != 0.0, axis=(0, 1)))
        if self._cones is not None and active.size:
            at.U[:, :, active] = self._cones.project(at.U[:, :, active], active)
        own = self.features.select(program.block_gates(active))
        prediction = own.forward(at.U[:, :, active] * program.block_signs(active))
        fitted = self._fit.at(prediction)
        given = given_dual(program, first)
        at.xi = fitted.xi if given is None else given
        self._offer_primal(prediction, active, at.U[:, :, active])
        known = None if given is None else given_products(first, given)
        at.products = self.features.adjoint(at.xi) if known is None else known
        if given is not None:
            scale = warm_multiple(program, at.U, prediction, at.xi, self._offer_dual)
            at.xi, at.products, at.offered = scale * at.xi, scale * at.products, False
            self._pairs.due = active.size > 0
        self._offer_dual()
        scales = 1.0 if self._fit.scales is None else self._fit.scales
        self._copy.begin(prediction + scales * fitted.offset, at.xi)
        at.sigma = self.policy.first_sigma(given is not None, self.gap)
        self._pairs.begin()
        at.find(at.products)

    def packed(self) -> Arrays:
        """The state as arrays; a factor is made anew from its operator."""
        arrays = packed_attributes(self, _STATE)
        blocks, values = self._best_blocks
        arrays |= {"best.blocks": blocks, "best.values": values}
        arrays |= below("at", self._at.packed()) | below("pair steps", self._pairs.packed())
        arrays |= below("systems", self.systems.packed())
        arrays["copy"] = self._copy.held
        return arrays if self._cones is None else arrays | below("cones", self._cones.packed())

    def _restore(self, held: Held) -> None:
        restore_attributes(self, _STATE, held)
        self._best_blocks = held["best.blocks"], held["best.values"]
        self.systems.restore(part("systems", held))
        self._copy.restore(held["copy"])
        if self._cones is not None:
            self._cones.restore(part("cones", held))
        self._at.restore(part("at", held))
        self._pairs.restore(part("pair steps", held))

    @property
    def gap(self) -> float:
        """The relative gap of the best bounds, 1 before there is a lower one; NaN when something was not
        finite."""
        unknown = self.dual == -np.inf and self.primal < np.inf
        return 1.0 if unknown else relative_gap(self.primal, self.dual)

    @property
    def xi(self) -> Float64Array:
        """The current dual variable (n, c), any sign and scale."""
        return self._at.xi

    @property
    def stalled(self) -> bool:
        """Whether the gap has not become smaller for a long time."""
        return self.newton_steps - self._best_step > self.policy.patience

    @property
    def point(self) -> Float64Array:
        """The best point so far (c, d, B)."""
        return self.program.spread(*self._best_blocks)

    def step(self, tol: float) -> None:
        """One Newton step, after closing the inner problem if it is solved; none if gap <= tol.

        Where the inner problem is solved, the step may be one on the optimality conditions; see :mod:`pairs`.
        """
        here, solved = self._look(tol)
        if self._pairs.ready(solved, self.gap, tol):
            if self._pair_step(tol):
                self._inner_steps = 0
                return
            if self._pairs.give_up():
                here, solved = self._look(tol)
        if solved and not self.gap <= tol:
            self._close_inner()
            here, _ = self._look(tol)
        if not self.gap <= tol:
            self._newton_step(here)

    def _pair_step(self, tol: float) -> bool:
        """A step on the optimality conditions, with the latest factor or a new one; whether it is kept."""
        if self._pairs.old_step(self.gap, tol):
            return True
        operator = self._pairs.operator()
        if operator is None:
            return False
        self.newton_steps += 1
        return self._pairs.new_step(operator, self.gap, self.newton_steps == 1)

    def look_again(self) -> None:
        """Find the best bounds anew, and go on with products that are: theirs add up over many steps."""
        found = bounds_anew(self.program, self.point, self.dual_point, self._cones)
        self.primal, self.offset, best = found.primal, found.offset, found.dual
        self.dual, self.dual_point = best.value, best.scale * self.dual_point
        self._at.find(self.features.adjoint(self._at.xi))
        self._offer_dual()
        self._best_gap, self._best_step = self.gap, self.newton_steps

    @property
    def dual_rows(self) -> tuple[ActiveRows, ...]:
        """With cones, for each output the active rows of the latest projections."""
        return () if self._cones is None else self._cones.active()

    @property
    def split(self) -> SplittingStart:
        """The proximal point and what is left of its argument."""
        at = self._at
        return SplittingStart(at.proximal, at.shifted - at.proximal, 1.0 / at.sigma, at.xi)

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
        at = self._at
        at.U, at.xi, at.sigma, at.offered = U, xi, sigma, False
        self._inner_steps, self._damping, self.short_steps = 0, 0.0, 0
        self._pairs.begin_again()
        self._copy.begin(prediction, xi)
        at.find(products)
        self._look(np.inf)

    def _look(self, tol: float) -> tuple[Here, bool]:
        """What is known at the proximal point, and whether the inner problem is solved.

        On the way the proximal point and the dual point are offered as the best so far.
        """
        at = self._at
        here = at.here()
        solved = self._inner_solved(here)
        self._offer_primal(here.prediction, at.active.blocks, at.active.values)
        if not at.offered:
            self._offer_dual(at_proximal=True)
        return here, solved

    def _inner_solved(self, here: Here) -> bool:
        size = float(np.linalg.norm(here.gradient))
        rounding = 10.0 * _EPS * float(np.linalg.norm(self._at.xi) + np.linalg.norm(here.prediction))
        if size <= rounding or not 0 < self._inner_steps < self.policy.inner_limit:
            return size <= rounding or self._inner_steps > 0
        return bool(size <= self.policy.inner * np.sqrt(here.squared_change / self._at.sigma))

    def _close_inner(self) -> None:
        """Take the proximal point, choose the next penalty."""
        at = self._at
        self._copy.accept(at.xi, at.sigma)
        at.U = at.proximal
        at.sigma = self.policy.next_sigma(at.sigma, self._inner_steps)
        self._inner_steps = 0
        at.find(self.features.adjoint(at.xi))

    def _newton_step(self, here: Here) -> None:
        at, gradient = self._at, here.gradient
        copy = self._copy.at(at.xi, at.sigma)
        diagonal = self._fit.curvature(at.xi) + copy.curvature
        if self._damping > 0.0:  # in cones: a share of the most curvature that their rows can hide
            most = len(self.program.signs) * self.features.squares(np.ones(self.program.gates))
            diagonal = diagonal + self._damping * at.sigma * most[:, None]
        operator = newton_operator(self.program, at.active, here.features, at.sigma, diagonal, copy.column)
        direction = -self.systems.solve(operator, gradient, self.policy.forcing)
        products = self.features.adjoint(direction)
        rate = float(np.vdot(gradient, direction))
        change = -at.sigma * self.program.by_block(products)
        blocks = self.prox.along(at.shifted, change, at.thresholds)
        noise = at.active.envelope / at.sigma + 0.5 * float(np.vdot(at.xi, at.xi))
        room = self._fit.room(at.xi, direction)
        envelope = envelope_line(blocks, at.active.envelope, at.sigma)
        copied = self._copy.along(at.xi, direction, at.sigma)
        line = summed([self._fit.along(at.xi, direction), envelope, copied])
        length = step_length(line, rate, room, 10.0 * _EPS * noise)
        if self.program.cones:
            self._damping = self.policy.damped(self._damping, length)
            self.short_steps += length < 1.0
        at.advance(length * direction, length * products, blocks.at(length))
        self.newton_steps += 1
        self._inner_steps += 1

    def _offer_primal(self, prediction: Float64Array, blocks: Indices, values: Float64Array) -> None:
        fitted = self._fit.at(prediction)
        primal = fitted.value + float(self.program.weights[blocks] @ block_norms(values))
        if not primal >= self.primal:
            self.primal, self.offset, self._best_blocks = primal, fitted.offset, (blocks, values)
            self._note_gap()

    def _offer_dual(self, at_proximal: bool = False) -> float:
        """A multiple of ``-xi`` that is dual feasible: the best, or what is known ``at_proximal`` points."""
        at, program, cones = self._at, self.program, self._cones
        at.offered = True
        xi = self._fit.nearest(at.xi)
        if at_proximal and cones is not None and xi is at.xi:
            products, active = program.by_block(at.products), at.active.blocks
            found = multiple_at_proximal_point(program, xi, products, cones, active, at.left())
        else:
            products = at.products if xi is at.xi else self.features.adjoint(xi)
            found = best_multiple(program, xi, program.by_block(products), cones)
        if not found.value <= self.dual:
            self.dual, self.dual_point = found.value, -found.scale * xi
            self._note_gap()
        return found.scale

    def _note_gap(self) -> None:
        if not self.gap >= 0.99 * self._best_gap:
            self._best_gap, self._best_step = self.gap, self.newton_steps
