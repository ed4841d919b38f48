"""From the solution of a convex program to the network that it is the twin of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convexnn_models._arrays import Float64Array
from convexnn_models.fitting import held_value
from convexnn_models.model import ConvexModel, Training
from convexnn_models.negligible import needed
from convexnn_models.network import Network
from convexnn_models.pruning import pruning_factors
from convexnn_solvers.cones.projections import PatternCones
from convexnn_solvers.row_blocks import row_blocks

_CHUNK_ENTRIES = 4_000_000  # of samples x neurons
# Blocks that violate the unit rows of their cones by no more than this, relatively, are inside: our solvers'
# are the projections of others.
_INSIDE = 64.0 * float(np.finfo(np.float64).eps)


@dataclass(frozen=True)
class Recovery:
    """How a network came out of a convex program: ``network.info`` of what :func:`recover_two_layer` returns.

    Attributes
    ----------
    relation : str
        How the network's regularised objective relates to the convex one.
    shift : float
        By how much the projection on the pattern cones moved the point, relative to its norm: 0 for gated
        models and for our own solvers' points, about 1e-8 after an interior-point solver.
    prediction_shift : float
        The largest change of a training prediction that this caused.
    convex_penalty : float
        The convex penalty at the projected point.
    network_penalty : float
        The network's penalty before pruning.
    width_before : int
        Neurons before pruning.
    pruning_change : float
        The largest change of a training prediction by pruning.
    columns : array (m,), int
        The column of ``model.gates`` that each neuron belongs to.
    X : array (n, d)
        The training samples, without the column of ones (by reference).
    training : Training or None
        The latest ``model.problem(...)``.
    """

    relation: str
    shift: float
    prediction_shift: float
    convex_penalty: float
    network_penalty: float
    width_before: int
    pruning_change: float
    columns: NDArray[np.int64]
    X: Float64Array
    training: Training | None

    def __str__(self) -> str:
        return (
            f"{self.width_before} neurons, {self.columns.size} after pruning; {self.relation}; "
            f"projection on the cones moved the point by {self.shift:.1e} (relative)"
        )


@dataclass(frozen=True, eq=False)
class _Neurons:
    """Neuron j: hidden weights ``hidden[:, j]``, output weights ``outputs[j]``, and the block it comes from.

    Blocks are numbered gate by gate, those of one weight variable after the other. ``values`` is what the
    neurons compute on the training samples, None where that was not formed.
    """

    hidden: Float64Array  # (d, m)
    outputs: Float64Array  # (m, c)
    blocks: NDArray[np.intp]  # (m,)
    values: Float64Array | None = None  # (n, m)

    @cached_property
    def cost(self) -> Float64Array:
        """What the convex program pays for each of them (m,)."""
        return np.asarray(np.linalg.norm(self.hidden, axis=0))

    def scaled(self, factors: NDArray[Any]) -> _Neurons:
        """Times non-negative factors; without those of zero."""
        if np.all(factors == 1.0):
            return self
        keep = np.flatnonzero(factors > 0.0)
        f = factors[keep]
        values = None if self.values is None else self.values[:, keep] * f
        return _Neurons(self.hidden[:, keep] * f, self.outputs[keep], self.blocks[keep], values)


def recover_two_layer(model: ConvexModel, prune: bool = True) -> Network:
    """The network at the values that the model's variables hold, whoever put them there.

    Every block u of gate j becomes a neuron with hidden weights ``u / sqrt(||u||)`` and an output weight
    ``+-sqrt(||u||)``; blocks of a ReLU program are first projected on their pattern cones (interior-point
    solutions lie slightly outside). For one output, and for ``grouping="per-output"`` or ``"nuclear"``,
    the network's own objective ``loss + reg/2 ||weights||^2`` is the convex objective at the projected
    point; for ``"shared"`` see ``network.info.relation``. A gated model gives a gated network.

    Parameters
    ----------
    model : ConvexModel
        A solved ``relu``, ``gated_relu`` or ``piecewise_linear`` model.
    prune : bool
        Leave out neurons without changing what the objective measures: at most n neurons per output
        remain, training predictions stay, the penalty does not rise. If the model knows its objective
        (``model.problem`` was called), neurons that change it by less than 1e-8 relative, and do not
        raise it, go first: interior-point solutions are dense and have many of them.

    Returns a :class:`Network`, whose ``info`` is a :class:`Recovery` report. Raises ValueError when a
    variable has no value.
    """
    if not isinstance(model, ConvexModel) or model.gates is None or not model.signs:
        raise TypeError(
            f"model must be what relu(X, gates) or another formulation returns, not {type(model).__name__}."
        )
    held = [held_value(variable) for variable in model.variables]
    offset = held[-1].reshape(model.outputs) if model.output_bias is not None else None
    found = _neurons(model, held[: len(model.signs)])
    neurons = _in_cones(model, found) if model.cones else found
    moved = 0.0 if neurons is found else float(np.linalg.norm(neurons.hidden - found.hidden))
    size = float(np.linalg.norm(found.cost))
    neurons = neurons.scaled(neurons.cost > 0.0)
    if len(model.X) * neurons.cost.size <= _CHUNK_ENTRIES:  # all that follows takes them from here
        neurons = replace(neurons, values=_hidden_values(model, neurons, slice(None)))
    scores = _scores(model, neurons)
    kept = neurons
    if prune and neurons.cost.size:
        large = _large(model, neurons, scores, offset)
        values = _hidden_values(model, large, slice(None))
        kept = large.scaled(pruning_factors(values, large.outputs, large.cost))
    shifted = _with_offset(scores, offset) - model.prediction.value if moved > 0.0 else np.zeros(1)
    report = Recovery(
        relation=_relation(model),
        shift=moved / size if size > 0.0 else 0.0,
        prediction_shift=_largest(shifted),
        convex_penalty=_convex_penalty(model, neurons),
        network_penalty=float(neurons.cost.sum()),
        width_before=int(neurons.cost.size),
        pruning_change=_largest(_scores(model, kept) - scores) if kept is not neurons else 0.0,
        columns=_gates(model, kept),
        X=model.X[:, :-1] if model.bias else model.X,
        training=model.training,
    )
    return _network(model, kept, offset, report)


def _neurons(model: ConvexModel, weights: Sequence[Float64Array]) -> _Neurons:
    """One neuron per column and output; per gate and singular value where a gate's outputs are tied.

    Without those of no weight.
    """
    c, d = model.outputs, model.X.shape[1]
    together = np.hstack(weights)
    used = np.flatnonzero(together.any(axis=0))
    sign = np.repeat(model.signs, together.shape[1] // len(weights))[used]
    columns = together[:, used].reshape(c, d, used.size)
    if c == 1 or model.cones or model.grouping == "per-output":
        rows = np.zeros((c, used.size, c))
        rows[np.arange(c), :, np.arange(c)] = sign
        neurons = _Neurons(columns.transpose(1, 0, 2).reshape(d, -1), rows.reshape(-1, c), np.tile(used, c))
    else:
        left, singular, right = np.linalg.svd(columns.transpose(2, 1, 0), full_matrices=False)
        cut = singular > 1e-15 * singular[:, :1]  # zeros of a low-rank block, up to rounding
        hidden = (left * (singular * cut)[:, None, :]).transpose(1, 0, 2).reshape(d, -1)
        rows = (sign[:, None, None] * right).reshape(-1, c)
        neurons = _Neurons(hidden, rows, np.repeat(used, singular.shape[1]))
    return neurons.scaled(neurons.cost > 0.0)


def _gates(model: ConvexModel, neurons: _Neurons) -> NDArray[np.intp]:
    """The gate of each neuron."""
    assert model.gates is not None
    gates: NDArray[np.intp] = neurons.blocks % model.gates.patterns.shape[1]
    return gates


def _in_cones(model: ConvexModel, neurons: _Neurons) -> _Neurons:
    """Every neuron in the cone of its gate: themselves where that is so already."""
    assert model.gates is not None
    gates, outside = _gates(model, neurons), np.zeros(neurons.cost.size, dtype=np.bool_)
    for rows in row_blocks(len(model.X), outside.size, _CHUNK_ENTRIES):
        X = model.X[rows]
        products = X @ neurons.hidden
        inward = np.where(model.gates.patterns[rows][:, gates], products, -products)
        lengths = np.sqrt(np.einsum("ij,ij->i", X, X))
        outside |= np.any(inward < np.outer(lengths, -_INSIDE * neurons.cost), axis=0)
    moving = np.flatnonzero(outside)
    if not moving.size:
        return neurons
    used, own = np.unique(gates[moving], return_inverse=True)
    cones, hidden = PatternCones(model.X, model.gates.patterns[:, used]), neurons.hidden.copy()
    hidden[:, moving] = cones.project(hidden[:, moving], own).points
    return replace(neurons, hidden=hidden)


def _hidden_values(model: ConvexModel, neurons: _Neurons, rows: slice) -> Float64Array:
    """What the neurons compute on some training samples, by the patterns of their gates."""
    assert model.gates is not None
    if neurons.values is not None:
        return neurons.values[rows]
    values = model.X[rows] @ neurons.hidden
    active = model.gates.patterns[rows][:, _gates(model, neurons)]
    # Bits as numbers: products of both kinds take five times as long.
    values *= active.astype(np.float64) if model.slope == 0.0 else np.where(active, 1.0, model.slope)
    return np.asarray(values)


def _scores(model: ConvexModel, neurons: _Neurons) -> Float64Array:
    """The neurons' predictions (n, c), without the n x m array of their values."""
    if neurons.values is not None:
        return neurons.values @ neurons.outputs
    scores = np.empty((model.X.shape[0], model.outputs))
    for rows in row_blocks(len(scores), neurons.cost.size, _CHUNK_ENTRIES):
        scores[rows] = _hidden_values(model, neurons, rows) @ neurons.outputs
    return scores


def _with_offset(scores: Float64Array, offset: Float64Array | None) -> Float64Array:
    """In the shape and units of the model's prediction."""
    total = scores if offset is None else scores + offset
    return total[:, 0] if total.shape[1] == 1 else total


def _large(
    model: ConvexModel, neurons: _Neurons, scores: Float64Array, offset: Float64Array | None
) -> _Neurons:
    """The neurons without those that the training objective, where it is known, does not notice.

    ``scores`` are those of all neurons.
    """
    training = model.training
    if training is None:
        return neurons

    cost = neurons.cost

    def objective(keep: NDArray[np.bool_]) -> float:
        if keep.all():
            found = scores
        elif neurons.values is None:
            found = _scores(model, neurons.scaled(keep.astype(np.float64)))
        else:  # without a copy of the values
            found = neurons.values @ (neurons.outputs * keep[:, None])
        return training.objective(_with_offset(found, offset), float(cost[keep].sum()))

    return neurons.scaled(needed(cost, objective))


def _convex_penalty(model: ConvexModel, neurons: _Neurons) -> float:
    """The sum of all costs, or where outputs share their groups that of the norms of these."""
    if model.outputs == 1 or model.grouping != "shared":
        return float(neurons.cost.sum())
    return float(np.sqrt(np.bincount(neurons.blocks, neurons.cost**2)).sum())


def _relation(model: ConvexModel) -> str:
    if model.outputs == 1 or model.grouping != "shared":
        return "its objective is the convex objective"
    if model.cones:
        return "its objective is not the convex one, which bounds it from neither side"
    return "the convex objective is a lower bound of its objective"


def _network(model: ConvexModel, neurons: _Neurons, offset: Float64Array | None, report: Recovery) -> Network:
    assert model.gates is not None
    roots = np.sqrt(neurons.cost)
    hidden = neurons.hidden / roots
    vectors = model.gates.vectors[:, _gates(model, neurons)] if not model.cones else None
    d = model.X.shape[1] - (1 if model.bias else 0)
    return Network(
        W1=hidden[:d],
        W2=neurons.outputs * roots[:, None],
        b1=hidden[d] if model.bias else None,
        b2=offset,
        slope=model.slope,
        gates=None if vectors is None else vectors[:d],
        gate_bias=vectors[d] if vectors is not None and model.bias else None,
        info=report,
    )


def _largest(values: Float64Array) -> float:
    return float(np.abs(values).max(initial=0.0))
