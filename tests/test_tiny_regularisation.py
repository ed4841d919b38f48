"""Regularisations next to nothing: certified by interior-point steps, or given up early with a true gap."""

from __future__ import annotations

from typing import Any

import cvxpy as cp
import numpy as np
import pytest
from interior_point import optimum
from numpy.typing import NDArray

import convexnn_models as cnn
from convexnn_solvers import Auto, Status, certificate, method_memory
from convexnn_solvers.auto import engines
from convexnn_solvers.backends import numpy_backend
from convexnn_solvers.composite import DualPoint
from convexnn_solvers.gated_programs.structure import gated_structure
from convexnn_solvers.method_memory import check_interior
from convexnn_solvers.options import Options
from convexnn_solvers.reading.affine import UnsupportedProblem
from convexnn_solvers.reading.compiler import compile_problem

Float = NDArray[np.float64]
TOL = 1e-6
# Far fewer steps than Newton's method took for the largest of these regularisations.
MOST_STEPS = 90


def samples(n: int = 60, d: int = 3) -> tuple[Float, Float]:
    rng = np.random.default_rng(n + d)
    X = rng.standard_normal((n, d))
    return X, np.abs(X @ rng.standard_normal(d)) + 0.1 * rng.standard_normal(n)


def _plain(formulation: Any, **options: Any) -> tuple[Any, Float]:
    X, y = samples()
    return formulation(X, cnn.sample_gates(X, 15, seed=0), **options), y


def _leaky() -> tuple[Any, Float]:
    X, y = samples()
    return cnn.piecewise_linear(X, cnn.sample_gates(X, 15, seed=0), 0.2), y


def _bias() -> tuple[Any, Float]:
    X, y = samples()
    return cnn.relu(X, cnn.sample_gates(X, 15, seed=0, bias=True), bias=True, output_bias=True), y + 3.0


def _two_outputs() -> tuple[Any, Float]:
    model, y = _plain(cnn.relu, outputs=2, grouping="per-output")
    return model, np.stack([y, 100.0 * y[::-1]], axis=1)


def _fits_exactly() -> tuple[Any, Float]:
    X, y = samples(12, 4)
    return cnn.relu(X, cnn.sample_gates(X, 15, seed=0)), y


def _rank_deficient() -> tuple[Any, Float]:
    X, y = samples()
    X = np.column_stack([X, X[:, 0] - X[:, 1], 0.0 * y])
    return cnn.relu(X, cnn.sample_gates(X, 15, seed=0)), y


def _contradicting_rows() -> tuple[Any, Float]:
    X, y = samples(30)
    X = np.vstack([np.repeat(X, 2, axis=0), np.zeros((1, 3))])
    return cnn.relu(X, cnn.sample_gates(X, 15, seed=0)), np.append(
        np.stack([y, 0.2 * y], axis=1).ravel(), 1.0
    )


def _patches() -> tuple[Any, Float]:
    patches = np.random.default_rng(0).standard_normal((40, 3, 3))
    flat = patches.reshape(-1, 3)
    y = np.abs(patches @ np.array([1.0, -0.5, 0.2])).sum(axis=1)
    return cnn.convolutional(patches, cnn.sample_gates(flat, 8, seed=0)), y


PROGRAMS: dict[str, Any] = {
    "relu": lambda: _plain(cnn.relu),
    "leaky": _leaky,
    "bias": _bias,
    "two outputs": _two_outputs,
    "exact fit": _fits_exactly,
    "rank deficient": _rank_deficient,
    "contradicting rows": _contradicting_rows,
    "patches": _patches,
}


def solved(model: Any, y: Float, share: float, **options: Any) -> tuple[Any, dict[str, Any]]:
    """Solved at this share of the largest useful regularisation, which is about one for the patches."""
    largest = 1.0 if model.gates is None or y.shape == (40,) else cnn.lambda_max(model, y)
    problem = model.problem(y, share * largest)
    problem.solve(solver=Auto(tol=TOL, **options), warm_start=False)
    return problem, problem.solver_stats.extra_stats


@pytest.mark.parametrize("share", [1e-5, 1e-7, 1e-9, 1e-12])
@pytest.mark.parametrize("case", PROGRAMS)
def test_certified_in_a_few_steps(case: str, share: float) -> None:
    model, y = PROGRAMS[case]()
    problem, extra = solved(model, y, share)
    assert extra["status"] is Status.OPTIMAL
    assert [run["engine"] for run in extra["engines"]] == ["InteriorPoint"]
    assert problem.solver_stats.num_iters <= MOST_STEPS * max(1, model.outputs)
    found = certificate(problem)
    assert found.relative_gap is not None
    assert -1e-12 <= found.relative_gap <= TOL


@pytest.mark.parametrize("case", ["relu", "leaky", "bias", "patches"])
def test_as_good_as_an_interior_point_solver_of_the_whole_problem(case: str) -> None:
    model, y = PROGRAMS[case]()
    problem, _ = solved(model, y, 1e-5)
    value = problem.value
    assert value == pytest.approx(optimum(problem), rel=1e-4)


def test_without_cones_where_admm_loses_its_digits() -> None:
    model, y = _plain(cnn.gated_relu)
    _, extra = solved(model, y, 1e-12)
    assert extra["status"] is Status.OPTIMAL
    assert extra["engines"][0]["engine"] == "InteriorPoint"


@pytest.mark.parametrize("formulation", [cnn.relu, cnn.gated_relu])
@pytest.mark.parametrize("share", [1e-20, 1e-200])
@pytest.mark.filterwarnings("ignore:Solution may be inaccurate")
def test_what_rounding_hides_ends_early_with_the_gap_that_there_is(share: float, formulation: Any) -> None:
    """The loss alone has no certificate in float64; nobody burns the limits for it."""
    model, y = _plain(formulation)
    problem, extra = solved(model, y, share)
    assert extra["status"] is Status.STALLED
    assert "solver=cp.CLARABEL" in extra["status"].value
    assert problem.solver_stats.num_iters <= MOST_STEPS
    assert [run["engine"] for run in extra["engines"]] == ["InteriorPoint"]
    found = certificate(problem)
    assert found.relative_gap is not None
    assert TOL < found.relative_gap <= 1.0
    assert found.relative_gap == pytest.approx(extra["certificate"].relative_gap, abs=0.01)
    without = cp.Problem(cp.Minimize(cp.sum_squares(model.prediction - y) / (2 * len(y))), model.constraints)
    assert found.primal == pytest.approx(optimum(without), rel=1e-4)


@pytest.mark.parametrize("formulation", [cnn.relu, cnn.gated_relu])
@pytest.mark.filterwarnings("ignore:Solution may be inaccurate")
def test_values_that_underflow_end_with_the_first_engine(formulation: Any) -> None:
    """Others would take thousands of steps to show as little."""
    X, y = samples()
    problem = formulation(X, cnn.sample_gates(X, 8, seed=0)).problem(1e-152 * y, 1e-152 * 0.05)
    problem.solve(solver=Auto(), warm_start=False)
    extra = problem.solver_stats.extra_stats
    assert extra["status"] is Status.STALLED
    assert "underflow" in extra["status"].value
    assert len(extra["engines"]) == 1


def test_steps_that_do_not_fit_into_memory_are_newtons(monkeypatch: pytest.MonkeyPatch) -> None:
    model, y = _plain(cnn.relu)
    monkeypatch.setattr(method_memory, "_SLACKS", 10**12)
    problem = model.problem(y, 1e-5 * cnn.lambda_max(model, y))
    composite = compile_problem(problem, numpy_backend()).composite()
    names = [engine.name for engine in engines(composite, composite, DualPoint(()), Options(memory=1e9))]
    assert names == ["SemismoothNewton", "AugmentedLagrangian"]


@pytest.mark.parametrize(
    ("shape", "gates", "share", "name"),
    [
        ((60, 30), 20, 1e-5, "InteriorPoint"),
        ((100, 100), 30, 1e-5, "SemismoothNewton"),
        ((100, 100), 30, 1e-12, "InteriorPoint"),
        ((100, 784), 50, 1e-12, "SemismoothNewton"),
    ],
    ids=["cheap", "dear", "dear, but Newton would not end", "out of reach"],
)
def test_a_factor_per_block_of_many_features_is_paid_where_newtons_method_does_not_end(
    shape: tuple[int, int], gates: int, share: float, name: str
) -> None:
    """Work of d^3 per block: with more features than samples it once took all of a time limit."""
    model, y = _wide(*shape, gates)
    problem = model.problem(y, share * cnn.lambda_max(model, y))
    composite = compile_problem(problem, numpy_backend()).composite()
    assert next(engines(composite, composite, DualPoint(()), Options())).name == name


def test_memory_for_a_factor_per_block_is_counted() -> None:
    model, y = _wide(30, 400, 20)
    problem = model.problem(y, 1e-12)
    structure = gated_structure(compile_problem(problem, numpy_backend()).composite())
    with pytest.raises(UnsupportedProblem, match="linear systems"):
        check_interior(structure, 9e7)


def _wide(n: int, d: int, gates: int) -> tuple[Any, Float]:
    X, y = samples(n, d)
    return cnn.relu(X, cnn.sample_gates(X, gates, seed=0)), y
