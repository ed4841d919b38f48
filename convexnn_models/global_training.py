"""Networks with a proof that no other network is better: column generation over activation patterns.

A convex program with few (pattern, sign) blocks is solved, its residual is priced (which neuron would gain
most?), the winners' patterns join, patterns without weights leave, and so on. When branch and bound shows
that no neuron gains anything, the program's optimum is the global optimum of the non-convex problem; at any
time before, the priced residual bounds how far away that is.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from convexnn_models import _arrays
from convexnn_models._arrays import Float64Array
from convexnn_models.block_program import (
    Blocks,
    as_network,
    block_solution,
    blocks_along,
    solve_blocks,
    without_small_blocks,
)
from convexnn_models.losses import takes_loss_options
from convexnn_models.network import Network
from convexnn_models.pricing import Price, local_maxima, price, relaxed_price
from convexnn_models.training_task import TrainingTask
from convexnn_solvers.status import Status

_NEW_BLOCKS = 20  # per round
_STARTS = 300  # of the local ascent per round
# Relative accuracies of the convex programs: a share of the wanted gap while patterns are added, then what
# makes the residual a good dual point.
_LOOSE, _ACCURATE = 0.05, 1e-10
_SETTLED = 0.02  # the share of the wanted gap that a round has to gain to be worth another one


@dataclass(frozen=True, eq=False)
class GlobalOptimum:
    """The result of :func:`train_to_global_optimum`.

    Attributes
    ----------
    network : Network
        The best network found.
    lower, upper : float
        No network of any width has an objective below ``lower``; ``upper`` is that of ``network``.
    relative_gap : float
        ``(upper - lower) / max(|upper|, |lower|)``; where both are below the rounding errors of the zero
        network's loss, relative to those.
    status : Status
        ``OPTIMAL`` when the relative gap is as small as wanted, else why training stopped.
    history : list of dict
        One row per round: ``seconds``, ``blocks``, ``upper``, ``lower``.
    """

    network: Network
    lower: float
    upper: float
    relative_gap: float
    status: Status
    history: list[dict[str, float]]

    def __str__(self) -> str:
        return (
            f"objective {self.upper:.9g}, no network below {self.lower:.9g} (relative gap "
            f"{self.relative_gap:.2e}), {self.network.width} neurons: {self.status.value}"
        )


@takes_loss_options
def train_to_global_optimum(
    X: Any,
    y: Any,
    reg: float,
    *,
    gap: float = 1e-3,
    time_limit: float = 600.0,
    bias: bool = False,
    output_bias: bool = False,
    loss: str = "squared",
    seed: int = 0,
    solver: Any = None,
    verbose: bool = False,
    **options: Any,
) -> GlobalOptimum:
    """Train a two-layer ReLU network with one output to its global optimum, with proof.

    Minimises ``loss + reg / 2 (||W1||^2 + ||b1||^2 + ||W2||^2)`` over networks of any width. The proof is
    branch and bound: n = 100 samples in 3 dimensions, or n = 30 in 8, take seconds; difficulty grows with
    the number of samples and dimensions and with smaller ``reg``.

    Parameters
    ----------
    X : array (n, d)
        Samples.
    y : array (n,)
        Real targets; labels -1 and +1 for "logistic".
    reg : float
        Regularisation, positive, in the scaling ``1/(2n) ||f(X) - y||^2 + reg * penalty``.
    gap : float
        The relative gap between network and lower bound to reach.
    time_limit : float
        Seconds after which the best network so far is returned with its honest gap.
    bias : bool
        Hidden biases, regularised like weights.
    output_bias : bool
        A free output bias.
    loss : str
        "squared", "huber" (option ``threshold``) or "logistic".
    seed : int
        Of the starting points of the local ascent.
    solver : CVXPY solver, optional
        For the convex programs; by default Clarabel with few of their constraints at a time.
    verbose : bool
        Print one line per round.
    **options
        Of the loss.

    Raises ValueError or TypeError when an argument cannot be meant.
    """
    wanted = _arrays.positive(gap, "gap")
    seconds = _arrays.not_negative(time_limit, "time_limit", finite=False)
    first_seed = _arrays.count(seed, "seed", least=0)
    if _arrays.numbers(y, "y").shape[1:] not in ((), (1,)):
        raise ValueError("y must have one column: train one network per output.")
    task = TrainingTask.of(X, y, reg, outputs=1, bias=bias, output_bias=output_bias, loss=loss, **options)
    state = _Training(task, wanted, seconds, solver, first_seed, verbose)
    status = state.run()
    network = as_network(task, state.best)
    upper = task.network_objective(network)
    lower = min(state.lower, upper)
    gap_reached = task.relative_gap(upper, lower)
    if status is Status.OPTIMAL and gap_reached > wanted:
        status = Status.STALLED
    return GlobalOptimum(network, lower, upper, gap_reached, status, state.history)


class _Training:
    """The blocks of the moment, the best bounds so far, and the clock."""

    def __init__(
        self, task: TrainingTask, gap: float, seconds: float, solver: Any, seed: int, verbose: bool
    ) -> None:
        self.task, self.gap, self.seconds, self.solver = task, gap, seconds, solver
        self.seed, self.verbose = seed, verbose
        self.started = time.monotonic()
        self.best = block_solution(task, Blocks.none(*task.X.shape), 0.0)
        self.best = solve_blocks(task, self.best.blocks, 0.0)
        self.lower = -np.inf
        self.history: list[dict[str, float]] = []

    @property
    def left(self) -> float:
        """Seconds before the time limit."""
        return max(0.0, self.started + self.seconds - time.monotonic())

    def run(self) -> Status:
        """Rounds until the gap is small, the time is up, or nothing moves any more."""
        settled = False  # whether another round of local ascent would not pay: time for a proof
        while True:
            theta = self.task.dual_direction(self.best.scores)
            found = self._proof(theta) if settled else relaxed_price(self.task.X, theta, seed=self.seed)
            self.lower = max(self.lower, self.task.lower_bound(theta, found.upper))
            self._log()
            if self.task.relative_gap(self.best.objective, self.lower) <= self.gap:
                return Status.OPTIMAL
            if self.left == 0.0:
                return Status.TIME_LIMIT
            fresh = self._fresh_blocks(theta, found)
            if settled and len(fresh) == 0:
                return Status.STALLED if self.left > 0.0 else Status.TIME_LIMIT
            before = self.best.objective
            self._solve(fresh, _LOOSE * self.gap)
            settled = before - self.best.objective <= _SETTLED * self.gap * abs(before)
            if settled:
                self._solve(fresh, _ACCURATE)

    def _proof(self, theta: Float64Array) -> Price:
        """Branch and bound, as far as the wanted gap needs, or until it finds a neuron that gains."""
        enough = self.task.allowed_price(theta, self.best.objective, self.gap)
        level = max(enough, self.task.reg)
        return price(
            self.task.X, theta, tol=1e-6, floor=level, enough=level, time_limit=self.left, seed=self.seed
        )

    def _fresh_blocks(self, theta: Float64Array, found: Price) -> Blocks:
        """Blocks that the program lacks, the most promising first: from local ascent and from ``found``."""
        self.seed += 1
        values, points = local_maxima(
            self.task.X, theta, starts=_STARTS, seed=self.seed, near=self.best.blocks.weights
        )
        points = np.concatenate([found.witness[:, None], points[:, values > self.task.reg]], axis=1)
        signs = theta[:, 0] @ np.maximum(self.task.X @ points, 0.0)
        gaining = np.flatnonzero(np.abs(signs) > self.task.reg)
        candidates = blocks_along(self.task.X, points[:, gaining], signs[gaining])
        known = set(self.best.blocks.keys)
        fresh = [index for index, key in enumerate(candidates.keys) if key not in known]
        return candidates.take(np.array(fresh[:_NEW_BLOCKS], dtype=np.intp))

    def _solve(self, fresh: Blocks, tol: float) -> None:
        """Let the new blocks join and those without weights leave."""
        blocks = self.best.blocks.joined(fresh)
        solution = solve_blocks(self.task, blocks, self.best.offset, tol=tol, solver=self.solver)
        self.best = without_small_blocks(self.task, solution, tol)

    def _log(self) -> None:
        row = {
            "seconds": time.monotonic() - self.started,
            "blocks": float(len(self.best.blocks)),
            "upper": self.best.objective,
            "lower": self.lower,
        }
        if self.verbose:
            if not self.history:
                print(f"{'seconds':>9} {'blocks':>7} {'upper':>15} {'lower':>15} {'gap':>9}")
            gap = self.task.relative_gap(row["upper"], row["lower"])
            print(
                f"{row['seconds']:9.2f} {row['blocks']:7.0f} {row['upper']:15.9g} "
                f"{row['lower']:15.9g} {gap:9.2e}"
            )
        self.history.append(row)
