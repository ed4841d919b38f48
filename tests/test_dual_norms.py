"""The conditions that penalties and bounds put on a dual direction: against numbers made by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from plain_programs import no_hints, plain, term

from convexnn_solvers.certify.dual_norms import DualNorms
from convexnn_solvers.composite import PenaltyTerm, VariableBlock
from convexnn_solvers.functions.penalties import AbsoluteValue, GroupNorm

Float = NDArray[np.float64]


def test_variables_without_penalty_are_free_or_pay_for_their_box() -> None:
    box = VariableBlock(0, (3,), "box", np.array([-1.0, 0.0, -2.0]), np.array([2.0, 3.0, -1.0]))
    below = VariableBlock(1, (2,), "below", np.zeros(2), None)
    above = VariableBlock(2, (2,), "above", None, np.zeros(2))
    half = VariableBlock(3, (2,), "half", np.zeros(2), np.array([1.0, np.inf]))
    norms = DualNorms(plain((box, below, above, half, VariableBlock(4, (), "bare"))))
    kinds = ([0, 0, 0], [1, 1], [-1, -1], [0, 1], 2)  # allowed, not positive, not negative, zero only
    for found, expected in zip(norms.free, kinds, strict=True):
        np.testing.assert_array_equal(found, expected)
    z = (np.array([1.0, -1.0, -5.0]), np.ones(2), np.ones(2), np.ones(2), np.ones(()))
    assert norms.support(z) == 2.0 + 0.0 + 10.0 + 1.0
    assert norms.ratio(z, no_hints(z)) == 0.0
    assert norms.unprojected(z) == 0.0


@pytest.mark.parametrize(
    ("lower", "upper", "expected"),
    [
        (None, None, 3.0),
        (np.zeros(2), None, 2.0),
        (None, np.zeros(2), 3.0),
        (np.zeros(2), np.zeros(2), 0.0),
        (np.array([0.0, -1.0]), None, 3.0),
        (np.zeros(2), np.ones(2), 2.0),
    ],
)
def test_bounds_at_zero_leave_one_sign(lower: Float | None, upper: Float | None, expected: float) -> None:
    """z = (2, -3): where u >= 0 only positive entries can gain."""
    block = VariableBlock(0, (2,), "x", lower, upper)
    norms = DualNorms(plain((block,), (term(AbsoluteValue(), 1.0),)))
    assert norms.ratio((np.array([2.0, -3.0]),), (None,)) == expected


def test_several_penalties_share_what_there_is_to_take() -> None:
    """l1 of weight 1 takes one from every entry of (3, -1, 4); a group norm of weight 2 has hypot(2, 3)."""
    terms = (term(AbsoluteValue(), 1.0), term(GroupNorm(None), 2.0))
    norms = DualNorms(plain((VariableBlock(0, (3,), "x"),), terms))
    found = norms.ratio((np.array([3.0, -1.0, 4.0]),), (None,))
    assert found == pytest.approx(np.hypot(2.0, 3.0) / 2.0, rel=1e-15)
    assert not norms.homogeneous
    assert DualNorms(plain((VariableBlock(0, (3,), "x"),), terms[:1])).homogeneous


def test_what_no_outer_penalty_reaches_has_its_own_condition() -> None:
    """l1 of weight 1 on (3, -1, 4), a group norm of weight 2 around the first two: 4 and hypot(2, 0) / 2."""
    terms = (
        term(AbsoluteValue(), 1.0),
        replace(term(GroupNorm(None), 2.0), view=lambda v: v[:2], unview=lambda v: np.append(v, 0.0)),
    )
    norms = DualNorms(plain((VariableBlock(0, (3,), "x"),), terms))
    assert norms.ratio((np.array([3.0, -1.0, 4.0]),), (None,)) == 4.0
    assert norms.ratio((np.array([7.0, -1.0, 0.5]),), (None,)) == 3.0
    assert not norms.homogeneous


def test_inner_penalties_take_nothing_from_an_error() -> None:
    """Soft thresholding moves by as much as its argument, so that an error stays one behind it."""
    terms = (term(AbsoluteValue(), 1.0), term(GroupNorm(None), 2.0))
    norms = DualNorms(plain((VariableBlock(0, (3,), "x"),), terms))
    assert norms.unprojected((np.array([3e-9, 0.0, -4e-9]),)) == pytest.approx(2.5e-9)


def test_weights_of_zero_make_free_entries() -> None:
    norms = DualNorms(plain((VariableBlock(0, (2,), "x"),), (term(AbsoluteValue(), [0.0, 2.0]),)))
    assert norms.ratio((np.array([0.0, 3.0]),), (None,)) == 1.5
    np.testing.assert_array_equal(norms.free[0], [2, 0])


def test_weights_that_become_zero_or_positive_are_looked_at_again() -> None:
    """What is kept of one regularisation serves others only while the same entries are free."""
    one = term(AbsoluteValue(), np.array([1.0, 2.0]))
    composite = plain((VariableBlock(0, (2,), "x"),), (one,))
    for weights, free in (([1.0, 2.0], [0, 0]), ([0.0, 2.0], [2, 0]), ([3.0, 1.0], [0, 0])):
        part = replace(composite, penalties=(replace(one, weight=np.array(weights)),))
        assert part.kept is composite.kept
        np.testing.assert_array_equal(DualNorms(part).free[0], free)


def test_other_penalties_views_and_variables_are_looked_at_again() -> None:
    """The first column, or the first row, of either variable."""
    along, across, weight = GroupNorm(0), GroupNorm(1), np.array([1.0, 0.0])
    column, nothing = np.array([[0, 2], [0, 2]]), np.full((2, 2), 2)
    one = PenaltyTerm(along, weight, 0, np.asarray, np.asarray, "penalty")
    composite = plain((VariableBlock(0, (2, 2), "x"), VariableBlock(1, (2, 2), "y")), (one,))
    turned = replace(one, view=np.transpose, unview=np.transpose)
    rows = (replace(one, penalty=across), turned)
    for variable in (0, 1):
        for other, free in (
            (one, column),
            (rows[0], column.T),
            (one, column),
            (rows[1], column.T),
            (one, column),
        ):
            part = replace(composite, penalties=(replace(other, variable=variable),))
            found = DualNorms(part).free
            np.testing.assert_array_equal(found[variable], free)
            np.testing.assert_array_equal(found[1 - variable], nothing)


def test_repair_touches_only_what_has_bounds_or_cones() -> None:
    blocks = (
        VariableBlock(0, (2,), "a"),
        VariableBlock(1, (2,), "b", np.zeros(2), None),
        VariableBlock(2, (2,), "c", None, np.zeros(2)),
    )
    x = tuple(np.array([-1.0, 1.0]) for _ in blocks)
    a, b, c = DualNorms(plain(blocks)).repair(x)
    assert a is x[0]
    np.testing.assert_array_equal(b, [0.0, 1.0])
    np.testing.assert_array_equal(c, [-1.0, 0.0])


def test_penalties_of_weight_zero_ask_nothing() -> None:
    """Neither of a direction nor of an error in one."""
    term = PenaltyTerm(AbsoluteValue(), np.zeros(2), 0, np.asarray, np.asarray, "no penalty")
    norms = DualNorms(plain((VariableBlock(0, (2,), "x"),), (term,)))
    z = (np.array([3.0, -4.0]),)
    assert norms.ratio(z, (None,)) == 0.0
    assert norms.unprojected(z) == 0.0
    assert norms.free[0].tolist() == [2, 2]


@pytest.mark.parametrize("inner", [0.0, 0.5])
def test_entries_are_moved_to_the_nearest_point_of_their_balls(inner: float) -> None:
    """Of two variables with a norm, and a free one between them that stays out of it."""
    blocks = tuple(VariableBlock(k, (size,), "x") for k, size in enumerate((4, 2, 3)))
    outer = np.array(0.8)
    inside = [term(AbsoluteValue(), np.full(blocks[k].shape, inner), k) for k in (0, 2)] if inner else []
    norms = DualNorms(plain(blocks, (*inside, *(term(GroupNorm(0), outer, k) for k in (0, 2)))))
    assert [kinds.tolist() for kinds in norms.penalised_kinds()] == [[3] * 4, [2] * 2, [3] * 3]
    rng, nothing = np.random.default_rng(0), np.zeros(2)

    def ratio(entries: Float) -> float:
        return norms.ratio((entries[:4], nothing, entries[4:]), (None, None, None))

    for size in (0.1, 1.0, 30.0):
        z = size * rng.standard_normal(7)
        nearest, before = norms.nearest_in_balls(z), z.copy()
        assert ratio(nearest) <= 1.0
        np.testing.assert_array_equal(z, before)
        if size == 0.1:
            np.testing.assert_allclose(nearest, z, atol=1e-15)
        for _ in range(20):
            other = rng.standard_normal(7)
            other /= max(ratio(other), 1.0)
            other *= 1.0 if ratio(other) <= 1.0 else 0.0  # nested balls are no multiples of each other
            assert (z - nearest) @ (other - nearest) <= 1e-8 * size
