"""The named losses as CVXPY expressions, each a mean over the n samples.

Every function takes a prediction (n,) or (n, c), symbolic or numeric, and the targets, which it checks, and
returns a scalar CVXPY expression; targets of another shape or kind are refused with a ValueError or TypeError
that says which are meant. With c outputs the losses of the outputs are added. Any function of this form may
be used as a loss: ``model.problem(y, reg, loss=my_loss)``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from numbers import Real
from typing import Any, ParamSpec, TypeVar

import cvxpy as cp
import numpy as np

from convexnn_models import _arrays
from convexnn_models._arrays import Float64Array
from convexnn_solvers.named_options import by_position, checked_options, parameter_names, refuse_unknown

P = ParamSpec("P")
R = TypeVar("R")

#: (prediction, targets, **options) -> a convex scalar CVXPY expression.
LossFunction = Callable[..., Any]


def squared(prediction: Any, y: Any) -> Any:
    """``1/(2n) ||prediction - y||^2``, for real targets."""
    target = _arrays.targets(y, *_size(prediction))
    return cp.sum_squares(prediction - target) / (2.0 * target.shape[0])


def huber(prediction: Any, y: Any, *, threshold: float = 1.0) -> Any:
    """``1/n sum H(prediction - y)``: ``H(t) = t^2/2`` up to ``threshold``, then linear."""
    target = _arrays.targets(y, *_size(prediction))
    limit: Any = _arrays.positive(threshold, "threshold")  # any: CVXPY annotates floats away
    return cp.sum(cp.huber(prediction - target, limit)) / (2.0 * target.shape[0])


def absolute(prediction: Any, y: Any) -> Any:
    """``1/n sum |prediction - y|``: the median instead of the mean."""
    target = _arrays.targets(y, *_size(prediction))
    return cp.sum(cp.abs(prediction - target)) / float(target.shape[0])


def quantile(prediction: Any, y: Any, *, level: float = 0.5) -> Any:
    """``1/n sum max(level r, (level - 1) r)`` with ``r = y - prediction``: the ``level``-quantile."""
    target = _arrays.targets(y, *_size(prediction))
    tau = _arrays.number(level, "level")
    if not 0.0 < tau < 1.0:
        raise ValueError(f"level must lie between 0 and 1, not {level!r}.")
    residual = target - prediction
    return cp.sum(cp.maximum(tau * residual, (tau - 1.0) * residual)) / float(target.shape[0])


def logistic(prediction: Any, y: Any) -> Any:
    """``1/n sum log(1 + exp(-y prediction))``, for labels -1 and +1."""
    labels = _signs(y, *_size(prediction))
    return cp.sum(cp.logistic(cp.multiply(-labels, prediction))) / float(labels.shape[0])


def hinge(prediction: Any, y: Any) -> Any:
    """``1/n sum max(0, 1 - y prediction)``, for labels -1 and +1."""
    labels = _signs(y, *_size(prediction))
    return cp.sum(cp.pos(1.0 - cp.multiply(labels, prediction))) / float(labels.shape[0])


def squared_hinge(prediction: Any, y: Any) -> Any:
    """``1/n sum max(0, 1 - y prediction)^2``, for labels -1 and +1."""
    labels = _signs(y, *_size(prediction))
    return cp.sum_squares(cp.pos(1.0 - cp.multiply(labels, prediction))) / float(labels.shape[0])


def softmax(prediction: Any, y: Any) -> Any:
    """``1/n sum (log sum_k exp(f_k) - f_y)``: cross-entropy of c >= 2 outputs.

    ``y`` holds classes 0..c-1 (n,), or their one-hot rows (n, c).
    """
    labels = one_hot(y, *_size(prediction))
    total = cp.sum(cp.log_sum_exp(prediction, axis=1)) - cp.sum(cp.multiply(labels, prediction))
    return total / float(labels.shape[0])


_NAMED: dict[str, LossFunction] = {
    f.__name__: f for f in (squared, huber, absolute, quantile, logistic, hinge, squared_hinge, softmax)
}


def named(loss: str | LossFunction) -> LossFunction:
    """The loss of this name; a function is its own."""
    if callable(loss):
        return loss
    if not isinstance(loss, str) or loss not in _NAMED:
        raise ValueError(
            f"loss must be one of {', '.join(sorted(_NAMED))}, or a function of (prediction, y); "
            f"not {loss!r}."
        )
    return _NAMED[loss]


def takes_loss_options(function: Callable[P, R]) -> Callable[P, R]:
    """:func:`checked_options` for a function that hands its ``**options`` to its argument ``loss``.

    A name must be known to the function or to the loss of this call; a loss with ``**options`` of its own
    knows all names.
    """
    usual = inspect.signature(function).parameters["loss"].default
    own, placed = parameter_names(function), by_position(function)
    checked = checked_options(function)

    @wraps(function)
    def call(*args: P.args, **given: P.kwargs) -> R:
        values: dict[str, Any] = dict(zip(placed, args, strict=False)) | given
        loss = named(values.get("loss", usual))
        further = _option_names(loss)
        if further is not None:
            title = getattr(loss, "__name__", "function")
            refuse_unknown(f"{function.__name__} with loss {title}", given, [*own, *further])
        return checked(*args, **given)

    return call


def _option_names(loss: LossFunction) -> list[str] | None:
    """What a loss can be given besides prediction and targets, None for anything."""
    try:
        parameters = inspect.signature(loss).parameters.values()
    except ValueError:  # written in C
        return None
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    data = by_position(loss)[:2]
    return [name for name in parameter_names(loss) if name not in data]


def expression(loss: str | LossFunction, prediction: Any, y: Any, **options: Any) -> Any:
    """The loss of ``prediction`` against ``y``, checked to be convex and one number, and of shape ()."""
    function = named(loss)
    _check_call(function, prediction, y, options)
    value = function(prediction, y, **options)
    if not issubclass(type(value), (cp.Expression, Real, np.ndarray)):
        raise TypeError(f"loss must return a convex scalar CVXPY expression, not {type(value).__name__}.")
    value = cp.Expression.cast_to_const(value)
    if value.size != 1 or not value.is_convex():
        raise ValueError(
            f"loss must return a convex scalar CVXPY expression, not shape {value.shape}, {value.curvature}; "
            "average over the samples and check the composition rules."
        )
    return cp.sum(value) if value.shape else value


def regularised(
    loss: str | LossFunction, scores: Any, y: Any, reg: float, penalty: float, /, **options: Any
) -> float:
    """The training objective ``loss + reg * penalty`` of a network with these scores."""
    weight = _arrays.not_negative(reg, "reg")
    return float(expression(loss, scores, y, **options).value) + weight * penalty


def refuse_single_class(loss: str | LossFunction, y: Any, samples: int, outputs: int) -> None:
    """Refuse data on which a free output bias would run off to infinity: cross-entropy without a class."""
    function = named(loss)
    if function is logistic:
        labels = _signs(y, samples, outputs).reshape(samples, outputs)
        absent = np.abs(labels.sum(axis=0)) == samples
    elif function is softmax:
        absent = one_hot(y, samples, outputs).sum(axis=0) == 0.0
    else:
        return
    if absent.any():
        raise ValueError(
            f"y lacks a class (output {int(np.argmax(absent))}), so with output_bias=True the loss has no "
            "minimiser; use output_bias=False or drop that output."
        )


def _check_call(loss: LossFunction, prediction: Any, y: Any, options: dict[str, Any]) -> None:
    try:
        inspect.signature(loss).bind(prediction, y, **options)
    except TypeError as error:
        raise TypeError(f"loss must be a function of (prediction, y) and its options: {error}.") from None
    except ValueError:  # written in C
        pass


def _size(prediction: Any) -> tuple[int, int]:
    """Samples and outputs."""
    shape: list[int] = [*getattr(prediction, "shape", ())]
    if len(shape) not in (1, 2):
        raise TypeError(
            "prediction must be a CVXPY expression or an array, (n,) or (n, c), such as model.prediction; "
            f"not {type(prediction).__name__} of shape {tuple(shape)}."
        )
    return int(shape[0]), 1 if len(shape) == 1 else int(shape[1])


def _signs(y: Any, samples: int, outputs: int) -> Float64Array:
    labels = _arrays.targets(y, samples, outputs)
    if not np.all(np.abs(labels) == 1.0):
        strange = labels[np.abs(labels) != 1.0].flat[0]
        raise ValueError(f"y must hold the labels -1 and +1, not {strange:g}; 0/1 labels become 2 * y - 1.")
    return labels


def one_hot(y: Any, samples: int, outputs: int) -> Float64Array:
    """The classes ``y``, (n,) numbers or (n, c) one-hot rows, as checked one-hot rows."""
    if outputs == 1:
        raise ValueError("loss='softmax' needs one output per class; build the model with outputs=classes.")
    array = _arrays.numbers(y, "y")
    if array.shape == (samples, outputs):
        if not (np.all((array == 0.0) | (array == 1.0)) and np.all(array.sum(axis=1) == 1.0)):
            raise ValueError("y must hold one-hot rows (a single 1, else 0) or the classes 0..c-1 as (n,).")
        return array
    if array.shape not in ((samples,), (samples, 1)):
        raise ValueError(
            f"y must hold one class per sample, shape {(samples,)}, or one-hot rows, not {array.shape}."
        )
    classes = array.reshape(samples).astype(np.intp)
    if np.any(classes != array.reshape(samples)) or classes.min() < 0 or classes.max() >= outputs:
        raise ValueError(
            f"y must hold whole classes from 0 to {outputs - 1} (the model has outputs={outputs}); "
            "np.unique(y, return_inverse=True)[1] numbers any labels."
        )
    rows = np.zeros((samples, outputs))
    rows[np.arange(samples), classes] = 1.0
    return rows
