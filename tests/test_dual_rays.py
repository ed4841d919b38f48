"""Bounds along rays whose multiples are not all feasible: nested norms, linear terms, maxima, free variables.

Per variable ``min loss(A x - b) + c^T x + penalty(x)`` in two variables, everything written out: a multiple
s of theta is feasible when ``s A^T theta - c`` lies in the dual ball of the penalty.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
from numpy.typing import NDArray

from convexnn_solvers.backends import numpy_backend
from convexnn_solvers.certify.certificate import certificate
from convexnn_solvers.certify.dual_bounds import Bound, DualBounds
from convexnn_solvers.composite import DualPoint
from convexnn_solvers.reading.compiler import compile_problem

Float = NDArray[np.float64]
SLOPES = np.array([0.3, -0.6])
CONSTANT = 2.5


@dataclass(frozen=True)
class Loss:
    """As CVXPY writes it, and the conjugate of every row, infinite outside the domain."""

    of: Callable[[Any], Any]
    conjugate: Callable[[Float], Float]


@dataclass(frozen=True)
class Penalty:
    """As CVXPY writes it, and for every row a number that is at most one in its dual ball."""

    of: Callable[[Any], Any]
    quotient: Callable[[Float], Float]


LOSSES = {
    "squares": Loss(lambda r: cp.sum_squares(r) / 2, lambda t: np.sum(t**2, axis=-1) / 2.0),
    "huber": Loss(
        lambda r: cp.sum(cp.huber(r)),
        lambda t: np.where(np.abs(t).max(axis=-1) <= 2.0, np.sum(t**2, axis=-1) / 4.0, np.inf),
    ),
}
PENALTIES = {
    "l1": Penalty(cp.norm1, lambda z: np.abs(z).max(axis=-1)),
    "l1 within l2": Penalty(
        lambda x: 0.8 * cp.norm(x) + 0.5 * cp.norm1(x),
        lambda z: np.linalg.norm(np.clip(np.abs(z) - 0.5, 0.0, None), axis=-1) / 0.8,
    ),
}
CASES = [(loss, penalty, True) for loss in LOSSES for penalty in PENALTIES]
CASES += [(loss, "l1 within l2", False) for loss in LOSSES]


@dataclass(frozen=True)
class Ray:
    """The multiples of one theta, with the dual function and the condition on them."""

    theta: Float
    A: Float
    b: Float
    c: Float
    loss: Loss
    penalty: Penalty

    def value(self, scales: Float) -> Float:
        thetas = scales[:, None] * self.theta
        return thetas @ self.b - self.loss.conjugate(-thetas) + CONSTANT

    def quotient(self, scale: Any = 1.0) -> Any:
        return self.penalty.quotient(scale * (self.theta @ self.A) - self.c)

    def feasible(self, scales: Float) -> NDArray[np.bool_]:
        return np.asarray(self.quotient(scales[:, None]) <= 1.0)

    def best(self) -> tuple[str, float]:
        """Which ends of [0, 1] are feasible, and the largest value of the multiples between that are."""
        ends = {(True, True): "both", (True, False): "near", (False, True): "far", (False, False): "neither"}
        zero, one = self.feasible(np.array([0.0, 1.0])).tolist()
        low, high, best = 0.0, 1.0, -np.inf
        for _ in range(4):
            scales = np.linspace(low, high, 401)
            values = np.where(self.feasible(scales), self.value(scales), -np.inf)
            k = int(np.argmax(values))
            low, high, best = scales[max(k - 1, 0)], scales[min(k + 1, 400)], float(values[k])
        return ends[zero, one], best


@pytest.mark.parametrize(("name", "norm", "sloped"), CASES)
def test_the_bound_is_that_of_the_best_feasible_multiple(name: str, norm: str, sloped: bool) -> None:
    """Of multiples up to one, whether zero, one, both or those between are feasible; beyond is no search."""
    loss, penalty = LOSSES[name], PENALTIES[norm]
    seen: Counter[str] = Counter()
    for seed in range(6):
        rng = np.random.default_rng(seed)
        A, b, c = rng.standard_normal((3, 2)), 2.0 * rng.standard_normal(3), rng.choice([0.7, 2.4]) * SLOPES
        c = c if sloped else np.zeros(2)
        x = cp.Variable(2)
        problem = cp.Problem(cp.Minimize(loss.of(A @ x - b) + c @ x + penalty.of(x) + CONSTANT))
        bounds = DualBounds(compile_problem(problem, numpy_backend()).composite())
        for _ in range(12):
            inside = rng.random() < 0.3  # near what meets the linear term
            theta = (
                np.linalg.pinv(A.T) @ c + 0.1 * rng.standard_normal(3) if inside else rng.standard_normal(3)
            )
            theta = np.clip(rng.choice([0.1, 0.6, 2.0]) ** (not inside) * theta, -1.9, 1.9)
            # a quadratic loss says on which side of zero the bound rises
            sign = -1.0 if name == "squares" and theta @ b < 0.0 else 1.0

            ray = Ray(sign * theta, A, b, c, loss, penalty)
            kind, expected = ray.best()
            seen[kind] += 1
            found = along(bounds, theta)
            if kind == "neither":  # moved, and proved elsewhere
                assert found is None or replace(ray, theta=found.point.thetas[0]).quotient() <= 1.0 + 1e-9
                continue
            assert found is not None
            assert found.value == pytest.approx(expected, rel=1e-6)
            proof = found.point.thetas[0]
            np.testing.assert_allclose(proof, (proof @ theta) / (theta @ theta) * theta, atol=1e-12)
            proving = replace(ray, theta=proof)
            assert proving.quotient() <= 1.0 + 1e-12
            assert proving.value(np.ones(1))[0] == pytest.approx(found.value, rel=1e-12)
    assert min(seen[kind] for kind in ("both", "near")) >= 5
    assert not sloped or min(seen[kind] for kind in ("far", "neither")) >= 2


def along(bounds: DualBounds, theta: Float) -> Bound | None:
    """The bound of one direction alone, as if it were the residual."""
    return bounds.best([DualPoint((theta,))])


def test_conditions_of_free_variables_with_a_cost_hold_for_no_other_multiple() -> None:
    """min (z - 3)^2 / 2 + 4 z: theta = 4 is the only dual point, though 3/4 of it looks better."""
    z = cp.Variable(1)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(z - 3.0) / 2 + 4.0 * cp.sum(z)))
    for start in (-1.0, 0.0, 5.0):
        z.value = np.array([start])
        found = certificate(problem)
        assert found.dual == pytest.approx(4.0, rel=1e-9)
        assert found.dual_point is not None
        np.testing.assert_allclose(found.dual_point.thetas[0], 4.0, rtol=1e-9)


@pytest.mark.parametrize("weight", [0.2, 1.0])
def test_maxima_are_bounded_at_one_and_nowhere_else(weight: float) -> None:
    """The multipliers of a maximum sum to one: half of them prove nothing."""
    A, b = np.array([[1.0], [-1.0]]), np.array([-1.0, -2.0])
    x = cp.Variable(1)
    problem = cp.Problem(cp.Minimize(cp.max(A @ x - b) + weight * cp.norm1(x)))
    bounds = DualBounds(compile_problem(problem, numpy_backend()).composite())
    for share in (0.5, 0.45, 0.52):
        p = np.array([share, 1.0 - share])
        found = along(bounds, -p)
        assert found is not None
        assert found.value == pytest.approx(-float(p @ b), rel=1e-12)
        np.testing.assert_allclose(found.point.thetas[0], -p, rtol=1e-12)
