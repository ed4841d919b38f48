"""Hostile certificates: programs put together at random, points and dual points from anybody.

The truth is Clarabel's. No bound may exceed the optimum, no feasible primal value may lie below it, nothing
may be written to the variables, and at the optimum itself the gap must close.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
from interior_point import optimum
from numpy.typing import NDArray

import convexnn_models as cnn
from convexnn_solvers import DualPoint, certificate
from convexnn_solvers.reading.atoms import gated, pattern_slack

Float = NDArray[np.float64]


@dataclass(frozen=True)
class Pieces:
    """A data fit and penalty in plain CVXPY, and what extra terms need to see."""

    objective: Any
    constraints: list[Any]
    weights: Any
    prediction: Any
    offset: Any

    def plus(self, term: Any) -> Pieces:
        return Pieces(self.objective + term, self.constraints, self.weights, self.prediction, self.offset)

    def under(self, *constraints: Any) -> Pieces:
        everything = [*self.constraints, *constraints]
        return Pieces(self.objective, everything, self.weights, self.prediction, self.offset)


huber: Any = cp.huber  # annotated for integer thresholds only

LOSSES: dict[str, Callable[[Any, Float], Any]] = {
    "squared": lambda f, y: cp.sum_squares(f - y) / (2 * len(y)),
    "squares": lambda f, y: cp.sum(cp.square(f - y)) / len(y),
    "huber": lambda f, y: cp.sum(huber(f - y, 0.7)) / len(y),
    "logistic": lambda f, y: cp.sum(cp.logistic(-cp.multiply(np.sign(y), f))) / len(y),
    "squared hinge": lambda f, y: cp.sum(cp.square(cp.pos(1 - cp.multiply(np.sign(y), f)))) / len(y),
}

EXTRAS: dict[str, Callable[[Pieces], Pieces]] = {
    "nothing": lambda p: p,
    "ridge": lambda p: p.plus(0.05 * cp.sum_squares(p.weights)),
    "linear": lambda p: p.plus(0.01 * cp.sum(p.weights[0]) - 3.0),
    "prediction": lambda p: p.under(p.prediction >= -1.0),
    "bound": lambda p: p.under(p.weights <= 0.4, -0.5 <= p.weights),
    "equality": lambda p: p.under(cp.sum(p.weights) == 0.1),
    "box": lambda p: p.plus(cp.sum_squares(cp.Variable(4, bounds=[-1, 2]) - 1.5)),
}


def program(
    seed: int, slope: float | None, outputs: int, loss: str, free: bool, plain: bool, signs: str = ""
) -> Pieces:
    """A network, gated (``slope`` None) or with cones, as atoms or written out."""
    rng = np.random.default_rng(seed)
    n, d = int(rng.integers(8, 16)), int(rng.integers(1, 4))
    X = rng.standard_normal((n, d))
    X[1] = X[0]
    y = 2.0 * rng.standard_normal((n, outputs)) + 1.0
    y[0], y[1] = 1.0, -1.0
    gates = cnn.sample_gates(X, 4, seed=seed)
    D = gates.patterns * 1.0
    on = D if slope is None else D + slope * (1.0 - D)
    V = [
        cp.Variable((d * outputs, len(gates)), nonneg=signs == "+", nonpos=signs == "-")
        for _ in range(1 if slope is None else 2)
    ]
    offset = cp.Variable(outputs)
    total = V[0] if len(V) == 1 else V[0] - V[1]
    rows = [slice(k * d, (k + 1) * d) for k in range(outputs)]
    if plain:
        f = cp.vstack([cp.sum(cp.multiply(on, X @ total[r, :]), axis=1) for r in rows]).T
        slacks = [cp.multiply(2.0 * D - 1.0, X @ (v if outputs == 1 else v[r, :])) for v in V for r in rows]
    else:
        f = cp.reshape(gated(X, gates.patterns, total, slope or 0.0), (n, outputs), order="F")
        slacks = [pattern_slack(X, gates.patterns, v) for v in V]
    if free:
        f = f + np.ones((n, 1)) @ cp.reshape(offset, (1, outputs), order="F")
    penalty = sum(cp.sum(cp.norm(v, 2, axis=0)) for v in V)
    objective = LOSSES[loss](f, y) + 10.0 ** rng.uniform(-3, -0.5) * penalty
    cones = [] if slope is None else [s >= 0 if k % 2 else -s <= 0 for k, s in enumerate(slacks)]
    return Pieces(objective, cones, V[0], f, offset)


CASES = [
    # slope (None: gated), outputs, loss, output bias, written out, signs, extra, maximise
    (None, 1, "squared", False, True, "", "nothing", False),
    (None, 2, "huber", True, False, "", "ridge", True),
    (None, 1, "logistic", True, True, "", "linear", False),
    (None, 1, "squared hinge", False, False, "", "bound", True),
    (None, 3, "squares", True, True, "", "equality", False),
    (None, 1, "huber", False, True, "-", "nothing", False),
    (None, 2, "squared", True, True, "+", "linear", True),
    (None, 1, "squared", True, False, "", "box", False),
    (0.0, 1, "squared", True, True, "", "nothing", True),
    (0.0, 2, "huber", True, True, "", "nothing", False),
    (0.0, 1, "logistic", True, False, "", "prediction", False),
    (0.0, 3, "logistic", False, True, "", "ridge", True),
    (0.0, 1, "squares", False, False, "", "equality", False),
    (0.0, 1, "squared", True, True, "-", "nothing", False),
    (0.0, 1, "squared hinge", True, True, "", "bound", False),
    (0.2, 2, "squared", False, False, "", "linear", True),
    (1.0, 2, "huber", True, True, "", "nothing", True),
    (-1.0, 1, "huber", True, False, "", "prediction", False),
    (1.5, 1, "logistic", False, True, "", "box", False),
    (-0.5, 2, "squared", True, True, "", "bound", True),
]


def hostile(dual: DualPoint, rng: np.random.Generator) -> list[DualPoint]:
    """Dual points that a careless, single-precision or malicious solver could hand in."""
    distortions: list[Callable[[Float], Float]] = [
        lambda a: -a,
        lambda a: 50.0 * a,
        lambda a: 1e12 * a,
        lambda a: a + 0.1 * rng.standard_normal(a.shape) * np.abs(a).max(initial=0.0),
        lambda a: a.astype(np.float32).astype(np.float64),
        lambda a: a + 1e-3,
    ]
    return [
        DualPoint(
            tuple(change(t) for t in dual.thetas),
            tuple(None if m is None else change(m) for m in dual.multipliers),
        )
        for change in distortions
    ]


@pytest.mark.filterwarnings("ignore:Solution may be inaccurate")
@pytest.mark.parametrize(("slope", "outputs", "loss", "free", "plain", "signs", "extra", "maximise"), CASES)
def test_no_bound_passes_the_optimum(
    slope: float | None,
    outputs: int,
    loss: str,
    free: bool,
    plain: bool,
    signs: str,
    extra: str,
    maximise: bool,
) -> None:
    pieces = EXTRAS[extra](program(len(extra) + outputs, slope, outputs, loss, free, plain, signs))
    sense = cp.Maximize(-pieces.objective) if maximise else cp.Minimize(pieces.objective)
    problem: Any = cp.Problem(sense, pieces.constraints)
    direction = -1.0 if maximise else 1.0
    best = direction * optimum(problem, 1e-11, 1e-10, 1e-9)
    tolerance = 3e-8 * (1.0 + abs(best))
    variables: list[Any] = problem.variables()
    solution = [np.array(v.value) for v in variables]
    rng = np.random.default_rng(0)

    def judged(duals: list[DualPoint]) -> Any:
        held = [np.array(v.value) for v in variables]
        found = certificate(problem, duals)
        assert all(np.array_equal(a, v.value) for a, v in zip(held, variables, strict=True))
        assert found.dual is None or direction * found.dual <= best + tolerance
        if found.gap is not None and "up to the violation" not in found.note:
            assert direction * found.primal >= best - tolerance
            assert found.gap >= -1e-11 * (1.0 + abs(found.primal))
        return found

    exact = judged([])
    assert exact.relative_gap is not None
    assert exact.relative_gap <= 1e-5
    assert exact.dual_point is not None
    for dual in hostile(exact.dual_point, rng):
        judged([dual])
    for scale in (1e-9, 1e-4, 0.3, 1e5):
        for variable, value in zip(variables, solution, strict=True):
            variable.save_value(np.asarray(value + scale * rng.standard_normal(value.shape)))
        judged([])
    for variable in variables:
        variable.save_value(np.zeros(variable.shape))
    for dual in hostile(exact.dual_point, rng):
        judged([dual])
    problem.solve(solver=cp.SCS, eps=1e-2)
    judged([])


@pytest.mark.parametrize("group", [np.s_[:2], np.s_[1:], np.s_[2]], ids=str)
def test_a_penalty_within_another_counts_where_it_sticks_out(group: Any) -> None:
    """3 |x|_1 and a norm of some entries: the others had no condition, and x = 0 was called optimal."""
    x, targets = cp.Variable(4), np.array([3.0, -2.0, 4.0, -5.0])
    objective = cp.sum_squares(x - targets) / 2 + 3 * cp.norm1(x) + 0.2 * cp.norm(x[group])
    problem = cp.Problem(cp.Minimize(objective))
    value = optimum(problem)
    for point in (np.zeros(4), targets, np.array([0.3, 1.0, -1.0, 0.5])):
        x.value = point
        found = certificate(problem)
        assert found.dual is not None
        assert found.dual <= value * (1.0 + 1e-9)


@pytest.mark.parametrize("outputs", [1, 2])
def test_targets_out_of_the_losses_reach_have_a_bound(outputs: int) -> None:
    """Huber with an output bias, every sample in the linear part: no curvature to refit the bias with."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((12, 2))
    model = cnn.relu(X, cnn.sample_gates(X, 4), outputs=outputs, output_bias=True)
    y = 100.0 + rng.standard_normal((12, outputs))
    problem = model.problem(y if outputs > 1 else y[:, 0], 0.01, loss="huber")
    best = optimum(problem)
    assert certificate(problem).relative_gap == pytest.approx(0.0, abs=1e-5)
    for variable in model.variables:
        variable.value = np.zeros(variable.shape)
    found = certificate(problem)
    assert found.dual is not None
    assert 0.0 < found.dual <= best * (1.0 + 1e-8)


@pytest.mark.parametrize("loss", ["squared", "huber"])
@pytest.mark.parametrize("offset", [0.0, 1e4, 1e8])
@pytest.mark.parametrize("error", [0.0, 1e-13, 9e-13, 1e-10])
def test_labels_far_away_do_not_lift_the_bound(offset: float, error: float, loss: str) -> None:
    """A free bias far from zero makes a tiny error in the condition on theta a large one of the bound."""
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((20, 3)), rng.standard_normal(20)
    near, far = (cnn.gated_relu(X, cnn.sample_gates(X, 5), output_bias=True) for _ in range(2))
    problem = near.problem(y, 0.02, loss=loss)
    optimum(problem)
    exact = certificate(problem)
    assert exact.dual_point is not None
    theta = exact.dual_point.thetas[0]
    far.variables[0].value = near.variables[0].value
    far.variables[1].value = near.variables[1].value + offset
    crooked = theta + error * np.abs(theta).mean()
    found = certificate(far.problem(y + offset, 0.02, loss=loss), [crooked])
    assert found.dual is not None
    assert found.gap is not None
    rounding = 1e-15 * offset * (1.0 + np.abs(y).max())  # of the labels themselves
    assert found.dual <= exact.primal + rounding
    assert 0.0 <= found.gap <= 1e-8 + 10.0 * rounding


@pytest.mark.parametrize("loss", ["squared", "huber"])
@pytest.mark.parametrize("angle", [1e-4, 1e-6, 1e-8, 1e-10])
@pytest.mark.parametrize("seed", range(3))
def test_columns_almost_alike_do_not_lift_the_bound(seed: int, angle: float, loss: str) -> None:
    """Free coefficients of two such columns may be of size 1/angle: a bound pays for its rounding there."""
    rng = np.random.default_rng(seed)
    A, y, x = rng.standard_normal((12, 4)), rng.standard_normal(12), rng.standard_normal(12)
    u, b = cp.Variable(4), cp.Variable(2)
    columns = np.column_stack([x, x + angle * rng.standard_normal(12)])
    problem = cp.Problem(cp.Minimize(LOSSES[loss](A @ u + columns @ b, y) + 0.02 * cp.norm1(u)))
    problem.solve(solver=cp.CLARABEL, tol_gap_abs=1e-13, tol_gap_rel=1e-13, tol_feas=1e-13)
    found = certificate(problem)
    assert found.dual is not None
    assert found.gap is not None
    assert 0.0 <= found.gap <= (1e-12 / angle + 1e-8) * found.primal


def test_a_dual_point_may_stand_alone() -> None:
    rng = np.random.default_rng(0)
    X = rng.standard_normal((12, 2))
    problem = cnn.gated_relu(X, cnn.sample_gates(X, 4)).problem(X[:, 0], 0.01)
    optimum(problem)
    found = certificate(problem)
    assert found.dual_point is not None
    assert certificate(problem, found.dual_point).dual == pytest.approx(found.dual, rel=1e-12)


def test_a_quadratic_form_may_vanish() -> None:
    """CVXPY then evaluates it to rounding, of either sign: no reason to refuse the certificate."""
    rng = np.random.default_rng(0)
    X, y, root = rng.standard_normal((6, 6)), rng.standard_normal(6), rng.standard_normal((6, 2))
    w = cp.Variable(6)
    problem = cp.Problem(cp.Minimize(cp.quad_form(X @ w - y, cp.psd_wrap(root @ root.T))))
    for scale in 10.0 ** np.arange(-3.0, 4.0):
        off = rng.standard_normal(6)
        off -= root @ np.linalg.lstsq(root, off, rcond=None)[0]
        w.value = np.linalg.solve(X, y + scale * off)
        found = certificate(problem)
        assert found.gap is not None
        assert abs(found.primal) + found.gap <= 1e-12


def test_programs_without_a_loss() -> None:
    x = cp.Variable(3)
    problem: Any = cp.Problem(cp.Maximize(cp.sum(x)), [x <= 1.0])
    x.value = np.zeros(3)
    assert certificate(problem).dual is None
    problem.solve(solver=cp.CLARABEL)
    found = certificate(problem, [DualPoint((), (np.ones(3),))])
    assert found.dual == pytest.approx(3.0, rel=1e-12)


NOT_PROBLEMS: list[Any] = [None, 3, "problem", np.zeros(3), cp.Minimize(cp.Variable())]


@pytest.mark.parametrize("wrong", NOT_PROBLEMS)
def test_what_is_no_problem_is_refused_by_name(wrong: Any) -> None:
    with pytest.raises(TypeError, match=r"problem must be a cp\.Problem"):
        certificate(wrong)


def test_complex_duals_are_refused() -> None:
    X = np.eye(3)
    problem = cnn.gated_relu(X, cnn.sample_gates(X, 2)).problem(np.ones(3), 0.1)
    problem.solve(solver=cp.CLARABEL)
    with pytest.raises(TypeError, match="real arrays"):
        certificate(problem, [np.ones(3) * 1j])
