"""Every public function says which option it does not have, and which switch is neither True nor False."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import cvxpy as cp
import numpy as np
import pytest

import convexnn_models as cnn
import convexnn_solvers
from convexnn_models import datasets, plotting
from convexnn_models.convolutional_network import ConvolutionalNetwork
from convexnn_models.deep_network import DeepNetwork
from convexnn_models.polynomial_network import PolynomialNetwork
from convexnn_solvers.distributed import GateParallel
from convexnn_solvers.named_options import checked_options, parameter_names

X = np.random.default_rng(0).standard_normal((8, 3))
Y = X[:, 0]
GATES = cnn.sample_gates(X, 4)
FUNCTIONS: dict[str, Callable[..., Any]] = {
    name: function
    for module in (cnn, convexnn_solvers, datasets, plotting)
    for name, function in inspect.getmembers(module, inspect.isfunction)
    if function.__module__.startswith("convexnn") and name not in ("cache_folder", "checked_options")
    if not name.startswith("_")
}
FUNCTIONS["problem"] = cnn.relu(X, GATES).problem
FUNCTIONS |= {
    f"objective of {kind.__name__}": partial(getattr(kind, "objective"), None)  # noqa: B009
    for kind in (cnn.Network, ConvolutionalNetwork, PolynomialNetwork, DeepNetwork)
}
ATOMS_AND_SOLVERS = ("gated", "pattern_slack", "Auto", "RFISTA", "ADMM", "BlockDescent", "SemismoothNewton")
CALLS = FUNCTIONS | {name: getattr(convexnn_solvers, name) for name in ATOMS_AND_SOLVERS}
CALLS["GateParallel"] = GateParallel


@pytest.mark.parametrize("name", CALLS)
def test_a_misspelt_option_is_refused_with_the_name_that_was_meant(name: str) -> None:
    function = CALLS[name]
    with pytest.raises(TypeError, match=r"has no option 'colour'.* The options are [^.]+[.]$"):
        function(colour=1)
    meant = parameter_names(function)[-1]
    with pytest.raises(TypeError, match=f"'{meant}_'; did you mean '{meant}'[?]"):
        function(**{meant + "_": 1})


SWITCHES = [
    (name, parameter.name)
    for name, function in FUNCTIONS.items()
    for parameter in inspect.signature(function).parameters.values()
    if parameter.annotation == "bool"
]


@pytest.mark.parametrize(("name", "switch"), SWITCHES)
def test_a_switch_is_true_or_false(name: str, switch: str) -> None:
    for wrong in ("no", [False], 1, None):
        with pytest.raises(TypeError, match=f"^{switch} must be True or False, not "):
            FUNCTIONS[name](**{switch: wrong})


def test_switches_are_known_by_position_too_and_numpys_are_good() -> None:
    @checked_options
    def answer(loud: bool, times: int = 1) -> int:
        return times if loud else 0

    assert answer(True, 2) == answer(np.True_, times=2) == 2  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="loud must be True or False, not 'no'"):
        answer("no")  # type: ignore[arg-type]


def test_what_goes_by_name_is_refused_by_position() -> None:
    with pytest.raises(TypeError, match="relu takes X, gates by position; the others go by name: outputs, "):
        cnn.relu(X, GATES, 2)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="Auto takes nothing by position; the others go by name: tol, "):
        convexnn_solvers.Auto(1e-3)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"recover takes model, prune by position\.$"):
        cnn.recover(cnn.relu(X, GATES), True, True)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="stationarity takes network, X, y, reg by position; the others"):
        cnn.stationarity(None, X, Y, 0.1, "huber")  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"takes model, y, loss by position; the others go by name\.$"):
        cnn.lambda_max(cnn.relu(X, GATES), Y, "huber", 0.5)  # type: ignore[call-arg]


def test_the_options_of_a_loss_are_known_where_it_is_used() -> None:
    model = cnn.gated_relu(X, GATES)
    with pytest.raises(TypeError, match="lambda_max with loss huber has no option 'treshold'; did you mean"):
        cnn.lambda_max(model, Y, "huber", treshold=0.5)
    with pytest.raises(TypeError, match=r"problem with loss squared has no option 'threshold'\. The"):
        model.problem(Y, 0.1, threshold=0.5)
    assert model.training is None

    def stretched(prediction: Any, y: Any, *, factor: float = 1.0) -> Any:
        return factor * cp.sum_squares(prediction - y)

    def anything(prediction: Any, y: Any, **options: float) -> Any:
        return stretched(prediction, y, factor=options["any"])

    model.problem(Y, 0.1, stretched, factor=2.0)
    model.problem(Y, 0.1, anything, any=2.0)

    def placed(prediction: Any, y: Any, /, factor: float = 1.0) -> Any:
        return stretched(prediction, y, factor=factor)

    def several(*data: Any, factor: float = 1.0) -> Any:
        return stretched(*data, factor=factor)

    for loss in (placed, several):
        model.problem(Y, 0.1, loss, factor=2.0)
        with pytest.raises(TypeError, match="has no option 'factr'; did you mean 'factor'"):
            model.problem(Y, 0.1, loss, factr=2.0)
    with pytest.raises(TypeError, match="loss stretched has no option 'factr'; did you mean 'factor'"):
        model.problem(Y, 0.1, stretched, factr=2.0)
