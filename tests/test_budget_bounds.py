"""Bounds beside budgets hold for whatever dual point is offered, and close the gap at the optimum."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
from interior_point import optimum
from numpy.typing import NDArray

import convexnn_models as cnn
from convexnn_solvers import certificate
from convexnn_solvers.backends import numpy_backend
from convexnn_solvers.certify.budgets import budgets_of
from convexnn_solvers.certify.certificate import Certifier
from convexnn_solvers.composite import Composite, DualPoint
from convexnn_solvers.reading.compiler import compile_problem

Float = NDArray[np.float64]
N = 20
_RNG = np.random.default_rng(3)
X: Float = _RNG.standard_normal((N, 3))
Y = np.abs(X[:, 0]) + 0.2 * _RNG.standard_normal(N)
A: Float = _RNG.standard_normal((N, 6))
COSTS: Float = _RNG.standard_normal(6)
GATES = cnn.sample_gates(X, 4, seed=0)


def fit(prediction: Any) -> Any:
    return cp.sum_squares(prediction - Y) / (2 * N)


def of_weights(model: Any) -> Any:
    return cp.Problem(cp.Minimize(fit(model.prediction)), [*model.constraints, model.penalty <= 0.8])


def of_either_sign() -> Any:
    model = cnn.relu(X, GATES)
    own: list[Any] = [
        cp.sum(cp.norm(v, 2, axis=0)) <= t for v, t in zip(model.variables, (0.5, 0.3), strict=True)
    ]
    return cp.Problem(cp.Minimize(fit(model.prediction)), [*model.constraints, *own])


def of_a_vector(objective: Callable[[Any], Any], norm: Any, limit: float, *further: Any, **kind: Any) -> Any:
    x = cp.Variable(6, **kind)
    return cp.Problem(cp.Minimize(objective(x)), [norm(x) <= limit, *(row(x) for row in further)])


PROBLEMS: dict[str, Callable[[], Any]] = {
    "gated": lambda: of_weights(cnn.gated_relu(X, GATES, output_bias=True)),
    "relu": lambda: of_weights(cnn.relu(X, GATES)),
    "either sign": of_either_sign,
    "a linear objective": lambda: of_a_vector(lambda x: COSTS @ x, cp.norm, 2.0),
    "small costs": lambda: of_a_vector(lambda x: 0.1 * COSTS @ x, cp.norm, 2.0),
    "a linear term": lambda: of_a_vector(lambda x: fit(A @ x) + 0.5 * COSTS @ x, cp.norm1, 0.5),
    "signs": lambda: of_a_vector(lambda x: fit(A @ x) - cp.sum(x), cp.norm1, 1.5, nonneg=True),
    "a row besides": lambda: of_a_vector(lambda x: fit(A @ x), cp.norm, 0.7, lambda x: x[0] >= x[1] + 0.1),
    "absolute values": lambda: of_a_vector(lambda x: cp.norm1(A @ x - Y), cp.norm, 0.3),
}


def read(problem: Any) -> Composite:
    return compile_problem(problem, numpy_backend()).composite()


def duals(composite: Composite, rng: np.random.Generator) -> DualPoint:
    """Anything: of any size, with multipliers or without."""
    offsets = composite.offsets()
    count = len(composite.losses)
    drawn = [10.0 ** rng.uniform(-3, 1) * rng.standard_normal(b.shape) for b in offsets]
    drawn = [np.zeros(b.shape) if rng.uniform() < 0.1 else d for b, d in zip(offsets, drawn, strict=True)]
    return DualPoint(tuple(drawn[:count]), tuple(m if rng.uniform() < 0.6 else None for m in drawn[count:]))


@pytest.mark.parametrize("name", PROBLEMS)
def test_no_dual_point_proves_more_than_the_optimum(name: str) -> None:
    problem = PROBLEMS[name]()
    value, composite = optimum(problem), read(problem)
    assert budgets_of(composite) is not None
    certifier, rng = Certifier(composite), np.random.default_rng(0)
    point = tuple(np.asarray(v.value, dtype=np.float64) for v in problem.variables())
    found = 0
    for trial in range(40):
        shrunk = tuple(rng.uniform() * part if trial % 2 else 0.0 * part for part in point)
        bound = certifier.certify(shrunk, [duals(composite, rng)]).dual
        found += bound is not None
        assert bound is None or bound <= value + 1e-7 * (1.0 + abs(value))
    assert found >= 20


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_gap_closes_at_the_optimum(name: str) -> None:
    problem = PROBLEMS[name]()
    value = optimum(problem)
    found = certificate(problem)
    assert found.dual == pytest.approx(value, rel=1e-4, abs=1e-6)
    again = certificate(problem, [found.dual_point] if found.dual_point is not None else [])
    assert again.dual is not None
    assert again.dual >= value - 1e-4 * abs(value)


@pytest.mark.parametrize("name", ["gated", "relu", "either sign", "a linear term", "signs"])
def test_a_point_alone_has_a_bound(name: str) -> None:
    """Its residual says what the budgets cost: nobody's dual values are needed where losses are smooth."""
    problem = PROBLEMS[name]()
    value = optimum(problem)
    point = tuple(np.asarray(v.value, dtype=np.float64) for v in problem.variables())
    found = Certifier(read(problem)).certify(point)
    assert found.dual == pytest.approx(value, rel=1e-4)


def test_the_bound_of_a_linear_objective_is_its_dual_norm() -> None:
    problem = PROBLEMS["a linear objective"]()
    found = Certifier(read(problem)).certify((-2.0 * COSTS / np.linalg.norm(COSTS),))
    assert found.dual == pytest.approx(-2.0 * np.linalg.norm(COSTS), rel=1e-9)
    assert found.relative_gap == pytest.approx(0.0, abs=1e-9)


def test_a_perfect_fit_within_the_budget_has_a_gap_of_zero() -> None:
    x = cp.Variable(6)
    problem: Any = cp.Problem(cp.Minimize(cp.sum(cp.pos(A @ x - 1.0))), [cp.norm(x) <= 5.0])
    x.value = np.zeros(6)
    assert certificate(problem).relative_gap == 0.0


@pytest.mark.parametrize("mu", [np.zeros(3), np.full(25, np.nan)])
def test_unusable_prices_are_ignored_and_reported(mu: Float) -> None:
    problem = of_weights(cnn.gated_relu(X, GATES))
    composite = read(problem)
    zero = composite.zeros()
    wrong = DualPoint((np.ones(N),), (mu,))
    found = Certifier(composite).certify(zero, [wrong])
    assert "ignored" in found.note
    assert found.dual == Certifier(composite).certify(zero).dual


def others() -> dict[str, Any]:
    model = cnn.gated_relu(X, GATES)
    (weights,) = model.variables
    slack, x = cp.Variable(), cp.Variable(6, bounds=[-0.5, 0.5])
    loss = fit(model.prediction)
    return {
        "penalised too": cp.Problem(cp.Minimize(loss + 0.01 * model.penalty), [model.penalty <= 0.8]),
        "bounded twice": cp.Problem(cp.Minimize(loss), [model.penalty <= 0.8, cp.norm1(weights) <= 1.0]),
        "by a variable": cp.Problem(cp.Minimize(loss + slack), [model.penalty <= slack]),
        "in a box": cp.Problem(cp.Minimize(fit(A @ x)), [cp.norm(x) <= 0.3]),
        "of an expression": cp.Problem(cp.Minimize(fit(A @ x)), [cp.norm(A @ x) <= 0.3]),
    }


@pytest.mark.parametrize("name", others())
def test_other_bounds_on_norms_are_constraints_like_any(name: str) -> None:
    problem = others()[name]
    assert budgets_of(read(problem)) is None
    value, bound = optimum(problem), certificate(problem).dual
    if name == "by a variable":  # nobody says what the multipliers inside of the norms are
        assert bound is None
    else:
        assert bound == pytest.approx(value, rel=1e-3, abs=1e-6)
