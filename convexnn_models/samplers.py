"""From where random gates come: each sampler draws directions for given samples.

A sampler is a function ``(samples, m, rng) -> vectors`` of the :class:`Samples` that the gates are for, with
m gates as the rows of the result, (m, d) or (m, d + 1) with a bias. ``sample_gates`` keeps those with new
patterns that pass through no sample, so a sampler may repeat itself. Pass one by name or as a function.

Which one? Gaussian gates find a pattern with the probability of its cell's solid angle: large cells first.
``"vertices"`` finds small cells about as often as large ones. The others look where neurons often end up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from convexnn_models import _arrays
from convexnn_models._arrays import Float64Array
from convexnn_models.coordinates import Coordinates

_ENTRIES = 2_000_000  # of one batch of small matrices
_THROUGH = 1e-9  # the cosine of ray and sample up to which the ray lies in the sample's hyperplane


@dataclass(frozen=True, eq=False)
class Samples:
    """``rows`` (n, d), or (n, d + 1) with a last column of ones when gates have a ``bias``."""

    rows: Float64Array
    bias: bool

    @property
    def features(self) -> Float64Array:
        """The rows without the column of ones."""
        return self.rows[:, :-1] if self.bias else self.rows

    @cached_property
    def coordinates(self) -> Coordinates:
        """Those in which the rows are spread evenly."""
        return Coordinates.of(self.rows)


Sampler = Callable[[Samples, int, np.random.Generator], Float64Array]


def gaussian(samples: Samples, m: int, rng: np.random.Generator) -> Float64Array:
    """Standard normal vectors."""
    return rng.standard_normal((m, samples.rows.shape[1]))


def sphere(samples: Samples, m: int, rng: np.random.Generator) -> Float64Array:
    """Unit vectors, uniformly: the patterns of :func:`gaussian`, as length does not change a pattern."""
    vectors = gaussian(samples, m, rng)
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def differences(samples: Samples, m: int, rng: np.random.Generator) -> Float64Array:
    """``x_i - x_j`` for random pairs; with a bias the hyperplane half-way between the two."""
    X = samples.features
    first, second = X[rng.integers(len(X), size=m)], X[rng.integers(len(X), size=m)]
    vectors = first - second
    if not samples.bias:
        return vectors
    offsets = -0.5 * np.einsum("ij,ij->i", vectors, first + second)
    return np.column_stack([vectors, offsets])


def quantiles(samples: Samples, m: int, rng: np.random.Generator) -> Float64Array:
    """Standard normal weights with a bias for which every number of active samples is equally likely.

    The bias is that of a hyperplane half-way between two samples that are neighbours along the weights.
    """
    if not samples.bias:
        raise ValueError('sampler "quantiles" places offsets, so it needs bias=True.')
    X = samples.features
    weights = rng.standard_normal((m, X.shape[1]))
    heights = np.sort(X @ weights.T, axis=0)
    below = np.vstack([2.0 * heights[:1] - heights[-1:] - 1.0, heights])  # one step below the lowest
    place = rng.integers(len(X), size=m)
    columns = np.arange(m)
    offsets = -0.5 * (below[place, columns] + heights[place, columns])
    return np.column_stack([weights, offsets])


def feature_sparse(features: int | None = None) -> Sampler:
    """Standard normal on ``features`` random features (default: root of their number), zero on the others."""
    chosen = None if features is None else _arrays.count(features, "features")

    def draw(samples: Samples, m: int, rng: np.random.Generator) -> Float64Array:
        d = samples.features.shape[1]
        size = round(d**0.5) if chosen is None else chosen
        if size > d:
            raise ValueError(f"features must be at most {d}, the number of features of X, not {size}.")
        vectors = gaussian(samples, m, rng)
        ranks = rng.random((m, d)).argsort(axis=1).argsort(axis=1)
        vectors[:, :d] *= ranks < size
        return vectors

    return draw


def convolutional(shape: tuple[int, ...], size: int) -> Sampler:
    """Standard normal on a random ``size x size`` window of images, zero outside it.

    ``shape``: (height, width) or (height, width, channels) of the images that the rows of X are, flattened.
    """
    if not isinstance(shape, Sequence) or len(shape) not in (2, 3):
        raise ValueError(f"shape must be (height, width) or (height, width, channels), not {shape!r}.")
    height, width, channels = (*(_arrays.count(side, "shape") for side in shape), 1)[:3]
    side = _arrays.count(size, "size")
    if side > min(height, width):
        raise ValueError(f"size must be at most {min(height, width)}, the shorter side of shape, not {size}.")

    def draw(samples: Samples, m: int, rng: np.random.Generator) -> Float64Array:
        d = samples.features.shape[1]
        if height * width * channels != d:
            raise ValueError(f"shape {shape!r} must have {d} entries, the number of features of X.")
        vectors = gaussian(samples, m, rng)
        tops, lefts = rng.integers(height - side + 1, size=m), rng.integers(width - side + 1, size=m)
        down = np.arange(height) - tops[:, None]
        right = np.arange(width) - lefts[:, None]
        inside = ((down >= 0) & (down < side))[:, :, None] & ((right >= 0) & (right < side))[:, None, :]
        vectors[:, :d] *= np.repeat(inside.reshape(m, -1), channels, axis=1)
        return vectors

    return draw


def vertices(samples: Samples, m: int, rng: np.random.Generator) -> Float64Array:
    """Next to random rays in which hyperplanes of samples meet: thin cells are found as often as wide ones.

    Patterns are the vertices of the zonotope ``X^T [0, 1]^n``, and a ray is one of its facets' normals. Of
    X with rank r, r - 1 random samples span the ray; it is left by random signs of these samples, and so
    little that no other sample changes sign. The cost of a gate is that of an r x r decomposition.
    """
    rows, back = samples.coordinates.rows, samples.coordinates.back
    r = rows.shape[1]
    step = max(1, _ENTRIES // (r * r + len(rows)))
    parts = [_beside_rays(rows, min(step, m - start), rng) for start in range(0, m, step)]
    vectors = np.concatenate(parts) @ back.T
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def _beside_rays(rows: Float64Array, m: int, rng: np.random.Generator) -> Float64Array:
    """Points (m, r), each in a cell that touches a random ray."""
    n, r = rows.shape
    if r == 1:
        return rng.choice([-1.0, 1.0], size=(m, 1))
    members = rng.random((m, n)).argpartition(r - 1, axis=1)[:, : r - 1]
    meeting = rows[members]  # (m, r - 1, r)
    _, _, right = np.linalg.svd(meeting, full_matrices=True)
    rays = right[:, -1] * rng.choice([-1.0, 1.0], size=(m, 1))
    signs = rng.choice([-1.0, 1.0], size=(m, r - 1)) * rng.uniform(0.5, 1.5, size=(m, r - 1))
    away = np.matvec(np.linalg.pinv(meeting), signs)
    heights, slopes = np.abs(rays @ rows.T), np.abs(away @ rows.T)
    np.put_along_axis(heights, members, np.inf, axis=1)
    heights[heights <= _THROUGH] = np.inf  # other samples whose hyperplanes have the ray in common
    reach = np.min(heights / np.maximum(slopes, 1e-300), axis=1)
    return np.asarray(rays + 0.5 * np.minimum(reach, 1.0)[:, None] * away)


def drawn(sampler: Sampler, samples: Samples, m: int, rng: np.random.Generator) -> Float64Array:
    """What a sampler draws, after a check; ValueError when that is not m finite vectors."""
    vectors = np.asarray(sampler(samples, m, rng), dtype=np.float64)
    expected = (m, samples.rows.shape[1])
    if vectors.shape != expected or not np.isfinite(vectors).all():
        raise ValueError(f"sampler must return finite vectors as an array {expected}, not {vectors.shape}.")
    return vectors


_NAMED: dict[str, Sampler] = {
    "gaussian": gaussian,
    "sphere": sphere,
    "differences": differences,
    "quantiles": quantiles,
    "sparse": feature_sparse(),
    "vertices": vertices,
}


def named(sampler: str | Sampler) -> Sampler:
    """The sampler of this name, or the function itself."""
    if callable(sampler):
        return sampler
    if not isinstance(sampler, str) or sampler not in _NAMED:
        names = ", ".join(repr(name) for name in _NAMED)
        raise ValueError(
            f"sampler must be one of {names}, or a function such as convolutional(shape, size); "
            f"not {sampler!r}."
        )
    return _NAMED[sampler]
