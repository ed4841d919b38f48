"""Losses without a gradient in the semismooth Newton method: proximal terms in residual and dual variable.

The conjugate of such a loss G is linear on a bounded set. With a copy z of the residual, a proximal term for
it, as for the blocks, and one for the dual variable (the proximal method of multipliers; Rockafellar, 1976)
the function to minimise gets

    max_z <xi, z> - G(z) - ||z - z_k||^2 / (2 s)  +  kappa/2 ||xi - xi_k||^2,    s ~ sigma, kappa ~ 1 / sigma,

which has the gradient ``prox_{s G}(z_k + s xi) + kappa (xi - xi_k)`` on the whole space. The maximum is
``||z||^2 / (2 s)`` up to a constant, since G is positively homogeneous. The centres move to z and xi
when an inner problem is solved, so that both terms vanish from the optimality conditions.
"""

from __future__ import annotations

import numpy as np

from convexnn_solvers.backends import Float64Array
from convexnn_solvers.gated_programs.fits import Fit, LineFunction
from convexnn_solvers.gated_programs.nonsmooth_fits import NonsmoothFit
from convexnn_solvers.newton.outliers import CopyStep, Outliers, envelope_along

# Chosen by counting Newton steps: with the penalty of the blocks for the copy too, seven times as many.
_STEP = 0.1
_SHARE = 1.0


class ResidualCopy:
    """The copy ``z`` and the centre of ``xi``, (n, c) both; see the module's text."""

    needed = True

    def __init__(self, fit: NonsmoothFit) -> None:
        self._fit = fit
        self._z, self._centre = np.zeros(fit.shape), np.zeros(fit.shape)

    def begin(self, prediction: Float64Array, xi: Float64Array) -> None:
        """Centres at a prediction (n, c), with its offset, and a dual variable."""
        self._z, self._centre = prediction - self._fit.Y, xi

    @property
    def held(self) -> Float64Array:
        """Both centres (2, n, c)."""
        return np.stack([self._z, self._centre])

    def restore(self, held: Float64Array) -> None:
        """Go on from these."""
        self._z, self._centre = held

    def at(self, xi: Float64Array, sigma: float) -> CopyStep:
        """The gradient (its negative, as of outliers), the matrix, and the value, up to a constant."""
        step, kappa, moved = _STEP * sigma, _SHARE / sigma, xi - self._centre
        q = self._z + step * xi
        z, bent = self._fit.prox(q, step), self._fit.prox_jacobian(q, step)
        envelope = float(np.vdot(z, z)) / (2.0 * step) + 0.5 * kappa * float(np.vdot(moved, moved))
        column = None if bent.column is None else np.sqrt(step) * bent.column
        return CopyStep(-(z + kappa * moved), kappa + step * bent.diagonal, envelope, column)

    def along(self, xi: Float64Array, direction: Float64Array, sigma: float) -> LineFunction:
        """The part of phi on a line, less its value at length 0."""
        return envelope_along(lambda point: self.at(point, sigma), xi, direction)

    def squared_change(self, xi: Float64Array, sigma: float) -> float:
        """How far the proximal point is from the centres, in the units of the blocks."""
        moved = self._next(xi, sigma) - self._z
        return float(np.sum(moved**2) / _STEP + _SHARE * np.sum((xi - self._centre) ** 2))

    def accept(self, xi: Float64Array, sigma: float) -> None:
        """Take the proximal point, and ``xi`` as the next centre."""
        self._z, self._centre = self._next(xi, sigma), xi

    def _next(self, xi: Float64Array, sigma: float) -> Float64Array:
        return self._fit.prox(self._z + _STEP * sigma * xi, _STEP * sigma)


def residual_copy(fit: Fit) -> Outliers | ResidualCopy:
    """The copy of the fit's residual, or of a part of it."""
    return ResidualCopy(fit) if isinstance(fit, NonsmoothFit) else Outliers(fit.outliers, fit.shape)
