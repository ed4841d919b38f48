"""Local ascent of ``||W^T (X u)_+||`` on the unit sphere, from many starting points at once."""

from __future__ import annotations

import numpy as np

from convexnn_models._arrays import Float64Array

_SMALLEST_STEP = 1e-6
_BATCH_ENTRIES = 2_000_000  # of products of samples and starting points


def ascend(
    X: Float64Array, W: Float64Array, starts: Float64Array, iterations: int = 100
) -> tuple[Float64Array, Float64Array]:
    """Values (m,) and unit vectors (d, m), none worse than the ``starts`` (d, m) after scaling them.

    ``X`` is (n, d), ``W`` (n, c); for c = 1 the value is ``|w^T (X u)_+|``. A step goes from u towards the
    normalised gradient, ``X^T (1[X u > 0] o (W a))`` with a the unit vector along ``W^T (X u)_+``. For a
    full step the value never falls where W a >= 0; elsewhere steps are halved until it rises.
    """
    size = max(1, _BATCH_ENTRIES // len(X))
    parts = [
        _ascend(X, W, starts[:, b : b + size], iterations) for b in range(0, max(starts.shape[1], 1), size)
    ]
    return np.concatenate([values for values, _ in parts]), np.concatenate([u for _, u in parts], axis=1)


def _ascend(
    X: Float64Array, W: Float64Array, starts: Float64Array, iterations: int
) -> tuple[Float64Array, Float64Array]:
    points = _unit(starts)
    products = X @ points
    sums = W.T @ np.maximum(products, 0.0)
    values = np.linalg.norm(sums, axis=0)
    steps = np.ones(points.shape[1])
    for _ in range(iterations):
        moving = np.flatnonzero(steps > _SMALLEST_STEP)
        if moving.size == 0:
            break
        towards = W @ _unit(sums[:, moving])
        gradient = _unit(X.T @ np.where(products[:, moving] > 0.0, towards, 0.0))
        candidates = _unit(points[:, moving] + steps[moving] * (gradient - points[:, moving]))
        moved = X @ candidates
        moved_sums = W.T @ np.maximum(moved, 0.0)
        moved_values = np.linalg.norm(moved_sums, axis=0)
        better = moved_values > values[moving]
        accepted = moving[better]
        points[:, accepted], products[:, accepted] = candidates[:, better], moved[:, better]
        sums[:, accepted], values[accepted] = moved_sums[:, better], moved_values[better]
        steps[moving] = np.where(better, np.minimum(1.5 * steps[moving], 1.0), 0.5 * steps[moving])
    return values, points


def _unit(columns: Float64Array) -> Float64Array:
    """The columns divided by their norms; zero columns stay zero."""
    lengths = np.linalg.norm(columns, axis=0)
    return np.asarray(columns / np.where(lengths > 0.0, lengths, 1.0))
