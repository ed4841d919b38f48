"""Dual points at the kinks of nonsmooth losses, for points that came without a loss's dual value.

At an optimum some subgradient ``v`` of the losses satisfies ``A^T v + c - G^T mu + p = 0`` with p the
penalties' gradient, on all entries that have one. Interior-point solvers return the multipliers mu of
constraints, but nothing of the losses. Where a loss is smooth, v is its gradient; the rest, few numbers at
the kinks, is found here by least squares (LSMR; Fong and Saunders, 2011). Whatever comes out is a candidate
for a bound, no more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.sparse.linalg import LinearOperator, lsmr

from convexnn_solvers.backends import Float64Array
from convexnn_solvers.certify.free_variables import Arrays
from convexnn_solvers.composite import Composite, DualPoint
from convexnn_solvers.functions.nonsmooth_losses import Face, Kinked

# Differences of a loss's arguments below this share of them count as kinks, and below this share of the terms
# that cancel in them: where targets are met, or a single argument vanishes, all of them are rounding.
_KINK, _MET = 1e-4, 1e-7
# Penalties' gradients are taken over steps of this share of the point; what vanishes on the way has none.
_STEP = 1e-5
# A point from an interior-point solver is corrected together with its dual point, so many times.
# Corrections that take it so many times as far as it was lead nowhere.
_ROUNDS = 4
_GROWTH = 1e3
_MAX_ITERATIONS = 1000
# Multiplications of all rounds together, seconds on a CPU; counted and not timed, so that bounds repeat.
_WORK = 2e9


def kink_duals(
    composite: Composite, x: Arrays, multipliers: Sequence[Float64Array | None]
) -> list[DualPoint]:
    """Candidates at a feasible point close to the optimum, with the constraints' multipliers held fixed.

    Nothing for losses without kinks, or points without an entry on which the penalties have a gradient.
    """
    found: list[DualPoint] = []
    mu = (*multipliers, *(None for _ in range(len(composite.constraints) - len(multipliers))))
    far = _GROWTH * _largest(x)
    for _ in range(_ROUNDS if any(isinstance(term.loss, Kinked) for term in composite.losses) else 0):
        conditions = _Conditions(composite, x, mu)
        if not (any(weight.any() for weight in conditions.weights) and _largest(x) <= far):
            break
        subgradients, x = conditions.solved()
        found.append(DualPoint(tuple(-v for v in subgradients), mu))
    return found


def _largest(x: Arrays) -> float:
    return max(float(np.max(np.abs(v), initial=0.0)) for v in x)


class _Conditions:
    """The equations at one point, and their least-squares solution.

    Rows weigh as the root of |x| / |p|, the inverse of the penalties' curvature: where x is small, its error
    turns p. Where kinks of several losses add up, each takes its share, since wider ones have more room.
    """

    def __init__(self, composite: Composite, x: Arrays, mu: Sequence[Float64Array | None]) -> None:
        self.composite, self.x = composite, x
        outputs, apart = composite.affine.forward(x), _uncancelled(composite, x)
        gradients = composite.loss_gradients(outputs)
        self.faces: dict[int, Face] = {}
        self.subgradients = [np.asarray(g, dtype=np.float64) for g in gradients]
        for k, term in enumerate(composite.losses):
            if isinstance(term.loss, Kinked):
                q = np.asarray(outputs[k])
                face = term.loss.face(q, term.weight, _tolerance(q, apart[k]))
                self.faces[k], self.subgradients[k] = face, face.middle
        negative = (None if m is None else -m for m in mu)
        slopes = composite.affine.adjoint((*self.subgradients, *negative))
        widest = max((float(np.max(composite.losses[k].weight)) for k in self.faces), default=0.0) or 1.0
        self.shares = {k: np.sqrt(np.max(composite.losses[k].weight) / widest) for k in self.faces}
        self.iterations = _affordable(sum(q.size for q in outputs), sum(v.size for v in x))
        size = _largest(x)
        self.unit = size / (max((float(np.max(t.weight)) for t in composite.penalties), default=0.0) or 1.0)
        parts = zip(x, slopes, composite.linear, self._penalty_gradients(), composite.variables, strict=True)
        self.weights, self.residual = [], []
        for v, slope, c, (p, smooth), block in parts:
            near = np.zeros(v.shape, dtype=np.bool_)
            for bound in (block.lower, block.upper):
                near |= False if bound is None else np.abs(v - bound) <= _KINK * size
            ratio = np.abs(v) / np.where(p != 0.0, np.abs(p), 1.0) / (self.unit or 1.0)
            weight = np.where(p != 0.0, np.sqrt(ratio), 1.0)
            self.weights.append(np.where(smooth & ~near, weight, 0.0))
            self.residual.append(self.weights[-1] * (slope + c + p))

    def solved(self) -> tuple[tuple[Float64Array, ...], Arrays]:
        """The losses' subgradients, and the point corrected by what is left of the equations."""
        shape = (sum(w.size for w in self.weights), sum(self.subgradients[k].size for k in self.faces))
        operator = LinearOperator(shape, matvec=self._image, rmatvec=self._pulled, dtype=np.float64)
        right = -np.concatenate([r.ravel() for r in self.residual])
        solution = lsmr(operator, right, atol=1e-13, btol=1e-13, conlim=0.0, maxiter=self.iterations)[0]
        moves, losses = self._split(solution), self.composite.losses
        subgradients = tuple(
            losses[k].loss.nearest(v + moves[k], losses[k].weight) if k in moves else v
            for k, v in enumerate(self.subgradients)
        )
        left = np.split(self._image(solution) - right, np.cumsum([w.size for w in self.weights])[:-1])
        moved = (
            v - self.unit * w * part.reshape(v.shape)
            for v, w, part in zip(self.x, self.weights, left, strict=True)
        )
        return subgradients, tuple(moved)

    def _penalty_gradients(self) -> list[tuple[Float64Array, Any]]:
        """Of every variable the gradient of its penalties, and where there is one."""
        found: list[tuple[Float64Array, Any]] = []
        step = _STEP * self.unit
        for index, v in enumerate(self.x):
            moved, reached = v, np.zeros(v.shape, dtype=np.bool_)
            for term in self.composite.penalties:
                if term.variable == index:
                    view = term.view(moved)
                    shrunk = term.penalty.prox(view, step * np.asarray(term.weight), np)
                    moved = moved - term.unview(view) + term.unview(shrunk)
                    reached |= np.asarray(term.unview(np.ones_like(view)) > 0.5)
            found.append(((v - moved) / (step or 1.0), ~reached | (moved != 0.0)))
        return found

    def _split(self, solution: Float64Array) -> dict[int, Float64Array]:
        sizes = [self.subgradients[k].size for k in self.faces]
        parts = np.split(solution, np.cumsum(sizes)[:-1])
        return {
            k: self.shares[k] * face.along(part.reshape(self.subgradients[k].shape))
            for (k, face), part in zip(self.faces.items(), parts, strict=True)
        }

    def _image(self, solution: Float64Array) -> Float64Array:
        moves, count = self._split(solution), len(self.composite.losses) + len(self.composite.constraints)
        pulled = self.composite.affine.adjoint(tuple(moves.get(k) for k in range(count)))
        return np.concatenate([(w * a).ravel() for w, a in zip(self.weights, pulled, strict=True)])

    def _pulled(self, residual: Float64Array) -> Float64Array:
        parts = np.split(residual, np.cumsum([w.size for w in self.weights])[:-1])
        point = tuple(w * part.reshape(w.shape) for w, part in zip(self.weights, parts, strict=True))
        outputs = self.composite.affine.linear(point)
        moved = (self.shares[k] * face.along(np.asarray(outputs[k])) for k, face in self.faces.items())
        return np.concatenate([move.ravel() for move in moved])


def _uncancelled(composite: Composite, x: Arrays) -> tuple[float, ...]:
    """Sizes of the losses' arguments where the terms that add up to them do not cancel.

    Targets do not at the origin, and products with the entries of ``x`` not when every entry is shrunk by
    another factor.
    """
    rng = np.random.default_rng(0)
    shrunk = composite.affine.forward(tuple(v * rng.random(v.shape) for v in x))
    pairs = zip(shrunk, composite.offsets(), strict=True)
    return tuple(_largest((np.asarray(q), np.asarray(origin))) for q, origin in pairs)


def _tolerance(q: Float64Array, size: float) -> float:
    """Which share of the largest entry of ``q`` is a kink; ``size``: of the terms that add up to it."""
    largest = _largest((q,))
    return _KINK if largest == 0.0 else max(_KINK, _MET * size / largest)


def _affordable(rows: int, columns: int) -> int:
    """Iterations of a round, each of two products with a matrix of this shape."""
    return int(min(_MAX_ITERATIONS, max(1.0, _WORK / (2.0 * _ROUNDS * max(rows * columns, 1)))))
