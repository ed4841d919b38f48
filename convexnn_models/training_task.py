"""What a two-layer ReLU network is trained for, as global bounds see it: data, loss, regularisation.

    minimise over networks of any width    F(f(X)) + reg / 2 (||W1||^2 + ||b1||^2 + ||W2||^2)

For any theta (n, c) with ``max ||theta^T (X u)_+|| <= reg`` over the unit ball, and columns that sum to zero
if there is a free output bias, ``-F*(-theta)`` is a lower bound. Here theta is scaled by the best s in
``[0, reg / price]``, where price is an upper bound of that maximum.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.optimize

from convexnn_models import _arrays, losses
from convexnn_models._arrays import Float64Array
from convexnn_models.network import Network
from convexnn_solvers.certify.concave_search import maximise
from convexnn_solvers.functions.losses import Huber, Loss, Softplus, SumSquares

_EPS = float(np.finfo(np.float64).eps)


@dataclass(frozen=True, eq=False)
class TrainingTask:
    """``F(f) = weight * sum loss(slopes * f - targets)``, entrywise, for scores f (n, c).

    ``X`` (n, d) has the column of ones if there is a hidden ``bias``; ``output_bias``: whether the scores
    have free offsets, one per output; ``expression``: F for a CVXPY prediction, (n,) or (n, c).
    """

    X: Float64Array
    slopes: Float64Array
    targets: Float64Array
    weight: float
    loss: Loss
    reg: float
    bias: bool
    output_bias: bool
    expression: Callable[[Any], Any]

    @staticmethod
    def of(
        X: Any, y: Any, reg: Any, *, outputs: int, bias: bool, output_bias: bool, loss: str, **options: Any
    ) -> TrainingTask:
        """The task, with checked arguments. ValueError or TypeError when one cannot be meant."""
        data = _arrays.with_ones(_arrays.features(X), bias)
        n = data.shape[0]
        strength = _arrays.positive(reg, "reg", " for a global bound")
        function = losses.named(loss)
        scores = np.zeros(n) if outputs == 1 else np.zeros((n, outputs))
        losses.expression(function, scores, y, **options)  # checks y and options
        if output_bias:
            losses.refuse_single_class(function, y, n, outputs)
        make = _TERMS.get(function)
        if make is None:
            raise ValueError(
                f"loss must be 'squared', 'huber' or 'logistic' for a global bound, not {loss!r}."
            )
        values = _arrays.targets(y, n, outputs).reshape(n, outputs)
        term, slopes, targets, weight = make(values, options)

        def expression(prediction: Any) -> Any:
            return losses.expression(function, prediction, y, **options)

        return TrainingTask(data, slopes, targets, weight / n, term, strength, bias, output_bias, expression)

    @property
    def outputs(self) -> int:
        """The number c of outputs."""
        return int(self.targets.shape[1])

    def fit(self, scores: Float64Array) -> float:
        """``F(scores)``."""
        return float(self.loss.value(self.slopes * scores - self.targets, self.weight, np))

    def residual(self, scores: Float64Array) -> Float64Array:
        """``-grad F`` (n, c) at the scores."""
        gradient = self.loss.gradient(self.slopes * scores - self.targets, self.weight, np)
        return np.asarray(-self.slopes * gradient)

    def dual_direction(self, scores: Float64Array) -> Float64Array:
        """``-grad F`` at the scores plus the best output bias, if there is a free one: a theta to scale."""
        if not self.output_bias:
            return self.residual(scores)
        offsets = np.array([self._best_offset(scores, k) for k in range(self.outputs)])
        return _balanced(self.residual(scores + offsets))

    def best_offsets(self, scores: Float64Array) -> Float64Array:
        """The output biases (c,) that fit best with these scores; zeros when there is no free bias."""
        if not self.output_bias:
            return np.zeros(self.outputs)
        return np.array([self._best_offset(scores, k) for k in range(self.outputs)])

    def lower_bound(self, theta: Float64Array, price: float) -> float:
        """The best bound ``-F*(-s theta)`` for s in ``[0, reg / price]``; safe in floating point."""
        v = -theta / self.slopes  # what theta is for the arguments of the loss
        limit = self._largest_scale(v, price)
        linear = float(-np.sum(v * self.targets))
        rounding = theta.size * _EPS * float(np.sum(np.abs(v * self.targets)))

        def bound(s: float) -> float:
            conjugate = self.loss.conjugate(s * v, self.weight)
            return s * (linear - rounding) - conjugate - theta.size * _EPS * abs(conjugate)

        return max(bound(0.0), bound(self._best_scale(v, linear, limit, bound)))

    def allowed_price(self, theta: Float64Array, primal: float, gap: float) -> float:
        """The largest price whose bound is within the relative ``gap`` of ``primal``; 0 if there is none."""
        low, high = 0.1 * self.reg, 10.0 * self.reg
        if self.relative_gap(primal, self.lower_bound(theta, low)) > gap:
            return 0.0
        for _ in range(50):
            middle = 0.5 * (low + high)
            enough = self.relative_gap(primal, self.lower_bound(theta, middle)) <= gap
            low, high = (middle, high) if enough else (low, middle)
        return low

    def relative_gap(self, upper: float, lower: float) -> float:
        """``(upper - lower) / max(|upper|, |lower|, 4 eps F(0))``: 0 only where the two are equal.

        The last term, what rounding the loss of the zero network amounts to, is for optima of zero.
        """
        scale = max(abs(upper), abs(lower), 4.0 * _EPS * self.fit(np.zeros_like(self.targets)))
        return (upper - lower) / scale if scale > 0.0 else 0.0

    def network_objective(self, network: Network) -> float:
        """The non-convex objective of a network on the training samples."""
        samples = self.X[:, :-1] if self.bias else self.X
        scores = network.predict(samples).reshape(-1, self.outputs)
        return self.fit(scores) + self.reg * network.penalty

    def _best_offset(self, scores: Float64Array, output: int) -> float:
        """The b that minimises ``F(scores + b)`` in one output."""
        slopes, arguments = self.slopes[:, output], self.slopes[:, output] * scores[:, output]
        arguments = arguments - self.targets[:, output]
        if isinstance(self.loss, SumSquares):
            return -float(np.mean(slopes * arguments))

        def slope(b: float) -> float:
            return float(slopes @ self.loss.gradient(arguments + slopes * b, self.weight, np))

        reach = 1.0
        while slope(-reach) > 0.0 or slope(reach) < 0.0:
            reach *= 2.0
        if slope(-reach) == 0.0 or slope(reach) == 0.0:
            return -reach if slope(-reach) == 0.0 else reach
        return float(scipy.optimize.brentq(slope, -reach, reach, xtol=1e-14 * reach))

    def _largest_scale(self, v: Float64Array, price: float) -> float:
        """The largest s that the price and the domain of the conjugate allow."""
        limit = self.reg / price if price > 0.0 else np.inf
        size = float(np.abs(v).max(initial=0.0))
        if size == 0.0:
            return 0.0
        if isinstance(self.loss, Softplus):
            return 0.0 if float(v.min()) < 0.0 else min(limit, self.weight / size)
        if isinstance(self.loss, Huber):
            return min(limit, 2.0 * self.loss.threshold * self.weight / size)
        return limit

    def _best_scale(
        self, v: Float64Array, linear: float, limit: float, bound: Callable[[float], float]
    ) -> float:
        """Where the concave bound is largest on ``[0, limit]``."""
        squared = float(np.sum(v * v))
        if limit == 0.0 or squared == 0.0:
            return 0.0
        if isinstance(self.loss, Softplus):
            return maximise(bound, 0.0, limit)
        return min(max(2.0 * self.weight * linear / squared, 0.0), limit)


def _balanced(theta: Float64Array) -> Float64Array:
    """Columns that sum to zero: the remainder of rounding goes to the entries of the heavier sign."""
    balanced = theta.copy()
    for column in balanced.T:
        gain, loss = column[column > 0.0].sum(), -column[column < 0.0].sum()
        if gain > loss:
            column[column > 0.0] *= loss / gain
        elif loss > gain:
            column[column < 0.0] *= gain / loss
    return balanced


_Term = tuple[Loss, Float64Array, Float64Array, float]


def _squared(y: Float64Array, options: dict[str, Any]) -> _Term:
    return SumSquares(), np.ones_like(y), y, 0.5


def _huber(y: Float64Array, options: dict[str, Any]) -> _Term:
    return Huber(float(options.get("threshold", 1.0))), np.ones_like(y), y, 0.5


def _logistic(y: Float64Array, options: dict[str, Any]) -> _Term:
    return Softplus(), -y, np.zeros_like(y), 1.0


_TERMS: dict[losses.LossFunction, Callable[[Float64Array, dict[str, Any]], _Term]] = {
    losses.squared: _squared,
    losses.huber: _huber,
    losses.logistic: _logistic,
}
