"""The matrix-free maps against the atoms, their adjoints, every memory plan and backend."""

from __future__ import annotations

import dataclasses
from typing import Any

import cvxpy as cp
import numpy as np
import pytest

from convexnn_solvers.backends import Backend, numpy_backend, torch_backend
from convexnn_solvers.reading.atoms import gated, pattern_slack
from convexnn_solvers.reading.operators import (
    CPU_MEMORY,
    GatedOperator,
    MemoryPlan,
    SlackOperator,
    load_gates,
)

BACKENDS = [
    pytest.param(lambda: numpy_backend(), 1e-12, id="numpy64"),
    pytest.param(lambda: numpy_backend("float32"), 2e-5, id="numpy32"),
    pytest.param(lambda: torch_backend(), 1e-12, id="torch64"),
    pytest.param(lambda: torch_backend(dtype="float32"), 2e-5, id="torch32"),
]
PLANS = [CPU_MEMORY, MemoryPlan(block=1, masks=0), MemoryPlan(block=2**24, masks=0)]


@pytest.fixture(autouse=True)
def _needs_torch(request: pytest.FixtureRequest) -> None:
    if "torch" in request.node.name:
        pytest.importorskip("torch")
        pytest.importorskip("array_api_compat")


@pytest.mark.parametrize(("make_backend", "atol"), BACKENDS)
@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("slope", [0.0, -0.7])
def test_operators_match_the_atoms(
    make_backend: Any, atol: float, plan: MemoryPlan, outputs: int, slope: float
) -> None:
    backend: Backend = make_backend()
    rng = np.random.default_rng(0)
    n, d, count = 600, 4, 5
    X = rng.standard_normal((n, d))
    patterns = rng.random((n, count)) < 0.5
    U = cp.Variable((d * outputs, count))
    weights = rng.standard_normal(U.shape)
    U.value = weights
    gates = load_gates(X, patterns, backend, plan)
    pairs: list[tuple[Any, Any]] = [
        (gated(X, patterns, U, slope), GatedOperator(gates, outputs, slope)),
        (pattern_slack(X, patterns, U), SlackOperator(gates, outputs)),
    ]
    for atom, operator in pairs:
        image = backend.to_numpy(operator.forward(backend.asarray(weights)))
        assert image.shape == atom.shape
        np.testing.assert_allclose(image, atom.value, atol=atol * d * count)
        r = rng.standard_normal(atom.shape)
        back = backend.to_numpy(operator.adjoint(backend.asarray(r)))
        assert back.shape == U.shape
        np.testing.assert_allclose(np.sum(back * weights), np.sum(image * r), rtol=0, atol=atol * r.size)


@pytest.mark.parametrize(("make_backend", "atol"), BACKENDS)
@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("used", [(), (3,), (0, 4), (0, 2, 4)])
def test_gates_without_weights_add_nothing(
    make_backend: Any, atol: float, plan: MemoryPlan, used: tuple[int, ...]
) -> None:
    """Where few gates are in use the products are with theirs alone; the truth is the sum written out."""
    backend: Backend = make_backend()
    rng = np.random.default_rng(1)
    n, d, count = 70, 4, 5
    X, patterns = rng.standard_normal((n, d)), rng.random((n, count)) < 0.5
    for outputs, slope in ((1, 0.0), (3, 0.0), (1, 0.3), (3, -0.7)):
        weights = np.zeros((outputs, d, count))
        weights[:, :, used] = rng.standard_normal((outputs, d, len(used)))
        weights[0, 1, used[:1]] = 0.0  # one entry of a gate in use
        factors = np.where(patterns, 1.0, slope)
        expected = np.einsum("nj,ni,kij->nk", factors, X, weights)
        U = cp.Variable((d * outputs, count), value=weights.reshape(-1, count))
        atom = gated(X, patterns, U, slope)
        operator = GatedOperator(load_gates(X, patterns, backend, plan), outputs, slope)
        image = backend.to_numpy(operator.forward(backend.asarray(weights.reshape(-1, count))))
        for found in (image, np.asarray(atom.value)):
            np.testing.assert_allclose(found.reshape(n, outputs), expected, atol=atol * d * count)


@pytest.mark.parametrize(("make_backend", "atol"), BACKENDS)
def test_adjoint_is_the_transposed_matrix(make_backend: Any, atol: float) -> None:
    backend: Backend = make_backend()
    rng = np.random.default_rng(1)
    X, patterns = rng.standard_normal((7, 2)), rng.random((7, 3)) < 0.5
    gates = load_gates(X, patterns, backend)
    for operator in (GatedOperator(gates, 2, 0.3), SlackOperator(gates, 2)):
        basis = np.eye(12).reshape(12, 4, 3)
        columns = [backend.to_numpy(operator.forward(backend.asarray(e))) for e in basis]
        matrix = np.stack([column.ravel() for column in columns], axis=1)
        r = rng.standard_normal(columns[0].shape)
        back = backend.to_numpy(operator.adjoint(backend.asarray(r)))
        np.testing.assert_allclose(back.ravel(), matrix.T @ r.ravel(), atol=10 * atol)


def test_memory_plan_decides_on_the_float_copy() -> None:
    X, patterns = np.ones((10, 2)), np.ones((10, 3), dtype=np.bool_)
    assert load_gates(X, patterns, numpy_backend(), MemoryPlan(masks=240)).masks is not None
    assert load_gates(X, patterns, numpy_backend(), MemoryPlan(masks=239)).masks is None


def test_numpy_arrays_are_shared_and_values_frozen() -> None:
    X, patterns = np.ones((10, 2)), np.ones((10, 3), dtype=np.bool_)
    gates = load_gates(X, patterns, numpy_backend())
    assert gates.X is X
    assert gates.bits is patterns
    with pytest.raises(dataclasses.FrozenInstanceError):
        gates.X = X  # type: ignore[misc]


def test_blocks_cover_every_row_once() -> None:
    X, patterns = np.ones((1000, 2)), np.ones((1000, 3), dtype=np.bool_)
    gates = load_gates(X, patterns, numpy_backend(), MemoryPlan(block=8 * 3 * 300))
    rows = np.concatenate([np.arange(1000)[block] for block in gates.blocks(3)])
    np.testing.assert_array_equal(rows, np.arange(1000))
    assert len(list(gates.blocks(3))) == 4
