"""The scripts about patterns and global optima: what they measure agrees with what is known."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

import convexnn_models as cnn
from benchmarks import enumeration_cost, global_reach, pricing_bounds

ROOT = Path(__file__).resolve().parent.parent


def test_reach_grows_the_data_until_the_time_is_up(capsys: pytest.CaptureFixture[str]) -> None:
    run = global_reach.attempt(30, 2, 0.02, 1e-4, 30.0)
    assert run.certified
    assert run.gap <= 1e-4
    assert not global_reach.attempt(60, 6, 0.001, 1e-9, 0.1).certified
    best = global_reach.largest(2, 0.02, 1e-4, 0.5)
    printed = capsys.readouterr().out.splitlines()
    assert best is None or str(best) in printed


def test_enumeration_counts_what_it_times(tmp_path: Path) -> None:
    rows = enumeration_cost.measured(enumeration_cost.generic, 3, 0.05)
    assert all(count == cnn.count_patterns(n, 3) for n, count, _ in rows)
    few = enumeration_cost.measured(enumeration_cost.integers, 2, 1.0)
    assert few[-1][1] == 8  # lines through the origin and the 3 x 3 grid
    pytest.importorskip("matplotlib")
    enumeration_cost.plot({"generic": rows}, tmp_path / "new" / "cost.png")
    assert (tmp_path / "new" / "cost.png").read_bytes().startswith(b"\x89PNG")


def test_both_upper_bounds_of_the_price_are_above_what_enumeration_finds() -> None:
    rng = np.random.default_rng(4)
    for n, d in ((12, 2), (8, 3)):
        X, theta = rng.standard_normal((n, d)), rng.standard_normal(n)
        exact = cnn.enumerated_price(X, theta)
        found = pricing_bounds.integer_bound(X, theta, exact.upper * 1.01, 20.0)
        assert exact.lower * (1.0 - 1e-6) <= found.upper <= exact.upper * 1.01
        early = pricing_bounds.integer_bound(X, theta, 0.0, 0.0)
        assert early.upper >= exact.lower
    row = pricing_bounds.compared(12, 2, 20.0, 1e-2)
    assert 0.0 <= row.ours.excess(row.lower) <= 1e-2
    assert -1e-6 <= row.program.excess(row.lower) <= 1e-2
    assert len(str(row).split()) == len(["n", "d", "excess", "seconds", "excess", "seconds"])


def test_sampled_optima_are_above_the_global_one_and_the_page_says_by_how_much(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    from benchmarks import sampling_bias

    series = sampling_bias.measured("waves", 1)
    assert series.gap <= 1e-5
    assert series.patterns == np.count_nonzero(cnn.all_gates(sampling_bias.waves()[0]).patterns.any(axis=0))
    assert np.all(series.excess >= 0.0)
    assert np.all(series.excess[0] > 0.5)
    assert np.all(series.excess[-1] < 0.05)
    page = sampling_bias.written([series], "python benchmarks/sampling_bias.py --folder docs")
    kept = (ROOT / "docs/sampling.md").read_text(encoding="utf-8")
    shared = page.splitlines()[:-2]
    assert kept.startswith("\n".join(shared))
    patterns, optimum = re.findall(r"\| waves \| 40 x 2 \| (\d+) \| ([\d.]+)", kept)[0]
    assert int(patterns) == series.patterns
    assert float(optimum) == pytest.approx(series.lower, rel=1e-3)
    sampling_bias.plot([series], tmp_path / "sampling.png")
    assert (tmp_path / "sampling.png").read_bytes().startswith(b"\x89PNG")
