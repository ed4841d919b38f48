"""Hostile recovery: degenerate data and any point, not only optima, for every kind of model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from interior_point import optimum
from numpy.typing import NDArray

import convexnn_models as cnn
from convexnn_solvers import certificate

Float = NDArray[np.float64]

POINTS: dict[str, Callable[[np.random.Generator, tuple[int, ...]], Float]] = {
    "zero": lambda rng, shape: np.zeros(shape),
    "normal": lambda rng, shape: rng.standard_normal(shape),
    "sparse": lambda rng, shape: rng.standard_normal(shape) * (rng.random(shape[-1:]) < 0.3),
    "one column": lambda rng, shape: np.resize(rng.standard_normal(shape[:1]), shape[::-1]).T.copy(),
    "huge": lambda rng, shape: 1e8 * rng.standard_normal(shape),
    "tiny": lambda rng, shape: 1e-12 * rng.standard_normal(shape),
}


def degenerate(name: str, rng: np.random.Generator) -> Float:
    X = rng.standard_normal((7, 3))
    spoil: dict[str, Callable[[], Float]] = {
        "generic": lambda: X,
        "rounded": lambda: np.round(2.0 * X),
        "repeated": lambda: X[[0, 0, 0, 1, 1, 2, 2]],
        "zero rows": lambda: X * np.array([1, 1, 0, 1, 0, 1, 1])[:, None],
        "equal columns": lambda: X[:, [0, 0, 1]],
        "one row": lambda: X[:1],
        "one feature": lambda: X[:, :1],
        "scaled": lambda: 1e7 * X,
    }
    return spoil[name]()


MODELS: dict[str, Callable[..., Any]] = {
    "gated": cnn.gated_relu,
    "relu": cnn.relu,
    "leaky": lambda X, gates, **options: cnn.piecewise_linear(X, gates, 0.2, **options),
    "absolute": lambda X, gates, **options: cnn.piecewise_linear(X, gates, -1.0, **options),
}


@pytest.mark.parametrize("outputs", [1, 2])
@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize(
    "data",
    ["generic", "rounded", "repeated", "zero rows", "equal columns", "one row", "one feature", "scaled"],
)
def test_the_network_has_the_convex_objective_at_any_point(data: str, kind: str, outputs: int) -> None:
    rng = np.random.default_rng(0)
    X = degenerate(data, rng)
    n = X.shape[0]
    y = rng.standard_normal((n, outputs) if outputs > 1 else n)
    bias = kind != "leaky"
    gates = cnn.sample_gates(X, 12, bias=bias)
    options = {"outputs": outputs, "grouping": "per-output", "output_bias": kind == "gated", "bias": bias}
    model = MODELS[kind](X, gates, **options)
    reg = 0.03
    problem = model.problem(y, reg)
    for name in (*POINTS, "interior point"):
        if name == "interior point":
            optimum(problem, 1e-9, 1e-8)
        else:
            for variable in model.variables:
                shape = variable.shape
                value = POINTS[name](rng, shape) if len(shape) == 2 else rng.standard_normal(shape)
                variable.value = np.asarray(value)
        held = [np.array(v.value) for v in model.variables]
        convex = certificate(problem).primal
        whole, pruned = cnn.recover(model, prune=False), cnn.recover(model)
        assert whole.objective(X, y, reg) == pytest.approx(convex, rel=1e-10, abs=1e-14)
        assert pruned.objective(X, y, reg) <= convex * (1.0 + 1e-10) + 1e-14
        assert pruned.width <= n * outputs
        if name == "interior point":
            assert pruned.objective(X, y, reg) == pytest.approx(convex, rel=1e-6, abs=1e-9)
        assert all(np.array_equal(a, v.value) for a, v in zip(held, model.variables, strict=True))
