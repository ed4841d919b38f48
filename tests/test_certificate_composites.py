"""Corners of the composite form, built by hand: penalties other than group norms, weights, refusals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
from dense_map import DenseMap
from numpy.typing import NDArray
from planted import plant

from convexnn_solvers.backends import numpy_backend
from convexnn_solvers.certify.certificate import Certifier
from convexnn_solvers.composite import Composite, DualPoint, LossTerm, PenaltyTerm, VariableBlock
from convexnn_solvers.functions.losses import SumSquares
from convexnn_solvers.functions.penalties import AbsoluteValue, GroupNorm

Float = NDArray[np.float64]


def _same(array: Any) -> Any:
    return array


def _denoising(a: Float, penalties: tuple[PenaltyTerm, ...]) -> Composite:
    """min 1/2 ||x - a||^2 + penalties of x."""
    return Composite(
        backend=numpy_backend(),
        variables=(VariableBlock(1, a.shape, "x"),),
        affine=DenseMap(((np.eye(a.size),),), (-a,), (a.shape,)),
        losses=(LossTerm(SumSquares(), 0.5, "fit"),),
        penalties=penalties,
        constraints=(),
        linear=(np.zeros(a.shape),),
        constant=0.0,
        sign=1.0,
        scope="",
    )


def _l1(weight: Any) -> PenaltyTerm:
    return PenaltyTerm(AbsoluteValue(), weight, 0, _same, _same, "l1")


def _group(weight: Any, axis: int | None = None) -> PenaltyTerm:
    return PenaltyTerm(GroupNorm(axis), weight, 0, _same, _same, "group")


@pytest.mark.parametrize("order", [0, 1])
@pytest.mark.parametrize("seed", range(5))
def test_sparse_group_penalty_is_split_between_its_parts(order: int, seed: int) -> None:
    """The minimiser of 1/2 ||x - a||^2 + l1 + group is soft thresholding twice; its dual is exact."""
    rng = np.random.default_rng(seed)
    a = 2.0 * rng.standard_normal(6)
    soft = np.sign(a) * np.maximum(np.abs(a) - 0.4, 0.0)
    best = soft * max(0.0, 1.0 - 0.7 / np.linalg.norm(soft))
    value = 0.5 * np.sum((best - a) ** 2) + 0.4 * np.abs(best).sum() + 0.7 * np.linalg.norm(best)
    terms = (_l1(0.4), _group(0.7))
    certifier = Certifier(_denoising(a, terms if order == 0 else terms[::-1]))
    found = certifier.certify((best,))
    assert found.primal == pytest.approx(value, rel=1e-13)
    assert found.dual is not None
    assert found.dual <= value * (1.0 + 1e-13)
    if order == 0:  # the l1 part takes what it can first: exact; the other order is only a bound
        assert found.relative_gap == pytest.approx(0.0, abs=1e-10)
    for _ in range(30):
        x = np.asarray(rng.standard_normal(6) * np.power(10.0, rng.uniform(-2, 1)))
        far = certifier.certify((x,), [DualPoint((rng.standard_normal(6) * 3.0,))])
        assert far.dual is not None
        assert far.dual <= value * (1.0 + 1e-13)


@pytest.mark.parametrize(
    ("penalty", "value"),
    [
        (
            _l1(np.array([[1.0, 0.5], [2.0, 9.0]])),
            0.5 * (1 + 0.25 + 4 + 0.25) + 1.0 * 2 + 0.5 * 1.5 + 2.0 * 2,
        ),
        (_group(np.array([1.0, 20.0]), axis=0), 0.5 * 1 + 0.5 * 4.25 + 1.0 * 4.0),
        (_group(np.array([20.0, 1.0]), axis=1), 0.5 * (9 + 4) + 0.5 + 1.0 * (np.hypot(4.0, 0.5) - 1.0)),
        (_group(np.array(1.0)), 0.5 + np.sqrt(9 + 4 + 16 + 0.25) - 1.0),
    ],
)
def test_weights_per_group(penalty: PenaltyTerm, value: float) -> None:
    """Soft thresholding with weights of every shape, from the matrix [[3, 2], [4, 0.5]]; values by hand."""
    a = np.array([[3.0, 2.0], [4.0, 0.5]])
    composite = replace(
        _denoising(a.ravel(), ()),
        variables=(VariableBlock(1, (2, 2), "x"),),
        affine=DenseMap(((np.eye(4),),), (-a,), ((2, 2),)),
        linear=(np.zeros((2, 2)),),
    )
    certifier = Certifier(replace(composite, penalties=(penalty,)))
    best = penalty.penalty.prox(a, penalty.weight, np)
    found = certifier.certify((best,))
    assert found.primal == pytest.approx(value, rel=1e-12)
    assert found.relative_gap == pytest.approx(0.0, abs=1e-12)


def test_a_group_without_weight_is_a_free_entry() -> None:
    """An entry without penalty is bounded by theta = 0 there, and every other entry by its own weight."""
    certifier = Certifier(_denoising(np.array([3.0, 4.0]), (_l1(np.array([1.0, 0.0])),)))
    found = certifier.certify((np.zeros(2),))
    assert found.dual == pytest.approx(2.5)
    exact = certifier.certify((np.array([2.0, 4.0]),))
    assert exact.primal == pytest.approx(2.5)
    for second in (4.0, 3.9, 3.5, 4.5, 0.0):
        bound = certifier.certify((np.array([2.0, second]),)).dual
        assert bound is not None
        assert bound <= 2.5 * (1.0 + 1e-12)


def test_only_a_sign_for_all_entries_relaxes_the_norm() -> None:
    """Lower bounds (0, -5): the second entry may be negative, so its dual condition is two-sided."""
    composite = _denoising(np.array([1.0, -3.0]), (_l1(0.5),))
    block = replace(composite.variables[0], lower=np.array([0.0, -5.0]))
    certifier = Certifier(replace(composite, variables=(block,)))
    value = 0.125 + 0.25 + 0.125 + 1.25
    assert certifier.certify((np.array([0.5, -2.5]),)).relative_gap == pytest.approx(0.0, abs=1e-12)
    for second in (0.0, -1.0, -2.0):
        found = certifier.certify((np.array([0.5, second]),)).dual
        assert found is not None
        assert found <= value * (1.0 + 1e-12)


def test_bounds_are_repaired_by_clipping() -> None:
    composite = _denoising(np.array([1.0, -3.0]), (_l1(0.5),))
    block = replace(composite.variables[0], lower=np.array([0.0, -2.0]), upper=np.array([0.4, np.inf]))
    found = Certifier(replace(composite, variables=(block,))).certify((np.array([0.9, -2.25]),))
    assert found.repaired
    assert found.max_violation == pytest.approx(0.5)
    assert found.primal == pytest.approx(0.18 + 0.2 + 0.5 + 1.0)
    assert found.gap is not None
    assert found.gap >= 0.0


@pytest.mark.parametrize("penalty", [AbsoluteValue(), GroupNorm(1), GroupNorm(None)], ids=str)
def test_cones_with_groups_across_columns(penalty: Any) -> None:
    """Penalties whose groups cut through the cones' columns: projections still give valid bounds."""
    planted = plant(3, cones=True, shape=(12, 3, 4))
    composite = planted.composite()
    weight = np.asarray(0.02)
    terms = tuple(
        replace(t, penalty=penalty, weight=weight, view=_same, unview=_same) for t in composite.penalties
    )
    certifier = Certifier(replace(composite, penalties=terms))
    V, W = cp.Variable((3, 4)), cp.Variable((3, 4))
    S = np.where(planted.patterns, 1.0, -1.0)
    prediction = cp.sum(cp.multiply(planted.patterns * 1.0, planted.X @ (V - W)), axis=1)
    norms: dict[str, Callable[[Any], Any]] = {
        "AbsoluteValue": lambda U: cp.sum(cp.abs(U)),
        "GroupNorm": lambda U: cp.sum(cp.norm(U, 2, axis=1)) if penalty.axis == 1 else cp.norm(U, "fro"),
    }
    norm = norms[type(penalty).__name__]
    fit = cp.sum_squares(prediction - planted.targets[:, 0]) / (2 * 12)
    cones: list[Any] = [cp.multiply(S, planted.X @ U) >= 0 for U in (V, W)]
    problem: Any = cp.Problem(cp.Minimize(fit + 0.02 * (norm(V) + norm(W))), cones)
    problem.solve(solver=cp.CLARABEL)
    at_optimum = certifier.certify((V.value, W.value))
    assert at_optimum.primal == pytest.approx(problem.value, rel=1e-6)
    rng = np.random.default_rng(0)
    for scale in (0.0, 0.01, 1.0):
        x = tuple(np.asarray(U.value) + scale * rng.standard_normal((3, 4)) for U in (V, W))
        found = certifier.certify(x)
        assert found.dual is not None
        assert 0.0 < found.dual <= problem.value * (1.0 + 1e-7)


def test_repeated_calls_project_only_what_can_matter() -> None:
    """Gates whose plain norm is below the largest projection are skipped, and the bound is the same."""
    planted = plant(9, cones=True, shape=(30, 3, 90))
    certifier = Certifier(planted.composite())
    found = certifier.certify(planted.point)
    assert found.relative_gap is not None
    assert 0.0 <= found.relative_gap <= 1e-12
    far = tuple(np.ones_like(v) for v in planted.point)
    assert found.dual_point is not None
    again = certifier.certify(far, [found.dual_point])
    assert again.dual == pytest.approx(planted.value, rel=1e-12)


def test_a_pattern_cone_with_an_offset_is_refused() -> None:
    """Projections know nothing of offsets, so a bound would be wrong."""
    composite = plant(0, cones=True).composite()
    affine = composite.affine
    assert isinstance(affine, DenseMap)
    moved = replace(affine, offsets=(affine.offsets[0], affine.offsets[1] + 1.0, affine.offsets[2]))
    with pytest.raises(ValueError, match="offset"):
        Certifier(replace(composite, affine=moved))


def test_only_float64_composites_are_certified() -> None:
    composite = replace(plant(0, cones=False).composite(), backend=numpy_backend("float32"))
    with pytest.raises(ValueError, match="float64"):
        Certifier(composite)


@pytest.mark.parametrize(
    ("x", "sentence"),
    [
        ((), "2 arrays"),
        ((np.zeros((3, 8)), np.zeros((8, 3))), "v1 has shape"),
        ((np.zeros((3, 8)), np.full((3, 8), np.nan)), "v1 holds NaN"),
        ((np.where(np.eye(3, 8) > 0.0, np.inf, 0.0), np.zeros((3, 8))), "v0 holds NaN or infinite"),
    ],
)
def test_points_of_the_wrong_form_are_refused(x: Any, sentence: str) -> None:
    certifier = Certifier(plant(0, cones=True).composite())
    with pytest.raises(ValueError, match=sentence):
        certifier.certify(x)


def test_too_many_free_entries_are_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("convexnn_solvers.certify.free_columns._MAX_ENTRIES", 10)
    found = Certifier(plant(0, cones=False, bias=True).composite()).certify(
        tuple(np.zeros(s) for s in ((3, 8), (1,)))
    )
    assert found.dual is None
    assert "v1 has no penalty" in found.note
