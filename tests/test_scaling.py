"""The scaling conventions of papers and of scnn, and what the optimal value must not depend on."""

from __future__ import annotations

from typing import Any

import cvxpy as cp
import numpy as np
import pytest
from interior_point import optimum
from numpy.typing import NDArray

import convexnn_models as cnn
from convexnn_solvers import AugmentedLagrangian, Auto, SemismoothNewton

Float = NDArray[np.float64]

RNG = np.random.default_rng(11)
N = 16
X: Float = RNG.standard_normal((N, 3))
Y: Float = np.abs(X @ RNG.standard_normal(3)) + 0.2 * RNG.standard_normal(N)
YY: Float = np.stack([Y, Y[::-1] - 0.5], axis=1)
VECTORS = cnn.sample_gates(X, 8).vectors
REG = 0.03

FORMULATIONS: dict[str, Any] = {
    "gated": cnn.gated_relu,
    "relu": cnn.relu,
    "leaky": lambda samples, gates, **options: cnn.piecewise_linear(samples, gates, 0.3, **options),
}
formulations = pytest.mark.parametrize("formulation", FORMULATIONS.values(), ids=FORMULATIONS)


def value(
    formulation: Any, samples: Float, vectors: Float, y: Float, reg: float = REG, bias: bool = False
) -> float:
    gates = cnn.gates_from_vectors(samples, vectors, bias=bias)
    options = {"outputs": y.shape[1], "grouping": "per-output"} if y.ndim == 2 else {}
    return optimum(formulation(samples, gates, bias=bias, **options).problem(y, reg))


def close(expected: float) -> Any:
    return pytest.approx(expected, rel=1e-9, abs=1e-9)


@formulations
@pytest.mark.parametrize("y", [Y, YY], ids=["one output", "two outputs"])
def test_papers_half_the_sum_of_squares_with_lam_n_times_reg(formulation: Any, y: Float) -> None:
    model = formulation(X, cnn.gates_from_vectors(X, VECTORS), **({"outputs": 2} if y.ndim == 2 else {}))
    lam = N * REG
    loss = 0.5 * cp.sum_squares(model.prediction - y)
    paper = cp.Problem(cp.Minimize(loss + lam * model.penalty), model.constraints)
    assert optimum(paper) / N == close(optimum(model.problem(y, REG)))


@formulations
def test_scnn_divides_by_the_outputs_too_so_its_lam_is_reg_over_c(formulation: Any) -> None:
    model = formulation(X, cnn.gates_from_vectors(X, VECTORS), outputs=2, grouping="per-output")
    loss = cp.sum_squares(model.prediction - YY) / (2 * N * 2)
    scnn = cp.Problem(cp.Minimize(loss + REG / 2 * model.penalty), model.constraints)
    assert 2.0 * optimum(scnn) == close(optimum(model.problem(YY, REG)))


@formulations
def test_targets_scale_the_value_by_their_square_if_reg_scales_along(formulation: Any) -> None:
    expected = value(formulation, X, VECTORS, Y)
    assert value(formulation, X, VECTORS, 7.0 * Y, 7.0 * REG) / 49.0 == close(expected)


@pytest.mark.parametrize("solver", [Auto, SemismoothNewton, AugmentedLagrangian])
@pytest.mark.parametrize("unit", [1e-100, 1e-12, 1e10, 1e14, 1e100])
def test_cones_are_judged_in_whatever_units_the_targets_have(unit: float, solver: Any) -> None:
    """Optimal, as in units of one, with a network that has the program's objective."""
    model = cnn.relu(X, cnn.gates_from_vectors(X, VECTORS))
    problem = model.problem(unit * Y, unit * REG)
    problem.solve(solver=solver())
    assert problem.status == cp.OPTIMAL
    assert problem.value / unit / unit == pytest.approx(value(cnn.relu, X, VECTORS, Y), rel=1e-4)
    network = cnn.recover(model)
    assert network.objective(X, unit * Y, unit * REG) <= problem.value * (1.0 + 1e-9)


@formulations
def test_features_scale_like_the_inverse_of_reg(formulation: Any) -> None:
    assert value(formulation, 5.0 * X, VECTORS, Y, 5.0 * REG) == close(value(formulation, X, VECTORS, Y))


def test_scnn_unitises_columns_so_its_lam_lives_in_scaled_space() -> None:
    """Scaling columns is another model: the same weights cost another penalty, but solve the same program."""
    norms = np.linalg.norm(X, axis=0)
    gates = cnn.gates_from_vectors(X / norms, VECTORS * norms[:, None])
    assert np.array_equal(gates.patterns, cnn.gates_from_vectors(X, VECTORS).patterns)
    scaled = cnn.gated_relu(X / norms, gates)
    expected = optimum(scaled.problem(Y, REG))
    model = cnn.gated_relu(X, cnn.gates_from_vectors(X, VECTORS))
    (U,) = model.variables
    penalty = cp.sum(cp.norm(cp.multiply(norms[:, None], U), 2, axis=0))
    loss = cp.sum_squares(model.prediction - Y) / (2 * N)
    assert optimum(cp.Problem(cp.Minimize(loss + REG * penalty))) == close(expected)


@formulations
@pytest.mark.parametrize("y", [Y, YY], ids=["one output", "two outputs"])
def test_order_and_repetition_do_not_matter(formulation: Any, y: Float) -> None:
    rng = np.random.default_rng(0)
    expected = value(formulation, X, VECTORS, y)
    rows, columns = rng.permutation(N), rng.permutation(VECTORS.shape[1])
    assert value(formulation, X[rows], VECTORS, y[rows]) == close(expected)
    assert value(formulation, X, VECTORS[:, columns], y) == close(expected)
    repeated = np.hstack([VECTORS, 2.0 * VECTORS[:, :3]])
    assert value(formulation, X, repeated, y) == close(expected)
    twice = np.concatenate([y, y])
    assert value(formulation, np.vstack([X, X]), VECTORS, twice) == close(expected)
    features = np.array([2, 0, 1])
    assert value(formulation, X[:, features], VECTORS[features], y) == close(expected)


@formulations
def test_rotations_and_zero_features_do_not_matter(formulation: Any) -> None:
    rng = np.random.default_rng(0)
    expected = value(formulation, X, VECTORS, Y)
    Q, _ = np.linalg.qr(rng.standard_normal((3, 3)))
    assert value(formulation, X @ Q, Q.T @ VECTORS, Y) == close(expected)
    padded = np.hstack([X, np.zeros((N, 1))])
    assert value(formulation, padded, np.vstack([VECTORS, np.ones((1, 8))]), Y) == close(expected)


@formulations
def test_a_zero_sample_only_adds_to_the_loss(formulation: Any) -> None:
    extended = np.vstack([X, np.zeros((1, 3))])
    expected = N * value(formulation, X, VECTORS, Y, REG * (N + 1) / N) + 0.5 * 4.0
    assert (N + 1) * value(formulation, extended, VECTORS, np.append(Y, 2.0)) == close(expected)


@formulations
def test_a_bias_is_a_column_of_ones(formulation: Any) -> None:
    vectors = cnn.sample_gates(X, 8, bias=True).vectors
    ones = np.hstack([X, np.ones((N, 1))])
    assert value(formulation, X, vectors, Y, bias=True) == close(value(formulation, ones, vectors, Y))


@formulations
def test_mirrored_signs_change_nothing(formulation: Any) -> None:
    """Minus the targets, or (for all slopes) minus the samples and the gates."""
    expected = value(formulation, X, VECTORS, Y)
    assert value(formulation, X, VECTORS, -Y) == close(expected)
    assert value(formulation, -X, -VECTORS, Y) == close(expected)


def test_for_the_absolute_value_half_of_the_patterns_suffice() -> None:
    both = np.hstack([VECTORS, -VECTORS])
    every = cnn.piecewise_linear(X, cnn.gates_from_vectors(X, both), -1.0)
    half = cnn.piecewise_linear(X, cnn.gates_from_vectors(X, VECTORS), -1.0)
    assert every.gates is not None
    assert half.gates is not None
    assert len(every.gates) == len(half.gates) <= 8
    assert optimum(every.problem(Y, REG)) == close(optimum(half.problem(Y, REG)))


def test_slope_zero_is_relu_and_slope_one_is_linear() -> None:
    gates = cnn.gates_from_vectors(X, VECTORS)
    relu = optimum(cnn.relu(X, gates).problem(Y, REG))
    assert optimum(cnn.piecewise_linear(X, gates, 0.0).problem(Y, REG)) == close(relu)
    beta = cp.Variable(3)
    linear = cp.Problem(cp.Minimize(cp.sum_squares(X @ beta - Y) / (2 * N) + REG * cp.norm(beta)))
    everything = cnn.all_gates(X) if hasattr(cnn, "all_gates") else cnn.sample_gates(X, 2000)
    assert optimum(cnn.piecewise_linear(X, everything, 1.0).problem(Y, REG)) == pytest.approx(
        optimum(linear), rel=1e-6
    )


def test_a_pattern_without_samples_matters_for_steep_slopes_only() -> None:
    """Its feature is slope * X u: redundant up to |slope| = 1 if D = I is listed, needed beyond."""
    rng = np.random.default_rng(0)
    direction = rng.standard_normal(3)
    positive = np.abs(X) * np.sign(direction)  # all samples on one side of `direction`
    vectors = np.stack([direction, -direction], axis=1)
    y = positive @ direction
    both, one = cnn.gates_from_vectors(positive, vectors), cnn.gates_from_vectors(positive, vectors[:, :1])
    for slope in (0.5, -0.5):
        full, reduced = (
            optimum(cnn.piecewise_linear(positive, gates, slope).problem(y, REG)) for gates in (both, one)
        )
        assert full == close(reduced)
    steep = [optimum(cnn.piecewise_linear(positive, gates, 2.0).problem(y, REG)) for gates in (both, one)]
    assert steep[0] < 0.9 * steep[1]
