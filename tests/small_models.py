"""Small data and one model of every kind on it."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

import convexnn_models as cnn

Float = NDArray[np.float64]
N, D_FEATURES, GATES = 12, 3, 6


class Case(NamedTuple):
    kind: str  # gated, relu, leaky
    outputs: int = 1
    grouping: str = "shared"
    bias: bool = False
    output_bias: bool = False


CASES = [
    Case("gated"),
    Case("gated", bias=True),
    Case("gated", output_bias=True),
    Case("gated", 2),
    Case("gated", 3, "per-output", output_bias=True),
    Case("gated", 2, "nuclear"),
    Case("relu"),
    Case("relu", bias=True, output_bias=True),
    Case("relu", 2, "shared", output_bias=True),
    Case("relu", 3, "per-output"),
    Case("leaky"),
    Case("leaky", 2, "per-output", bias=True),
]


def name(case: Case) -> str:
    return "-".join(str(part) for part in case)


def data(case: Case) -> tuple[Float, Float]:
    rng = np.random.default_rng(5)
    X = rng.standard_normal((N, D_FEATURES))
    y = np.abs(X @ rng.standard_normal((D_FEATURES, case.outputs))) + 0.3
    y += 0.1 * rng.standard_normal(y.shape)
    return X, y[:, 0] if case.outputs == 1 else y


def build(case: Case, X: Float) -> cnn.ConvexModel:
    gates = cnn.sample_gates(X, GATES, bias=case.bias)
    options: dict[str, Any] = case._asdict()
    kind = options.pop("kind")
    if kind == "leaky":
        return cnn.piecewise_linear(X, gates, 0.2, **options)
    return (cnn.gated_relu if kind == "gated" else cnn.relu)(X, gates, **options)
