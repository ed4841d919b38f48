"""What a certificate says about a point: which violation, which words, which sign; all worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import cvxpy as cp
import numpy as np
import pytest
from planted import plant
from shrinkage_points import at, shrinkage

from convexnn_solvers.backends import numpy_backend
from convexnn_solvers.certify.certificate import Certificate, Certifier, certificate
from convexnn_solvers.composite import DualPoint
from convexnn_solvers.gaps import relative_gap
from convexnn_solvers.reading.compiler import compile_problem


def test_the_numbers_at_the_optimum_and_beside_it() -> None:
    problem, x = shrinkage()
    best = at(problem, x, [2.0, -1.0])
    assert best.primal == 4.0
    assert best.dual == pytest.approx(4.0, rel=1e-14)
    assert best.gap is not None
    assert 0.0 <= best.gap <= 1e-14 * 4.0
    assert (best.max_violation, best.repaired, best.note, best.scope) == (0.0, False, "", "")
    away = at(problem, x, [0.0, 0.0])
    assert away.primal == 6.5
    # the residual (3, -2), scaled by 1/3 to fit the unit box: s <theta, a> - s^2 ||theta||^2 / 2
    assert away.dual == pytest.approx(13.0 / 3.0 - 13.0 / 18.0, rel=1e-14)
    assert away.dual is not None
    assert away.gap == away.primal - away.dual
    assert away.relative_gap == (away.primal - away.dual) / 6.5


def test_maximisation_turns_every_number_around() -> None:
    problem, x = shrinkage(maximise=True)
    found = at(problem, x, [0.0, 0.0])
    assert found.primal == -6.5
    assert found.dual == pytest.approx(-(13.0 / 3.0 - 13.0 / 18.0), rel=1e-14)
    assert found.dual is not None
    assert found.gap == found.dual - found.primal
    assert found.relative_gap == (found.dual - found.primal) / 6.5


def test_what_underflow_may_be_all_of_is_not_called_rounding() -> None:
    for tiny in (5e-324, 1e-310):
        assert relative_gap(tiny, 0.0, 1e-300) == 1.0
    assert relative_gap(2e-300, -1e-300, 2e-300) == 0.0
    assert relative_gap(2e-300, 0.0, 1e-300) == 1.0


def test_a_relative_gap_of_nothing_is_zero() -> None:
    x = cp.Variable(2)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x) / 2 + cp.norm1(x)))
    x.value = np.zeros(2)
    found = certificate(problem)
    assert (found.primal, found.dual, found.gap, found.relative_gap) == (0.0, 0.0, 0.0, 0.0)


@pytest.mark.parametrize("unit", [1e-30, 0.1, 1e30])
@pytest.mark.parametrize(
    ("off", "weight", "perfect"),
    [(4e-16, 0.0, True), (1e-14, 0.0, False), (4e-16, 1e-50, False)],
    ids=["rounding", "a miss", "rounding and a penalty"],
)
@pytest.mark.parametrize("power", [1, 2])
def test_a_perfect_fit_is_optimal_up_to_the_rounding_of_its_targets(
    power: int, off: float, weight: float, perfect: bool, unit: float
) -> None:
    """Its value is no number to be relative to; that of a miss or of a penalty, however small, is one."""
    u, b = cp.Variable(name="u"), cp.Variable(name="b")
    loss = cp.norm1 if power == 1 else cp.sum_squares
    problem = cp.Problem(cp.Minimize(loss(b + u - np.full(3, unit)) + cp.abs(u)))
    u.value, b.value = weight * unit, unit * (1.0 + off)
    found = certificate(problem)
    assert found.gap is not None
    assert found.gap > 0.0
    assert found.relative_gap is not None
    assert (found.relative_gap == 0.0) == perfect
    if not perfect:
        assert found.relative_gap >= 0.9
        assert found.rounding < found.gap
    maximised = cp.Problem(cp.Maximize(-problem.objective.expr))
    assert (certificate(maximised).relative_gap == 0.0) == perfect
    shifted = cp.Problem(cp.Minimize(problem.objective.expr + 1e-60))
    assert certificate(shifted).rounding == 0.0


@pytest.mark.parametrize(("off", "perfect"), [(6e-16, True), (1e-14, False)])
def test_a_target_of_zero_is_fitted_to_the_rounding_of_terms_that_cancel(off: float, perfect: bool) -> None:
    """Its own rounding is none, but that of the two ones whose difference it asks for to be zero is."""
    x = cp.Variable(2, name="x")
    problem = cp.Problem(cp.Minimize(cp.sum_squares(np.array([[1.0, 0.0], [1.0, -1.0]]) @ x - [1.0, 0.0])))
    x.value = np.array([1.0, 1.0 + off])
    found = certificate(problem)
    assert found.primal > 0.0
    assert (found.relative_gap == 0.0) == perfect
    assert (found.rounding >= found.primal) == perfect


def test_bounds_are_repaired_and_the_violation_is_that_of_the_point_as_held() -> None:
    x = cp.Variable(2, name="x", bounds=[np.array([0.0, -1.0]), np.array([1.0, 1.0])])
    cost = cp.sum_squares(x - np.array([3.0, -2.0])) / 2 + cp.norm1(x)
    problem = cp.Problem(cp.Minimize(cost))
    found = at(problem, x, [1.25, -1.5])
    assert found.repaired
    assert found.max_violation == 0.5
    assert found.primal == 0.5 * (4.0 + 1.0) + 2.0
    assert found.gap is not None
    inside = at(problem, x, [1.0, -1.0])
    assert not inside.repaired
    assert inside.max_violation == 0.0


def test_candidates_are_judged_one_by_one() -> None:
    problem, x = shrinkage()
    good, poor = DualPoint((np.array([1.0, -1.0]),)), DualPoint((np.array([-1.0, -1.0]),))
    broken = [DualPoint((np.zeros(3),)), DualPoint((np.full(2, np.nan),))]
    far = [9.0, 9.0]
    alone = at(problem, x, far).dual
    assert alone is not None
    assert alone < 3.9
    for duals in ([good], [poor, good], [good, poor], [*broken, good], [good, *broken]):
        found = at(problem, x, far, *duals)
        assert found.dual == pytest.approx(4.0, rel=1e-14)
        ignored = sum(any(d is b for b in broken) for d in duals)
        assert found.note == (
            f"{ignored} dual candidates were ignored: wrong shape or not finite" * (ignored > 0)
        )
        assert found.dual_point is not None
        np.testing.assert_allclose(found.dual_point.thetas[0], [1.0, -1.0], rtol=1e-14)
    np.testing.assert_array_equal(good.thetas[0], [1.0, -1.0])


def test_multipliers_alone_are_tried_with_the_residual() -> None:
    """x[0] == 1: the residual (2, -1) of (1, -1) needs the multiplier that takes its first entry to 1."""
    problem, x = shrinkage(lambda x: x[0] == 1.0)
    value = 0.5 * (4.0 + 1.0) + 2.0
    without = at(problem, x, [1.0, -1.0])
    assert without.dual is not None
    assert without.dual < value - 0.1
    for sign in (1.0, -1.0):
        found = at(problem, x, [1.0, -1.0], DualPoint((), (np.array(sign),)))
        assert found.dual is not None
        assert found.dual <= value * (1.0 + 1e-14)
    best = max(
        at(problem, x, [1.0, -1.0], DualPoint((), (np.array(sign),))).dual or -np.inf for sign in (1.0, -1.0)
    )
    assert best == pytest.approx(value, rel=1e-13)


def test_multipliers_of_pattern_cones_alone_go_with_the_residual() -> None:
    """They spare projections and take the place of nobody's thetas; a second offer takes the first one's."""
    planted = plant(1, cones=True, shape=(8, 2, 4))
    composite = planted.composite()
    judge, point = Certifier(composite), planted.point
    rng = np.random.default_rng(0)
    poor = DualPoint((np.sign(planted.theta[:, 0]),))
    offers = [DualPoint((), tuple(rng.random((8, 4)) for _ in composite.constraints)) for _ in range(2)]
    assert len(composite.constraints) == 2
    for candidates in ([poor, offers[0]], [offers[0], poor], [*offers, poor], [offers[1], poor, offers[0]]):
        found = judge.certify(point, candidates)
        assert found.dual == pytest.approx(planted.value, rel=1e-12)
        assert found.dual_point is not None
        np.testing.assert_allclose(found.dual_point.thetas[0], planted.theta[:, 0], rtol=1e-9, atol=1e-12)
        latest = [offer for offer in candidates if not offer.thetas][-1]
        for own, given in zip(found.dual_point.multipliers, latest.multipliers, strict=True):
            assert own is not None
            assert given is not None
            np.testing.assert_allclose(own, given, rtol=1e-9)
    quick = judge.certify(point, [poor], thorough=False)
    assert quick.dual is not None
    assert quick.dual < 0.9 * planted.value


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_another_bound_replaces_the_first(sign: float) -> None:
    note = "up to the violation of a by 1.0e-07; no lower bound: no dual candidate"
    point = DualPoint((np.ones(1),))
    bare = Certificate(4.0 * sign, None, None, None, 0.5, "everything", True, note, point, excess=1.0)
    found = bare.with_bound(3.0 * sign, sign)
    assert (found.primal, found.dual, found.gap, found.relative_gap) == (4.0 * sign, 3.0 * sign, 1.0, 0.25)
    assert found.note == "up to the violation of a by 1.0e-07"
    assert found.dual_point is None  # it proves the other bound
    assert (found.max_violation, found.scope, found.repaired, found.excess) == (0.5, "everything", True, 1.0)
    close = replace(bare, rounding=4.0)
    assert close.with_bound(3.0 * sign, sign).relative_gap == 0.0
    outside = replace(bare, excess=1.1).with_bound(3.0 * sign, sign)
    assert (outside.dual, outside.gap, outside.relative_gap) == (3.0 * sign, None, None)


def test_certificates_stay_as_they_were_proved() -> None:
    found = Certificate(2.0, None, None, None, 1e-3, "everything")
    for name in ("primal", "dual", "gap", "max_violation"):
        with pytest.raises(AttributeError):
            setattr(found, name, 0.0)


def test_the_sentence_leaves_out_what_is_not_known() -> None:
    full = Certificate(2.0, 1.0, 1.0, 0.5, 0.0, "for the 5 given gates", note="a note")
    assert str(full) == (
        "objective 2, bound 1, gap 1.00e+00 (relative 5.00e-01), max violation 0.0e+00, "
        "for the 5 given gates, a note"
    )
    bare = Certificate(2.0, None, None, None, 1e-3, "everything")
    assert str(bare) == "objective 2, max violation 1.0e-03, for everything"


@pytest.mark.parametrize(("name", "dtype"), [("torch", "float64"), ("jax", "float64"), ("numpy", "float32")])
def test_only_float64_numpy_is_judged(name: str, dtype: str) -> None:
    problem, _ = shrinkage()
    composite = compile_problem(problem, numpy_backend()).composite()
    elsewhere = replace(composite.backend, name=name, dtype=np.dtype(dtype))
    with pytest.raises(ValueError, match="NumPy backend in float64"):
        Certifier(replace(composite, backend=elsewhere))
