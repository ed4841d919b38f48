"""From the solution of a convex program to the network that it is the twin of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

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


class _Neurons(NamedTuple):
    """Neuron b: hidden weights ``hidden[:, b]`` of gate ``columns[b]``, and a unit output row.

    ``values`` is what they compute on the training samples, None where that was not formed.
    """

    hidden: Float64Array  # (d, m)
    outputs: Float64Array  # (m, c)
    columns: NDArray[np.int64]  # (m,)
    values: Float64Array | None = None  # (n, m)

    @property
    def cost(self) -> Float64Array:
        return np.asarray(np.linalg.norm(self.hidden, axis=0))

    def scaled(self, factors: Float64Array) -> _Neurons:
        if np.all(factors == 1.0):
            return self
        keep = np.flatnonzero(factors > 0.0)
        f = factors[keep]
        values = None if self.values is None else self.values[:, keep] * f
        return _Neurons(self.hidden[:, keep] * f, self.outputs[keep], self.columns[keep], values)


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
    weights = held[: len(model.signs)]
    offset = held[-1].reshape(model.outputs) if model.output_bias is not None else None
    blocks = _in_cones(model, weights) if model.cones else weights
    parts = [_neurons(model, W, sign) for W, sign in zip(blocks, model.signs, strict=True)]
    neurons = _Neurons(
        np.concatenate([p.hidden for p in parts], axis=1),
        np.concatenate([p.outputs for p in parts], axis=0),
        np.concatenate([p.columns for p in parts]),
    )
    if len(model.X) * neurons.columns.size <= _CHUNK_ENTRIES:  # all that follows takes them from here
        neurons = neurons._replace(values=_hidden_values(model, neurons, slice(None)))
    scores = _scores(model, neurons)
    kept = neurons
    if prune and neurons.columns.size:
        large = _large(model, neurons, scores, offset)
        values = _hidden_values(model, large, slice(None))
        kept = large.scaled(pruning_factors(values, large.outputs, large.cost))
    pairs = zip(blocks, weights, strict=True)
    moved = np.sqrt(sum(0.0 if a is b else float(np.sum((a - b) ** 2)) for a, b in pairs))
    size = np.sqrt(sum(float(np.vdot(b, b)) for b in weights))
    shifted = _with_offset(scores, offset) - model.prediction.value if moved > 0.0 else np.zeros(1)
    report = Recovery(
        relation=_relation(model),
        shift=moved / size if size > 0.0 else 0.0,
        prediction_shift=_largest(shifted),
        convex_penalty=sum(_convex_penalty(model, W) for W in blocks),
        network_penalty=float(neurons.cost.sum()),
        width_before=int(neurons.columns.size),
        pruning_change=_largest(_scores(model, kept) - scores) if kept is not neurons else 0.0,
        columns=kept.columns,
        X=model.X[:, :-1] if model.bias else model.X,
        training=model.training,
    )
    return _network(model, kept, offset, report)


def _by_output(
    model: ConvexModel, W: Float64Array
) -> tuple[Float64Array, NDArray[np.int64], NDArray[np.int64]]:
    """The columns (d, c * P) of ``W`` (d * c, P), with the gate and the output of each."""
    c, d = model.outputs, model.X.shape[1]
    P = W.shape[1]
    columns = W.reshape(c, d, P).transpose(1, 0, 2).reshape(d, c * P)
    return columns, np.tile(np.arange(P), c), np.repeat(np.arange(c), P)


def _in_cones(model: ConvexModel, weights: list[Float64Array]) -> list[Float64Array]:
    """The weights with every column in its cone: themselves where that is so already."""
    assert model.gates is not None
    columns = np.hstack([_by_output(model, W)[0] for W in weights])
    gates = np.tile(_by_output(model, weights[0])[1], len(weights))
    live = np.flatnonzero(columns.any(axis=0))
    # Signs are read for the gates in use: a sparse solution's are few.
    used, own = np.unique(gates[live], return_inverse=True)
    patterns = model.gates.patterns
    cones = PatternCones(model.X, patterns if used.size == patterns.shape[1] else patterns[:, used])
    outside = cones.slack_violation(columns[:, live], own)
    moving = np.flatnonzero(outside > _INSIDE * np.linalg.norm(columns[:, live], axis=0))
    if not moving.size:
        return weights
    columns[:, live[moving]] = cones.project(columns[:, live[moving]], own[moving]).points
    c, d = model.outputs, model.X.shape[1]
    return [
        part.reshape(d, c, -1).transpose(1, 0, 2).reshape(c * d, -1)
        for part in np.split(columns, len(weights), axis=1)
    ]


def _neurons(model: ConvexModel, W: Float64Array, sign: float) -> _Neurons:
    """One neuron per column and output; per gate and singular value where a gate's outputs are tied."""
    c, d = model.outputs, model.X.shape[1]
    if c == 1 or model.cones or model.grouping == "per-output":
        columns, gates, output = _by_output(model, W)
        rows = np.zeros((columns.shape[1], c))
        rows[np.arange(rows.shape[0]), output] = sign
        neurons = _Neurons(columns, rows, gates)
    else:
        used = np.flatnonzero(W.any(axis=0))
        blocks = W[:, used].reshape(c, d, -1).transpose(2, 1, 0)
        left, singular, right = np.linalg.svd(blocks, full_matrices=False)
        k = singular.shape[1]
        cut = singular > 1e-15 * singular[:, :1]  # zeros of a low-rank block, up to rounding
        hidden = (left * (singular * cut)[:, None, :]).transpose(1, 0, 2).reshape(d, -1)
        neurons = _Neurons(hidden, sign * right.reshape(-1, c), np.repeat(used, k))
    return neurons.scaled((neurons.cost > 0.0).astype(np.float64))


def _hidden_values(model: ConvexModel, neurons: _Neurons, rows: slice) -> Float64Array:
    """What the neurons compute on some training samples, by the patterns of their gates."""
    assert model.gates is not None
    if neurons.values is not None:
        return neurons.values[rows]
    values = model.X[rows] @ neurons.hidden
    active = model.gates.patterns[rows][:, neurons.columns]
    # Bits as numbers: products of both kinds take five times as long.
    values *= active.astype(np.float64) if model.slope == 0.0 else np.where(active, 1.0, model.slope)
    return np.asarray(values)


def _scores(model: ConvexModel, neurons: _Neurons) -> Float64Array:
    """The neurons' predictions (n, c), without the n x m array of their values."""
    scores = np.empty((model.X.shape[0], model.outputs))
    for rows in row_blocks(len(scores), neurons.columns.size, _CHUNK_ENTRIES):
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

    return neurons.scaled(needed(cost, objective).astype(np.float64))


def _convex_penalty(model: ConvexModel, W: Float64Array) -> float:
    c, d = model.outputs, model.X.shape[1]
    blocks = W.reshape(c, d, -1)
    if c == 1 or model.grouping == "shared":
        return float(np.sqrt(np.sum(blocks**2, axis=(0, 1))).sum())
    if model.grouping == "per-output":
        return float(np.sqrt(np.sum(blocks**2, axis=1)).sum())
    return float(np.linalg.svd(blocks.transpose(2, 1, 0), compute_uv=False).sum())


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
    vectors = model.gates.vectors[:, neurons.columns] if not model.cones else None
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
