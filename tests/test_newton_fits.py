"""Data fits of the semismooth Newton method: values, offsets, conjugates, and what copies make of them."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from convexnn_solvers.functions.nonsmooth_losses import Norms, PiecewiseLinear, Supremum
from convexnn_solvers.gated_programs.fits import Fit, LogisticFit, SquaredFit, balanced, excess
from convexnn_solvers.gated_programs.nonsmooth_fits import NonsmoothFit
from convexnn_solvers.newton.copies import residual_copy
from convexnn_solvers.newton.outliers import Outliers

Float = NDArray[np.float64]

NONSMOOTH = ["absolute", "hinge", "weighted quantile", "norm", "largest"]
#: Roots of the weights of samples, one of them zero.
ROOTS = np.array([[0.0, 2.0, 0.5, 1.0, 1.5, 0.1, 1.0, 0.3, 1.0]]).T
SEEN = np.sign(ROOTS) * np.ones((9, 1))
WEIGHTED = ["squared by sample", "huber by sample", "logistic by sample"]


def fits(centred: bool) -> dict[str, Fit]:
    rng = np.random.default_rng(6)
    Y = rng.standard_normal((9, 2))
    labels = np.where(np.arange(18).reshape(9, 2) % 3 == 0, 1.0, -1.0)
    return {
        "squared": SquaredFit(Y, centred),
        "huber": SquaredFit(Y, centred, 0.6),
        "logistic": LogisticFit(-labels, 0.1 * Y, centred),
        "squared by sample": SquaredFit(ROOTS * Y, centred, None, ROOTS if centred else None),
        "huber by sample": SquaredFit(ROOTS * Y, centred, 0.6 * ROOTS, ROOTS if centred else None),
        "logistic by sample": LogisticFit(-labels, 0.1 * Y, centred, scales=ROOTS),
        "seen absolute": NonsmoothFit(
            PiecewiseLinear(), 1.0 * SEEN, np.ones((9, 2)), SEEN * Y, centred, scales=SEEN
        ),
        "absolute": NonsmoothFit(PiecewiseLinear(), np.asarray(0.4), np.ones((9, 2)), Y, centred),
        "hinge": NonsmoothFit(PiecewiseLinear(0.0, 1.0), np.asarray(1.3), labels, Y, centred),
        "weighted quantile": NonsmoothFit(PiecewiseLinear(-0.3, 0.7), 0.5 + Y**2, -labels, Y, centred),
        "norm": NonsmoothFit(Norms(), np.asarray(1.3), labels, Y, centred),
        "largest": NonsmoothFit(Supremum(), np.asarray(1.3), labels, Y, centred),
    }


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("name", ["squared", "huber", "logistic", *WEIGHTED, *NONSMOOTH, "seen absolute"])
def test_fits_satisfy_fenchels_equality_at_their_best_offset(name: str, centred: bool) -> None:
    fit, rng = fits(centred)[name], np.random.default_rng(7)
    r = ROOTS if name in WEIGHTED else SEEN if name == "seen absolute" else np.ones((9, 1))
    for _ in range(5):
        p = r * 2.0 * rng.standard_normal((9, 2))
        found = fit.at(p)
        assert not found.xi[r[:, 0] == 0.0].any()
        assert found.value + fit.conjugate(found.xi) == pytest.approx(float(np.vdot(found.xi, p)), abs=1e-9)
        if centred:
            np.testing.assert_allclose((r * found.xi).sum(axis=0), 0.0, atol=1e-9)
            np.testing.assert_allclose(balanced(fit, found.xi), found.xi, atol=1e-9)
            shifted = fits(False)[name].at(p + r * found.offset)
            assert found.value == pytest.approx(shifted.value, rel=1e-12)
            for change in 0.01 * np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]):
                moved = fits(False)[name].at(p + r * (found.offset + change))
                assert moved.value >= found.value * (1.0 - 1e-12)


@pytest.mark.parametrize("name", ["squared", "huber", "logistic"])
def test_fits_with_weights_are_sums_over_samples_of_those_without(name: str) -> None:
    rng = np.random.default_rng(7)
    p, Y = 2.0 * rng.standard_normal((9, 2)), np.random.default_rng(6).standard_normal((9, 2))
    weighted, plain = fits(False)[f"{name} by sample"], fits(False)[name]
    alone = []
    for i in range(9):  # at all other targets, or far on the flat side, there is no loss
        rest = np.where(np.arange(9)[:, None] == i, p, Y)
        if isinstance(plain, LogisticFit):
            rest = np.where(np.arange(9)[:, None] == i, p, -1e3 * plain.signs)
        alone.append(plain.at(rest).value)
    found = weighted.at(ROOTS * p)
    assert found.value == pytest.approx(float(ROOTS[:, 0] ** 2 @ alone), rel=1e-12)
    np.testing.assert_allclose(found.xi, ROOTS * plain.at(p).xi, rtol=1e-9)
    assert excess(weighted, found.xi) == pytest.approx(excess(plain, plain.at(p).xi))


@pytest.mark.parametrize("name", ["squared", "logistic", "squared by sample", "logistic by sample"])
def test_conjugates_have_the_derivatives_that_they_say(name: str) -> None:
    fit, rng = fits(False)[name], np.random.default_rng(8)
    r = ROOTS if name in WEIGHTED else np.ones((9, 1))
    xi = fit.at(r * rng.standard_normal((9, 2))).xi
    direction = 0.1 * rng.standard_normal((9, 2)) * np.abs(xi)
    line = fit.along(xi, direction)
    h = 1e-5
    assert line(0.0)[0] == pytest.approx(0.0, abs=1e-12)
    assert line(0.0)[1] == pytest.approx(float(np.vdot(fit.derivative(xi), direction)), rel=1e-10)
    assert line(0.4)[1] == pytest.approx((line(0.4 + h)[0] - line(0.4 - h)[0]) / (2.0 * h), rel=1e-5)
    bent = (line(h)[1] - line(-h)[1]) / (2.0 * h)
    assert bent == pytest.approx(float(np.sum(fit.curvature(xi) * direction**2)), rel=1e-5)


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("name", NONSMOOTH)
def test_nearest_points_are_in_the_domain_and_leave_it_in_place(name: str, centred: bool) -> None:
    fit, rng = fits(centred)[name], np.random.default_rng(10)
    assert isinstance(fit, NonsmoothFit)
    for size in (1e-3, 1.0, 1e3):
        xi = size * rng.standard_normal((9, 2))
        found = fit.nearest(xi - centred * xi.mean(axis=0))
        inside = fit.loss.nearest(fit.mirror * found, fit.weight)
        np.testing.assert_allclose(inside, fit.mirror * found, rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(fit.nearest(found), found, rtol=1e-12, atol=1e-13)
        if centred:
            np.testing.assert_allclose(found.sum(axis=0), 0.0, atol=1e-12)


@pytest.mark.parametrize("sigma", [0.3, 30.0])
@pytest.mark.parametrize("name", NONSMOOTH)
def test_copies_are_twice_differentiable_functions(name: str, sigma: float) -> None:
    fit, rng = fits(False)[name], np.random.default_rng(11)
    copy = residual_copy(fit)
    assert copy is not None
    for _ in range(3):
        copy.restore(rng.standard_normal((2, 9, 2)))
        xi, direction = rng.standard_normal((2, 9, 2))
        line, h = copy.along(xi, direction, sigma), 1e-6
        assert line(h)[1] == pytest.approx((line(2.0 * h)[0] - line(0.0)[0]) / (2.0 * h), rel=1e-6, abs=1e-6)
        step = copy.at(xi, sigma)
        curvature = float(np.sum(step.curvature * direction**2))
        if step.column is not None:
            curvature += float(np.vdot(step.column, direction)) ** 2
        assert (line(h)[1] - line(0.0)[1]) / h == pytest.approx(curvature, rel=1e-4, abs=1e-6)
        copy.accept(xi, sigma)
        assert copy.squared_change(xi, 1e-30) == pytest.approx(0.0, abs=1e-20)


@pytest.mark.parametrize("name", ["logistic", "logistic by sample"])
def test_steps_stay_inside_the_domain_of_the_logistic_conjugate(name: str) -> None:
    fit, rng = fits(False)[name], np.random.default_rng(9)
    assert isinstance(fit, LogisticFit)
    r = np.ones((9, 1)) if fit.scales is None else fit.scales
    xi, seen = fit.at(np.zeros((9, 2))).xi, r[:, 0] > 0.0
    for _ in range(20):
        direction = r * rng.standard_normal((9, 2))
        moved = xi + fit.room(xi, direction) * direction
        a = (fit.signs * moved)[seen] / r[seen]
        assert a.min() > 0.0
        assert a.max() < 1.0
        assert fit.admits(moved)
        assert not fit.admits(xi + 1.02 * fit.room(xi, direction) * direction)
    assert fit.room(xi, np.zeros((9, 2))) == np.inf


def test_extreme_predictions_have_finite_gradients() -> None:
    fit = fits(False)["logistic"]
    xi = fit.at(np.array([[1e3, -1e3]] * 9)).xi
    assert np.isfinite(fit.derivative(xi)).all()
    assert np.isfinite(fit.curvature(xi)).all()
    assert np.isfinite(fit.conjugate(xi))


def test_outliers_are_the_difference_between_squares_and_huber() -> None:
    residual = np.linspace(-2.0, 2.0, 9)[:, None]
    outliers = Outliers(0.5, (9, 1))
    step = outliers.at(-residual, 1.0)
    np.testing.assert_allclose(step.values, np.sign(residual) * np.maximum(np.abs(residual) - 0.5, 0.0))
    line = outliers.along(-residual, np.ones((9, 1)), 1.0)
    assert line(0.2)[1] == pytest.approx((line(0.2 + 1e-6)[0] - line(0.2 - 1e-6)[0]) / 2e-6, rel=1e-6)
