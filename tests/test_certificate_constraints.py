"""Bounds with general constraints, free and bounded variables, linear terms; and honest refusals.

Every optimum here is known in closed form, or from Clarabel where the test says so.
"""

from __future__ import annotations

from typing import Any

import cvxpy as cp
import numpy as np
import pytest
from numpy.typing import NDArray

from convexnn_solvers.certify.certificate import certificate
from convexnn_solvers.composite import DualPoint

Float = NDArray[np.float64]

TIGHT = {"tol_gap_abs": 1e-10, "tol_gap_rel": 1e-10, "tol_feas": 1e-10}


def _value(problem: Any) -> float:
    return float(problem.value)


def _projection_problem(cone: str) -> tuple[cp.Problem, cp.Variable, float]:
    """min 1/2 ||x - a||^2 + 0.1 ||x||_1 subject to constraints on x, solved by hand."""
    x = cp.Variable(4, name="x")
    a = np.array([3.0, -2.0, 0.05, 1.0])
    constraints: list[Any]
    if cone == "inequality":  # x <= 1: shrink, then clip
        constraints, best = [x <= 1.0], np.array([1.0, -1.9, 0.0, 0.9])
    elif cone == "equality":  # the first two entries fixed
        constraints, best = [x[:2] == np.array([1.0, 1.0])], np.array([1.0, 1.0, 0.0, 0.9])
    else:  # x >= 2, written from the other side
        constraints, best = [x - 2.0 >= 0.0], np.array([2.9, 2.0, 2.0, 2.0])
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - a) / 2 + 0.1 * cp.norm1(x)), constraints)
    return problem, x, 0.5 * float(np.sum((best - a) ** 2)) + 0.1 * float(np.abs(best).sum())


@pytest.mark.parametrize("cone", ["inequality", "equality", "reversed"])
def test_constraint_dual_values_give_the_bound(cone: str) -> None:
    problem, _, value = _projection_problem(cone)
    problem.solve(solver=cp.CLARABEL, **TIGHT)
    found = certificate(problem)
    assert found.dual is not None
    assert found.dual <= value + 1e-12 * value
    assert found.dual == pytest.approx(value, rel=1e-7)
    assert found.primal == pytest.approx(value, rel=1e-7)


@pytest.mark.parametrize("cone", ["inequality", "equality", "reversed"])
def test_multipliers_of_any_sign_and_size_keep_the_bound_below(cone: str) -> None:
    problem, x, value = _projection_problem(cone)
    problem.solve(solver=cp.CLARABEL, **TIGHT)
    exact = np.asarray(problem.constraints[0].dual_value)
    rng = np.random.default_rng(0)
    for _ in range(50):
        noise = rng.standard_normal(exact.shape) * np.power(10.0, rng.uniform(-6, 4))
        theta = rng.standard_normal(4) * np.power(10.0, rng.uniform(-3, 3))
        multipliers = (rng.choice([-1.0, 0.0, 1.0]) * exact + noise,)
        x.value = rng.standard_normal(4)
        found = certificate(problem, [DualPoint((theta,), multipliers), DualPoint((), multipliers)])
        assert found.dual is not None
        assert found.dual <= value * (1.0 + 1e-12)


def test_a_point_outside_general_constraints_has_no_gap() -> None:
    problem, x, value = _projection_problem("inequality")
    x.value = np.array([3.0, -1.9, 0.0, 0.9])  # better than the optimum, and not allowed
    found = certificate(problem)
    assert found.primal < value
    assert found.max_violation == pytest.approx(2.0)
    assert found.gap is None
    assert found.relative_gap is None
    assert found.dual is not None
    assert found.dual <= value
    assert "no upper bound" in found.note
    assert "violates" in str(found)


def test_interpolation_is_bounded_by_its_multipliers_alone() -> None:
    """min ||x|| subject to B x = b has value ||B^+ b||; there is no loss at all."""
    rng = np.random.default_rng(1)
    B, b = rng.standard_normal((3, 8)), rng.standard_normal(3)
    x = cp.Variable(8)
    problem = cp.Problem(cp.Minimize(cp.norm(x)), [B @ x == b])
    best = np.linalg.lstsq(B, b)[0]
    x.value = best
    alone = certificate(problem)
    assert alone.dual == 0.0  # nothing to scale without multipliers: the trivial bound
    multiplier = -np.linalg.lstsq(B @ B.T, b)[0] / np.linalg.norm(best)
    for mu in (multiplier, -multiplier):
        found = certificate(problem, [DualPoint((), (mu,))])
        assert found.dual is not None
        assert found.dual <= float(np.linalg.norm(best)) * (1.0 + 1e-12)
    problem.solve(solver=cp.CLARABEL, **TIGHT)
    assert certificate(problem).dual == pytest.approx(np.linalg.norm(best), rel=1e-8)


def test_maximisation_is_bounded_from_above() -> None:
    x = cp.Variable(2, name="x")
    a = np.array([3.0, 0.5])
    problem = cp.Problem(cp.Maximize(5.0 - cp.sum_squares(x - a) / 2 - cp.norm(x)))
    best = a * (1.0 - 1.0 / np.linalg.norm(a))
    value = 5.0 - 0.5 - np.linalg.norm(best)
    x.value = best
    found = certificate(problem)
    assert found.primal == pytest.approx(value)
    assert found.dual == pytest.approx(value)
    x.value = best + 0.3
    found = certificate(problem)
    assert found.dual is not None
    assert found.gap is not None
    assert found.primal < value <= found.dual + 1e-12
    assert found.gap == pytest.approx(found.dual - found.primal)


def test_minimising_the_same_gives_the_mirror_image() -> None:
    x, y = cp.Variable(2), cp.Variable(2)
    concave = cp.Problem(cp.Maximize(-cp.sum_squares(x - 1.0) - cp.norm1(x) + 2.0))
    convex = cp.Problem(cp.Minimize(cp.sum_squares(y - 1.0) + cp.norm1(y) - 2.0))
    x.value = y.value = np.array([0.7, 0.1])
    up, down = certificate(concave), certificate(convex)
    assert up.dual is not None
    assert down.dual is not None
    assert (up.primal, up.dual) == (-down.primal, -down.dual)
    assert up.gap == down.gap


def test_two_free_variables_are_both_projected_out() -> None:
    """A free offset and a free trend beside a lasso: centre and detrend by hand, then certify."""
    rng = np.random.default_rng(2)
    n = 30
    B, y, t = rng.standard_normal((n, 5)), rng.standard_normal(n), np.linspace(-1, 1, n)
    w, offset, trend = cp.Variable(5), cp.Variable(), cp.Variable(1)
    residual = B @ w + offset + t * trend[0] - y
    problem = cp.Problem(cp.Minimize(cp.sum_squares(residual) / (2 * n) + 0.1 * cp.norm1(w)))
    problem.solve(solver=cp.CLARABEL, **TIGHT)
    best = _value(problem)
    found = certificate(problem)
    assert found.relative_gap is not None
    assert 0.0 <= found.relative_gap <= 1e-7
    for _ in range(20):
        for variable in (w, offset, trend):
            variable.value = np.asarray(variable.value) + rng.standard_normal(variable.shape)
        dual = certificate(problem).dual
        assert dual is not None
        assert dual <= best * (1.0 + 1e-9)


@pytest.mark.parametrize("loss", ["huber", "logistic", "mixed"])
def test_free_offset_with_bounded_conjugates(loss: str) -> None:
    rng = np.random.default_rng(3)
    n = 40
    B = rng.standard_normal((n, 4))
    y = np.sign(B[:, 0] + 0.5 + 0.5 * rng.standard_normal(n))
    w, offset = cp.Variable(4), cp.Variable()
    scores = B @ w + offset
    threshold: Any = 0.5
    if loss == "huber":
        fit = cp.sum(cp.huber(scores - 3.0 * y - 5.0, threshold)) / n
    elif loss == "logistic":
        fit = cp.sum(cp.logistic(cp.multiply(-y, scores))) / n
    else:
        fit = cp.sum(cp.logistic(cp.multiply(-y, scores))) / n + cp.sum_squares(scores[:5] - 1.0)
    problem = cp.Problem(cp.Minimize(fit + 0.05 * cp.norm(w)))
    problem.solve(solver=cp.CLARABEL)
    best = _value(problem)
    found = certificate(problem)
    assert found.relative_gap is not None
    assert -1e-12 <= found.relative_gap <= 1e-5
    for scale in (1e-3, 0.1, 3.0, 100.0):
        w.value, offset.value = scale * rng.standard_normal(4), np.asarray(scale * rng.standard_normal())
        dual = certificate(problem).dual
        assert dual is not None
        assert 0.0 <= dual <= best * (1.0 + 1e-7)


def test_boxes_of_unpenalised_variables_are_paid_for() -> None:
    """min 1/2 (w + b - 4)^2 + |w| with 0 <= b <= 1: b = 1, w = 2, value 2.5."""
    w, b = cp.Variable(name="w"), cp.Variable(bounds=[0.0, 1.0], name="b")
    problem = cp.Problem(cp.Minimize(cp.square(w + b - 4.0) / 2 + cp.abs(w)))
    w.value, b.value = np.asarray(2.0), np.asarray(1.0)
    found = certificate(problem)
    assert found.primal == pytest.approx(2.5)
    assert found.dual == pytest.approx(2.5)
    for b0, w0 in ((0.0, 0.0), (0.5, 3.0), (1.0, -7.0)):
        w.value, b.value = np.asarray(w0), np.asarray(b0)
        dual = certificate(problem).dual
        assert dual is not None
        assert dual <= 2.5 * (1.0 + 1e-12)


def test_non_negative_penalised_variables_use_their_sign() -> None:
    """min 1/2 ||x - a||^2 + ||x||_1 over x >= 0: entries below the threshold cost nothing."""
    a = np.array([3.0, -5.0, 0.5])
    x = cp.Variable(3, nonneg=True)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - a) / 2 + cp.norm1(x)))
    x.value = np.array([2.0, 0.0, 0.0])
    found = certificate(problem)
    assert found.primal == pytest.approx(0.5 + 12.5 + 0.125 + 2.0)
    assert found.relative_gap == pytest.approx(0.0, abs=1e-12)


def test_a_variable_bounded_on_one_side_only_needs_the_right_sign() -> None:
    """Without penalty and upper bound a positive direction has no bound, and none is claimed."""
    x = cp.Variable(2, nonneg=True, name="x")
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - np.array([1.0, -1.0]))))
    x.value = np.array([1.0, 0.0])
    found = certificate(problem)
    if found.dual is not None:
        assert found.dual <= 1.0 + 1e-12


def test_linear_terms_on_penalised_variables() -> None:
    """min 1/2 ||x - a||^2 + <c, x> + 2 ||x||_1 is soft thresholding of a - c."""
    a, c = np.array([5.0, -4.0, 0.3]), np.array([0.5, 0.7, -0.2])
    x = cp.Variable(3)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - a) / 2 + c @ x + 2.0 * cp.norm1(x)))
    best = np.sign(a - c) * np.maximum(np.abs(a - c) - 2.0, 0.0)
    value = 0.5 * np.sum((best - a) ** 2) + c @ best + 2.0 * np.abs(best).sum()
    x.value = best
    found = certificate(problem)
    assert found.primal == pytest.approx(value)
    assert found.dual == pytest.approx(value, rel=1e-9)
    rng = np.random.default_rng(4)
    for _ in range(20):
        x.value = 3.0 * rng.standard_normal(3)
        dual = certificate(problem).dual
        assert dual is None or dual <= value + 1e-12 * abs(value)


def test_an_unbounded_problem_gets_no_bound() -> None:
    """min <c, x> + ||x||_1 with |c| > 1 somewhere is unbounded: nothing may be claimed."""
    x = cp.Variable(2)
    problem = cp.Problem(cp.Minimize(np.array([0.5, -2.0]) @ x + cp.norm1(x)))
    x.value = np.array([0.0, 7.0])
    assert certificate(problem).dual is None


def test_an_unreachable_free_variable_is_named() -> None:
    """A free variable that only a constraint holds back: no multipliers, no bound, and a reason."""
    x, b = cp.Variable(2, name="x"), cp.Variable(name="b")
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - 0.2) + b + cp.norm1(x)), [b >= 3.0])
    x.value, b.value = np.zeros(2), np.asarray(3.0)
    found = certificate(problem)
    assert found.dual is None
    assert "no lower bound" in found.note
    with_multiplier = certificate(problem, [DualPoint((np.full(2, 0.4),), (np.asarray(1.0),))])
    assert with_multiplier.dual == pytest.approx(0.08 + 3.0)
    assert with_multiplier.relative_gap == pytest.approx(0.0, abs=1e-12)
