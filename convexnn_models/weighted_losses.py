"""Losses as weighted means over the samples, as scikit-learn's ``sample_weight`` has them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cvxpy as cp
import numpy as np

from convexnn_models import losses
from convexnn_models._arrays import Float64Array


def _softmax(prediction: Any, y: Any) -> Any:
    labels = losses.one_hot(y, *prediction.shape)
    return cp.log_sum_exp(prediction, axis=1) - cp.sum(cp.multiply(labels, prediction), axis=1)


# The terms of the losses of ``convexnn_models.losses``, (n,) or (n, c).
_TERMS: dict[str, Callable[[Any, Any], Any]] = {
    "squared": lambda prediction, y: cp.square(prediction - y) / 2.0,
    "huber": lambda prediction, y: cp.huber(prediction - y) / 2.0,
    "logistic": lambda prediction, y: cp.logistic(cp.multiply(-y, prediction)),
    "softmax": _softmax,
}


def weighted(loss: str | losses.LossFunction, weights: Float64Array) -> losses.LossFunction:
    """``sum_i w_i f_i / sum_i w_i`` of a named loss ``1/n sum_i f_i``, for weights (n,), all positive.

    Whole weights are repetitions of the samples. Raises ValueError for a loss that is a function, whose terms
    only its author can weigh.
    """
    if not isinstance(loss, str) or loss not in _TERMS:
        raise ValueError(
            "sample_weight needs a loss by name, 'squared' or 'huber'; a function of your own has to weigh "
            "its terms itself."
        )
    terms = _TERMS[loss]
    shares = weights / weights.max()  # the sum of the weights themselves may overflow
    shares /= shares.sum()

    def mean(prediction: Any, y: Any) -> Any:
        one = np.size(y) == prediction.size  # targets (n, 1) of a prediction (n,)
        each = terms(prediction, np.reshape(y, prediction.shape) if one else y)
        return shares @ (each if each.ndim == 1 else cp.sum(each, axis=1))

    return mean
