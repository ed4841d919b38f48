"""Quadratic activations, and the quadratic features that a lifted polynomial network is linear in.

A neuron with activation ``s(t) = a t^2 + b t + c`` and unit-norm weights ``u`` answers ``s(x^T u) =
<Q, z z^T>`` for ``z = (u, 1)`` and ``Q = [[a x x^T, b x / 2], [b x^T / 2, c]]``. Averaging over several
patches averages ``Q``. The lifted variable ``Z`` replaces the sum of ``|weight| z z^T`` over neurons: it is
positive semidefinite with ``trace(Z[:h, :h]) == Z[h, h]``, and every such ``Z`` is such a sum.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from convexnn_models import _arrays
from convexnn_models._arrays import Float64Array
from convexnn_models.patches import Cells

_BLOCK = 128  # rows of a Gram matrix at a time
_STORED = 20_000_000  # entries of all Q_i together that are worth storing for accuracy


@dataclass(frozen=True)
class QuadraticActivation:
    """``t -> a t^2 + b t + c``; a=0.09, b=0.5, c=0.47 imitates ReLU."""

    a: float
    b: float
    c: float

    def __post_init__(self) -> None:
        for name in ("a", "b", "c"):
            object.__setattr__(self, name, _arrays.number(getattr(self, name), name))
        if self.a == 0.0 and self.b == 0.0:
            raise ValueError("a and b are both zero, so the activation is constant: give one that is not.")

    def __call__(self, t: Float64Array) -> Float64Array:
        """The activation, entry by entry."""
        return (self.a * t + self.b) * t + self.c


class CellFeatures(Protocol):
    """The matrices ``Q_1..Q_n`` of one cell, never needed one by one. Matrices are (h + 1, h + 1)."""

    @property
    def width(self) -> int:
        """h, the number of entries of a patch."""
        ...

    @property
    def sizes(self) -> Float64Array:
        """Bounds (n,) on the norms of ``Q_i`` and of the terms it is summed from: they set scales."""
        ...

    def apply(self, Z: Float64Array) -> Float64Array:
        """``<Q_i, Z>`` for every sample, (n,)."""
        ...

    def adjoint(self, theta: Float64Array) -> Float64Array:
        """``sum_i theta_i Q_i``."""
        ...

    def add_gram(self, H: Float64Array, W: Float64Array, less: Float64Array) -> None:
        """Add ``<Q_i, W Q_j W> - less_i less_j`` to the lower triangle of ``H`` (n, n), in place."""
        ...

    def matrix(self) -> Float64Array:
        """All ``Q_i`` as rows, (n, (h + 1)^2)."""
        ...


@dataclass(frozen=True)
class SinglePatch:
    """Features of cells with one patch ``x_i`` (n, h): the ``Q_i`` have rank two and are never formed."""

    x: Float64Array
    activation: QuadraticActivation

    @property
    def width(self) -> int:
        """h, the number of entries of a patch."""
        return int(self.x.shape[1])

    @property
    def sizes(self) -> Float64Array:
        """``|a| ||x||^2 + |b| ||x|| + |c|``."""
        return _sizes(self.x[:, None, :], self.activation)

    def apply(self, Z: Float64Array) -> Float64Array:
        """``a x^T Z_1 x + b x^T z_2 + c z_4``."""
        s, x, h = self.activation, self.x, self.width
        result: Float64Array = s.a * np.einsum("ij,ij->i", x @ Z[:h, :h], x)
        result += s.b * (x @ Z[:h, h]) + s.c * Z[h, h]
        return result

    def adjoint(self, theta: Float64Array) -> Float64Array:
        """``[[a X^T diag(theta) X, b X^T theta / 2], [., c 1^T theta]]``."""
        s, h = self.activation, self.width
        result = np.empty((h + 1, h + 1))
        corner = (self.x.T * theta) @ self.x
        result[:h, :h] = (0.5 * s.a) * (corner + corner.T)
        result[:h, h] = result[h, :h] = (0.5 * s.b) * (self.x.T @ theta)
        result[h, h] = s.c * theta.sum()
        return result

    def add_gram(self, H: Float64Array, W: Float64Array, less: Float64Array) -> None:
        """Two matrix products, by blocks of rows that stay in the cache.

        With ``k_ij = x_i^T W_1 x_j``, ``w_i = x_i^T w_2``, ``o = w_4`` the trace of ``C B C B^T`` for
        ``B = [[k_ij, w_i], [w_j, o]]`` is ``(a k_ij + b (w_i + w_j) / 2 + c o)^2 + (a c - b^2 / 4)
        (w_i^2 + w_j^2 - 2 o k_ij)``: the square of one product of h + 2 columns, plus another product.
        """
        s, h, n = self.activation, self.width, self.x.shape[0]
        kernel, linear, corner = self.x @ W[:h, :h], self.x @ W[:h, h], float(W[h, h])
        ones = np.ones(n)
        side = (0.5 * s.b) * linear + 0.5 * s.c * corner
        left = np.column_stack([s.a * kernel, side, ones])
        right = np.column_stack([self.x, ones, side])
        rest_left, rest_right = -less[:, None], less[:, None]
        determinant = s.a * s.c - 0.25 * s.b * s.b
        if determinant != 0.0:
            squares = determinant * linear * linear
            rest_left = np.column_stack([-2.0 * determinant * corner * kernel, squares, ones, -less])
            rest_right = np.column_stack([self.x, ones, squares, less])
        for start in range(0, n, _BLOCK):
            end = min(start + _BLOCK, n)
            part = left[start:end] @ right[:end].T
            part *= part
            part += rest_left[start:end] @ rest_right[:end].T
            H[start:end, :end] += part

    def matrix(self) -> Float64Array:
        """All ``Q_i`` as rows, (n, (h + 1)^2)."""
        return _lifted(self.x[:, None, :], self.activation)


@dataclass(frozen=True)
class ExplicitFeatures:
    """Any symmetric ``Q_i``, stored as rows (n, (h + 1)^2): averages over patches, rotated samples."""

    rows: Float64Array
    sizes: Float64Array

    @property
    def width(self) -> int:
        """h, the number of entries of a patch."""
        return int(np.sqrt(self.rows.shape[1])) - 1

    def apply(self, Z: Float64Array) -> Float64Array:
        """``<Q_i, Z>`` for every sample."""
        return self.rows @ Z.ravel()

    def adjoint(self, theta: Float64Array) -> Float64Array:
        """``sum_i theta_i Q_i``."""
        m = self.width + 1
        return (theta @ self.rows).reshape(m, m)

    def add_gram(self, H: Float64Array, W: Float64Array, less: Float64Array) -> None:
        """Two products with ``W`` per sample, then one of (n, m^2) with (m^2, n)."""
        m = self.width + 1
        n = self.rows.shape[0]
        right = (self.rows.reshape(n * m, m) @ W).reshape(n, m, m)
        both = (right.transpose(0, 2, 1).reshape(n * m, m) @ W).reshape(n, m * m)
        for start in range(0, n, _BLOCK):
            end = min(start + _BLOCK, n)
            part = both[start:end] @ self.rows[:end].T
            part -= less[start:end, None] * less[:end]
            H[start:end, :end] += part

    def matrix(self) -> Float64Array:
        """All ``Q_i`` as rows, (n, (h + 1)^2)."""
        return self.rows


@dataclass(frozen=True)
class CentredFeatures:
    """``Q_i`` less their mean over the samples: what remains of ``features`` beside a free output bias."""

    features: CellFeatures

    @property
    def width(self) -> int:
        """h, the number of entries of a patch."""
        return self.features.width

    @property
    def sizes(self) -> Float64Array:
        """Bounds (n,) on the norms of the centred ``Q_i``."""
        return self.features.sizes + float(self.features.sizes.mean())

    def apply(self, Z: Float64Array) -> Float64Array:
        """``<Q_i, Z>``, less their mean."""
        values = self.features.apply(Z)
        values -= values.mean()
        return values

    def adjoint(self, theta: Float64Array) -> Float64Array:
        """``sum_i (theta_i - mean theta) Q_i``."""
        return self.features.adjoint(theta - theta.mean())

    def add_gram(self, H: Float64Array, W: Float64Array, less: Float64Array) -> None:
        """The Gram matrix of the features, centred in rows and columns."""
        gram = np.zeros_like(H)
        self.features.add_gram(gram, W, np.zeros_like(less))
        gram = np.tril(gram) + np.tril(gram, -1).T
        gram -= gram.mean(axis=0)
        gram -= gram.mean(axis=1)[:, None]
        gram -= less[:, None] * less
        H += gram

    def matrix(self) -> Float64Array:
        """All centred ``Q_i`` as rows, (n, (h + 1)^2)."""
        rows = self.features.matrix().copy()
        rows -= rows.mean(axis=0)
        return rows


def cell_features(patches: Float64Array, cells: Cells, activation: QuadraticActivation) -> list[CellFeatures]:
    """The features of every cell of ``patches`` (n, K, h); averaged cells take (h + 1)^2 numbers a sample."""
    features: list[CellFeatures] = []
    for cell in cells:
        if len(cell) == 1:
            features.append(SinglePatch(np.ascontiguousarray(patches[:, cell[0], :]), activation))
        else:
            chosen = patches[:, list(cell), :]
            features.append(ExplicitFeatures(_lifted(chosen, activation), _sizes(chosen, activation)))
    return features


def centred_features(
    patches: Float64Array, cells: Cells, activation: QuadraticActivation
) -> list[CellFeatures]:
    """The features less their means over the samples; the constant ``c`` plays no role in them.

    Centring the stored rows keeps all digits, so it is done where they fit; centring results loses what
    the means take up.
    """
    moving = QuadraticActivation(activation.a, activation.b, 0.0)
    centred: list[CellFeatures] = []
    for cell in cell_features(patches, cells, moving):
        rows = patches.shape[0] * (cell.width + 1) ** 2
        if isinstance(cell, ExplicitFeatures) or rows <= _STORED:
            matrix = cell.matrix()
            sizes = cell.sizes + float(cell.sizes.mean())
            centred.append(ExplicitFeatures(matrix - matrix.mean(axis=0), sizes))
        else:
            centred.append(CentredFeatures(cell))
    return centred


def _lifted(patches: Float64Array, activation: QuadraticActivation) -> Float64Array:
    """The average over patches of ``Q``, one row per sample."""
    n, count, h = patches.shape
    result = np.empty((n, h + 1, h + 1))
    result[:, :h, :h] = activation.a * (patches.transpose(0, 2, 1) @ patches) / count
    result[:, :h, h] = result[:, h, :h] = (0.5 * activation.b) * patches.mean(axis=1)
    result[:, h, h] = activation.c
    return result.reshape(n, (h + 1) ** 2)


def _sizes(patches: Float64Array, activation: QuadraticActivation) -> Float64Array:
    squares: Float64Array = np.einsum("nkh,nkh->n", patches, patches) / patches.shape[1]
    return abs(activation.a) * squares + abs(activation.b) * np.sqrt(squares) + abs(activation.c)
