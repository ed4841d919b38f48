"""Columns of a variable with a pattern cone: their order, their projections, and the rounding of those."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from convexnn_solvers.certify.cone_columns import ConeColumns
from convexnn_solvers.certify.dual_norms import column_groups
from convexnn_solvers.composite import PatternCone, PenaltyTerm
from convexnn_solvers.cones.projections import ActiveRows, PatternCones, Projection
from convexnn_solvers.functions.penalties import AbsoluteValue, GroupNorm, Penalty

Float = NDArray[np.float64]


EPS = float(np.finfo(np.float64).eps)


def test_columns_are_the_outputs_one_after_the_other() -> None:
    rng = np.random.default_rng(0)
    X, patterns = rng.standard_normal((4, 3)), rng.random((4, 5)) < 0.5
    columns = ConeColumns(PatternCone(X, patterns, 2, 0))
    block = rng.standard_normal((6, 5))
    split = columns.split(block)
    assert split.shape == (3, 10)
    for k in range(2):
        for j in range(5):
            np.testing.assert_array_equal(split[:, 5 * k + j], block[3 * k : 3 * k + 3, j])
            assert columns.gates[5 * k + j] == j
    np.testing.assert_array_equal(columns.join(split), block)


def test_hints_are_what_the_rows_pull_of_every_output() -> None:
    rng = np.random.default_rng(1)
    X, patterns, rho = rng.standard_normal((4, 3)), rng.random((4, 5)) < 0.5, rng.random((2, 4, 5))
    hint, _ = ConeColumns(PatternCone(X, patterns, 2, 0)).hint(rho.reshape(8, 5))
    for k in range(2):
        pulled = X.T @ (np.where(patterns, 1.0, -1.0) * rho[k])
        np.testing.assert_allclose(hint[3 * k : 3 * k + 3], pulled, rtol=0.0, atol=1e-14)


def test_projection_keeps_what_is_inside_bit_by_bit() -> None:
    columns = ConeColumns(PatternCone(np.array([[1.0, 0.0]]), np.array([[True, False]]), 1, 0))
    inside = np.array([[0.3, -0.7], [0.1, 0.2]])
    assert columns.project(inside) is inside
    tiny = np.array([[-16.0 * EPS, 0.5], [1.0, 1.0]])  # outside by rounding, and outside
    np.testing.assert_array_equal(columns.project(tiny), [[-16.0 * EPS, 0.0], [1.0, 1.0]])
    assert columns.project(np.array([[-128.0 * EPS, 0.0], [1.0, 1.0]]))[0, 0] == 0.0


@pytest.mark.parametrize("compiled", [False, True])
def test_it_does_not_matter_where_dual_projections_begin(compiled: bool) -> None:
    """Active rows that somebody gives, right, wrong, dependent or of zero samples, after some or none."""
    if compiled:
        pytest.importorskip("numba")
    rng = np.random.default_rng(5)
    X = rng.standard_normal((400 if compiled else 30, 4))
    X[3], X[5] = 0.0, 2.0 * X[4]
    patterns = rng.random((len(X), 100)) < 0.5
    cone = PatternCone(X, patterns, 1, 0)
    z, every = rng.standard_normal((4, 100)), np.arange(100)
    exact = PatternCones(X, patterns).project(z, every).points
    columns = ConeColumns(cone)
    assert columns.cones.in_machine_code == compiled
    right = columns.polar(z)
    wrong = ActiveRows(rng.integers(-1, 8, (100, 4)), 1e3 * rng.random((100, 4)))
    huge = ActiveRows(right.rows, np.full(right.rows.shape, 1e200))
    for begun in (columns, ConeColumns(cone)):
        for start in (right, wrong, huge, right.take(every[::-1])):
            begun.begin_at(start)
            points, error = begun.dual_points(z, every)
            np.testing.assert_allclose(points, exact, rtol=0.0, atol=1e-10)
            assert np.all(np.linalg.norm(points, axis=0) <= np.linalg.norm(exact, axis=0) + error + 1e-12)


def test_multipliers_that_are_negative_prove_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """(3, 0) lies in its cone, so that no rho >= 0 makes it shorter; -1.5 on the row (2, 0) would."""
    columns = ConeColumns(PatternCone(np.array([[2.0, 0.0]]), np.array([[True]]), 1, 0))
    z = np.array([[3.0], [0.0]])
    lie = Projection(np.array([[0]]), np.array([[-1.5]]), z)
    monkeypatch.setattr(PatternCones, "project", lambda *_, **__: lie)
    points, _ = columns.dual_points(z, np.array([0]))
    np.testing.assert_array_equal(points, z)
    np.testing.assert_array_equal(columns.remembered(z)[0], z)


def test_the_rounding_of_a_dual_point_is_bounded_by_its_terms() -> None:
    """z = (-3, 0) needs rho = 1.5 on the row (2, 0): terms of sizes 3 and 1.5 * 2, and three of them."""
    columns = ConeColumns(PatternCone(np.array([[2.0, 0.0]]), np.array([[True, False]]), 1, 0))
    points, error = columns.dual_points(np.array([[-3.0, -3.0], [0.0, 4.0]]), np.array([0, 1]))
    np.testing.assert_allclose(points, [[0.0, -3.0], [0.0, 4.0]], atol=1e-15)
    expected = [2.0 * EPS * np.sqrt(3.0) * (3.0 + 3.0), 2.0 * EPS * np.sqrt(2.0) * 5.0]
    np.testing.assert_allclose(error, expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("penalty", "shared", "labels"),
    [
        (GroupNorm(0), True, [0, 1, 2, 0, 1, 2]),
        (GroupNorm(1), False, [0, 1, 2, 3, 4, 5]),
        (GroupNorm(None), True, [0] * 6),
        (GroupNorm(1), True, None),
        (AbsoluteValue(), True, None),
    ],
)
def test_the_group_of_each_column(penalty: Penalty, shared: bool, labels: list[int] | None) -> None:
    columns = ConeColumns(PatternCone(np.ones((1, 2)), np.ones((1, 3), dtype=bool), 2, 0))
    shape = (4, 3) if shared else (2, 2, 3)
    one = PenaltyTerm(
        penalty, np.ones(()), 0, lambda U: np.reshape(U, shape), lambda U: np.reshape(U, (4, 3)), ""
    )
    found = column_groups(one, columns)
    assert (found is None) == (labels is None)
    if found is not None:
        np.testing.assert_array_equal(found, labels)
