"""Projections that remember the ones before are those of somebody who remembers nothing."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

import numpy as np
import pytest
from cone_data import AWKWARD
from numpy.typing import NDArray

import convexnn_models as cnn
from convexnn_solvers import SemismoothNewton
from convexnn_solvers.cones import factors as cone_factors
from convexnn_solvers.cones import projections as cones
from convexnn_solvers.cones.memory import ConeMemory
from convexnn_solvers.cones.projections import PatternCones

Float = NDArray[np.float64]
needs_numba = pytest.mark.skipif(importlib.util.find_spec("numba") is None, reason="numba is not installed")
COMPILED = pytest.param(True, marks=needs_numba, id="machine code")
COUNT = 14


DATA = {"many samples": np.random.default_rng(0).standard_normal((300, 9)), **AWKWARD}


def moving_points(d: int, rng: np.random.Generator) -> Iterator[tuple[Float, NDArray[np.intp]]]:
    """Points that stay, move a little, a lot, change their length and turn round; and whose they are."""
    Z = rng.standard_normal((d, COUNT))
    for size in (0.0, 1e-14, 1e-9, 1e-4, 1e-2, 0.1, 0.0, 1.0, 1e-3, 1e-3):
        Z = Z + size * rng.standard_normal(Z.shape)
        blocks = np.sort(rng.permutation(COUNT)[: rng.integers(1, COUNT + 1)])
        yield Z[:, blocks] * np.power(10.0, rng.uniform(-6, 6, size=blocks.size)), blocks
    yield -Z, np.arange(COUNT)
    yield 0.0 * Z, np.arange(COUNT)


@pytest.mark.parametrize("bytes_kept", [2.0**25, 3e4, 0.0], ids=["all", "some", "one"])
@pytest.mark.parametrize("compiled", [False, COMPILED])
@pytest.mark.parametrize("name", DATA)
def test_projections_do_not_depend_on_what_is_remembered(
    name: str, compiled: bool, bytes_kept: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cone_factors, "_MOST_BYTES", bytes_kept)
    X, rng = DATA[name], np.random.default_rng(8)
    patterns = X @ rng.standard_normal((X.shape[1], 5)) >= 0.0
    gates = rng.integers(0, 5, size=COUNT)
    forgetful = PatternCones(X, patterns, compiled=False)
    memory = ConeMemory(PatternCones(X, patterns, compiled=compiled), gates)
    for Z, blocks in moving_points(X.shape[1], rng):
        given = Z.copy()
        points, size = memory.project(Z, blocks), np.linalg.norm(Z, axis=0)
        np.testing.assert_array_equal(Z, given)
        expected = forgetful.project(Z, gates[blocks]).points
        assert np.all(np.linalg.norm(points - expected, axis=0) <= 1e-11 * size)
        assert np.all(forgetful.slack_violation(points, gates[blocks]) <= 1e-12 * size)
        moved = forgetful.combine(gates[blocks], memory.active(blocks))
        assert np.all(np.linalg.norm(Z + moved - points, axis=0) <= 1e-11 * size)
        polar = memory.polar[blocks].T
        aligned = np.sum(polar * moved, axis=0)
        lengths = np.linalg.norm(polar, axis=0) * np.linalg.norm(moved, axis=0)
        np.testing.assert_allclose(aligned, lengths, rtol=1e-12)
    part = np.array([3, 5])
    smaller = memory.restricted(part)
    Z = rng.standard_normal((X.shape[1], 2))
    expected = forgetful.project(Z, gates[part]).points
    np.testing.assert_allclose(smaller.project(Z, np.arange(2)), expected, rtol=0.0, atol=1e-11)
    np.testing.assert_allclose(memory.project(Z, part), expected, rtol=0.0, atol=1e-11)


@pytest.mark.parametrize("compiled", [False, COMPILED])
@pytest.mark.parametrize("name", DATA)
def test_short_projections_are_bounded_and_long_ones_exact(name: str, compiled: bool) -> None:
    X, rng = DATA[name], np.random.default_rng(9)
    patterns = X @ rng.standard_normal((X.shape[1], 5)) >= 0.0
    gates = rng.integers(0, 5, size=COUNT)
    forgetful = PatternCones(X, patterns, compiled=False)
    memory = ConeMemory(PatternCones(X, patterns, compiled=compiled), gates)
    both = 0
    for Z, blocks in moving_points(X.shape[1], rng):
        size = np.linalg.norm(Z, axis=0)
        expected = forgetful.project(Z, gates[blocks]).points
        lengths = np.linalg.norm(expected, axis=0)
        limits = lengths * rng.choice([0.5, 0.99, 1.01, 1.2, 4.0], size=blocks.size)
        points = memory.project(Z, blocks, limits)
        active, long = memory.active(blocks), lengths > limits
        both += long.any() and not long.all()
        assert np.all(np.linalg.norm(points - expected, axis=0)[long] <= 1e-11 * size[long])
        assert np.all(np.linalg.norm(points, axis=0)[~long] <= limits[~long] + 1e-11 * size[~long])
        assert np.all(active.multipliers >= 0.0)
        moved = forgetful.combine(gates[blocks], active)
        assert np.all(np.linalg.norm(Z + moved - points, axis=0) <= 1e-11 * size)
    assert both > 2


@pytest.mark.parametrize("compiled", [False, COMPILED])
def test_answers_repeat_with_their_history(compiled: bool) -> None:
    X = DATA["many samples"]
    patterns = X @ np.random.default_rng(9).standard_normal((9, COUNT)) >= 0.0
    runs: list[list[Float]] = []
    for _ in range(2):
        memory = ConeMemory(PatternCones(X, patterns, compiled=compiled), np.arange(COUNT))
        runs.append([memory.project(Z, b) for Z, b in moving_points(9, np.random.default_rng(10))])
    for first, second in zip(*runs, strict=True):
        np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("compiled", [False, COMPILED])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_points_that_are_not_finite_are_refused(compiled: bool, value: float) -> None:
    X = DATA["many samples"]
    memory = ConeMemory(
        PatternCones(X, np.ones((300, 1), dtype=np.bool_), compiled=compiled), np.zeros(1, int)
    )
    with pytest.raises(ValueError, match="NaN or infinite"):
        memory.project(np.full((9, 1), value), np.arange(1))


@pytest.mark.parametrize("compiled", [False, COMPILED])
@pytest.mark.parametrize("bytes_kept", [2.0**25, 3e4], ids=["all", "some"])
@pytest.mark.parametrize("name", ["many samples", "fewer samples than features", "one feature"])
def test_complements_are_what_active_rows_leave_free(
    name: str, compiled: bool, bytes_kept: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cone_factors, "_MOST_BYTES", bytes_kept)
    X, rng = DATA[name], np.random.default_rng(11)
    d, everything = X.shape[1], np.arange(COUNT)
    memory = ConeMemory(
        PatternCones(X, X @ rng.standard_normal((d, COUNT)) >= 0.0, compiled=compiled), everything
    )
    for _ in range(3):
        memory.project(rng.standard_normal((d, COUNT)), everything)
        rows = memory.active(everything).rows
        counts = np.sum(rows >= 0, axis=1)
        for k in np.unique(counts):
            of_size = np.flatnonzero(counts == k)
            # Also for rows that are not, or no longer, those of the projection.
            other = np.stack([rng.permutation(len(X))[:k] for _ in of_size])
            for given in (rows[of_size, :k], other):
                bases = memory.complements(of_size, given)
                assert bases.shape == (of_size.size, d, d - k)
                gram = np.einsum("gdq,gdr->gqr", bases, bases)
                np.testing.assert_allclose(gram, np.broadcast_to(np.eye(d - k), gram.shape), atol=1e-13)
                np.testing.assert_allclose(np.einsum("gkd,gdq->gkq", X[given], bases), 0.0, atol=1e-12)


@needs_numba
def test_factors_stay_exact_however_often_they_change() -> None:
    rng = np.random.default_rng(12)
    X = rng.standard_normal((200, 20))
    X[:, :4] = np.round(X[:, :4])
    patterns, everything = X @ rng.standard_normal((20, 6)) >= 0.0, np.arange(6)
    memory = ConeMemory(PatternCones(X, patterns, compiled=True), everything)
    Z, velocity = rng.standard_normal((2, 20, 6))
    points, seen = Z, set[tuple[int, ...]]()
    for _ in range(1000):
        velocity = 0.9 * velocity + 0.3 * rng.standard_normal(Z.shape)
        Z = Z + 0.05 * velocity
        Z = Z / np.linalg.norm(Z, axis=0)
        points = memory.project(Z, everything)
        seen |= {tuple(rows) for rows in memory.active(everything).rows}
    assert len(seen) > 1000
    expected = PatternCones(X, patterns, compiled=False).project(Z, everything).points
    np.testing.assert_allclose(points, expected, rtol=0.0, atol=1e-13)


@needs_numba
@pytest.mark.parametrize("outputs", [1, 2])
def test_newtons_method_takes_the_same_steps_with_and_without_memory(
    outputs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    X, rng = DATA["many samples"][:120, :6], np.random.default_rng(13)
    Y = np.abs(X @ rng.standard_normal((6, outputs))) + 0.1 * rng.standard_normal((120, outputs))
    histories: list[list[Float]] = []
    for compiled_from in (0.0, np.inf):
        monkeypatch.setattr(cones, "_COMPILED_FROM", compiled_from)
        problem = cnn.relu(X, cnn.sample_gates(X, 12, seed=1), outputs=outputs).problem(Y, 0.003)
        problem.solve(solver=SemismoothNewton(tol=1e-8))
        assert problem.status == "optimal"
        extra = problem.solver_stats.extra_stats
        histories.append([np.array([row["primal"], row["dual"]]) for row in extra["history"]])
        histories[-1].append(np.array([extra["iterations"], problem.value]))
    np.testing.assert_allclose(histories[0], histories[1], rtol=1e-8)
