"""Bounds for polynomial networks: on the sphere, at any dual candidate, for every loss."""

from __future__ import annotations

import cvxpy as cp
import numpy as np
import pytest
from planted_polynomial import RELU_LIKE, VARIANTS, Array, maximum_by_pencil, planted, quadratic_form, variant

import convexnn_models as cnn
from convexnn_models.polynomial_bounds import response_bound, sphere_maximum, squared_loss_bound
from convexnn_models.polynomial_features import (
    CellFeatures,
    CentredFeatures,
    QuadraticActivation,
    cell_features,
    centred_features,
)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("h", [1, 2, 5, 12])
def test_the_bound_on_the_sphere_is_the_maximum(h: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    Q = rng.standard_normal((h + 1, h + 1))
    Q += Q.T
    truth, _ = maximum_by_pencil(Q)
    bound = sphere_maximum(Q)
    assert truth - 1e-13 * (1.0 + abs(truth)) <= bound <= truth + 1e-9 * (1.0 + abs(truth))
    u = rng.standard_normal((h, 2000))
    u /= np.linalg.norm(u, axis=0)
    z = np.vstack([u, np.ones(2000)])
    assert np.max(np.sum(z * (Q @ z), axis=0)) <= bound


def every_kind(patches: Array, coefficients: tuple[float, float, float]) -> list[tuple[CellFeatures, bool]]:
    """One patch, averages, and both ways to centre them; whether they are centred."""
    activation = QuadraticActivation(*coefficients)
    single, average = cell_features(patches, ((1,), (0, 2)), activation)
    stored, _ = centred_features(patches, ((1,), (0, 2)), activation)
    return [(single, False), (average, False), (stored, True), (CentredFeatures(single), True)]


@pytest.mark.parametrize("coefficients", [RELU_LIKE, (1.0, 0.0, 0.0), (0.0, 1.0, 0.5), (0.25, 1.0, 1.0)])
def test_features_act_as_their_matrices(coefficients: tuple[float, float, float]) -> None:
    rng = np.random.default_rng(17)
    patches = rng.standard_normal((300, 3, 4))
    W = rng.standard_normal((5, 5))
    W, theta, less = W @ W.T, rng.standard_normal(300), rng.standard_normal(300)
    for position, (features, centred) in enumerate(every_kind(patches, coefficients)):
        cell = patches[:, [0, 2]] if position == 1 else patches[:, [1]]
        Q = np.stack([quadratic_form(cell[[i]], np.ones(1), coefficients) for i in range(300)])
        if centred:
            Q -= Q.mean(axis=0)
        np.testing.assert_allclose(features.matrix(), Q.reshape(300, 25), atol=1e-13)
        np.testing.assert_allclose(features.apply(W), np.sum(Q * W, axis=(1, 2)), atol=1e-11)
        np.testing.assert_allclose(features.adjoint(theta), np.tensordot(theta, Q, 1), atol=1e-11)
        assert np.all(np.linalg.norm(Q, axis=(1, 2)) <= features.sizes * (1.0 + 1e-12))
        H = np.zeros((300, 300))
        features.add_gram(H, W, less)
        expected = np.einsum("ikl,jkl->ij", Q, W @ Q @ W) - np.outer(less, less)
        np.testing.assert_allclose(np.tril(H), np.tril(expected), atol=1e-10 * np.abs(expected).max())


@pytest.mark.parametrize("linear", [0.0, 1e-9, 0.1])
def test_the_hard_case_of_the_sphere_is_bounded_too(linear: float) -> None:
    """No linear term along the top eigenvector: the maximum is ``top + b^2 / (top - other) + corner``."""
    Q = np.diag([2.0, 1.0, 0.5])
    Q[1, 2] = Q[2, 1] = linear
    bound = sphere_maximum(Q)
    assert 0.0 <= bound - (2.0 + linear**2 / 1.0 + 0.5) <= 1e-12


def test_no_point_and_no_dual_candidate_can_fool_the_certificate() -> None:
    patches, y, reg, value = planted(20, 1, 3, (0.6, -0.5, 0.3), seed=3)
    model = cnn.polynomial(patches[:, 0], 0.6, -0.5, 0.3)
    model.problem(y, reg)
    rng = np.random.default_rng(0)
    for _ in range(150):
        for variable in model.variables:
            noise = rng.standard_normal(variable.shape) * 10.0 ** rng.uniform(-3, 1)
            variable.save_value(noise + noise.T)
        wild = rng.standard_normal(20) * 10.0 ** rng.uniform(-3, 3)
        proof = cnn.polynomial_certificate(model, [wild])
        assert proof.dual is not None
        assert proof.dual <= value * (1.0 + 1e-12) <= proof.primal * (1.0 + 2e-12)


def test_bounds_never_pass_a_network_that_exists() -> None:
    """Centred, pooled and plain features: D(theta) stays below the objective of random networks."""
    rng = np.random.default_rng(6)
    for coefficients, options in VARIANTS:
        model, y = variant(coefficients, options)
        if model.outputs == 2 or model.bias:
            continue
        for _ in range(20):
            theta = rng.standard_normal(24)
            if model.output_bias is not None:
                theta -= theta.mean()
            bound, scaled = squared_loss_bound(model.fitted_features, theta, y, 0.02)
            assert response_bound(model.fitted_features, scaled) <= 0.02 * (1.0 + 1e-9)
            hidden = rng.standard_normal((3, 5))
            network = cnn.PolynomialNetwork(
                model.activation,
                hidden / np.linalg.norm(hidden, axis=0),
                0.1 * rng.standard_normal((5, len(model.cells), 1)),
                cells=model.cells,
                patches=int(model.patches.shape[1]),
                output_bias=None if model.output_bias is None else np.array([y.mean()]),
            )
            assert bound <= network.objective(model.patches, y, 0.02)


@pytest.mark.filterwarnings("ignore:Solution may be inaccurate")  # 1e-4 is all that is asked of it
@pytest.mark.parametrize("loss", ["huber", "logistic", "squared_hinge", "softmax"])
def test_other_losses_are_bounded_too(loss: str) -> None:
    """Close at the optimum, sound everywhere."""
    rng = np.random.default_rng(18)
    X, outputs = rng.standard_normal((30, 3)), 3 if loss == "softmax" else 1
    labels = {"huber": rng.standard_normal(30), "softmax": rng.integers(0, 3, 30)}
    y = labels.get(loss, np.sign(rng.standard_normal(30)))
    model = cnn.polynomial(X, *RELU_LIKE, outputs=outputs)
    problem = model.problem(y, 0.02, loss=loss)
    problem.solve(solver=cp.CLARABEL)
    best = problem.value
    proof = cnn.polynomial_certificate(model)
    assert proof.relative_gap is not None
    assert -1e-12 <= proof.relative_gap <= 1e-4
    for _ in range(30):
        for variable in model.variables:
            noise = rng.standard_normal(variable.shape) * 10.0 ** rng.uniform(-2, 1)
            variable.save_value(noise + noise.T)
        proof = cnn.polynomial_certificate(model)
        assert proof.dual is not None
        assert proof.dual <= best * (1.0 + 1e-6)
        assert best <= proof.primal * (1.0 + 1e-6)
