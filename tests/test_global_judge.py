"""Global bounds against a judge of their own: random instances, degenerate ones included, try to break them.

CONVEXNN_JUDGE sets the number of instances (a thorough run has 300).
"""

from __future__ import annotations

import os

import numpy as np
import pytest
from global_judge import Instance, brute_force_price, instance, judged_bracket, rounding, trained

import convexnn_models as cnn
from convexnn_models.network import Network
from convexnn_solvers import Status

INSTANCES = int(os.environ.get("CONVEXNN_JUDGE", "16"))


def random_network(rng: np.random.Generator, problem: Instance, width: int = 4) -> Network:
    d = problem.X.shape[1]
    return Network(
        W1=rng.standard_normal((d, width)),
        W2=rng.standard_normal((width, 1)),
        b1=rng.standard_normal(width) if problem.bias else None,
        b2=rng.standard_normal(1) if problem.output_bias else None,
    )


@pytest.mark.parametrize("seed", range(INSTANCES))
def test_no_bound_is_wrong(seed: int) -> None:
    problem = instance(seed)
    X, y, reg, loss = problem.X, problem.y, problem.reg, problem.loss
    below, above = judged_bracket(problem)
    unseen = rounding(problem)
    assert -unseen <= above - below <= 5e-6 * above + unseen  # else the judge judges nothing
    found = cnn.train_to_global_optimum(X, y, reg, gap=1e-4, **problem.kinds)
    assert found.status is Status.OPTIMAL
    assert max(row["lower"] for row in found.history) <= above + unseen
    assert found.upper >= below - unseen
    assert found.upper - found.lower <= 1.001e-4 * found.upper + unseen
    assert found.upper == pytest.approx(found.network.objective(X, y, reg, loss=loss), rel=1e-9, abs=1e-12)
    for network in (found.network, random_network(np.random.default_rng(seed), problem)):
        judged = cnn.global_certificate(network, X, y, reg, loss=loss)
        assert judged.dual is not None
        assert judged.relative_gap is not None
        assert judged.dual <= above + unseen
        assert judged.primal >= below - unseen
        assert judged.relative_gap >= 0.0
        assert judged.improved is not None
        assert judged.improved.objective(X, y, reg, loss=loss) <= judged.primal * (1.0 + 1e-9) + 1e-12


@pytest.mark.parametrize("seed", range(1000, 1000 + max(1, INSTANCES // 4)))
def test_no_network_that_training_finds_is_below_the_bound(seed: int) -> None:
    problem = instance(seed, samples=30, features=4)
    found = cnn.train_to_global_optimum(problem.X, problem.y, problem.reg, **problem.kinds)
    best = min(trained(problem, width=8, seed=restart) for restart in range(6))
    assert found.lower <= best * (1.0 + 1e-12)
    assert found.status is Status.OPTIMAL
    assert found.upper <= best * (1.0 + 1.001e-3) + 1e-12
    network = random_network(np.random.default_rng(seed), problem)
    judged = cnn.global_certificate(network, problem.X, problem.y, problem.reg, loss=problem.loss)
    assert judged.dual is not None
    assert judged.dual <= min(best, found.upper) * (1.0 + 1e-12)


def test_the_judges_price_is_that_of_a_closed_form() -> None:
    """Samples on the axes: every coordinate of u gains on its own."""
    theta = np.array([0.5, -2.0, 1.0])
    assert brute_force_price(np.eye(3), theta) == pytest.approx(2.0)
    assert brute_force_price(np.eye(3), np.array([3.0, -2.0, 4.0])) == pytest.approx(5.0)
