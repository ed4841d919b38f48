"""The nearest dual point in all domains that meets a linear condition, block by block."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.sparse import csr_array

from convexnn_solvers.certify.dual_blocks import DualBlock, nearest_meeting
from convexnn_solvers.functions.norm_balls import nearest_in_l1_ball

Float = NDArray[np.float64]
RNG = np.random.default_rng(0)
# Three unknowns, of which the block reads the first and the last.
COLUMNS: Float = RNG.standard_normal((6, 3)) * np.array([1.0, 0.0, 1.0])
HELD: Float = RNG.standard_normal(6)
BOX = 0.5


def clipped(y: Float) -> Float:
    return np.clip(y, -BOX, BOX)


def inside(y: Float) -> Float:
    return np.where(np.abs(y) < BOX, 1.0, 0.0)


@pytest.mark.parametrize("columns", [COLUMNS, csr_array(COLUMNS)], ids=["dense", "sparse"])
@pytest.mark.parametrize("slopes", [None, inside], ids=["differences", "slopes"])
def test_the_derivative_is_that_of_the_pulled_projection(columns: Any, slopes: Any) -> None:
    rng = np.random.default_rng(0)
    shift, size = 0.1 * rng.standard_normal(6), 0.7
    found = DualBlock(HELD, columns, clipped, slopes).jacobian(shift, size, np.full(3, 1e-7))
    exact = size * COLUMNS.T @ np.diag(inside(HELD + shift)) @ COLUMNS
    assert 0 < np.sum(inside(HELD + shift)) < 6
    np.testing.assert_allclose(found, exact, atol=1e-6)


@pytest.mark.parametrize("columns", [COLUMNS, csr_array(COLUMNS)], ids=["dense", "sparse"])
def test_unknowns_that_a_block_does_not_hold_ask_for_no_projection(columns: Any) -> None:
    """Of many variables a loss reads few, and projections are what takes time."""
    asked = 0

    def counted(y: Float) -> Float:
        nonlocal asked
        asked += 1
        return clipped(y)

    DualBlock(HELD, columns, counted).jacobian(np.zeros(6), 1.0, np.full(3, 1e-7))
    assert asked == 1 + 2


def test_the_point_is_the_nearest_one() -> None:
    """A box, and an l1 ball that ties its entries together, against an interior-point solver."""
    rng = np.random.default_rng(0)
    other, moved = np.array([0.6, -0.5, 0.4, 0.3]), np.array([0.1, -0.2, 0.05])
    second = rng.standard_normal((4, 3))
    ball = DualBlock(other, second, lambda y: np.asarray(nearest_in_l1_ball(y, 1.0, None)))
    linear = COLUMNS.T @ clipped(HELD + COLUMNS @ moved) + second.T @ ball.project(other + second @ moved)

    def met(parts: Sequence[Float], exactly: bool) -> bool:
        missed = COLUMNS.T @ parts[0] + second.T @ parts[1] - linear
        return bool(np.max(np.abs(missed)) <= (1e-14 if exactly else 1e-12))

    box = DualBlock(HELD, csr_array(COLUMNS), clipped, inside)
    first_part, second_part = nearest_meeting([box, ball], linear, np.full(3, 1e-7), met)
    assert met([first_part, second_part], False)
    # Blocks move in proportion to their size: distances count divided by it.
    sizes = [float(np.sqrt(np.mean(v**2))) for v in (HELD, other)]
    u, v = cp.Variable(6), cp.Variable(4)
    distance = cp.sum_squares(u - HELD) / sizes[0] + cp.sum_squares(v - other) / sizes[1]
    domains: list[cp.Constraint] = [
        cp.abs(u) <= BOX,
        cp.norm1(v) <= 1.0,
        COLUMNS.T @ u + second.T @ v == linear,
    ]
    cp.Problem(cp.Minimize(distance), domains).solve(solver=cp.CLARABEL)
    np.testing.assert_allclose(first_part, np.asarray(u.value), atol=1e-5)
    np.testing.assert_allclose(second_part, np.asarray(v.value), atol=1e-5)
