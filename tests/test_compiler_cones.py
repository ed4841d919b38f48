"""Which constraints are read as pattern cones of a variable, and which as its bounds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cvxpy as cp
import numpy as np
import pytest

from convexnn_solvers.backends import numpy_backend
from convexnn_solvers.composite import Composite
from convexnn_solvers.reading.atoms import gated, pattern_slack
from convexnn_solvers.reading.compiler import compile_problem

RNG = np.random.default_rng(3)
N, D, P = 12, 3, 4
X = RNG.standard_normal((N, D))
PATTERNS = RNG.random((N, P)) < 0.5
Y = RNG.standard_normal(N)

SIGNS = 2.0 * PATTERNS - 1.0
CONES: dict[str, tuple[Callable[[Any, Any], list[Any]], int]] = {
    "atom": (lambda V, W: [pattern_slack(X, PATTERNS, V) >= 0], 1),
    "two variables": (lambda V, W: [pattern_slack(X, PATTERNS, Z) >= 0 for Z in (V, W)], 2),
    "turned round": (lambda V, W: [-pattern_slack(X, PATTERNS, V) <= 0], 1),
    "plain": (lambda V, W: [cp.multiply(SIGNS, X @ V) >= 0], 1),
    "plain from the right": (lambda V, W: [cp.multiply(X @ V, SIGNS) >= np.zeros((N, P))], 1),
    "not a whole variable": (lambda V, W: [pattern_slack(X, PATTERNS, V - W) >= 0], 0),
    "not zero": (lambda V, W: [pattern_slack(X, PATTERNS, V) >= 0.1], 0),
    "equality": (lambda V, W: [pattern_slack(X, PATTERNS, V) == 0], 0),
    "not signs": (lambda V, W: [cp.multiply(2.0 * SIGNS, X @ V) >= 0], 0),
    "two cones of one variable": (
        lambda V, W: [pattern_slack(X, A, V) >= 0 for A in (PATTERNS, ~PATTERNS)],
        0,
    ),
}


def compiled(problem: cp.Problem) -> Composite:
    return compile_problem(problem, numpy_backend()).composite()


@pytest.mark.parametrize("name", CONES)
def test_pattern_cones_are_recognised(name: str) -> None:
    rng = np.random.default_rng(0)
    build, count = CONES[name]
    V, W = cp.Variable((D, P)), cp.Variable((D, P))
    for leaf in (V, W):
        leaf.value = rng.standard_normal(leaf.shape)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(gated(X, PATTERNS, V - W) - Y)), build(V, W))
    composite = compiled(problem)
    found = [term.pattern_cone for term in composite.constraints if term.pattern_cone is not None]
    assert len(found) == count
    for cone in found:
        np.testing.assert_array_equal(cone.patterns, PATTERNS)
        assert composite.variables[cone.variable].id in (V.id, W.id)
        assert cone.outputs == 1
    outputs = composite.affine.forward(tuple(leaf.value for leaf in problem.variables()))[1:]
    for output, constraint in zip(outputs, problem.constraints, strict=True):
        np.testing.assert_allclose(output, -constraint.expr.value, atol=1e-12)


def test_bounded_variables_have_no_pure_cone() -> None:
    V = cp.Variable((D, P), nonneg=True)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(V - 1)), [pattern_slack(X, PATTERNS, V) >= 0])
    assert compiled(problem).constraints[0].pattern_cone is None


def test_vector_outputs_keep_their_cone() -> None:
    V = cp.Variable((2 * D, P))
    problem = cp.Problem(cp.Minimize(cp.sum_squares(V - 1)), [pattern_slack(X, PATTERNS, V) >= 0])
    cone = compiled(problem).constraints[0].pattern_cone
    assert cone is not None
    assert cone.outputs == 2
    assert cone.X is X


@pytest.mark.parametrize(
    ("attributes", "lower", "upper"),
    [
        ({}, None, None),
        ({"nonneg": True}, 0.0, None),
        ({"nonpos": True}, None, 0.0),
        ({"bounds": [-1.0, None]}, -1.0, None),
        ({"bounds": [0.5, 2.0]}, 0.5, 2.0),
        ({"bounds": [np.array([0.0, -np.inf]), np.array([1.0, 2.0])]}, [0.0, -np.inf], [1.0, 2.0]),
    ],
)
def test_bounds(attributes: dict[str, Any], lower: Any, upper: Any) -> None:
    v = cp.Variable(2, **attributes)
    block = compiled(cp.Problem(cp.Minimize(cp.sum_squares(v) + cp.norm1(v)))).variables[0]
    for bound, expected in ((block.lower, lower), (block.upper, upper)):
        if expected is None:
            assert bound is None
        else:
            np.testing.assert_array_equal(bound, np.broadcast_to(expected, (2,)))
