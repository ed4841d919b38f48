"""What would not fit is refused in one sentence, before memory is spent; our own solvers still take it."""

from __future__ import annotations

import importlib
from collections.abc import Callable

import cvxpy as cp
import numpy as np
import pytest

import convexnn_models as cnn
from convexnn_solvers import RFISTA
from convexnn_solvers.reading import stuffing_limit
from convexnn_solvers.reading.stuffing_limit import physical_memory, size_checked

POLYNOMIAL = importlib.import_module("convexnn_models.polynomial")  # the package has a function of this name
RNG = np.random.default_rng(0)
X, Y = RNG.standard_normal((40, 6)), RNG.standard_normal(40)


@pytest.fixture
def tiny_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of 100 kB that asks about everything."""
    monkeypatch.setattr(stuffing_limit, "physical_memory", lambda: 100_000)
    monkeypatch.setattr(stuffing_limit, "_ALWAYS", 0)
    monkeypatch.setattr(POLYNOMIAL, "_LARGE", 0)


@pytest.mark.usefixtures("tiny_machine")
@pytest.mark.parametrize("backend", [cp.CPP_CANON_BACKEND, cp.SCIPY_CANON_BACKEND, cp.COO_CANON_BACKEND])
def test_gated_programs_are_refused_and_solved_without_a_matrix(backend: str) -> None:
    model = cnn.gated_relu(X, cnn.sample_gates(X, 30, seed=0))
    problem = model.problem(Y, 0.02)
    for solver in (cp.CLARABEL, cp.SCS):
        with pytest.raises(cp.SolverError, match=r"matrix of 30 gates has .* GiB.*use Auto\(\)"):
            problem.solve(solver=solver, canon_backend=backend)
    problem.solve(solver=RFISTA())
    assert problem.status == "optimal"


@pytest.mark.usefixtures("tiny_machine")
@pytest.mark.parametrize("b", [0.5, 0.0])
def test_polynomial_programs_are_refused_and_solved_without_a_matrix(b: float) -> None:
    model = cnn.polynomial(X, 0.09, b, 0.47, outputs=2)
    problem = model.problem(np.stack([Y, -Y], axis=1), 0.02)
    with pytest.raises(cp.SolverError, match=r"lifted|matrices of side \d.*use solve_polynomial"):
        problem.solve(solver=cp.CLARABEL)
    assert cnn.solve_polynomial(model).certificate.relative_gap <= 1e-8  # type: ignore[operator]


@pytest.mark.parametrize("b", [0.5, 0.0])
def test_a_large_program_that_fits_is_the_same_program(b: float, monkeypatch: pytest.MonkeyPatch) -> None:
    values = []
    for limit in (10**9, 0):
        monkeypatch.setattr(POLYNOMIAL, "_LARGE", limit)
        problem = cnn.polynomial(X, 0.09, b, 0.47, output_bias=True).problem(Y, 0.02)
        problem.solve(solver=cp.CLARABEL)
        values.append(float(problem.value))
        assert problem.is_dcp(dpp=True)
    assert values[0] == pytest.approx(values[1], rel=1e-7)


def test_the_checked_expression_is_its_argument() -> None:
    v = cp.Variable(3, nonneg=True, value=np.ones(3))
    checked = size_checked(2.0 * v, 5, "v", "w")
    assert checked.shape == (3,)
    assert checked.is_affine()
    assert checked.is_nonneg()
    np.testing.assert_array_equal(checked.value, [2.0, 2.0, 2.0])
    np.testing.assert_array_equal(checked.copy([v]).value, [1.0, 1.0, 1.0])
    assert checked.name() == (2.0 * v).name()


def test_small_programs_are_plain() -> None:
    model = cnn.polynomial(X, 0.09, 0.5, 0.47)
    assert not isinstance(model.prediction, size_checked)


def test_this_machine_has_memory() -> None:
    memory = physical_memory()
    assert memory is None or memory > 2**28


def windows() -> cnn.ConvolutionalModel:
    rng = np.random.default_rng(0)
    patches = rng.standard_normal((400, 49, 49))
    gates = cnn.sample_gates(cnn.stacked_patches(patches), 30, seed=0)
    return cnn.convolutional(patches, gates, pooling=cnn.Pooling.MAXIMUM)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: cnn.polynomial(np.ones((2, 5000)), 0.09, 0.5, 0.47), "side 5001 .at most 4000"),
        (windows, "cones of maximum pooling .at most 20000000"),
    ],
)
def test_what_no_solver_takes_is_refused_at_once(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
