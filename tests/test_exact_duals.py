"""Bounds in exact arithmetic: rationals check every condition that a dual point of a bound must satisfy.

The data are made for rounding: entries of very different size, sums that cancel, duals handed in that lie
outside by less than a tolerance would notice.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
from numpy.typing import NDArray

from convexnn_solvers import certificate
from convexnn_solvers.composite import DualPoint

Float = NDArray[np.float64]
Exact = list[Fraction]
N, D = 12, 5
WEIGHT, L1, GROUP = 0.3, 0.25, 0.2
LOSSES: dict[str, Any] = {
    "norm": lambda q: WEIGHT * cp.norm(q),
    "norm_inf": lambda q: WEIGHT * cp.norm_inf(q),
    "max": lambda q: WEIGHT * cp.max(q),
    "abs": lambda q: WEIGHT * cp.sum(cp.abs(q)),
    "nuclear": lambda q: WEIGHT * cp.normNuc(cp.reshape(q, (N, 1), order="C")),
}
PENALTIES: dict[str, Any] = {
    "l1": lambda x: L1 * cp.norm1(x),
    "group": lambda x: GROUP * cp.norm(x),
    "sparse group": lambda x: L1 * cp.norm1(x) + GROUP * cp.norm(x),
    "partly nested": lambda x: L1 * cp.norm1(x) + GROUP * cp.norm(x[:2]),
}


def exact(values: Float) -> Exact:
    return [Fraction(float(v)) for v in values.ravel()]


def hostile_data(seed: int, size: float) -> tuple[Float, Float]:
    """Columns of about this size that nearly cancel beside small ones, labels of any size."""
    rng = np.random.default_rng(seed)
    A = rng.standard_normal((N, D)) * 10.0 ** rng.integers(-3, 4, (N, D))
    A[1::2, 0] = -A[::2, 0] * (1.0 + 1e-9 * rng.standard_normal(N // 2))
    return size * A, rng.standard_normal(N) * 10.0 ** rng.integers(0, 9, N)


def in_domain(loss: str, theta: Exact) -> Exact:
    """``-theta`` checked against the conjugate's domain; on the simplex moved on it, as far as sums round."""
    w = Fraction(WEIGHT)
    if loss == "norm_inf":
        assert sum(abs(t) for t in theta) <= w
    elif loss == "abs":
        assert max(abs(t) for t in theta) <= w
    elif loss == "max":
        total = -sum(theta)
        assert all(t <= 0 for t in theta)
        assert abs(total - w) <= 4 * (N + 4) * Fraction(2) ** -52 * w
        return [t * w / total for t in theta]
    else:
        assert sum(t * t for t in theta) <= w * w
    return theta


def in_balls(penalty: str, z: Exact) -> None:
    l1, group = Fraction(L1), Fraction(GROUP)
    shrunk = [max(abs(v) - l1, Fraction(0)) for v in z]
    if penalty == "l1":
        assert max(shrunk) == 0
    elif penalty == "group":
        assert sum(v * v for v in z) <= group * group
    else:
        reached = z if penalty == "sparse group" else z[:2]
        assert sum(v * v for v in shrunk[: len(reached)]) <= group * group
        assert sum(shrunk[len(reached) :]) == 0


@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("loss", LOSSES)
def test_a_dual_point_proves_its_bound_exactly(loss: str, penalty: str) -> None:
    # Large columns leave it to the penalty to limit the dual point, small ones to the loss.
    for seed, size in ((0, 1.0), (1, 1e-5)) if loss != "max" else ((0, 1e-5), (1, 3e-6)):
        A, b = hostile_data(seed, size)
        x = cp.Variable(D)
        problem = cp.Problem(cp.Minimize(LOSSES[loss](A @ x - b) + PENALTIES[penalty](x)))
        rng = np.random.default_rng(seed)
        for k, far in enumerate((1.0, 1e-9, 0.0)):
            x.value = far * rng.standard_normal(D)
            held = certificate(problem).dual_point
            assert held is not None
            for factor in (1.0 + 9e-13, 1.0 + 1e-15, 1.0 - 1e-15):
                wild = factor * (held.thetas[0] if k % 2 else -WEIGHT * rng.dirichlet(np.ones(N)))
                found = certificate(problem, [DualPoint((wild,))])
                assert found.dual is not None
                assert found.dual_point is not None
                theta = in_domain(loss, exact(found.dual_point.thetas[0]))
                columns = [exact(A[:, j]) for j in range(D)]
                z = [sum((a * t for a, t in zip(c, theta, strict=True)), Fraction(0)) for c in columns]
                in_balls(penalty, z)
                value = -sum((t * v for t, v in zip(theta, exact(-b), strict=True)), Fraction(0))
                assert Fraction(found.dual) <= value


@pytest.mark.parametrize("shortfall", [1e-13, 2e-13])
def test_a_maximum_barely_steeper_than_the_penalty_has_no_bound(shortfall: float) -> None:
    # Unbounded below by so little that the sum of a thousand duals cannot tell: a dual's sum may miss WEIGHT.
    x = cp.Variable()
    b = np.random.default_rng(0).random(1000)
    flat = WEIGHT * (1.0 - shortfall)
    problem = cp.Problem(cp.Minimize(WEIGHT * cp.max(x * np.ones(1000) - b) + flat * cp.abs(x)))
    x.value = -1.0
    inside = flat * (1.0 - 6e-14)
    assert certificate(problem, [DualPoint((np.full(1000, -inside / 1000),))]).dual is None
