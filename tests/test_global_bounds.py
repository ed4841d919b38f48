"""Global training and certificates on planted data, against every pattern and against trained networks."""

from __future__ import annotations

from typing import Any, NamedTuple

import cvxpy as cp
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import minimize

import convexnn_models as cnn
from convexnn_models.global_bounds import balance, global_certificate
from convexnn_models.global_training import train_to_global_optimum
from convexnn_models.network import Network
from convexnn_solvers import Auto, Status

Array = NDArray[np.float64]


class Planted(NamedTuple):
    n: int
    d: int
    fraction: float


def planted(case: Planted, seed: int = 1) -> tuple[Array, Array, float]:
    """Data of a small network plus noise, with a constant feature, and reg as a fraction of its maximum."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((case.n, case.d))
    X[:, -1] = 1.0
    hidden = np.maximum(X @ rng.standard_normal((case.d, 3)), 0.0)
    y = hidden @ np.array([1.0, -1.0, 1.0]) + 0.3 * rng.standard_normal(case.n)
    return X, y, case.fraction * cnn.price(X, y / case.n).upper


@pytest.mark.parametrize(
    "case", [Planted(20, 2, 0.01), Planted(20, 3, 0.01), Planted(50, 3, 0.01), Planted(100, 2, 0.01)]
)
def test_small_data_is_certified_and_agrees_with_every_pattern(case: Planted) -> None:
    X, y, reg = planted(case)
    found = train_to_global_optimum(X, y, reg, gap=1e-4)
    assert found.status is Status.OPTIMAL
    assert found.relative_gap <= 1e-4
    assert found.network.width <= case.n
    if case.n * case.d <= 60:
        model = cnn.relu(X, cnn.all_gates(X))
        everything: Any = model.problem(y, reg)
        everything.solve(solver=cp.CLARABEL)
        assert found.lower <= everything.value * (1.0 + 1e-7)
        assert found.upper >= everything.value * (1.0 - 1e-6)
    uppers = [row["upper"] for row in found.history]
    lowers = [row["lower"] for row in found.history]
    assert np.all(np.diff(lowers) >= 0.0)
    assert np.all(np.diff(uppers) <= 1e-4 * uppers[-1])
    assert "no network below" in str(found)


def test_time_limit_gives_an_honest_gap() -> None:
    X, y, reg = planted(Planted(100, 6, 0.02))
    hurried = train_to_global_optimum(X, y, reg, gap=1e-9, time_limit=0.5)
    assert hurried.status is Status.TIME_LIMIT
    assert hurried.relative_gap > 1e-9
    patient = train_to_global_optimum(X, y, reg, gap=1e-1)
    assert hurried.lower <= patient.upper
    assert patient.lower <= hurried.upper


def test_above_the_largest_useful_reg_the_zero_network_is_optimal() -> None:
    X, y, reg = planted(Planted(20, 3, 1.01))
    found = train_to_global_optimum(X, y, reg)
    assert found.network.width == 0
    assert found.upper == pytest.approx(float(y @ y) / 40.0)
    assert found.relative_gap <= 1e-3
    zero = train_to_global_optimum(X, 0.0 * y, 0.1)
    assert zero.upper == zero.lower == 0.0
    constant = train_to_global_optimum(X, np.full(20, 3.0), 0.1, output_bias=True)
    assert constant.network.width == 0
    assert constant.upper == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("reg", [0.3, 1e-3, 1e-12, 1e-15])
def test_a_gap_of_zero_is_a_fact(reg: float) -> None:
    """One sample, where ``(1 - f)^2 / 2 + reg |f|`` has the optimum reg - reg^2 / 2; rounding is 1e-16."""
    found = train_to_global_optimum([[1.0]], [1.0], reg, gap=1e-6)
    judged = global_certificate(Network(np.ones((1, 1)), np.ones((1, 1))), [[1.0]], [1.0], reg)
    assert judged.dual is not None
    optimum = reg - 0.5 * reg**2
    for upper, lower, gap in (
        (found.upper, found.lower, found.relative_gap),
        (judged.primal, judged.dual, judged.relative_gap),
    ):
        assert lower <= optimum * (1.0 + 1e-12) + 1e-30
        assert gap is not None
        assert gap * max(upper, 1e-15) >= (upper - lower) * (1.0 - 1e-12)
        assert (gap == 0.0) == (upper == lower)


def descended(X: Array, y: Array, reg: float, width: int, seed: int) -> Network:
    """A network after L-BFGS on its own weights: what local search gives; y is (n, c)."""
    (n, d), c = X.shape, y.shape[1]
    start = 0.5 * np.random.default_rng(seed).standard_normal(width * (d + c))

    def objective(flat: Array) -> tuple[float, Array]:
        W1, W2 = flat[: d * width].reshape(d, width), flat[d * width :].reshape(width, c)
        products = X @ W1
        hidden = np.maximum(products, 0.0)
        residual = (hidden @ W2 - y) / n
        back = X.T @ np.where(products > 0.0, residual @ W2.T, 0.0) + reg * W1
        gradient = np.concatenate([back.ravel(), (hidden.T @ residual + reg * W2).ravel()])
        return float(0.5 * n * np.sum(residual**2) + 0.5 * reg * flat @ flat), gradient

    flat = minimize(objective, start, jac=True, method="L-BFGS-B", options={"maxiter": 5000, "ftol": 1e-15}).x
    return Network(flat[: d * width].reshape(d, width), flat[d * width :].reshape(width, c))


def test_a_locally_trained_network_is_placed_and_improved() -> None:
    X, y, reg = planted(Planted(30, 3, 0.02))
    network = descended(X, y[:, None], reg, width=3, seed=0)
    judged = global_certificate(network, X, y, reg)
    best = train_to_global_optimum(X, y, reg, gap=1e-5)
    assert judged.primal + judged.balancing == pytest.approx(network.objective(X, y, reg), rel=1e-12)
    assert judged.gains is not None
    assert judged.gradient < 1e-4
    assert abs(judged.gains.own) <= 1e-6 * judged.primal  # stationary: the optimum of its own blocks
    assert judged.gains.other_signs >= -1e-9
    assert judged.gains.new_patterns > 0.01 * judged.primal
    assert judged.neuron is not None
    assert judged.neuron.price > reg
    assert judged.improved is not None
    assert best.lower <= judged.improved.objective(X, y, reg) < judged.primal
    assert judged.dual is not None
    assert judged.dual <= best.upper
    assert judged.dual >= 0.5 * best.lower
    assert "gains" in str(judged)


def test_the_new_neuron_does_improve_the_network() -> None:
    X, y, reg = planted(Planted(30, 3, 0.02))
    network = descended(X, y[:, None], reg, width=2, seed=0)
    judged = global_certificate(network, X, y, reg, time_limit=0.0)
    assert judged.neuron is not None
    assert judged.network is not None
    size = 1e-3
    wider = Network(
        np.column_stack([judged.network.W1, size * judged.neuron.weights]),
        np.vstack([judged.network.W2, [[size * judged.neuron.sign]]]),
    )
    gain = judged.primal - wider.objective(X, y, reg)
    assert gain == pytest.approx(size**2 * (judged.neuron.price - reg), rel=1e-2)


def test_several_outputs_have_a_bound_below_every_network() -> None:
    rng = np.random.default_rng(0)
    X, Y = rng.standard_normal((12, 2)), rng.standard_normal((12, 2))
    reg = 0.05
    networks = [descended(X, Y, reg, width=10, seed=seed) for seed in range(5)]
    best = min(network.objective(X, Y, reg) for network in networks)
    for network in networks[:2]:
        judged = global_certificate(network, X, Y, reg)
        assert judged.dual is not None
        assert 0.3 * best <= judged.dual <= best * (1.0 + 1e-9)
        assert judged.gains is None
        assert judged.improved is None


def test_layers_are_balanced_without_changing_the_function() -> None:
    rng = np.random.default_rng(1)
    network = Network(
        rng.standard_normal((3, 4)) * np.array([1.0, 100.0, 0.0, 1.0]),
        rng.standard_normal((4, 2)) * np.array([[1.0], [1.0], [1.0], [0.0]]),
        b1=rng.standard_normal(4) * np.array([1.0, 1.0, 0.0, 1.0]),
    )
    even = balance(network)
    X = rng.standard_normal((20, 3))
    np.testing.assert_allclose(even.predict(X), network.predict(X), rtol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(even.gate_vectors, axis=0), np.linalg.norm(even.W2, axis=1))
    assert even.penalty <= network.penalty
    y = rng.standard_normal((20, 2))
    judged = global_certificate(network, X, y, 0.1, time_limit=0.0)
    assert judged.balancing == pytest.approx(0.1 * (network.penalty - even.penalty))


def test_arrays_and_torch_modules_are_read() -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(2)
    X, y = rng.standard_normal((15, 2)), rng.standard_normal(15)
    layers = (
        torch.nn.Linear(2, 4, dtype=torch.float64),
        torch.nn.ReLU(),
        torch.nn.Linear(4, 1, dtype=torch.float64),
    )
    module = torch.nn.Sequential(*layers)
    arrays = (
        layers[0].weight.detach().numpy().T,
        layers[0].bias.detach().numpy(),
        layers[2].weight.detach().numpy()[0],
        layers[2].bias.detach().numpy(),
    )
    network = Network(arrays[0], arrays[2][:, None], arrays[1], arrays[3])
    results = [global_certificate(given, X, y, 0.05) for given in (module, arrays, network)]
    assert len({result.primal for result in results}) == 1
    assert len({result.dual for result in results}) == 1
    with pytest.raises(TypeError, match="Linear, Tanh, Linear"):
        global_certificate(torch.nn.Sequential(layers[0], torch.nn.Tanh(), layers[2]), X, y, 0.05)


def test_a_solver_of_choice_and_a_printed_table(capsys: pytest.CaptureFixture[str]) -> None:
    X, y, reg = planted(Planted(20, 2, 0.05))
    default = train_to_global_optimum(X, y, reg, gap=1e-3, verbose=True)
    assert "upper" in capsys.readouterr().out
    chosen = train_to_global_optimum(X, y, reg, gap=1e-3, solver=cp.CLARABEL)
    assert chosen.status is Status.OPTIMAL
    assert chosen.upper == pytest.approx(default.upper, rel=1e-3)


X_OK, Y_OK = np.eye(3), np.array([1.0, -1.0, 1.0])
NET = Network(np.ones((3, 2)), np.ones((2, 1)))


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: train_to_global_optimum(X_OK, Y_OK, 0.0), ValueError, "reg must be positive"),
        (lambda: train_to_global_optimum(X_OK, Y_OK, -1.0), ValueError, "reg must be positive"),
        (lambda: train_to_global_optimum(X_OK, np.ones((3, 2)), 0.1), ValueError, "one network per output"),
        (lambda: train_to_global_optimum(X_OK, Y_OK, 0.1, gap=0.0), ValueError, "gap"),
        (lambda: train_to_global_optimum(X_OK, Y_OK, 0.1, loss="hinge"), ValueError, "'squared'"),
        (lambda: train_to_global_optimum(X_OK, 2.0 * Y_OK, 0.1, loss="logistic"), ValueError, "y"),
        (lambda: train_to_global_optimum(X_OK, Y_OK, 0.1, level=0.5), TypeError, "level"),
        (lambda: global_certificate(NET, np.eye(2), np.ones(2), 0.1), ValueError, "columns"),
        (lambda: global_certificate(NET, X_OK, np.ones(2), 0.1), ValueError, "y"),
        (lambda: global_certificate("network", X_OK, Y_OK, 0.1), TypeError, "Network"),
        (
            lambda: global_certificate(Network(NET.W1, NET.W2, slope=0.1), X_OK, Y_OK, 0.1),
            ValueError,
            "ReLU network",
        ),
        (
            lambda: global_certificate(Network(NET.W1, NET.W2, gates=NET.W1), X_OK, Y_OK, 0.1),
            ValueError,
            "ReLU network",
        ),
    ],
)
def test_bad_arguments_are_named(call: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        call()


@pytest.mark.parametrize("reg", [1e100, 1e160])
def test_a_reg_that_no_solver_can_hold_is_said_in_one_sentence(reg: float) -> None:
    X = np.random.default_rng(0).standard_normal((20, 3))
    y = np.abs(X[:, 0])
    model = cnn.relu(X, cnn.sample_gates(X, 6, seed=0))
    model.problem(y, 0.01).solve(solver=Auto())
    with pytest.raises(cp.SolverError, match="reg nearer to lambda_max"):
        cnn.global_certificate(cnn.recover(model), X, y, reg)
