"""Bounds from what is unusable, cancels, overflows or underflows: none, or still below every value."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
from numpy.typing import NDArray
from planted import plant

from convexnn_solvers.backends import numpy_backend
from convexnn_solvers.certify.certificate import certificate
from convexnn_solvers.certify.dual_bounds import DualBounds
from convexnn_solvers.composite import DualPoint
from convexnn_solvers.reading.atoms import gated, pattern_slack
from convexnn_solvers.reading.compiler import compile_problem

Float = NDArray[np.float64]


@pytest.mark.parametrize(
    "candidate",
    [
        DualPoint(()),
        DualPoint((np.zeros(7),)),
        DualPoint((np.zeros((8, 1)),)),
        DualPoint((np.full(8, np.nan),)),
        DualPoint((np.full(8, np.inf),)),
        DualPoint((np.zeros(8),), (np.zeros((8, 3)),)),
        DualPoint((np.zeros(8),), (np.zeros((8, 4)), np.zeros((8, 4)), np.zeros(1))),
    ],
)
def test_unusable_candidates_are_none(candidate: DualPoint) -> None:
    bounds = DualBounds(plant(1, cones=True, shape=(8, 2, 4)).composite())
    assert bounds.sanitised(candidate) is None


@pytest.mark.parametrize(
    "words", ["no numbers", object(), [[1.0], [1.0, 2.0]]], ids=["text", "object", "ragged"]
)
def test_candidates_that_are_no_arrays_are_none(words: Any) -> None:
    bounds = DualBounds(plant(1, cones=False, shape=(8, 2, 4)).composite())
    assert bounds.sanitised(DualPoint((words,))) is None


def test_multipliers_are_clipped_to_their_cone_and_missing_ones_stay_missing() -> None:
    bounds = DualBounds(plant(1, cones=True, shape=(2, 2, 3)).composite())
    given = np.array([[1.0, -1.0, 0.0], [-2.0, 3.0, -0.0]])
    usable = bounds.sanitised(DualPoint((np.ones(2),), (given,)))
    assert usable is not None
    first, second = usable.multipliers
    assert second is None
    assert first is not None
    np.testing.assert_array_equal(first, np.maximum(given, 0.0))
    np.testing.assert_array_equal(usable.thetas[0], np.ones(2))
    assert given[0, 1] == -1.0


@pytest.mark.parametrize(
    ("inner", "zeros"), [(0.0, 0), (0.5, 0), (0.0, 300)], ids=["one norm", "l1 within it", "many columns"]
)
def test_duals_of_sums_that_cancel_are_feasible_in_exact_arithmetic(inner: float, zeros: int) -> None:
    """``X^T theta`` is a difference of terms up to 1e10 times its size: rounding must not widen its ball."""
    binding = 0
    for seed in range(120):
        rng = np.random.default_rng(seed)
        n, d = int(rng.integers(4, 30)), int(rng.integers(1, 4))
        X = rng.standard_normal((n, d)) * 10.0 ** rng.uniform(2, 8)
        y = 1e3 * rng.standard_normal(n)
        direction = X @ rng.standard_normal(d)
        y += X @ np.linalg.lstsq(X, 3.0 * direction / np.linalg.norm(X.T @ direction) - y)[0]
        w = cp.Variable(d + zeros)
        fit = np.hstack([X, np.zeros((n, zeros))]) @ w - y
        objective = cp.sum_squares(fit) / 2 + 0.7 * cp.norm(w) + inner * cp.norm1(w)
        composite = compile_problem(cp.Problem(cp.Minimize(objective)), numpy_backend()).composite()
        bounds = DualBounds(composite)
        found = bounds.best([bounds.residual(composite.affine.forward(composite.zeros()))])
        assert found is not None
        theta = [Fraction(float(t)) for t in np.ravel(found.point.thetas[0])]
        columns = [[Fraction(float(entry)) for entry in column] for column in X.T]
        z = [sum((a * t for a, t in zip(c, theta, strict=True)), Fraction(0)) for c in columns]
        left = sum((max(abs(v) - Fraction(inner), Fraction(0)) ** 2 for v in z), Fraction(0))
        assert left <= Fraction(0.7) ** 2
        binding += left >= Fraction(0.69) ** 2
    assert binding >= 60


@pytest.mark.parametrize("joined", [0.0, 1.0, 1e-9])
def test_programs_without_a_lower_bound_get_none(joined: float) -> None:
    """``1.5 w + |w|`` falls for ever; ``joined``: so does it when a free variable takes ``w`` out of a loss.

    Then each of the two conditions can be met, but not both, whatever their units.
    """
    w, b = cp.Variable(2), cp.Variable()
    cost = cp.norm1(w + joined * b) if joined else cp.sum_squares(w) * 0.0 + cp.sum_squares(b - 1.0)
    composite = compile_problem(
        cp.Problem(cp.Minimize(cost + 1.5 * cp.sum(w) + cp.norm1(w))), numpy_backend()
    ).composite()
    bounds = DualBounds(composite)
    shapes = [np.shape(q) for q in composite.affine.forward(composite.zeros())]
    for value in (0.0, 0.3, 0.7, 1.0, -1.0, 5.0):
        held = tuple(np.full(block.shape, value) for block in composite.variables)
        offered = DualPoint(tuple(np.full(shape, value) for shape in shapes))
        assert bounds.best([bounds.residual(composite.affine.forward(held)), offered]) is None


def test_huge_multipliers_of_cones_whose_sums_cancel_hide_no_group() -> None:
    """Rows r and -3 r: rounding of ``B^T rho``, here of one part in 1e16, made the norm of a group too small.

    The cone is a half-line along s, where group norm and l1 norm reach their weight at nearly the same scale.
    """
    r, s, weight = np.array([5.0, 9.0]), np.array([-9.0, 5.0]) / 16.0, 0.25
    length = float(np.linalg.norm(s))
    X, bits, last = np.stack([r, -3.0 * r, s]), np.ones((3, 1), dtype=bool), np.array([0.0, 0.0, 1.0])
    q, w = cp.Variable(), cp.Variable((2, 1))
    fit = 0.999 * length * last * q + gated(X, bits, w) - last
    cost = cp.sum_squares(fit) / 2 + weight * cp.abs(q) + weight * cp.sum(cp.norm(w, 2, axis=0))
    problem = cp.Problem(cp.Minimize(cost), [pattern_slack(X, bits, w) >= 0])
    q.value, w.value = np.array(0.0), np.zeros((2, 1))
    largest = weight / length
    optimum = largest - largest**2 / 2.0
    for seed in range(30):
        rng = np.random.default_rng(seed)
        size = 10.0 ** rng.uniform(11.0, 13.0) * rng.random()
        rho = size * np.array([[3.0], [1.0], [0.0]])
        found = certificate(problem, [DualPoint((largest * last,), (rho,))])
        assert found.dual is not None
        assert optimum * (1.0 - 1e-9) <= found.dual <= optimum * (1.0 + 1e-14)


@pytest.mark.parametrize("cones", [False, True])
@pytest.mark.parametrize("exponent", [-530, -540, -560])
def test_bounds_are_the_same_in_units_whose_squares_underflow(cones: bool, exponent: int) -> None:
    """Else groups look as if they had no condition, and zero is called optimal."""
    rng, unit = np.random.default_rng(0), 2.0**exponent
    X, y = rng.standard_normal((12, 3)), rng.standard_normal(12)
    bits = X @ rng.standard_normal((3, 5)) >= 0.0
    proofs = []
    for size in (1.0, unit):
        u = cp.Variable((3, 5))
        cost = cp.sum_squares(gated(size * X, bits, u) - y) / 24 + 0.01 * size * cp.mixed_norm(u.T, 2, 1)
        u.value = np.zeros((3, 5))
        rows: list[Any] = [pattern_slack(size * X, bits, u) >= 0] if cones else []
        proofs.append(certificate(cp.Problem(cp.Minimize(cost), rows)))
    ours, tiny = proofs
    assert ours.dual is not None
    assert tiny.dual == pytest.approx(ours.dual, rel=1e-12)
    assert tiny.primal == pytest.approx(ours.primal, rel=1e-12)
