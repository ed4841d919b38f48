"""Penalties on one variable: value, proximal map and dual norm side by side.

A penalty sees a *view* of its variable (a reshape of it) and a non-negative weight per group, in the
user's units: the term is ``sum(weight * norms(view))``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from convexnn_solvers.backends import Array

Positions = NDArray[np.int64]


class Penalty(Protocol):
    """What solvers and certificates need to know of a penalty; implementations are small frozen values."""

    @property
    def name(self) -> str:
        """The word that messages use."""
        ...

    @property
    def entrywise(self) -> bool:
        """Whether every entry is a group: then any bounds may clip it, and it lies inside other penalties."""
        ...

    def groups(self, shape: tuple[int, ...]) -> Positions:
        """The number of the group of every entry of a view of this shape."""
        ...

    def union(self, positions: Sequence[Positions]) -> tuple[Penalty, Positions] | None:
        """One penalty for parts of a variable that have this one each, and its view; None: there is none."""
        ...

    def norms(self, view: Array, xp: Any) -> Array:
        """One norm per group; the weight of the term has this shape (or is a number)."""
        ...

    def prox(self, view: Array, threshold: Array, xp: Any) -> Array:
        """``argmin_u 1/2 ||u - view||^2 + sum(threshold * norms(u))``."""
        ...

    def dual_norms(self, view: Array, xp: Any) -> Array:
        """The dual norm of each group: the conjugate is zero iff ``dual_norms(view) <= weight``."""
        ...


@dataclass(frozen=True)
class GroupNorm:
    """Euclidean norms along ``axis`` (``None``: of the whole array), CVXPY's ``norm(x, 2, axis)``."""

    axis: int | None = 0
    name: str = "group norm"
    entrywise: bool = False

    def groups(self, shape: tuple[int, ...]) -> Positions:
        if self.axis is None:
            return np.zeros(shape, dtype=np.int64)
        others = shape[: self.axis] + shape[self.axis + 1 :]
        numbers = np.arange(math.prod(others)).reshape(others)
        return np.broadcast_to(np.expand_dims(numbers, self.axis), shape)

    def union(self, positions: Sequence[Positions]) -> tuple[Penalty, Positions] | None:
        """Norms of as many entries each are those of the rows of a matrix."""
        if self.axis is not None or len({p.size for p in positions}) > 1:
            return None
        return GroupNorm(1), np.stack([np.ravel(p) for p in positions])

    def norms(self, view: Array, xp: Any) -> Array:
        if self.axis is None:
            return xp.sqrt(xp.sum(view * view))
        return xp.sqrt(xp.sum(view * view, axis=self.axis))

    def prox(self, view: Array, threshold: Array, xp: Any) -> Array:
        norms = self.norms(view, xp)
        positive = norms > 0.0
        shrink = xp.where(positive, 1.0 - threshold / xp.where(positive, norms, 1.0), 0.0 * norms)
        shrink = xp.clip(shrink, 0.0, None)
        return view * (shrink if self.axis is None else xp.expand_dims(shrink, axis=self.axis))

    def dual_norms(self, view: Array, xp: Any) -> Array:
        """The norms themselves, but without underflow: bounds rest on them, whatever the units."""
        norms = self.norms(view, xp)
        info = xp.finfo(view.dtype)
        least = info.smallest_normal / info.eps  # squares below have lost digits
        lost = norms * norms < least
        if not xp.any(lost):
            return norms
        entries = lost if self.axis is None else xp.expand_dims(lost, axis=self.axis)
        raised = self.norms(xp.where(entries, view, xp.zeros_like(view)) / least, xp) * least
        return xp.where(lost, raised, norms)


@dataclass(frozen=True)
class AbsoluteValue:
    """Absolute values of the entries (``norm1``, ``abs``); every entry is a group."""

    name: str = "l1 norm"
    entrywise: bool = True

    def groups(self, shape: tuple[int, ...]) -> Positions:
        return np.arange(math.prod(shape)).reshape(shape)

    def union(self, positions: Sequence[Positions]) -> tuple[Penalty, Positions] | None:
        return self, np.concatenate([np.ravel(p) for p in positions])

    def norms(self, view: Array, xp: Any) -> Array:
        return xp.abs(view)

    def prox(self, view: Array, threshold: Array, xp: Any) -> Array:
        return xp.sign(view) * xp.clip(xp.abs(view) - threshold, 0.0, None)

    def dual_norms(self, view: Array, xp: Any) -> Array:
        return xp.abs(view)


@dataclass(frozen=True)
class NuclearNorm:
    """The sum of the singular values of a matrix, or of every matrix of a stack (CVXPY's ``normNuc``)."""

    name: str = "nuclear norm"
    entrywise: bool = False

    def groups(self, shape: tuple[int, ...]) -> Positions:
        """One for every matrix."""
        matrices = shape[:-2]
        return np.broadcast_to(np.arange(math.prod(matrices)).reshape(*matrices, 1, 1), shape)

    def union(self, positions: Sequence[Positions]) -> tuple[Penalty, Positions] | None:
        """Matrices of one shape are a stack."""
        return (self, np.stack(positions)) if len({p.shape for p in positions}) == 1 else None

    def norms(self, view: Array, xp: Any) -> Array:
        return xp.sum(xp.linalg.svdvals(view), axis=-1)

    def prox(self, view: Array, threshold: Array, xp: Any) -> Array:
        """Soft thresholding of the singular values (Cai, Candes and Shen, 2010)."""
        U, s, Vt = xp.linalg.svd(view, full_matrices=False)
        limit = threshold[..., None] if getattr(threshold, "ndim", 0) else threshold
        return (U * xp.clip(s - limit, 0.0, None)[..., None, :]) @ Vt

    def dual_norms(self, view: Array, xp: Any) -> Array:
        """The largest singular values."""
        return xp.max(xp.linalg.svdvals(view), axis=-1)
