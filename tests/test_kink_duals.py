"""After an interior-point solver, who leaves no dual value of a loss, certificates find one at its kinks."""

from __future__ import annotations

from typing import Any

import cvxpy as cp
import numpy as np
import pytest
from interior_point import optimum
from numpy.typing import NDArray

import convexnn_models as cnn
from convexnn_solvers import certificate
from convexnn_solvers.backends import numpy_backend
from convexnn_solvers.certify.kink_duals import kink_duals
from convexnn_solvers.functions.nonsmooth_losses import Kinked, Maximum, Norms, PiecewiseLinear, Supremum
from convexnn_solvers.reading.compiler import compile_problem

Float = NDArray[np.float64]
N, D = 100, 4
RNG = np.random.default_rng(0)
X: Float = RNG.standard_normal((N, D))
Y: Float = np.sin(2.0 * X[:, 0]) + 0.3 * RNG.standard_normal(N)
LABELS: Float = np.sign(Y)
ROWS: Float = RNG.standard_normal((6, D))
LOSSES: dict[str, Any] = {
    "l1": lambda F: cp.sum(cp.abs(F - Y)) / N,
    "hinge": lambda F: cp.sum(cp.pos(1 - cp.multiply(LABELS, F))) / N,
    "quantile": lambda F: cp.sum(cp.maximum(0.8 * (F - Y), -0.2 * (F - Y))) / N,
    "largest": lambda F: cp.norm_inf(F - Y),
    "l1 and squares": lambda F: cp.sum(cp.abs(F - Y)) / N + cp.sum_squares(F) / (10 * N),
}
CASES = [(cnn.gated_relu, name) for name in LOSSES] + [(cnn.relu, name) for name in LOSSES]


@pytest.mark.parametrize(("kind", "loss"), CASES, ids=lambda c: getattr(c, "__name__", c))
def test_interior_point_solutions_have_tight_certificates(kind: Any, loss: str) -> None:
    model = kind(X, cnn.sample_gates(X, 30, seed=0))
    problem = cp.Problem(
        cp.Minimize(LOSSES[loss](model.prediction) + 0.01 * model.penalty), model.constraints
    )
    problem.solve(solver=cp.CLARABEL)
    found = certificate(problem)
    assert found.relative_gap is not None
    assert -1e-9 <= found.relative_gap < 1e-5


@pytest.mark.parametrize("loss", ["l1", "quantile", "largest"])
def test_targets_that_are_met_are_all_kinks(loss: str) -> None:
    """The residuals are the solver's rounding, and none is large beside the others."""
    few = slice(0, 3)
    x = cp.Variable(D)
    r = X[few] @ x - Y[few]
    losses = {
        "l1": cp.norm1(r),
        "quantile": cp.sum(cp.maximum(0.8 * r, -0.2 * r)),
        "largest": cp.norm_inf(r),
    }
    problem = cp.Problem(cp.Minimize(100.0 * losses[loss] + cp.sum_squares(x)))
    problem.solve(solver=cp.CLARABEL)
    assert np.max(np.abs(np.asarray(r.value))) < 1e-7
    gap = certificate(problem).relative_gap
    assert gap is not None
    assert gap < 1e-5


VARIANTS: dict[str, Any] = {
    "bias": lambda x, b: (cp.sum(cp.abs(X @ x + b - Y)) / N + 0.1 * cp.norm(x), []),
    "l1": lambda x, b: (cp.sum(cp.pos(1 - cp.multiply(LABELS, X @ x))) / N + 0.05 * cp.norm1(x), []),
    "bounds": lambda x, b: (cp.sum(cp.abs(X @ x - Y)) / N + 0.1 * cp.norm1(x), [x >= 0]),
    "one argument that vanishes": lambda x, b: (
        cp.sum_squares(X @ x - Y) / N + cp.abs(cp.sum(X[:50] @ x) - cp.sum(X[50:] @ x)) + 0.1 * cp.norm(x),
        [],
    ),
    "two losses with the same kinks": lambda x, b: (
        cp.sum(0.3 * cp.pos(X @ x - Y) + 0.7 * cp.neg(X @ x - Y)) / N + 0.05 * cp.norm(x),
        [],
    ),
    "norms, of which one vanishes": lambda x, b: (
        cp.sum_squares(X @ x - Y) / N
        + np.array([0.02, 0.8, 0.02]) @ cp.norm(cp.reshape(ROWS @ x, (3, 2), order="C"), 2, axis=1),
        [],
    ),
    "coupling": lambda x, b: (cp.sum(cp.abs(X @ x - Y)) / N + 0.1 * cp.norm(x), [cp.sum(X @ x) == 1]),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_whatever_else_there_is(variant: str) -> None:
    x, b = cp.Variable(D), cp.Variable()
    objective, constraints = VARIANTS[variant](x, b)
    problem = cp.Problem(cp.Minimize(objective), constraints)
    value = optimum(problem)
    found = certificate(problem)
    assert found.relative_gap is not None
    assert found.relative_gap < 1e-5
    for scale in (1e-3, 1.0, 0.0):  # no solution any more: a bound all the same
        for v in problem.variables():
            v.save_value(scale * np.random.default_rng(1).standard_normal(v.shape))
        away = certificate(problem)
        assert away.dual is None or away.dual <= value * (1.0 + 1e-9)


def test_losses_without_kinks_ask_for_nothing() -> None:
    x = cp.Variable(D)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(X @ x - Y) + cp.norm(x)))
    composite = compile_problem(problem, numpy_backend()).composite()
    assert kink_duals(composite, (np.ones(D),), ()) == []


@pytest.mark.parametrize(
    "loss", [PiecewiseLinear(-0.2, 0.8), Maximum(), Maximum(0), Supremum(1), Norms(0), Norms(1)], ids=str
)
def test_a_face_holds_subgradients_only(loss: Kinked) -> None:
    """Fenchel and Young with equality, in the middle of the face and a little beside it."""
    judged: Any = loss
    rng = np.random.default_rng(4)
    for q in (np.array([[0.0, 2.0, -1.0], [0.0, 2.0, 1.0]]), np.eye(3), rng.standard_normal((4, 3))):
        face = loss.face(q, 0.3, 1e-9)
        t = 1e-3 * rng.standard_normal(q.shape)
        np.testing.assert_allclose(face.along(face.along(t)), face.along(t), atol=1e-16)
        for v in (face.middle, face.middle + face.along(t)):
            inside = judged.nearest(v, 0.3)
            np.testing.assert_allclose(inside, v, atol=1e-12)
            assert float(np.sum(v * q)) == pytest.approx(float(judged.value(q, 0.3, np)), abs=1e-14)


@pytest.mark.parametrize(("other", "kind"), [(1.0, PiecewiseLinear), (2.0, Maximum)])
def test_the_quantile_loss_may_be_written_twice(other: float, kind: type) -> None:
    x = cp.Variable(D)
    loss = cp.sum(cp.maximum(0.8 * (X @ x - Y), -0.2 * (X @ x - other * Y)))
    composite = compile_problem(cp.Problem(cp.Minimize(loss + cp.norm(x))), numpy_backend()).composite()
    assert isinstance(composite.losses[0].loss, kind)
