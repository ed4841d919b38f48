"""Where the semismooth Newton method is: point, dual variable and penalty, and what is known there."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from convexnn_solvers.backends import Float64Array
from convexnn_solvers.gated_programs.features import BlockFeatures
from convexnn_solvers.gated_programs.fits import balanced
from convexnn_solvers.gated_programs.program import GatedProgram, Indices
from convexnn_solvers.newton.blocks import ActiveBlocks, BlockProx, unpacked_blocks
from convexnn_solvers.newton.copies import ResidualCopy
from convexnn_solvers.newton.outliers import Outliers
from convexnn_solvers.packing import Arrays, Held, below, packed_attributes, part, restore_attributes

# What a checkpoint keeps as it is.
_STATE = ("U", "xi", "products", "sigma", "offered")


@dataclass(frozen=True, eq=False)
class Here:
    """At the proximal point of now: features of the active blocks, prediction (n, c), gradient of phi, and
    ``||V - U||^2`` for the proximal point V."""

    features: BlockFeatures
    prediction: Float64Array
    gradient: Float64Array
    squared_change: float


class Position:
    """The point ``U`` (c, d, B), the dual variable ``xi`` (n, c) of any sign and scale, its ``products``
    ``A^T xi`` (c, d, P), and the penalty ``sigma``.

    From them follow the argument ``shifted`` of the proximal map, its ``thresholds``, and the ``active``
    blocks of the proximal point. ``offered``: whether the direction of ``xi`` has been offered as a dual
    point; with cones that takes projections.
    """

    active: ActiveBlocks
    shifted: Float64Array
    thresholds: Float64Array

    def __init__(
        self,
        program: GatedProgram,
        features: BlockFeatures,
        prox: BlockProx,
        copy: Outliers | ResidualCopy,
    ) -> None:
        self.program, self.features, self.copy = program, features, copy
        self._prox = prox
        self._signs = np.repeat(np.asarray(program.signs), program.gates)
        self.U, self.xi = np.zeros(program.point_shape), np.zeros(program.fit.shape)
        self.products = np.zeros((*program.point_shape[:2], program.gates))
        self.sigma, self.offered = 1.0, False
        self._seen: Here | None = None
        self._chosen: tuple[Indices, BlockFeatures] | None = None

    def packed(self) -> Arrays:
        """The state as arrays."""
        return packed_attributes(self, _STATE) | below("active", self.active.packed())

    def restore(self, held: Held) -> None:
        """Go on from these."""
        restore_attributes(self, _STATE, held)
        self._shift()
        self.active, self._seen = unpacked_blocks(part("active", held)), None

    def find(self, products: Float64Array) -> None:
        """Find the proximal point, with the products of the dual variable."""
        self.products = products
        self._shift()
        self.active, self._seen = self._prox.at(self.shifted, self.thresholds), None

    def advance(self, xi: Float64Array, products: Float64Array, active: ActiveBlocks) -> None:
        """A step of the dual variable with its products, and the active blocks where it leads."""
        self.xi, self.offered = self.xi + xi, False
        self.products = self.products + products
        self._shift()
        self.active, self._seen = active, None

    def tried(self, U: Float64Array, xi: Float64Array, products: Float64Array, residual: float) -> bool:
        """Go to the point U, and a step ``xi`` further; back again where the residual is larger than this."""
        state = self.U, self.xi, self.products, self.shifted, self.active, self._seen, self.offered
        self.U, self.xi, self.offered = U, self.xi + xi, False
        with np.errstate(over="ignore", invalid="ignore"):  # then it is no smaller
            self.find(self.products + products)
            if self.residual() <= residual:
                return True
        self.U, self.xi, self.products, self.shifted, self.active, self._seen, self.offered = state
        return False

    def here(self) -> Here:
        """What is known at the proximal point, found out once: who takes a step has looked where it leads."""
        if self._seen is None:
            active, fit = self.active, self.program.fit
            values = active.values
            # Many steps leave the active blocks what they were.
            if self._chosen is None or not np.array_equal(self._chosen[0], active.blocks):
                own = self.features.select(self.program.block_gates(active.blocks))
                self._chosen = active.blocks, own
            features = self._chosen[1]
            prediction = features.forward(values * self._signs[active.blocks])
            copy = self.copy.at(self.xi, self.sigma).values
            gradient = balanced(fit, fit.derivative(self.xi) - prediction - copy)
            self._seen = Here(features, prediction, gradient, self._squared_change(values))
        return self._seen

    def left(self) -> Indices:
        """The blocks of the point that the proximal point has no more."""
        some = np.any(self.U != 0.0, axis=(0, 1))
        some[self.active.blocks] = False
        return np.flatnonzero(some)

    @property
    def proximal(self) -> Float64Array:
        """The proximal point V (c, d, B)."""
        return self.program.spread(self.active.blocks, self.active.values)

    def residual(self) -> float:
        """How far point and dual variable are from optimal together."""
        here = self.here()
        return float(np.sqrt(np.vdot(here.gradient, here.gradient) + here.squared_change / self.sigma))

    def _squared_change(self, values: Float64Array) -> float:
        """``||V - U||^2`` for the proximal point V, whose active blocks have these values."""
        here = self.U[:, :, self.active.blocks]
        moved = (values - here).ravel()
        elsewhere = float(np.vdot(self.U, self.U) - np.vdot(here, here))
        square = float(moved @ moved) + max(elsewhere, 0.0)
        return square + self.copy.squared_change(self.xi, self.sigma)

    def _shift(self) -> None:
        self.shifted = self.U - self.sigma * self.program.by_block(self.products)
        self.thresholds = self.sigma * self.program.weights
