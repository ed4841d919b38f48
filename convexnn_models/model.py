"""What every formulation returns: the pieces of a convex program, ready to be put into a ``cp.Problem``."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import cvxpy as cp
import numpy as np

from convexnn_models import _arrays, losses
from convexnn_models._arrays import Float64Array
from convexnn_models.gates import Gates

# Threads that evaluate one model's objective put their predictions into one variable, one after another.
_TURNS = threading.Lock()


@dataclass(frozen=True)
class Training:
    """What a model was last fitted to: enough to evaluate the objective at any prediction and penalty.

    ``y`` as given, ``reg`` the Parameter, ``loss`` the function behind the name and its ``options``.
    """

    y: Any
    reg: Any
    loss: losses.LossFunction
    options: dict[str, Any]

    def objective(self, prediction: Float64Array, penalty: float) -> float:
        """``loss(prediction, y) + reg * penalty`` in float64."""
        with _TURNS:
            held, fit = self._fit(prediction.shape)
            held.save_value(prediction)
            loss = float(fit.value)
        return loss + float(self.reg.value) * penalty

    def _fit(self, shape: tuple[int, ...]) -> tuple[Any, Any]:
        """A variable in place of the prediction, and its loss; made once, since paths ask at every point."""
        if shape not in self._fits:
            held = cp.Variable(shape)
            self._fits[shape] = held, losses.expression(self.loss, held, self.y, **self.options)
        return self._fits[shape]

    @cached_property
    def _fits(self) -> dict[tuple[int, ...], tuple[Any, Any]]:
        return {}


@dataclass(eq=False, repr=False)
class ConvexModel:
    """A convex program without its data fit: what formulations such as ``relu(X, gates)`` return.

    ``prediction``, ``penalty``, ``constraints`` and ``variables`` are plain CVXPY objects, to be used in
    :meth:`problem` or in any program of the user's own.

    Attributes
    ----------
    prediction : CVXPY expression
        The network's scores on the training samples: (n,) for one output, (n, c) for several.
    penalty : CVXPY expression
        The regulariser, without its factor ``reg``.
    constraints : list
        What the variables must satisfy besides (the pattern cones of a ReLU program).
    variables : tuple of cp.Variable
        Weights, each (d * c, P): column j belongs to gate j and stacks the c outputs' d-vectors; then the
        output bias, if there is one: shape () or (c,).
    X : array (n, d)
        The features as the program sees them, with the column of ones when there is a bias.
    outputs : int
        The number c of outputs.
    gates : Gates or None
        The gates in use, after dropping redundant ones.
    grouping : str
        "shared", "per-output" or "nuclear": how the penalty ties the outputs of one gate together.
    slope : float
        The activation's slope on the inactive side.
    bias : bool
        Whether the last column of X is a column of ones.
    output_bias : cp.Variable or None
        The free output bias, also in ``variables``.
    signs : tuple of float
        The sign with which each weight variable enters the prediction: (1,) gated, (1, -1) ReLU.
    cones : bool
        Whether every column of a weight variable is constrained to the cone of its gate's pattern.
    """

    prediction: Any
    penalty: Any
    constraints: list[Any]
    variables: tuple[Any, ...]
    X: Float64Array
    outputs: int = 1
    gates: Gates | None = None
    grouping: str = "shared"
    slope: float = 0.0
    bias: bool = False
    output_bias: Any = None
    signs: tuple[float, ...] = ()
    cones: bool = False
    training: Training | None = field(default=None, init=False)

    def __repr__(self) -> str:
        n, d = self.X.shape
        gates = "" if self.gates is None else f", {len(self.gates)} gates"
        return f"ConvexModel({n} samples, {d} features{gates}, outputs={self.outputs}, slope={self.slope:g})"

    @property
    def reg(self) -> Any:
        """The ``cp.Parameter`` of the latest :meth:`problem` call; set its ``.value`` to re-solve."""
        if self.training is None:
            raise AttributeError("model.reg exists after the first model.problem(y, reg).")
        return self.training.reg

    @losses.takes_loss_options
    def problem(self, y: Any, reg: Any, loss: str | losses.LossFunction = "squared", **options: Any) -> Any:
        """The ``cp.Problem``: minimise ``loss(prediction, y) + reg * penalty`` subject to the constraints.

        Parameters
        ----------
        y : array (n,) or (n, c)
            Real targets for "squared", "huber", "absolute" and "quantile"; labels -1 and +1 for
            "logistic", "hinge" and "squared_hinge"; classes 0..c-1 or one-hot rows for "softmax".
        reg : float or cp.Parameter
            The regularisation, in the scaling ``1/(2n) ||prediction - y||^2 + reg * penalty``. A number
            becomes a new non-negative Parameter, afterwards at hand as ``model.reg``.
        loss : str or function
            A name above, or a function ``(prediction, y, **options) -> convex expression``. Every named
            loss is a mean over the samples.
        **options
            Of the loss: ``threshold`` (huber), ``level`` (quantile).

        Raises ValueError or TypeError when an argument cannot be meant.
        """
        function = losses.named(loss)
        parameter = _regularisation(reg)
        fit = losses.expression(function, self.prediction, y, **options)
        if self.output_bias is not None:
            losses.refuse_single_class(function, y, self.X.shape[0], self.outputs)
        self.training = Training(y, parameter, function, options)
        return cp.Problem(cp.Minimize(fit + parameter * self.penalty), self.constraints)

    def interpolation(self, Y: Any) -> Any:
        """The ``cp.Problem``: the smallest penalty with which the prediction equals ``Y`` exactly."""
        target = _arrays.targets(Y, self.X.shape[0], self.outputs, "Y")
        return cp.Problem(cp.Minimize(self.penalty), [*self.constraints, self.prediction == target])


def with_output_bias(prediction: Any, outputs: int) -> tuple[Any, Any]:
    """The prediction, (n,) or (n, c), plus a free constant per output, and that variable, () or (c,)."""
    free = cp.Variable(() if outputs == 1 else (outputs,), name="output_bias")
    if outputs == 1:
        return prediction + free, free
    return prediction + np.ones((prediction.shape[0], 1)) @ cp.reshape(free, (1, outputs), order="F"), free


def _regularisation(reg: Any) -> Any:
    if isinstance(reg, cp.Parameter):
        if reg.size != 1 or not reg.is_nonneg():
            raise ValueError("reg must be a scalar, non-negative Parameter: cp.Parameter(nonneg=True).")
        return reg
    if isinstance(reg, cp.Expression):
        raise TypeError("reg must be a number or a cp.Parameter(nonneg=True), not another expression.")
    return cp.Parameter(nonneg=True, value=_arrays.not_negative(reg, "reg"), name="reg")
