"""Many second-order cones ``{(t, u): ||u|| <= t}`` at a time: products, Nesterov-Todd scalings, step lengths.

Points are (1 + d, B): a cone per column, its t in the first row. After Vandenberghe, The CVXOPT linear and
quadratic cone program solvers (2010), sections 4 and 5, and Domahidi, Chu and Boyd (2013), ECOS, section II.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from convexnn_solvers.backends import Float64Array


def product(x: Float64Array, y: Float64Array) -> Float64Array:
    """The Jordan product ``(x^T y, x_0 y_1 + y_0 x_1)``."""
    return _stacked(np.einsum("ib,ib->b", x, y), x[0] * y[1:] + y[0] * x[1:])


def quotient(x: Float64Array, y: Float64Array) -> Float64Array:
    """The z whose :func:`product` with x, inside the cone, is y."""
    first = (x[0] * y[0] - np.einsum("ib,ib->b", x[1:], y[1:])) / _squares(x)
    return _stacked(first, (y[1:] - first * x[1:]) / x[0])


def longest_step(x: Float64Array, step: Float64Array) -> float:
    """The largest length for which ``x + length * step`` stays in the cones, from x inside of them."""
    a = step[0] ** 2 - np.einsum("ib,ib->b", step[1:], step[1:])
    b = x[0] * step[0] - np.einsum("ib,ib->b", x[1:], step[1:])
    c = _squares(x)
    discriminant = b * b - a * c
    # The smallest positive zero of a r^2 + 2 b r + c, from the root that loses no digits; c > 0.
    q = -(b + np.copysign(np.sqrt(np.maximum(discriminant, 0.0)), b))
    lengths = np.full((3, x.shape[1]), np.inf)
    real = discriminant >= 0.0
    np.divide(q, a, out=lengths[0], where=real & (a != 0.0))
    np.divide(c, q, out=lengths[1], where=real & (q != 0.0))
    np.divide(-x[0], step[0], out=lengths[2], where=step[0] < 0.0)
    lengths[~(lengths > 0.0)] = np.inf
    return float(np.min(lengths, initial=np.inf))


@dataclass(frozen=True, eq=False)
class SecondOrderScaling:
    """The symmetric W with ``W z = W^{-1} s``, which is ``eta [a, q^T; q, I + q q^T / (1 + a)]`` for
    ``a = sqrt(1 + ||q||^2)``; ``eta`` (B,), ``q`` (d, B)."""

    eta: Float64Array
    q: Float64Array

    @property
    def _a(self) -> Float64Array:
        return np.asarray(np.sqrt(1.0 + np.einsum("ib,ib->b", self.q, self.q)))

    def times(self, x: Float64Array) -> Float64Array:
        """``W x``."""
        return self._applied(x, 1.0) * self.eta

    def inverse(self, x: Float64Array) -> Float64Array:
        """``W^{-1} x``."""
        return self._applied(x, -1.0) / self.eta

    def _applied(self, x: Float64Array, sign: float) -> Float64Array:
        along = np.einsum("ib,ib->b", self.q, x[1:])
        rest = x[1:] + self.q * (sign * x[0] + along / (1.0 + self._a))
        return _stacked(self._a * x[0] + sign * along, rest)

    @property
    def corner(self) -> Float64Array:
        """The entry (B,) of ``W^{-2}`` for t alone."""
        return np.asarray((1.0 + 2.0 * np.einsum("ib,ib->b", self.q, self.q)) / self.eta**2)

    @property
    def mixed(self) -> Float64Array:
        """The entries (d, B) of ``W^{-2}`` for t and u."""
        return -2.0 * self._a * self.q / self.eta**2

    @property
    def root(self) -> Float64Array:
        """Symmetric roots (B, d, d) of what ``W^{-2}`` leaves for u when t is eliminated,
        ``(I - 2 q q^T / (1 + 2 ||q||^2)) / eta^2``, without the difference's loss of digits."""
        length = np.sqrt(np.einsum("ib,ib->b", self.q, self.q))
        unit = np.divide(self.q, length, out=np.zeros_like(self.q), where=length > 0.0)
        less = 1.0 - 1.0 / np.sqrt(1.0 + 2.0 * length**2)
        eye = np.eye(len(self.q))
        return np.asarray((eye - np.einsum("ib,jb,b->bij", unit, unit, less)) / self.eta[:, None, None])


def scaling(s: Float64Array, z: Float64Array) -> SecondOrderScaling:
    """The Nesterov-Todd scaling of two points inside the cones."""
    long_s, long_z = np.sqrt(_squares(s)), np.sqrt(_squares(z))
    unit_s, unit_z = s / long_s, z / long_z
    gamma = np.sqrt(0.5 * (1.0 + np.einsum("ib,ib->b", unit_s, unit_z)))
    return SecondOrderScaling(np.sqrt(long_s / long_z), (unit_s[1:] - unit_z[1:]) / (2.0 * gamma))


def _squares(x: Float64Array) -> Float64Array:
    """``x_0^2 - ||x_1||^2``, positive inside."""
    long = np.sqrt(np.einsum("ib,ib->b", x[1:], x[1:]))
    return np.asarray((x[0] - long) * (x[0] + long))


def _stacked(first: Float64Array, rest: Float64Array) -> Float64Array:
    return np.concatenate([first[None], rest])
