"""Stationary points of training are optima of convex programs: those of their own patterns and signs.

Let ``theta = -grad F`` at a network. For a neuron with pattern D, cone K and output sign s the program of its
own (pattern, sign) blocks demands ``||P_K(s X^T D theta)|| <= reg``, with equality and the projection along
its weights where these are not zero. A stationary network that avoids kinks satisfies exactly this, so it is
a global optimum of that program. With both signs per pattern ``||P_K(-s X^T D theta)|| <= reg`` is demanded
too, of which stationarity says nothing: where it fails, a neuron with the same pattern and the other
output sign lowers the objective.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from convexnn_models._arrays import Float64Array
from convexnn_models.block_program import BlockProgram, Blocks
from convexnn_models.global_bounds import as_relu_network, balance, own_blocks, relative_gradient
from convexnn_models.losses import takes_loss_options
from convexnn_models.network import Network
from convexnn_models.training_task import TrainingTask
from convexnn_solvers.certify.certificate import Certificate, certificate
from convexnn_solvers.cones.projections import PatternCones


@dataclass(frozen=True, eq=False)
class Stationarity:
    """What :func:`stationarity` found; P is the number of distinct (pattern, sign) pairs of the network.

    Attributes
    ----------
    network : Network
        The network judged: the given one with balanced layers.
    objective : float
        Its non-convex training objective.
    gradient : float
        The length of its gradient, relative to that of the two parts, loss and penalty; 0 when stationary.
    problem : cp.Problem
        The program of its own (pattern, sign) blocks; the variables hold the network's weights.
    own : Certificate
        How far these are from its optimum: no gap at a stationary point.
    both_problem : cp.Problem
        The program with both signs for each pattern, the weights of the added blocks zero.
    both_signs : Certificate
        How far the same weights are from that optimum.
    prices : array (P,)
        ``||P_K(s X^T D theta)|| / reg`` of the own blocks: 1 at a stationary point.
    opposite_prices : array (P,)
        The same for the other sign of each: above 1 where such a neuron would lower the objective. (Zero
        for pairs whose other sign is in the network as well: its price is among ``prices``.)
    """

    network: Network
    objective: float
    gradient: float
    problem: Any
    own: Certificate
    both_problem: Any
    both_signs: Certificate
    prices: Float64Array
    opposite_prices: Float64Array

    def __str__(self) -> str:
        return (
            f"relative gradient {self.gradient:.1e}; with its own patterns and signs: {self.own}; with both "
            f"signs: {self.both_signs}; largest price of an opposite sign: "
            f"{float(self.opposite_prices.max(initial=0.0)):.3g} times reg"
        )


@takes_loss_options
def stationarity(
    network: Any, X: Any, y: Any, reg: float, *, loss: str = "squared", **options: Any
) -> Stationarity:
    """Hold a two-layer ReLU network with one output against the convex programs of its own patterns.

    At a stationary point of ``loss + reg/2 (||W1||^2 + ||b1||^2 + ||W2||^2)`` with no sample on a neuron's
    kink the network is a global optimum of ``problem``, the subsampled convex program of its own
    (pattern, sign) blocks, and ``own`` has no gap; so is any local minimum, kinks or not, as the blocks can
    be moved inside their cones. It need not be one of ``both_problem``. What *new* patterns gain is
    :func:`global_certificate`'s to say.

    Parameters
    ----------
    network : Network, tuple or torch module
        As for :func:`global_certificate`, with one output.
    X, y, reg, loss, **options
        As for :func:`global_certificate`: what it was trained for.

    Raises ValueError or TypeError when an argument cannot be meant.
    """
    given = as_relu_network(network)
    if given.outputs != 1:
        raise ValueError(f"network must have one output, not {given.outputs}; see global_certificate.")
    biases = {"bias": given.b1 is not None, "output_bias": given.b2 is not None}
    task = TrainingTask.of(X, y, reg, outputs=1, loss=loss, **biases, **options)
    if task.X.shape[1] != given.gate_vectors.shape[0]:
        raise ValueError(f"X must have {given.W1.shape[0]} columns, like W1 rows.")
    balanced = balance(given)
    blocks = own_blocks(task, balanced)
    offset = 0.0 if balanced.b2 is None else float(balanced.b2[0])
    both = blocks.with_both_signs()
    problem, both_problem = (BlockProgram(task, b, offset).problem(None) for b in (blocks, both))
    samples = task.X[:, :-1] if task.bias else task.X
    theta = task.residual(balanced.predict(samples)[:, None])[:, 0]
    missing = np.array([key not in blocks.keys for key in _mirrored(blocks).keys], dtype=np.bool_)
    return Stationarity(
        network=balanced,
        objective=task.network_objective(balanced),
        gradient=relative_gradient(task, balanced),
        problem=problem,
        own=certificate(problem),
        both_problem=both_problem,
        both_signs=certificate(both_problem),
        prices=_prices(task, blocks, theta),
        opposite_prices=np.where(missing, _prices(task, _mirrored(blocks), theta), 0.0),
    )


def _mirrored(blocks: Blocks) -> Blocks:
    return Blocks(blocks.patterns, -blocks.signs, np.zeros_like(blocks.weights))


def _prices(task: TrainingTask, blocks: Blocks, theta: Float64Array) -> Float64Array:
    """``||P_K(s X^T D theta)|| / reg`` of every block, (P,)."""
    if len(blocks) == 0:
        return np.zeros(0)
    pulls = task.X.T @ np.where(blocks.patterns, theta[:, None], 0.0) * blocks.signs
    cones = PatternCones(task.X, blocks.patterns)
    projected = cones.project(np.ascontiguousarray(pulls), np.arange(len(blocks))).points
    return np.asarray(np.linalg.norm(projected, axis=0)) / task.reg
