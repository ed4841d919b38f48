"""Factors that prune: neurons that depend on others go, predictions stay, and the cost does not rise."""

from __future__ import annotations

import numpy as np
import pytest

from convexnn_models.pruning import pruning_factors

DEPENDENT = {
    "wide": np.random.default_rng(0).standard_normal((5, 12)),
    "repeated": np.repeat(np.random.default_rng(1).standard_normal((6, 3)), 3, axis=1),
    "zero columns": np.hstack([np.zeros((4, 2)), np.random.default_rng(2).standard_normal((4, 6))]),
    "scales": np.random.default_rng(3).standard_normal((6, 14)) * np.logspace(-8, 8, 14),
    "rank one": np.outer(np.arange(1.0, 6.0), np.arange(1.0, 9.0)),
    "independent": np.random.default_rng(4).standard_normal((9, 5)),
}


@pytest.mark.parametrize("outputs", [1, 2, 3])
@pytest.mark.parametrize("single", [True, False], ids=["one output each", "dense outputs"])
@pytest.mark.parametrize("case", DEPENDENT)
def test_pruning_factors_leave_independent_neurons(case: str, single: bool, outputs: int) -> None:
    hidden = DEPENDENT[case]
    rng = np.random.default_rng(7)
    m = hidden.shape[1]
    rows = rng.standard_normal((m, outputs))
    if single:
        rows *= np.eye(outputs)[rng.integers(outputs, size=m)]
    cost = rng.random(m) + 0.1
    factors = pruning_factors(hidden, rows, cost)
    scale = np.abs(hidden).max(axis=0) @ np.abs(rows)
    assert np.all(factors >= 0.0)
    assert np.abs(hidden @ (factors[:, None] * rows) - hidden @ rows).max() <= 1e-12 * scale.max()
    assert factors @ cost <= cost.sum() * (1.0 + 1e-12)
    kept = factors > 0.0
    columns = np.einsum("nm,mc->ncm", hidden[:, kept], rows[kept]).reshape(-1, int(kept.sum()))
    columns = columns / np.linalg.norm(columns, axis=0)
    assert np.linalg.matrix_rank(columns) == columns.shape[1] <= hidden.shape[0] * outputs


def test_pruning_of_very_many_neurons_only_enforces_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("convexnn_models.pruning._GRAM_LIMIT", 4)
    hidden = np.repeat(np.eye(6)[:, :3], 2, axis=1)
    assert pruning_factors(hidden, np.ones((6, 1)), np.ones(6)).tolist() == [1.0] * 6
    assert np.count_nonzero(pruning_factors(hidden[:4], np.ones((6, 1)), np.ones(6))) == 3


def test_pruning_takes_the_cheaper_of_two_parallel_neurons() -> None:
    hidden = np.array([[1.0, 2.0], [1.0, 2.0]])
    factors = pruning_factors(hidden, np.ones((2, 1)), np.array([1.0, 0.5]))
    assert factors == pytest.approx([0.0, 1.5])
