"""A bound is the best one on its ray: the dual function along given directions, written out and searched."""

from __future__ import annotations

from typing import Any

import cvxpy as cp
import numpy as np
import pytest
from numpy.typing import NDArray
from planted import HUBER_THRESHOLD, LossName, Planted, plant
from scipy.optimize import minimize_scalar
from scipy.special import expit

from convexnn_solvers.backends import numpy_backend
from convexnn_solvers.certify.certificate import certificate
from convexnn_solvers.certify.concave_search import maximise
from convexnn_solvers.certify.dual_bounds import DualBounds
from convexnn_solvers.composite import DualPoint
from convexnn_solvers.reading.compiler import compile_problem

Float = NDArray[np.float64]


LOSSES: list[LossName] = ["squared", "huber", "logistic"]


def largest_scale(planted: Planted, theta: Float) -> float:
    """Up to which multiple of theta the groups of the gated program allow."""
    d, c = planted.X.shape[1], planted.outputs
    z = np.zeros((d * c, planted.patterns.shape[1]))
    for k in range(c):
        z[k * d : (k + 1) * d] = planted.X.T @ (planted.patterns * theta[:, [k]])
    return 1.0 / float((planted.group_norms(z) / planted.weights[0]).max())


def dual_value(planted: Planted, theta: Float) -> float:
    """D(theta) for the loss of ``prediction``, with its conjugate by the formula; -inf outside the domain."""
    n = len(theta)
    if planted.loss == "logistic":
        p = n * planted.targets * theta
        if np.any(p < 0.0) or np.any(p > 1.0):
            return -np.inf
        inner = p[(p > 0.0) & (p < 1.0)]
        entropy = -np.sum(inner * np.log(inner) + (1.0 - inner) * np.log(1.0 - inner)) / n
        return float(entropy - np.sum(theta * planted.shift))
    if planted.loss == "huber" and np.any(np.abs(theta) > HUBER_THRESHOLD / n):
        return -np.inf
    return float(np.sum(theta * planted.targets) - 0.5 * n * np.sum(theta**2))


def as_direction(planted: Planted, theta: Float) -> DualPoint:
    """In the form of the composite, whose argument for labels of classes is -y (prediction + shift)."""
    own = -planted.targets * theta if planted.loss == "logistic" else theta
    return DualPoint((own[:, 0] if planted.outputs == 1 else own,))


def best_on_ray(planted: Planted, theta: Float, signs: tuple[float, ...]) -> float:
    top = largest_scale(planted, theta)
    best = -np.inf
    for sign in signs:
        scales = np.linspace(0.0, top, 2001)
        values = [dual_value(planted, sign * s * theta) for s in scales]
        k = int(np.argmax(values))
        fine = np.linspace(scales[max(k - 1, 0)], scales[min(k + 1, 2000)], 2001)
        best = max(best, *(dual_value(planted, sign * s * theta) for s in fine))
    return best


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("outputs", [1, 2])
@pytest.mark.parametrize("factor", [0.02, 0.5, 0.97, 30.0])
def test_the_bound_is_the_best_on_its_ray(loss: LossName, outputs: int, factor: float) -> None:
    for seed in range(2):
        planted = plant(seed, cones=False, outputs=outputs, loss=loss, shape=(8, 2, 4))
        rng = np.random.default_rng(seed)
        noise = 1.0 + 0.4 * rng.uniform(-1.0, 1.0, planted.theta.shape)
        theta = factor * noise * planted.theta
        if not np.isfinite(dual_value(planted, theta)):
            theta = factor * planted.theta / max(factor, 1.0)
        bound = DualBounds(planted.composite()).best([as_direction(planted, theta)])
        assert bound is not None
        signs = (1.0, -1.0) if loss == "squared" else (1.0,)
        expected = best_on_ray(planted, theta, signs)
        assert bound.value <= planted.value * (1.0 + 1e-13)
        assert bound.value == pytest.approx(expected, rel=1e-6, abs=1e-9)
        found = bound.point.thetas[0].reshape(theta.shape)
        proving = -planted.targets * found if loss == "logistic" else found
        assert dual_value(planted, proving) == pytest.approx(bound.value, rel=1e-12, abs=1e-14)
        assert largest_scale(planted, proving) >= 1.0 - 1e-12


def test_a_ray_along_which_the_bound_falls_is_followed_backwards() -> None:
    planted = plant(3, cones=False, shape=(8, 2, 4))
    bounds = DualBounds(planted.composite())
    forwards = bounds.best([as_direction(planted, planted.theta)])
    assert forwards is not None
    assert forwards.value == pytest.approx(planted.value, rel=1e-12)
    for size in (-2.0, -1e-3):  # however slowly the bound falls
        backwards = bounds.best([as_direction(planted, size * planted.theta)])
        assert backwards is not None
        assert backwards.value == pytest.approx(forwards.value, rel=1e-12)


def exact_and_poor() -> tuple[Planted, DualBounds, DualPoint, DualPoint, float]:
    """A planted problem with its bounds, two directions, and the bound of the poor one alone."""
    planted = plant(1, cones=True, shape=(8, 2, 4))
    bounds = DualBounds(planted.composite())
    exact = as_direction(planted, planted.theta)
    poor = as_direction(planted, np.sign(planted.theta))
    alone = bounds.best([poor])
    assert alone is not None
    assert alone.value < 0.9 * planted.value
    return planted, bounds, exact, poor, alone.value


def test_the_best_direction_wins_wherever_it_stands() -> None:
    planted, bounds, exact, poor, _ = exact_and_poor()
    for directions in ([poor, exact], [exact, poor], [poor, exact, poor]):
        found = bounds.best(directions)
        assert found is not None
        assert found.value == pytest.approx(planted.value, rel=1e-12)
        np.testing.assert_allclose(found.point.thetas[0], planted.theta[:, 0], rtol=1e-9, atol=1e-12)


def test_the_residual_is_left_for_when_nothing_else_bounds() -> None:
    planted, bounds, exact, poor, alone = exact_and_poor()
    for directions, value in (
        ([poor, exact], planted.value),
        ([exact, poor], alone),
        ([poor], alone),
    ):
        found = bounds.best(directions, thorough=False)
        assert found is not None
        assert found.value == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize("target", [2.0, -2.0, 0.5])
def test_rays_with_multipliers_are_followed_forwards_whatever_their_losses_say(target: float) -> None:
    """min (x - 1)^2 / 2 + .1 |x| with x = target: the loss alone would turn some optimal rays around."""
    x = cp.Variable()
    problem = cp.Problem(cp.Minimize(cp.square(x - 1.0) / 2.0 + 0.1 * cp.abs(x)), [x == target])
    composite = compile_problem(problem, numpy_backend()).composite()
    value = (target - 1.0) ** 2 / 2.0 + 0.1 * abs(target)
    bounds, values = DualBounds(composite), []
    of_loss, of_constraint = (q.shape for q in composite.affine.linear(composite.zeros()))
    gradient = target - 1.0
    for theta in (gradient, -gradient):
        for mu in (gradient + 0.1 * np.sign(target), -gradient - 0.1 * np.sign(target)):
            found = bounds.best([DualPoint((np.full(of_loss, theta),), (np.full(of_constraint, mu),))])
            values.append(-np.inf if found is None else found.value)
    assert max(values) == pytest.approx(value, rel=1e-9)


@pytest.mark.parametrize("slope", [-0.5, 0.0, 0.4])
def test_linear_terms_shift_what_is_allowed(slope: float) -> None:
    """min 1/2 (x - 2)^2 + slope x + |x|: x = max(1 - slope, 0); cut where |s theta - slope| = 1."""
    x = cp.Variable(1)
    best = max(1.0 - slope, 0.0)
    value = 0.5 * (best - 2.0) ** 2 + slope * best + best
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - 2.0) / 2 + slope * cp.sum(x) + cp.norm1(x)))
    for start in (best, 0.0, best + 3.0, -1.0):
        x.value = np.array([start])
        found = certificate(problem)
        assert found.dual is not None
        assert found.dual <= value * (1.0 + 1e-14)
        if start <= best:  # the residual has the right sign, and one scale of it is optimal
            assert found.dual == pytest.approx(value, rel=1e-9)


def test_constants_belong_to_the_bound() -> None:
    x = cp.Variable(1)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - 2.0) / 2 + cp.norm1(x) + 100.0))
    x.value = np.ones(1)
    found = certificate(problem)
    assert found.primal == pytest.approx(101.5)
    assert found.dual == pytest.approx(101.5, rel=1e-14)
    assert found.dual is not None
    assert found.dual < 101.5  # what the sums may have rounded is taken off


def test_a_box_pays_along_the_whole_ray() -> None:
    """min 1/2 (x - 3)^2 with 0 <= x <= 1: theta = 2, and the box costs max(0, theta)."""
    x = cp.Variable(1, bounds=[0.0, 1.0])
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - 3.0) / 2))
    for start in (1.0, 0.5, 0.0):
        x.value = np.array([start])
        found = certificate(problem)
        assert found.dual == pytest.approx(2.0, rel=1e-9)


@pytest.mark.parametrize("top", [0.5, 2.0, 3e12, np.inf])
@pytest.mark.parametrize("end", [1e-9, 0.9, 1.0 - 1e-14])
def test_the_search_ends_at_the_end_of_the_domain(end: float, top: float) -> None:
    found = maximise(lambda s: s if s <= end else -np.inf, 0.0, top)
    assert found == pytest.approx(min(end, top), rel=1e-13)
    assert found <= end


def test_a_ray_without_conditions_is_followed_to_the_end_of_the_domain() -> None:
    """min huber(x - 1) + huber(x + 1) + |x| = 2: theta = (2, -2) at the domain's edge, with no image on x."""
    x = cp.Variable(1)
    residual = x * np.ones(2) - np.array([1.0, -1.0])
    problem = cp.Problem(cp.Minimize(cp.sum(cp.huber(residual)) + cp.norm1(x)))
    x.value = np.array([5.0])
    alone = certificate(problem).dual
    assert alone is not None
    assert alone < 1.9
    for size in (0.02, 0.2, 1.3, 2.0, 300.0):
        found = certificate(problem, [DualPoint((np.array([size, -size]),))])
        assert found.dual == pytest.approx(2.0, rel=1e-9)


@pytest.mark.parametrize("bounded", [False, True])
def test_residuals_are_those_of_the_best_free_variable(bounded: bool) -> None:
    """Of losses that are not quadratic, whose gradients cannot be projected well; bounds are left alone."""
    rng = np.random.default_rng(8)
    X, labels = rng.standard_normal((20, 3)), np.where(rng.random(20) < 0.7, 1.0, -1.0)
    w, b = cp.Variable(3), cp.Variable(nonneg=bounded)
    loss = cp.sum(cp.logistic(-cp.multiply(labels, X @ w + b))) / 20
    composite = compile_problem(cp.Problem(cp.Minimize(loss + 0.1 * cp.norm(w))), numpy_backend()).composite()
    held = {w.id: np.array([0.5, -1.0, 0.2]), b.id: np.array(4.0)}
    outputs = composite.affine.forward(tuple(held[block.id] for block in composite.variables))
    (theta,) = DualBounds(composite).residual(outputs).thetas
    scores = X @ held[w.id]
    best = minimize_scalar(lambda c: np.sum(np.logaddexp(0.0, -labels * (scores + c))), tol=1e-12).x
    offset = 4.0 if bounded else float(best)
    np.testing.assert_allclose(theta, -expit(-labels * (scores + offset)) / 20, rtol=1e-6)
    assert abs(best - 4.0) > 1.0


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", ["maximum", "linear"])
def test_directions_that_no_scale_makes_feasible_are_moved_until_they_are(name: str, seed: int) -> None:
    """Zero is no dual point of a maximum, nor of a linear term larger than its penalty."""
    rng = np.random.default_rng(seed)
    X, y = rng.standard_normal((12, 3)), rng.standard_normal(12)
    w = cp.Variable(3)
    objectives: dict[str, Any] = {
        "maximum": cp.max(X @ w - y) + 0.5 * cp.norm1(w),
        "linear": cp.sum_squares(X @ w - y) / 24 + 0.3 * cp.norm(w) + np.array([0.2, 0.5, -0.3]) @ w,
    }
    problem: Any = cp.Problem(cp.Minimize(objectives[name]))
    problem.solve(solver=cp.CLARABEL)
    best, optimum = float(problem.value), np.array(w.value)
    for distance in (0.0, 0.1, 1.0):
        w.value = optimum + distance * rng.standard_normal(3)
        proof = certificate(problem)
        assert proof.dual is not None
        assert proof.dual <= best + 1e-7
        assert distance > 0.0 or proof.dual >= best - 1e-6
