"""The conditions on a dual direction, one by one: against dense projections and numbers made by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
from dense_map import DenseMap
from numpy.typing import NDArray
from planted import Planted, plant
from scipy.optimize import nnls

from convexnn_solvers import dual_norms
from convexnn_solvers.active_sets import Indices
from convexnn_solvers.atoms import pattern_slack
from convexnn_solvers.backends import numpy_backend
from convexnn_solvers.compiler import compile_problem
from convexnn_solvers.composite import Composite, ConstraintTerm, PatternCone, PenaltyTerm, VariableBlock
from convexnn_solvers.cone_columns import ConeColumns
from convexnn_solvers.cones import ActiveRows, PatternCones, Projection
from convexnn_solvers.constraint_cones import NONNEGATIVE
from convexnn_solvers.dual_norms import DualNorms, column_groups
from convexnn_solvers.dual_values import cone_multipliers
from convexnn_solvers.penalties import AbsoluteValue, GroupNorm, Penalty

Float = NDArray[np.float64]
EPS = float(np.finfo(np.float64).eps)


def projected(planted: Planted, z: Float) -> Float:
    """Every column of every output projected on the cone of its gate, by dense least squares."""
    d, out = planted.X.shape[1], np.zeros_like(z)
    for j in range(planted.patterns.shape[1]):
        B = np.where(planted.patterns[:, [j]], 1.0, -1.0) * planted.X
        for k in range(planted.outputs):
            rows = slice(k * d, (k + 1) * d)
            out[rows, j] = z[rows, j] + B.T @ nnls(B.T, -z[rows, j])[0]
    return out


def directions(planted: Planted, seed: int) -> tuple[Float, ...]:
    rng = np.random.default_rng(seed)
    shape = (planted.outputs * planted.X.shape[1], planted.patterns.shape[1])
    return tuple(rng.standard_normal(shape) for _ in planted.signs)


def no_hints(z: tuple[Float, ...]) -> tuple[None, ...]:
    return tuple(None for _ in z)


def plain(blocks: tuple[VariableBlock, ...], penalties: tuple[PenaltyTerm, ...] = ()) -> Composite:
    """A program that has nothing but variables and penalties."""
    shapes = tuple(block.shape for block in blocks)
    return Composite(
        backend=numpy_backend(),
        variables=blocks,
        affine=DenseMap((), (), shapes),
        losses=(),
        penalties=penalties,
        constraints=(),
        linear=tuple(np.zeros(shape) for shape in shapes),
        constant=0.0,
        sign=1.0,
        scope="",
    )


def term(penalty: Penalty, weight: Any, variable: int = 0) -> PenaltyTerm:
    return PenaltyTerm(penalty, np.asarray(weight), variable, np.asarray, np.asarray, "penalty")


CASES = [
    pytest.param(cones, outputs, shared, id=f"{'cones' if cones else 'plain'}-{outputs}-{shared}")
    for cones in (False, True)
    for outputs, shared in ((1, True), (2, True), (2, False))
]


@pytest.mark.parametrize(("cones", "outputs", "shared"), CASES)
@pytest.mark.parametrize("batch", [1, 3, 64])
def test_the_ratio_is_the_largest_projected_norm_over_its_weight(
    cones: bool, outputs: int, shared: bool, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dual_norms, "_FIRST_BATCH", batch)
    for seed in range(4):
        planted = plant(seed, cones=cones, outputs=outputs, shared=shared, shape=(5, 2, 12))
        z = directions(planted, seed)
        parts = [projected(planted, block) if cones else block for block in z]
        quotients = [
            planted.group_norms(part) / weight for part, weight in zip(parts, planted.weights, strict=True)
        ]
        exact = max(float(q.max()) for q in quotients)
        norms = DualNorms(planted.composite())
        found = norms.ratio(z, no_hints(z))
        assert exact * (1.0 - 1e-13) <= found <= exact * (1.0 + 1e-12)
        assert norms.ratio(tuple(3.0 * block for block in z), no_hints(z)) == pytest.approx(3.0 * found)
        unprojected = max(
            float((planted.group_norms(block) / weight).max())
            for block, weight in zip(z, planted.weights, strict=True)
        )
        assert norms.unprojected(z) == pytest.approx(unprojected, rel=1e-14)


@pytest.mark.parametrize("penalty", [AbsoluteValue(), GroupNorm(1)], ids=str)
def test_groups_that_cut_through_cones_are_bounded_by_all_projections(penalty: Penalty) -> None:
    planted = plant(2, cones=True, shape=(5, 2, 12))
    composite = planted.composite()
    terms = tuple(
        replace(t, penalty=penalty, weight=np.asarray(0.3), view=np.asarray, unview=np.asarray)
        for t in composite.penalties
    )
    z = directions(planted, 2)
    exact = max(float(penalty.dual_norms(projected(planted, block), np).max()) / 0.3 for block in z)
    found = DualNorms(replace(composite, penalties=terms)).ratio(z, no_hints(z))
    assert exact * (1.0 - 1e-13) <= found <= exact * (1.0 + 1e-12)


def half_planes(gates: int) -> DualNorms:
    """U (2, gates) with every column in {u : u_1 >= 0}, of norm weight 1, after one number of l1 weight 1."""
    blocks = (VariableBlock(0, (1,), "x"), VariableBlock(1, (2, gates), "U"))
    cone = PatternCone(np.array([[1.0, 0.0]]), np.ones((1, gates), dtype=bool), 1, 1)
    penalties = (term(AbsoluteValue(), 1.0), term(GroupNorm(0), np.ones(gates), 1))
    row = ConstraintTerm(NONNEGATIVE, (1, gates), 0, "cone", cone)
    return DualNorms(replace(plain(blocks, penalties), constraints=(row,)))


@pytest.fixture
def projections(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many columns are projected at a time."""
    counted: list[int] = []
    original = ConeColumns.dual_points

    def counting(self: ConeColumns, columns: Float, index: Indices) -> tuple[Float, Float]:
        counted.append(index.size)
        return original(self, columns, index)

    monkeypatch.setattr(ConeColumns, "dual_points", counting)
    monkeypatch.setattr(dual_norms, "_FIRST_BATCH", 2)
    return counted


def test_hints_save_projections_and_change_nothing(projections: list[int]) -> None:
    """Nine columns (-10, 1) look large and are small once projected, which a hint tells beforehand."""
    z = np.array([[-10.0] * 9 + [5.0], [1.0] * 9 + [0.0]])
    zero = np.zeros(1)
    assert half_planes(10).ratio((zero, z), (None, None)) == pytest.approx(5.0, rel=1e-14)
    assert projections == [2, 4, 4]
    projections.clear()
    hint = np.array([[10.0] * 9 + [0.0], [0.0] * 10])
    assert half_planes(10).ratio((zero, z), (None, hint)) == pytest.approx(5.0, rel=1e-14)
    assert projections == []
    projections.clear()
    assert half_planes(10).ratio((zero, z), (None, 10.0 * hint)) == pytest.approx(5.0, rel=1e-14)  # of no use
    assert projections == [2, 4, 4]


def test_what_was_projected_before_bounds_the_same_and_other_directions(projections: list[int]) -> None:
    """The row that sends (-10, 1) to (0, 1) also tells that (-9, 2) is short; (5, 0) projects on itself."""
    norms = half_planes(10)
    z = np.array([[-10.0] * 9 + [5.0], [1.0] * 9 + [0.0]])
    nothing = (None, None)
    assert norms.ratio((np.zeros(1), z), nothing) == pytest.approx(5.0, rel=1e-14)
    projections.clear()
    z[:, :9] = np.array([[-9.0], [2.0]])
    assert norms.ratio((np.zeros(1), z), nothing) == pytest.approx(5.0, rel=1e-14)
    assert projections == []
    z[0, :9] = 9.0  # inside: what is remembered says nothing
    assert norms.ratio((np.zeros(1), z), nothing) == pytest.approx(np.sqrt(85.0), rel=1e-14)


@pytest.mark.parametrize("unit", [1e-170, 1e-250])
def test_norms_whose_squares_vanish_are_still_norms(unit: float) -> None:
    """In units of 1e-180 what was remembered said that all norms are zero: points of zero were optimal."""
    planted = plant(3, cones=True, outputs=2, shape=(5, 2, 12))
    z = directions(planted, 3)
    norms, tiny = DualNorms(planted.composite()), tuple(unit * block for block in z)
    for _ in range(2):  # with nothing remembered, then with everything
        assert norms.ratio(tiny, no_hints(z)) >= unit * norms.ratio(z, no_hints(z)) * (1.0 - 1e-12)


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_multipliers_that_overflow_bound_nothing(rows: int) -> None:
    """Infinities that cancel are NaN, which is below no number and was no obstacle."""
    planted = plant(3, cones=True, shape=(5, 2, 12))
    composite, z = planted.composite(), directions(planted, 3)
    exact = DualNorms(composite).ratio(z, no_hints(z))
    norms = DualNorms(composite)
    huge = [np.zeros(constraint.shape) for constraint in composite.constraints]
    for mu in huge:
        mu[:rows] = 1.7e308
    with np.errstate(over="ignore", invalid="ignore"):
        hints, moved = norms.hints(huge)
        assert norms.ratio(z, hints) + moved >= exact * (1.0 - 1e-13)


def test_rounding_of_large_multipliers_is_no_penalty_s_to_take() -> None:
    """An inner penalty shrinks directions, by more than the rounding that has to be paid for."""
    rng = np.random.default_rng(0)
    X, V = rng.standard_normal((6, 3)), cp.Variable((3, 2))
    patterns = X @ rng.standard_normal((3, 2)) >= 0.0
    objective = cp.sum_squares(X @ V) + 0.8 * cp.sum(cp.norm(V, 2, axis=0))
    problem = cp.Problem(cp.Minimize(objective), [pattern_slack(X, patterns, V) >= 0])
    composite = compile_problem(problem, numpy_backend()).composite()
    inner = PenaltyTerm(AbsoluteValue(), np.asarray(0.5), 0, np.asarray, np.asarray, "l1")
    both = replace(composite, penalties=(*composite.penalties, inner), kept={})
    _, moved = DualNorms(both).hints([np.full((6, 2), 1e8)])
    assert 1e-10 <= moved <= 1e-5


def test_what_cannot_exceed_the_largest_so_far_is_not_projected(projections: list[int]) -> None:
    norms = half_planes(20)
    z = np.zeros((2, 20))
    z[0] = -np.linspace(2.0, 0.1, 20)  # every projection is zero
    assert norms.ratio((np.array([1.55]), z), (None, None)) == 1.55
    assert projections == [2, 3]  # 2.0, 1.9, and of the next four those above 1.55: 1.8, 1.7, 1.6
    projections.clear()
    assert norms.ratio((np.array([2.0]), z), (None, None)) == 2.0
    assert projections == []


def test_columns_are_the_outputs_one_after_the_other() -> None:
    rng = np.random.default_rng(0)
    X, patterns = rng.standard_normal((4, 3)), rng.random((4, 5)) < 0.5
    columns = ConeColumns(PatternCone(X, patterns, 2, 0))
    block = rng.standard_normal((6, 5))
    split = columns.split(block)
    assert split.shape == (3, 10)
    for k in range(2):
        for j in range(5):
            np.testing.assert_array_equal(split[:, 5 * k + j], block[3 * k : 3 * k + 3, j])
            assert columns.gates[5 * k + j] == j
    np.testing.assert_array_equal(columns.join(split), block)


def test_hints_are_what_the_rows_pull_of_every_output() -> None:
    rng = np.random.default_rng(1)
    X, patterns, rho = rng.standard_normal((4, 3)), rng.random((4, 5)) < 0.5, rng.random((2, 4, 5))
    hint, _ = ConeColumns(PatternCone(X, patterns, 2, 0)).hint(rho.reshape(8, 5))
    for k in range(2):
        pulled = X.T @ (np.where(patterns, 1.0, -1.0) * rho[k])
        np.testing.assert_allclose(hint[3 * k : 3 * k + 3], pulled, rtol=0.0, atol=1e-14)


def test_projection_keeps_what_is_inside_bit_by_bit() -> None:
    columns = ConeColumns(PatternCone(np.array([[1.0, 0.0]]), np.array([[True, False]]), 1, 0))
    inside = np.array([[0.3, -0.7], [0.1, 0.2]])
    np.testing.assert_array_equal(columns.project(inside), inside)
    tiny = np.array([[-16.0 * EPS, 0.5], [1.0, 1.0]])  # outside by rounding, and outside
    np.testing.assert_array_equal(columns.project(tiny), [[-16.0 * EPS, 0.0], [1.0, 1.0]])
    assert columns.project(np.array([[-128.0 * EPS, 0.0], [1.0, 1.0]]))[0, 0] == 0.0


def test_the_rounding_of_a_dual_point_is_bounded_by_its_terms() -> None:
    """z = (-3, 0) needs rho = 1.5 on the row (2, 0): terms of sizes 3 and 1.5 * 2, and three of them."""
    columns = ConeColumns(PatternCone(np.array([[2.0, 0.0]]), np.array([[True, False]]), 1, 0))
    points, error = columns.dual_points(np.array([[-3.0, -3.0], [0.0, 4.0]]), np.array([0, 1]))
    np.testing.assert_allclose(points, [[0.0, -3.0], [0.0, 4.0]], atol=1e-15)
    expected = [2.0 * EPS * np.sqrt(3.0) * (3.0 + 3.0), 2.0 * EPS * np.sqrt(2.0) * 5.0]
    np.testing.assert_allclose(error, expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("penalty", "shared", "labels"),
    [
        (GroupNorm(0), True, [0, 1, 2, 0, 1, 2]),
        (GroupNorm(1), False, [0, 1, 2, 3, 4, 5]),
        (GroupNorm(None), True, [0] * 6),
        (GroupNorm(1), True, None),
        (AbsoluteValue(), True, None),
    ],
)
def test_the_group_of_each_column(penalty: Penalty, shared: bool, labels: list[int] | None) -> None:
    columns = ConeColumns(PatternCone(np.ones((1, 2)), np.ones((1, 3), dtype=bool), 2, 0))
    shape = (4, 3) if shared else (2, 2, 3)
    one = PenaltyTerm(
        penalty, np.ones(()), 0, lambda U: np.reshape(U, shape), lambda U: np.reshape(U, (4, 3)), ""
    )
    found = column_groups(one, columns)
    assert (found is None) == (labels is None)
    if found is not None:
        np.testing.assert_array_equal(found, labels)


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


def test_the_first_pattern_cone_of_a_variable_is_the_exact_one() -> None:
    composite = plant(0, cones=True).composite()
    first, second = composite.constraints
    norms = DualNorms(replace(composite, constraints=(first, first, second)))
    assert norms.exact == {0: 0, 1: 2}


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


@pytest.mark.parametrize("outputs", [1, 2])
def test_expected_multipliers_are_where_projections_begin_and_change_nothing(
    outputs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted = plant(1, cones=True, outputs=outputs, shared=False, shape=(5, 2, 12))
    composite, z = planted.composite(), directions(planted, 1)
    norms, rng = DualNorms(composite), np.random.default_rng(4)
    exact = norms.ratio(z, no_hints(z))
    given: list[Float | None] = [None for _ in composite.constraints]
    for variable, position in norms.exact.items():
        columns = norms.columns[variable]
        active = columns.polar(columns.split(z[variable]))
        given[position] = cone_multipliers(columns, active).reshape(composite.constraints[position].shape)
    started: list[Projection] = []
    original = PatternCones.project

    def watched(self: PatternCones, Z: Any, gates: Any, warm: ActiveRows | None = None) -> Projection:
        found = original(self, Z, gates, warm)
        assert warm is not None
        if warm.rows.size:
            assert [set(row[row >= 0]) for row in warm.rows] == [set(row[row >= 0]) for row in found.rows]
            started.append(found)
        return found

    again = DualNorms(planted.composite())
    with monkeypatch.context() as patch:
        patch.setattr(PatternCones, "project", watched)
        hints, _ = again.hints(given)
        assert hints == tuple(None for _ in z)  # the start says as much
        assert again.ratio(z, hints) == pytest.approx(exact, rel=1e-12)
        for variable, columns in again.columns.items():
            columns.polar(columns.split(z[variable]))
    assert len(started) == len(again.columns)
    for _ in range(5):
        wrong = [None if m is None else np.clip(rng.standard_normal(m.shape) - 0.8, 0.0, None) for m in given]
        hints, rounding = again.hints(wrong)
        assert again.ratio(z, hints) == pytest.approx(exact, rel=1e-12)
        assert 0.0 <= rounding < 1e-12


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
