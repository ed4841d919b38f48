"""The conditions that pattern cones put on a dual direction: against dense projections of every column."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
from numpy.typing import NDArray
from plain_programs import no_hints, plain, term
from planted import Planted, plant
from scipy.optimize import nnls

from convexnn_solvers.backends import numpy_backend
from convexnn_solvers.certify import dual_norms
from convexnn_solvers.certify.cone_columns import ConeColumns
from convexnn_solvers.certify.dual_norms import DualNorms
from convexnn_solvers.certify.dual_values import cone_multipliers
from convexnn_solvers.composite import ConstraintTerm, PatternCone, PenaltyTerm, VariableBlock
from convexnn_solvers.cones.active_sets import Indices
from convexnn_solvers.cones.projections import ActiveRows, PatternCones, Projection
from convexnn_solvers.functions.constraint_cones import NONNEGATIVE
from convexnn_solvers.functions.penalties import AbsoluteValue, GroupNorm, Penalty
from convexnn_solvers.reading.atoms import pattern_slack
from convexnn_solvers.reading.compiler import compile_problem

Float = NDArray[np.float64]


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

    def counting(
        self: ConeColumns, columns: Float, index: Indices, limits: Float | None
    ) -> tuple[Float, Float]:
        counted.append(index.size)
        return original(self, columns, index, limits)

    monkeypatch.setattr(ConeColumns, "dual_points", counting)
    monkeypatch.setattr(dual_norms, "_FIRST_BATCH", 2)
    monkeypatch.setattr(dual_norms, "_FURTHER", 2)
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


def test_the_first_pattern_cone_of_a_variable_is_the_exact_one() -> None:
    composite = plant(0, cones=True).composite()
    first, second = composite.constraints
    norms = DualNorms(replace(composite, constraints=(first, first, second)))
    assert norms.exact == {0: 0, 1: 2}


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
