"""How far any trained two-layer ReLU network is from the global optimum, proved; and what would improve it.

The lower bound holds for every network of any width with the same kind of biases. It comes from a dual point
whose price (see :mod:`pricing`) is bounded by branch and bound. For one output the network is also compared
with the optima of convex programs made of

1. its own (activation pattern, output sign) blocks: zero gain at a stationary point that avoids kinks;
2. its own patterns with both signs;
3. the best new patterns besides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.optimize import lsq_linear

from convexnn_models import _arrays
from convexnn_models._arrays import Float64Array
from convexnn_models.block_program import (
    Blocks,
    BlockSolution,
    as_network,
    blocks_along,
    solve_blocks,
)
from convexnn_models.losses import takes_loss_options
from convexnn_models.network import Network
from convexnn_models.pricing import local_maxima, price, relaxed_price
from convexnn_models.training_task import TrainingTask
from convexnn_solvers.certify.certificate import Certificate

_ACCURATE = 1e-9  # of the convex programs, relatively
_NEW_BLOCKS = 20
_KINK = 1e-6  # cosine of sample and neuron up to which the sample is on the neuron's kink


@dataclass(frozen=True)
class NewNeuron:
    """A neuron worth adding: ``weights`` (d,) of unit norm (with ``bias``), the ``sign`` of its output.

    ``price`` > reg is how fast the loss falls with its output weight; the difference is the first-order gain.
    """

    weights: Float64Array
    bias: float
    sign: float
    price: float


@dataclass(frozen=True)
class Gains:
    """By how much convex programs improve the objective, each on top of the one before.

    ``own``: with the network's own patterns and signs; ``other_signs``: with both signs for each pattern;
    ``new_patterns``: with the most promising new patterns besides (one round of them).
    """

    own: float
    other_signs: float
    new_patterns: float


@dataclass(frozen=True)
class GlobalCertificate(Certificate):
    """A :class:`Certificate` for all networks: ``primal`` is the network's objective, ``dual`` below all.

    Attributes
    ----------
    network : Network
        The network judged: the given one with balanced layers (``||w_j|| = |a_j||`` for every neuron), which
        computes the same function and costs ``balancing`` less.
    gradient : float
        The length of the objective's gradient at it, relative to that of its two parts, loss and penalty:
        0 at a stationary point, 1 at most. Samples on a neuron's kink count as active to the best degree.
    gains : Gains or None
        What convex programs gain; None for several outputs.
    improved : Network or None
        The best network that these programs found.
    neuron : NewNeuron or None
        A neuron whose addition improves ``network``; None when none was found.
    """

    network: Network | None = None
    balancing: float = 0.0
    gradient: float = 0.0
    gains: Gains | None = None
    improved: Network | None = None
    neuron: NewNeuron | None = None

    def __str__(self) -> str:
        lines = [super().__str__(), f"relative gradient {self.gradient:.1e}"]
        if self.gains is not None:
            lines.append(
                f"gains: {self.gains.own:.3g} with its own patterns and signs, {self.gains.other_signs:.3g} "
                f"with the other signs, {self.gains.new_patterns:.3g} with new patterns"
            )
        if self.neuron is not None:
            lines.append(f"a new neuron lowers the loss {self.neuron.price:.3g} times its output weight")
        return "; ".join(lines)


@takes_loss_options
def global_certificate(
    network: Any,
    X: Any,
    y: Any,
    reg: float,
    *,
    loss: str = "squared",
    gap: float = 1e-4,
    time_limit: float = 60.0,
    seed: int = 0,
    **options: Any,
) -> GlobalCertificate:
    """Certify a two-layer ReLU network, however it was trained, against all networks of any width.

    Parameters
    ----------
    network : Network, tuple or torch module
        A ReLU :class:`Network`; arrays ``(W1, b1, W2, b2)`` in its shapes, (d, m), (m,), (m, c), (c,),
        where biases may be None; or a ``torch.nn.Sequential(Linear, ReLU, Linear)``. Hidden biases are
        regularised like weights, output biases are free; the bound is for networks with the same biases.
    X : array (n, d)
        The training samples.
    y : array (n,) or (n, c)
        Real targets; labels -1 and +1 for "logistic".
    reg : float
        In the scaling ``1/(2n) ||f(X) - y||^2 + reg/2 (||W1||^2 + ||b1||^2 + ||W2||^2)``; weight decay w
        of SGD on the mean of ``1/2 (f - y)^2`` is reg = w.
    loss : str
        "squared", "huber" (option ``threshold``) or "logistic".
    gap : float
        The search for the bound ends once it is within this relative gap of the best network found.
    time_limit : float
        Seconds for that search; the bound of that moment is valid too.
    seed : int
        Of the starting points of the local ascent.
    **options
        Of the loss.

    Raises ValueError or TypeError when an argument cannot be meant.
    """
    given = as_relu_network(network)
    wanted = _arrays.not_negative(gap, "gap")
    seconds = _arrays.not_negative(time_limit, "time_limit", finite=False)
    _arrays.generator(seed)
    task = TrainingTask.of(
        X,
        y,
        reg,
        outputs=given.outputs,
        bias=given.b1 is not None,
        output_bias=given.b2 is not None,
        loss=loss,
        **options,
    )
    if task.X.shape[1] != given.gate_vectors.shape[0]:
        raise ValueError(f"X must have {given.W1.shape[0]} columns, like W1 rows.")
    balanced = balance(given)
    primal = task.network_objective(balanced)
    stages = _stages(task, balanced, seed) if task.outputs == 1 else []
    scores = [_scores(task, balanced), *(stage.scores for stage in stages)]
    best = min([primal, *(stage.objective for stage in stages)])
    lower = _lower_bound(task, [task.dual_direction(s) for s in scores], best, wanted, seconds, seed)
    lower = min(lower, best)
    improved = min(stages, key=lambda stage: stage.objective, default=None)
    return GlobalCertificate(
        primal=primal,
        dual=lower,
        gap=primal - lower,
        relative_gap=task.relative_gap(primal, lower),
        max_violation=0.0,
        scope="for all networks of any width",
        network=balanced,
        balancing=task.network_objective(given) - primal,
        gradient=relative_gradient(task, balanced),
        gains=_gains(primal, stages),
        improved=None if improved is None else as_network(task, improved),
        neuron=_new_neuron(task, balanced, seed) if task.outputs == 1 else None,
    )


def as_relu_network(network: Any) -> Network:
    """A :class:`Network` from one, from arrays (W1, b1, W2, b2), or from a torch Sequential."""
    if isinstance(network, Network):
        if network.gated or network.slope != 0.0:
            raise ValueError(f"network must be a ReLU network, not {network!r}; see to_relu for gated ones.")
        return network
    if isinstance(network, Sequence) and not isinstance(network, str) and len(network) == 4:
        W1, b1, W2, b2 = network
        second = _arrays.numbers(W2, "W2")
        second = second[:, None] if second.ndim == 1 else second
        offset = None if b2 is None else _arrays.numbers(b2, "b2").reshape(-1)
        return Network(W1, second, None if b1 is None else _arrays.numbers(b1, "b1").reshape(-1), offset)
    children: Any = getattr(network, "children", tuple)
    layers: list[Any] = list(children())
    names = [type(layer).__name__ for layer in layers]
    if names != ["Linear", "ReLU", "Linear"]:
        held = f" of {', '.join(names)}" if names else ""
        raise TypeError(
            "network must be a Network, arrays (W1, b1, W2, b2) or a torch Sequential(Linear, ReLU, Linear), "
            f"not {type(network).__name__}{held}."
        )
    first, last = layers[0], layers[2]
    return Network(
        W1=_tensor(first.weight).T,
        W2=_tensor(last.weight).T,
        b1=None if first.bias is None else _tensor(first.bias),
        b2=None if last.bias is None else _tensor(last.bias),
    )


def balance(network: Network) -> Network:
    """The same function with ``||(w_j, b1_j)|| = ||a_j||`` for every neuron: the smallest penalty.

    Neurons whose hidden or output weights are zero lose the others too.
    """
    hidden = np.linalg.norm(network.gate_vectors, axis=0)
    output = np.linalg.norm(network.W2, axis=1)
    live = (hidden > 0.0) & (output > 0.0)
    factors = np.sqrt(np.where(live, output, 0.0) / np.where(live, hidden, 1.0))
    inverse = np.where(live, 1.0 / np.where(live, factors, 1.0), 0.0)
    return replace(
        network,
        W1=network.W1 * factors,
        W2=network.W2 * inverse[:, None],
        b1=None if network.b1 is None else network.b1 * factors,
    )


def _tensor(value: Any) -> Float64Array:
    return np.asarray(value.detach().cpu().double().numpy(), dtype=np.float64)


def _scores(task: TrainingTask, network: Network) -> Float64Array:
    """The scores (n, c) of a network on the training samples."""
    samples = task.X[:, :-1] if task.bias else task.X
    return network.predict(samples).reshape(len(samples), -1)


def _stages(task: TrainingTask, network: Network, seed: int) -> list[BlockSolution]:
    """Optima with the network's own blocks, with both signs, and with new patterns besides."""
    start = own_blocks(task, network)
    offset = 0.0 if network.b2 is None else float(network.b2[0])
    own = solve_blocks(task, start, offset, tol=_ACCURATE)
    both = solve_blocks(task, own.blocks.with_both_signs(), own.offset, tol=_ACCURATE)
    theta = task.dual_direction(both.scores)
    values, points = local_maxima(task.X, theta, seed=seed)
    gaining = np.flatnonzero(values > task.reg)
    signs = theta[:, 0] @ np.maximum(task.X @ points[:, gaining], 0.0)
    fresh = blocks_along(task.X, points[:, gaining], signs)
    fresh = fresh.take(np.arange(min(len(fresh), _NEW_BLOCKS)))
    more = solve_blocks(task, both.blocks.joined(fresh), both.offset, tol=_ACCURATE)
    return [own, both, more]


def own_blocks(task: TrainingTask, network: Network) -> Blocks:
    """The neurons as blocks; those with one pattern and sign add up."""
    vectors, output = network.gate_vectors, network.W2[:, 0]
    live = np.flatnonzero((output != 0.0) & vectors.any(axis=0))
    single = Blocks(
        patterns=task.X @ vectors[:, live] >= 0.0,
        signs=np.sign(output[live]),
        weights=vectors[:, live] * np.abs(output[live]),
    )
    merged = Blocks.none(*task.X.shape).joined(single)
    place = {key: index for index, key in enumerate(merged.keys)}
    weights = np.zeros_like(merged.weights)
    for index, key in enumerate(single.keys):
        weights[:, place[key]] += single.weights[:, index]
    return replace(merged, weights=weights)


def _gains(primal: float, stages: list[BlockSolution]) -> Gains | None:
    if not stages:
        return None
    own, both, more = (stage.objective for stage in stages)
    return Gains(primal - own, own - both, both - more)


def _lower_bound(
    task: TrainingTask, thetas: list[Float64Array], best: float, gap: float, time_limit: float, seed: int
) -> float:
    """The best of the quick bounds, then branch and bound for the dual point that it belongs to."""
    bounds = [task.lower_bound(t, relaxed_price(task.X, t, seed=seed).upper) for t in thetas]
    lower = max(bounds)
    theta = thetas[int(np.argmax(bounds))]
    if task.relative_gap(best, lower) <= gap or time_limit <= 0.0:
        return lower
    level = max(task.allowed_price(theta, best, gap), task.reg)
    found = price(task.X, theta, tol=1e-4, floor=level, time_limit=time_limit, seed=seed)
    return max(lower, task.lower_bound(theta, found.upper))


def relative_gradient(task: TrainingTask, network: Network) -> float:
    """``||loss part + penalty part|| / (||loss part|| + ||penalty part||)`` of the gradient.

    At a kink it is the shortest generalised gradient: samples there count as partly active.
    """
    theta = task.residual(_scores(task, network))
    hidden, output = network.gate_vectors, network.W2
    products = task.X @ hidden
    pull = theta @ output.T  # (n, m): how the loss wants every neuron's value on every sample to change
    towards_hidden = task.X.T @ np.where(products > 0.0, pull, 0.0)
    kinks = np.abs(products) <= _KINK * np.outer(
        np.linalg.norm(task.X, axis=1), np.linalg.norm(hidden, axis=0)
    )
    for j in np.flatnonzero(kinks.any(axis=0)):
        rows = np.flatnonzero(kinks[:, j])
        inner = task.X.T @ np.where((products[:, j] > 0.0) & ~kinks[:, j], pull[:, j], 0.0)
        system = (task.X[rows] * pull[rows, j, None]).T
        shares = lsq_linear(system, task.reg * hidden[:, j] - inner, bounds=(0.0, 1.0)).x
        towards_hidden[:, j] = inner + system @ shares
    loss = [-towards_hidden, -np.maximum(products, 0.0).T @ theta]
    decay = [task.reg * hidden, task.reg * output]
    if task.output_bias:
        loss.append(-theta.sum(axis=0))
        decay.append(np.zeros(task.outputs))
    parts = [np.concatenate([p.ravel() for p in part]) for part in (loss, decay)]
    size = float(np.linalg.norm(parts[0]) + np.linalg.norm(parts[1]))
    return float(np.linalg.norm(parts[0] + parts[1])) / size if size > 0.0 else 0.0


def _new_neuron(task: TrainingTask, network: Network, seed: int) -> NewNeuron | None:
    """The neuron that gains most, to first order, at the network's own residual."""
    theta = task.residual(_scores(task, network))
    values, points = local_maxima(task.X, theta, seed=seed)
    if values[0] <= task.reg * (1.0 + 1e-6):
        return None
    u = points[:, 0]
    sign = float(np.sign(theta[:, 0] @ np.maximum(task.X @ u, 0.0)))
    weights, bias = (u[:-1], float(u[-1])) if task.bias else (u, 0.0)
    return NewNeuron(weights, bias, sign, float(values[0]))
