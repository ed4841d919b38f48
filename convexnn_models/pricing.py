"""How much a new neuron could gain: the maximum of ``||W^T (X u)_+||`` over all gates u in the unit ball.

For the residual ``theta`` of a convex program with regularisation ``reg``, a gate u with
``|theta^T (X u)_+| > reg`` is missing from the program; if there is none, its optimum is the global optimum
of the network. Scaling theta by reg over an *upper bound* of the maximum gives a lower bound for every
network. All bounds here are rigorous and safe in floating point:

* :func:`relaxed_price`: local ascent and a relaxation, in time proportional to n for large n;
* :func:`price`: branch and bound, to a tolerance or as far as the time allows; `benchmarks/pricing_bounds.py`
  times it beside a mixed-integer program;
* :func:`enumerated_price`: all activation patterns one by one, where they can be listed.

For several outputs (W has c columns) the maximum of the norm is at most the root of the sum of the squared
maxima of the outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from convexnn_models import _arrays
from convexnn_models._arrays import Float64Array
from convexnn_models.arrangements import all_gates
from convexnn_models.ascent import ascend
from convexnn_models.bracket import Bracket, Goal, Search, bracketed
from convexnn_models.cone_search import ConeSearch
from convexnn_models.coordinates import Coordinates
from convexnn_models.gates import Gates
from convexnn_models.sign_search import SignSearch
from convexnn_solvers.cones.projections import PatternCones
from convexnn_solvers.named_options import checked_options

_EPS = float(np.finfo(np.float64).eps)
#: Up to this rank of X cones of directions are the faster branch and bound, beyond it signs of samples.
CONE_SEARCH_RANK = 4
_STARTS = 200  # of the local ascent ...
_START_ENTRIES, _FEW_STARTS = 1_000_000, 10  # ... and of the relaxation, whose cost shall follow n alone
# Up to so many cones, and products of cones with samples, are as fast as the relaxation of the signs, and
# from so many on they are tighter.
_QUICK_CONES, _QUICK_ENTRIES, _FEW_CONES = 2000, 20_000_000, 200
_PROJECTIONS = 2000  # cells per batch of the enumeration

_MakeSearch = Callable[[Float64Array, Float64Array, Float64Array], Search]


@dataclass(frozen=True, eq=False)
class Price:
    """``lower <= max ||W^T (X u)_+|| <= upper`` over ``||u|| <= 1``.

    ``witness`` (d,) in the unit ball attains ``lower`` up to rounding; ``finished`` tells whether ``upper``
    is as low as was asked for.
    """

    lower: float
    upper: float
    witness: Float64Array
    finished: bool

    def __str__(self) -> str:
        return f"between {self.lower:.9g} and {self.upper:.9g}"


@checked_options
def price(
    X: Any,
    theta: Any,
    *,
    tol: float = 1e-4,
    floor: float = 0.0,
    enough: float = np.inf,
    time_limit: float = 60.0,
    seed: int = 0,
) -> Price:
    """Bracket ``max ||theta^T (X u)_+||`` over the unit ball by local ascent and branch and bound.

    Parameters
    ----------
    X : array (n, d)
        Samples, with the column of ones if the neurons have a bias.
    theta : array (n,) or (n, c)
        One weight per sample and output.
    tol : float
        The search ends once ``upper <= (1 + tol) lower`` (for every output) ...
    floor : float
        ... or ``upper <= floor``: values up to here need not be told apart ...
    enough : float
        ... or ``lower > enough`` (one output): a gate with such a value was all that was wanted ...
    time_limit : float
        ... or after so many seconds, with the bracket of that moment.
    seed : int
        Of the starting points of the local ascent.

    Raises ValueError or TypeError for data of other shapes and for negative limits.
    """
    limits = Goal(
        tol=_arrays.not_negative(tol, "tol"),
        floor=_arrays.not_negative(floor, "floor", finite=False),
        enough=_arrays.not_negative(enough, "enough", finite=False),
        time_limit=_arrays.not_negative(time_limit, "time_limit", finite=False),
    )
    return _priced(X, theta, limits, seed)


@checked_options
def relaxed_price(X: Any, theta: Any, *, seed: int = 0) -> Price:
    """The bracket of :func:`price` for the same ``X``, ``theta`` and ``seed``: quick, and less tight.

    From local ascent and a relaxation. Its time is proportional to the number of samples where that is
    large, for the ascent then has fewer starts. Up to rank CONE_SEARCH_RANK, unless n is large, the
    relaxation is that of a few thousand cones, which often is exact. Raises ValueError or TypeError for data
    of other shapes.
    """
    data = _Given.of(X, theta).X
    starts = int(np.clip(_START_ENTRIES // len(data), _FEW_STARTS, _STARTS))
    cones = min(_QUICK_CONES, _QUICK_ENTRIES // data.size)
    if cones >= _FEW_CONES and _RowSpace.of(data).rank <= CONE_SEARCH_RANK:
        return _priced(X, theta, Goal(max_nodes=cones), seed, ConeSearch, starts)
    return _priced(X, theta, Goal(max_nodes=0), seed, SignSearch, starts)


@checked_options
def enumerated_price(
    X: Any, theta: Any, gates: Gates | None = None, *, max_patterns: int = 1_000_000
) -> Price:
    """The same maximum, one output, by looking at every activation pattern.

    Parameters
    ----------
    X, theta : arrays (n, d) and (n,)
        As for :func:`price`.
    gates : Gates, optional
        What ``all_gates(X)`` returned, to be used again for another theta; with other gates the upper bound
        would be wrong.
    max_patterns : int
        As for :func:`all_gates`, which is called when there are no ``gates``.

    Raises ValueError for more patterns or several outputs, TypeError for ``gates`` of another kind.
    """
    if gates is not None and not isinstance(gates, Gates):
        raise TypeError(f"gates must be what all_gates(X) returned, or None, not {type(gates).__name__}.")
    given = _Given.of(X, theta)
    data, weights = given.X, given.theta
    if weights.shape[1] != 1:
        raise ValueError("theta must have shape (n,) here; enumerate the outputs one by one.")
    scale = _scale(data, weights[:, 0])
    if scale == 0.0:
        return Price(0.0, 0.0, np.zeros(data.shape[1]), True)
    listed = all_gates(data, max_patterns=max_patterns) if gates is None else gates
    if listed.patterns.shape[0] != data.shape[0]:
        raise ValueError(f"gates must have patterns for {data.shape[0]} samples, like X.")
    best, point = _largest_block(data, weights[:, 0], listed)
    coordinates = Coordinates.of(data)
    complete = len(listed) == coordinates.general_count and coordinates.dropped == 0.0
    distance = 0.0 if complete else coordinates.missed(data)
    upper = best + scale * _EPS * 16.0 * sum(data.shape) + distance * (scale + best)
    lower = float(np.abs(weights[:, 0] @ np.maximum(data @ point, 0.0)))
    return Price(given.unit * min(lower, upper), given.unit * upper, point, True)


def _largest_block(X: Float64Array, theta: Float64Array, gates: Gates) -> tuple[float, Float64Array]:
    """The largest ``||P_K(+-X^T D theta)||`` of the gates, and the unit vector that belongs to it."""
    blocks = (theta[:, None] * X).T @ gates.patterns
    lengths = np.linalg.norm(blocks, axis=0)
    order = np.argsort(-lengths)
    cones = PatternCones(X, gates.patterns)
    best, point = 0.0, np.zeros(X.shape[1])
    for start in range(0, order.size, _PROJECTIONS):
        columns = order[start : start + _PROJECTIONS]
        if lengths[columns[0]] <= best:
            break
        both = np.concatenate([blocks[:, columns], -blocks[:, columns]], axis=1)
        projected = cones.project(both, np.concatenate([columns, columns])).points
        norms = np.linalg.norm(projected, axis=0)
        top = int(np.argmax(norms))
        if norms[top] > best:
            best, point = float(norms[top]), projected[:, top] / norms[top]
    return best, point


def local_maxima(
    X: Float64Array,
    theta: Float64Array,
    *,
    starts: int = _STARTS,
    seed: int = 0,
    near: Float64Array | None = None,
) -> tuple[Float64Array, Float64Array]:
    """Values (m,), decreasing, and unit vectors (d, m) that local ascent found from random directions.

    It also starts from the directions ``near`` (d, k), if given, each moved a little at random.
    """
    rng = _arrays.generator(seed)
    directions = rng.standard_normal((X.shape[1], starts))
    if near is not None and near.size:
        lengths = np.linalg.norm(near, axis=0)
        unit = near[:, lengths > 0.0] / lengths[lengths > 0.0]
        noise = rng.standard_normal(unit.shape) / np.sqrt(X.shape[1])
        directions = np.concatenate([unit, unit + 0.3 * noise, directions], axis=1)
    values, points = ascend(X, theta.reshape(len(X), -1), directions)
    order = np.argsort(-values)
    return values[order], points[:, order]


def _priced(
    X: Any, theta: Any, limits: Goal, seed: int, search: _MakeSearch | None = None, starts: int = _STARTS
) -> Price:
    given = _Given.of(X, theta)
    goal = replace(limits, floor=limits.floor / given.unit, enough=limits.enough / given.unit)
    data, weights = _merged(given.X, given.theta)
    c = weights.shape[1]
    space = _RowSpace.of(data)
    chosen = search or (ConeSearch if space.rank <= CONE_SEARCH_RANK else SignSearch)
    values, points = local_maxima(space.coordinates, weights, starts=starts, seed=seed)
    lower, witness = float(values[0]), points[:, 0]
    finished, uppers = True, []
    for k in range(c):
        share = replace(
            goal,
            floor=goal.floor / np.sqrt(c),
            enough=goal.enough if c == 1 else np.inf,
            time_limit=goal.time_limit - goal.seconds_left * (c - k - 1) / (c - k),
        )
        if c > 1:
            points = local_maxima(space.coordinates, weights[:, k], starts=starts, seed=seed)[1]
        found = _both_signs(space.coordinates, weights[:, k], points, share, chosen)
        finished = finished and found.finished
        rounding = 4.0 * _EPS * _scale(given.X, given.theta[:, k])
        uppers.append(found.upper + space.missing * float(np.linalg.norm(weights[:, k])) + rounding)
        value = float(np.linalg.norm(weights.T @ np.maximum(space.coordinates @ found.point, 0.0)))
        if value > lower:
            lower, witness = value, found.point
    upper = float(np.linalg.norm(uppers)) * (1.0 + 4.0 * _EPS * c)
    return Price(given.unit * min(lower, upper), given.unit * upper, space.basis @ witness, finished)


def _both_signs(
    X: Float64Array, theta: Float64Array, starts: Float64Array, goal: Goal, search: _MakeSearch
) -> Bracket:
    """The bracket of the larger one of the maxima for theta and -theta."""
    if _scale(X, theta) == 0.0:
        return Bracket(0.0, 0.0, np.zeros(X.shape[1]), 0, True)
    values = theta @ np.maximum(X @ starts, 0.0)
    highest, lowest = starts[:, int(np.argmax(values))], starts[:, int(np.argmin(values))]
    return bracketed([search(X, theta, highest), search(X, -theta, lowest)], goal)


@dataclass(frozen=True, eq=False)
class _RowSpace:
    """Samples in an orthonormal basis (d, r) of their row space, and the norm of what that leaves out."""

    coordinates: Float64Array
    basis: Float64Array
    missing: float

    @property
    def rank(self) -> int:
        return int(self.coordinates.shape[1])

    @staticmethod
    def of(X: Float64Array) -> _RowSpace:
        _, singular, right = np.linalg.svd(X, full_matrices=False)
        rounding = max(X.shape) * _EPS * float(singular[0])
        rank = max(1, int(np.count_nonzero(singular > rounding)))
        basis = right[:rank].T
        return _RowSpace(X @ basis, basis, 4.0 * rounding + float(np.max(singular[rank:], initial=0.0)))


@dataclass(frozen=True, eq=False)
class _Given:
    """X (n, d) and theta as (n, c), both divided by powers of two that add up to ``unit``: no overflow."""

    X: Float64Array
    theta: Float64Array
    unit: float

    @staticmethod
    def of(X: Any, theta: Any) -> _Given:
        data, weights = _arrays.features(X), _arrays.numbers(theta, "theta")
        n = data.shape[0]
        if weights.ndim not in (1, 2) or weights.shape[0] != n or weights.size == 0:
            raise ValueError(f"theta must have shape ({n},) or ({n}, c), not {weights.shape}.")
        units = [2.0 ** float(np.frexp(np.abs(array).max())[1]) for array in (data, weights)]
        return _Given(data / units[0], weights.reshape(n, -1) / units[1], units[0] * units[1])


def _merged(X: Float64Array, theta: Float64Array) -> tuple[Float64Array, Float64Array]:
    """Equal samples as one, with the sum of their weights: the same function with fewer kinks."""
    rows, index = np.unique(X, axis=0, return_inverse=True)
    if len(rows) == len(X):
        return X, theta
    weights = np.zeros((len(rows), theta.shape[1]))
    np.add.at(weights, index.reshape(-1), theta)
    return rows, weights


def _scale(X: Float64Array, theta: Float64Array) -> float:
    """``sum_i |theta_i| ||x_i||``, which no value exceeds."""
    return float(np.abs(theta) @ np.sqrt(np.einsum("ij,ij->i", X, X)))
