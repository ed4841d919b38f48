"""The terms ``G(q)`` of the rows: losses and the cones of constraints, with proximal maps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from convexnn_solvers.backends import Float64Array
from convexnn_solvers.composite import Composite, DualPoint, LossTerm
from convexnn_solvers.functions.constraint_cones import Cone
from convexnn_solvers.functions.losses import Loss
from convexnn_solvers.functions.nonsmooth_losses import Nonsmooth
from convexnn_solvers.functions.tilted import Tilted
from convexnn_solvers.reading.affine import UnsupportedProblem
from convexnn_solvers.splitting.dense_rows import DenseRows, flat
from convexnn_solvers.splitting.smooth_prox import has_smooth_prox, smooth_prox


@dataclass(frozen=True, eq=False)
class LossRows:
    """A loss, its weight, and the linear term that goes with it (0: none)."""

    loss: Loss
    weight: Any
    tilt: Any

    def prox(self, q: Float64Array, step: Float64Array) -> Float64Array:
        """``argmin_z w f(z) + <tilt, z> + sum((z - q)^2 / (2 step))``."""
        moved = q - step * self.tilt
        if isinstance(self.loss, Nonsmooth):
            return np.asarray(self.loss.prox(moved, self.weight, step, np))
        return smooth_prox(self.loss, moved, self.weight, step)

    def even(self, rows: Float64Array) -> Float64Array:
        """Scales of the rows, made equal where the proximal map ties them together."""
        return self.loss.even(rows) if isinstance(self.loss, Nonsmooth) else rows


@dataclass(frozen=True, eq=False)
class ConeRows:
    """A constraint's cone."""

    cone: Cone

    def prox(self, q: Float64Array, step: Float64Array) -> Float64Array:
        """The projection, whatever the step."""
        return np.asarray(self.cone.project(q, np))

    def even(self, rows: Float64Array) -> Float64Array:
        """As the cone's."""
        return self.cone.even(rows)


@dataclass(frozen=True, eq=False)
class RowTerms:
    """All terms, in the order of the rows; ``positions`` are those of the constraints among them."""

    rows: DenseRows
    terms: tuple[LossRows | ConeRows, ...]
    positions: tuple[int, ...]

    def prox(self, q: Float64Array, steps: Float64Array) -> Float64Array:
        """The proximal point (m,) for the step of every row."""
        parts = zip(self.terms, self.rows.parts(q), self.rows.parts(steps), strict=True)
        return flat(tuple(term.prox(part, step) for term, part, step in parts))

    def even(self, rows: Float64Array) -> Float64Array:
        """Scales of the rows (m,) that the proximal maps can take."""
        pairs = zip(self.terms, self.rows.parts(rows), strict=True)
        return flat(tuple(term.even(part) for term, part in pairs))

    def dual(self, gradient: Float64Array, constraints: int) -> DualPoint:
        """The dual point ``-gradient`` of subgradients ``gradient`` (m,) of the terms."""
        parts = [-part for part in self.rows.parts(gradient)]
        count = len(self.terms) - len(self.positions)
        given = dict(zip(self.positions, parts[count:], strict=True))
        return DualPoint(tuple(parts[:count]), tuple(given.get(m) for m in range(constraints)))

    def gradient(self, dual: DualPoint) -> Float64Array:
        """The inverse of :meth:`dual`; zeros for what is not given, or is of another shape."""
        count = len(self.terms) - len(self.positions)
        known: dict[int, Float64Array | None] = dict(enumerate(dual.thetas))
        mu = dual.multipliers
        known |= {count + k: mu[m] for k, m in enumerate(self.positions) if m < len(mu)}
        found = [known.get(k) for k in range(len(self.terms))]
        fits = [
            np.zeros(s) if a is None or a.shape != s else -a
            for a, s in zip(found, self.rows.outputs, strict=True)
        ]
        return flat(tuple(fits))


def row_terms(composite: Composite, rows: DenseRows, positions: Sequence[int]) -> RowTerms:
    """The terms of a problem. Raises UnsupportedProblem, naming a loss without a proximal map."""
    cones = [ConeRows(composite.constraints[m].cone) for m in positions]
    return RowTerms(rows, (*map(_loss_rows, composite.losses), *cones), tuple(positions))


def _loss_rows(term: LossTerm) -> LossRows:
    tilted = isinstance(term.loss, Tilted)
    loss = term.loss.loss if isinstance(term.loss, Tilted) else term.loss
    if not isinstance(loss, Nonsmooth) and not has_smooth_prox(loss):
        raise UnsupportedProblem(f"{term.text} has no proximal map in closed form")
    return LossRows(loss, term.weight, term.loss.tilt if tilted and isinstance(term.loss, Tilted) else 0.0)
