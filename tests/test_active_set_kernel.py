"""Cone projections in machine code: the same points as batched NumPy, from any warm start, and the limits."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import numpy as np
import pytest
from cone_data import AWKWARD
from numpy.typing import NDArray

from convexnn_solvers.cones.active_sets import machine_code
from convexnn_solvers.cones.projections import ActiveRows, PatternCones

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("numba") is None, reason="numba, which compiles the kernel, is not installed"
)

Float = NDArray[np.float64]


DATA = {"generic": np.random.default_rng(0).standard_normal((40, 6)), **AWKWARD}


@pytest.mark.parametrize("name", DATA)
def test_the_kernel_finds_the_points_of_the_batched_method(name: str) -> None:
    X, rng = DATA[name], np.random.default_rng(8)
    patterns = X @ rng.standard_normal((X.shape[1], 15)) >= 0.0
    gates = rng.integers(0, 15, size=60)
    Z = rng.standard_normal((X.shape[1], 60))
    batched = PatternCones(X, patterns, compiled=False).project(Z, gates)
    compiled = PatternCones(X, patterns, compiled=True)
    found = compiled.project(Z, gates)
    np.testing.assert_allclose(found.points, batched.points, rtol=0.0, atol=1e-11)
    assert compiled.slack_violation(found.points, gates).max() <= 1e-13
    np.testing.assert_allclose(found.points, Z + compiled.combine(gates, found), atol=1e-11)
    again = compiled.project(Z, gates, warm=found)
    np.testing.assert_allclose(again.points, found.points, rtol=0.0, atol=1e-12)


def test_any_warm_start_gives_the_same_points() -> None:
    X, rng = DATA["generic"], np.random.default_rng(9)
    cones = PatternCones(X, X @ rng.standard_normal((6, 5)) >= 0.0, compiled=True)
    Z, gates = rng.standard_normal((6, 5)), np.arange(5)
    expected = cones.project(Z, gates).points
    for width in (1, 4, 9):
        warm = ActiveRows(rng.integers(-1, 40, size=(5, width)), rng.exponential(size=(5, width)))
        np.testing.assert_allclose(cones.project(Z, gates, warm).points, expected, atol=1e-12)


def test_small_data_do_not_load_machine_code() -> None:
    X = DATA["generic"]
    machine_code.cache_clear()
    PatternCones(X, np.ones((40, 3), dtype=np.bool_))
    assert machine_code.cache_info().currsize == 0


def test_machine_code_needs_no_folder_to_be_kept_in() -> None:
    from convexnn_solvers.compiled import compiled

    names: dict[str, Any] = {}
    exec("def twice(x): return 2.0 * x", names)  # without a file there is no folder
    numba = importlib.import_module("numba")
    with pytest.raises(RuntimeError, match="cannot cache"):
        numba.njit(cache=True)(names["twice"])
    assert compiled(names["twice"])(1.5) == 3.0
