"""Lower bounds from any dual direction: make it feasible, scale it as well as possible, evaluate.

Soundness rests on nothing but this file and the dual norms: whatever the direction, the bound returned is
``D(s theta, s mu)`` (see :mod:`composite`) at a scale ``s`` at which every dual
constraint was checked in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from convexnn_solvers.backends import Float64Array
from convexnn_solvers.certify.concave_search import maximise
from convexnn_solvers.certify.dual_directions import Multipliers, checked_arrays, float64_arrays, mixtures
from convexnn_solvers.certify.dual_norms import DualNorms
from convexnn_solvers.certify.free_columns import collect_free_variables
from convexnn_solvers.certify.free_variables import Arrays, FreeVariables, into_domains
from convexnn_solvers.certify.reached_entries import only_weights_differ
from convexnn_solvers.certify.thin_domains import ThinDomains
from convexnn_solvers.composite import Composite, DualPoint
from convexnn_solvers.functions.nonsmooth_losses import Nonsmooth
from convexnn_solvers.functions.tilted import Tilted

_EPS = float(np.finfo(np.float64).eps)
_BISECTIONS = 60
# By which numbers directions are divided to measure rounding: all of them where up to so many entries, which
# can agree by chance, are compared, or where so many products are soon made; else the first. Of many entries
# a few of another size than the rest are as good as alone.
_DIVISORS = (3.0, 5.0, 7.0, 11.0)
_FEW, _FEW_PRODUCTS = 200, 1_000_000
# Scalar conditions up to which all of them are met together by Newton's method.
_MAX_CONDITIONS = 400
# Numbers in the columns of free variables that stay with a problem for its next solves.
_MOST_KEPT = 1_000_000


@dataclass(frozen=True, eq=False)
class Bound:
    """A verified lower bound of the minimisation form and the dual point that proves it, with its image."""

    value: float
    point: DualPoint
    image: Arrays


@dataclass(frozen=True, eq=False)
class _Direction:
    """Thetas and the multipliers that are not dualised exactly, with their images on the variables.

    ``image`` is ``A^T theta + G^T mu``; ``hints`` are ``B^T rho`` for given multipliers of pattern cones.
    """

    thetas: Arrays
    multipliers: Multipliers
    image: Arrays
    hints: Multipliers
    rounding: float


class DualBounds:
    """Evaluates dual directions of one problem. ``obstacle`` says why no direction can have a bound."""

    def __init__(self, composite: Composite) -> None:
        self.composite = composite
        self.norms = DualNorms(composite)
        self.obstacle = ""
        offsets = tuple(np.asarray(b, np.float64) for b in composite.offsets())
        count = len(composite.losses)
        self._shapes = tuple(b.shape for b in offsets)
        self._loss_offsets = offsets[:count]
        self._thin = ThinDomains(composite, self.norms, self._loss_offsets)
        #: Positions of the constraints whose multipliers enter linearly: all but the exact pattern cones.
        exact = self.norms.exact.values()
        if any(np.any(offsets[count + m]) for m in exact):
            raise ValueError("a pattern cone must be that of a bare variable, without an offset.")
        self.general = tuple(m for m in range(len(composite.constraints)) if m not in exact)
        self._offsets = tuple(e if m in self.general else None for m, e in enumerate(offsets[count:]))
        self._free: FreeVariables | None = None
        try:
            self._free = collect_free_variables(composite, self.norms.free)
        except ValueError as error:
            self.obstacle = f"no lower bound: {error}"
        self._linear = tuple(np.asarray(c, dtype=np.float64) for c in composite.linear)
        # Whether the sum of all conjugates is a quadratic form: that of a tilted square is none.
        losses = tuple(term.loss for term in composite.losses)
        self._quadratic = all(loss.quadratic and not isinstance(loss, Tilted) for loss in losses)
        self._smooth = not any(isinstance(term.loss, Nonsmooth) for term in composite.losses)
        # Directions may not be scaled where zero is outside a conjugate's domain (maxima), or c must be met.
        zeros = zip(composite.losses, self._loss_offsets, strict=True)
        at_zero = [term.loss.conjugate(np.zeros(b.shape), term.weight) for term, b in zeros]
        self._fixed = bool(np.any(np.isinf(at_zero)))
        self._fixed = self._fixed or (self._free is not None and bool(np.any(self._free.linear)))
        bounded = [c[kinds == 0] for c, kinds in zip(self._linear, self.norms.free, strict=True)]
        self._homogeneous = self.norms.homogeneous and not any(bool(np.any(c)) for c in bounded)
        #: All conditions together, where directions cannot be scaled until they hold.
        self._every: FreeVariables | None = None
        if not self.obstacle and not self.norms.exact and (self._fixed or not self._homogeneous):
            kinds = self.norms.penalised_kinds()
            if sum(int(np.count_nonzero(kind)) for kind in kinds) <= _MAX_CONDITIONS:
                self._every = collect_free_variables(composite, kinds, self.norms.nearest_in_balls)

    @property
    def lasting(self) -> bool:
        """Whether all but the norms stays at other weights of penalties, and is small enough to be kept."""
        return self._every is None and (self._free is None or self._free.entries <= _MOST_KEPT)

    def reweighted(self, composite: Composite) -> DualBounds:
        """The bounds of a composite that ``only_weights_differ`` from this one's."""
        other = copy(self)
        other.__dict__.pop("_anchor", None)
        other.composite, other.norms = composite, self.norms.reweighted(composite)
        if not self._thin.none:
            other._thin = ThinDomains(composite, other.norms, self._loss_offsets)
        return other

    def residual(self, outputs: Arrays, multipliers: Multipliers = ()) -> DualPoint:
        """The direction of a primal point with these affine outputs: minus the gradients of the losses."""
        mu = self._completed(multipliers)
        arguments = tuple(np.asarray(q, dtype=np.float64) for q in outputs[: len(self._loss_offsets)])
        free = self._free
        if free is not None and not free.quadratic and self._smooth and not np.any(free.signs):
            return DualPoint(free.refit(arguments, self._general(mu)), mu)
        gradients = self.composite.loss_gradients(arguments)
        return DualPoint(tuple(np.asarray(-g, dtype=np.float64) for g in gradients), mu)

    def sanitised(self, candidate: DualPoint) -> DualPoint | None:
        """A candidate with negative multipliers clipped; None if a shape is wrong or an entry not finite."""
        count, constraints = len(self._loss_offsets), self.composite.constraints
        thetas = checked_arrays(candidate.thetas, self._shapes[:count])
        given = checked_arrays(self._completed(tuple(candidate.multipliers)), self._shapes[count:])
        if thetas is None or given is None or any(theta is None for theta in thetas):
            return None
        clipped = (
            mu if mu is None else term.cone.nearest_dual(mu)
            for term, mu in zip(constraints, given, strict=True)
        )
        return DualPoint(tuple(t for t in thetas if t is not None), tuple(clipped))

    def best(
        self, directions: Sequence[DualPoint], thorough: bool = True, held: Arrays | None = None
    ) -> Bound | None:
        """The largest bound; the first direction must be :meth:`residual`, which lies in all domains.

        Unless ``thorough``, that one is left for when no other gives a bound. ``held``: a point, as large as
        whose free variables may be, see :meth:`FreeVariables.leak`.
        """
        if self.obstacle:
            return None
        sizes = np.empty(0)
        if self._free is not None:
            at = zip(self.composite.zeros() if held is None else held, self.norms.free, strict=True)
            sizes = np.concatenate([x[kinds != 0] for x, kinds in at])
        best: Bound | None = None
        for direction in directions if thorough else directions[1:]:
            best = self._bound(direction, best, sizes) or best
        if best is None and not thorough:
            best = self._bound(directions[0], None, sizes)
        if best is None:
            thetas = tuple(np.zeros(b.shape) for b in self._loss_offsets)
            zero = DualPoint(thetas, self._completed(()))
            best = self._bound(zero, None, sizes)
        return best

    def _bound(self, direction: DualPoint, best: Bound | None, held: Float64Array) -> Bound | None:
        """The best bound along one direction; None when no scale is feasible or none can exceed ``best``."""
        prepared = self.feasible(direction)
        if prepared is None:
            return None
        ray = self.image(self._oriented(prepared))
        if best is not None and self._potential(ray) <= best.value:
            return None
        scales = self._feasible_scales(ray)
        if scales is None and self._every is not None:
            thetas, mu = self._every.enter(prepared.thetas, self._general(prepared.multipliers))
            ray = self.image(DualPoint(thetas, mu))
            if np.isfinite(self._conjugates(thetas, 1.0)) and self._every.satisfied(
                thetas, self._general(mu)
            ):
                scales = self._feasible_scales(ray)
        if scales is None:
            mixed = self._mixed(prepared)
            if mixed is None:
                return None
            ray, scales = mixed, (1.0, 1.0)
        scale = self._best_scale(ray, *scales)
        value = self._value(ray, scale, safe=True)
        if self._free is not None:
            factor = 1.0 if self._fixed else scale
            value -= factor * self._free.leak(ray.thetas, self._general(ray.multipliers), held)
        if not np.isfinite(value) or (best is not None and value <= best.value):
            return None
        thetas = tuple(scale * theta for theta in ray.thetas)
        multipliers = tuple(None if m is None else scale * m for m in ray.multipliers)
        return Bound(value, DualPoint(thetas, multipliers), tuple(scale * part for part in ray.image))

    def feasible(self, direction: DualPoint) -> DualPoint | None:
        """Satisfy the free variables' condition and enter the conjugates' domain, or give up."""
        thetas, mu = direction.thetas, self._completed(direction.multipliers)
        if self._free is not None:
            thetas = self._free.project(thetas, self._general(mu))
        if not self._inside(thetas, mu):
            if self._free is None:
                thetas, mu = into_domains(self.composite, thetas, mu)
            else:
                thetas, entered = self._free.enter(direction.thetas, self._general(mu))
                mu = tuple(a if b is None else b for a, b in zip(mu, entered, strict=True))
        if self._free is not None and not self._free.satisfied(thetas, self._general(mu)):
            return None
        return DualPoint(thetas, mu)

    def _mixed(self, direction: DualPoint) -> _Direction | None:
        """The first feasible mixture with a feasible direction: for where no scale but 1 may do."""
        for mixture in () if self._anchor is None else mixtures(direction, self._anchor):
            if self._inside(mixture.thetas, mixture.multipliers):
                ray = self.image(mixture)
                if self._feasible_at(ray, 1.0):
                    return ray
        return None

    @cached_property
    def _anchor(self) -> DualPoint | None:
        """A feasible direction near zero, if there is one."""
        zeros = tuple(np.zeros(b.shape) for b in self._loss_offsets)
        found = self.feasible(DualPoint(zeros, self._completed(())))
        return found if found is not None and self._feasible_at(self.image(found), 1.0) else None

    def _oriented(self, direction: DualPoint) -> DualPoint:
        """For quadratic losses a ray along which the bound first falls is better followed backwards."""
        general = any(mu is not None and np.any(mu) for mu in self._general(direction.multipliers))
        if general or self._fixed or not self._quadratic or self._slope(direction.thetas, ()) >= 0.0:
            return direction
        return DualPoint(tuple(-theta for theta in direction.thetas), self._completed(()))

    def image(self, direction: DualPoint) -> _Direction:
        """With its image on the variables, and how much rounding moves the norms of that."""
        adjoint = self.composite.affine.adjoint
        cotangents = (*direction.thetas, *self._general(direction.multipliers))
        image = float64_arrays(adjoint(cotangents))
        # The rounding of the adjoint is measured: the same product in other numbers rounds otherwise.
        entries, errors = sum(int(np.count_nonzero(a)) for a in image), tuple(map(np.zeros_like, image))
        several = entries <= max(_FEW, _FEW_PRODUCTS // max(sum(t.size for t in direction.thetas), 1))
        for divisor in _DIVISORS if several else _DIVISORS[:1]:
            other = float64_arrays(adjoint(tuple(None if v is None else v / divisor for v in cotangents)))
            apart = zip(errors, image, other, strict=True)
            errors = tuple(np.maximum(e, np.abs(a - divisor * b)) for e, a, b in apart)
        error = 4.0 * self.norms.unprojected(errors)
        error += self._thin.in_image(direction.thetas, image, self._fixed)
        hints, moved = self.norms.hints(direction.multipliers)
        return _Direction(direction.thetas, direction.multipliers, image, hints, error + moved)

    def _feasible_scales(self, ray: _Direction) -> tuple[float, float] | None:
        """An interval of scales of which both ends, and therefore all, are feasible; None if none was found.

        Zero is feasible unless the linear term of a penalised variable is larger than its penalty allows.
        """
        if self._homogeneous and not self._fixed:
            ratio = self.norms.ratio(ray.image, ray.hints)
            ratio = ratio * (1.0 + 8.0 * _EPS) + ray.rounding
            return 0.0, (np.inf if ratio == 0.0 else 1.0 / ratio)
        one, zero = self._feasible_at(ray, 1.0), not self._fixed and self._feasible_at(ray, 0.0)
        if self._fixed or one == zero:
            return (0.0 if zero else 1.0, 1.0) if one else None
        inside, outside = (1.0, 0.0) if one else (0.0, 1.0)
        for _ in range(_BISECTIONS):
            middle = 0.5 * (inside + outside)
            inside, outside = (middle, outside) if self._feasible_at(ray, middle) else (inside, middle)
        return (inside, 1.0) if one else (0.0, inside)

    def _feasible_at(self, ray: _Direction, scale: float) -> bool:
        z = tuple(scale * v - c for v, c in zip(ray.image, self._linear, strict=True))
        hints = tuple(None if h is None else scale * h for h in ray.hints)
        rounding = scale * ray.rounding if scale > 0.0 else 0.0
        return self.norms.ratio(z, hints) * (1.0 + 8.0 * _EPS) + rounding <= 1.0

    def _potential(self, ray: _Direction) -> float:
        """An upper bound of ``D`` on the ray, without the norms' conditions, which are what takes time."""
        linear = self._quadratic and self._conjugates(ray.thetas, 1.0) == 0.0
        if linear or self._fixed or not self._homogeneous:
            return np.inf
        return self._value(ray, self._best_scale(ray, 0.0, np.inf))

    def _best_scale(self, ray: _Direction, low: float, top: float) -> float:
        """Maximise the concave ``D(s)`` over [low, top]: in closed form if quadratic, else by search."""
        if low == top:
            return top
        if self._quadratic and self._homogeneous:
            slope = self._slope(ray.thetas, ray.multipliers) - self.norms.support(ray.image)
            curvature = 2.0 * self._conjugates(ray.thetas, 1.0)
            if curvature > 0.0:
                return float(np.clip(slope / curvature, 0.0, top))
            return min(top, 1.0) if slope > 0.0 and not np.isfinite(top) else (top if slope > 0.0 else 0.0)
        return maximise(lambda s: self._value(ray, s), low, top)

    def _slope(self, thetas: Arrays, multipliers: Multipliers) -> float:
        """``- sum <theta, b> - sum <mu, e>``."""
        total = -sum(float(np.sum(t * b)) for t, b in zip(thetas, self._loss_offsets, strict=True))
        for mu, e in zip(multipliers, self._offsets, strict=False):
            if mu is not None and e is not None:
                total -= float(np.sum(mu * e))
        return total

    def _inside(self, thetas: Arrays, mu: Multipliers) -> bool:
        """Whether all conjugates are finite and the free variables' condition holds."""
        if not np.isfinite(self._conjugates(thetas, 1.0)):
            return False
        return self._free is None or self._free.satisfied(thetas, self._general(mu))

    def _conjugates(self, thetas: Arrays, scale: float) -> float:
        pairs = zip(self.composite.losses, thetas, strict=True)
        return sum(term.loss.conjugate(-scale * theta, term.weight) for term, theta in pairs)

    def _value(self, ray: _Direction, scale: float, safe: bool = False) -> float:
        """``D(scale * direction)``; ``safe`` takes off what its own sums may have rounded."""
        conjugates = self._conjugates(ray.thetas, scale)
        if not np.isfinite(conjugates):
            return -np.inf
        z = tuple(scale * v - c for v, c in zip(ray.image, self._linear, strict=True))
        support = self.norms.support(z)
        linear = scale * self._slope(ray.thetas, ray.multipliers)
        value = linear - conjugates - support + self.composite.constant
        if safe:
            sizes = zip((*ray.thetas, *ray.multipliers), (*self._loss_offsets, *self._offsets), strict=True)
            size = sum(float(np.sum(np.abs(t * b))) for t, b in sizes if t is not None and b is not None)
            size = scale * size + abs(conjugates) + abs(support) + abs(self.composite.constant)
            value -= 4.0 * _EPS * size + self._thin.in_value(ray.thetas, scale, conjugates)
        return value

    def _completed(self, multipliers: Multipliers) -> Multipliers:
        return (*multipliers, *(None for _ in self.composite.constraints[len(multipliers) :]))

    def _general(self, multipliers: Multipliers) -> Multipliers:
        """The multipliers that enter linearly: not those of cones that are dualised by projection."""
        return tuple(None if e is None else mu for mu, e in zip(multipliers, self._offsets, strict=True))


def bounds_for(composite: Composite) -> DualBounds:
    """The bounds of a problem; what no weight of a penalty changes is found out once."""
    held: DualBounds | None = composite.kept.get("bounds")
    if held is not None and only_weights_differ(held.composite, composite):
        return held.reweighted(composite)
    made = DualBounds(composite)
    if made.lasting:
        composite.kept["bounds"] = made
    return made
