"""Blocks that the active-set method's steps leave unfinished: SciPy's solver, or what is better."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from convexnn_solvers import active_sets
from convexnn_solvers.active_sets import ActiveSetMethod
from convexnn_solvers.cones import PatternCones, Projection

Float = NDArray[np.float64]
RNG = np.random.default_rng(21)
X = RNG.standard_normal((30, 5))
SHORT = RNG.standard_normal((4, 9))


def without_steps(self: ActiveSetMethod, todo: NDArray[np.intp]) -> NDArray[np.intp]:
    return todo


def nothing(A: Float, b: Float, maxiter: int) -> tuple[Float, float]:
    return np.zeros(A.shape[1]), 0.0


def exhausted(A: Float, b: Float, maxiter: int) -> tuple[Float, float]:
    raise RuntimeError("Maximum number of iterations reached.")


def prepared(data: Float) -> tuple[PatternCones, NDArray[np.intp], Float, Projection]:
    """Cones, gates, points outside of most of them, and their projections by the method's own steps."""
    rng = np.random.default_rng(3)
    patterns = np.hstack(
        [data @ rng.standard_normal((data.shape[1], 12)) >= 0.0, rng.random((len(data), 4)) < 0.5]
    )
    cones, gates = PatternCones(data, patterns, compiled=False), np.arange(16)
    Z = rng.standard_normal((data.shape[1], 16)) * 10.0 ** rng.uniform(-6, 6, 16)
    return cones, gates, Z, cones.project(Z, gates)


def check(cones: PatternCones, gates: NDArray[np.intp], Z: Float, found: Projection, points: Float) -> None:
    size = np.linalg.norm(Z, axis=0)
    assert np.all(np.linalg.norm(found.points - points, axis=0) <= 1e-11 * size)
    assert np.all(cones.slack_violation(found.points, gates) <= 1e-12 * size)
    rebuilt = Z + cones.combine(gates, found)
    assert np.all(np.linalg.norm(rebuilt - found.points, axis=0) <= 1e-11 * size)
    assert np.all((found.rows >= 0) == (found.multipliers > 0.0))


@pytest.mark.parametrize("data", [X, SHORT], ids=["more samples", "more features"])
def test_scipys_solver_projects_what_no_step_finished(data: Float, monkeypatch: pytest.MonkeyPatch) -> None:
    cones, gates, Z, expected = prepared(data)
    assert np.any(expected.multipliers > 0.0)
    monkeypatch.setattr(ActiveSetMethod, "_step", without_steps)
    check(cones, gates, Z, cones.project(Z, gates), expected.points)


@pytest.mark.parametrize("solver", [nothing, exhausted])
def test_the_better_point_stands_where_scipys_solver_fails(
    solver: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    cones, gates, Z, expected = prepared(X)
    monkeypatch.setattr(ActiveSetMethod, "_step", without_steps)
    monkeypatch.setattr(active_sets, "nnls", solver)
    check(cones, gates, Z, cones.project(Z, gates, warm=expected), expected.points)
