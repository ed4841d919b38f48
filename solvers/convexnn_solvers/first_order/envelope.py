"""The augmented Lagrangian of one nonsmooth term: a Moreau envelope, smooth in the term's argument.

For a term ``G(q)`` (a nonsmooth loss, or the indicator of a constraint's cone) with dual variable ``mu``
(``-mu`` in the subdifferential at a solution) and penalty parameter ``delta``, over copies ``z`` of ``q``:

    min_z  G(z) - <mu, q - z> + delta/2 ||R (q - z)||^2  =  min_z G(z) + delta/2 ||p - R z||^2  + constant

with ``p = R q - R^-1 mu / delta`` and row factors ``R``. Its gradient in q is ``delta R (p - R z)``, whose
negative is the next ``mu``: for linear constraints the textbook update (Rockafellar, 1976).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from convexnn_solvers.backends import Array, Float64Array
from convexnn_solvers.functions.constraint_cones import Cone

# Differences of values below this many rounding errors of their terms are those.
_ROUNDING = 64.0


class Split(Protocol):
    """A term that has a copy ``z`` of its argument in the augmented Lagrangian."""

    def value(self, q: Array, weight: Array, xp: Any) -> Array:
        """``G(q)``."""
        ...

    def prox(self, q: Array, weight: Array, step: Array, xp: Any) -> Array:
        """``argmin_z G(z) + sum((z - q)^2 / (2 step))``."""
        ...

    def even(self, rows: Float64Array) -> Float64Array:
        """Row factors, made equal where the proximal map ties entries together."""
        ...


@dataclass(frozen=True)
class Indicator:
    """The constraint ``q in cone`` as a term of the objective."""

    cone: Cone

    def value(self, q: Array, weight: Array, xp: Any) -> Array:
        """Zero, for the points of the cone that are asked about."""
        return xp.sum(0.0 * q)

    def prox(self, q: Array, weight: Array, step: Array, xp: Any) -> Array:
        """The projection."""
        return self.cone.project(q, xp)

    def even(self, rows: Float64Array) -> Float64Array:
        """As the cone's."""
        return self.cone.even(rows)


@dataclass(frozen=True, eq=False)
class Envelope:
    """The envelope as a loss of the term's argument; the weight is ``delta``.

    ``multipliers`` and ``rows`` as in the module's text, the multipliers being those of the rows
    ``R q``: ``R^-1 mu``. ``delta`` is that of the shift.
    """

    term: Split
    term_weight: Array
    multipliers: Array
    rows: Array
    name: str = "augmented Lagrangian term"
    quadratic: bool = False

    @property
    def curvature(self) -> float:
        """The largest squared row factor."""
        return float((self.rows * self.rows).max()) if 0 not in self.rows.shape else 0.0

    def updated(self, q: Array, weight: Array, xp: Any) -> Array:
        """The next multipliers of the rows."""
        return -weight * self._parted(q, weight, xp)[1]

    def value(self, q: Array, weight: Array, xp: Any) -> Array:
        """The envelope, up to its constant."""
        z, rest = self._parted(q, weight, xp)
        return self.term.value(z, self.term_weight, xp) + 0.5 * weight * xp.sum(rest * rest)

    def gradient(self, q: Array, weight: Array, xp: Any) -> Array:
        """``delta R (p - R z)``."""
        return weight * self.rows * self._parted(q, weight, xp)[1]

    def bregman(self, new: Array, old: Array, weight: Array, xp: Any) -> Array:
        """The Bregman distance as a sum of two that are never negative: of ``G`` and of the square.

        Where that of ``G`` drowns in the rounding of its terms (on a curved cone ``z`` and ``p - R z`` are
        orthogonal in the sum, not entry by entry), half the symmetrised distance stands in for it.
        """
        (z, rest), (z_new, rest_new) = (self._parted(q, weight, xp) for q in (old, new))
        values = [self.term.value(y, self.term_weight, xp) for y in (z_new, z)]
        slopes = weight * self.rows * rest
        excess = values[0] - values[1] - xp.sum(slopes * (z_new - z))
        eps = float(xp.finfo(new.dtype).eps)
        size = abs(values[0]) + abs(values[1]) + xp.sum(xp.abs(slopes) * (xp.abs(z_new) + xp.abs(z)))
        if not float(excess) > _ROUNDING * eps * float(size):
            turned = 0.5 * xp.sum(weight * self.rows * (rest_new - rest) * (z_new - z))
            excess = xp.clip(turned, 0.0, None)
        return excess + 0.5 * weight * xp.sum((rest_new - rest) ** 2)

    def conjugate(self, v: Float64Array, weight: Any) -> float:
        """Not needed: certificates see the term itself."""
        raise NotImplementedError

    def nearest(self, v: Float64Array, weight: Any) -> Float64Array:
        """Not needed: certificates see the term itself."""
        raise NotImplementedError

    def _parted(self, q: Array, weight: Array, xp: Any) -> tuple[Array, Array]:
        """The copy ``z`` and ``p - R z``."""
        p = self.rows * q - self.multipliers / weight
        z = self.term.prox(p / self.rows, self.term_weight, 1.0 / (weight * self.rows * self.rows), xp)
        return z, p - self.rows * z
