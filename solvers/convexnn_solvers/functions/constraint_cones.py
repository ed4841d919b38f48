"""The cones of constraints: projection, projection on the dual cone, and violation side by side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from convexnn_solvers.backends import Array, Float64Array
from convexnn_solvers.functions.norm_balls import running_sums


class Cone(Protocol):
    """What solvers and certificates need to know of a cone; implementations are small frozen values."""

    @property
    def name(self) -> str:
        """The word that messages use."""
        ...

    def project(self, s: Array, xp: Any) -> Array:
        """The nearest point of the cone."""
        ...

    def nearest_dual(self, mu: Float64Array) -> Float64Array:
        """The nearest point of the dual cone, in float64."""
        ...

    def violations(self, s: Float64Array) -> Float64Array:
        """How far ``s`` is outside, in the units of its entries: per entry, or per cone with length one."""
        ...

    def even(self, rows: Float64Array) -> Float64Array:
        """Scales of the entries, made equal where the projection ties entries together."""
        ...


@dataclass(frozen=True)
class Zero:
    """``s = 0``."""

    name: str = "equality"

    def project(self, s: Array, xp: Any) -> Array:
        """Zero."""
        return 0.0 * s

    def nearest_dual(self, mu: Float64Array) -> Float64Array:
        """Every multiplier is allowed."""
        return mu

    def violations(self, s: Float64Array) -> Float64Array:
        """The absolute values."""
        return np.abs(s)

    def even(self, rows: Float64Array) -> Float64Array:
        """Entries are independent."""
        return rows


@dataclass(frozen=True)
class Nonnegative:
    """``s >= 0`` entry by entry."""

    name: str = "inequality"

    def project(self, s: Array, xp: Any) -> Array:
        """The positive part."""
        return xp.clip(s, 0.0, None)

    def nearest_dual(self, mu: Float64Array) -> Float64Array:
        """The positive part: the cone is its own dual."""
        return np.clip(mu, 0.0, None)

    def violations(self, s: Float64Array) -> Float64Array:
        """The negative parts."""
        return np.clip(-s, 0.0, None)

    def even(self, rows: Float64Array) -> Float64Array:
        """Entries are independent."""
        return rows


ZERO, NONNEGATIVE = Zero(), Nonnegative()


@dataclass(frozen=True)
class SecondOrder:
    """``||(s_1, s_2, ...)|| <= s_0`` along ``axis``, one cone for every group."""

    axis: int = 0
    name: str = "second-order cone"

    def project(self, s: Array, xp: Any) -> Array:
        """Inside, polar, or halfway to the boundary."""
        t, norm, rest = self._parts(s, xp)
        safe = xp.where(norm > 0.0, norm, 1.0)
        # On the boundary both parts are (t + norm) / 2; inside they stay, in the polar cone they vanish.
        half = xp.clip(0.5 * (t + norm), 0.0, None)
        inside = norm <= t
        new_t = xp.where(inside, t, xp.where(norm <= -t, 0.0 * t, half))
        factor = xp.where(inside, 1.0 + 0.0 * t, new_t / safe)
        return xp.concat([new_t, rest * factor], axis=self.axis)

    def nearest_dual(self, mu: Float64Array) -> Float64Array:
        """The cone is its own dual."""
        return np.asarray(self.project(mu, np), dtype=np.float64)

    def violations(self, s: Float64Array) -> Float64Array:
        """``norm - s_0`` of every cone."""
        t, norm, _ = self._parts(s, np)
        return np.asarray(np.clip(norm - t, 0.0, None), dtype=np.float64)

    def even(self, rows: Float64Array) -> Float64Array:
        """One factor per cone."""
        return np.broadcast_to(np.max(rows, axis=self.axis, keepdims=True, initial=0.0), rows.shape)

    def _parts(self, s: Array, xp: Any) -> tuple[Array, Array, Array]:
        """Heads, norms of the rest (both of length one along the axis), and the rest."""
        head: list[Any] = [slice(None)] * s.ndim
        tail = list(head)
        head[self.axis], tail[self.axis] = slice(0, 1), slice(1, None)
        rest = s[tuple(tail)]
        return s[tuple(head)], xp.sqrt(xp.sum(rest * rest, axis=self.axis, keepdims=True)), rest


@dataclass(frozen=True)
class Semidefinite:
    """Matrices whose symmetric part is positive semidefinite (CVXPY's ``>>``); the last two axes."""

    name: str = "semidefinite cone"

    def project(self, s: Array, xp: Any) -> Array:
        """Negative eigenvalues of the symmetric part set to zero; what is not symmetric stays."""
        flipped = xp.matrix_transpose(s)
        values, vectors = xp.linalg.eigh(0.5 * (s + flipped))
        kept = (vectors * xp.clip(values, 0.0, None)[..., None, :]) @ xp.matrix_transpose(vectors)
        return 0.5 * (kept + xp.matrix_transpose(kept)) + 0.5 * (s - flipped)

    def nearest_dual(self, mu: Float64Array) -> Float64Array:
        """The symmetric positive semidefinite matrices."""
        found = self.project(0.5 * (mu + np.matrix_transpose(mu)), np)
        return np.asarray(found, dtype=np.float64)

    def violations(self, s: Float64Array) -> Float64Array:
        """The most negative eigenvalue of every symmetric part."""
        lowest = np.min(np.linalg.eigvalsh(0.5 * (s + np.matrix_transpose(s))), axis=-1)
        return np.asarray(np.clip(-lowest, 0.0, None)[..., None, None], dtype=np.float64)

    def even(self, rows: Float64Array) -> Float64Array:
        """One factor per matrix."""
        return np.broadcast_to(np.max(rows, axis=(-2, -1), keepdims=True, initial=0.0), rows.shape)


@dataclass(frozen=True)
class NormSumCone:
    """``sum ||s_g|| <= s_0`` of a vector whose groups ``s_g`` have ``size`` entries each, one after another.

    The epigraph of a sum of norms; of the l1 norm where ``size`` is 1.
    """

    size: int = 1
    name: str = "cone of a sum of norms"

    def project(self, s: Array, xp: Any) -> Array:
        """Soft thresholding of the norms by the amount that the head gains; zero in the polar cone."""
        head, rest = s[:1], xp.reshape(s[1:], (-1, self.size))
        norms = self._norms(rest, xp)
        shift = self._gain(head, norms, xp)
        factor = xp.clip(norms - shift, 0.0, None) / xp.where(norms > 0.0, norms, 1.0)
        return xp.concat([head + shift, xp.reshape(rest * factor[:, None], (-1,))])

    def _norms(self, rest: Array, xp: Any) -> Array:
        if self.size == 1:
            return xp.abs(rest[:, 0])
        return xp.sqrt(xp.sum(rest * rest, axis=1))

    def _gain(self, head: Array, norms: Array, xp: Any) -> Array:
        """``g >= 0`` with ``head + g = sum((norms - g)_+)``, or what takes the head to zero."""
        ordered = xp.flip(xp.sort(norms))[None, :]
        sums, counts = running_sums(ordered, xp), running_sums(xp.ones_like(ordered), xp)
        best = xp.max((sums - head) / (counts + 1.0))
        return xp.clip(xp.maximum(best, -head), 0.0, None)

    def nearest_dual(self, mu: Float64Array) -> Float64Array:
        """``max ||mu_g|| <= mu_0``, by Moreau's identity."""
        return np.asarray(mu + self.project(-mu, np), dtype=np.float64)

    def violations(self, s: Float64Array) -> Float64Array:
        """``sum - s_0``."""
        total = np.sum(self._norms(np.reshape(s[1:], (-1, self.size)), np), keepdims=True)
        return np.asarray(np.clip(total - s[:1], 0.0, None), dtype=np.float64)

    def even(self, rows: Float64Array) -> Float64Array:
        """One factor for all."""
        return np.full(rows.shape, float(np.max(rows, initial=0.0)))
