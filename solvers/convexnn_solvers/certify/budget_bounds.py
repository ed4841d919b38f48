"""Lower bounds for problems that bound norms of variables by numbers: those of the programs with prices.

For given thetas the best price of a budget is the largest dual norm over its groups, cones included: what
remains is the bound of a program with penalties, verified as any other.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from convexnn_solvers.backends import Float64Array
from convexnn_solvers.certify.budgets import Budgets, budgets_of
from convexnn_solvers.certify.dual_bounds import Bound, DualBounds, bounds_for
from convexnn_solvers.certify.dual_directions import Multipliers
from convexnn_solvers.certify.dual_norms import DualNorms
from convexnn_solvers.certify.free_variables import Arrays
from convexnn_solvers.certify.known_images import images_of
from convexnn_solvers.composite import Composite, DualPoint

# Prices are raised by this share, so that rounding leaves directions inside of the dual balls.
_HAIR = 1e-12
# By so much a price exceeds what rounding moves the norms by, where others are at their bounds.
_APART = 1e5
# Where no group has a dual norm, a price that costs nothing.
_FREE = 1e-200


class BudgetBounds:
    """:class:`~dual_bounds.DualBounds` for a composite with budgets."""

    def __init__(self, budgets: Budgets) -> None:
        self.budgets = budgets
        self._unit = bounds_for(budgets.unit)
        kept = budgets.others(range(len(budgets.composite.constraints)))
        self._linear_free = not any(np.any(c) for c in budgets.unit.linear)
        #: Positions of the constraints whose multipliers enter, those of the budgets with their prices alone.
        self.general = tuple(sorted([*budgets.positions, *(kept[m] for m in self._unit.general)]))

    @property
    def obstacle(self) -> str:
        """Why no direction can have a bound."""
        return self._unit.obstacle

    @property
    def norms(self) -> DualNorms:
        """The conditions of the program with prices of one."""
        return self._unit.norms

    def residual(self, outputs: Arrays, multipliers: Multipliers = ()) -> DualPoint:
        """The direction of a primal point, see :meth:`DualBounds.residual`."""
        found = self._unit.residual(outputs, self.budgets.others(multipliers))
        prices = self.budgets.prices(DualPoint((), multipliers))
        return self._whole(found, prices)

    def sanitised(self, candidate: DualPoint) -> DualPoint | None:
        """A candidate with multipliers in their dual cones; None with wrong shapes or numbers not finite."""
        given = candidate.multipliers
        if given and len(given) != len(self.budgets.composite.constraints):
            return None
        for position, term in zip(self.budgets.positions, self.budgets.terms, strict=True):
            mu = given[position] if given else None
            if mu is not None and not (np.shape(mu) == term.shape and np.isfinite(mu).all()):
                return None
        found = self._unit.sanitised(DualPoint(candidate.thetas, self.budgets.others(given)))
        prices = self.budgets.prices(candidate)
        return None if found is None else self._whole(found, prices and tuple(max(p, 0.0) for p in prices))

    def best(
        self, directions: Sequence[DualPoint], thorough: bool = True, held: Arrays | None = None
    ) -> Bound | None:
        """The largest bound; see :meth:`DualBounds.best`."""
        if self.obstacle:
            return None
        best: Bound | None = None
        for direction in directions if thorough else directions[1:]:
            best = self._better(direction, best, held)
        if best is None:
            best = self._better(directions[0], None, held)
        if best is not None and not self._unit.general:
            images_of(self.budgets.unit).add(best.point.thetas, best.image)
        return best

    def _better(self, direction: DualPoint, best: Bound | None, held: Arrays | None) -> Bound | None:
        """The best bound along a direction, at the prices that it says and at those that it asks for."""
        reduced, asked = self._reduced(direction), self.asked(direction)
        given = self.budgets.prices(direction)
        tried = dict.fromkeys(p for p in (asked, given) if p is not None and min(p) > 0.0)
        for prices in [None] if self._linear_free and _is_zero(reduced) else tried:
            # Zero is feasible at a price of zero: that of one, which the program has, is not refunded.
            program = self.budgets.unit if prices is None else self.budgets.priced(prices)
            found = bounds_for(program).best([reduced], held=held)
            if found is None or (prices is None and not _is_zero(found.point)):
                continue
            if best is None or found.value > best.value:
                paid = prices or [0.0] * len(self.budgets.positions)
                best = Bound(found.value, self.budgets.completed(found.point, paid), found.image)
        return best

    def asked(self, direction: DualPoint) -> tuple[float, ...] | None:
        """The least prices at which the direction is feasible as it is; None where nothing makes it so."""
        inside = self._unit.feasible(self._reduced(direction))
        if inside is None:
            return None
        ray = self._unit.image(inside)
        linear = (np.asarray(c, dtype=np.float64) for c in self.budgets.unit.linear)
        z = tuple(a - c for a, c in zip(ray.image, linear, strict=True))
        prices = [self._price(z, {t.variable for t in term.budget}) for term in self.budgets.terms]
        # Beside norms at their bounds a price of the size of rounding would shrink the direction.
        alone = len(prices) == 1 and not self.budgets.composite.penalties
        least = max((1.0 if alone else _APART) * ray.rounding, _FREE)
        return tuple(max(price * (1.0 + _HAIR) + ray.rounding, least) for price in prices)

    def _reduced(self, direction: DualPoint) -> DualPoint:
        """The dual point of a priced program."""
        return DualPoint(direction.thetas, self.budgets.others(direction.multipliers))

    def _price(self, z: Arrays, variables: set[int]) -> float:
        """The largest dual norm of the groups of some variables."""
        own: list[Float64Array] = [v if k in variables else np.zeros(v.shape) for k, v in enumerate(z)]
        return self._unit.norms.ratio(tuple(own), tuple(None for _ in own))

    def _whole(self, dual: DualPoint, prices: tuple[float, ...] | None) -> DualPoint:
        """A dual point of the composite, from one of a priced program."""
        if prices is not None:
            return self.budgets.completed(dual, prices)
        given = self.budgets.completed(dual, [0.0] * len(self.budgets.positions))
        pairs = enumerate(given.multipliers)
        return DualPoint(dual.thetas, tuple(None if m in self.budgets.positions else mu for m, mu in pairs))


def _is_zero(dual: DualPoint) -> bool:
    return not any(np.any(part) for part in (*dual.thetas, *dual.multipliers) if part is not None)


def verified_bounds(composite: Composite) -> DualBounds | BudgetBounds:
    """The bounds of a problem, with budgets or without."""
    budgets = budgets_of(composite)
    return bounds_for(composite) if budgets is None else BudgetBounds(budgets)
