"""Coordinates in which the rows of X are unit vectors, spread evenly over all directions.

Patterns do not change when rows are scaled, nor when columns are scaled or mixed. Rounding errors do: so rows
and columns are scaled, dependent directions dropped, and the rest mixed until all directions are alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import comb

import numpy as np
from numpy.typing import NDArray

from convexnn_models import _arrays
from convexnn_models._arrays import Float64Array
from convexnn_solvers.named_options import checked_options

#: Distances, and singular values relative to the largest, up to this count as rounding.
FLAT = 1e-12
_EPS = float(np.finfo(np.float64).eps)


@checked_options
def count_patterns(n: int, rank: int) -> int:
    """How many patterns n samples in general position have: ``2 sum_(k < rank) C(n - 1, k)`` (Cover).

    ``rank`` is that of X, with the column of ones if there is a bias. Samples that are not in general
    position have fewer. ValueError unless both numbers are at least 1.
    """
    rows, r = _arrays.count(n, "n"), _arrays.count(rank, "rank")
    return 2 * sum(comb(rows - 1, k) for k in range(min(r, rows)))


@dataclass(frozen=True, eq=False)
class Coordinates:
    """Unit rows (m, r) for the ``live`` non-zero rows of X (n, d); gates of X are ``back @ w``, back (d, r).

    ``dropped``: no unit vector u has products ``x_i . u`` that differ by more than ``dropped ||x_i||`` from
    those of some ``back @ w``.
    """

    rows: Float64Array
    back: Float64Array
    live: NDArray[np.bool_]
    dropped: float

    @staticmethod
    def of(X: Float64Array) -> Coordinates:
        """The coordinates of X (n, d); ValueError when all rows are zero."""
        live = np.any(X != 0.0, axis=1)
        if not live.any():
            raise ValueError("X has only zero rows, which no gate tells apart; pass bias=True.")
        columns = _lengths(unit_rows(X[live]).T)
        used = np.flatnonzero(columns > 0.0)
        scaled = unit_rows(unit_rows(X[live][:, used]) / columns[used])
        left, singular, right = np.linalg.svd(scaled, full_matrices=False)
        rank = int(np.count_nonzero(singular > FLAT * singular[0]))
        back = np.zeros((X.shape[1], rank))
        back[used] = right[:rank].T / singular[:rank] / columns[used, None]
        lost = singular[rank] if rank < min(scaled.shape) else 0.0
        dropped = float(lost * columns[used].max() / columns[used].min())
        return Coordinates(unit_rows(left[:, :rank]), back, live, dropped)

    @property
    def general_count(self) -> int:
        """The number of patterns if the live rows are in general position."""
        return count_patterns(*self.rows.shape)

    def missed(self, X: Float64Array) -> float:
        """How far a unit vector can be from all cells that float64 tells from rounding.

        A cell is missing from the list of patterns if it is too thin: no unit vector in it is farther than
        t from all hyperplanes, where t is ``FLAT`` or what rounding in ``X @ u`` amounts to. Then a convex
        combination of at most r + 1 of its rows is shorter than t, so every unit vector in it is within
        ``(r + 1) t`` of some hyperplane. A ball of radius R inside the missing cells is covered by such
        layers, n at most, and comparing volumes gives ``R <= n (r + 1)^1.5 t``.
        """
        n, r = self.rows.shape
        stretch = np.linalg.svd(self.back, compute_uv=False)
        data = X[self.live]
        rounding = 4.0 * X.shape[1] * _EPS * stretch[0] * np.max(_lengths(data) / _lengths(data @ self.back))
        radius = 4.0 * n * (r + 1.0) ** 1.5 * max(FLAT, float(rounding))
        return float(radius * stretch[0] / stretch[-1]) + self.dropped


def unit_rows(rows: Float64Array) -> Float64Array:
    """Non-zero rows divided by their norms, without under- or overflow of the squares."""
    scaled = rows / np.abs(rows).max(axis=1, keepdims=True)
    return np.asarray(scaled / _lengths(scaled)[:, None])


def _lengths(rows: Float64Array) -> Float64Array:
    return np.asarray(np.sqrt(np.einsum("ij,ij->i", rows, rows)))
