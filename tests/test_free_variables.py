"""What a dual condition that is met to rounding only costs a bound: free variables are as large as they must.

Conditions are missed on purpose, or by the rounding of ill-conditioned constraints, where the objective is
all but nothing beside its terms; the truth is worked out by hand, in exact arithmetic.
"""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
from dense_map import DenseMap
from numpy.typing import NDArray

from convexnn_solvers.backends import numpy_backend
from convexnn_solvers.certify import free_columns
from convexnn_solvers.certify.certificate import certificate
from convexnn_solvers.certify.free_columns import collect_free_variables
from convexnn_solvers.certify.reach import Offsets, reach_of_constraints, reach_of_equalities, reach_of_losses
from convexnn_solvers.composite import Composite, ConstraintTerm, DualPoint, LossTerm, VariableBlock
from convexnn_solvers.functions.constraint_cones import NONNEGATIVE, ZERO
from convexnn_solvers.functions.losses import Huber, SumSquares

Float = NDArray[np.float64]
EPS = float(np.finfo(np.float64).eps)


@pytest.mark.parametrize(("coefficient", "share"), [(0.0, 5e-13), (1e-4, 4e-13), (1.0, -9e-13)])
def test_conditions_missed_by_rounding_cost_as_much_as_constraints_make_of_it(
    coefficient: float, share: float
) -> None:
    """x >= 1e8, and all but nothing of the objective is left there: 1e-12 times 1e8 is not nothing."""
    x = cp.Variable()
    smooth = coefficient * cp.square(1e-4 * x)
    at_optimum = coefficient * 1e8 if coefficient else 1e8
    problem = cp.Problem(cp.Minimize((smooth if coefficient else x) - at_optimum), [x >= 1e8])
    x.value = 1e8
    slope = 2.0 * coefficient if coefficient else 1.0
    thetas = (np.array(-1e4 * slope),) if coefficient else ()
    for size in (1.0, 1.0 + share, 1.0 - share):
        found = certificate(problem, [DualPoint(thetas, (np.array(slope * size),))])
        assert found.dual is not None
        assert -1e-3 <= found.dual <= 0.0


@pytest.mark.parametrize("linked", ["epigraph", "equal to a bounded one", "equal to a constrained one"])
@pytest.mark.parametrize("share", [0.0, 1e-12, -1e-12, 1.9e-12])
def test_conditions_missed_by_rounding_cost_as_much_as_linked_variables_make_of_it(
    linked: str, share: float
) -> None:
    """t is as large as x, in a constraint without an offset, and the objective is 1 where it is 5e7."""
    point = np.array([3e7, 4e7, 1.0])
    size = float(np.linalg.norm(point))
    t, x = cp.Variable(), cp.Variable(3)
    constraints: list[Any] = [cp.SOC(t, x), x == point]
    duals: list[Any] = [np.append(1.0, -point / size)[:, None], -point / size]
    if linked != "epigraph":
        bounded = linked == "equal to a bounded one"
        x = cp.Variable(bounds=[size, None]) if bounded else cp.Variable()
        constraints, duals = [t == x], [np.array(-1.0)]
        if not bounded:
            constraints, duals = [*constraints, x >= size], [*duals, np.array(1.0)]
    t.value, x.value = size, point if linked == "epigraph" else size
    problem = cp.Problem(cp.Minimize(t - size + 1.0), constraints)
    found = certificate(problem, [DualPoint((), tuple((1.0 + share) * dual for dual in duals))])
    assert found.dual is not None
    assert 1.0 - 1e-3 <= found.dual <= 1.0


@pytest.mark.parametrize("links", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("share", [0.0, 9e-13, -9e-13])
def test_chains_of_equal_variables_are_as_long_as_they_are(links: int, share: float) -> None:
    """The last of them is 1e8, the objective 1: beyond three links a bound was 1 + 9e-5."""
    x: list[Any] = [cp.Variable() for _ in range(links + 1)]
    for variable in x:
        variable.value = 0.0
    chain: list[Any] = [after == before for before, after in pairwise(x)]
    problem = cp.Problem(cp.Minimize(x[-1] - 1e8 + 1.0), [*chain, x[0] >= 1e8])
    slope = np.array(1.0 + share)
    found = certificate(problem, [DualPoint((), (*(-slope for _ in chain), slope))])
    assert found.dual is not None
    assert 1.0 - 1e-3 <= found.dual <= 1.0


def almost_parallel(angle: float, equal: bool) -> tuple[Any, list[Any], Float, Float]:
    """x - y = 1 and x = (1 + angle) y (or at least), and the objective x less all but one of its optimum.

    With the point that is optimal to rounding, and the multipliers that are.
    """
    x, y = cp.Variable(), cp.Variable()
    steep = 1.0 + angle
    exact = Fraction(1) + 1 / (Fraction(steep) - 1)
    point = np.array([float(exact), float(exact - 1)])
    problem: Any = cp.Problem(cp.Minimize(x - point[0] + 1.0), [x - y >= 1.0, steep * y - x >= 0.0])
    if equal:
        problem = cp.Problem(problem.objective, [x - y == 1.0, steep * y - x == 0.0])
    mu = np.array([float(exact), float(exact - 1)])
    return problem, [x, y], point, -mu if equal else mu


@pytest.mark.parametrize("angle", [1e-3, 1e-7])
@pytest.mark.parametrize("share", [0.0, 9e-13])
@pytest.mark.parametrize(("equal", "size"), [(True, 1.0), (True, 0.0), (False, 1.0)])
def test_constraints_almost_alike_do_not_lift_the_bound(
    equal: bool, size: float, share: float, angle: float
) -> None:
    """Their multipliers are of size 1/angle, and so are x and y: 1.1 was proved of an optimum of 1.

    Of equalities that shows in their columns, of inequalities in the point that is judged.
    """
    problem, variables, point, mu = almost_parallel(angle, equal)
    optimum = 1.0 + float(1 + 1 / (Fraction(1.0 + angle) - 1) - Fraction(point[0]))
    for variable, value in zip(variables, point, strict=True):
        variable.value = size * value
    rng = np.random.default_rng(0)
    for _ in range(4):
        missed = mu * (1.0 + share * rng.uniform(-1.0, 1.0, 2))
        found = certificate(problem, [DualPoint((), (np.array(missed[0]), np.array(missed[1])))])
        assert found.dual is not None
        assert optimum - 100.0 * (EPS + share) / angle**2 <= found.dual <= optimum


def test_least_fits_of_offsets_reach_as_far_as_their_columns_say() -> None:
    """The worst offsets of norm sqrt(n) against the pseudoinverse, in other units of every column."""
    rng = np.random.default_rng(0)
    C = rng.standard_normal((7, 3)) * np.array([1e-6, 1.0, 1e7])
    inverse = np.linalg.inv(np.linalg.qr(C, mode="r")).T
    R = reach_of_losses(np.insert(C, 1, 0.0, axis=1))
    assert R.shape == (3, 4)
    np.testing.assert_allclose(R[:, 1], 0.0, atol=1e-14)
    for v in rng.standard_normal((20, 3)) / np.array([1e6, 1.0, 1e-7]):
        reached = float(np.linalg.norm(R @ np.insert(v, 1, 0.0)))
        assert reached == pytest.approx(np.sqrt(7.0) * np.linalg.norm(inverse @ v), rel=1e-9)


@pytest.mark.parametrize(("angle", "kept"), [(0.0, 1), (1e-17, 1), (1e-13, 2), (1e-3, 2)])
def test_columns_alike_to_rounding_are_one(angle: float, kept: int) -> None:
    rng = np.random.default_rng(1)
    x = rng.standard_normal(12)
    R = reach_of_losses(np.column_stack([x, x + angle * rng.standard_normal(12)]))
    assert len(R) == kept
    v = np.array([1.0, 1.0])  # the sum of both is what x makes of it, however it is shared
    assert np.linalg.norm(R @ v) == pytest.approx(np.sqrt(12.0) / np.linalg.norm(x), rel=1e-2)
    apart = np.linalg.norm(R @ np.array([1.0, -1.0]))
    assert (apart * angle >= 0.5) if kept == 2 else (apart <= 1e-6)


@pytest.mark.parametrize("columns", [np.zeros((3, 2)), np.empty((0, 2))], ids=["zero", "no rows"])
def test_no_columns_reach_nothing(columns: Float) -> None:
    assert reach_of_losses(columns).shape == (0, 2)
    assert np.all(reach_of_equalities(columns, np.ones(len(columns))) == 0.0)


def test_equalities_reach_as_far_as_their_solution() -> None:
    """Square ones have one, whatever the units of rows and columns; and rows without offsets add nothing."""
    rng = np.random.default_rng(2)
    E = np.array([[1e-5], [1.0], [1e6]]) * rng.standard_normal((3, 3)) * np.array([1e4, 1e-3, 1.0])
    offsets = np.array([2.0, 0.0, 3.0])
    R = reach_of_equalities(E, offsets)
    expected = (np.linalg.inv(E) * offsets).T[[0, 2]]
    np.testing.assert_allclose(R, expected, rtol=1e-9)
    twice = reach_of_equalities(np.ones((2, 2)), np.ones(2))
    np.testing.assert_allclose(twice, np.full((2, 2), 0.25), rtol=1e-14)
    wide = reach_of_equalities(np.array([[0.0, 0.0, 0.0], [3.0, 0.0, 4.0]]), np.array([7.0, 5.0]))
    np.testing.assert_allclose(wide, [[0.0, 0.0, 0.0], [5.0 / 6.0, 0.0, 5.0 / 8.0]], rtol=1e-14)


def offsets_of(constraints: tuple[float, ...], bounds: list[float]) -> Offsets:
    return Offsets(0.0, constraints, np.empty(0), np.array(bounds))


def test_constraints_hand_sizes_on() -> None:
    """8/4 by its own offset, then 2, then in the circle of two once more, and never again."""
    blocks = [
        np.array([[2.0, 0.0, 0.0], [-4.0, 0.0, 0.0]]),
        np.array([[1.0, -1.0, 0.0]]),
        np.array([[0.0, 0.5, 3.0]]),
    ]
    found = reach_of_constraints(blocks, offsets_of((8.0, 0.0, 0.0), [0.0, 0.0, 0.0]))
    np.testing.assert_allclose(found, [np.sqrt(8.0), np.sqrt(8.0), 1.0 / 3.0], rtol=1e-14)
    bounded = reach_of_constraints(blocks[2:], offsets_of((0.0,), [7.0, 0.0, 6.0]))
    np.testing.assert_allclose(bounded, [7.0, 36.0 * np.sqrt(2.0), np.sqrt(72.0)], rtol=1e-14)
    np.testing.assert_array_equal(reach_of_constraints([], offsets_of((), [1.0, 0.0])), [1.0, 0.0])


def test_chains_that_leave_the_range_of_numbers_end() -> None:
    """Zero times infinity went round for ever."""
    blocks = [np.array([[1e-200, 0.0, 0.0]]), np.array([[1.0, 1e-10, 0.0]]), np.array([[0.0, 1.0, 1e-300]])]
    found = reach_of_constraints(blocks, offsets_of((1e200, 0.0, 0.0), [0.0, 0.0, 0.0]))
    np.testing.assert_array_equal(found, np.finfo(np.float64).max)


def program(*, touched: bool, upper: bool = True) -> tuple[Composite, Float]:
    """Variables a (2, 2) and b () in a squared loss, a Huber loss, an equality and inequalities.

    ``touched``: whether the Huber loss reads free entries. Returned with the dense matrix of all outputs.
    """
    rng = np.random.default_rng(5)
    A = rng.standard_normal((8, 5))
    if not touched:
        A[3:5] = 0.0
    offsets = (np.array([1.0, -4.0, 2.0]), np.array([0.5, 3.0]), np.array([-9.0]), np.array([[6.0, -7.0]]))
    parts = np.split(A, [3, 5, 6])
    affine = DenseMap(tuple((part[:, :4], part[:, 4:]) for part in parts), offsets, ((2, 2), ()))
    low, high = np.array([[-np.inf, -1.0], [-8.0, 0.5]]), np.array([[np.inf, 2.0], [3.0, np.inf]])
    a = VariableBlock(0, (2, 2), "a", low, high if upper else None)
    composite = Composite(
        backend=numpy_backend(),
        variables=(a, VariableBlock(1, (), "b")),
        affine=affine,
        losses=(LossTerm(SumSquares(), 0.5, "squares"), LossTerm(Huber(), 1.0, "huber")),
        penalties=(),
        constraints=(ConstraintTerm(ZERO, (1,), 0, "=="), ConstraintTerm(NONNEGATIVE, (1, 2), 1, ">=")),
        linear=(np.arange(4.0).reshape(2, 2), np.array(10.0)),
        constant=0.0,
        sign=1.0,
        scope="",
    )
    return composite, A


KINDS = (np.array([[2, 0], [1, 3]], dtype=np.int8), np.array(-1, dtype=np.int8))
SIDES = (np.array([[2, 0], [1, 2]], dtype=np.int8), np.array(2, dtype=np.int8))


@pytest.mark.parametrize("touched", [True, False])
@pytest.mark.parametrize("upper", [True, False])
def test_the_columns_of_free_entries_are_those_of_the_program(touched: bool, upper: bool) -> None:
    composite, A = program(touched=touched, upper=upper)
    free = collect_free_variables(composite, KINDS, lambda z: 0.0 * z)
    assert free is not None
    own = A[:, [0, 2, 3, 4]]
    parts = zip((*free.losses, *free.constraints), np.split(own, [3, 5, 6]), strict=True)
    for found, expected in parts:
        np.testing.assert_array_equal(found, expected)
    assert (len(free.losses), len(free.constraints)) == (2, 2)
    np.testing.assert_array_equal(free.linear, [0.0, 2.0, 3.0, 10.0])
    np.testing.assert_array_equal(free.signs, [0, 1, 2, -1])
    assert free.quadratic is not touched
    assert free.composite is composite
    assert free.ball is not None
    assert (free.offsets.losses, free.offsets.constraints) == (4.0, (9.0, 7.0))
    np.testing.assert_array_equal(free.offsets.equalities, [9.0])
    np.testing.assert_array_equal(free.offsets.bounds, [0.0, 8.0, 0.5, 0.0])


def test_nothing_free_is_nothing_to_collect() -> None:
    composite, _ = program(touched=True)
    assert collect_free_variables(composite, tuple(0 * kinds for kinds in KINDS)) is None
    assert collect_free_variables(composite, (KINDS[0], 0 * KINDS[1])) is not None


def test_without_losses_there_are_no_offsets_of_theirs() -> None:
    composite, _ = program(touched=True)
    affine = composite.affine
    assert isinstance(affine, DenseMap)
    alone = replace(affine, matrices=affine.matrices[2:], offsets=affine.offsets[2:])
    free = collect_free_variables(replace(composite, losses=(), affine=alone), KINDS)
    assert free is not None
    assert free.losses == ()
    assert (free.offsets.losses, free.offsets.constraints) == (0.0, (9.0, 7.0))
    assert free.quadratic


def test_as_many_columns_as_may_be_held_are_collected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight outputs, four free entries, three of them of one variable."""
    composite, _ = program(touched=True)
    monkeypatch.setattr(free_columns, "_MAX_ENTRIES", 32)
    assert collect_free_variables(composite, KINDS) is not None
    monkeypatch.setattr(free_columns, "_MAX_ENTRIES", 31)
    with pytest.raises(ValueError, match=r"variable a has no penalty and too many entries \(3\)"):
        collect_free_variables(composite, KINDS)


@pytest.mark.parametrize("unit", [1.0, 1e-3])
def test_a_bound_pays_for_what_is_missed_at_every_size(unit: float) -> None:
    """Conditions missed by r cost |r| times what losses, equalities and constraints ask for, or is held."""
    composite, _ = program(touched=True)
    free = collect_free_variables(replace(composite, linear=(np.zeros((2, 2)), np.zeros(()))), SIDES)
    assert free is not None
    rng = np.random.default_rng(6)
    thetas = (unit * rng.standard_normal(3), unit * rng.standard_normal(2))
    multipliers = (unit * rng.standard_normal(1), unit * np.abs(rng.standard_normal((1, 2))))
    missed = free.residual(thetas, multipliers)
    held = np.array([1e3, 0.0, 2.0, 1e4])
    losses = 4.0 * np.linalg.norm(reach_of_losses(np.concatenate(free.losses)) @ missed)
    equal = np.abs(reach_of_equalities(free.constraints[0], np.array([9.0])) @ missed).sum()
    apart = np.maximum(reach_of_constraints(free.constraints, free.offsets), held)
    expected = losses + equal + np.abs(missed) @ apart
    assert free.leak(thetas, multipliers, -held) == pytest.approx(expected, rel=1e-12)
    zero = tuple(0.0 * t for t in thetas), tuple(0.0 * m for m in multipliers)
    assert free.leak(*zero, held) == 0.0
