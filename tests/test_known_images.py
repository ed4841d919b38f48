"""Images of dual points that certificates computed: the next solve begins with them, and with no others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
from numpy.typing import NDArray

import convexnn_models as cnn
from convexnn_solvers import Auto, DualPoint, SemismoothNewton
from convexnn_solvers.backends import numpy_backend
from convexnn_solvers.certify.known_images import KnownImages
from convexnn_solvers.gated_programs.structure import gated_structure
from convexnn_solvers.newton import dual_newton
from convexnn_solvers.newton.start import NewtonStart, given_products
from convexnn_solvers.problem_state import compiled

Float = NDArray[np.float64]
RNG = np.random.default_rng(21)
X: Float = RNG.standard_normal((40, 4))
Y: Float = np.sin(2.0 * X[:, 0]) + 0.1 * RNG.standard_normal(40)
LABELS: Float = np.where(Y > 0.0, 1.0, -1.0)
MANY: Float = np.column_stack([Y, X[:, 1] - Y])
GATES = cnn.sample_gates(X, 12, seed=0)


def _multiple() -> Any:
    """The weights enter twice as large, and with the labels multiplied in."""
    model = cnn.gated_relu(X, GATES)
    margins = cp.multiply(LABELS, 2.0 * model.prediction)
    return cp.Problem(cp.Minimize(cp.sum(cp.logistic(-margins)) / 40 + 0.02 * model.penalty))


PROBLEMS: dict[str, Callable[[], Any]] = {
    "gated": lambda: cnn.gated_relu(X, GATES).problem(Y, 0.02),
    "offset": lambda: cnn.gated_relu(X, GATES, output_bias=True).problem(Y, 0.02),
    "relu": lambda: cnn.relu(X, GATES).problem(Y, 0.02),
    "leaky": lambda: cnn.piecewise_linear(X, GATES, slope=0.3).problem(Y, 0.02),
    "huber": lambda: cnn.gated_relu(X, GATES).problem(Y, 0.02, "huber"),
    "two outputs": lambda: cnn.gated_relu(X, GATES, outputs=2).problem(MANY, 0.02),
    "groups of outputs": lambda: cnn.relu(X, GATES, outputs=2, grouping="per-output").problem(MANY, 0.02),
    "a multiple": _multiple,
}


def test_combinations_of_the_latest_two_directions_are_known() -> None:
    rng, known = np.random.default_rng(0), KnownImages()
    A: Float = rng.standard_normal((5, 9))
    thetas: list[tuple[Float]] = [(rng.standard_normal(9),) for _ in range(3)]
    assert known.of(thetas[0]) is None
    for (theta,) in thetas:
        known.add((theta,), (A @ theta,))
    for first, second in ((0.0, 1.0), (1.0, 0.0), (-0.8, 1.8), (0.0, -3.0)):
        theta = first * thetas[1][0] + second * thetas[2][0]
        found = known.of((theta,))
        assert found is not None
        np.testing.assert_allclose(found[0], A @ theta, atol=1e-12)
    for other in (thetas[0][0], thetas[2][0] + 1e-10 * thetas[0][0], np.ones(9), np.ones(4)):
        assert known.of((other,)) is None
    known.add(thetas[0], (A @ thetas[0][0],), instead=True)
    assert known.of(thetas[2]) is None
    assert known.of(thetas[0]) is not None
    assert known.of(thetas[1]) is not None


def test_equal_directions_are_one(monkeypatch: pytest.MonkeyPatch) -> None:
    known, theta = KnownImages(), np.random.default_rng(1).standard_normal(6)
    for _ in range(2):
        known.add((theta,), (2.0 * theta,))
    found = known.of((0.5 * theta,))
    assert found is not None
    np.testing.assert_allclose(found[0], theta, atol=1e-13)
    monkeypatch.setattr("convexnn_solvers.certify.known_images._MOST", 5)
    known.add((theta + 1.0,), (theta,))
    assert known.of((theta + 1.0,)) is None


def test_no_direction_and_directions_whose_squares_overflow_are_not_known() -> None:
    """Programs without losses were an error, and every other direction a multiple of a huge one."""
    known = KnownImages()
    known.add((), (np.ones(3),))
    assert known.of(()) is None
    huge = np.array([1e200, -2e200])
    for theta in (huge, np.ones(2)):
        known.add((theta,), (theta,))
        for other in (np.array([3e200, 1e200]), np.array([1.0, 2.0])):
            assert known.of((other,)) is None


def test_directions_whose_squares_underflow_are_not_known() -> None:
    """They were known up to 1e-6: images of 1e-160 that were not, and any other as a multiple of them."""
    known = KnownImages()
    rng = np.random.default_rng(2)
    A, first, second = rng.standard_normal((4, 3)), rng.standard_normal(3), rng.standard_normal(3)
    for scale in (1.0, 1e-155, 1e-160, 1e-170):
        known.add((scale * first,), (scale * (A @ first),))
        for other in (first, second):
            found = known.of((1e-160 * other,))
            assert found is None
            found = known.of((scale * other,))
            assert found is None or np.linalg.norm(found[0] / scale - A @ other) <= 1e-12


@pytest.mark.parametrize("apart", [1e-13, 1e-11, 1e-9, 1e-6])
def test_directions_that_hardly_differ_tell_nothing_of_what_is_far_from_both(apart: float) -> None:
    """Of two samples every direction is a combination, and rounding was multiplied by what it takes."""
    known, rng = KnownImages(), np.random.default_rng(3)
    A, first, second = rng.standard_normal((4, 2)), rng.standard_normal(2), rng.standard_normal(2)
    for theta in (first, first + apart * second):
        known.add((theta,), (A @ theta,))
    assert known.of((second,)) is None
    found = known.of((3.0 * first,))
    assert found is not None
    np.testing.assert_allclose(found[0], 3.0 * (A @ first), atol=1e-12)


@pytest.mark.parametrize("unit", [1e-160, 1e-155, 1e140])
def test_objectives_in_awkward_units_are_solved_again_at_other_regularisations(unit: float) -> None:
    """In units of 1e-160 solves from the last one's dual point ended at a wrong bound of the solver's own."""
    model, reg = cnn.gated_relu(X, GATES), cp.Parameter(nonneg=True)
    problem = cp.Problem(cp.Minimize(unit * cp.sum_squares(model.prediction - Y) + reg * model.penalty))
    for share in (3.0, 2.9, 0.5, 0.4, 0.01):
        reg.value = share * unit
        problem.solve(solver=SemismoothNewton(tol=1e-7))
        assert problem.status == cp.OPTIMAL


@pytest.mark.parametrize("name", PROBLEMS)
def test_they_are_the_products_that_a_solver_would_compute(name: str) -> None:
    problem = PROBLEMS[name]()
    problem.solve(solver=SemismoothNewton())
    assert problem.status == cp.OPTIMAL
    structure = gated_structure(compiled(problem, numpy_backend()).composite())
    dual = problem.solver_stats.extra_stats["dual_point"]
    for factor in (1.0, -0.7):
        moved = DualPoint(tuple(factor * theta for theta in dual.thetas))
        products, directions = structure.products(moved), structure.directions(moved)
        assert products is not None
        assert directions is not None
        for program, found, W in zip(structure.programs, products, directions, strict=True):
            np.testing.assert_allclose(found, program.adjoint(W), atol=1e-11 * float(np.linalg.norm(W)))
    others = DualPoint(tuple(theta + 0.1 for theta in dual.thetas))
    assert structure.products(others) is None


def test_other_targets_make_their_own() -> None:
    """A Parameter in the affine map, whose composites keep nothing."""
    targets = cp.Parameter(40)
    model = cnn.gated_relu(X, GATES)
    objective = cp.sum_squares(model.prediction - targets) / 80 + 0.02 * model.penalty
    problem = cp.Problem(cp.Minimize(objective))
    for value in (Y, -2.0 * Y, Y):
        targets.value = value
        problem.solve(solver=Auto(tol=1e-7))
        assert problem.status == cp.OPTIMAL
        fresh = cnn.gated_relu(X, GATES).problem(value, 0.02)
        assert problem.value == pytest.approx(fresh.solve(solver=Auto(tol=1e-7)), rel=3e-7)


@pytest.mark.parametrize("output_bias", [False, True], ids=["no offset", "offset"])
def test_points_of_a_path_begin_without_products_of_all_gates(
    output_bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = list[Float | None]()

    def recorded(start: NewtonStart, given: Float) -> Float | None:
        begun.append(given_products(start, given))
        return begun[-1]

    monkeypatch.setattr(dual_newton, "given_products", recorded)
    model = cnn.gated_relu(X, GATES, output_bias=output_bias)
    path = cnn.regularization_path(model, Y, n_regs=12, tol=1e-6)
    assert all(point.status == cp.OPTIMAL for point in path)
    assert len(begun) >= 6
    assert all(products is not None for products in begun)


def test_the_latest_image_is_read_where_it_is_asked_for_by_the_same_arrays() -> None:
    known = KnownImages()
    one, other = (np.arange(3.0),), (np.ones(3),)
    assert known.newest(one) is None
    image = (np.arange(4.0),)
    known.add(one, image)
    assert known.newest(one) is image
    assert known.newest((one[0].copy(),)) is None
    known.add(other, (np.ones(4),))
    assert known.newest(one) is None
