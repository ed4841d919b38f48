"""Networks: the formula, the objective, files, and the same function in torch."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import convexnn_models as cnn

Float = NDArray[np.float64]


def random_network(**kind: Any) -> cnn.Network:
    rng = np.random.default_rng(1)
    d, m, c = 3, 5, kind.pop("outputs", 1)
    extra: dict[str, Any] = {}
    if kind.pop("biases", False):
        extra |= {"b1": rng.standard_normal(m), "b2": rng.standard_normal(c)}
    if kind.pop("gated", False):
        extra |= {"gates": rng.standard_normal((d, m))}
        if "b1" in extra:
            extra |= {"gate_bias": rng.standard_normal(m)}
    return cnn.Network(rng.standard_normal((d, m)), rng.standard_normal((m, c)), **extra, **kind)


KINDS: dict[str, dict[str, Any]] = {
    "relu": {},
    "outputs": {"outputs": 3},
    "biases": {"biases": True, "outputs": 2},
    "leaky": {"slope": 0.2},
    "absolute": {"slope": -1.0, "biases": True},
    "gated": {"gated": True},
    "gated, biases": {"gated": True, "biases": True, "outputs": 2},
}


def by_hand(network: cnn.Network, x: Float) -> Float:
    """One sample, one neuron at a time."""
    total = np.zeros(network.outputs) if network.b2 is None else network.b2.copy()
    for j in range(network.width):
        t = x @ network.W1[:, j] + (0.0 if network.b1 is None else network.b1[j])
        if network.gates is None:
            active = t >= 0.0
        else:
            active = (
                x @ network.gates[:, j] + (0.0 if network.gate_bias is None else network.gate_bias[j]) >= 0
            )
        total += (t if active else network.slope * t) * network.W2[j]
    return total


@pytest.mark.parametrize("kind", KINDS)
def test_predictions_follow_the_formula(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    network = random_network(**KINDS[kind])
    X = np.random.default_rng(0).standard_normal((11, 3))
    expected = np.stack([by_hand(network, x) for x in X])
    scores = network.predict(X)
    assert scores.shape == ((11,) if network.outputs == 1 else (11, network.outputs))
    assert scores.reshape(expected.shape) == pytest.approx(expected, rel=1e-12)
    monkeypatch.setattr("convexnn_models.network._ROWS", 4)
    assert network.predict(X.tolist()) == pytest.approx(scores, rel=1e-14)


@pytest.mark.parametrize("kind", KINDS)
def test_files_hold_arrays_and_give_the_same_network(kind: str, tmp_path: Path) -> None:
    network = random_network(**KINDS[kind])
    path = tmp_path / "network.weights"
    network.save(path)
    loaded = cnn.Network.load(path)
    X = np.random.default_rng(0).standard_normal((6, 3))
    assert np.array_equal(loaded.predict(X), network.predict(X))
    assert repr(loaded) == repr(network)
    with np.load(path, allow_pickle=False) as arrays:
        assert all(arrays[name].dtype == np.float64 for name in arrays.files)


@pytest.mark.parametrize("kind", KINDS)
def test_torch_computes_the_same_function(kind: str) -> None:
    torch = pytest.importorskip("torch")
    network = random_network(**KINDS[kind])
    X = np.random.default_rng(0).standard_normal((7, 3))
    module = network.to_torch()
    scores = module(torch.tensor(X)).detach().numpy()
    assert scores.reshape(network.predict(X).shape) == pytest.approx(network.predict(X), rel=1e-12)
    restored = network.to_torch()
    restored.load_state_dict(module.state_dict())
    module(torch.tensor(X)).sum().backward()
    assert all(p.grad is not None for p in module.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_onnx_computes_the_same_function(kind: str, tmp_path: Path) -> None:
    onnx, reference = pytest.importorskip("onnx"), pytest.importorskip("onnx.reference")
    network = random_network(**KINDS[kind])
    network.to_onnx(tmp_path / "network.onnx")
    X = np.random.default_rng(0).standard_normal((7, 3))
    evaluator: Any = reference.ReferenceEvaluator(onnx.load(tmp_path / "network.onnx"))
    (scores,) = evaluator.run(None, {"X": X})
    assert scores.shape == (7, network.outputs)
    assert scores.reshape(network.predict(X).shape) == pytest.approx(network.predict(X), rel=1e-12)


@pytest.mark.parametrize(("method", "package"), [("to_torch", "torch"), ("to_onnx", "onnx")])
def test_missing_packages_are_named(method: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    network = random_network()
    arguments = ["unused"] if method == "to_onnx" else []
    with pytest.raises(ImportError, match=rf"needs {package}; pip install 'convexnn\[{package}\]'"):
        getattr(network, method)(*arguments)


def test_the_empty_network_works_everywhere(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    network = cnn.Network(np.zeros((3, 0)), np.zeros((0, 1)), b2=np.array([0.5]))
    X = np.ones((2, 3))
    assert network.predict(X).tolist() == [0.5, 0.5]
    assert network.to_torch()(torch.tensor(X)).tolist() == [[0.5], [0.5]]
    network.save(tmp_path / "empty")
    assert cnn.Network.load(tmp_path / "empty").width == 0


def test_the_objective_is_the_weight_decay_one() -> None:
    network = random_network(biases=True, outputs=2)
    X, Y = np.random.default_rng(0).standard_normal((6, 3)), np.ones((6, 2))
    W1, b1, W2, _ = network.weights
    decay = np.sum(W1**2) + np.sum(b1**2) + np.sum(W2**2)
    residual = network.predict(X) - Y
    expected = np.sum(residual**2) / 12.0 + 0.3 / 2.0 * decay
    assert network.objective(X, Y, 0.3) == pytest.approx(expected, rel=1e-13)
    labels = np.array([0, 1, 1, 0, 1, 0])
    softmax = network.objective(X, labels, 0.0, loss="softmax")
    shifted = network.predict(X) - network.predict(X)[np.arange(6), labels][:, None]
    assert softmax == pytest.approx(np.mean(np.log(np.exp(shifted).sum(axis=1))), rel=1e-12)
    assert network.objective(X, Y, 0.0, "huber", threshold=1e9) == pytest.approx(np.sum(residual**2) / 12.0)
    for keep in (False, True):  # a number or an array of one, as NumPy gives them
        found = network.objective(X, Y, 0.0, lambda f, y, keep=keep: np.mean((f - y) ** 2, keepdims=keep))
        assert found == pytest.approx(np.mean(residual**2), rel=1e-13)


def test_the_text_names_the_kind() -> None:
    texts = {
        "relu": "Network(ReLU: 3 inputs, 5 neurons, 1 output)",
        "outputs": "Network(ReLU: 3 inputs, 5 neurons, 3 outputs)",
        "leaky": "Network(slope 0.2: 3 inputs, 5 neurons, 1 output)",
        "absolute": "Network(absolute value: 3 inputs, 5 neurons, 1 output)",
        "gated": "Network(gated: 3 inputs, 5 neurons, 1 output)",
    }
    assert {kind: repr(random_network(**KINDS[kind])) for kind in texts} == texts


def test_files_of_something_else_are_refused(tmp_path: Path) -> None:
    other = tmp_path / "other.npz"
    np.savez(other, A=np.ones(3))
    with pytest.raises(ValueError, match="no saved network"):
        cnn.Network.load(other)
    text = tmp_path / "text"
    text.write_text("hello")
    with pytest.raises(ValueError, match="no saved network"):
        cnn.Network.load(text)
    objects = tmp_path / "objects.npz"
    np.savez(objects, W1=np.array([{}], dtype=object), W2=np.ones((1, 1)))
    with pytest.raises(ValueError, match="no saved network"):
        cnn.Network.load(objects)
    with pytest.raises(FileNotFoundError):
        cnn.Network.load(tmp_path / "absent")
