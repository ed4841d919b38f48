"""Networks in any units: bounds below the optimum, and the recovered network attains what is certified.

The truth is an interior-point solver's, on the same program in units of one; the network's objective is
written out in NumPy. In other units of features and targets the program is the same but for its own unit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
from interior_point import optimum
from numpy.typing import NDArray

import convexnn_models as cnn
from convexnn_solvers import Auto, certificate

Float = NDArray[np.float64]
TOL = 1e-6
THRESHOLD = 0.7
#: Per sample and output, of a prediction and a target; whether targets have units, and what power of theirs
#: the loss has.
LOSSES: dict[str, tuple[Callable[[Float, Float, float], Float], bool, int]] = {
    "squared": (lambda F, Y, unit: 0.5 * (F - Y) ** 2, True, 2),
    "huber": (lambda F, Y, unit: _huber(np.abs(F - Y), THRESHOLD * unit), True, 2),
    "absolute": (lambda F, Y, unit: np.abs(F - Y), True, 1),
    "logistic": (lambda F, Y, unit: np.logaddexp(0.0, -Y * F), False, 0),
    "hinge": (lambda F, Y, unit: np.maximum(1.0 - Y * F, 0.0), False, 0),
    "squared_hinge": (lambda F, Y, unit: np.maximum(1.0 - Y * F, 0.0) ** 2, False, 0),
}


def _huber(size: Float, threshold: float) -> Float:
    return np.where(size <= threshold, 0.5 * size**2, threshold * (size - 0.5 * threshold))


class Case(NamedTuple):
    """A formulation, a loss, outputs with groups of their own, an output bias, powers of ten of the units."""

    kind: str
    loss: str
    outputs: int
    bias: bool
    features: int
    targets: int


CASES = [
    Case("gated", "squared", 1, False, 8, -8),
    Case("gated", "squared", 2, True, -8, 8),
    Case("gated", "huber", 1, True, -3, 5),
    Case("gated", "absolute", 1, False, 4, -6),
    Case("gated", "logistic", 2, False, -6, 0),
    Case("gated", "hinge", 1, True, 5, 0),
    Case("relu", "squared", 1, True, -8, -8),
    Case("relu", "squared", 2, False, 8, 8),
    Case("relu", "huber", 2, False, 2, -7),
    Case("relu", "absolute", 1, False, -5, 3),
    Case("relu", "logistic", 1, True, 7, 0),
    Case("relu", "squared_hinge", 1, False, -4, 0),
    Case("leaky", "squared", 1, True, 3, 8),
    Case("leaky", "huber", 1, False, -7, -2),
    Case("absolute value", "squared", 2, False, -2, -5),
    Case("absolute value", "hinge", 1, False, 3, 0),
]
SLOPES = {"leaky": 0.3, "absolute value": -1.0}


def model_of(case: Case, X: Float) -> Any:
    gates = cnn.sample_gates(X, 7, seed=1)
    shape: Any = {"outputs": case.outputs, "output_bias": case.bias, "grouping": "per-output"}
    if case.kind in SLOPES:
        return cnn.piecewise_linear(X, gates, SLOPES[case.kind], **shape)
    return (cnn.relu if case.kind == "relu" else cnn.gated_relu)(X, gates, **shape)


def network_objective(net: Any, X: Float, Y: Float, case: Case, reg: float, unit: float) -> float:
    """``loss + reg / 2 (||W1||^2 + ||W2||^2)`` by hand."""
    hidden = X @ net.W1
    deciding = hidden if net.gates is None else X @ net.gates
    scores = np.where(deciding >= 0.0, hidden, SLOPES.get(case.kind, 0.0) * hidden) @ net.W2
    if net.b2 is not None:
        scores = scores + net.b2
    loss = LOSSES[case.loss][0](scores, Y.reshape(scores.shape), unit)
    return float(np.sum(loss)) / len(X) + 0.5 * reg * float(np.sum(net.W1**2) + np.sum(net.W2**2))


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_what_is_certified_is_what_the_network_attains(case: Case) -> None:
    rng = np.random.default_rng(CASES.index(case))
    X = rng.standard_normal((12, 3))
    raw = rng.standard_normal((12,) if case.outputs == 1 else (12, case.outputs))
    _, has_unit, power = LOSSES[case.loss]
    Y = raw if has_unit else np.where(raw > 0.0, 1.0, -1.0)
    unit, features = 10.0**case.targets, 10.0**case.features
    options = {"threshold": THRESHOLD} if case.loss == "huber" else {}
    truth = optimum(model_of(case, X).problem(Y, 0.03, case.loss, **options)) * unit**power
    scaled = {name: value * unit for name, value in options.items()}
    model = model_of(case, features * X)
    reg = 0.03 * unit ** (power - 1) * features
    problem = model.problem(unit * Y, reg, case.loss, **scaled)
    problem.solve(solver=Auto(tol=TOL))
    assert problem.status == "optimal"
    found = certificate(problem)
    assert found.dual is not None
    assert found.dual <= truth * (1.0 + 1e-7)
    assert truth * (1.0 - 1e-7) <= found.primal <= truth * (1.0 + 1.1 * TOL)
    value = network_objective(cnn.recover(model), features * X, unit * Y, case, reg, unit)
    assert truth * (1.0 - 1e-7) <= value <= found.primal * (1.0 + 1e-9)  # pruning may lower it
