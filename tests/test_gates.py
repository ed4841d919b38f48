"""Gates: distinct, non-zero, off ties, reproducible, and honest about how many there are."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray

import convexnn_models as cnn
from convexnn_models.gates import Gates, distinct

Float = NDArray[np.float64]


def gaussian(n: int, d: int, seed: int = 0) -> Float:
    return np.random.default_rng(seed).standard_normal((n, d))


GRID: Float = np.array(list(itertools.product([-1.0, 0.0, 1.0], repeat=2)))
DATA = {
    "generic": gaussian(12, 3),
    "wide": gaussian(4, 9),
    "one row": gaussian(1, 3),
    "one feature": gaussian(7, 1),
    "zero rows": np.vstack([gaussian(5, 2), np.zeros((2, 2))]),
    "duplicated rows": np.vstack([gaussian(5, 2), gaussian(5, 2)]),
    "opposite rows": np.vstack([gaussian(5, 2), -gaussian(5, 2)]),
    "constant column": np.hstack([gaussian(6, 2), np.full((6, 1), 3.0)]),
    "zero column": np.hstack([gaussian(6, 2), np.zeros((6, 1))]),
    "integer grid": GRID,
    "tiny": 1e-200 * gaussian(6, 3),
    "huge": 1e200 * gaussian(6, 3),
    "mixed scales": gaussian(8, 3) * np.logspace(-8, 8, 8)[:, None],
}


def patterns_of_random_directions(X: Float) -> set[bytes]:
    """Non-zero patterns that half a million directions meet, zero rows aside: brute force for d <= 3."""
    live = X[X.any(axis=1)]
    directions = np.random.default_rng(1).standard_normal((X.shape[1], 100_000))
    bits = live @ directions >= 0.0
    return {column.tobytes() for column in np.unique(bits, axis=1).T if column.any()}


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("name", DATA)
def test_sampled_patterns_are_distinct_and_off_ties(name: str, bias: bool) -> None:
    X = DATA[name]
    before = X.copy()
    gates = cnn.sample_gates(X, 40, bias=bias)
    assert np.array_equal(X, before)
    data = np.hstack([X, np.ones((X.shape[0], 1))]) if bias else X
    live = data.any(axis=1)
    assert 1 <= len(gates) <= 40
    assert gates.vectors.shape == (data.shape[1], len(gates))
    assert gates.patterns.dtype == np.bool_
    assert np.array_equal(gates.patterns, data @ gates.vectors >= 0.0)
    assert gates.patterns[live].any(axis=0).all()
    assert len({column.tobytes() for column in gates.patterns.T}) == len(gates)
    unit = data[live] / np.abs(data[live]).max(axis=1)[:, None]
    assert np.all(np.abs(unit @ gates.vectors) > 1e-10 * np.linalg.norm(gates.vectors, axis=0))


@pytest.mark.parametrize("name", ["one row", "one feature", "zero rows", "duplicated rows", "integer grid"])
def test_a_large_request_meets_every_common_pattern_and_says_how_many_there_are(name: str) -> None:
    X = DATA[name]
    gates = cnn.sample_gates(X, 1000)
    live = X.any(axis=1)
    found = {column.tobytes() for column in gates.patterns[live].T}
    assert found == patterns_of_random_directions(X)
    assert gates.description.startswith(f"the {len(gates)} sampled gates (1000 were asked for")


@pytest.mark.parametrize("n", [2, 3, 5])
def test_nothing_is_looked_for_once_all_patterns_are_found(n: int) -> None:
    """Lines part n points of a plane in 2 n ways; where one of them has no active sample, it is missed."""
    angles = np.pi * (2.0 * np.arange(n) / n if n > 2 else np.array([0.0, 0.7]))
    gates = cnn.sample_gates(np.stack([np.cos(angles), np.sin(angles)], axis=1), 40)
    draws = int(gates.description.split("; ")[1].split()[0])
    assert len(gates) == (2 * n if n > 2 else 3)
    assert (draws < 500) == (n > 2)


def test_a_full_request_is_described_by_its_size() -> None:
    assert cnn.sample_gates(gaussian(30, 4), 25).description == "the 25 sampled gates"


def test_the_same_seed_gives_the_same_bits_and_more_gates_only_append() -> None:
    X = gaussian(30, 4)
    few, again, many = (cnn.sample_gates(X, k, seed=3) for k in (20, 20, 60))
    assert np.array_equal(few.vectors, again.vectors)
    assert np.array_equal(few.patterns, again.patterns)
    assert np.array_equal(few.vectors, many.vectors[:, :20])
    assert not np.array_equal(few.vectors, cnn.sample_gates(X, 20, seed=4).vectors)
    generator = cnn.sample_gates(X, 20, seed=np.random.default_rng(3))
    assert np.array_equal(few.vectors, generator.vectors)
    assert np.array_equal(cnn.sample_gates(X, 20).vectors, cnn.sample_gates(X, 20, seed=0).vectors)


def test_sampling_in_chunks_gives_the_same_gates(monkeypatch: pytest.MonkeyPatch) -> None:
    X = gaussian(50, 4)
    whole = cnn.sample_gates(X, 40)
    monkeypatch.setattr("convexnn_models.gates._CHUNK_ENTRIES", 150)
    parts = cnn.sample_gates(X, 40)
    assert np.array_equal(whole.vectors, parts.vectors)
    assert np.array_equal(whole.patterns, parts.patterns)
    given = cnn.gates_from_vectors(X, whole.vectors)
    assert np.array_equal(given.patterns, whole.patterns)


def test_given_gates_keep_their_clear_bits_and_leave_ties() -> None:
    axes = np.array([[1.0, 0.0, 1.0, 2.0], [0.0, 1.0, -1.0, 0.5]])
    gates = cnn.gates_from_vectors(GRID, axes)
    products, moved = GRID @ axes, GRID @ gates.vectors
    live = GRID.any(axis=1)
    clear = np.abs(products) > 1e-12
    assert np.array_equal(gates.patterns[clear], (products >= 0.0)[clear])
    assert np.all(np.abs(moved[live]) > 1e-13)
    assert np.array_equal(gates.patterns, moved >= 0.0)
    assert np.abs(gates.vectors - axes).max() <= 1e-9 * 3.0
    assert gates.description == "the 4 given gates"


@pytest.mark.parametrize(("n", "d", "gates"), [(3, 300, 2), (300, 3, 2), (3, 2, 300)])
def test_given_gates_may_be_many_or_have_many_features(n: int, d: int, gates: int) -> None:
    X, vectors = gaussian(n, d), gaussian(d, gates, seed=1)
    assert np.array_equal(cnn.gates_from_vectors(X, vectors).patterns, X @ vectors >= 0.0)


def test_tied_samples_become_active_where_that_is_possible() -> None:
    X = np.array([[0.0, 1.0], [0.0, 2.0], [1.0, 0.0]])
    gates = cnn.gates_from_vectors(X, np.array([[1.0], [0.0]]))
    assert gates.patterns[:, 0].tolist() == [True, True, True]


def test_a_gate_leaves_two_ties_at_once_towards_both() -> None:
    X = np.array([[2.0, 0.0, 0.0], [0.0, 5.0, 0.0], [0.0, 0.0, -1.0]])
    gates = cnn.gates_from_vectors(X, np.array([[0.0], [0.0], [4.0]]))
    assert gates.patterns[:, 0].tolist() == [True, True, False]
    moved = gates.vectors[:, 0] - [0.0, 0.0, 4.0]
    assert moved[0] == moved[1] > 0.0
    assert np.linalg.norm(moved) == pytest.approx(0.5e-9 * 4.0, rel=1e-5)  # half of what counts as a tie


def test_a_gate_whose_ties_oppose_each_other_leaves_them_all() -> None:
    """Along the sum of the tied samples the first two would stay where they are."""
    X = np.array([[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    gates = cnn.gates_from_vectors(X, np.array([[0.0], [0.0], [1.0]]))
    products = X @ gates.vectors[:, 0]
    assert np.all(np.abs(products) > 1e-14)
    assert np.array_equal(gates.patterns[:, 0], products > 0.0)
    assert products[0] == -products[1]


def test_gates_from_a_network_are_its_distinct_patterns() -> None:
    X = gaussian(20, 3)
    W1 = gaussian(3, 5, seed=1)
    W1 = np.hstack([W1, 2.0 * W1[:, :2], np.zeros((3, 1))])  # two repeated patterns and a dead neuron
    network = cnn.Network(W1, np.ones((8, 1)))
    gates = cnn.gates_from(network, X)
    assert np.array_equal(gates.patterns, X @ W1[:, :5] >= 0.0)
    assert gates.description == "the 5 gates of the network"
    biased = cnn.Network(W1[:, :5], np.ones((5, 1)), b1=np.linspace(-1.0, 1.0, 5))
    assert np.array_equal(cnn.gates_from(biased, X).patterns, X @ W1[:, :5] + biased.weights.b1 >= 0.0)


def test_distinct_ignores_rows_outside_the_mask_and_complements_on_request() -> None:
    patterns = np.array([[1, 0, 1, 0], [0, 1, 0, 1], [1, 1, 0, 0]], dtype=bool)
    rows = np.array([True, True, False])
    assert distinct(patterns, np.ones(3, dtype=bool)).tolist() == [0, 1, 2, 3]
    assert distinct(patterns, rows).tolist() == [0, 1]
    assert distinct(patterns, rows, mirrored=True).tolist() == [0]


@pytest.mark.parametrize(
    ("slope", "expected"),
    [(0.0, 3), (0.3, 3), (-0.5, 3), (1.5, 4), (-1.0, 2)],
    ids=["relu", "leaky", "flat", "steep", "absolute"],
)
def test_models_drop_exactly_the_redundant_patterns(slope: float, expected: int) -> None:
    """Listed: D, I - D, I, 0 and D again."""
    X = gaussian(9, 2)
    vectors = gaussian(2, 1, seed=5)
    D = X @ vectors >= 0.0
    patterns = np.hstack([D, ~D, np.ones((9, 1), dtype=bool), np.zeros((9, 1), dtype=bool), D])
    gates = Gates(np.zeros((2, 5)), patterns, "the 5 given gates")
    model = cnn.piecewise_linear(X, gates, slope)
    assert model.gates is not None
    assert len(model.gates) == expected
    assert model.gates.description == f"the 5 given gates, {5 - expected} of them redundant"


def test_the_pattern_without_samples_stays_where_nothing_replaces_it() -> None:
    X = gaussian(9, 2)
    D = X[:, :1] >= 0.0
    gates = Gates(np.zeros((2, 2)), np.hstack([D, np.zeros((9, 1), dtype=bool)]), "two gates")
    leaky = cnn.piecewise_linear(X, gates, 0.3)
    assert leaky.gates is gates
    relu = cnn.relu(X, gates)
    assert relu.gates is not None
    assert len(relu.gates) == 1


@pytest.mark.parametrize(
    ("n", "d", "sentence"),
    [
        (5, 3, "made for 6 samples, but X has 5"),
        (7, 3, "made for 6 samples, but X has 7"),
        (6, 2, "the model's features .* are 2"),
        (6, 4, "the model's features .* are 4"),
    ],
)
def test_gates_of_more_or_fewer_samples_or_features_are_refused(n: int, d: int, sentence: str) -> None:
    gates = cnn.sample_gates(gaussian(6, 3), 5)
    with pytest.raises(ValueError, match=sentence):
        cnn.relu(np.resize(gaussian(6, 3), (n, d)), gates)


def test_gates_are_values_that_stay_and_can_be_keys() -> None:
    """Two of them are not compared entry by entry."""
    gates = cnn.sample_gates(gaussian(6, 2), 3)
    again = Gates(gates.vectors.copy(), gates.patterns.copy(), gates.description)
    assert len({gates, again, gates}) == 2
    for name in ("vectors", "patterns", "description"):
        with pytest.raises(AttributeError):
            setattr(gates, name, getattr(again, name))


def test_the_text_of_gates_shows_sizes_not_arrays() -> None:
    assert repr(cnn.sample_gates(gaussian(6, 2), 3)) == (
        "Gates(the 3 sampled gates: vectors (2, 3), patterns (6, 3))"
    )
