"""What the semismooth Newton method is told and given: its policy, where to start, what is kept for it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from convexnn_solvers.backends import Float64Array
from convexnn_solvers.gated_programs.features import BlockFeatures
from convexnn_solvers.gated_programs.fits import Fit, balanced
from convexnn_solvers.gated_programs.nonsmooth_fits import NonsmoothFit
from convexnn_solvers.gated_programs.program import GatedProgram
from convexnn_solvers.newton.blocks import ConeProx, cone_bytes
from convexnn_solvers.newton.system import NewtonSystems
from convexnn_solvers.packing import Held

# A better start than this does not begin with a larger penalty.
_CLOSEST = 1e-6
# By how much a dual variable may differ, relatively, from the one whose products are given; a few roundings.
_SAME = 1e-14


@dataclass(frozen=True)
class NewtonPolicy:
    """The numbers that steer the method; the defaults were chosen by counting Newton steps.

    ``sigma``: first penalty, for programs scaled to size one, over the square root of the gap at the
    start (at such a gap a cold start would have come to such a penalty), and ``warm_sigma`` the same with a
    dual variable to start from; without cones at most ``pair_sigma`` while steps on the optimality conditions
    go well, because a small one keeps the blocks on either side of a change. It grows by ``growth`` after an
    inner problem of at most ``few`` steps and shrinks by half after ``many``, up to ``largest_sigma``.
    ``inner``: an inner problem is solved when its gradient is at most ``inner / sqrt(sigma)`` times the
    change of the point, or after ``inner_limit`` steps. ``forcing``: relative residual of the linear systems.
    ``damping``: with cones, the curvature that is added to the Newton matrix after a shortened step, as a
    share of the largest that leaving the active rows can add; ``damping_growth`` and ``damping_decay`` after
    short and full steps. ``pair_forcing``: ``forcing`` for steps on the optimality conditions, and
    ``pair_gain``: what may be left of their residual for such a step to be kept, ``first_gain`` after the
    first step of a warm start without cones, which changes the active blocks. ``old_gain`` is the same for
    such steps with the latest factor, which are tried where a warm start without cones begins, and again when
    the gap is at most ``near`` times the tolerance. ``patience``: so many steps without a better gap are a
    stall.
    """

    sigma: float = 10.0
    warm_sigma: float = 3.0
    pair_sigma: float = 3.0
    growth: float = 3.0
    largest_sigma: float = 1e8
    few: int = 8
    many: int = 20
    inner: float = 5.0
    inner_limit: int = 40
    forcing: float = 1e-2
    damping: float = 1e-6
    damping_growth: float = 3.0
    damping_decay: float = 0.5
    pair_forcing: float = 3e-4
    pair_gain: float = 0.9
    first_gain: float = 5.0
    old_gain: float = 0.5
    near: float = 30.0
    patience: int = 300

    def first_sigma(self, warm: bool, gap: float) -> float:
        """The first penalty; a better start than ``_CLOSEST`` does not begin with a larger one."""
        return (self.warm_sigma if warm else self.sigma) / float(np.sqrt(np.clip(gap, _CLOSEST, 1.0)))

    def next_sigma(self, sigma: float, steps: int) -> float:
        """The penalty after an inner problem of so many steps."""
        if steps <= self.few:
            return min(sigma * self.growth, self.largest_sigma)
        return sigma / 2.0 if steps >= self.many else sigma

    def damped(self, damping: float, length: float) -> float:
        """The damping after a step of that length: rows that leave the active set on the way add curvature
        that the Newton matrix does not see."""
        if length < 1.0:
            more = max(damping, self.damping) * self.damping_growth
            return min(more, 1.0)  # all curvature that there can be
        smaller = damping * self.damping_decay
        return smaller if smaller >= self.damping else 0.0


def usual_policy(fit: Fit) -> NewtonPolicy:
    """The policy for a loss. One without a gradient leaves the dual variable with no curvature but that of
    cones which change with every step: damping that jumps holds it up."""
    if isinstance(fit, NonsmoothFit):
        return NewtonPolicy(damping_growth=1.5, damping_decay=0.2)
    return NewtonPolicy()


@dataclass(frozen=True, eq=False)
class NewtonStart:
    """Where to start: a point (c, d, B), a dual variable ``xi`` (n, c) with the features' ``products``
    (c, d, P); None: by default.

    ``cones``: projections on the cones of the program, with what is known of their active rows;
    ``systems``: the solver of linear systems of a program with the same features and fit. ``held``: what the
    method packed, on the same program; then everything else is taken from there.
    """

    point: Float64Array | None = None
    xi: Float64Array | None = None
    products: Float64Array | None = None
    cones: ConeProx | None = None
    systems: NewtonSystems | None = None
    held: Held | None = None


def given_dual(program: GatedProgram, start: NewtonStart) -> Float64Array | None:
    """The dual variable to start from (n, c), with columns of sum zero if need be; None where there is none
    or the conjugate is infinite there."""
    if start.xi is None:
        return None
    xi = balanced(program.fit, start.xi)
    return xi if program.fit.admits(xi) else None


def given_products(start: NewtonStart, given: Float64Array) -> Float64Array | None:
    """The products of the features with :func:`given_dual`, if they are known and that is ``xi`` itself."""
    if start.products is None or start.xi is None:
        return None
    moved = 0.0 if given is start.xi else float(np.linalg.norm(given - start.xi))
    return start.products if moved <= _SAME * float(np.linalg.norm(given)) else None


def kept_systems(program: GatedProgram) -> NewtonSystems:
    """The program's solver of linear systems, with what an earlier solve left there."""
    n = program.fit.shape[0]
    # The Gram matrix, and a factor with what it is made of.
    return program.kept.once("systems", lambda: NewtonSystems(program), 3 * 8 * n * n)


def kept_features(program: GatedProgram) -> BlockFeatures:
    """The features of all gates."""
    if program.stored is not None:
        return program.features(slice(None))
    size = 8 * program.patterns.size
    return program.kept.common.once("block features", lambda: program.features(slice(None)), size)


def kept_cones(program: GatedProgram) -> ConeProx:
    """Projections on the program's cones, with the active rows of an earlier solve."""
    return program.kept.once(
        "cones", lambda: ConeProx(program), cone_bytes(program, program.blocks, program.blocks)
    )
