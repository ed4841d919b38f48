"""What cannot be meant is refused in one sentence that names the argument; what can be meant just works."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
from interior_point import optimum
from numpy.typing import NDArray

import convexnn_models as cnn
from convexnn_models import _arrays, datasets, losses, samplers
from convexnn_models.gates import Gates
from convexnn_solvers import gated, pattern_slack

Float = NDArray[np.float64]

RNG = np.random.default_rng(0)
X: Float = RNG.standard_normal((8, 3))
Y: Float = RNG.standard_normal(8)
GATES = cnn.sample_gates(X, 5)
MODEL = cnn.relu(X, GATES)
WIDE = cnn.gated_relu(X, GATES, outputs=3)
BIASED = cnn.gated_relu(X, GATES, output_bias=True)
NETWORK = cnn.Network(np.ones((3, 2)), np.ones((2, 1)))
GATED = cnn.Network(np.ones((3, 2)), np.ones((2, 1)), gates=np.ones((3, 2)))
SIGNS = np.sign(Y)


def with_entry(value: Any) -> Float:
    spoiled = X.copy()
    spoiled[3, 1] = value
    return spoiled


class Unreadable:
    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        raise RuntimeError("not on this device")


class Sparse:
    def toarray(self) -> Float:
        return X


BAD_X: list[tuple[Any, type[Exception], str]] = [
    (with_entry(np.nan), ValueError, r"NaN or infinity \(first at \(3, 1\)\); impute"),
    (with_entry(-np.inf), ValueError, "NaN or infinity"),
    (X[:, 0], ValueError, r"shape \(n, d\).*single feature is X.reshape\(-1, 1\)"),
    (X[None], ValueError, r"shape \(n, d\)"),
    (np.float64(3.0), ValueError, r"shape \(n, d\)"),
    (np.zeros((0, 3)), ValueError, "at least one sample"),
    (np.zeros((4, 0)), ValueError, "at least one sample"),
    ([], ValueError, "shape"),
    (X + 1j, TypeError, r"real numbers, not complex128; stack real and imaginary"),
    (X.astype(object), TypeError, "real numbers, not object; encode text"),
    (X.astype(str), TypeError, "real numbers"),
    (X.astype("datetime64[s]"), TypeError, "convert dates"),
    ([[1.0, 2.0], [3.0]], TypeError, "array of numbers"),
    (None, TypeError, "real numbers, not None"),
    (Unreadable(), TypeError, "array of numbers; NumPy says: not on this device"),
    (Sparse(), TypeError, r"X.toarray\(\)"),
    (np.ma.masked_greater(X, 1.0), ValueError, "masked entries"),
]


@pytest.mark.parametrize(("bad", "error", "message"), BAD_X)
def test_bad_features_are_refused(bad: Any, error: type[Exception], message: str) -> None:
    calls: list[Callable[[Any], Any]] = [
        lambda samples: cnn.sample_gates(samples, 3),
        lambda samples: cnn.gates_from_vectors(samples, np.ones((3, 1))),
        lambda samples: cnn.relu(samples, GATES),
        lambda samples: cnn.gated_relu(samples, GATES),
        lambda samples: cnn.piecewise_linear(samples, GATES, 0.1),
        NETWORK.predict,
    ]
    for call in calls:
        with pytest.raises(error, match="X.*" + message) as refusal:
            call(bad)
        text = str(refusal.value)
        assert "\n" not in text
        assert text.count("X") >= 1


REFUSALS: list[tuple[Callable[[], Any], type[Exception], str]] = [
    # gates
    (lambda: cnn.sample_gates(X, 0), ValueError, "k must be at least 1"),
    (lambda: cnn.sample_gates(X, 2.5), TypeError, "k must be a whole number"),  # type: ignore[arg-type]
    (lambda: cnn.sample_gates(np.zeros((3, 2)), 4), ValueError, "only zero rows.*bias=True"),
    (lambda: cnn.gates_from_vectors(X, np.ones((2, 4))), ValueError, "vectors must have 3 rows.*a column"),
    (lambda: cnn.gates_from_vectors(X, np.ones((4, 4))), ValueError, "vectors must have 3 rows.*bias=True"),
    (lambda: cnn.gates_from_vectors(X, np.ones(3)), ValueError, r"\(d, P\).*a single gate.*reshape\(-1, 1\)"),
    (lambda: cnn.gates_from_vectors(X, np.ones((3, 0))), ValueError, r"\(d, P\), one gate per column"),
    (lambda: cnn.gates_from_vectors(X, np.full((3, 1), np.nan)), ValueError, "vectors .*drop those gates"),
    (lambda: cnn.gates_from_vectors(X, np.eye(3), description=3), TypeError, "description must be a text"),  # type: ignore[arg-type]
    (lambda: cnn.gates_from(NETWORK, X[:, :1]), ValueError, "network has gates of 3 entries, but X has 1"),
    (lambda: cnn.gates_from_vectors(X, np.ones((3, 4)), bias=True), ValueError, "4 rows.*bias"),
    (lambda: cnn.gates_from_vectors(X, np.eye(3) * [1, 0, 1]), ValueError, r"all-zero gate \(column 1\)"),
    (lambda: cnn.gates_from(cnn.Network(np.zeros((3, 2)), np.ones((2, 1))), X), ValueError, "no neuron"),
    (lambda: Gates(np.ones((3, 2)), np.ones((8, 2)), ""), TypeError, "boolean"),  # type: ignore[arg-type]
    (lambda: Gates(np.ones((3, 2)), [[1], [0, 1]], ""), TypeError, "boolean array, not list"),  # type: ignore[arg-type]
    (lambda: Gates(np.ones((3, 2)), np.ones((8, 3), dtype=bool), ""), ValueError, r"\(n, P\) with P = 2"),
    # models
    (lambda: cnn.relu(X, GATES.patterns), TypeError, "gates must be a Gates"),  # type: ignore[arg-type]
    (lambda: cnn.relu(X[:5], GATES), ValueError, "gates were made for 8 samples, but X has 5"),
    (lambda: cnn.relu(X, GATES, bias=True), ValueError, r"vectors in R\^3.*are 4.*same bias"),
    (lambda: cnn.relu(X[:, :2], GATES), ValueError, r"vectors in R\^3.*are 2"),
    (lambda: cnn.relu(X - 1.0, GATES), ValueError, "gates do not belong to X"),
    (lambda: cnn.relu(X, GATES, outputs=0), ValueError, "outputs must be at least 1"),
    (lambda: cnn.relu(X, GATES, grouping="nuclear"), ValueError, "grouping must be one of 'shared'"),
    (lambda: cnn.gated_relu(X, GATES, grouping="none"), ValueError, "'nuclear' here, not 'none'"),
    (lambda: cnn.piecewise_linear(X, GATES, np.inf), ValueError, "slope must be finite"),
    (lambda: cnn.piecewise_linear(X, GATES, "0.1"), TypeError, "slope must be a real"),  # type: ignore[arg-type]
    (
        lambda: cnn.relu(X, Gates(np.zeros((3, 1)), np.zeros((8, 1), dtype=bool), "")),
        ValueError,
        "no pattern",
    ),
    # misspelt options
    (lambda: cnn.relu(X, GATES, output=2), TypeError, "relu has no option 'output'; did you mean 'outputs'"),  # type: ignore[call-arg]
    (lambda: cnn.polynomial(X, 1, 1, 1, out=2), TypeError, "polynomial has no .*'outputs'.*are X, a, b, c, "),  # type: ignore[call-arg]
    (lambda: cnn.sample_gates(X, 5, sed=0), TypeError, "sample_gates .*did you mean 'seed'"),  # type: ignore[call-arg]
    (lambda: MODEL.problem(Y, 0.1, los="huber"), TypeError, "problem .*'los'; did you mean 'loss'"),
    # targets
    (lambda: MODEL.problem(Y[:7], 0.1), ValueError, r"y must have shape \(8,\).*not \(7,\)"),
    (lambda: MODEL.problem(Y[None], 0.1), ValueError, r"y must have shape \(8,\).*not \(1, 8\)"),
    (lambda: MODEL.problem(np.ones((8, 3)), 0.1), ValueError, "y has 3 columns.*outputs=3"),
    (lambda: WIDE.problem(Y, 0.1), ValueError, r"y must have shape \(8, 3\).*not \(8,\)"),
    (lambda: WIDE.problem(np.ones((8, 2)), 0.1), ValueError, "y has 2 columns.*outputs=2"),
    (lambda: MODEL.problem(np.where(Y > 0, np.nan, Y), 0.1), ValueError, "y must not contain NaN"),
    (lambda: MODEL.problem(["a"] * 8, 0.1), TypeError, "y must hold real numbers"),
    (lambda: MODEL.interpolation(Y[:3]), ValueError, "Y must have shape"),
    (lambda: MODEL.problem((SIGNS + 1) / 2, 0.1, "logistic"), ValueError, r"labels -1 and \+1.*2 \* y - 1"),
    (lambda: MODEL.problem(Y, 0.1, "hinge"), ValueError, "labels -1 and"),
    (lambda: MODEL.problem(SIGNS, 0.1, "softmax"), ValueError, "one output per class"),
    (lambda: WIDE.problem(np.arange(8), 0.1, "softmax"), ValueError, "classes from 0 to 2"),
    (lambda: WIDE.problem(Y, 0.1, "softmax"), ValueError, "whole classes"),
    (lambda: WIDE.problem(np.arange(7) % 3, 0.1, "softmax"), ValueError, "one class per sample"),
    (lambda: WIDE.problem(np.ones((8, 3)), 0.1, "softmax"), ValueError, "one-hot rows"),
    (lambda: BIASED.problem(np.ones(8), 0.1, "logistic"), ValueError, "y lacks a class.*output_bias"),
    (
        lambda: cnn.gated_relu(X, GATES, outputs=3, output_bias=True).problem(
            np.arange(8) % 2, 0.1, "softmax"
        ),
        ValueError,
        r"y lacks a class \(output 2\)",
    ),
    # regularisation and losses
    (lambda: MODEL.problem(Y, -0.1), ValueError, "reg must be at least 0, not -0.1"),
    (lambda: MODEL.problem(Y, np.nan), ValueError, "reg must be finite"),
    (lambda: MODEL.problem(Y, "big"), TypeError, "reg must be a real number"),
    (lambda: MODEL.problem(Y, [0.1, 0.2]), TypeError, "reg must be a real number"),
    (
        lambda: MODEL.problem(cp.Parameter(8), 0.1),
        TypeError,
        "y must be numbers, not a CVXPY Parameter: pass",
    ),
    (lambda: cnn.relu(cp.Variable((8, 3)), GATES), TypeError, "X must be numbers, not a CVXPY Variable"),
    (lambda: MODEL.problem(Y, cp.Parameter()), ValueError, r"reg must be a scalar, non-negative Parameter"),
    (lambda: MODEL.problem(Y, cp.Parameter(2, nonneg=True)), ValueError, "reg must be a scalar"),
    (lambda: MODEL.problem(Y, cp.Variable(nonneg=True)), TypeError, "reg must be a number or a cp.Parameter"),
    (lambda: MODEL.problem(Y, 0.1, "mse"), ValueError, "loss must be one of absolute, hinge.*not 'mse'"),
    (lambda: MODEL.problem(Y, 0.1, "squared", threshold=1.0), TypeError, "loss squared.*threshold"),
    (lambda: MODEL.problem(Y, 0.1, ["squared"]), ValueError, r"loss must be one of .*not \['squared'\]"),  # type: ignore[arg-type]
    (lambda: MODEL.problem(Y, 0.1, lambda f: f), TypeError, "loss must be a function of .prediction, y. "),
    (lambda: MODEL.problem(Y, 0.1, lambda f, y: None), TypeError, "loss must return .*not NoneType"),
    (lambda: MODEL.problem(Y, 0.1, "huber", threshold=0.0), ValueError, "threshold must be positive"),
    (lambda: MODEL.problem(Y, 0.1, "quantile", level=1.0), ValueError, "level must lie between 0 and 1"),
    (lambda: MODEL.problem(Y, 0.1, lambda f, y: f - y), ValueError, "convex scalar CVXPY expression"),
    (lambda: MODEL.problem(Y, 0.1, lambda f, y: -cp.sum_squares(f - y)), ValueError, "CONCAVE"),
    # lambda_max and recovery
    (lambda: cnn.lambda_max(MODEL, Y, "absolute"), ValueError, "loss absolute has no known gradient"),
    (lambda: cnn.lambda_max(BIASED, SIGNS, "hinge"), ValueError, "loss hinge.*with an output bias"),
    (lambda: cnn.lambda_max(MODEL, Y[:3]), ValueError, "y must have shape"),
    (lambda: cnn.lambda_max(NETWORK, Y), TypeError, "model must be a relu"),  # type: ignore[arg-type]
    (lambda: cnn.recover(cnn.relu(X, GATES)), ValueError, r"no values \(variable V\); solve"),
    (lambda: cnn.recover(NETWORK), TypeError, "model must be what relu"),  # type: ignore[call-overload]
    (lambda: cnn.to_relu(NETWORK, X, Y, 0.1), ValueError, "network must be gated"),
    (lambda: cnn.to_relu(GATED), ValueError, "X is needed"),
    (lambda: cnn.to_relu(GATED, X), ValueError, "y and reg are needed"),
    (lambda: cnn.to_relu(GATED, X, Y), ValueError, "y and reg are needed"),
    (lambda: cnn.to_relu(GATED, X[:, :2], Y, 0.1), ValueError, "X must have 3 columns"),
    (lambda: cnn.to_relu(GATED, X, Y, -0.1), ValueError, "reg must be at least 0"),
    (lambda: cnn.to_relu(5), TypeError, "network must be a gated Network, not int"),  # type: ignore[arg-type]
    (lambda: cnn.gates_from(MODEL, X), TypeError, "network must be a Network, not ConvexModel"),  # type: ignore[arg-type]
    # one of the wrong kind where several, a seed or a number is meant
    (lambda: cnn.sample_gates(X, True), TypeError, "k must be a whole number, not True"),
    (lambda: cnn.sample_gates(X, Y), TypeError, r"k must be a whole number, not an array of shape \(8,\)"),  # type: ignore[arg-type]
    (lambda: cnn.sample_gates(X, 3, seed="7"), ValueError, "seed must be a whole number >= 0.*not '7'"),  # type: ignore[arg-type]
    (lambda: cnn.sample_gates(X, 3, seed=-1), ValueError, "seed must be .*not -1"),
    (lambda: cnn.sample_gates(X, 3, sampler=["sphere"]), ValueError, "sampler must be one of"),  # type: ignore[arg-type]
    (lambda: cnn.gated_bridge(X, Y, 0.1, GATES), TypeError, r"regs must be a sequence such as \[0.1\]"),  # type: ignore[arg-type]
    (lambda: cnn.gated_bridge(X, Y, [0.1, 0.0], GATES), ValueError, "regs must be positive, not 0.0"),
    (lambda: cnn.price(X, Y, floor="low"), TypeError, "floor must be a real number, not 'low'"),  # type: ignore[arg-type]
    (lambda: cnn.price(X, Y, time_limit=-1.0), ValueError, "time_limit must be at least 0, not -1.0"),
    (lambda: cnn.price(X, Y, enough=np.nan), ValueError, "enough must be at least 0, not nan"),
    (lambda: cnn.enumerated_price(X, Y, X), TypeError, "gates must be what all_gates"),  # type: ignore[arg-type]
    (lambda: cnn.global_certificate(NETWORK, X, Y, 0.1, gap="big"), TypeError, "gap must be a real number"),  # type: ignore[arg-type]
    (lambda: cnn.global_certificate(NETWORK, X, Y, 0.1, time_limit=None), TypeError, "time_limit must be"),  # type: ignore[arg-type]
    (lambda: cnn.train_to_global_optimum(X, Y, 0.1, seed=2.5), TypeError, "seed must be a whole number"),  # type: ignore[arg-type]
    (lambda: cnn.train_to_global_optimum(X, Y, 0.1, seed=None), TypeError, "seed must be a whole number"),  # type: ignore[arg-type]
    (lambda: cnn.rank_approximation(X, Y, 0.1, 1, seed=-1), ValueError, "seed must be at least 0"),
    (lambda: samplers.convolutional(4, 2), ValueError, r"shape must be \(height, width\)"),  # type: ignore[arg-type]
    (lambda: gated(np.ma.masked_array(X, X > 0), GATES.patterns, MODEL), ValueError, "X has masked entries"),
    (lambda: cnn.sweep(X, Y, seeds=3), TypeError, r"seeds must be a sequence such as \[3\]"),  # type: ignore[arg-type]
    (lambda: cnn.sweep(X, Y, formulation="relu"), TypeError, "formulation must be a function such as"),  # type: ignore[arg-type]
    (lambda: losses.squared(5, Y), TypeError, "prediction must be a CVXPY expression or an array"),
    (lambda: gated(X, GATES.patterns, MODEL), TypeError, "U must be a CVXPY expression or an array"),
    (lambda: pattern_slack(X, GATES.patterns, "V"), TypeError, "V must be a CVXPY expression or an array"),
    (lambda: gated(X, GATES.patterns, np.ones((3, 5)), slope=None), ValueError, "slope must be a finite"),  # type: ignore[arg-type]
    (lambda: datasets.standardised("a", X, Y[:3], 0.2, 0), ValueError, "y must be an array with one entry"),
    # networks
    (lambda: NETWORK.predict(X[:, :2]), ValueError, "X must have 3 columns"),
    (lambda: NETWORK.objective(X, Y, -1.0), ValueError, "reg must be at least 0"),
    (lambda: NETWORK.objective(X, Y[:4], 0.1), ValueError, "y must have shape"),
    (lambda: cnn.Network(np.ones((2, 3)), np.ones((2, 1))), ValueError, "W1 must be.*transpose"),
    (lambda: cnn.Network(np.ones((3, 2)), np.ones((2, 0))), ValueError, "W2 must have at least one column"),
    (lambda: cnn.Network(np.ones((3, 2)), np.ones((2, 1)), b1=np.ones(3)), ValueError, "b1 must have shape"),
    (lambda: cnn.Network(np.ones((3, 2)), np.ones((2, 1)), gate_bias=np.ones(2)), ValueError, "needs gates"),
    (lambda: cnn.Network(np.full((3, 2), np.nan), np.ones((2, 1))), ValueError, "W1 must not contain NaN"),
]


@pytest.mark.parametrize(("call", "error", "message"), REFUSALS)
def test_refusals_name_the_argument(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as refusal:
        call()
    assert "\n" not in str(refusal.value)
    assert str(refusal.value).endswith(".")


class Frame:
    """What a data frame is to NumPy."""

    def __init__(self, values: Float) -> None:
        self.values = values

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Float:
        return np.array(self.values, dtype=dtype)


@pytest.mark.parametrize(
    "convert",
    [np.ndarray.tolist, Frame, np.asfortranarray, lambda a: a[::-1][::-1], np.ma.asarray],
    ids=["list", "frame", "column-major", "view", "unmasked"],
)
def test_other_containers_give_the_same_bits(convert: Callable[[Any], Any]) -> None:
    gates = cnn.sample_gates(convert(X), 5)
    assert np.array_equal(gates.patterns, GATES.patterns)
    problem = cnn.gated_relu(convert(X), gates).problem(convert(Y), 0.1)
    assert optimum(problem) == pytest.approx(optimum(cnn.gated_relu(X, GATES).problem(Y, 0.1)), rel=1e-9)


def test_pandas_frames_and_series_are_arrays() -> None:
    pandas = pytest.importorskip("pandas")
    frame, series = pandas.DataFrame(X), pandas.Series(Y)
    assert np.array_equal(cnn.sample_gates(frame, 5).patterns, GATES.patterns)
    cnn.relu(frame, GATES).problem(series, 0.1)
    with pytest.raises(TypeError, match="X must hold real numbers"):
        cnn.sample_gates(frame.assign(colour="red"), 5)


@pytest.mark.parametrize("dtype", ["int8", "uint16", "int64", "float16", "float32", "bool"])
def test_other_number_types_are_converted(dtype: str) -> None:
    integers = (np.arange(24).reshape(8, 3) % 5 - (0 if dtype in ("uint16", "bool") else 2)).astype(dtype)
    as_float = integers.astype(np.float64)
    assert np.array_equal(cnn.sample_gates(integers, 4).patterns, cnn.sample_gates(as_float, 4).patterns)
    model = cnn.relu(integers, cnn.sample_gates(integers, 4))
    model.problem(integers[:, 0], 0.1)
    assert model.X.dtype == np.float64


def test_inputs_are_neither_changed_nor_copied() -> None:
    data, target = X.copy(), Y.copy()
    data.flags.writeable = target.flags.writeable = False
    gates = cnn.sample_gates(data, 5)
    model = cnn.relu(data, gates)
    assert model.X is data
    optimum(model.problem(target, 0.05))
    cnn.recover(model).objective(data, target, 0.05)
    cnn.lambda_max(model, target)
    cnn.gates_from_vectors(data, gates.vectors)
    assert np.array_equal(data, X)
    assert np.array_equal(target, Y)
    assert _arrays.features(data) is data


def test_a_column_of_targets_counts_as_one_output() -> None:
    assert optimum(MODEL.problem(Y[:, None], 0.1)) == pytest.approx(optimum(MODEL.problem(Y, 0.1)), rel=1e-9)


@pytest.mark.parametrize("formulation", [cnn.relu, cnn.gated_relu])
def test_above_lambda_max_the_model_is_exactly_zero(formulation: Any) -> None:
    model = formulation(X, GATES)
    problem = model.problem(Y, 1.5 * cnn.lambda_max(model, Y))
    assert optimum(problem) == pytest.approx(float(Y @ Y) / 16.0, rel=1e-9)
    assert np.abs(cnn.recover(model).predict(X)).max() < 1e-7


@pytest.mark.parametrize(
    "samples", [X[:1], X[:1] * 0.0 + 1.0, np.ones((5, 1)), np.hstack([X, np.ones((8, 2))])]
)
def test_degenerate_but_meaningful_data_work(samples: Float) -> None:
    target = np.linspace(1.0, 2.0, samples.shape[0])
    gates = cnn.sample_gates(samples, 4)
    for formulation in (cnn.relu, cnn.gated_relu):
        model = formulation(samples, gates)
        value = optimum(model.problem(target, 0.01))
        assert cnn.recover(model).objective(samples, target, 0.01) == pytest.approx(value, rel=1e-7)
