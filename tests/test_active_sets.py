"""Blocks that the active-set method's steps leave unfinished: SciPy's solver, or what is better."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from convexnn_solvers.cones import active_sets
from convexnn_solvers.cones.active_sets import ActiveRows, ActiveSetMethod, Kernel
from convexnn_solvers.cones.projections import PatternCones, Projection

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


def leaves_everything(*arrays: Any) -> None:
    """A kernel that finishes no block."""


def test_blocks_that_compiled_loops_leave_are_finished_by_the_steps() -> None:
    rng = np.random.default_rng(3)
    unit, points = X / np.linalg.norm(X, axis=1, keepdims=True), rng.standard_normal((16, 5))
    bits, padded = rng.random((16, 30)) < 0.5, np.vstack([unit, np.zeros(5)])
    kernel = Kernel(leaves_everything, leaves_everything, leaves_everything)
    start = np.zeros((16, 0), dtype=np.intp), np.zeros((16, 0))
    moved, active = ActiveSetMethod(padded, bits, points, kernel).run(*start)
    expected, rows = ActiveSetMethod(padded, bits, points).run(*start)
    np.testing.assert_array_equal(moved, expected)
    np.testing.assert_array_equal(active.rows, rows.rows)
    assert np.abs(moved - points).max() > 0.1


def test_replaced_blocks_may_have_more_or_fewer_active_rows() -> None:
    rows, multipliers = np.array([[3], [5]]), np.array([[0.3], [0.5]])
    wider = ActiveRows(np.array([[1, 2, 4]]), np.array([[0.1, 0.2, 0.4]]))
    found = ActiveRows(rows, multipliers).replaced(np.array([0]), wider)
    np.testing.assert_array_equal(found.rows, [[1, 2, 4], [5, -1, -1]])
    np.testing.assert_array_equal(found.multipliers, [[0.1, 0.2, 0.4], [0.5, 0.0, 0.0]])
    back = found.replaced(np.array([0]), ActiveRows(rows[1:], multipliers[1:]))
    np.testing.assert_array_equal(back.rows, [[5, -1, -1], [5, -1, -1]])
    np.testing.assert_array_equal(back.multipliers, [[0.5, 0.0, 0.0], [0.5, 0.0, 0.0]])


@pytest.mark.parametrize(
    ("active", "rho", "z", "multipliers", "point"),
    [
        # least squares improves what is given
        (np.eye(2), [0.5, 9.0], [-1.0, -2.0], [1.0, 2.0], [0.0, 0.0]),
        # but not where it needs a negative multiplier, or none, for a row that is active
        (np.eye(2), [1.0, 1.0], [1.0, -1.0], [1.0, 1.0], [2.0, 0.0]),
        (np.eye(2), [1.0, 1.0], [0.0, -1.0], [1.0, 1.0], [1.0, 0.0]),
        # two copies of a row share what is left, and rows without a multiplier are no longer active
        (np.array([[1.0, 0.0], [1.0, 0.0]]), [3.0, 1.0], [-2.0, 5.0], [1.0, 1.0], [0.0, 5.0]),
        (np.eye(2), [0.0, 9.0], [-1.0, -2.0], [2.0], [-1.0, 0.0]),
        (np.eye(2), [0.0, 0.0], [-1.0, -2.0], [], [-1.0, -2.0]),
    ],
)
def test_multipliers_are_polished_where_they_stay_positive(
    active: Float, rho: list[float], z: list[float], multipliers: list[float], point: list[float]
) -> None:
    kept, found, moved = active_sets.polished(active, np.array(rho), np.array(z))
    assert kept.tolist() == np.flatnonzero(rho).tolist()
    np.testing.assert_allclose(found, multipliers, rtol=1e-14)
    np.testing.assert_allclose(moved, point, atol=1e-14)
