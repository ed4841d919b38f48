"""What first-order methods move between host and device: counted on torch's CPU, where nothing has to move.

An iteration brings over single numbers, on which it decides, and no array. Only when multipliers stagnate the
augmented Lagrangian looks on the host whether they prove infeasibility. ADMM's count is in test_admm.py.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

import convexnn_models as cnn
from convexnn_solvers.backends import Backend, numpy_backend, select_backend
from convexnn_solvers.composite import Composite, DualPoint
from convexnn_solvers.first_order.augmented_lagrangian import augmented_lagrangian_method
from convexnn_solvers.first_order.gate_columns import gate_columns
from convexnn_solvers.first_order.gate_descent import GateDescent
from convexnn_solvers.first_order.rfista import rfista_method
from convexnn_solvers.loop.iterate import Method
from convexnn_solvers.reading.compiler import compile_problem

torch = pytest.importorskip("torch", reason="pip install 'convexnn[torch]'")
pytest.importorskip("array_api_compat")

RNG = np.random.default_rng(0)
X, Y = RNG.standard_normal((60, 5)), RNG.standard_normal(60)
GATES = cnn.sample_gates(X, 15, seed=3)
_LARGEST = 6  # entries of what counts as numbers


class _Traffic:
    """Counts what is asked of tensors in a way that waits for the device, by the number of entries."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.counts: Counter[str] = Counter()
        for name in ("item", "tolist", "__float__", "__int__", "__bool__", "__index__", "cpu", "__array__"):
            self._spy(monkeypatch, torch.Tensor, name)
        for name in ("asarray", "tensor", "from_numpy", "as_tensor"):
            self._spy_on_hosts(monkeypatch, name)

    def _spy(self, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
        inner = getattr(owner, name)

        def counted(tensor: Any, *args: Any, **kwargs: Any) -> Any:
            self.counts["numbers" if tensor.numel() <= _LARGEST else "arrays"] += 1
            return inner(tensor, *args, **kwargs)

        monkeypatch.setattr(owner, name, counted)

    def _spy_on_hosts(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        inner = getattr(torch, name)

        def counted(value: Any, *args: Any, **kwargs: Any) -> Any:
            self.counts["arrays"] += isinstance(value, np.ndarray) and value.size > _LARGEST
            return inner(value, *args, **kwargs)

        monkeypatch.setattr(torch, name, counted)


class _Device(Backend):
    """Counts the arrays that are brought over by our own door, whose namespace is bound already."""

    arrays = 0

    def asarray(self, value: Any) -> Any:
        """Counted where the value comes from the host."""
        type(self).arrays += isinstance(value, np.ndarray) and value.size > _LARGEST
        return super().asarray(value)


Start = tuple[Method[Any], Composite]


def relu(backend: Backend) -> Start:
    """As on a device, where cones are not projected on but go through multipliers."""
    composite = compile_problem(cnn.relu(X, GATES).problem(Y, 0.01), backend).composite()
    return augmented_lagrangian_method(composite, project_cones=False, warm=DualPoint(())), composite


def gated(backend: Backend, loss: Any) -> Start:
    model = cnn.gated_relu(X, GATES, output_bias=True)
    problem = model.problem(np.sign(Y) if loss == "logistic" else Y, 0.01, loss=loss)
    composite = compile_problem(problem, backend).composite()
    return rfista_method(composite), composite


def gates(backend: Backend) -> Start:
    """On a set of gates that changes on the way."""
    problem = cnn.gated_relu(X, GATES).problem(Y, 0.03)
    composite = compile_problem(problem, backend).composite()
    exact = compile_problem(problem, numpy_backend()).composite()
    return GateDescent(gate_columns(composite, exact), 1e-9, first=3), composite


# What an iteration with one trial step may wait for: with a quadratic loss two products and a distance; else
# the distance has four terms. Rounding asks for one more, and multipliers for theirs.
# The last number is the share of iterations that may bring over arrays.
CASES: dict[str, tuple[Any, float, float]] = {
    "R-FISTA, squared": (lambda backend: gated(backend, "squared"), 2, 0.0),
    "R-FISTA, huber": (lambda backend: gated(backend, "huber"), 5, 0.0),
    "R-FISTA, logistic": (lambda backend: gated(backend, "logistic"), 5, 0.0),
    "R-FISTA, a set of gates": (gates, 2, 0.0),
    "augmented Lagrangian": (relu, 9, 0.05),
}


@pytest.mark.parametrize("case", CASES)
def test_iterations_bring_over_few_numbers_and_no_array(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make, most, share = CASES[case]
    plain = select_backend("cpu", "float32", "torch")
    method, composite = make(_Device(plain.name, plain.xp, plain.dtype, plain.device))
    state = method.step(method.start(composite.zeros()))
    traffic = _Traffic(monkeypatch)
    numbers, with_arrays = [], 0
    for _ in range(60):
        traffic.counts.clear()
        before = _Device.arrays
        state = method.step(state)
        numbers.append(traffic.counts["numbers"])
        with_arrays += traffic.counts["arrays"] > 0 or _Device.arrays > before
    assert with_arrays <= share * len(numbers)
    assert 0 < np.median(numbers) <= most


def test_the_spy_sees_arrays(monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = torch.ones(20)
    traffic = _Traffic(monkeypatch)
    tensor.cpu()
    float(tensor[0])
    torch.asarray(np.ones(20))
    assert traffic.counts == {"arrays": 2, "numbers": 1}
