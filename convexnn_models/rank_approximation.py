"""Training on the leading directions of the data, with a proved bound on what that loses.

Let ``X_k`` be the closest matrix of rank k to X, sigma the next singular value, and p, p_k the optima over
networks of any width for X and X_k. With S the sum of the neurons' ``||w_j|| |a_j||`` at the optimum for X,
the scores of that network on X_k differ from those on X by at most ``sigma S`` in norm, and ``reg S <= p``:

* a loss F >= 0 with ``|F(f) - F(g)| <= R ||f - g||``:      ``p_k <= (1 + R sigma / reg) p``;
* ``F(f) = 1/(2n) ||f - y||^2``, as sqrt(F) changes by at most ``sigma S / sqrt(2n)``:
  ``sqrt(p_k) <= sqrt(p) + sigma / (reg sqrt(2n)) p``.

Optimal weights for X_k lie in its row space, where X and X_k agree: such a network has the same objective
on both, so ``p <= p_k``. (For weights that do not, the factor is squared.) With a lower bound of p_k from
:func:`train_to_global_optimum` in k dimensions both sides are numbers.

Mostly better is the bound of the dual point theta of the network found: ``|theta^T (X u)_+|`` is at most
``|theta^T (X_k u)_+| + sigma ||theta||`` on the unit ball, and the first term is priced in k dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from convexnn_models import _arrays
from convexnn_models.global_training import GlobalOptimum, train_to_global_optimum
from convexnn_models.losses import takes_loss_options
from convexnn_models.network import Network
from convexnn_models.pricing import relaxed_price
from convexnn_models.training_task import TrainingTask
from convexnn_solvers.functions.losses import Huber, SumSquares

_EPS = float(np.finfo(np.float64).eps)


@dataclass(frozen=True)
class RankApproximation:
    """A network that reads k directions of the data only.

    Attributes
    ----------
    network : Network
        Takes samples with all features.
    lower, upper : float
        No network of any width has an objective below ``lower`` on the full data; ``upper`` is that of
        ``network``.
    dropped : float
        The largest singular value that was left out.
    prior : float
        The lower bound from the theorems alone; ``lower`` is at least this.
    reduced : GlobalOptimum
        The optimum for the data of rank k.
    """

    network: Network
    lower: float
    upper: float
    dropped: float
    prior: float
    reduced: GlobalOptimum

    @property
    def relative_gap(self) -> float:
        """``(upper - lower) / upper``."""
        return (self.upper - self.lower) / self.upper if self.upper > 0.0 else 0.0

    def __str__(self) -> str:
        return (
            f"objective {self.upper:.9g}, no network below {self.lower:.9g} on the full data (relative gap "
            f"{self.relative_gap:.2e}; {self.reduced.relative_gap:.2e} on the reduced data)"
        )


@takes_loss_options
def rank_approximation(
    X: Any,
    y: Any,
    reg: float,
    rank: int,
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
) -> RankApproximation:
    """Train to the global optimum on the best approximation of ``X`` of this rank; bound that of ``X``.

    Parameters
    ----------
    X : array (n, d)
        Samples.
    y, reg
        As for :func:`train_to_global_optimum`.
    rank : int
        How many singular directions to keep, at most those of ``X``.
    gap, time_limit, bias, output_bias, loss, seed, solver, verbose, **options
        As for :func:`train_to_global_optimum`. With a ``bias`` the column of ones belongs to the matrix
        that is approximated.

    Raises ValueError or TypeError when an argument cannot be meant.
    """
    data = _arrays.with_ones(_arrays.features(X), bias)
    _, singular, right = np.linalg.svd(data, full_matrices=False)
    k = _arrays.count(rank, "rank")
    if k > singular.size:
        raise ValueError(f"rank must be at most {singular.size}, the smaller side of X, not {rank}.")
    basis = right[:k].T
    reduced = train_to_global_optimum(
        data @ basis,
        y,
        reg,
        gap=gap,
        time_limit=time_limit,
        output_bias=output_bias,
        loss=loss,
        seed=seed,
        solver=solver,
        verbose=verbose,
        **options,
    )
    d = data.shape[1] - int(bias)
    weights = basis @ reduced.network.W1
    network = Network(
        W1=weights[:d],
        W2=reduced.network.W2,
        b1=weights[d] if bias else None,
        b2=reduced.network.b2,
    )
    # What rounding adds to singular values and to products with the basis counts as dropped too.
    dropped = float(np.max(singular[k:], initial=0.0)) + 8.0 * max(data.shape) * _EPS * float(singular[0])
    task = TrainingTask.of(X, y, reg, outputs=1, bias=bias, output_bias=output_bias, loss=loss, **options)
    upper = task.network_objective(network)
    prior = _a_priori(task, max(reduced.lower, 0.0), dropped)
    theta = task.dual_direction(network.predict(data[:, :d])[:, None])
    top = relaxed_price(data @ basis, theta).upper + dropped * float(np.linalg.norm(theta))
    lower = max(prior, task.lower_bound(theta, top * (1.0 + 4.0 * _EPS)))
    return RankApproximation(network, min(lower, upper), upper, dropped, prior, reduced)


def _a_priori(task: TrainingTask, reduced: float, dropped: float) -> float:
    """The smallest p that the bounds above allow for ``p_k >= reduced``."""
    n, ratio, safe = len(task.X), dropped / task.reg, 1.0 - 16.0 * _EPS
    if isinstance(task.loss, SumSquares):
        slope, root = ratio / np.sqrt(2.0 * n), np.sqrt(reduced)
        # sqrt(p) + slope p = root, in the form without cancellation
        return float((2.0 * root / (1.0 + np.sqrt(1.0 + 4.0 * slope * root))) ** 2) * safe
    lipschitz = (task.loss.threshold if isinstance(task.loss, Huber) else 1.0) / np.sqrt(n)
    return float(reduced / (1.0 + lipschitz * ratio)) * safe
