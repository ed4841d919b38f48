"""What users store refers to public names only, so that files may move without making it unreadable."""

from __future__ import annotations

import copy
import io
import pickle
import pickletools
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pytest
from test_reference import SHOWN, public

import convexnn_models as cnn
import convexnn_solvers
from convexnn_models.estimators import ConvexNNClassifier
from convexnn_solvers import RFISTA, SemismoothNewton, Status, certificate, distributed

MODULES = {module for module, *_ in SHOWN}

X = np.random.default_rng(0).standard_normal((10, 2))
Y = np.abs(X[:, 0])
GATES = cnn.sample_gates(X, 4)


class Recorder(pickle.Unpickler):
    """Notes from where a pickle takes the names of this project."""

    def __init__(self, stored: bytes) -> None:
        super().__init__(io.BytesIO(stored))
        self.found: set[tuple[str, str]] = set()

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("convexnn"):
            self.found.add((module, name))
        return super().find_class(module, name)


def solved(model: Any, y: Any = Y) -> Any:
    problem = model.problem(y, 0.05)
    problem.solve(solver=RFISTA() if len(problem.constraints) == 0 else SemismoothNewton())
    return model


def polynomial_fit() -> list[Any]:
    model = cnn.polynomial(X, 0.1, 0.5, 0.4)
    model.problem(Y, 0.05)
    return [cnn.solve_polynomial(model), cnn.recover(model)]


def linear_fit() -> list[Any]:
    model = cnn.parallel_linear(X, 3, outputs=2)
    model.problem(np.stack([Y, -Y], axis=1), 0.05)
    return [cnn.solve_parallel_linear(model), cnn.recover(model)]


def convolutional_network() -> Any:
    patches = np.stack([X, X[::-1]], axis=1)
    gates = cnn.sample_gates(cnn.stacked_patches(patches), 3)
    return cnn.recover(solved(cnn.convolutional(patches, gates, relu=False)))


def judged() -> list[Any]:
    network = cnn.Network(np.array([[1.0, 0.0], [0.2, 1.0]]), np.ones((2, 1)))
    return [cnn.global_certificate(network, X, Y, 0.1), cnn.stationarity(network, X, Y, 0.1)]


VALUES: dict[str, Callable[[], Any]] = {
    "gates": lambda: GATES,
    "relu network": lambda: cnn.recover(solved(cnn.relu(X, GATES))),
    "gated network": lambda: cnn.to_relu(cnn.recover(solved(cnn.gated_relu(X, GATES)))),
    "convolutional network": convolutional_network,
    "polynomial fit": polynomial_fit,
    "linear fit": linear_fit,
    "certificate": lambda: certificate(solved(cnn.gated_relu(X, GATES)).problem(Y, 0.05)),
    "relu certificate": lambda: certificate(solved(cnn.relu(X, GATES)).problem(Y, 0.05)),
    "solver": lambda: SemismoothNewton(tol=1e-7, time_limit=2.0),
    "path": lambda: cnn.regularization_path(cnn.gated_relu(X, GATES), Y, 3).points[-1].network,
    "global": judged,
    "comparison": lambda: convexnn_solvers.Comparison([]),
    "estimator": lambda: ConvexNNClassifier(n_gates=4).fit(X, np.where(Y > 0.5, 1, -1)),
    "status": lambda: Status.OPTIMAL,
    "refusal": lambda: convexnn_solvers.UnsupportedProblem("no"),
}


@pytest.mark.parametrize("name", VALUES)
def test_pickles_of_values_hold_public_names_only(name: str) -> None:
    recorder = Recorder(pickle.dumps(VALUES[name]()))
    recorder.load()
    assert recorder.found
    assert {module for module, _ in recorder.found} <= MODULES


def test_solvers_keep_their_options_in_pickles_and_copies() -> None:
    solver = RFISTA(tol=1e-7, max_iter=3)
    for twin in (pickle.loads(pickle.dumps(solver)), copy.copy(solver), copy.deepcopy(solver)):
        assert twin == solver
        assert twin.options == solver.options


def test_a_solver_is_read_where_the_folder_of_its_checkpoint_is_missing(tmp_path: Path) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    stored = pickle.dumps(RFISTA(tol=1e-7, checkpoint=folder / "state.npz"))
    folder.rmdir()
    twin = pickle.loads(stored)
    assert (twin.options.tol, twin.options.checkpoint) == (1e-7, folder / "state.npz")


@pytest.mark.parametrize("status", Status)
def test_pickles_of_a_status_hold_its_name_and_not_its_sentence(status: Status) -> None:
    stored = pickle.dumps(status)
    assert pickle.loads(stored) is status
    assert copy.deepcopy(status) is copy.copy(status) is status
    texts = {text for _, text, _ in pickletools.genops(stored) if isinstance(text, str)}
    assert status.name in texts
    assert status.value not in texts


@pytest.mark.parametrize("package", [cnn, convexnn_solvers, distributed])
def test_types_of_fields_are_found(package: Any) -> None:
    for name in public(package):
        item = getattr(package, name)
        if isinstance(item, type):
            assert not any(isinstance(hint, str) for hint in get_type_hints(item).values())


def test_classes_and_functions_say_where_users_find_them() -> None:
    for package in (cnn, convexnn_solvers, distributed):
        for name in public(package):
            item = getattr(package, name)
            assert (item.__module__, item.__qualname__) == (package.__name__, name)
