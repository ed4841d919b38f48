"""All activation patterns: exact counts, brute force on degenerate data, proofs by vectors, refusals."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import linprog

from convexnn_models.arrangements import all_gates, count_patterns

Array = NDArray[np.float64]


def generic(n: int, d: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal((n, d))


def brute_force(X: Array) -> set[bytes]:
    """Every sign vector whose cone has an interior, by one linear program each; zero rows count as True."""
    live = np.any(X != 0.0, axis=1)
    rows = X[live] / np.maximum(np.abs(X).max(axis=0), 1e-300)
    rows /= np.linalg.norm(rows, axis=1)[:, None]
    found: set[bytes] = set()
    for signs in itertools.product([1.0, -1.0], repeat=int(live.sum())):
        signed = np.asarray(signs)[:, None] * rows
        system = np.hstack([-signed, np.ones((len(signed), 1))])  # margin - signed @ u <= 0
        bounds = [(-1.0, 1.0)] * X.shape[1] + [(0.0, 1.0)]
        objective = np.append(np.zeros(X.shape[1]), -1.0)
        solution = linprog(objective, system, np.zeros(len(signed)), bounds=bounds)
        assert solution.x is not None
        if solution.x[-1] > 1e-6:
            pattern = np.ones(len(X), dtype=np.bool_)
            pattern[live] = np.asarray(signs) > 0.0
            found.add(pattern.tobytes())
    return found


def regions(X: NDArray[np.int64]) -> int:
    """Zaslavsky: sum over all sets S of hyperplanes of (-1)^(|S| - rank S), with ranks of small integers."""
    total = 0
    for size in range(len(X) + 1):
        chosen = np.array(list(itertools.combinations(range(len(X)), size)), dtype=np.intp)
        ranks = np.linalg.matrix_rank(X[chosen].astype(float)) if size else np.zeros(1, dtype=np.int64)
        total += int(np.sum((-1) ** (size - ranks)))
    return total


def as_set(patterns: NDArray[np.bool_]) -> set[bytes]:
    return {column.tobytes() for column in np.ascontiguousarray(patterns.T)}


def parallel(X: Array, factors: dict[int, float]) -> Array:
    """Row 0 times a factor in the given rows."""
    changed = X.copy()
    for row, factor in factors.items():
        changed[row] = factor * X[0]
    return changed


def integer_grid(side: int, d: int) -> Array:
    return np.array(list(itertools.product(range(side), repeat=d)), dtype=float)


DEGENERATE: dict[str, Array] = {
    "one row": generic(1, 3),
    "one feature": generic(6, 1),
    "n below d": generic(4, 6),
    "zero rows": generic(7, 3) * np.array([[1], [0], [1], [1], [0], [1], [1]]),
    "duplicates": generic(8, 3)[[0, 1, 2, 0, 3, 1, 1, 4]],
    "parallel": parallel(generic(8, 3), {3: 3.0, 5: -0.7, 6: 1e-5 / 3.0, 7: -1e9}),
    "all parallel": parallel(generic(5, 3), {1: 0.1, 2: -1 / 3, 3: 7.0, 4: -1e-7}),
    "rank 2 of 4": generic(8, 2) @ generic(2, 4, 1),
    "rank 3 of 5, scaled": (generic(8, 3) @ generic(3, 5, 1)) * np.array([1e6, 1, 1e-6, 1, 1e3]),
    "integer grid": integer_grid(3, 2),
    "integer grid with ones": np.hstack([integer_grid(3, 2), np.ones((9, 1))]),
    "signs": integer_grid(2, 3) * 2 - 1,
    "three planes through a line": np.array([[1, 0, 0], [0, 1, 0], [1, 1, 0], [1, -2, 0], [0, 0, 1.0]]),
    "near pencil": np.array([[1, 0, 0], [1, 1e-3, 0], [1, 2e-3, 0], [1, 3e-3, 0], [1, 0, 1e-3]]),
    "constant column": np.hstack([np.ones((7, 1)), generic(7, 1)]),
}


@pytest.mark.parametrize(
    ("n", "rank"), [(1, 1), (7, 1), (2, 2), (30, 2), (3, 3), (17, 3), (30, 3), (14, 4), (9, 6), (6, 8)]
)
def test_generic_data_has_the_number_of_patterns_of_the_formula(n: int, rank: int) -> None:
    for seed in range(3):
        gates = all_gates(generic(n, rank, seed))
        assert len(gates) == len(as_set(gates.patterns)) == count_patterns(n, rank)


@pytest.mark.parametrize("name", DEGENERATE)
def test_degenerate_data_agrees_with_brute_force(name: str) -> None:
    X = DEGENERATE[name]
    gates = all_gates(X)
    assert as_set(gates.patterns) == brute_force(X)
    assert len(gates) == len(as_set(gates.patterns))


@pytest.mark.parametrize(("n", "d"), [(10, 2), (10, 3), (12, 3), (10, 4)])
def test_small_integers_agree_with_zaslavsky(n: int, d: int) -> None:
    rng = np.random.default_rng(n + d)
    for _ in range(3):
        X = rng.integers(-2, 3, size=(n, d))
        X = X[X.any(axis=1)]
        assert len(all_gates(X)) == regions(X)


def test_a_whole_grid_of_many_coplanar_points() -> None:
    """5 x 5 grid points with a bias: crossing points of their lines are the lines through grid points."""
    grid = integer_grid(5, 2)
    vertices = {}
    for (a, b), (c, d) in itertools.combinations(grid.astype(int), 2):
        line = np.cross([a, b, 1], [c, d, 1])
        line //= np.gcd.reduce(line)
        line *= np.sign(line[np.flatnonzero(line)[0]])
        vertices[tuple(line)] = int(np.count_nonzero(grid @ line[:2] + line[2] == 0))
    # Lines in the projective plane make 1 + sum over crossing points of (lines there - 1) regions, and a
    # region is a pair of opposite cells.
    expected = 2 * (1 + sum(count - 1 for count in vertices.values()))
    assert len(all_gates(grid, bias=True)) == expected


@pytest.mark.parametrize("name", [*DEGENERATE, "generic"])
def test_vectors_prove_their_patterns(name: str) -> None:
    X = DEGENERATE.get(name, generic(25, 3))
    gates = all_gates(X)
    products = X @ gates.vectors
    np.testing.assert_array_equal(products >= 0.0, gates.patterns)
    live = np.any(X != 0.0, axis=1)
    scale = np.abs(X[live]) @ np.abs(gates.vectors)
    assert np.min(np.abs(products[live]) / scale) > 1e-12
    np.testing.assert_allclose(np.linalg.norm(gates.vectors, axis=0), 1.0)


def test_vectors_are_as_far_from_the_walls_as_possible() -> None:
    X = np.vstack([np.eye(3), -np.eye(3)])  # already spread evenly: margins are plain distances
    gates = all_gates(X)
    assert len(gates) == 8
    np.testing.assert_allclose(np.abs(gates.vectors), 1.0 / np.sqrt(3.0), rtol=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_patterns_do_not_depend_on_scale_order_or_coordinates(seed: int) -> None:
    rng = np.random.default_rng(seed)
    X = generic(12, 3, seed)
    X[7], X[4] = X[2] - X[3], 2.0 * X[1]
    expected = as_set(all_gates(X).patterns)
    assert as_set(all_gates(X * 10.0 ** rng.uniform(-8, 8, (12, 1))).patterns) == expected
    assert as_set(all_gates(X * 10.0 ** rng.uniform(-5, 5, (1, 3))).patterns) == expected
    assert as_set(all_gates(X @ rng.standard_normal((3, 3))).patterns) == expected
    order = rng.permutation(12)
    assert as_set(all_gates(X[order]).patterns[np.argsort(order)]) == expected


def test_patterns_come_in_complementary_pairs_with_the_all_zero_one() -> None:
    X = np.abs(generic(10, 3)) + 0.1
    patterns = as_set(all_gates(X).patterns)
    assert as_set(~all_gates(X).patterns) == patterns
    assert np.zeros(10, dtype=np.bool_).tobytes() in patterns


def test_bias_appends_a_column_of_ones() -> None:
    X = generic(9, 2)
    with_ones = np.hstack([X, np.ones((9, 1))])
    gates = all_gates(X, bias=True)
    assert gates.vectors.shape[0] == 3
    assert as_set(gates.patterns) == as_set(all_gates(with_ones).patterns)


def test_patches_are_stacked() -> None:
    patches = generic(12, 2).reshape(4, 3, 2)
    gates = all_gates(patches)
    assert gates.patterns.shape == (12, count_patterns(12, 2))
    assert as_set(gates.patterns) == as_set(all_gates(patches.reshape(12, 2)).patterns)


def test_sampled_patterns_are_among_all() -> None:
    X = generic(40, 3)
    draws = X @ np.random.default_rng(1).standard_normal((3, 20_000)) >= 0.0
    assert as_set(draws) <= as_set(all_gates(X).patterns)


def test_same_input_same_bits_and_input_untouched() -> None:
    X = generic(10, 3)
    before = X.copy()
    first, second = all_gates(X), all_gates(X)
    np.testing.assert_array_equal(first.vectors, second.vectors)
    np.testing.assert_array_equal(X, before)
    assert first.description == f"all {len(first)} patterns"


def test_progress_changes_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    X = generic(10, 3)
    np.testing.assert_array_equal(all_gates(X, progress=True).vectors, all_gates(X).vectors)
    assert "hyperplanes" in capfd.readouterr().err


@pytest.mark.parametrize(("n", "d", "limit"), [(30, 3, 871), (500, 10, 100_000), (40, 40, 1000)])
def test_too_many_patterns_stop_early(n: int, d: int, limit: int) -> None:
    with pytest.raises(ValueError, match=f"max_patterns={limit} .*sample_gates"):
        all_gates(generic(n, d), max_patterns=limit)


def test_degenerate_data_may_stay_below_the_generic_count() -> None:
    X = generic(9, 3)[[0, 1, 2] * 10]
    assert count_patterns(30, 3) > 100
    assert len(all_gates(X, max_patterns=8)) == 8


def test_formula() -> None:
    assert [count_patterns(n, 2) for n in (1, 2, 3, 10)] == [2, 4, 6, 20]
    assert count_patterns(5, 50) == 2**5
    assert count_patterns(1000, 500) == 2**999  # half of all, exactly


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: all_gates(np.zeros((3, 2))), ValueError, "zero rows"),
        (lambda: all_gates([[1.0, np.nan]]), ValueError, "NaN"),
        (lambda: all_gates(np.ones(3)), ValueError, r"shape \(n, d\)"),
        (lambda: all_gates(np.ones((3, 2)), max_patterns=0), ValueError, "max_patterns"),
        (lambda: count_patterns(0, 2), ValueError, "n must"),
        (lambda: count_patterns(3, 1.5), TypeError, "rank"),  # type: ignore[arg-type]
    ],
)
def test_bad_arguments_are_named(call: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        call()


def test_zero_rows_are_fine_with_a_bias() -> None:
    assert len(all_gates(np.zeros((3, 2)), bias=True)) == 2
