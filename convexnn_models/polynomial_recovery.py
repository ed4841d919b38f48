"""From the lifted matrices of a polynomial model to the network that they stand for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from convexnn_models._arrays import Float64Array
from convexnn_models.fitting import held_bias, pruned
from convexnn_models.neural_decomposition import even_neurons, neurons
from convexnn_models.polynomial import PolynomialModel
from convexnn_models.polynomial_certificate import feasible_pairs
from convexnn_models.polynomial_network import PolynomialNetwork


@dataclass(frozen=True)
class _Neurons:
    """Neuron j: unit hidden weights, the cell and the output it belongs to, its signed output weight."""

    hidden: Float64Array  # (h, N)
    cell: NDArray[np.intp]  # (N,)
    output: NDArray[np.intp]  # (N,)
    weight: Float64Array  # (N,)

    def scaled(self, factors: Float64Array) -> _Neurons:
        keep = np.flatnonzero(factors > 0.0)
        weight = self.weight[keep] * factors[keep]
        return _Neurons(self.hidden[:, keep], self.cell[keep], self.output[keep], weight)


def recover_polynomial(model: PolynomialModel, prune: bool = True) -> PolynomialNetwork:
    """The network at the values that the model's variables hold, by neural decomposition.

    Its objective ``loss + reg sum |output weights|`` is the convex objective at the feasible copy of the
    point that :func:`polynomial_certificate` judges. Every lifted matrix gives at most h + 1 neurons, all
    of one output and one cell. ``prune`` leaves out neurons that change the objective by less than 1e-8
    relative without raising it (interior-point solutions have many), then as many as depend linearly on
    others on the training samples. Raises ValueError when a variable has no value.
    """
    decompose = even_neurons if model.activation.b == 0.0 else neurons
    parts: list[_Neurons] = []
    for k, row in enumerate(feasible_pairs(model)):
        for m, pair in enumerate(row):
            for sign, Z in zip((1.0, -1.0), pair, strict=True):
                hidden, weight = decompose(Z)
                size = weight.size
                parts.append(_Neurons(hidden, np.full(size, m), np.full(size, k), sign * weight))
    found = _Neurons(
        np.concatenate([p.hidden for p in parts], axis=1),
        np.concatenate([p.cell for p in parts]),
        np.concatenate([p.output for p in parts]),
        np.concatenate([p.weight for p in parts]),
    )
    if prune and found.weight.size:
        rows = np.zeros((found.weight.size, model.outputs))
        rows[np.arange(found.weight.size), found.output] = found.weight
        found = found.scaled(pruned(model, _values(model, found), rows, np.abs(found.weight)))
    output = np.zeros((found.weight.size, len(model.cells), model.outputs))
    output[np.arange(found.weight.size), found.cell, found.output] = found.weight
    offset = None if model.output_bias is None else np.reshape(held_bias(model), model.outputs)
    return PolynomialNetwork(
        activation=model.activation,
        hidden=found.hidden,
        output=output,
        cells=model.cells,
        patches=int(model.patches.shape[1]),
        bias=model.bias,
        output_bias=offset,
    )


def _values(model: PolynomialModel, found: _Neurons) -> Float64Array:
    """What every neuron, averaged over its cell, contributes to its output: (n, N)."""
    values = np.empty((model.patches.shape[0], found.weight.size))
    for m, cell in enumerate(model.cells):
        members = np.flatnonzero(found.cell == m)
        responses = model.activation(model.patches[:, list(cell)] @ found.hidden[:, members])
        values[:, members] = responses.mean(axis=1)
    return values
