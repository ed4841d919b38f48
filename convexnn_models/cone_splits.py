"""Splitting gated weights: ``u = v - w`` with v and w in the cone ``K = {z : (2 D - I) X z >= 0}`` of a gate.

With ``v = u + w`` that asks for ``(2 D - I) X w >= max(-(2 D - I) X u, 0)``; the split of least
``||u + w|| + ||w||`` is a second-order cone program. :func:`cheapest_split` solves it, one neuron at a time.
:func:`smoothed_splits` replaces the norms by ``sqrt(||.||^2 + eps^2)`` and the constraints by the squares of
their violation, minimises by FISTA (Beck and Teboulle 2009) for all neurons at once, and repairs what comes
out: its splits are exact as well, only dearer. Both move points into the cone along a point of its interior.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import cvxpy as cp
import numpy as np
import scipy.optimize
from numpy.typing import NDArray

from convexnn_models._arrays import Float64Array

_INTERIOR = 1e-12  # a smaller relative margin of every sample counts as an empty interior
_MARGIN = 1e-9  # and one that linear programming did not find wider than this
_SMALL = 1e-6  # a solver's rounding that takes a longer relative move is repaired along the widest point
_OUTWARD = 1.0 + 1e-9  # moves are longer by this factor, so that rounding does not undo them
# The smoothed program: eps relative to the cost of a neuron's split, the curvature of the violations relative
# to that of the norms, doubled from stage to stage up to _STIFFEST, and the steps of a stage; ...
_EPS, _STIFFNESS, _STIFFEST, _STEPS, _STAGES = 0.05, 4.0, 1e4, 40, 25
# ... stages end early once every cost is proved to be within this factor of the least one.
_ENOUGH = 1.01
_TINY = float(np.finfo(np.float64).tiny)

_Gradient = Callable[[Float64Array], Float64Array]


@dataclass(frozen=True, eq=False)
class GatedNeurons:
    """Weights ``hidden`` (d, m) that are to be split, and the cones to split them in.

    X is (n, d), with the column of ones if there is a bias; ``gates`` (d or fewer, m) and ``patterns`` (n, m)
    belong to the columns of ``hidden``.
    """

    X: Float64Array
    gates: Float64Array
    patterns: NDArray[np.bool_]
    hidden: Float64Array

    @property
    def rows(self) -> Float64Array:
        """The samples that are not zero, divided by their norms."""
        live = self.X[self.X.any(axis=1)]
        live = live / np.max(np.abs(live), axis=1, keepdims=True)  # lest the squares overflow
        return np.asarray(live / np.linalg.norm(live, axis=1)[:, None])

    @property
    def signs(self) -> Float64Array:
        """``2 D - I`` of these samples, one column for each neuron."""
        return np.where(self.patterns[self.X.any(axis=1)], 1.0, -1.0)

    def interior(self, column: int, *, widest: bool = False) -> Float64Array:
        """A unit vector inside the cone of one neuron: its gate, unless that passes through a sample.

        ``widest``: the one with the largest margin in the unit cube instead, by linear programming. Raises
        ValueError when there is none.
        """
        signed, gate = self.signs[:, column, None] * self.rows, self.gates[:, column]
        d = signed.shape[1]
        inside = gate.size == d and np.min(signed @ gate) > _INTERIOR * np.linalg.norm(gate)
        if inside and not widest:
            return np.asarray(gate / np.linalg.norm(gate))
        found = scipy.optimize.linprog(
            np.append(np.zeros(d), -1.0),
            A_ub=np.hstack([-signed, np.ones((signed.shape[0], 1))]),
            b_ub=np.zeros(signed.shape[0]),
            bounds=[(-1.0, 1.0)] * d + [(0.0, 1.0)],
            method="highs",
        )
        if found.x is not None and np.min(signed @ found.x[:-1]) > _MARGIN:
            return np.asarray(found.x[:-1] / np.linalg.norm(found.x[:-1]), dtype=np.float64)
        if inside:
            return np.asarray(gate / np.linalg.norm(gate))
        raise ValueError(
            f"network's gate {column} passes through a sample, and no weights around it have its pattern, so "
            "its neuron cannot be decomposed; make the gates with sample_gates or gates_from_vectors."
        )


def splits(neurons: GatedNeurons, *, smoothed: bool = False) -> Float64Array:
    """The parts (d, 2 m): v and w of the first neuron, of the second one, and so on.

    Raises ValueError when a neuron has to be split and its cone has no interior, cvxpy.SolverError when
    Clarabel fails.
    """
    hidden = neurons.hidden
    d, m = hidden.shape
    parts = np.zeros((d, 2 * m))
    activations = neurons.signs * (neurons.rows @ hidden)
    inside, opposite = np.all(activations >= 0.0, axis=0), np.all(activations <= 0.0, axis=0)
    parts[:, 0::2] = np.where(inside, hidden, 0.0)
    parts[:, 1::2] = np.where(opposite & ~inside, -hidden, 0.0)
    torn = np.flatnonzero(~inside & ~opposite)
    if smoothed and torn.size:
        parts[:, 2 * torn], parts[:, 2 * torn + 1] = smoothed_splits(neurons, torn)
    elif torn.size:
        for column in torn:
            parts[:, 2 * column : 2 * column + 2] = cheapest_split(neurons, int(column))
    return parts


def cheapest_split(neurons: GatedNeurons, column: int) -> Float64Array:
    """v and w (d, 2) of least ``||v|| + ||w||`` for one neuron that lies in neither K nor -K, by Clarabel."""
    u = neurons.hidden[:, column]
    signed = neurons.signs[:, column, None] * neurons.rows
    inner = neurons.interior(column)
    length = float(np.linalg.norm(u))
    w = cp.Variable(u.size)
    unit = u / length
    distance: Any = cp.norm(unit + w) + cp.norm(w)
    problem = cp.Problem(cp.Minimize(distance), [signed @ w >= np.maximum(-(signed @ unit), 0.0)])
    problem.solve(solver=cp.CLARABEL)
    if w.value is None:
        raise cp.SolverError(f"Clarabel found no decomposition of neuron {column} ({problem.status}).")
    pair = length * np.stack([unit + w.value, w.value], axis=1)
    # Both parts move by the same small multiple of an interior point: v - w stays u.
    moved = _moved(pair, signed, inner)
    if np.linalg.norm(moved - pair) > _SMALL * length:  # a gate close to a sample
        moved = _moved(pair, signed, neurons.interior(column, widest=True))
    return moved


def _moved(pair: Float64Array, signed: Float64Array, inner: Float64Array) -> Float64Array:
    move = float(np.max(-(signed @ pair) / (signed @ inner)[:, None], initial=0.0))
    return np.asarray(pair + _OUTWARD * move * inner[:, None])


def smoothed_splits(neurons: GatedNeurons, columns: NDArray[np.intp]) -> tuple[Float64Array, Float64Array]:
    """v and w (d, k) of these neurons, each in neither K nor -K: in the cone, ``v - w = u``, nearly cheapest.

    Stages of FISTA on the smoothed program; after each the violations that are left become multipliers, and
    the point is repaired. The cheapest repaired point of each neuron is returned.
    """
    lengths = np.linalg.norm(neurons.hidden[:, columns], axis=0)
    inner = np.stack([neurons.interior(int(column), widest=True) for column in columns], axis=1)
    program = _Program.of(neurons.rows, neurons.signs[:, columns], neurons.hidden[:, columns] / lengths)
    w, multipliers = np.zeros_like(inner), np.zeros_like(program.need)
    best = program.repaired(w, inner)
    costs, least = program.cost(best), np.zeros(columns.size)
    for stage in range(_STAGES):
        stiffness = min(_STIFFNESS * 2.0**stage, _STIFFEST)
        eps = _EPS * program.cost(w)
        weight = stiffness / (eps * program.curvature)
        target = program.need + multipliers / weight
        w = fista(partial(program.gradient, eps, weight, target), w, eps / (2.0 + stiffness))
        multipliers = weight * program.violated(w, target)
        point = program.repaired(w, inner)
        best = np.where(program.cost(point) < costs, point, best)
        costs, least = program.cost(best), np.maximum(least, program.least_cost(w, multipliers))
        if np.all(costs <= _ENOUGH * least):
            break
    return lengths * (program.unit + best), lengths * best


@dataclass(frozen=True, eq=False)
class _Program:
    """``min ||u + w|| + ||w||`` over ``signs * (rows @ w) >= need``, with a u in each column of ``unit``."""

    rows: Float64Array
    signs: Float64Array
    unit: Float64Array
    need: Float64Array
    curvature: float  # the squared norm of ``rows``

    @staticmethod
    def of(rows: Float64Array, signs: Float64Array, unit: Float64Array) -> _Program:
        need = np.maximum(-signs * (rows @ unit), 0.0)
        return _Program(rows, signs, unit, need, float(np.linalg.norm(rows, 2)) ** 2)

    def cost(self, w: Float64Array) -> Float64Array:
        return np.asarray(np.linalg.norm(self.unit + w, axis=0) + np.linalg.norm(w, axis=0))

    def violated(self, w: Float64Array, target: Float64Array) -> Float64Array:
        return np.asarray(np.maximum(target - self.signs * (self.rows @ w), 0.0))

    def repaired(self, w: Float64Array, inner: Float64Array) -> Float64Array:
        """``w``, moved along the interior points ``inner`` as far as its constraints ask."""
        move = np.max(self.violated(w, self.need) / (self.signs * (self.rows @ inner)), axis=0)
        return np.asarray(w + _OUTWARD * move * inner)

    def gradient(
        self, eps: Float64Array, weight: Float64Array, target: Float64Array, w: Float64Array
    ) -> Float64Array:
        """Of ``sum sqrt(||.||^2 + eps^2)`` over both parts ``+ weight/2 ||violations of target||^2``."""
        first, second = (z / np.sqrt(np.sum(z * z, axis=0) + eps**2) for z in (self.unit + w, w))
        pushes = self.rows.T @ (self.signs * self.violated(w, target))
        return np.asarray(first + second - weight * pushes)

    def least_cost(self, w: Float64Array, multipliers: Float64Array) -> Float64Array:
        """A lower bound of every split's cost: the Lagrangian's infimum, for multipliers >= 0.

        With ``B^T multipliers = a + b`` and a, b in the unit ball it is ``need^T multipliers + a^T u``; a and
        b are guessed from w, and everything is scaled down until they are short enough.
        """
        a, b = (z / np.maximum(np.linalg.norm(z, axis=0), _TINY) for z in (self.unit + w, w))
        rest = self.rows.T @ (self.signs * multipliers) - a - b
        a, b = a + rest / 2.0, b + rest / 2.0
        longest = np.maximum(np.linalg.norm(a, axis=0), np.linalg.norm(b, axis=0))
        value = np.sum(self.need * multipliers, axis=0) + np.sum(a * self.unit, axis=0)
        return np.asarray(value / np.maximum(longest, 1.0))


def fista(gradient: _Gradient, w: Float64Array, step: Float64Array) -> Float64Array:
    """_STEPS accelerated steps; each column of w (d, k) has its own program, step (k,) and restarts."""
    y, momentum = w, np.ones(w.shape[1])
    for _ in range(_STEPS):
        moved = y - step * gradient(y)
        back = np.sum((y - moved) * (moved - w), axis=0) > 0.0
        after = np.where(back, 1.0, (1.0 + np.sqrt(1.0 + 4.0 * momentum**2)) / 2.0)
        y = moved + np.where(back, 0.0, (momentum - 1.0) / after) * (moved - w)
        w, momentum = moved, after
    return w
