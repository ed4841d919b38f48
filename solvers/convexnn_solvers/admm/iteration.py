"""ADMM with an exact step on the weights, in a form that also works in float32, on any backend.

With ``U`` the weights, ``Z`` their copy in the penalty and ``V`` the scaled multiplier, one iteration is

    S = (A A^T + rho I)^{-1} (Y - A (Z - V)),        U = Z - V + A^T S,
    Z+ = prox(alpha U + (1 - alpha) Z + V),          V+ = V + alpha U + (1 - alpha) Z - Z+,

two products with the gated map and one pair of triangular solves. The factor is n x n, one for all gates and
outputs (:mod:`gram_factor`). The update is written for ``S``, whose size is that of the residual: the usual
form ``(q - A^T (...)^{-1} A q) / rho`` subtracts numbers that agree in all digits of float32. ``W = rho S``
is a dual point and ``A^T W`` is at hand, so a bound costs nothing. Losses that are not quadratic
have a copy ``p`` of the prediction with multiplier ``q``, and ``Y = p - q``.

After Boyd, Parikh, Chu, Peleato and Eckstein (2011), sections 3.4.1, 3.4.3 and 6.4.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convexnn_solvers.admm.gram_factor import GramFactor
from convexnn_solvers.admm.prediction_prox import prediction_prox
from convexnn_solvers.admm.problem import AdmmProblem, Bounds
from convexnn_solvers.backends import Array, Float64Array
from convexnn_solvers.gated_programs.fits import SquaredFit
from convexnn_solvers.loop.checkpoint import Arrays
from convexnn_solvers.reading.operators import GatedOperator

# Over-relaxation; how far the residuals may be out of balance, and the most by which rho then changes.
_RELAX, _UNBALANCED, _MOST_CHANGE = 1.6, 1.6, 10.0
# What the next steps and looks depend on, besides the problem and the penalty.
_STATE = ("Z", "V", "_S", "_products", "_before", "_rest", "_p", "_q")


class AdmmIteration:
    """The iteration on a fixed set of gates; arrays live on the backend.

    ``Z`` and ``V`` (c, d, B) are the point and its scaled multiplier. Nothing is copied between host and
    device by :meth:`step`; :meth:`look` brings over a few arrays of the size of the predictions. Arrays are
    replaced, never changed, so that a shallow copy stays as it is; only the factor goes along with the
    latest. ``held`` is what :meth:`packed` gave: then everything else is taken from there.
    """

    def __init__(
        self,
        problem: AdmmProblem,
        point: Float64Array,
        rho: float | None = None,
        dual: Float64Array | None = None,
        held: Mapping[str, NDArray[Any]] | None = None,
    ) -> None:
        self.problem = problem
        program, backend = problem.program, problem.backend
        self._xp, self._fit = backend.xp, program.fit
        gates = problem.load()
        self._map = GatedOperator(gates, program.outputs, program.slope)
        self._held = [problem.gram(gates)]  # shared with copies, see release
        self._taus = backend.asarray(problem.taus)
        self._prox = prediction_prox(program.fit, backend)
        self._weight = 1.0 if self._prox is None else self._prox.weight
        self._work = self._work_of_a_step() / max(float(program.X.shape[0]) ** 3 / 3.0, 1.0)
        self._since = 0.0
        if self._prox is None:
            assert isinstance(self._fit, SquaredFit)
            self._target = backend.asarray(self._fit.Y)
        if held is None:
            self.Z = backend.asarray(point)
            self._begin(rho, dual)
        else:
            self._restore(held)

    @property
    def _factor(self) -> GramFactor:
        return self._held[0]

    def release(self) -> None:
        """Give the matrix back, also for copies that were left behind: none of them can step any more."""
        self._held.clear()

    def packed(self) -> Arrays:
        """The state as arrays in float64."""
        there = {name: getattr(self, name) for name in _STATE if hasattr(self, name)}
        arrays: Arrays = {name: self.problem.backend.to_numpy(array) for name, array in there.items()}
        return arrays | {"penalty": np.asarray([self._shift, self._since])}

    def _restore(self, held: Mapping[str, NDArray[Any]]) -> None:
        for name in _STATE:
            if name in held:
                setattr(self, name, self.problem.backend.asarray(held[name]))
        shift, since = (float(value) for value in held["penalty"])
        self._refactor(self._weight * shift)
        self._since = since

    def _begin(self, rho: float | None, dual: Float64Array | None) -> None:
        """Multipliers that go with the point: those of a feasible dual point."""
        backend = self.problem.backend
        prediction = backend.to_numpy(self._forward(self.Z))
        fitted = self._fit.at(prediction)
        W = -fitted.xi if dual is None else dual
        products = self._adjoint(backend.asarray(W))
        bounds = self._bounds(prediction, W, products, 1.0)
        self.bounds = bounds
        self.rho = self._started_penalty() if rho is None else rho
        self._refactor(self.rho)
        scale = float(np.vdot(bounds.dual_point, W) / max(float(np.vdot(W, W)), 1e-300))
        self.V = products * (scale / self.rho)
        if self._prox is not None:
            self._p = backend.asarray(prediction + fitted.offset)
            self._q = backend.asarray(-scale * W / self._weight)

    def _started_penalty(self) -> float:
        """That of the factor which an earlier solve left, unless it is far from what we would begin with."""
        first, left = self._first_penalty(), self._weight * (self._factor.shift or 0.0)
        near = left > 0.0 and max(left / first, first / left) <= _MOST_CHANGE
        return left if near else first

    def _first_penalty(self) -> float:
        """``tau / |z|`` for a typical group z of weights: of P groups that explain all of the targets.

        At the optimum ``rho V`` has length tau on every group in use, so that this balances Z and V.
        """
        fit, problem = self._fit, self.problem
        size = float(np.linalg.norm(fit.Y)) if isinstance(fit, SquaredFit) else float(np.sqrt(fit.shape[0]))
        # Of features that the offset explains rounding is left, of any sign: no group explains anything.
        mean = self._factor.mean if self._factor.mean > 0.0 else 1.0
        explained = np.sqrt(problem.taus.shape[1] * mean)
        typical = float(np.mean(problem.taus)) * explained / max(size, 1e-30)
        return float(max(typical, 1e-30))

    def step(self) -> None:
        """One iteration."""
        rest, target = self.Z - self.V, self._aim()
        self._factor.factor(self._shift)  # done already, unless another solve shares it
        self._S = self._factor.solve(self._centred(target - self._forward(rest)))
        self._products = self._adjoint(self._S)
        moved = _RELAX * self._products
        moved += self.Z
        moved += (1.0 - _RELAX) * self.V
        self._before, self._rest = self.Z, rest
        self.Z = self._shrunk(moved)
        moved -= self.Z
        self.V = moved
        if self._prox is not None:
            image = target - self._shift * self._S
            h = _RELAX * image + (1.0 - _RELAX) * self._p + self._q
            self._p = self._prox(h)
            self._q = h - self._p
        self._since += self._work

    def look(self) -> Bounds:
        """The bounds of now; changes the penalty when the residuals ask for it."""
        found = self.peek()
        self._balance()
        return found

    def peek(self) -> Bounds:
        """The bounds of now; changes nothing."""
        to_numpy = self.problem.backend.to_numpy
        prediction = to_numpy(self._forward(self.Z))
        if self._prox is None:
            W, products, factor = to_numpy(self._S) * self.rho, self._products, self.rho
        else:
            W, factor = -self._weight * to_numpy(self._q), 1.0
            W = W - W.mean(axis=0) if self._fit.centred else W
            products = self._adjoint(self.problem.backend.asarray(W))
        return self._bounds(prediction, W, products, factor)

    def _bounds(self, prediction: Float64Array, W: Float64Array, products: Array, factor: float) -> Bounds:
        """Primal value of Z and the best dual value on the ray of ``W``; ``A^T W = factor products``."""
        to_numpy = self.problem.backend.to_numpy
        problem = self.problem
        fitted = self._fit.at(prediction)
        primal = fitted.value + float(np.sum(problem.taus * to_numpy(problem.norms(self.Z))))
        norms = to_numpy(problem.norms(products))
        value, scale = problem.best_dual(W, factor * float(np.max(norms / problem.taus, initial=0.0)))
        return Bounds(primal, value, scale * W, fitted.offset)

    def _balance(self) -> None:
        """Bring rho to where the two residuals, each relative to its variable, agree on the groups in use.

        The many groups at zero have multipliers inside their balls, which say nothing about the scale.
        """
        size, xp = self._xp.linalg.vector_norm, self._xp
        used = (self.problem.norms(self.Z) > 0.0)[:, None, :]
        images = (self._rest + self._products - self.Z, self.Z - self._before, self.Z, self.V)
        parts = (image * used for image in images)
        sizes = self.problem.backend.to_numpy(xp.stack([size(xp.reshape(part, (-1,))) for part in parts]))
        if not (np.isfinite(sizes).all() and np.all(sizes > 0.0)):
            return
        apart, moved, point, multiplier = (float(value) for value in sizes)
        factor = float(np.sqrt((apart / point) / (moved / multiplier)))
        factor = float(np.clip(factor, 1.0 / _MOST_CHANGE, _MOST_CHANGE))
        # A new factor only once the steps with the last one took as much work.
        if max(factor, 1.0 / factor) > _UNBALANCED and self._since >= 1.0:
            before = self.rho
            self._refactor(self.rho * factor)
            self.V = self.V * (before / self.rho)

    def _refactor(self, rho: float) -> None:
        """Factor for a new penalty, or for a larger one where that is indefinite in this precision."""
        least = 4.0 * float(self._xp.finfo(self.problem.backend.dtype).eps) * self._factor.largest
        shift = max(rho / self._weight, least, 1e-30)
        for _ in range(8):
            try:
                self._factor.factor(shift)
                break
            except np.linalg.LinAlgError:
                shift *= 10.0
        else:
            raise FloatingPointError("the Gram matrix of the samples is not finite")
        self._shift, self.rho, self._since = shift, self._weight * shift, 0.0

    def _aim(self) -> Array:
        """Y: the targets of the linear step."""
        return self._target if self._prox is None else self._p - self._q

    def _forward(self, U: Array) -> Array:
        """The prediction (n, c) of ``U`` (c, d, B), without the offset."""
        program = self.problem.program
        P, (c, d, _) = program.gates, program.point_shape
        parts = [sign * U[:, :, k * P : (k + 1) * P] for k, sign in enumerate(program.signs)]
        summed = parts[0] if len(parts) == 1 else sum(parts[1:], parts[0])
        image = self._map.forward(self._xp.reshape(summed, (c * d, P)))
        return self._xp.reshape(image, (-1, c))

    def _adjoint(self, r: Array) -> Array:
        """``A^T r`` as (c, d, B)."""
        program = self.problem.program
        c, d, _ = program.point_shape
        products = self._xp.reshape(self._map.adjoint(r), (c, d, program.gates))
        if program.signs == (1.0,):
            return products
        return self._xp.concat([sign * products for sign in program.signs], axis=2)

    def _shrunk(self, U: Array) -> Array:
        """The proximal map of the penalty."""
        norms = self.problem.norms(U)
        shrink = self._xp.clip(1.0 - self._taus / (self.rho * self._xp.clip(norms, 1e-30, None)), 0.0, None)
        return U * shrink[:, None, :]

    def _centred(self, r: Array) -> Array:
        return r - self._xp.mean(r, axis=0) if self._fit.centred else r

    def _work_of_a_step(self) -> float:
        n, d = self.problem.program.X.shape
        c = self.problem.program.outputs
        return float(4 * n * d * self.problem.program.gates * c + 2 * n * n * c)
