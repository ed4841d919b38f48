"""Huber's loss in the semismooth Newton method: squares after taking out sparse outliers.

``min_s 1/2 (r - s)^2 + M |s|`` is Huber's function of r. The outliers s (n, c) are blocks of size one, with
the identity as their map: the dual variable is bounded by M, and their proximal map is soft-thresholding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from convexnn_solvers.backends import Float64Array
from convexnn_solvers.gated_programs.fits import LineFunction


@dataclass(frozen=True, eq=False)
class CopyStep:
    """Proximal point (n, c), the diagonal that it adds to the Newton matrix, and to phi; perhaps a column
    (n, c) whose outer product the matrix gets too."""

    values: Float64Array
    curvature: Float64Array
    envelope: float
    column: Float64Array | None = None


def envelope_along(
    at: Callable[[Float64Array], CopyStep], xi: Float64Array, direction: Float64Array
) -> LineFunction:
    """A copy's part of phi on a line, less its value at length 0."""
    start = at(xi).envelope

    def line(length: float) -> tuple[float, float]:
        step = at(xi + length * direction)
        return step.envelope - start, -float(np.vdot(step.values, direction))

    return line


class Outliers:
    """The outliers at the price ``bend`` each, as multipliers of ``|xi| <= bend``; None: there are none."""

    def __init__(self, bend: float | Float64Array | None, shape: tuple[int, int]) -> None:
        self._bend = np.inf if bend is None else bend
        self._s = np.zeros(shape)
        self.needed = bend is not None
        self._none = CopyStep(self._s, np.zeros(shape), 0.0)

    def begin(self, prediction: Float64Array, xi: Float64Array) -> None:
        """None at first."""

    @property
    def held(self) -> Float64Array:
        """The outliers (n, c) that were accepted."""
        return self._s

    def restore(self, held: Float64Array) -> None:
        """Go on from these."""
        self._s = held

    def at(self, xi: Float64Array, sigma: float) -> CopyStep:
        """The proximal point of ``s - sigma xi``."""
        if not self.needed:
            return self._none
        shifted = self._s - sigma * xi
        excess = np.clip(np.abs(shifted) - sigma * self._bend, 0.0, None)
        curvature = np.where(excess > 0.0, sigma, 0.0)
        return CopyStep(np.sign(shifted) * excess, curvature, float(np.vdot(excess, excess)) / (2.0 * sigma))

    def along(self, xi: Float64Array, direction: Float64Array, sigma: float) -> LineFunction:
        """The part of phi on a line, less its value at length 0."""
        return envelope_along(lambda point: self.at(point, sigma), xi, direction)

    def squared_change(self, xi: Float64Array, sigma: float) -> float:
        """How far the proximal point is from the outliers held."""
        if not self.needed:
            return 0.0
        return float(np.sum((self.at(xi, sigma).values - self._s) ** 2))

    def accept(self, xi: Float64Array, sigma: float) -> None:
        """Take the proximal point."""
        self._s = self.at(xi, sigma).values
