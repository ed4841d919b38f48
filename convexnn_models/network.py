"""A two-layer network as a value: NumPy weights, prediction, and its own non-convex objective.

    f(x) = sum_j phi(x . w_j + b1_j) a_j + b2,    phi(t) = t for t >= 0, slope * t otherwise

A gated network replaces the sign of ``x . w_j + b1_j`` by that of a fixed gate: neuron j computes
``(x . w_j + b1_j)`` where ``x . g_j + gate_bias_j >= 0`` and ``slope`` times that elsewhere.
"""

from __future__ import annotations

import importlib
import os
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

import numpy as np

from convexnn_models import _arrays, losses
from convexnn_models._arrays import Float64Array
from convexnn_models.onnx_export import onnx_graph
from convexnn_solvers.row_blocks import slices

_ROWS = 4096  # samples per block of `predict`


class Weights(NamedTuple):
    """All trained parameters; an absent bias is zero."""

    W1: Float64Array
    b1: Float64Array
    W2: Float64Array
    b2: Float64Array


@dataclass(frozen=True, eq=False, repr=False)
class Network:
    """A two-layer network with m hidden neurons and c outputs.

    Parameters
    ----------
    W1 : array (d, m)
        Hidden weights, one neuron per column.
    W2 : array (m, c)
        Output weights.
    b1 : array (m,), optional
        Hidden biases. They are regularised like weights, being the weights of a constant feature.
    b2 : array (c,), optional
        Output biases, not regularised.
    slope : float
        The activation's slope for negative arguments: 0 is ReLU, -1 the absolute value.
    gates : array (d, m), optional
        The fixed gate of each neuron: a gated network.
    gate_bias : array (m,), optional
        The offsets of the gates.
    info : Any
        How the network came about, for example the report of ``recover``; not saved.
    """

    W1: Float64Array
    W2: Float64Array
    b1: Float64Array | None = None
    b2: Float64Array | None = None
    slope: float = 0.0
    gates: Float64Array | None = None
    gate_bias: Float64Array | None = None
    info: Any = field(default=None, compare=False)

    def __post_init__(self) -> None:
        first, second = _arrays.numbers(self.W1, "W1"), _arrays.numbers(self.W2, "W2")
        if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[0] or first.shape[0] == 0:
            raise ValueError(
                f"W1 must be (d, m) and W2 (m, c), not {first.shape} and {second.shape}; "
                "transpose weights that come from torch."
            )
        if second.shape[1] == 0:
            raise ValueError("W2 must have at least one column, one per output.")
        (d, m), c = first.shape, second.shape[1]
        expected = {"b1": (m,), "b2": (c,), "gates": (d, m), "gate_bias": (m,)}
        for name, shape in expected.items():
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, _arrays.shaped(value, shape, name))
        if self.gate_bias is not None and self.gates is None:
            raise ValueError("gate_bias needs gates; leave it out for a ReLU network.")
        object.__setattr__(self, "W1", first)
        object.__setattr__(self, "W2", second)
        object.__setattr__(self, "slope", _arrays.number(self.slope, "slope"))

    def __repr__(self) -> str:
        (d, m), c = self.W1.shape, self.outputs
        names = {0.0: "ReLU", -1.0: "absolute value"}
        kind = "gated" if self.gated else names.get(self.slope, f"slope {self.slope:g}")
        return f"Network({kind}: {d} inputs, {m} neurons, {c} output{'s' if c > 1 else ''})"

    @property
    def width(self) -> int:
        """The number m of hidden neurons."""
        return int(self.W1.shape[1])

    @property
    def outputs(self) -> int:
        """The number c of outputs."""
        return int(self.W2.shape[1])

    @property
    def gated(self) -> bool:
        """Whether fixed gates, rather than the weights themselves, decide which neurons are active."""
        return self.gates is not None

    @property
    def weights(self) -> Weights:
        """``(W1, b1, W2, b2)`` with zeros for absent biases."""
        b1 = np.zeros(self.width) if self.b1 is None else self.b1
        b2 = np.zeros(self.outputs) if self.b2 is None else self.b2
        return Weights(self.W1, b1, self.W2, b2)

    @property
    def gate_vectors(self) -> Float64Array:
        """What decides the activation patterns: (d, m), or (d + 1, m) with the offsets as last row."""
        vectors, offsets = (self.W1, self.b1) if self.gates is None else (self.gates, self.gate_bias)
        return vectors if offsets is None else np.vstack([vectors, offsets])

    @property
    def penalty(self) -> float:
        """``1/2 (||W1||^2 + ||b1||^2 + ||W2||^2)``: what ``reg`` multiplies."""
        hidden_bias = 0.0 if self.b1 is None else float(np.sum(self.b1**2))
        return 0.5 * (float(np.sum(self.W1**2)) + hidden_bias + float(np.sum(self.W2**2)))

    def predict(self, X: Any) -> Float64Array:
        """The scores of samples X (n, d): (n,) for one output, (n, c) for several."""
        samples = _arrays.features(X)
        if samples.shape[1] != self.W1.shape[0]:
            raise ValueError(f"X must have {self.W1.shape[0]} columns, like W1 rows, not {samples.shape[1]}.")
        scores = np.empty((samples.shape[0], self.outputs))
        for rows in slices(samples.shape[0], _ROWS):
            scores[rows] = self._hidden(samples[rows]) @ self.W2
        if self.b2 is not None:
            scores += self.b2
        return scores[:, 0] if self.outputs == 1 else scores

    @losses.takes_loss_options
    def objective(
        self, X: Any, y: Any, reg: float, loss: str | losses.LossFunction = "squared", **options: Any
    ) -> float:
        """The non-convex training objective ``loss + reg / 2 (||W1||^2 + ||b1||^2 + ||W2||^2)``.

        The loss is a mean over the samples (``1/(2n) ||f(X) - y||^2`` for "squared"); ``reg`` is in the
        same scaling as for the convex model.
        """
        return losses.regularised(loss, self.predict(X), y, reg, self.penalty, **options)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the weights to an ``.npz`` file that holds arrays only (no code, no pickles)."""
        present = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "info"}
        with open(os.fspath(path), "wb") as file:
            np.savez(file, **{name: value for name, value in present.items() if value is not None})

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Network:
        """Read what :meth:`save` wrote. Raises ValueError for any other file."""
        names = {f.name for f in fields(Network)} - {"info"}
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
        except FileNotFoundError:
            raise
        except Exception as error:
            raise ValueError(f"path {os.fspath(path)!r} is no saved network: {error}.") from error
        if not {"W1", "W2"} <= set(arrays) <= names:
            raise ValueError(f"path {os.fspath(path)!r} is no saved network: it holds {sorted(arrays)}.")
        slope = arrays.pop("slope", np.array(0.0))
        return Network(**arrays, slope=float(slope))

    def to_torch(self) -> Any:
        """The same network as a float64 ``torch.nn.Module``: inputs (n, d), outputs (n, c)."""
        try:
            torch = importlib.import_module("torch")
        except ImportError as error:
            raise ImportError("to_torch needs torch; pip install 'convexnn[torch]'") from error
        hidden, output = _linear(torch, self.W1, self.b1), _linear(torch, self.W2, self.b2)
        if self.gates is not None:
            return _gated_module(torch, hidden, output, self)
        activation = torch.nn.ReLU() if self.slope == 0.0 else torch.nn.LeakyReLU(self.slope)
        return torch.nn.Sequential(hidden, activation, output)

    def to_onnx(self, path: str | os.PathLike[str]) -> None:
        """Write the same network as an ONNX file: input ``X`` (n, d), output ``scores`` (n, c), float64."""
        offsets = np.zeros(self.width) if self.gate_bias is None else self.gate_bias
        gates = None if self.gates is None else (self.gates, offsets)
        model = onnx_graph(*self.weights, slope=self.slope, gates=gates)
        with open(os.fspath(path), "wb") as file:
            file.write(model.SerializeToString())

    def _hidden(self, X: Float64Array) -> Float64Array:
        values = X @ self.W1
        if self.b1 is not None:
            values += self.b1
        if self.gates is None:
            active = values >= 0.0
        else:
            active = X @ self.gates + (0.0 if self.gate_bias is None else self.gate_bias) >= 0.0
        return np.where(active, values, self.slope * values)


def _linear(torch: Any, weight: Float64Array, bias: Float64Array | None) -> Any:
    """``x @ weight + bias``; made small and filled, because torch warns when it initialises empty layers."""
    layer = torch.nn.Linear(1, 1, bias=bias is not None, dtype=torch.float64)
    layer.in_features, layer.out_features = weight.shape
    layer.weight = torch.nn.Parameter(torch.tensor(weight.T))
    if bias is not None:
        layer.bias = torch.nn.Parameter(torch.tensor(bias))
    return layer


def _gated_module(torch: Any, hidden: Any, output: Any, network: Network) -> Any:
    class GatedNetwork(torch.nn.Module):  # type: ignore[misc]
        """``output(hidden(x) * scale)``, where the fixed gates choose scale 1 or slope."""

        def __init__(self) -> None:
            super().__init__()
            self.hidden, self.output, self.slope = hidden, output, network.slope
            offsets = np.zeros(network.width) if network.gate_bias is None else network.gate_bias
            self.register_buffer("gates", torch.tensor(network.gates))
            self.register_buffer("gate_bias", torch.tensor(offsets))

        def forward(self, x: Any) -> Any:
            values = self.hidden(x)
            return self.output(torch.where(x @ self.gates + self.gate_bias >= 0, values, self.slope * values))

    return GatedNetwork()
