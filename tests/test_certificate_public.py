"""``certificate(problem)`` on CVXPY problems of the models, at points from Clarabel and from anybody."""

from __future__ import annotations

from itertools import product
from types import SimpleNamespace
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
from numpy.typing import NDArray
from planted import dual_blocks, plant

from convexnn_models.gated_relu import gated_relu
from convexnn_models.gates import sample_gates
from convexnn_models.piecewise_linear import piecewise_linear
from convexnn_models.relu import relu
from convexnn_solvers.certify.certificate import Certificate, certificate
from convexnn_solvers.composite import DualPoint
from convexnn_solvers.solver_classes import SemismoothNewton

Float = NDArray[np.float64]

TIGHT = {"tol_gap_abs": 1e-10, "tol_gap_rel": 1e-10, "tol_feas": 1e-10}


def _model(kind: str, X: Float, gates: Any, **options: Any) -> Any:
    if kind == "piecewise":
        return piecewise_linear(X, gates, slope=0.1, **options)
    return relu(X, gates, **options) if kind == "relu" else gated_relu(X, gates, **options)


def _labels(rng: np.random.Generator, n: int, outputs: int, loss: str) -> Any:
    if loss == "softmax":
        return np.arange(n) % outputs
    Y = rng.standard_normal((n, outputs) if outputs > 1 else n)
    return np.where(Y >= 0.0, 1.0, -1.0) if loss in ("logistic", "squared_hinge") else 2.0 * Y


CASES = [
    *product(
        ("gated", "relu"), (1, 2), ("shared", "per-output"), (False, True), ("squared", "huber", "logistic")
    ),
    ("relu", 3, "shared", True, "softmax"),
    ("gated", 3, "per-output", False, "softmax"),
    ("relu", 1, "shared", True, "squared_hinge"),
    ("piecewise", 2, "shared", True, "squared"),
]


@pytest.mark.filterwarnings("ignore:Solution may be inaccurate")  # the tolerances are beyond Clarabel's own
@pytest.mark.parametrize(("kind", "outputs", "grouping", "output_bias", "loss"), CASES)
def test_against_clarabel(kind: str, outputs: int, grouping: str, output_bias: bool, loss: str) -> None:
    """Tight where Clarabel ended, and never above its value from anywhere else."""
    rng = np.random.default_rng(outputs)
    n = 24
    X = rng.standard_normal((n, 3))
    gates = sample_gates(X, 6, seed=1)
    model = _model(kind, X, gates, outputs=outputs, grouping=grouping, output_bias=output_bias)
    problem = model.problem(_labels(rng, n, outputs, loss), 0.03, loss=loss)
    problem.solve(solver=cp.CLARABEL, **TIGHT)
    found = certificate(problem)
    assert found.relative_gap is not None
    assert -1e-12 <= found.relative_gap <= 1e-4
    assert found.primal == pytest.approx(problem.value, rel=1e-5)
    assert found.scope == "the 6 sampled gates"
    assert str(found).count("\n") == 0
    assert "for the 6 sampled gates" in str(found)
    upper = found.primal
    for scale in (0.0, 1e-3, 0.3, 10.0):
        for variable in model.variables:
            variable.value = np.asarray(variable.value + scale * rng.standard_normal(variable.shape))
        elsewhere = certificate(problem)
        assert elsewhere.dual is not None
        assert elsewhere.gap is not None
        assert elsewhere.dual <= upper * (1.0 + 1e-12)
        assert found.dual is not None
        assert elsewhere.primal >= found.dual


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("cones", [False, True])
def test_planted_network_in_cvxpy(cones: bool, bias: bool) -> None:
    """The planted optimum, written with plain norms and a weight per group, is certified through CVXPY."""
    planted = plant(8, cones=cones, bias=bias)
    n, d = planted.X.shape
    blocks = [cp.Variable(v.shape) for v in planted.blocks]
    S = np.where(planted.patterns, 1.0, -1.0)
    prediction: Any = 0.0
    for sign, U in zip(planted.signs, blocks, strict=True):
        prediction = prediction + sign * cp.sum(cp.multiply(planted.patterns * 1.0, planted.X @ U), axis=1)
    offset = cp.Variable()
    if bias:
        prediction = prediction + offset
    fit = cp.sum_squares(prediction - planted.targets[:, 0]) / (2 * n)
    penalty = sum(
        cp.sum(cp.multiply(w, cp.norm(U, 2, axis=0))) for w, U in zip(planted.weights, blocks, strict=True)
    )
    constraints: list[Any] = [cp.multiply(S, planted.X @ U) >= 0 for U in blocks] if cones else []
    problem = cp.Problem(cp.Minimize(fit + penalty), constraints)
    for variable, value in zip([*blocks, offset], planted.point, strict=False):
        variable.value = value[0] if variable.shape == () else value
    found = certificate(problem)
    assert found.primal == pytest.approx(planted.value, rel=1e-13)
    assert found.relative_gap is not None
    assert 0.0 <= found.relative_gap <= 1e-9
    assert d == 3


def _small_relu(seed: int = 0) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((20, 3))
    model = relu(X, sample_gates(X, 6, seed=0))
    return model, model.problem(X[:, 0] + np.abs(X[:, 1]), 0.02)


def test_an_infeasible_point_is_judged_on_a_repaired_copy() -> None:
    model, problem = _small_relu()
    rng = np.random.default_rng(5)
    held = [rng.standard_normal(v.shape) for v in model.variables]
    for variable, value in zip(model.variables, held, strict=True):
        variable.value = value
    violation = max(float(np.max(c.violation())) for c in problem.constraints)
    found = certificate(problem)
    assert found.repaired
    assert found.max_violation == pytest.approx(violation, rel=1e-12)
    assert found.gap is not None
    assert found.gap >= 0.0
    for variable, value in zip(model.variables, held, strict=True):
        np.testing.assert_array_equal(variable.value, value)


def test_zero_is_certified_optimal_from_lambda_max_on() -> None:
    """At ``reg = max ||P_K(+-X^T D y)|| / n`` zero is optimal, just below it is not."""
    model, problem = _small_relu()
    for variable in model.variables:
        variable.value = np.zeros(variable.shape)
    model.reg.value = 1e9
    y = model.training.y
    patterns, X = model.gates.patterns, model.X
    theta = np.asarray(y)[:, None] / len(y)
    norms = [np.linalg.norm(dual_blocks(X, patterns, theta, s, cones=True), axis=0).max() for s in (1, -1)]
    largest = max(norms)
    model.reg.value = 1.0001 * largest
    assert certificate(problem).relative_gap == pytest.approx(0.0, abs=1e-12)
    model.reg.value = 0.9 * largest
    below = certificate(problem).relative_gap
    assert below is not None
    assert below > 1e-3


@pytest.mark.parametrize("kind", ["gated", "relu"])
@pytest.mark.parametrize("reg", [0.0, 0.1])
def test_zero_targets(kind: str, reg: float) -> None:
    """y = 0: the optimum is zero, theta is zero, lambda_max is zero; nothing is divided by it."""
    rng = np.random.default_rng(6)
    X = rng.standard_normal((15, 2))
    model = _model(kind, X, sample_gates(X, 5, seed=0))
    problem = model.problem(np.zeros(15), reg)
    for variable in model.variables:
        variable.value = np.zeros(variable.shape)
    found = certificate(problem)
    assert (found.primal, found.dual, found.gap, found.relative_gap) == (0.0, 0.0, 0.0, 0.0)
    model.variables[0].value = np.ones(model.variables[0].shape)
    elsewhere = certificate(problem)
    assert elsewhere.dual is not None
    assert elsewhere.dual <= 0.0
    assert elsewhere.dual == pytest.approx(0.0, abs=1e-12)


def test_without_regularisation_the_bound_is_the_trivial_one() -> None:
    _, problem = _small_relu()
    problem.parameters()[0].value = 0.0
    problem.solve(solver=cp.CLARABEL)
    found = certificate(problem)
    assert found.dual is not None
    assert 0.0 <= found.dual <= found.primal


def test_candidates_left_by_a_solver_are_used_and_verified() -> None:
    """A good dual point in the solver's statistics closes the gap at a bad point; a bad one does no harm."""
    model, problem = _small_relu()
    problem.solve(solver=cp.CLARABEL, **TIGHT)
    exact = certificate(problem)
    assert exact.dual is not None
    for variable in model.variables:
        variable.value = np.zeros(variable.shape)
    alone = certificate(problem)
    assert alone.dual is not None
    assert alone.dual < 0.99 * exact.dual
    problem._solver_stats = SimpleNamespace(extra_stats={"dual_point": exact.dual_point})
    assert certificate(problem).dual == pytest.approx(exact.dual, rel=1e-12)
    assert exact.dual_point is not None
    wrong = DualPoint(tuple(50.0 * t for t in exact.dual_point.thetas))
    problem._solver_stats = SimpleNamespace(extra_stats={"dual_point": wrong})
    assert certificate(problem).dual == pytest.approx(exact.dual, rel=1e-9)
    flipped = DualPoint(tuple(-t for t in exact.dual_point.thetas))
    problem._solver_stats = SimpleNamespace(extra_stats={"dual_point": flipped})
    found = certificate(problem).dual
    assert found is not None
    assert found <= exact.primal
    problem._solver_stats = SimpleNamespace(extra_stats={"dual_point": "rubbish"})
    assert certificate(problem).dual == pytest.approx(alone.dual)


def test_candidates_given_as_arrays() -> None:
    model, problem = _small_relu()
    problem.solve(solver=cp.CLARABEL)
    exact = certificate(problem)
    assert exact.dual_point is not None
    for variable in model.variables:
        variable.value = np.zeros(variable.shape)
    assert certificate(problem, [exact.dual_point.thetas[0]]).dual == pytest.approx(exact.dual)
    ignored = certificate(problem, [np.ones(3)])
    assert "1 dual candidate" in ignored.note
    with pytest.raises(TypeError, match="duals must hold"):
        certificate(problem, ["theta"])


def test_labels_far_from_zero_do_not_hide_a_gap() -> None:
    """Large targets: the relative gap is relative to the objective, and still closes."""
    rng = np.random.default_rng(9)
    X = rng.standard_normal((30, 3))
    model = gated_relu(X, sample_gates(X, 6, seed=0), output_bias=True)
    problem = model.problem(1e6 + rng.standard_normal(30), 0.01)
    problem.solve(solver=cp.CLARABEL)
    found = certificate(problem)
    assert found.relative_gap is not None
    assert 0.0 <= found.relative_gap <= 1e-2


def test_parameters_are_read_at_the_time_of_the_call() -> None:
    model, problem = _small_relu()
    problem.solve(solver=cp.CLARABEL)
    tight = certificate(problem).relative_gap
    model.reg.value = 0.2
    loose = certificate(problem).relative_gap
    assert tight is not None
    assert loose is not None
    assert tight <= 1e-4 < loose


def test_variables_without_values_are_one_sentence() -> None:
    _, problem = _small_relu()
    with pytest.raises(ValueError, match="solve the problem first"):
        certificate(problem)


def test_values_that_are_not_numbers_are_refused() -> None:
    model, problem = _small_relu()
    for variable in model.variables:
        variable.save_value(np.full(variable.shape, np.nan))
    with pytest.raises(ValueError, match="NaN or infinite"):
        certificate(problem)


def test_an_unknown_term_is_named_and_nothing_is_claimed() -> None:
    x = cp.Variable(3, name="x")
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - 1.0) + cp.pnorm(x, 3)), [x >= 0.5])
    x.value = np.array([0.0, 1.0, 1.0])
    found = certificate(problem)
    assert (found.dual, found.gap, found.relative_gap) == (None, None, None)
    assert found.primal == pytest.approx(1.0 + 2.0 ** (1.0 / 3.0))
    assert found.max_violation == pytest.approx(0.5)
    assert "no lower bound" in found.note
    assert "norms are known for p = 1, 2, inf" in found.note


def test_a_problem_that_is_not_convex_is_refused() -> None:
    x = cp.Variable(3)
    x.value = np.ones(3)
    with pytest.raises(cp.DCPError):
        certificate(cp.Problem(cp.Minimize(-cp.sum_squares(x))))


def test_a_reading_that_disagrees_with_cvxpy_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """If our form of the problem were wrong, no certificate may come out of it."""
    _, problem = _small_relu()
    problem.solve(solver=cp.CLARABEL)
    true_value = float(problem.objective.value)
    shown = {"value": true_value}
    monkeypatch.setattr(type(problem.objective), "value", property(lambda _: shown["value"]))
    for factor in (1.0 + 1e-7, -1.0, np.nan):
        shown["value"] = factor * true_value
        with pytest.raises(cp.SolverError, match="no certificate"):
            certificate(problem)
    shown["value"] = true_value * (1.0 + 1e-10)
    assert certificate(problem).relative_gap is not None


def test_the_sentence_of_a_certificate() -> None:
    assert str(Certificate(1.0, 0.5, 0.5, 0.5, 0.0, "the 3 given gates", note="why")) == (
        "objective 1, bound 0.5, gap 5.00e-01 (relative 5.00e-01), max violation 0.0e+00, "
        "for the 3 given gates, why"
    )
    assert "bound" not in str(Certificate(1.0, None, None, None, 0.0, ""))


def test_a_certificate_on_a_screen_has_no_arrays() -> None:
    """In a notebook the last line of a cell is its ``repr``; equal certificates are equal."""
    _, problem = _small_relu()
    problem.solve(solver=SemismoothNewton())
    found = certificate(problem)
    assert found.dual_point is not None
    assert "array" not in repr(found)
    assert found == certificate(problem)
    assert "array" not in repr(problem.solver_stats)
    assert repr(found.dual_point).startswith("DualPoint(thetas of [(20,)], ")
