"""The scikit-learn estimators: its own checks, agreement with the models they wrap, and honest warnings."""

from __future__ import annotations

import importlib
import pickle
import sys
import warnings
from dataclasses import replace
from functools import partial
from typing import Any

import cvxpy as cp
import numpy as np
import pytest

pytest.importorskip("sklearn", reason="pip install 'convexnn[sklearn]'")

from sklearn.base import clone
from sklearn.datasets import load_wine
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import convexnn_models as cnn
from convexnn_models import estimators, losses
from convexnn_models.estimators import ConvexNNClassifier, ConvexNNRegressor
from convexnn_solvers import Auto, Certificate, certificate

_RNG = np.random.default_rng(0)
_X = _RNG.standard_normal((40, 3))
_Y = np.column_stack([np.maximum(_X[:, 0], 0.0) - 0.5 * _X[:, 1], np.abs(_X[:, 2])])
_NAMES = np.array(["ash", "elm", "fir"])
_THREE = _NAMES[(_X[:, 0] > 0.4).astype(int) + (_X[:, 0] > -0.4)]
_TWO = _NAMES[(_X[:, 0] > 0.1).astype(int)]

# Small and loose, because the checks fit hundreds of times. Some leave targets unscaled, for which reg is
# next to nothing: Clarabel, as it stands, is the quickest there for ReLU networks of this size.
_CHECKED = [
    ConvexNNRegressor(n_gates=4, solver=cp.CLARABEL),
    ConvexNNRegressor(n_gates=4, activation="gated_relu"),
    ConvexNNClassifier(n_gates=2, reg=0.1, tol=5e-2),
    ConvexNNClassifier(n_gates=2, reg=0.1, tol=5e-2, activation="gated_relu"),
]


@pytest.fixture(autouse=True)
def _same_draws() -> None:
    """Without a random_state, and in its own checks, scikit-learn draws from NumPy's global generator."""
    np.random.seed(0)  # noqa: NPY002


def relative_gap(fitted: ConvexNNClassifier | ConvexNNRegressor) -> float:
    gap = fitted.certificate_.relative_gap
    assert gap is not None
    return gap


def _expected_failures(estimator: Any) -> dict[str, str]:
    return {
        "check_sample_weight_equivalence_on_dense_data": "solved to tol; see the test of repetitions below"
    }


def test_misspelt_parameters_are_refused_with_the_likely_name() -> None:
    with pytest.raises(TypeError, match="ConvexNNRegressor has no option 'gates'; did you mean 'n_gates'"):
        ConvexNNRegressor(gates=3)  # type: ignore[call-arg]


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning")
@parametrize_with_checks(_CHECKED, expected_failed_checks=_expected_failures)  # type: ignore[untyped-decorator]
def test_scikit_learns_own_checks(estimator: Any, check: Any) -> None:
    check(estimator)


@pytest.mark.parametrize("activation", ["relu", "gated_relu"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("loss", ["squared", partial(losses.huber, threshold=0.2)])
@pytest.mark.parametrize("y", [_Y[:, 0], _Y[:, :1], _Y], ids=["(n,)", "(n, 1)", "(n, 2)"])
def test_the_network_has_the_certified_objective(activation: str, bias: bool, loss: Any, y: Any) -> None:
    fitted = ConvexNNRegressor(n_gates=4, reg=0.1, activation=activation, bias=bias, loss=loss).fit(_X, y)
    assert 0.0 <= relative_gap(fitted) <= 1e-3
    objective = fitted.network_.objective(_X, y, 0.1, loss)
    assert objective == pytest.approx(fitted.certificate_.primal, rel=1e-6)
    assert fitted.predict(_X).shape == y.shape
    assert (fitted.network_.b1 is not None) == bias


@pytest.mark.parametrize("activation", ["relu", "gated_relu"])
@pytest.mark.parametrize("y", [_TWO, _THREE], ids=["two", "three"])
def test_probabilities_are_those_of_the_loss(activation: str, y: Any) -> None:
    fitted = ConvexNNClassifier(n_gates=4, reg=0.1, tol=1e-2, activation=activation).fit(_X, y)
    assert relative_gap(fitted) <= 1e-2
    chances = fitted.predict_proba(_X)
    assert np.allclose(chances.sum(axis=1), 1.0)
    assert np.array_equal(fitted.classes_, np.unique(y))
    assert np.array_equal(fitted.predict(_X), fitted.classes_[chances.argmax(axis=1)])
    assert fitted.score(_X, y) > 0.7
    likelihood = chances[np.arange(y.size), np.searchsorted(fitted.classes_, y)]
    objective = -np.mean(np.log(likelihood)) + 0.1 * fitted.network_.penalty
    assert objective == pytest.approx(fitted.certificate_.primal, rel=1e-6)


@pytest.mark.parametrize("activation", ["relu", "gated_relu"])
@pytest.mark.parametrize(
    ("kind", "y"),
    [
        (ConvexNNRegressor, _Y),
        (ConvexNNRegressor, _Y[:, :1]),
        (partial(ConvexNNRegressor, loss="huber"), _Y[:, 0]),
        (ConvexNNClassifier, _TWO),
        (ConvexNNClassifier, _THREE),
    ],
)
def test_weights_are_repetitions(kind: Any, y: Any, activation: str) -> None:
    """Weight zero leaves a sample out, with its patterns; the certificate is of the weighted mean."""
    weights = np.arange(40) % 3
    options = {"n_gates": 4, "reg": 0.05, "activation": activation, "solver": cp.CLARABEL}
    weighted = kind(**options).fit(_X, y, sample_weight=weights)
    repeated = kind(**options).fit(np.repeat(_X, weights, axis=0), np.repeat(y, weights, axis=0))
    assert weighted.certificate_.primal == pytest.approx(repeated.certificate_.primal, rel=1e-6)
    assert relative_gap(weighted) <= 1e-3
    first, second = (getattr(f, "predict_proba", f.predict)(_X) for f in (weighted, repeated))
    np.testing.assert_allclose(first, second, atol=1e-3)
    equal = kind(**options).fit(_X, y, sample_weight=np.full(40, 0.3))
    assert equal.certificate_.primal == pytest.approx(
        kind(**options).fit(_X, y).certificate_.primal, rel=1e-9
    )


@pytest.mark.parametrize("unit", [1e-320, 5e307])
def test_the_unit_of_the_weights_does_not_matter(unit: float) -> None:
    weights = 1.0 + np.arange(40) % 3
    objectives = [
        ConvexNNRegressor(n_gates=4, tol=1e-6).fit(_X, _Y, sample_weight=scaled).certificate_.primal
        for scaled in (weights, unit * weights)
    ]
    assert objectives[1] == pytest.approx(objectives[0], rel=2e-3)


@pytest.mark.parametrize(
    ("options", "weights", "message"),
    [
        ({}, np.full(40, -1.0), "weights >= 0"),
        ({}, np.zeros(40), "one that is not zero"),
        ({}, np.ones(39), "one weight per sample"),
        ({"loss": losses.huber}, np.arange(40), "by name"),
    ],
)
def test_bad_weights_are_refused(options: dict[str, Any], weights: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ConvexNNRegressor(**options).fit(_X, _Y, sample_weight=weights)


def test_samples_are_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    """They may be a memory map larger than memory."""
    seen: list[Any] = []

    def draw(X: Any, *others: Any, **options: Any) -> Any:
        seen.append(X)
        return cnn.sample_gates(X, *others, **options)

    monkeypatch.setattr("convexnn_models.estimators.sample_gates", draw)
    for weights in (None, np.full(40, 0.3)):
        ConvexNNRegressor(n_gates=2, activation="gated_relu").fit(_X, _Y, sample_weight=weights)
    assert all(np.shares_memory(X, _X) for X in seen)
    assert len(seen) == 2


def test_the_same_model_by_hand() -> None:
    fitted = ConvexNNRegressor(n_gates=8, random_state=3, tol=1e-6).fit(_X, _Y[:, 0])
    model = cnn.relu(_X, cnn.sample_gates(_X, 8, seed=3, bias=True), bias=True, output_bias=True)
    problem = model.problem(_Y[:, 0], 0.01)
    problem.solve(solver=cp.CLARABEL)
    assert fitted.certificate_.primal == pytest.approx(problem.value, rel=2e-6)


@pytest.mark.parametrize("seed", [0, None, np.random.RandomState(0), np.int64(7)])
def test_every_kind_of_random_state(seed: Any) -> None:
    fitted = ConvexNNRegressor(n_gates=4, random_state=seed).fit(_X, _Y)
    assert relative_gap(fitted) <= fitted.tol
    # Four gates of any seed can miss much of these targets: all that each is sure to do is beat the mean.
    assert fitted.score(_X, _Y) > 0.0


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_a_constant_target_needs_no_neuron(value: float) -> None:
    fitted = ConvexNNRegressor(n_gates=4).fit(_X, np.full(40, value))
    assert fitted.network_.width == 0
    assert np.allclose(fitted.predict(_X), value)


def test_pipelines_grids_clones_and_pickles() -> None:
    X, y = load_wine(return_X_y=True)
    pipeline = make_pipeline(
        StandardScaler(),
        ConvexNNClassifier(n_gates=8, activation="gated_relu", solver=Auto(tol=1e-2), tol=1e-2),
    )
    grid = GridSearchCV(pipeline, {"convexnnclassifier__reg": [0.05, 0.2]}, cv=2)
    assert grid.fit(X, y).best_score_ > 0.9
    again: Any = clone(grid.best_estimator_)
    again.fit(X, y)
    assert np.array_equal(again.predict_proba(X), grid.predict_proba(X))
    stored = pickle.dumps(grid.best_estimator_)
    assert np.array_equal(pickle.loads(stored).predict_proba(X), grid.predict_proba(X))


def test_pickles_hold_no_training_data() -> None:
    rng = np.random.default_rng(0)
    X = rng.standard_normal((1000, 10))
    fitted = ConvexNNRegressor(n_gates=3, reg=10.0).fit(X, X[:, 0])
    assert len(pickle.dumps(fitted)) < X[:, 0].nbytes


@pytest.mark.parametrize("solver", [Auto(max_iter=0), cp.SCS], ids=["stopped", "foreign"])
def test_a_missed_tolerance_is_said(solver: Any) -> None:
    estimator = ConvexNNRegressor(n_gates=6, solver=solver, tol=1e-9)
    with warnings.catch_warnings(record=True) as caught:  # CVXPY has warnings of its own
        warnings.simplefilter("always")
        estimator.fit(_X, _Y[:, 0])
    (said,) = [str(warning.message) for warning in caught if warning.category is ConvergenceWarning]
    assert "above tol=1e-09" in said
    assert relative_gap(estimator) > 1e-9


@pytest.mark.parametrize(
    "options", [{"time_limit": 0.0}, {"solver_options": {"max_iter": 0}}], ids=["time_limit", "max_iter"]
)
def test_limits_end_a_fit_with_the_best_network_so_far(options: dict[str, Any]) -> None:
    fitted: Any = clone(ConvexNNRegressor(n_gates=6, tol=1e-9, **options))
    with pytest.warns(ConvergenceWarning, match="solver status: user_limit"):
        fitted.fit(_X, _Y[:, 0])
    objective = fitted.network_.objective(_X, _Y[:, 0], 0.01)
    assert objective == pytest.approx(fitted.certificate_.primal, rel=1e-6)


@pytest.mark.parametrize("solver", [None, "SCS", "scs", "CLARABEL", "SemismoothNewton", Auto()])
def test_a_time_limit_reaches_every_solver_by_its_own_word(solver: Any) -> None:
    """A word that a solver does not know is an error of its own."""
    fitted = ConvexNNRegressor(n_gates=3, tol=0.5, time_limit=1e9, solver=solver).fit(_X, _Y[:, 0])
    assert fitted.certificate_.within(0.5)


@pytest.mark.parametrize("solver", [None, "SCS", "CLARABEL", "SemismoothNewton"])
def test_no_time_is_no_time_to_every_solver(solver: Any) -> None:
    """A limit of 0 is none to SCS."""
    fitted = ConvexNNRegressor(n_gates=6, tol=0.01, time_limit=0.0, solver=solver)
    with pytest.warns(ConvergenceWarning, match=r"above tol=0\.01"):
        fitted.fit(_X, _Y[:, 0])


def test_a_gap_that_violations_paid_for_is_warned_about(monkeypatch: pytest.MonkeyPatch) -> None:
    def owing(problem: Any) -> Certificate:
        found = certificate(problem)
        return replace(found, price=0.5 * abs(found.primal))

    monkeypatch.setattr(estimators, "certificate", owing)
    with pytest.warns(ConvergenceWarning, match="gap is 5.0e-01, above tol=0.3"):
        ConvexNNRegressor(n_gates=3, tol=0.3, solver=Auto(tol=1e-4)).fit(_X, _Y[:, 0])


@pytest.mark.parametrize("activation", ["relu", "gated_relu"])
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_without_regularisation_the_fit_ends(activation: str) -> None:
    """Where weights are free a bound is rarely better than zero, and first-order steps never reach a gap."""
    scores = [
        ConvexNNRegressor(n_gates=3, reg=reg, activation=activation).fit(_X, _Y[:, 0]).score(_X, _Y[:, 0])
        for reg in (0.01, 0.0)
    ]
    assert scores[0] < scores[1]


def test_an_objective_without_a_bound_is_said() -> None:
    def cubic(prediction: Any, y: Any) -> Any:
        return cp.sum(cp.power(cp.abs(prediction - y), 3)) / float(y.shape[0])

    estimator = ConvexNNRegressor(n_gates=3, loss=cubic, solver=cp.CLARABEL)
    with pytest.warns(ConvergenceWarning, match="certified gap is unknown"):
        estimator.fit(_X, _Y[:, 0])
    assert estimator.certificate_.relative_gap is None


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"n_gates": 0}, ValueError, "n_gates must be at least 1"),
        ({"n_gates": 1.5}, TypeError, "n_gates must be a whole number"),
        ({"reg": -1.0}, ValueError, "reg must be at least 0"),
        ({"activation": "tanh"}, ValueError, "activation must be 'relu' or 'gated_relu'"),
        ({"loss": "hinge"}, ValueError, "loss must be 'squared', 'huber' or a function"),
        ({"tol": "small"}, TypeError, "tol must be a real number"),
        ({"tol": -1.0}, ValueError, "tol must be at least 0"),
        ({"tol": -1.0, "reg": 0.0}, ValueError, "tol must be at least 0"),
        ({"time_limit": 1.0, "solver": "MOSEK"}, ValueError, "time_limit has another name in MOSEK"),
        ({"time_limit": "long"}, TypeError, "time_limit must be a real number"),
        ({"time_limit": -1.0}, ValueError, "time_limit must be at least 0"),
        ({"time_limit": -1.0, "reg": 0.0}, ValueError, "time_limit must be at least 0"),
        ({"solver_options": 3}, TypeError, "solver_options must be a dictionary"),
        ({"solver_options": {"max_iters": 3}}, TypeError, "did you mean 'max_iter'"),
        ({"solver_options": {"solver": "SCS"}}, ValueError, "solver_options must not hold solver"),
        ({"solver_options": {3: "SCS"}}, TypeError, "solver_options must be a dictionary"),
        ({"random_state": "x"}, ValueError, "cannot be used to seed"),
    ],
)
def test_bad_parameters_are_named(options: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        ConvexNNRegressor(**options).fit(_X, _Y)


def test_one_class_is_refused() -> None:
    with pytest.raises(ValueError, match="at least two classes"):
        ConvexNNClassifier().fit(_X, np.zeros(40))


def test_without_scikit_learn_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.base", None)
    monkeypatch.delitem(sys.modules, "convexnn_models.estimators")
    with pytest.raises(ImportError, match=r"pip install 'convexnn\[sklearn\]'"):
        importlib.import_module("convexnn_models.estimators")
