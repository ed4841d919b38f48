"""What whole models share behind the solve: held values, the problem, fewer neurons, a certificate."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from convexnn_models import _arrays, losses
from convexnn_models._arrays import Float64Array
from convexnn_models.model import ConvexModel, Training
from convexnn_models.negligible import needed
from convexnn_models.pruning import pruning_factors
from convexnn_solvers.certify.certificate import Certificate
from convexnn_solvers.composite import DualPoint
from convexnn_solvers.gaps import relative_gap


def held_value(variable: Any) -> Float64Array:
    """The value of a variable; ValueError when it has none."""
    value = variable.value
    if value is None or not np.all(np.isfinite(value)):
        raise ValueError(
            f"model has no values (variable {variable.name()}); solve a problem made of it first, "
            "e.g. model.problem(y, reg).solve()."
        )
    return np.asarray(value, dtype=np.float64)


def held_bias(model: ConvexModel) -> Float64Array | float:
    """The value of the free output bias, () or (c,); zero without one."""
    return 0.0 if model.output_bias is None else held_value(model.output_bias)


def known_training(model: ConvexModel) -> Training:
    """What the model was last fitted to; ValueError before the first ``model.problem(y, reg)``."""
    if model.training is None:
        raise ValueError("model has no problem yet: call model.problem(y, reg) first.")
    return model.training


def refuse_other_models(model: Any, wanted: type[ConvexModel], maker: str) -> None:
    """TypeError, naming the formulation that makes them, unless ``model`` is one of the ``wanted`` models."""
    if not isinstance(model, wanted):
        raise TypeError(f"model must be what {maker} returns, not {type(model).__name__}.")


def squared_targets(model: ConvexModel) -> tuple[Float64Array, float]:
    """The targets (n, c) of a squared loss and the value of reg; ValueError for any other loss."""
    training = known_training(model)
    if training.loss is not losses.squared:
        raise ValueError(f"loss {training.loss.__name__} is not for this solver; use cp.CLARABEL or cp.SCS.")
    if training.reg.value is None:
        raise ValueError("reg is a Parameter without a value: set model.reg.value first.")
    n = int(model.prediction.shape[0])
    y = _arrays.targets(training.y, n, model.outputs)
    return y.reshape(n, model.outputs), float(training.reg.value)


def matching(thetas: Any, y: Float64Array) -> list[Float64Array]:
    """Dual candidates in the shape of the targets (n, c); ValueError when one has another size."""
    arrays = [_arrays.numbers(theta, "thetas") for theta in _arrays.listed(thetas, "thetas")]
    for array in arrays:
        if array.size != y.size:
            raise ValueError(f"thetas must hold arrays of shape {y.shape}, not {array.shape}.")
    return [array.reshape(y.shape) for array in arrays]


def pruned(
    model: ConvexModel, values: Float64Array, outputs: Float64Array, cost: Float64Array
) -> Float64Array:
    """Factors (m,) of neurons with these ``values`` (n, m), output weights (m, c) and penalties (m,).

    They are zero for those that the objective, where it is known, does not need, and for as many as depend
    linearly on others on the samples.
    """
    training, bias = model.training, held_bias(model)
    keep = np.ones(cost.size, dtype=np.bool_)
    if training is not None:

        def objective(kept: NDArray[np.bool_]) -> float:
            scores = values[:, kept] @ outputs[kept]
            total = float(cost[kept].sum())
            return training.objective((scores[:, 0] if model.outputs == 1 else scores) + bias, total)

        keep = needed(cost, objective)
    factors = np.zeros(cost.size)
    factors[keep] = pruning_factors(values[:, keep], outputs[keep], cost[keep])
    return factors


def certified(
    model: ConvexModel,
    primal: float,
    shape: tuple[int, ...],
    bound: tuple[float, Float64Array] | None,
    *,
    scope: str,
    violation: float = 0.0,
) -> Certificate:
    """The certificate of an objective and a proved bound, whose dual point has the prediction's ``shape``.

    ``violation`` is that of the point as held, which was repaired where it is not zero. None as a bound
    means that the loss of the latest problem has none.
    """
    if bound is None:
        free = " with an output bias" if model.output_bias is not None else ""
        name = known_training(model).loss.__name__
        return Certificate(
            primal=primal,
            dual=None,
            gap=None,
            relative_gap=None,
            max_violation=violation,
            scope=scope,
            repaired=violation > 0.0,
            note=f"no lower bound for the loss {name}{free}; loss='squared' has one",
        )
    dual, theta = bound
    return Certificate(
        primal=primal,
        dual=dual,
        gap=primal - dual,
        relative_gap=relative_gap(primal, dual),
        max_violation=violation,
        scope=scope,
        repaired=violation > 0.0,
        dual_point=DualPoint((theta.reshape(shape),)),
    )
