"""From a gated network to a ReLU network that agrees with it on the training samples.

A gated neuron computes ``D_j X u``. With ``u = v - w`` and both parts in the cone
``K_j = {u : (2 D_j - I) X u >= 0}`` it is the difference of two ReLU neurons, ``(X v)_+ - (X w)_+``.
:mod:`cone_splits` finds the parts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cvxpy as cp
import numpy as np
from numpy.typing import NDArray

from convexnn_models import _arrays, losses
from convexnn_models._arrays import Float64Array
from convexnn_models.cone_splits import GatedNeurons, splits
from convexnn_models.model import Training
from convexnn_models.network import Network
from convexnn_models.recovery import Recovery


@dataclass(frozen=True)
class Decomposition:
    """How far the ReLU network is from the gated one: ``network.info`` of what :func:`to_relu` returns.

    Attributes
    ----------
    gated_objective : float
        The gated network's objective.
    raw_objective : float
        That of the decomposition as it is: the same predictions, a larger penalty.
    objective : float
        That of the returned network, after refitting: an upper bound of the optimal ReLU value.
    zero_objective : float
        That of the network without neurons.
    stretch : float
        The largest ``max(||v||, ||w||) / ||u||`` of a neuron: what drives the raw objective.
    deviation : float
        The largest difference between a prediction of the gated network and one of the decomposition as it
        is, on the training samples: rounding.
    """

    gated_objective: float
    raw_objective: float
    objective: float
    zero_objective: float
    stretch: float
    deviation: float


@losses.takes_loss_options
def to_relu(
    network: Network,
    X: Any = None,
    y: Any = None,
    reg: float | None = None,
    loss: str | losses.LossFunction = "squared",
    *,
    approximate: bool = False,
    **options: Any,
) -> Network:
    """The ReLU network of the cone decomposition, with its neurons' scales refitted to the objective.

    The decomposition predicts the training samples exactly as the gated network does, but its penalty is
    much larger, often so much that the zero network is better. So the scales of its neurons (and the
    output bias) are refitted by a convex program, and the result is never worse than the zero network.
    It is a starting point and an upper bound, not the ReLU optimum.

    Parameters
    ----------
    network : Network
        A gated network with slope 0.
    X, y, reg, loss, **options
        The training problem. All may be left out for a network that ``recover`` made from a model whose
        ``problem`` was called.
    approximate : bool
        Split the neurons by a smooth approximation, all at once, and not each by a second-order cone
        program. The predictions agree as exactly; the penalty before refitting is larger, by how much the
        report's ``raw_objective`` says. Refitting can turn that order around, because the neurons differ.

    Returns a ReLU :class:`Network` whose ``info`` is a :class:`Decomposition`. Raises ValueError when the
    network is not gated, when the training problem is not known, or when a gate's pattern is one that no
    open set of weights has (the gate passes through a sample), so that not every u can be decomposed.
    """
    if not isinstance(network, Network):
        raise TypeError(f"network must be a gated Network, not {type(network).__name__}.")
    if not network.gated or network.slope != 0.0:
        raise ValueError("network must be gated with slope 0; recover one from a gated_relu model.")
    samples, training = _training(network, X, y, reg, loss, options)
    data = _arrays.with_ones(samples, network.b1 is not None)
    vectors, patterns, bias = _patterns(network, samples)
    if bias and network.b1 is None:
        raise ValueError("network has gates with a bias but neurons without; build the model with bias=True.")
    hidden = network.W1 if network.b1 is None else np.vstack([network.W1, network.b1])
    both = splits(GatedNeurons(data, vectors, patterns, hidden), smoothed=approximate)
    outputs = np.repeat(network.W2, 2, axis=0) * np.tile([1.0, -1.0], network.width)[:, None]
    lengths = np.repeat(np.linalg.norm(hidden, axis=0), 2)
    longest = np.linalg.norm(both, axis=0)[lengths > 0.0] / lengths[lengths > 0.0]
    stretch = float(np.max(longest)) if longest.size else 1.0
    return _refitted(network, samples, data, both, outputs, training, stretch)


def _training(
    network: Network,
    X: Any,
    y: Any,
    reg: float | None,
    loss: str | losses.LossFunction,
    options: dict[str, Any],
) -> tuple[Float64Array, Training]:
    known = network.info if isinstance(network.info, Recovery) else None
    if X is None and known is None:
        raise ValueError("X is needed: pass the training problem, to_relu(network, X, y, reg).")
    samples = known.X if X is None and known is not None else _arrays.features(X)
    if samples.shape[1] != network.W1.shape[0]:
        raise ValueError(f"X must have {network.W1.shape[0]} columns, not {samples.shape[1]}.")
    if y is None and reg is None and known is not None and known.training is not None:
        return samples, known.training
    if y is None or reg is None:
        raise ValueError("y and reg are needed: pass the training problem, to_relu(network, X, y, reg).")
    weight = _arrays.not_negative(reg, "reg")
    return samples, Training(y, cp.Parameter(nonneg=True, value=weight), losses.named(loss), options)


def _patterns(network: Network, samples: Float64Array) -> tuple[Float64Array, NDArray[np.bool_], bool]:
    """The gates and bits that ``network.predict`` uses."""
    vectors = network.gate_vectors
    bias = network.gate_bias is not None
    return vectors, _arrays.with_ones(samples, bias) @ vectors >= 0.0, bias


def _refitted(
    network: Network,
    samples: Float64Array,
    data: Float64Array,
    hidden: Float64Array,
    outputs: Float64Array,
    training: Training,
    stretch: float,
) -> Network:
    cost = np.linalg.norm(hidden, axis=0) * np.linalg.norm(outputs, axis=1)
    values = np.maximum(data @ hidden, 0.0)
    offset = network.b2

    def objective(candidate: Network) -> float:
        return training.objective(candidate.predict(samples), candidate.penalty)

    raw = _balanced(network, hidden, outputs, np.ones(cost.size), offset)
    candidates = [raw]
    for width in {0, cost.size}:
        scales, b2 = _best_scales(values[:, :width], outputs[:width], cost[:width], training, offset)
        candidates.append(_balanced(network, hidden[:, :width], outputs[:width], scales, b2))
    candidates.append(_balanced(network, hidden[:, :0], outputs[:0], np.ones(0), offset))
    scored = [objective(candidate) for candidate in candidates]
    best = candidates[int(np.argmin(scored))]
    report = Decomposition(
        gated_objective=objective(network),
        raw_objective=scored[0],
        objective=min(scored),
        zero_objective=min(
            s for s, candidate in zip(scored, candidates, strict=True) if candidate.width == 0
        ),
        stretch=stretch,
        deviation=float(np.max(np.abs(raw.predict(samples) - network.predict(samples)), initial=0.0)),
    )
    return Network(best.W1, best.W2, best.b1, best.b2, info=report)


def _best_scales(
    values: Float64Array,
    outputs: Float64Array,
    cost: Float64Array,
    training: Training,
    offset: Float64Array | None,
) -> tuple[Float64Array, Float64Array | None]:
    """Non-negative scales of the neurons, and the output bias, of least objective: a convex program."""
    (n, m), c = values.shape, outputs.shape[1]
    scales = cp.Variable(max(m, 1), nonneg=True)
    columns = np.zeros((n * c, 1)) if m == 0 else np.einsum("nm,mc->cnm", values, outputs).reshape(n * c, m)
    free = None if offset is None else cp.Variable(c)
    total = columns @ scales
    if free is not None:
        total = total + np.repeat(np.eye(c), n, axis=0) @ free
    prediction = total if c == 1 else cp.reshape(total, (n, c), order="F")
    loss = losses.expression(training.loss, prediction, training.y, **training.options)
    weights = cost if m else np.zeros(1)
    problem = cp.Problem(cp.Minimize(loss + float(training.reg.value) * (weights @ scales)))
    problem.solve(solver=cp.CLARABEL)
    if scales.value is None:
        raise cp.SolverError(f"Clarabel could not refit the decomposed network ({problem.status}).")
    return np.maximum(scales.value[:m], 0.0), None if free is None else np.asarray(free.value)


def _balanced(
    network: Network,
    hidden: Float64Array,
    outputs: Float64Array,
    scales: Float64Array,
    b2: Float64Array | None,
) -> Network:
    """Neurons ``scale * hidden x output`` with weights of equal norm on both sides; zero ones left out."""
    inner, outer = np.linalg.norm(hidden, axis=0), np.linalg.norm(outputs, axis=1)
    keep = np.flatnonzero(scales * inner * outer > 0.0)
    size = np.sqrt(scales[keep] * inner[keep] * outer[keep])
    first = hidden[:, keep] * (size / inner[keep])
    second = outputs[keep] * (size / outer[keep])[:, None]
    d = network.W1.shape[0]
    return Network(first[:d], second, None if network.b1 is None else first[d], b2)
