"""Samples, patterns and points for projections on pattern cones, from generic to degenerate."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]


def generic(rng: np.random.Generator) -> Float:
    return rng.standard_normal((40, 6))


def repeated_rows(rng: np.random.Generator) -> Float:
    X = rng.standard_normal((10, 4))
    return np.vstack([X, X, -2.0 * X, X + 1e-9])


def integer_grid(rng: np.random.Generator) -> Float:
    return rng.integers(-1, 2, size=(40, 4)).astype(np.float64)


def rank_deficient(rng: np.random.Generator) -> Float:
    return rng.standard_normal((30, 2)) @ rng.standard_normal((2, 5))


def fewer_samples(rng: np.random.Generator) -> Float:
    return rng.standard_normal((4, 9))


def fewer_samples_dependent(rng: np.random.Generator) -> Float:
    X = rng.standard_normal((5, 9))
    X[4] = X[0] + X[1]
    X[3] = 0.0
    return X


def badly_scaled(rng: np.random.Generator) -> Float:
    scales = np.power(10.0, rng.uniform(-12, 12, size=(30, 1)))
    return np.asarray(rng.standard_normal((30, 5)) * scales)


def bad_columns(rng: np.random.Generator) -> Float:
    return np.asarray(rng.standard_normal((30, 5)) * np.array([1e-3, 1.0, 1e2, 1e-2, 1.0]))


def one_row(rng: np.random.Generator) -> Float:
    return rng.standard_normal((1, 3))


def one_column(rng: np.random.Generator) -> Float:
    return rng.standard_normal((7, 1))


def zero_rows(rng: np.random.Generator) -> Float:
    X = rng.standard_normal((12, 4))
    X[::3] = 0.0
    return X


def all_zero(rng: np.random.Generator) -> Float:
    return np.zeros((5, 3))


def nearly_dependent(rng: np.random.Generator) -> Float:
    X = rng.standard_normal((8, 5))
    return np.vstack([X, X + 1e-13 * rng.standard_normal(X.shape), X + 1e-7 * rng.standard_normal(X.shape)])


def constant_column(rng: np.random.Generator) -> Float:
    return np.hstack([rng.standard_normal((25, 4)), np.ones((25, 1))])


DATA: list[Callable[[np.random.Generator], Float]] = [
    generic,
    repeated_rows,
    integer_grid,
    rank_deficient,
    fewer_samples,
    fewer_samples_dependent,
    badly_scaled,
    bad_columns,
    one_row,
    one_column,
    zero_rows,
    all_zero,
    nearly_dependent,
    constant_column,
]


def patterns_of(X: Float, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Patterns of Gaussian gates, of tied gates, all, none, and arbitrary bits (cones without interior)."""
    n, d = X.shape
    cells = X @ rng.standard_normal((d, 8)) >= 0.0
    ties = X @ rng.integers(-1, 2, size=(d, 4)) >= 0.0
    arbitrary = rng.random((n, 6)) < 0.5
    return np.hstack([cells, ties, np.ones((n, 1), bool), np.zeros((n, 1), bool), arbitrary])


def blocks(X: Float, rng: np.random.Generator) -> tuple[NDArray[np.bool_], NDArray[np.intp], Float]:
    """Patterns, the gate of every point, and points of many sizes; the first ones as dual directions are."""
    patterns = patterns_of(X, rng)
    gates = np.concatenate([np.arange(patterns.shape[1])] * 3)
    Z = rng.standard_normal((X.shape[1], gates.size))
    Z[:, ::7] *= 1e-9
    Z[:, 3::7] *= 1e9
    Z[:, 5::11] = 0.0
    theta = rng.standard_normal(X.shape[:1])
    third = patterns.shape[1]
    largest = float(np.max(np.sum(X * X, axis=1))) ** 0.5
    scale = 1.0 / largest if largest > 0.0 else 1.0
    weighted = np.where(patterns, theta[:, None], 0.0)
    Z[:, :third] = scale * (X.T @ weighted)
    return patterns, gates, Z


def signed(X: Float, patterns: NDArray[np.bool_], gate: int) -> Float:
    """The unit rows whose products with points of the cone are not negative."""
    norms = np.sqrt(np.sum(X * X, axis=1))
    unit = X / np.where(norms > 0.0, norms, 1.0)[:, None]
    return np.asarray(np.where(patterns[:, gate], 1.0, -1.0)[:, None] * unit)
