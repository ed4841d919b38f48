"""lambda_max: zero is optimal exactly above it, in whatever units, and rounding is no correlation."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from interior_point import optimum
from small_models import CASES, D_FEATURES, Case, Float, N, build, data

import convexnn_models as cnn

LABELLED: list[tuple[str, int, Callable[[Float], Any], dict[str, Any]]] = [
    ("squared", 1, lambda s: s[:, 0], {}),
    ("squared", 3, lambda s: s, {}),
    ("huber", 1, lambda s: s[:, 0], {"threshold": 0.4}),
    ("logistic", 1, lambda s: np.sign(s[:, 0]), {}),
    ("logistic", 2, lambda s: np.sign(s[:, :2]), {}),
    ("squared_hinge", 1, lambda s: np.sign(s[:, 0]), {}),
    ("softmax", 3, lambda s: np.argmax(s, axis=1), {}),
]
KINDS = [("gated", "shared"), ("relu", "shared"), ("relu", "per-output"), ("leaky", "shared")]


@pytest.mark.parametrize("output_bias", [False, True])
@pytest.mark.parametrize(
    ("kind", "grouping", "loss", "outputs", "labels", "options"),
    [(*k, *row) for k in KINDS for row in LABELLED if row[1] > 1 or k[1] == "shared"],
)
def test_zero_is_optimal_exactly_above_lambda_max(
    kind: str,
    grouping: str,
    loss: str,
    outputs: int,
    labels: Callable[[Float], Any],
    options: dict[str, Any],
    output_bias: bool,
) -> None:
    case = Case(kind, outputs, grouping, output_bias=output_bias)
    rng = np.random.default_rng(2)
    X = rng.standard_normal((N, D_FEATURES))
    y = labels(rng.standard_normal((N, 3)) + 0.4)
    model = build(case, X)
    critical = cnn.lambda_max(model, y, loss, **options)
    weights = [v for v in model.variables if v is not model.output_bias]
    problem = model.problem(y, reg=critical, loss=loss, **options)
    sizes = []
    for factor in (0.95, 1.01):
        model.reg.value = factor * critical
        optimum(problem, 1e-10, 1e-9, 1e-8, 1e-7)
        sizes.append(max(float(np.abs(w.value).max()) for w in weights))
    assert sizes[0] > 1e-3
    assert sizes[1] < 1e-5


def test_lambda_max_of_nothing_to_explain_is_zero() -> None:
    X, y = data(CASES[0])
    for case in (CASES[2], CASES[6]._replace(output_bias=True)):
        assert cnn.lambda_max(build(case, X), np.full(N, 2.0)) == 0.0
    assert cnn.lambda_max(build(CASES[0], X), 0.0 * y) == 0.0


FORMULATIONS: dict[str, Any] = {
    "gated": cnn.gated_relu,
    "relu": cnn.relu,
    "leaky": lambda X, gates, **options: cnn.piecewise_linear(X, gates, 0.3, **options),
}


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e10])
@pytest.mark.parametrize("loss", ["squared", "huber", "logistic", "softmax"])
@pytest.mark.parametrize("kind", FORMULATIONS)
def test_what_the_output_bias_explains_is_no_correlation(kind: str, loss: str, scale: float) -> None:
    """Columns of ones had one of 1e-17, from which paths began; a small feature beside them still counts."""
    rng = np.random.default_rng(0)
    raw = 1e6 + rng.standard_normal(25) if loss in ("squared", "huber") else rng.standard_normal(25)
    y: Any = {"logistic": np.sign(raw), "softmax": (raw > 0.0).astype(int)}.get(loss, raw)
    shapes: Any = {"outputs": 2 if loss == "softmax" else 1, "output_bias": True}
    ones, make = np.full((25, 2), scale), FORMULATIONS[kind]
    model = make(ones, cnn.gates_from_vectors(ones, np.ones((2, 1))), **shapes)
    assert cnn.lambda_max(model, y, loss) == 0.0
    with pytest.raises(ValueError, match="leaves nothing to fit"):
        cnn.regularization_path(model, y, 3, loss=loss)
    feature = 1e-9 * scale * rng.uniform(0.5, 1.0, size=25)
    both = np.column_stack([ones[:, 0], feature])
    # Beside the ones every sign of the feature's weight lies in the cone, up to a billionth.
    positive = cnn.gates_from_vectors(feature[:, None], np.ones((1, 1)))
    alone = cnn.gated_relu(feature[:, None], positive, **shapes)
    model = make(both, cnn.gates_from_vectors(both, np.array([[1.0], [0.0]])), **shapes)
    assert cnn.lambda_max(alone, y, loss) > 0.0
    assert cnn.lambda_max(model, y, loss) == pytest.approx(cnn.lambda_max(alone, y, loss), rel=1e-5)


def test_a_large_sample_hides_no_correlation_of_gates_without_it() -> None:
    rng = np.random.default_rng(1)
    X, y = rng.standard_normal((30, 2)), rng.standard_normal(30)
    X[0] *= 1e18
    gates = cnn.sample_gates(X, 8, seed=0)
    for make in FORMULATIONS.values():
        without = gates.patterns[:, ~gates.patterns[0]]
        model = make(X, gates)
        assert model.gates is not None
        found = cnn.lambda_max(model, np.where(np.arange(30) == 0, 0.0, y))
        assert without.shape[1] > 0
        small = make(X[1:], cnn.sample_gates(X[1:], 40, seed=0))
        assert found >= 0.1 * cnn.lambda_max(small, y[1:]) * 29 / 30


@pytest.mark.parametrize("loss", ["squared", "huber"])
@pytest.mark.parametrize("outputs", [1, 2])
def test_targets_far_from_zero_hide_no_correlation(loss: str, outputs: int) -> None:
    """Seconds since 1970: correlations of a thousandth passed for the rounding of many samples' mean."""
    rng = np.random.default_rng(0)
    X = np.column_stack([rng.standard_normal(50_000), np.ones(50_000)])
    y = np.round(8.0 * rng.standard_normal((50_000, outputs))) / 8.0  # the sum with 1.6e9 rounds nothing
    y = y[:, 0] if outputs == 1 else y
    model = cnn.gated_relu(X, cnn.sample_gates(X, 4, seed=0), outputs=outputs, output_bias=True)
    assert cnn.lambda_max(model, 1.6e9 + y, loss) == pytest.approx(cnn.lambda_max(model, y, loss), rel=1e-3)


@pytest.mark.parametrize("unit", [2.0**-300, 2.0**-400, 2.0**300])
@pytest.mark.parametrize("formulation", [cnn.gated_relu, cnn.relu])
def test_lambda_max_has_no_units_in_which_it_vanishes(formulation: Any, unit: float) -> None:
    """Of data of 1e-90 it was zero, which says that there is nothing to fit, and of 1e90 infinite."""
    rng = np.random.default_rng(0)
    X, Y = rng.standard_normal((8, 3)), rng.standard_normal((8, 2))
    gates = cnn.sample_gates(X, 6)
    expected = cnn.lambda_max(formulation(X, gates, outputs=2), Y)
    model = formulation(unit * X, cnn.sample_gates(unit * X, 6), outputs=2)
    assert cnn.lambda_max(model, unit * Y) == pytest.approx(unit * unit * expected, rel=1e-12, abs=0.0)


def test_lambda_max_of_the_nuclear_norm_is_the_largest_spectral_norm() -> None:
    case = Case("gated", 2, "nuclear")
    X, y = data(case)
    model = build(case, X)
    assert model.gates is not None
    expected = max(np.linalg.norm((X * bits[:, None]).T @ y, 2) for bits in model.gates.patterns.T) / N
    assert cnn.lambda_max(model, y) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("slope", [0.0, 0.3, -0.7])
@pytest.mark.parametrize("outputs", [1, 2])
def test_lambda_max_skips_projections_that_cannot_matter(
    slope: float, outputs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(3)
    X, y = rng.standard_normal((20, 3)), rng.standard_normal((20, outputs))
    model = cnn.piecewise_linear(X, cnn.sample_gates(X, 60), slope, outputs=outputs)
    module = sys.modules["convexnn_models.lambda_max"]
    some = cnn.lambda_max(model, y)
    monkeypatch.setattr(module, "_FEW", 1000)  # everything at once
    assert cnn.lambda_max(model, y) == pytest.approx(some, rel=1e-12)
