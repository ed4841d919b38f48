"""Losses and penalties, one row each: against CVXPY, Fenchel-Young, Moreau, differences, torch."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any, NamedTuple

import cvxpy as cp
import numpy as np
import pytest
from numpy.typing import NDArray

from convexnn_solvers.backends import Float64Array, torch_backend
from convexnn_solvers.functions.losses import (
    Exponential,
    Huber,
    LogSumExp,
    Loss,
    Softplus,
    Square,
    SquaredHinge,
    SumSquares,
)
from convexnn_solvers.functions.nonsmooth_losses import Maximum
from convexnn_solvers.functions.penalties import AbsoluteValue, GroupNorm, NuclearNorm, Penalty
from convexnn_solvers.functions.tilted import Tilted

SHAPE = (5, 3)
huber: Any = cp.huber
ENTRIES = np.random.default_rng(1).random(SHAPE) + 0.1
TILT = np.random.default_rng(2).standard_normal(SHAPE)


class LossRow(NamedTuple):
    loss: Loss
    atom: Callable[[Any], Any]  # the same loss in CVXPY
    weights: tuple[Any, ...]
    inside: Callable[[Float64Array, Any], Float64Array]  # maps any array into the conjugate's domain
    outside: Callable[[Any], Float64Array | None]  # a point outside the domain, if there is one


def everywhere(v: Float64Array, weight: Any) -> Float64Array:
    return v


def nowhere(weight: Any) -> None:
    return None


def simplex(axis: int | None) -> Callable[[Float64Array, Any], Float64Array]:
    def inside(v: Float64Array, weight: Any) -> Float64Array:
        positive = np.exp(v)
        total = np.sum(positive, axis=axis, keepdims=True)
        spread = np.reshape(np.broadcast_to(weight, np.sum(v, axis=axis).shape), total.shape)
        shares: Float64Array = positive / total * spread
        return shares

    return inside


LOSSES: dict[str, LossRow] = {
    "sum of squares": LossRow(SumSquares(), cp.square, (0.3,), everywhere, nowhere),
    "square": LossRow(Square(), cp.square, (0.3, ENTRIES), everywhere, nowhere),
    "huber": LossRow(
        Huber(0.8),
        lambda q: huber(q, 0.8),
        (0.3, ENTRIES),
        lambda v, w: 1.6 * w * np.tanh(v),
        lambda w: np.full(SHAPE, 1.7 * np.max(w)),
    ),
    "logistic": LossRow(
        Softplus(),
        cp.logistic,
        (0.3, ENTRIES),
        lambda v, w: w / (1.0 + np.exp(-v)),
        lambda w: np.full(SHAPE, 1.1 * np.max(w)),
    ),
    "squared hinge": LossRow(
        SquaredHinge(),
        lambda q: cp.square(cp.pos(q)),
        (0.3, ENTRIES),
        lambda v, w: np.abs(v),
        lambda w: np.full(SHAPE, -0.1),
    ),
    "log_sum_exp": LossRow(
        LogSumExp(), cp.log_sum_exp, (0.3,), simplex(None), lambda w: np.full(SHAPE, 1.1 * w / 15)
    ),
    "log_sum_exp of rows": LossRow(
        LogSumExp(1),
        lambda q: cp.log_sum_exp(q, axis=1),
        (0.3, ENTRIES[:, 0]),
        simplex(1),
        lambda w: -np.ones(SHAPE),
    ),
    "log_sum_exp of columns": LossRow(
        LogSumExp(0),
        lambda q: cp.log_sum_exp(q, axis=0),
        (ENTRIES[0],),
        simplex(0),
        lambda w: np.ones(SHAPE),
    ),
    "exp": LossRow(
        Exponential(), cp.exp, (0.3, ENTRIES), lambda v, w: np.abs(v), lambda w: np.full(SHAPE, -0.1)
    ),
    "tilted logistic": LossRow(
        Tilted(Softplus(), TILT),
        cp.logistic,
        (0.3, ENTRIES),
        lambda v, w: w / (1.0 + np.exp(-v)) + TILT,
        lambda w: TILT - 0.1,
    ),
}
CASES = [pytest.param(row, weight, id=name) for name, row in LOSSES.items() for weight in row.weights]


def samples(seed: int, count: int = 4) -> list[Float64Array]:
    """Random points of several magnitudes, and zero."""
    rng = np.random.default_rng(seed)
    return [np.zeros(SHAPE), *(10.0**k * rng.standard_normal(SHAPE) for k in range(-1, count - 2))]


def tilt_of(loss: Loss) -> NDArray[np.float64]:
    return TILT if isinstance(loss, Tilted) else np.zeros(SHAPE)


@pytest.mark.parametrize(("row", "weight"), CASES)
def test_loss_value_is_that_of_the_atom(row: LossRow, weight: Any) -> None:
    for q in samples(0):
        expected = np.sum(weight * row.atom(cp.Constant(q)).value) + np.sum(tilt_of(row.loss) * q)
        assert float(row.loss.value(q, weight, np)) == pytest.approx(float(expected), rel=1e-12, abs=1e-12)


@pytest.mark.parametrize(("row", "weight"), CASES)
def test_loss_gradient_matches_differences(row: LossRow, weight: Any) -> None:
    rng = np.random.default_rng(3)
    for q in samples(4, count=3):
        direction, step = rng.standard_normal(SHAPE), 1e-6
        ahead, behind = (float(row.loss.value(q + t * direction, weight, np)) for t in (step, -step))
        slope = float(np.sum(row.loss.gradient(q, weight, np) * direction))
        # at a kink of the gradient (q = 0) differences err by the curvature times the step
        assert slope == pytest.approx((ahead - behind) / (2 * step), rel=1e-6, abs=1e-5)


@pytest.mark.parametrize(("row", "weight"), CASES)
def test_loss_curvature_bounds_the_gradient(row: LossRow, weight: Any) -> None:
    top = row.loss.curvature * float(np.max(weight))
    for p, q in zip(samples(5), samples(6), strict=True):
        if isinstance(row.loss, Exponential):  # it has the curvature at zero, which holds below
            p, q = -np.abs(p), -np.abs(q)
        change = row.loss.gradient(p, weight, np) - row.loss.gradient(q, weight, np)
        assert np.linalg.norm(change) <= top * np.linalg.norm(p - q) * (1 + 1e-12)


@pytest.mark.parametrize(("row", "weight"), CASES)
def test_fenchel_young(row: LossRow, weight: Any) -> None:
    """f(q) + f*(v) >= <q, v> on the domain, with equality exactly at v = grad f(q)."""
    for q in samples(7):
        value = float(row.loss.value(q, weight, np))
        gradient = row.loss.gradient(q, weight, np)
        at_gradient = value + row.loss.conjugate(gradient, weight)
        assert at_gradient == pytest.approx(float(np.sum(q * gradient)), rel=1e-9, abs=1e-9)
        for z in samples(8):
            v = row.inside(z, weight)
            conjugate = row.loss.conjugate(v, weight)
            assert np.isfinite(conjugate)
            assert value + conjugate >= float(np.sum(q * v)) - 1e-9 * (1 + abs(value) + abs(conjugate))


@pytest.mark.parametrize(("row", "weight"), CASES)
def test_conjugate_is_infinite_outside_its_domain(row: LossRow, weight: Any) -> None:
    outside = row.outside(weight)
    if outside is not None:
        assert row.loss.conjugate(outside, weight) == np.inf


@pytest.mark.parametrize("loss", [SumSquares(), Square(), Huber(), Softplus(), SquaredHinge(), LogSumExp()])
def test_zero_weight_leaves_nothing(loss: Loss) -> None:
    q = np.arange(4.0)
    weight: Any = np.asarray(0.0)
    assert float(loss.value(q, weight, np)) == 0.0
    assert not np.any(loss.gradient(q, weight, np))
    assert loss.conjugate(np.zeros(4), weight) == 0.0
    assert loss.conjugate(np.full(4, 0.1), weight) == np.inf


@pytest.mark.parametrize("loss", [SumSquares(), Square(), SquaredHinge()])
def test_conjugates_of_tiny_weights_do_not_vanish(loss: Loss) -> None:
    q = np.array([1.0, 2.0, 0.5])
    assert loss.conjugate(2e-200 * q, 1e-200) == pytest.approx(1e-200 * float(q @ q), rel=1e-14, abs=0.0)
    assert loss.conjugate(1e-200 * q, 0.0) == np.inf


def test_conjugates_at_the_edges_of_their_domains() -> None:
    """Entropy terms 0 log 0 are zero, and the suprema are attained in the limit only."""
    assert Softplus().conjugate(np.array([0.0, 2.0]), 2.0) == 0.0
    assert LogSumExp().conjugate(np.array([0.0, 2.0]), 2.0) == pytest.approx(0.0)
    assert Huber(1.0).conjugate(np.array([2.0]), 1.0) == pytest.approx(1.0)


@pytest.mark.parametrize("loss", [Softplus(), LogSumExp(), LogSumExp(0), Huber(), SquaredHinge()])
def test_large_arguments_do_not_overflow(loss: Loss) -> None:
    q = np.array([[1e4, -1e4], [-1e4, 1e4]])
    weight: Any = np.asarray(1.0)
    assert np.isfinite(loss.value(q, weight, np))
    assert np.isfinite(loss.gradient(q, weight, np)).all()


@pytest.mark.parametrize(("row", "weight"), CASES)
def test_losses_agree_on_torch(row: LossRow, weight: Any) -> None:
    pytest.importorskip("torch")
    backend = torch_backend()
    loss = row.loss
    if isinstance(loss, Tilted):
        loss = Tilted(loss.loss, backend.asarray(loss.tilt))
    for q in samples(9):
        there, w = backend.asarray(q), backend.asarray(np.asarray(weight))
        assert float(loss.value(there, w, backend.xp)) == pytest.approx(float(row.loss.value(q, weight, np)))
        gradient = backend.to_numpy(loss.gradient(there, w, backend.xp))
        np.testing.assert_allclose(gradient, row.loss.gradient(q, weight, np), atol=1e-12)


PENALTIES: dict[str, tuple[Penalty, Callable[[Any], Any], tuple[int, ...]]] = {
    "columns": (GroupNorm(0), lambda Z: cp.norm(Z, 2, axis=0), (3,)),
    "rows": (GroupNorm(1), lambda Z: cp.norm(Z, 2, axis=1), (5,)),
    "everything": (GroupNorm(None), lambda Z: cp.norm(Z, "fro"), ()),
    "entries": (AbsoluteValue(), cp.abs, SHAPE),
    "nuclear norm": (NuclearNorm(), cp.normNuc, ()),
}


def thresholds(groups: tuple[int, ...]) -> list[NDArray[np.float64]]:
    rng = np.random.default_rng(10)
    return [np.asarray(0.0), np.asarray(0.7), rng.random(groups), np.full(groups, 1e3)]


@pytest.mark.parametrize("name", PENALTIES)
def test_norms_are_those_of_cvxpy(name: str) -> None:
    penalty, atom, groups = PENALTIES[name]
    for Z in samples(11):
        norms = np.asarray(penalty.norms(Z, np))
        assert norms.shape == groups
        np.testing.assert_allclose(norms, atom(cp.Constant(Z)).value, rtol=1e-12)


@pytest.mark.parametrize("name", PENALTIES)
def test_prox_satisfies_moreau(name: str) -> None:
    """z = prox + rest with the rest in the dual ball and aligned with the prox."""
    penalty, _, groups = PENALTIES[name]
    for Z in samples(12):
        for t in thresholds(groups):
            prox = penalty.prox(Z, t, np)
            rest = Z - prox
            assert np.all(penalty.dual_norms(rest, np) <= t * (1 + 1e-12) + 1e-12)
            aligned = float(np.sum(t * penalty.norms(prox, np)))
            assert float(np.sum(rest * prox)) == pytest.approx(aligned, rel=1e-10, abs=1e-10)


@pytest.mark.parametrize("name", PENALTIES)
def test_prox_is_the_minimiser(name: str) -> None:
    penalty, atom, groups = PENALTIES[name]
    Z = samples(13)[2]
    t = thresholds(groups)[2]
    U = cp.Variable(SHAPE)
    distance = cp.sum_squares(U - Z) / 2
    cp.Problem(cp.Minimize(distance + cp.sum(cp.multiply(t, atom(U))))).solve(solver=cp.CLARABEL)
    minimiser: Any = U.value
    np.testing.assert_allclose(penalty.prox(Z, t, np), minimiser, atol=1e-5)


@pytest.mark.parametrize("name", PENALTIES)
def test_dual_norms_are_suprema(name: str) -> None:
    """<z, u> <= dual_norms(z) * norms(u), summed over groups, with equality for an aligned u."""
    penalty, _, _ = PENALTIES[name]
    Z, U = samples(14)[2], samples(15)[2]
    bound = float(np.sum(penalty.dual_norms(Z, np) * penalty.norms(U, np)))
    assert float(np.sum(Z * U)) <= bound + 1e-12
    aligned = penalty.prox(Z, 0.99 * penalty.dual_norms(Z, np), np)  # above all other singular values
    bound = float(np.sum(penalty.dual_norms(Z, np) * penalty.norms(aligned, np)))
    assert float(np.sum(Z * aligned)) == pytest.approx(bound, rel=1e-10)


@pytest.mark.parametrize("name", PENALTIES)
def test_groups_are_those_whose_norms_change(name: str) -> None:
    penalty, _, groups = PENALTIES[name]
    Z = samples(17)[2]
    labels, before = penalty.groups(SHAPE), np.ravel(penalty.norms(Z, np))
    assert labels.shape == SHAPE
    assert set(np.unique(labels)) == set(range(int(np.prod(groups))))
    assert penalty.entrywise == (len(np.unique(labels)) == Z.size)
    for index in np.ndindex(*SHAPE):
        moved = Z.copy()
        moved[index] += 1.0
        changed = np.flatnonzero(np.ravel(penalty.norms(moved, np)) != before)
        assert changed.tolist() == [labels[index]]


@pytest.mark.parametrize("name", PENALTIES)
def test_a_union_has_the_norms_of_its_parts(name: str) -> None:
    penalty, _, _ = PENALTIES[name]
    Z = np.stack([samples(18)[2], np.random.default_rng(19).standard_normal(SHAPE)])
    places = np.arange(Z.size).reshape(Z.shape)
    united = penalty.union([places[0], places[1]])
    if name in ("columns", "rows"):  # norms along an axis of several matrices are not those of one
        assert united is None
        return
    assert united is not None
    whole, positions = united
    norms = np.ravel(whole.norms(Z.ravel()[positions], np))
    np.testing.assert_allclose(norms, np.ravel([penalty.norms(z, np) for z in Z]), rtol=1e-12)


@pytest.mark.parametrize("name", PENALTIES)
def test_penalties_agree_on_torch(name: str) -> None:
    pytest.importorskip("torch")
    backend = torch_backend()
    penalty, _, groups = PENALTIES[name]
    for Z in samples(16):
        for t in thresholds(groups):
            there = penalty.prox(backend.asarray(Z), backend.asarray(t), backend.xp)
            np.testing.assert_allclose(backend.to_numpy(there), penalty.prox(Z, t, np), atol=1e-12)
            norms = backend.to_numpy(penalty.norms(backend.asarray(Z), backend.xp))
            np.testing.assert_allclose(norms, penalty.norms(Z, np), atol=1e-12)


@pytest.mark.parametrize("axis", [None, 0, 1])
@pytest.mark.parametrize("kind", ["max", "log_sum_exp", "tilted"])
def test_points_that_sums_let_pass_are_shifted_into_the_domain_exactly(kind: str, axis: int | None) -> None:
    rng = np.random.default_rng(3)
    weight: Any = 0.3 if axis is None else 0.1 + rng.random(SHAPE[1 - axis])
    plain: Any = Maximum(axis) if kind == "max" else LogSumExp(axis)
    loss: Any = Tilted(plain, TILT) if kind == "tilted" else plain
    tilt = TILT if kind == "tilted" else np.zeros(SHAPE)
    point = plain.nearest(rng.random(SHAPE), weight) * (1.0 + 1e-15) + tilt
    assert np.isfinite(loss.conjugate(point, weight))
    shift = loss.shift(point, weight)
    assert 0.0 < np.abs(shift).max() < 1e-14
    exact = np.vectorize(Fraction, otypes=[object])
    left = np.sum(exact(point) + exact(shift) - exact(tilt), axis=axis) - exact(weight)
    assert np.max(np.abs(left)) < 1e-29
