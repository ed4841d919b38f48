"""Projections on pattern cones: the KKT conditions, an independent solver, and the awkward inputs."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from cone_samples import (
    DATA,
    badly_scaled,
    blocks,
    constant_column,
    fewer_samples,
    generic,
    integer_grid,
    signed,
)
from numpy.typing import NDArray
from scipy.optimize import nnls

from convexnn_solvers.cones.projections import ActiveRows, PatternCones, no_active_rows

Float = NDArray[np.float64]


@pytest.mark.parametrize("make", DATA)
@pytest.mark.parametrize("seed", range(4))
def test_projection_satisfies_the_optimality_conditions(
    make: Callable[[np.random.Generator], Float], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    X = make(rng)
    patterns, gates, Z = blocks(X, rng)
    cones = PatternCones(X, patterns)
    found = cones.project(Z, gates)
    assert found.points.shape == Z.shape
    assert found.rows.shape == found.multipliers.shape
    assert found.rows.shape[0] == gates.size
    assert found.rows.shape[1] <= min(X.shape)
    assert np.all(found.multipliers >= 0.0)
    assert np.all((found.multipliers == 0.0) | (found.rows >= 0))
    scale, row_norms = np.sqrt(np.sum(Z * Z, axis=0)), np.sqrt(np.sum(X * X, axis=1))
    for b, gate in enumerate(gates):
        B = signed(X, patterns, int(gate))
        slack = B @ found.points[:, b]
        assert slack.min() >= -1e-13 * scale[b]
        listed = found.rows[b][found.rows[b] >= 0]
        assert len(set(listed.tolist())) == listed.size
        assert np.all(np.abs(slack[listed]) <= 1e-12 * scale[b])
        size = scale[b] + found.multipliers[b] @ row_norms[found.rows[b]]
        rebuilt = Z[:, b] + cones.combine(gates[b : b + 1], found.take(np.array([b])))[:, 0]
        assert np.linalg.norm(rebuilt - found.points[:, b]) <= 1e-12 * size


@pytest.mark.parametrize("make", DATA)
def test_projection_agrees_with_non_negative_least_squares(
    make: Callable[[np.random.Generator], Float],
) -> None:
    rng = np.random.default_rng(11)
    X = make(rng)
    patterns, gates, Z = blocks(X, rng)
    found = PatternCones(X, patterns).project(Z, gates)
    for b, gate in enumerate(gates):
        scale = np.linalg.norm(Z[:, b])
        B = signed(X, patterns, int(gate))
        rho, _ = nnls(B.T, -Z[:, b] / (scale or 1.0), maxiter=1000)
        expected = Z[:, b] + (scale or 1.0) * rho @ B
        assert np.linalg.norm(found.points[:, b] - expected) <= 1e-8 * scale


@pytest.mark.parametrize("make", [generic, integer_grid, fewer_samples, badly_scaled, constant_column])
def test_moreau_decomposition(make: Callable[[np.random.Generator], Float]) -> None:
    """``z = P(z) - B^T rho`` with orthogonal parts, and P is a projection: P(P(z)) = P(z)."""
    rng = np.random.default_rng(5)
    X = make(rng)
    patterns, gates, Z = blocks(X, rng)
    cones = PatternCones(X, patterns)
    points = cones.project(Z, gates).points
    scale = np.sum(Z * Z, axis=0)
    assert np.all(np.abs(np.sum(points * (points - Z), axis=0)) <= 1e-12 * scale)
    again = cones.project(points, gates).points
    assert np.all(np.linalg.norm(again - points, axis=0) <= 1e-12 * np.sqrt(scale))


def test_points_of_the_cone_do_not_move() -> None:
    rng = np.random.default_rng(2)
    X = rng.standard_normal((30, 5))
    vectors = rng.standard_normal((5, 12))
    cones = PatternCones(X, X @ vectors >= 0.0)
    found = cones.project(vectors, np.arange(12))
    np.testing.assert_allclose(found.points, vectors, rtol=4e-16, atol=0)
    assert np.all(found.rows == -1)


def test_known_projections() -> None:
    """The non-negative orthant, the origin, and a line, written down by hand."""
    identity = PatternCones(np.eye(3), np.array([[True], [True], [False]]))
    found = identity.project(np.array([[-2.0], [3.0], [5.0]]), [0])
    np.testing.assert_allclose(found.points[:, 0], [0.0, 3.0, 0.0])
    np.testing.assert_allclose(
        identity.combine([0], found)[:, 0], np.array([0.0, 3.0, 0.0]) - [-2.0, 3.0, 5.0]
    )
    X = np.vstack([np.eye(2), np.eye(2)])
    origin = PatternCones(X, np.array([[True], [True], [False], [False]]))
    np.testing.assert_allclose(origin.project([[1.0], [-4.0]], [0]).points, 0.0, atol=1e-15)
    line = PatternCones(X[[0, 2]], np.array([[True], [False]]))
    np.testing.assert_allclose(line.project([[1.0], [-4.0]], [0]).points[:, 0], [0.0, -4.0], atol=1e-15)


@pytest.mark.parametrize("make", DATA)
def test_any_warm_start_gives_the_same_points(make: Callable[[np.random.Generator], Float]) -> None:
    rng = np.random.default_rng(7)
    X = make(rng)
    patterns, gates, Z = blocks(X, rng)
    cones = PatternCones(X, patterns)
    cold = cones.project(Z, gates)
    width = 5
    rows = rng.integers(-1, X.shape[0] + 3, size=(gates.size, width))
    rubbish = ActiveRows(rows, rng.exponential(size=(gates.size, width)) * np.power(10.0, rng.uniform(-9, 9)))
    negative = ActiveRows(cold.rows, -cold.multipliers)
    broken = ActiveRows(rows, np.full(rows.shape, np.nan))
    for warm in (cold, no_active_rows(gates.size), rubbish, negative, broken):
        points = cones.project(Z, gates, warm=warm).points
        assert np.all(np.linalg.norm(points - cold.points, axis=0) <= 1e-11 * np.linalg.norm(Z, axis=0))


def test_many_blocks_are_projected_as_one_by_one() -> None:
    """Chunks are invisible: 3000 blocks at once give what single calls give."""
    rng = np.random.default_rng(3)
    X = rng.standard_normal((1500, 3))
    patterns = X @ rng.standard_normal((3, 50)) >= 0.0
    cones = PatternCones(X, patterns)
    gates = rng.integers(0, 50, size=3000)
    Z = rng.standard_normal((3, 3000))
    together = cones.project(Z, gates)
    for b in (0, 1, 1332, 1333, 1334, 2999):
        alone = cones.project(Z[:, b : b + 1], gates[b : b + 1])
        np.testing.assert_allclose(together.points[:, b], alone.points[:, 0], atol=1e-13)
    assert cones.slack_violation(together.points, gates).max() <= 1e-13


@pytest.mark.parametrize("entries", [1, 97, 300])
def test_chunks_of_any_size_give_the_same(entries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(6)
    X = rng.standard_normal((20, 3))
    patterns, gates, Z = blocks(X, rng)
    cones = PatternCones(X, patterns)
    whole = cones.project(Z, gates)
    sums, violations = cones.combine(gates, whole), cones.slack_violation(Z, gates)
    monkeypatch.setattr("convexnn_solvers.cones.projections._CHUNK_ENTRIES", entries)
    size = np.linalg.norm(Z, axis=0)
    assert np.all(np.linalg.norm(cones.project(Z, gates).points - whole.points, axis=0) <= 1e-13 * size)
    np.testing.assert_allclose(cones.combine(gates, whole), sums, rtol=1e-12)
    np.testing.assert_allclose(cones.slack_violation(Z, gates), violations, rtol=1e-12)


def test_active_rows_are_taken_and_replaced_by_block() -> None:
    rng = np.random.default_rng(4)
    X = rng.standard_normal((30, 4))
    cones = PatternCones(X, X @ rng.standard_normal((4, 10)) >= 0.0)
    state: ActiveRows = no_active_rows(10)
    some = np.array([7, 2, 5])
    Z = rng.standard_normal((4, 10))
    part = cones.project(Z[:, some], some, warm=state.take(some))
    state = state.replaced(some, part)
    rebuilt = Z + cones.combine(np.arange(10), state)
    np.testing.assert_allclose(rebuilt[:, some], part.points, atol=1e-13)
    others = np.setdiff1d(np.arange(10), some)
    np.testing.assert_array_equal(rebuilt[:, others], Z[:, others])


def test_violation_is_measured_against_unit_rows() -> None:
    cones = PatternCones(
        np.array([[100.0, 0.0], [0.0, 1e-3], [0.0, 0.0]]), np.array([[True], [False], [True]])
    )
    np.testing.assert_allclose(cones.slack_violation([[-2.0], [-7.0]], [0]), [2.0])
    np.testing.assert_allclose(cones.slack_violation([[2.0], [7.0]], [0]), [7.0])
    np.testing.assert_array_equal(cones.slack_violation([[2.0], [-7.0]], [0]), [0.0])


def test_no_blocks_and_no_rows() -> None:
    cones = PatternCones(np.ones((3, 2)), np.ones((3, 1), bool))
    empty = cones.project(np.empty((2, 0)), [])
    assert empty.points.shape == (2, 0)
    assert empty.rows.shape[0] == 0
    free = PatternCones(np.empty((0, 2)), np.empty((0, 1), bool))
    np.testing.assert_array_equal(free.project([[-1.0], [2.0]], [0]).points, [[-1.0], [2.0]])


def test_inputs_are_not_changed_and_answers_repeat() -> None:
    rng = np.random.default_rng(9)
    X = rng.standard_normal((40, 5))
    patterns = X @ rng.standard_normal((5, 6)) >= 0.0
    Z = rng.standard_normal((5, 6))
    copies = X.copy(), patterns.copy(), Z.copy()
    cones = PatternCones(X, patterns)
    first = cones.project(Z, np.arange(6))
    rows, multipliers = first.rows.copy(), first.multipliers.copy()
    second = cones.project(Z, np.arange(6), warm=first)
    np.testing.assert_array_equal(first.rows, rows)
    np.testing.assert_array_equal(first.multipliers, multipliers)
    np.testing.assert_array_equal(cones.project(Z, np.arange(6)).points, first.points)
    np.testing.assert_allclose(second.points, first.points, atol=1e-14)
    for before, after in zip(copies, (X, patterns, Z), strict=True):
        np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize(
    ("Z", "gates", "sentence"),
    [
        (np.zeros((3, 1)), [0], "points must be"),
        (np.zeros((2, 2)), [0], "points must be"),
        (np.zeros((2, 1)), [[0]], "points must be"),
        (np.zeros((2, 1)), [5], "gates must lie"),
        (np.zeros((2, 1)), [4], "gates must lie in 0..3"),
        (np.zeros((2, 1)), [-1], "gates must lie"),
        (np.full((2, 1), np.nan), [0], "NaN"),
    ],
)
def test_wrong_arguments_are_named(Z: Float, gates: Any, sentence: str) -> None:
    cones = PatternCones(np.ones((3, 2)), np.ones((3, 4), bool))
    with pytest.raises(ValueError, match=sentence):
        cones.project(Z, gates)


def test_wrong_data_are_named() -> None:
    with pytest.raises(ValueError, match="bool array"):
        PatternCones(np.ones((3, 2)), np.ones((3, 4)))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="NaN"):
        PatternCones(np.full((3, 2), np.nan), np.ones((3, 4), bool))
    cones = PatternCones(np.ones((3, 2)), np.ones((3, 4), bool))
    with pytest.raises(ValueError, match="warm"):
        cones.project(np.zeros((2, 1)), [0], warm=no_active_rows(2))


@pytest.mark.skipif(importlib.util.find_spec("numba") is None, reason="numba is not installed")
@pytest.mark.parametrize(("n", "d", "whole"), [(5, 4, True), (4, 4, True), (3, 4, False), (1, 2, False)])
def test_only_the_space_of_the_features_is_worked_in_place(n: int, d: int, whole: bool) -> None:
    """With fewer samples than features, projections go through the samples' span, which is smaller."""
    X = np.random.default_rng(0).standard_normal((n, d))
    assert PatternCones(X, X[:, :1] >= 0.0, compiled=True).in_machine_code == whole
    assert not PatternCones(X, X[:, :1] >= 0.0, compiled=False).in_machine_code


def test_points_inside_have_no_active_rows() -> None:
    patterns = np.array([[True, False], [True, True], [True, True]])
    found = PatternCones(np.eye(3), patterns).project(np.array([[1.0, -1.0], [2.0, 0.5], [0.0, 3.0]]), [0, 1])
    assert found.rows.shape == found.multipliers.shape == (2, 0)
    np.testing.assert_array_equal(found.points, [[1.0, -1.0], [2.0, 0.5], [0.0, 3.0]])
