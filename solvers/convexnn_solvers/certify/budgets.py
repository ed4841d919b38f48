"""Bounds on norms of variables by a number, with a price instead: the programs of which they are a solution.

For every price ``p >= 0`` the minimum of ``f(x) + p (norms(x) - t)`` is a lower bound of that of ``f`` where
``norms(x) <= t`` (weak duality), and at the best price it is the same. Such a program is of the form that
solvers and bounds know best: the norms are penalties, with all that is known of their dual norms.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from convexnn_solvers.backends import Array, Float64Array
from convexnn_solvers.composite import AffineMap, Composite, ConstraintTerm, DualPoint
from convexnn_solvers.reading.output_selection import selected

_T = TypeVar("_T")


@dataclass(frozen=True, eq=False)
class Budgets:
    """The constraints at ``positions`` of a composite bound norms of variables by the numbers ``limits``.

    ``unit``: the composite where these norms, at a price of one, are penalties instead, without the limits.
    """

    composite: Composite
    positions: tuple[int, ...]
    limits: tuple[float, ...]
    unit: Composite

    def priced(self, prices: Sequence[float]) -> Composite:
        """The program with a price per budget, of which the minimum is a lower bound of the composite's."""
        own = len(self.composite.penalties)
        penalties, first = list(self.unit.penalties), own
        for position, price in zip(self.positions, prices, strict=True):
            for k in range(first, first + len(self.composite.constraints[position].budget)):
                penalties[k] = replace(penalties[k], weight=price * penalties[k].weight)
            first += len(self.composite.constraints[position].budget)
        refund = sum(price * limit for price, limit in zip(prices, self.limits, strict=True))
        return replace(self.unit, penalties=tuple(penalties), constant=self.unit.constant - refund)

    def spent(self, x: Sequence[Array]) -> list[float]:
        """The norms of a point, budget by budget."""
        xp = self.composite.backend.xp
        return [
            sum(float(xp.sum(t.weight * t.penalty.norms(t.view(x[t.variable]), xp))) for t in term.budget)
            for term in self.terms
        ]

    @property
    def terms(self) -> tuple[ConstraintTerm, ...]:
        """The constraints themselves."""
        return tuple(self.composite.constraints[position] for position in self.positions)

    def others(self, parts: Sequence[_T]) -> tuple[_T, ...]:
        """What belongs to the other constraints, of something for each; of nothing, nothing."""
        return tuple(part for m, part in enumerate(parts) if m not in self.positions)

    def prices(self, dual: DualPoint) -> tuple[float, ...] | None:
        """The prices in a dual point of the composite; None where it lacks one."""
        found: list[float] = []
        for position in self.positions:
            mu = dual.multipliers[position] if position < len(dual.multipliers) else None
            if mu is None:
                return None
            found.append(float(np.ravel(mu)[0]))
        return tuple(found)

    def completed(self, dual: DualPoint, prices: Sequence[float]) -> DualPoint:
        """A dual point of the composite from one of a priced program, with the prices."""
        multipliers: list[Float64Array | None] = list(dual.multipliers)
        multipliers += [None] * (len(self.unit.constraints) - len(multipliers))
        for position, price in zip(self.positions, prices, strict=True):
            mu = np.zeros(self.composite.constraints[position].shape)
            mu.flat[0] = price
            multipliers.insert(position, mu)
        return DualPoint(dual.thetas, tuple(multipliers))


def budgets_of(composite: Composite) -> Budgets | None:
    """The budgets of a composite; None where there are none."""
    positions = tuple(m for m, term in enumerate(composite.constraints) if term.budget)
    if not positions:
        return None
    count = len(composite.losses)
    offsets = composite.offsets()[count:]
    limits = tuple(float(np.ravel(composite.backend.to_numpy(offsets[m]))[0]) for m in positions)
    affine, constraints, kept = _lasting(composite, positions)
    prices = tuple(term for m in positions for term in composite.constraints[m].budget)
    unit = replace(
        composite,
        affine=affine,
        penalties=(*composite.penalties, *prices),
        constraints=constraints,
        kept=kept,
    )
    return Budgets(composite, positions, limits, unit)


def _lasting(
    composite: Composite, positions: tuple[int, ...]
) -> tuple[AffineMap, tuple[ConstraintTerm, ...], dict[str, object]]:
    """Map and constraints without the budgets, the same while the composite's map is, and what is kept."""
    held = composite.kept.get("budgets")
    if held is None or held[0] is not composite.affine:
        count, total = len(composite.losses), len(composite.constraints)
        outputs = [*range(count), *(count + m for m in range(total) if m not in positions)]
        affine = selected(composite.affine, outputs, count + total)
        constraints = tuple(term for m, term in enumerate(composite.constraints) if m not in positions)
        held = composite.kept["budgets"] = composite.affine, (affine, constraints, {})
    found: tuple[AffineMap, tuple[ConstraintTerm, ...], dict[str, object]] = held[1]
    return found
