"""What is remembered of projections, piece by piece: sizes, polar directions and bases worked out by hand."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from convexnn_solvers.cones import factors as cone_factors
from convexnn_solvers.cones import memory as cone_memory
from convexnn_solvers.cones.factors import empty_factors, factor_bytes
from convexnn_solvers.cones.memory import ConeMemory, complements
from convexnn_solvers.cones.projections import PatternCones

Float = NDArray[np.float64]
needs_numba = pytest.mark.skipif(importlib.util.find_spec("numba") is None, reason="numba is not installed")
COMPILED = pytest.param(True, marks=needs_numba, id="machine code")
# A block of 30 rows, 5 features and at most 3 active rows: numbers of 8 bytes.
EACH = 8 * (3 * 5 + 3 * 3 + 30 + 5)


@pytest.mark.parametrize(
    ("most", "slots"),
    [(1e9, 5), (5 * EACH, 5), (3 * EACH + 1, 3), (3 * EACH, 3), (3 * EACH - 1, 2), (EACH - 1, 1), (0, 1)],
)
def test_as_many_blocks_are_remembered_as_fit(
    most: float, slots: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cone_factors, "_MOST_BYTES", most)
    found = empty_factors(5, 30, 5, 3)
    np.testing.assert_array_equal(found.block, np.full(slots, -1))
    np.testing.assert_array_equal(found.seen, np.full(slots, -1))
    shapes = (slots, 3, 5), (slots, 3, 3), (slots, 30), (slots, 5)
    large = found.basis, found.triangle, found.slack, found.centre
    assert tuple(a.shape for a in large) == shapes
    assert found.coefficients.shape == found.solution.shape == (3,)
    assert factor_bytes(5, 30, 5, 3) == sum(a.nbytes for a in large) == slots * EACH


def test_the_memory_of_factors_is_thirty_two_megabytes() -> None:
    assert factor_bytes(10**9, 30, 5, 3) <= 2**25 < factor_bytes(10**9, 30, 5, 3) + EACH


@needs_numba
def test_polar_directions_are_sums_of_signed_rows() -> None:
    """Block 2 of gate 1 and block 0 of gate 0; lists end at -1, whatever follows; block 1 is not asked."""
    from convexnn_solvers.cones.kernel import polar_directions

    unit = np.array([[1.0, 0.0], [0.6, 0.8], [0.0, -1.0]])
    bits = np.array([[True, True, False], [False, True, True]])
    rows = np.array([[2, 0, -1, 1], [1, 1, 1, 1], [0, 1, 2, -1]])
    rho = np.array([[3.0, 5.0, 7.0, 9.0], [1.0, 1.0, 1.0, 1.0], [2.0, 4.0, 8.0, 0.0]])
    polar = np.full((3, 2), 9.0)
    polar_directions(unit, bits, np.array([1, 0]), np.array([2, 0]), rows, rho, polar)
    first = -3.0 * unit[2] + 5.0 * unit[0]
    third = -2.0 * unit[0] + 4.0 * unit[1] + 8.0 * unit[2]
    np.testing.assert_allclose(polar, [first, [9.0, 9.0], third], rtol=1e-15)


@needs_numba
@pytest.mark.parametrize("tilt", [0.0, 1e-8, 0.3])
@pytest.mark.parametrize("active", range(5))
def test_bases_are_completed_to_all_of_the_space(active: int, tilt: float) -> None:
    """Rows along axes or almost: unit vectors that are spanned already must not be taken."""
    from convexnn_solvers.cones.kernel import complete_bases

    rng = np.random.default_rng(active)
    frames = np.stack([np.linalg.qr(np.eye(4) + tilt * rng.standard_normal((4, 4)))[0] for _ in range(3)])
    slots, out = np.array([2, 0]), np.full((2, 4, 4 - active), np.nan)
    complete_bases(np.ascontiguousarray(frames), slots, np.full(2, active), out)
    for found, slot in zip(out, slots, strict=True):
        together = np.vstack([frames[slot, :active], found.T])
        np.testing.assert_allclose(together @ together.T, np.eye(4), rtol=0.0, atol=4e-15)


@needs_numba
def test_bases_are_completed_by_a_unit_vector_that_is_not_spanned_yet() -> None:
    """The first column found has a large negative entry, and spans the projection of that unit vector."""
    from convexnn_solvers.cones.kernel import complete_bases

    frame = np.array([[[0.6, 0.8, 0.0, 0.0], [0.0, 0.0, 0.6, -0.8]]])
    out = np.full((1, 4, 2), np.nan)
    complete_bases(frame, np.array([0]), np.array([2]), out)
    together = np.vstack([frame[0], out[0].T])
    np.testing.assert_allclose(together @ together.T, np.eye(4), rtol=0.0, atol=4e-15)


def remembered(compiled: bool, n: int = 60, d: int = 5) -> tuple[Float, Any, ConeMemory]:
    X = np.random.default_rng(0).standard_normal((n, d))
    patterns = X @ np.random.default_rng(1).standard_normal((d, 6)) >= 0.0
    cones = PatternCones(X, patterns, compiled=compiled)
    return X, cones, ConeMemory(cones, np.arange(6))


@pytest.mark.parametrize("compiled", [False, COMPILED])
@pytest.mark.parametrize(("n", "d"), [(60, 5), (3, 5), (4, 1)])
def test_at_first_nothing_is_active(compiled: bool, n: int, d: int) -> None:
    _, _, memory = remembered(compiled, n, d)
    np.testing.assert_array_equal(memory.polar, np.zeros((6, d)))
    assert memory.active(np.arange(6)).rows.shape == (6, 0)
    held = memory.packed()
    assert held["rows"].shape == held["rho"].shape == (6, min(n, d))
    assert np.all(held["rows"] == -1)
    np.testing.assert_array_equal(held["rho"], 0.0)
    np.testing.assert_array_equal(held["scale"], 0.0)


@pytest.mark.parametrize("compiled", [False, COMPILED])
def test_packed_memories_go_on_where_they_were(compiled: bool) -> None:
    X, cones, memory = remembered(compiled)
    everything, rng = np.arange(6), np.random.default_rng(2)
    Z = rng.standard_normal((5, 6))
    memory.project(Z, everything)
    other = ConeMemory(cones, everything)
    other.project(rng.standard_normal((5, 6)), everything)  # what it knew before is forgotten
    packed = memory.packed()
    other.restore(packed)
    for array in packed.values():
        array[:] = 0
    own, restored = memory.active(everything), other.active(everything)
    assert np.unique(np.sum(own.rows >= 0, axis=1)).size > 1
    assert own.rows.min() == -1  # what pads the shorter ones
    np.testing.assert_array_equal(restored.rows, own.rows)
    np.testing.assert_array_equal(restored.multipliers, own.multipliers)
    np.testing.assert_array_equal(other.polar, memory.polar)
    for k in range(6):
        rows = own.rows[[k]][:, own.rows[k] >= 0]
        found, expected = other.complements(np.array([k]), rows)[0], complements(X, rows)[0]
        np.testing.assert_allclose(found @ found.T, expected @ expected.T, atol=1e-13)
    near = Z + 1e-3 * rng.standard_normal(Z.shape)
    np.testing.assert_allclose(
        other.project(near, everything), memory.project(near, everything), rtol=0.0, atol=1e-13
    )


@needs_numba
def test_complements_of_the_latest_rows_are_read_from_the_factors(monkeypatch: pytest.MonkeyPatch) -> None:
    """And those of other rows, or of some of the latest, are found anew."""
    X, _, memory = remembered(True)
    asked: list[int] = []

    def counting(data: Float, rows: NDArray[np.intp]) -> Float:
        asked.append(len(rows))
        return complements(data, rows)

    monkeypatch.setattr(cone_memory, "complements", counting)
    everything = np.arange(6)
    memory.project(np.random.default_rng(2).standard_normal((5, 6)), everything)
    rows = memory.active(everything).rows
    counts = np.sum(rows >= 0, axis=1)
    assert 0 < counts.min() < counts.max() == rows.shape[1]
    for k in everything:
        latest = rows[[k], : counts[k]]
        swapped = (latest + 1) % len(X)
        for given, anew in ((latest, 0), (latest[:, :-1], 1), (swapped, 1)):
            found = memory.complements(np.array([k]), given)[0]
            expected = complements(X, given)[0]
            np.testing.assert_allclose(found @ found.T, expected @ expected.T, atol=1e-13)
            assert sum(asked) == anew
            asked.clear()


@pytest.mark.parametrize("compiled", [False, COMPILED])
@pytest.mark.parametrize("other", [(), (1,), (0, 3), tuple(range(6))])
def test_complements_of_blocks_with_different_counts_are_padded(
    compiled: bool, other: tuple[int, ...]
) -> None:
    """Whether their rows are those of the latest projection or, for ``other`` blocks, are not."""
    X, _, memory = remembered(compiled)
    everything = np.arange(6)
    memory.project(np.random.default_rng(2).standard_normal((5, 6)), everything)
    rows = memory.active(everything).rows
    for k in other:
        rows[k] = np.where(rows[k] >= 0, (rows[k] + 1) % len(X), -1)
    counts = np.sum(rows >= 0, axis=1)
    assert counts.min() < counts.max()
    bases = memory.complements(everything, rows)
    assert bases.shape == (6, 5, 5 - counts.min())
    for found, listed, count in zip(bases, rows, counts, strict=True):
        basis, padding = found[:, : 5 - count], found[:, 5 - count :]
        assert not padding.any()
        np.testing.assert_allclose(basis.T @ basis, np.eye(5 - count), atol=1e-13)
        np.testing.assert_allclose(X[listed[:count]] @ basis, 0.0, atol=1e-12)


@needs_numba
@pytest.mark.parametrize("latest", [0, 3])
def test_complements_of_blocks_that_share_a_place_are_each_their_own(
    latest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks 0 and 3 of a memory with three places: the one projected last has the factor."""
    monkeypatch.setattr(cone_factors, "_MOST_BYTES", 3 * 8 * (5 * 5 + 5 * 5 + 60 + 5))
    X, _, memory = remembered(True)
    Z = np.random.default_rng(2).standard_normal((5, 6))
    for block in (3 - latest, latest):
        memory.project(Z[:, [block]], np.array([block]))
    for block in (0, 3):
        (rows,) = memory.active(np.array([block])).rows
        given = rows[rows >= 0][None]
        assert given.size
        found, expected = memory.complements(np.array([block]), given)[0], complements(X, given)[0]
        np.testing.assert_allclose(found @ found.T, expected @ expected.T, atol=1e-13)


def test_complements_do_not_depend_on_the_order_of_rows() -> None:
    X = np.random.default_rng(3).standard_normal((9, 5))
    found = complements(X, np.array([[4, 1, 7], [2, 0, 8]]))
    assert found.shape == (2, 5, 2)
    assert found.flags.c_contiguous
    np.testing.assert_array_equal(found, complements(X, np.array([[7, 4, 1], [0, 8, 2]])))
