"""Neural decomposition is exact: any lifted matrix is a sum of neurons, and the network has its objective."""

from __future__ import annotations

import cvxpy as cp
import numpy as np
import pytest
from numpy.typing import NDArray

import convexnn_models as cnn
from convexnn_models.neural_decomposition import even_neurons, neurons, rank_one_terms

Array = NDArray[np.float64]


def lifted(rng: np.random.Generator, h: int, rank: int, scale: float = 1.0) -> Array:
    """A random positive semidefinite matrix of this rank with balanced traces."""
    factor = rng.standard_normal((h + 1, rank)) * 10.0 ** rng.uniform(-2.0, 2.0, rank)
    factor[:h] *= np.sqrt(np.sum(factor[h] ** 2) / np.sum(factor[:h] ** 2))
    return scale * factor @ factor.T


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
@pytest.mark.parametrize(("h", "rank"), [(1, 1), (1, 2), (2, 1), (3, 4), (8, 3), (8, 9), (40, 41)])
def test_terms_lie_on_the_cone_and_sum_to_the_matrix(h: int, rank: int, scale: float) -> None:
    Z = lifted(np.random.default_rng(h + 100 * rank), h, rank, scale)
    terms = rank_one_terms(Z)
    assert terms.shape[1] <= rank
    np.testing.assert_allclose(terms @ terms.T, Z, rtol=0.0, atol=1e-13 * np.trace(Z))
    sides = np.sum(terms[:h] ** 2, axis=0) - terms[h] ** 2
    assert np.max(np.abs(sides)) <= 1e-13 * np.trace(Z)


@pytest.mark.parametrize(("h", "rank"), [(1, 2), (2, 1), (3, 4), (8, 9), (40, 41)])
def test_neurons_have_unit_norm_and_positive_weights(h: int, rank: int) -> None:
    Z = lifted(np.random.default_rng(h), h, rank)
    hidden, weight = neurons(Z)
    np.testing.assert_allclose(np.linalg.norm(hidden, axis=0), 1.0, rtol=1e-14)
    assert np.all(weight > 0.0)
    lift = np.vstack([hidden, np.ones(weight.size)])
    np.testing.assert_allclose((lift * weight) @ lift.T, Z, rtol=0.0, atol=1e-12 * np.trace(Z))


def test_neurons_that_were_put_in_come_back_where_they_are_unique() -> None:
    hidden = np.array([[0.6], [-0.8]])
    lift = np.vstack([hidden, [[1.0]]])
    found, weight = neurons(2.5 * lift @ lift.T)
    np.testing.assert_allclose(found, hidden, atol=1e-14)
    np.testing.assert_allclose(weight, [2.5], rtol=1e-14)


def test_vectors_that_are_on_the_cone_already_are_left_alone() -> None:
    """The published test for an exact zero never ends here: rounding leaves sides of 1e-17."""
    angles = np.linspace(0.1, 6.0, 7)
    lift = np.vstack([np.cos(angles), np.sin(angles), np.ones(7)])
    Z = (lift * np.arange(1.0, 8.0)) @ lift.T
    _, weight = neurons(Z)
    assert weight.size <= 3
    assert weight.sum() == pytest.approx(28.0, rel=1e-13)


def test_an_empty_matrix_has_no_neurons() -> None:
    hidden, weight = neurons(np.zeros((4, 4)))
    assert hidden.shape == (3, 0)
    assert weight.shape == (0,)


def test_even_neurons_are_the_eigenvectors() -> None:
    Z = np.diag([2.0, 0.0, 3.0, 5.0])
    hidden, weight = even_neurons(Z)
    np.testing.assert_allclose((hidden * weight) @ hidden.T, Z[:3, :3], atol=1e-14)
    assert weight.size == 2


def filled(rng: np.random.Generator, **options: object) -> tuple[cnn.PolynomialModel, Array, Array]:
    """A model at a random feasible point, with its samples and targets."""
    K, c = 4, int(str(options.get("outputs", 1)))
    P = rng.standard_normal((25, K, 3))
    samples = P if "cells" in options else P[:, 0]
    model = cnn.polynomial(samples, 0.3, -0.7, 0.2, **options)  # type: ignore[arg-type]
    y = rng.standard_normal((25, c)) if c > 1 else rng.standard_normal(25)
    model.problem(y, 0.05)
    for row in model.pairs:
        for pair in row:
            for variable in pair:
                variable.value = lifted(rng, variable.shape[0] - 1, 3)
    if model.output_bias is not None:
        model.output_bias.value = rng.standard_normal(model.output_bias.shape)
    return model, samples, y


OPTIONS: list[dict[str, object]] = [
    {},
    {"bias": True},
    {"output_bias": True},
    {"outputs": 3, "output_bias": True},
    {"cells": cnn.global_pooling(4)},
    {"cells": cnn.local_pooling(4, 2), "bias": True},
    {"cells": cnn.flatten(4), "outputs": 2},
    {"cells": ((0, 1, 2), (1, 3))},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_the_network_is_the_convex_point(options: dict[str, object]) -> None:
    """Same predictions and same objective, at a point that is not optimal; pruning raises nothing."""
    model, samples, y = filled(np.random.default_rng(7), **options)
    prediction = model.prediction.value
    value = float(model.problem(y, 0.05).objective.value)
    whole = cnn.recover(model, prune=False)
    scale = float(np.abs(prediction).max())
    np.testing.assert_allclose(whole.predict(samples), prediction, rtol=0.0, atol=1e-10 * scale)
    assert whole.objective(samples, y, 0.05) == pytest.approx(value, rel=1e-11)
    pruned = cnn.recover(model)
    assert pruned.width <= min(whole.width, 25 * model.outputs)
    assert pruned.objective(samples, y, 0.05) <= value * (1.0 + 1e-10)
    np.testing.assert_allclose(pruned.predict(samples), prediction, rtol=0.0, atol=1e-4 * scale)


@pytest.mark.parametrize("solver", [cp.CLARABEL, cp.SCS, None])
@pytest.mark.parametrize("coefficients", [(0.09, 0.5, 0.47), (1.0, 0.0, 0.0), (0.5, 0.0, -0.2)])
def test_recovered_networks_are_small_and_have_the_convex_value(
    solver: str | None, coefficients: tuple[float, float, float]
) -> None:
    rng = np.random.default_rng(3)
    X, y = rng.standard_normal((60, 4)), rng.standard_normal(60)
    model = cnn.polynomial(X, *coefficients)
    problem = model.problem(y, 0.03)
    if solver is None:
        cnn.solve_polynomial(model)
    else:
        problem.solve(solver=solver)
    feasible = cnn.polynomial_certificate(model).primal
    whole = cnn.recover(model, prune=False)
    assert whole.width <= 2 * (4 + 1)
    assert whole.objective(X, y, 0.03) == pytest.approx(feasible, rel=1e-12)
    pruned = cnn.recover(model)
    # SCS's iterates are projections, of low rank already; interior points have every rank
    assert pruned.width < whole.width or solver == cp.SCS
    assert pruned.objective(X, y, 0.03) == pytest.approx(feasible, rel=2e-8)


def test_no_more_neurons_than_samples_remain() -> None:
    rng = np.random.default_rng(4)
    X, y = rng.standard_normal((5, 12)), rng.standard_normal(5)
    model = cnn.polynomial(X, 0.3, 0.5, 0.1)
    model.problem(y, 1e-4)
    cnn.solve_polynomial(model)
    network = cnn.recover(model)
    assert network.width <= 5
    assert network.objective(X, y, 1e-4) == pytest.approx(cnn.polynomial_certificate(model).primal, rel=1e-7)


def test_a_slightly_infeasible_point_is_repaired_not_used() -> None:
    rng = np.random.default_rng(5)
    model, samples, y = filled(rng)
    (up, _), *_ = model.pairs[0]
    noise = rng.standard_normal(up.shape)
    up.save_value(up.value + 1e-6 * (noise + noise.T))
    proof = cnn.polynomial_certificate(model)
    assert proof.repaired
    assert 1e-7 < proof.max_violation < 1e-4
    network = cnn.recover(model, prune=False)
    assert network.objective(samples, y, 0.05) == pytest.approx(proof.primal, rel=1e-12)
