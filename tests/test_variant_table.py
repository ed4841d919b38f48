"""Formulations from the literature, in a few lines each: both roads certify one optimum, networks come back.

The longer gallery is ``examples/variant_*.py``; these are the shorter ones, on small data.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cvxpy as cp
import numpy as np
import pytest

import convexnn_models as cnn
from convexnn_solvers import Auto, certificate

N = 24
RNG = np.random.default_rng(0)
X = RNG.standard_normal((N, 3))
Y = np.abs(X[:, 0]) + 0.5 * X[:, 1] + 0.1 * RNG.standard_normal(N)
PAIRS = np.column_stack([Y, X[:, 2]])
LABELS = np.sign(X[:, 0] * X[:, 1] + 0.3)
GATES = cnn.sample_gates(X, 5, seed=0)
GROUP = X[:, 2] > 0.0
WEIGHTS = 1.0 / (0.5 + np.abs(X[:, 2]))
SHOWN = RNG.random((N, 2)) < 0.7
GAINS = np.abs(X) + 0.3 * RNG.standard_normal((N, 3))
ACTIVE = GATES.patterns.astype(float)
huber: Any = cp.huber
Built = tuple[Any, list[cnn.ConvexModel]]


def built(objective: Any, *models: cnn.ConvexModel, constraints: Any = ()) -> Built:
    """The objective with the penalties of the models, on their cones and further constraints."""
    penalty = sum(model.penalty for model in models)
    cones = [cone for model in models for cone in model.constraints]
    return cp.Problem(cp.Minimize(objective + 0.01 * penalty), [*cones, *constraints]), list(models)


def relu(outputs: int = 1) -> cnn.ConvexModel:
    return cnn.relu(X, GATES, outputs=outputs)


def gated(outputs: int = 1) -> cnn.ConvexModel:
    return cnn.gated_relu(X, GATES, outputs=outputs)


def squares(error: Any) -> Any:
    return cp.sum_squares(error) / (2 * N)


def lasso_net() -> Built:
    """A linear part with an l1 norm beside the network (Lemhadri et al., LassoNet, JMLR 2021)."""
    model, slope, offset = relu(), cp.Variable(3), cp.Variable()
    return built(squares(model.prediction + X @ slope + offset - Y) + 0.01 * cp.norm1(slope), model)


def additive() -> Built:
    """A network per group of features (Agarwal et al., Neural additive models, NeurIPS 2021)."""
    parts = [cnn.relu(A, cnn.sample_gates(A, 4, seed=0)) for A in (X[:, :2], X[:, 1:])]
    return built(squares(parts[0].prediction + parts[1].prediction - Y), *parts)


def residual() -> Built:
    """A network on what a linear model leaves."""
    model = relu()
    return built(squares(X @ np.linalg.lstsq(X, Y, rcond=None)[0] + model.prediction - Y), model)


def censored() -> Built:
    """Targets known to be at least 1 (Tobin, Econometrica 1958; one-sided squares)."""
    model = relu()
    over = Y > 1.0
    short = cp.sum_squares(cp.pos(1.0 - model.prediction[over]))
    return built((cp.sum_squares(model.prediction[~over] - Y[~over]) + short) / (2 * N), model)


def intervals() -> Built:
    """Targets known up to an interval."""
    model = relu()
    return built(squares(cp.pos(cp.maximum(Y - 0.2 - model.prediction, model.prediction - Y - 0.3))), model)


def support_vectors() -> Built:
    """Squares beyond an insensitive zone (Smola and Schoelkopf, Statistics and Computing 2004)."""
    model = relu()
    return built(squares(cp.pos(cp.abs(model.prediction - Y) - 0.1)), model)


def expectile() -> Built:
    """The expectile of 90 % (Newey and Powell, Econometrica 1987)."""
    model = relu()
    error = Y - model.prediction
    return built((0.9 * cp.sum_squares(cp.pos(error)) + 0.1 * cp.sum_squares(cp.neg(error))) / N, model)


def noise_of_known_size() -> Built:
    model = relu()
    return built(squares(cp.multiply(WEIGHTS, model.prediction - Y)), model)


def missing_outputs() -> Built:
    model = relu(outputs=2)
    return built(squares((model.prediction - PAIRS)[SHOWN]), model)


def autoencoder() -> Built:
    model = relu(outputs=3)
    return built(squares(model.prediction - X), model)


def distillation() -> Built:
    """Soft targets of a teacher (Hinton et al., 2015)."""
    model, odds = relu(outputs=3), np.exp(X)
    soft = odds / odds.sum(axis=1, keepdims=True)
    entropy = cp.log_sum_exp(model.prediction, axis=1) - cp.sum(cp.multiply(soft, model.prediction), axis=1)
    return built(cp.sum(entropy) / N, model)


def counts() -> Built:
    """Poisson regression with the canonical link."""
    model, seen = relu(), np.floor(np.exp(np.abs(X[:, 0])))
    return built((cp.sum(cp.exp(model.prediction)) - seen @ model.prediction) / N, model)


def bag_means() -> Built:
    """Only means of bags are known (learning from label proportions, Quadrianto et al., JMLR 2009)."""
    model, bags = relu(), np.kron(np.eye(6), np.full((1, 4), 0.25))
    return built(cp.sum_squares(bags @ (model.prediction - Y)) / 12, model)


def manifold() -> Built:
    """Half of the targets, and smoothness on a graph (Belkin et al., JMLR 2006)."""
    model = relu()
    near = np.exp(-((X[:, None] - X) ** 2).sum(axis=2))
    laplacian = cp.psd_wrap(np.diag(near.sum(axis=1)) - near)
    smooth = 1e-3 * cp.quad_form(model.prediction, laplacian)
    return built(cp.sum_squares(model.prediction[:12] - Y[:12]) / N + smooth, model)


def equal_opportunity() -> Built:
    """Mean scores of the positives of two groups differ by 0.05 at most (Hardt et al., NIPS 2016)."""
    model, good = gated(), LABELS > 0.0
    means = [cp.sum(model.prediction[good & side]) / (good & side).sum() for side in (GROUP, ~GROUP)]
    loss = cp.sum(cp.logistic(-cp.multiply(LABELS, model.prediction))) / N
    return built(loss, model, constraints=[cp.abs(means[0] - means[1]) <= 0.05])


def convex_network() -> Built:
    """No negative weights of the second layer: the network is convex (Amos et al., ICML 2017)."""
    model = relu()
    return built(squares(model.prediction - Y), model, constraints=[model.variables[1] == 0.0])


def monotone_feature() -> Built:
    """The slope in one feature is nowhere negative."""
    model = gated()
    slopes = ACTIVE @ model.variables[0].T
    return built(squares(model.prediction - Y), model, constraints=[slopes[:, 0] >= 0.0])


def transfer() -> Built:
    """Weights stay near those of a network that is known."""
    model = gated()
    (weights,) = model.variables
    return built(squares(model.prediction - Y) + 0.02 * cp.sum(cp.norm(weights - 0.3, 2, axis=0)), model)


def neighbouring_gates() -> Built:
    """Gates in order of their angle have like weights (total variation over gates)."""
    angles = np.linspace(0.0, np.pi, 6, endpoint=False)
    model = cnn.gated_relu(X[:, :2], cnn.gates_from_vectors(X[:, :2], [np.cos(angles), np.sin(angles)]))
    steps = cp.norm(cp.diff(model.variables[0], axis=1), 2, axis=0)
    return built(squares(model.prediction - Y) + 0.02 * cp.sum(steps), model)


def low_rank_outputs() -> Built:
    model = gated(outputs=2)
    return built(squares(model.prediction - PAIRS) + 0.01 * cp.normNuc(model.prediction), model)


def ranking_by_margin() -> Built:
    """A hinge per pair (Joachims, KDD 2002)."""
    model = gated()
    better, worse = np.nonzero(Y[:, None] > Y + 0.7)
    ahead = model.prediction[better] - model.prediction[worse]
    return built(cp.sum(cp.pos(1.0 - ahead)) / better.size, model)


def labels_one_by_one() -> Built:
    """A hinge per label of several that a sample may have."""
    model, signs = gated(outputs=2), np.sign(PAIRS)
    return built(cp.sum(cp.pos(1.0 - cp.multiply(signs, model.prediction))) / N, model)


def square_root() -> Built:
    """A norm in the place of its square needs no noise level (Belloni et al., Biometrika 2011)."""
    model = relu()
    return built(cp.norm(model.prediction - Y) / np.sqrt(N), model)


def portfolio() -> Built:
    """Shares of three assets for every state, with a quadratic risk: no short sales, no borrowing."""
    model = gated(outputs=3)
    gain = cp.sum(cp.multiply(GAINS, model.prediction)) / N
    shares = [model.prediction >= 0.0, cp.sum(model.prediction, axis=1) <= 1.0]
    return built(squares(model.prediction) - gain, model, constraints=shares)


def slacks() -> Built:
    """The hinge written with slack variables, as textbooks do."""
    model, slack = relu(), cp.Variable(N, nonneg=True)
    margins = cp.multiply(LABELS, model.prediction)
    return built(cp.sum(slack) / N, model, constraints=[margins >= 1.0 - slack])


def worst_errors() -> Built:
    """The mean of the largest fifth of the errors (Rockafellar and Uryasev, 2000)."""
    model, level = relu(), cp.Variable()
    tail = cp.sum(cp.pos(cp.abs(model.prediction - Y) - level))
    return built(level + tail / (0.2 * N), model)


def newsvendor() -> Built:
    """Orders: what is missing costs more than what is left, and the store is limited."""
    model = relu()
    missing, left = cp.pos(Y - model.prediction), cp.pos(model.prediction - Y)
    store = [model.prediction >= 0.0, cp.sum(model.prediction) <= 15.0]
    return built((2.0 * cp.sum(missing) + 0.5 * cp.sum(left)) / N, model, constraints=store)


def insensitive_zone() -> Built:
    """Vapnik's loss."""
    model = relu()
    return built(cp.sum(cp.pos(cp.abs(model.prediction - Y) - 0.1)) / N, model)


SOLVED: tuple[Callable[[], Built], ...] = (
    *(lasso_net, additive, residual, censored, intervals, support_vectors, expectile, noise_of_known_size),
    *(missing_outputs, autoencoder, distillation, counts, bag_means, manifold, equal_opportunity),
    *(convex_network, monotone_feature, transfer, neighbouring_gates, low_rank_outputs, ranking_by_margin),
    *(labels_one_by_one, square_root, portfolio, slacks, newsvendor, insensitive_zone),
)
#: What takes our methods long (README, Limits): the point of an interior-point solver is judged.
JUDGED: tuple[Callable[[], Built], ...] = (worst_errors,)


@pytest.mark.parametrize("make", SOLVED, ids=lambda make: make.__name__)
def test_both_roads_certify_one_optimum_and_networks_come_back(make: Callable[[], Built]) -> None:
    theirs, _ = make()
    theirs.solve(solver=cp.CLARABEL)
    assert (certificate(theirs).relative_gap or 0.0) <= 1e-3
    problem, models = make()
    problem.solve(solver=Auto())
    assert problem.status == cp.OPTIMAL
    found = certificate(problem)
    assert found.dual is not None
    assert found.relative_gap is not None
    assert found.relative_gap <= 1.01e-4
    assert problem.value == pytest.approx(theirs.value, rel=1.5e-4)
    assert found.dual <= theirs.value + 1e-6 * abs(theirs.value)
    for model in models:
        fitted, scores = cnn.recover(model).predict(model.X), model.prediction.value
        np.testing.assert_allclose(fitted, scores, atol=1e-6 * (1.0 + np.abs(scores).max()))


@pytest.mark.parametrize("make", JUDGED, ids=lambda make: make.__name__)
def test_points_of_an_interior_point_solver_have_tight_bounds(make: Callable[[], Built]) -> None:
    """Its dual point breaks conditions by its tolerance, and may not be scaled until they hold."""
    problem, _ = make()
    problem.solve(solver=cp.CLARABEL)
    found = certificate(problem)
    assert found.relative_gap is not None
    assert found.relative_gap <= 1e-4
    assert found.dual is not None
    assert found.dual <= problem.value + 1e-7 * abs(problem.value)
