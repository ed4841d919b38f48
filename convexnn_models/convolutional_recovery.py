"""From the solution of a convolutional program to the network that it is the twin of."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from convexnn_models._arrays import Float64Array
from convexnn_models.convolutional import ConvolutionalModel
from convexnn_models.convolutional_network import ConvolutionalNetwork, Pooling, gated_pool
from convexnn_models.fitting import held_bias, held_value, pruned
from convexnn_solvers.cones.projections import PatternCones


@dataclass(frozen=True)
class _Filters:
    """Filter j: weights ``blocks[:, j]`` of gate, cell and output, and the sign it counts with."""

    blocks: Float64Array  # (h, N)
    gate: NDArray[np.intp]  # (N,)
    cell: NDArray[np.intp]  # (N,)
    output: NDArray[np.intp]  # (N,)
    sign: Float64Array  # (N,)

    @property
    def cost(self) -> Float64Array:
        return np.asarray(np.linalg.norm(self.blocks, axis=0))

    def scaled(self, factors: Float64Array) -> _Filters:
        keep = np.flatnonzero(factors > 0.0)
        return _Filters(
            self.blocks[:, keep] * factors[keep],
            self.gate[keep],
            self.cell[keep],
            self.output[keep],
            self.sign[keep],
        )


def recover_convolutional(model: ConvolutionalModel, prune: bool = True) -> ConvolutionalNetwork:
    """The network at the values that the model's variables hold: one filter per non-zero block.

    With average or sum pooling blocks are first projected on their pattern cones, and the network's own
    objective is the convex one at the projected point. With maximum pooling there is no closed-form
    projection: the blocks are taken as they are, and where an interior-point solution violates its cone
    (by about 1e-8) the network differs by as much. ``prune`` leaves out filters that change the objective by
    less than 1e-8 relative without raising it, then as many as depend linearly on others on the samples.
    Raises ValueError when a variable has no value.
    """
    parts: list[_Filters] = []
    h, P = model.patches.shape[2], len(model.filter_gates)
    for m, weights in enumerate(model.blocks):
        for variable, sign in zip(weights, (1.0, -1.0), strict=False):
            columns = held_value(variable).reshape(model.outputs, h, P).transpose(1, 0, 2).reshape(h, -1)
            gate, output = np.tile(np.arange(P), model.outputs), np.repeat(np.arange(model.outputs), P)
            if model.relu and model.pooling is not Pooling.MAXIMUM:
                columns = _projected(model, m, columns, gate)
            cell, signs = np.full(columns.shape[1], m), np.full(columns.shape[1], sign)
            parts.append(_Filters(columns, gate, cell, output, signs))
    found = _Filters(
        np.concatenate([p.blocks for p in parts], axis=1),
        np.concatenate([p.gate for p in parts]),
        np.concatenate([p.cell for p in parts]),
        np.concatenate([p.output for p in parts]),
        np.concatenate([p.sign for p in parts]),
    )
    found = found.scaled((found.cost > 0.0).astype(np.float64))
    if prune and found.sign.size:
        rows = np.zeros((found.sign.size, model.outputs))
        rows[np.arange(found.sign.size), found.output] = found.sign
        found = found.scaled(pruned(model, _values(model, found), rows, found.cost))
    return _network(model, found)


def _projected(
    model: ConvolutionalModel, cell: int, columns: Float64Array, gate: NDArray[np.intp]
) -> Float64Array:
    n, K, _ = model.patches.shape
    bits = model.filter_gates.patterns.reshape(n, K, -1)[:, list(model.cells[cell])]
    cones = PatternCones(model.rows(cell), np.ascontiguousarray(bits.reshape(-1, bits.shape[2])))
    result = np.zeros_like(columns)
    live = np.flatnonzero(columns.any(axis=0))
    result[:, live] = cones.project(columns[:, live], gate[live]).points
    return result


def _values(model: ConvolutionalModel, found: _Filters) -> Float64Array:
    """What every filter, pooled over its cell, contributes to its output: (n, N)."""
    values = np.empty((model.patches.shape[0], found.sign.size))
    for m, cell in enumerate(model.cells):
        members = np.flatnonzero(found.cell == m)
        samples = model.patches[:, list(cell)]
        responses = samples @ found.blocks[:, members]
        if model.relu:
            values[:, members] = model.pooling(np.maximum(responses, 0.0))
        else:
            gates = samples @ model.filter_gates.vectors[:, found.gate[members]]
            values[:, members] = gated_pool(gates, responses, model.pooling)
    return values


def _network(model: ConvolutionalModel, found: _Filters) -> ConvolutionalNetwork:
    roots = np.sqrt(found.cost)
    output = np.zeros((found.sign.size, len(model.cells), model.outputs))
    output[np.arange(found.sign.size), found.cell, found.output] = found.sign * roots
    return ConvolutionalNetwork(
        filters=found.blocks / roots,
        output=output,
        cells=model.cells,
        patches=int(model.patches.shape[1]),
        pooling=model.pooling,
        gates=None if model.relu else model.filter_gates.vectors[:, found.gate],
        bias=model.bias,
        output_bias=None if model.output_bias is None else np.reshape(held_bias(model), model.outputs),
    )
