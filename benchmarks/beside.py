"""Networks beside constraints, or with losses without a gradient: a solver of ours, and Clarabel.

``python -m benchmarks.beside --seconds 10`` prints a row per program; ``--solver AugmentedLagrangian`` shows
what multipliers and first-order steps alone make of them. Seconds are those of the processor.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import cvxpy as cp
import numpy as np

import convexnn_models as cnn
import convexnn_solvers
from convexnn_solvers import certificate

# The share of the regularisation at which all weights of a gated network vanish.
_SHARE = 0.01


class Data:
    """Samples, gates, and what the programs are made of."""

    def __init__(self, n: int, d: int, gates: int) -> None:
        rng = np.random.default_rng(0)
        self.n, self.X = n, rng.standard_normal((n, d))
        noise = 0.3 * rng.standard_normal((2, n))
        self.y = np.abs(self.X[:, 0]) + 0.5 * self.X[:, 1] + noise[0]
        self.labels = np.sign(self.X[:, 0] * self.X[:, 1] + 0.3 + noise[1])
        self.gates = cnn.sample_gates(self.X, gates, seed=0)
        pulled = self.X.T @ (self.gates.patterns * self.y[:, None])
        self.reg = _SHARE * float(np.max(np.linalg.norm(pulled, axis=0))) / n

    def relu(self) -> cnn.ConvexModel:
        """A model with variables of its own."""
        return cnn.relu(self.X, self.gates)

    def problem(self, loss: Any, *models: cnn.ConvexModel, beside: Sequence[Any] = ()) -> cp.Problem:
        """The loss with the models' penalties, in their cones, beside further constraints."""
        penalty = sum(model.penalty for model in models)
        cones = [cone for model in models for cone in model.constraints]
        return cp.Problem(cp.Minimize(loss + self.reg * penalty), [*cones, *beside])

    def pinball(self, error: Any, level: float) -> Any:
        """The mean quantile loss."""
        return cp.sum(cp.maximum(level * error, (level - 1.0) * error)) / self.n

    def squares(self, error: Any) -> Any:
        """Half of the mean square."""
        return cp.sum_squares(error) / (2 * self.n)


def quantiles(data: Data) -> cp.Problem:
    """Two models whose quantiles do not cross."""
    low, high = data.relu(), data.relu()
    loss = data.pinball(data.y - low.prediction, 0.2) + data.pinball(data.y - high.prediction, 0.8)
    return data.problem(loss, low, high, beside=[low.prediction <= high.prediction])


def median_in_a_box(data: Data) -> cp.Problem:
    """A median with bounds on predictions."""
    model = data.relu()
    box = [model.prediction >= 0.0, model.prediction <= 2.0]
    return data.problem(data.pinball(data.y - model.prediction, 0.5), model, beside=box)


def slacks(data: Data) -> cp.Problem:
    """The soft margin as textbooks write it."""
    model, slack = data.relu(), cp.Variable(data.n)
    margins = cp.multiply(data.labels, model.prediction)
    return data.problem(cp.sum(slack) / data.n, model, beside=[slack >= 0.0, slack >= 1.0 - margins])


def parted_errors(data: Data) -> cp.Problem:
    """Absolute errors as differences of two positive parts."""
    model, over, under = data.relu(), cp.Variable(data.n, nonneg=True), cp.Variable(data.n, nonneg=True)
    parted = [data.y - model.prediction == over - under]
    return data.problem(cp.sum(over + under) / data.n, model, beside=parted)


def worst_fifth(data: Data) -> cp.Problem:
    """The mean of the largest fifth of the errors (Rockafellar and Uryasev, 2000)."""
    model, level = data.relu(), cp.Variable()
    tail = cp.sum(cp.pos(cp.abs(model.prediction - data.y) - level))
    return data.problem(level + tail / (0.2 * data.n), model)


def squares_in_a_box(data: Data) -> cp.Problem:
    """Squares with bounds on predictions."""
    model = data.relu()
    box = [model.prediction >= 0.0, model.prediction <= 2.0]
    return data.problem(data.squares(model.prediction - data.y), model, beside=box)


def rising(data: Data) -> cp.Problem:
    """Predictions that rise with the first feature."""
    model, order = data.relu(), np.argsort(data.X[:, 0])
    rises = [cp.diff(model.prediction[order]) >= 0.0]
    return data.problem(data.squares(model.prediction - data.y), model, beside=rises)


def derivatives(data: Data) -> cp.Problem:
    """Bounds on every derivative at every sample."""
    model = data.relu()
    V, W = model.variables
    slopes = data.gates.patterns.astype(float) @ (V - W).T
    bounded = [cp.abs(slopes) <= 0.7]
    return data.problem(data.squares(model.prediction - data.y), model, beside=bounded)


def sums_of_weights(data: Data) -> cp.Problem:
    """Equations for the weights."""
    model = data.relu()
    V, W = model.variables
    sums = [cp.sum(V - W, axis=1) == 0.1]
    return data.problem(data.squares(model.prediction - data.y), model, beside=sums)


def fair_hinge(data: Data) -> cp.Problem:
    """A hinge, and mean scores of two groups that hardly differ."""
    model, group = data.relu(), data.X[:, 2] > 0.0
    means = [cp.sum(model.prediction[side]) / side.sum() for side in (group, ~group)]
    loss = cp.sum(cp.pos(1.0 - cp.multiply(data.labels, model.prediction))) / data.n
    return data.problem(loss, model, beside=[cp.abs(means[0] - means[1]) <= 0.02])


def newsvendor(data: Data) -> cp.Problem:
    """Orders: what is missing costs more than what is left, and the store is limited."""
    model = data.relu()
    missing, left = cp.pos(data.y - model.prediction), cp.pos(model.prediction - data.y)
    store = [model.prediction >= 0.0, cp.sum(model.prediction) <= 0.6 * data.n]
    return data.problem((2.0 * cp.sum(missing) + 0.5 * cp.sum(left)) / data.n, model, beside=store)


def insensitive_zone(data: Data) -> cp.Problem:
    """Vapnik's loss."""
    model = data.relu()
    return data.problem(cp.sum(cp.pos(cp.abs(model.prediction - data.y) - 0.1)) / data.n, model)


PROGRAMS: tuple[Callable[[Data], cp.Problem], ...] = (
    *(quantiles, median_in_a_box, slacks, parted_errors, worst_fifth, squares_in_a_box, rising, derivatives),
    *(sums_of_weights, fair_hinge, newsvendor, insensitive_zone),
)


def row(make: Callable[[Data], cp.Problem], data: Data, solver: Any, seconds: float) -> str:
    """One line: what each of the two took, and the certified gap that it left."""
    parts = [f"{make.__name__:17s}"]
    for which, options in ((solver, {"time_limit": seconds}), (cp.CLARABEL, {})):
        problem, begin = make(data), time.process_time()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a limit is a row of the table
            problem.solve(solver=which, **options)
        taken, gap = time.process_time() - begin, certificate(problem).relative_gap
        parts.append(
            f"{problem.status:10s} {taken:6.2f} s, gap {'none' if gap is None else f'{gap:.1e}':>8s}"
        )
    return " | ".join(parts)


def main(arguments: Sequence[str] | None = None) -> None:
    """The table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--features", type=int, default=5)
    parser.add_argument("--gates", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=10.0, help="limit of our solver, by the clock")
    parser.add_argument("--solver", default="Auto", choices=["Auto", "AugmentedLagrangian"])
    parser.add_argument("--only", nargs="*", default=None, help="names of programs")
    given = parser.parse_args(arguments)
    data = Data(given.samples, given.features, given.gates)
    print(f"{'program':17s} | {given.solver:31s} | CLARABEL")
    for make in PROGRAMS:
        if given.only is None or make.__name__ in given.only:
            print(row(make, data, getattr(convexnn_solvers, given.solver)(), given.seconds), flush=True)


if __name__ == "__main__":
    main()
