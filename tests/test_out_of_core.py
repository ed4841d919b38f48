"""Features on a disk, in a process that is not allowed the memory to hold them or a mask of them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import convexnn_models as cnn
from convexnn_solvers import RFISTA, certificate
from convexnn_solvers.row_blocks import first_not_finite, none_negative, row_blocks


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA counts what it should on Linux only")
def test_a_file_larger_than_the_memory_allowed_is_solved_to_a_certified_gap(tmp_path: Path) -> None:
    from benchmarks.out_of_core import Size, run

    size = Size(samples=60_000, features=256, gates=8, limit=80)
    assert size.file_gb * 1000 > size.limit
    report = run(size, tmp_path)
    assert report["status"] == "optimal"
    assert report["relative_gap"] <= 1e-2
    assert list(tmp_path.iterdir()) == []


def test_a_memory_map_is_read_in_place_and_gives_the_bits_of_the_array(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((300, 5)), rng.standard_normal(300)
    X.tofile(tmp_path / "X")
    mapped = np.memmap(tmp_path / "X", dtype=np.float64, mode="r", shape=X.shape)
    results: list[Any] = []
    for features in (X, mapped):
        gates = cnn.sample_gates(features, 20, seed=1)
        model = cnn.gated_relu(features, gates)
        assert np.shares_memory(model.X, features)
        reg = 0.1 * cnn.lambda_max(model, y)
        problem = model.problem(y, reg)
        problem.solve(solver=RFISTA(tol=1e-3))
        results.append((gates.patterns, reg, problem.value, certificate(problem).dual))
    for plain, from_map in zip(*results, strict=True):
        np.testing.assert_array_equal(plain, from_map)


@pytest.mark.parametrize("shape", [(), (7,), (7, 3), (2, 2**20 + 5)])
def test_the_first_bad_entry_is_found_wherever_it_lies(shape: tuple[int, ...]) -> None:
    array = np.ones(shape)
    assert first_not_finite(array) is None
    assert none_negative(np.atleast_1d(array))
    for position in (tuple(0 for _ in shape), tuple(size - 1 for size in shape)):
        spoiled = array.copy()
        spoiled[position] = np.nan
        assert first_not_finite(spoiled) == position
        spoiled[position] = -1.0
        assert not none_negative(np.atleast_1d(spoiled))


def test_row_blocks_cover_every_row_once() -> None:
    for rows, columns, entries in [(10, 3, 7), (1, 100, 5), (0, 3, 10), (5, 1, 100)]:
        covered = [row for block in row_blocks(rows, columns, entries) for row in range(rows)[block]]
        assert covered == list(range(rows))
