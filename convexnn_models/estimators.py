"""Convex networks as scikit-learn estimators; needs scikit-learn (``pip install 'convexnn[sklearn]'``)."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import cvxpy as cp
import numpy as np
from numpy.typing import NDArray

from convexnn_models import _arrays, losses
from convexnn_models._arrays import Float64Array
from convexnn_models.gated_relu import gated_relu
from convexnn_models.gates import sample_gates
from convexnn_models.network import Network
from convexnn_models.recovery import recover_two_layer
from convexnn_models.relu import relu
from convexnn_models.weighted_losses import weighted
from convexnn_solvers import Auto, Certificate, certificate
from convexnn_solvers.comparison.isolated_solve import TIME_LIMIT_OPTIONS
from convexnn_solvers.interface import CompositeSolver
from convexnn_solvers.named_options import checked_options

try:
    from scipy.special import expit, softmax
    from sklearn.base import BaseEstimator, ClassifierMixin, MultiOutputMixin, RegressorMixin
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.utils import check_random_state
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import check_is_fitted, validate_data
except ImportError as error:
    raise ImportError(
        "convexnn_models.estimators needs scikit-learn 1.6 or newer; pip install 'convexnn[sklearn]'"
    ) from error

_FORMULATIONS: dict[str, Callable[..., Any]] = {"relu": relu, "gated_relu": gated_relu}
_REGRESSION_LOSSES = ("squared", "huber")
# Seconds that are over at once: SCS takes 0 for no limit.
_NO_TIME = 1e-9


class _ConvexNN(BaseEstimator):  # type: ignore[misc]
    """What both estimators share: sampled gates, one convex program, its certificate and its network."""

    network_: Network
    certificate_: Certificate
    n_features_in_: int

    @checked_options
    def __init__(
        self,
        *,
        n_gates: int = 100,
        reg: float = 0.01,
        activation: str = "relu",
        bias: bool = True,
        solver: Any = None,
        tol: float = 1e-3,
        time_limit: float | None = None,
        solver_options: Mapping[str, Any] | None = None,
        random_state: Any = 0,
    ) -> None:
        self.n_gates = n_gates
        self.reg = reg
        self.activation = activation
        self.bias = bias
        self.solver = solver
        self.tol = tol
        self.time_limit = time_limit
        self.solver_options = solver_options
        self.random_state = random_state

    def _train(
        self,
        X: Float64Array,
        targets: NDArray[Any],
        outputs: int,
        loss: str | losses.LossFunction,
        weights: Float64Array,
    ) -> None:
        """Solve, certify and recover; warns when the certificate does not reach ``tol``."""
        if np.ptp(weights) > 0.0:
            loss = weighted(loss, weights)
        if self.activation not in _FORMULATIONS:
            raise ValueError(f"activation must be 'relu' or 'gated_relu', not {self.activation!r}.")
        tol = _arrays.not_negative(self.tol, "tol")
        bias = self.bias
        gates = sample_gates(X, _arrays.count(self.n_gates, "n_gates"), _seed(self.random_state), bias=bias)
        model = _FORMULATIONS[self.activation](
            X, gates, outputs=outputs, grouping="per-output", bias=bias, output_bias=bias
        )
        problem = model.problem(targets, self.reg, loss)
        with warnings.catch_warnings():  # the certificate says how accurate it is, in one warning
            warnings.filterwarnings("ignore", message="Solution may be inaccurate")
            problem.solve(solver=self._solver(float(model.reg.value), tol), **self._options())
        # The dual point and the network's report have the size of the training data: not in every pickle.
        self.certificate_ = replace(certificate(problem), dual_point=None)
        self.network_ = replace(recover_two_layer(model), info=None)
        gap = self.certificate_.proved_gap
        if not self.certificate_.within(tol):
            warnings.warn(
                f"The relative certified gap is {'unknown' if gap is None else f'{gap:.1e}'}, above "
                f"tol={tol:g} (solver status: {problem.status}); scale the features, or raise reg, tol or "
                f"the solver's limits. {self.certificate_}",
                ConvergenceWarning,
                stacklevel=3,
            )

    def _solver(self, reg: float, tol: float) -> Any:
        """Auto, which stops at a proved gap; without regularisation there is rarely one."""
        if self.solver is not None:
            return self.solver
        return Auto(tol=tol) if reg > 0.0 else cp.CLARABEL

    def _options(self) -> dict[str, Any]:
        """What ``problem.solve`` gets besides the solver."""
        options = {} if self.solver_options is None else self.solver_options
        if not (isinstance(options, Mapping) and all(isinstance(name, str) for name in options)):
            raise TypeError(
                "solver_options must be a dictionary of what problem.solve takes by name, not "
                f"{options if isinstance(options, Mapping) else type(options).__name__}."
            )
        if "solver" in options:
            raise ValueError("solver_options must not hold solver; give it to the estimator as solver=...")
        if self.time_limit is None:
            return dict(options)
        limit = max(_arrays.not_negative(self.time_limit, "time_limit"), _NO_TIME)
        return {self._time_limit_option(): limit, **options}

    def _time_limit_option(self) -> str:
        """What the solver calls a limit of seconds; ValueError for names whose word is not known here."""
        solver = self.solver
        ours = {cls.__name__.upper() for cls in CompositeSolver.__subclasses__()}
        if not isinstance(solver, str) or solver.upper() in ours:
            return "time_limit"
        if solver.upper() not in TIME_LIMIT_OPTIONS:
            raise ValueError(
                f"time_limit has another name in {solver}: leave it None and give {solver}'s own option in "
                "solver_options."
            )
        return TIME_LIMIT_OPTIONS[solver.upper()]

    def _scores(self, X: Any) -> Float64Array:
        check_is_fitted(self)
        return self.network_.predict(validate_data(self, X, reset=False, dtype=np.float64))


class ConvexNNRegressor(MultiOutputMixin, RegressorMixin, _ConvexNN):  # type: ignore[misc]
    """Two-layer network for regression, trained by convex optimisation to a certified gap.

    Minimises ``loss + reg * penalty`` over the networks whose neurons have the sampled activation patterns;
    neurons feed one output each, so the convex objective is the network's own with weight decay. Features
    are taken as they are: put a ``StandardScaler`` in front.

    Parameters
    ----------
    n_gates : int
        How many activation patterns to sample; fewer when the data has fewer.
    reg : float
        The regularisation, in the scaling ``1/(2n) ||prediction - y||^2 + reg * penalty``.
    activation : str
        "relu", or "gated_relu": an unconstrained and faster program, whose gates stay as sampled.
    bias : bool
        Hidden biases, regularised like weights, and a free output bias.
    loss : str or function
        "squared", "huber" (threshold 1), or any ``(prediction, y) -> convex CVXPY expression``, such as
        ``functools.partial(convexnn_models.losses.huber, threshold=0.1)``.
    solver : CVXPY solver or None
        Anything that ``problem.solve(solver=...)`` takes; None for ``Auto(tol=tol)``, and for ``cp.CLARABEL``
        where ``reg`` is 0: there is rarely a bound there at whose gap Auto could stop.
    tol : float
        The relative certified gap, ``(primal - dual) / primal``, above which ``fit`` warns.
    time_limit : float or None
        Seconds after which ``fit`` ends with the best network so far, for our solvers, Clarabel and SCS;
        others call it differently: give theirs in ``solver_options``.
    solver_options : dict or None
        Further arguments of ``problem.solve``, such as ``{"max_iter": 50}``.
    random_state : int, RandomState or None
        An int is the ``seed`` of ``sample_gates``.

    Attributes
    ----------
    network_ : Network
        The trained network: ``.weights``, ``.to_torch()``, ``.to_onnx(path)``, ``.save(path)``.
    certificate_ : Certificate
        What is proved about its training objective, whatever the solver claimed.
    n_features_in_ : int
        The number of features seen by ``fit``.
    """

    @checked_options
    def __init__(
        self,
        *,
        n_gates: int = 100,
        reg: float = 0.01,
        activation: str = "relu",
        bias: bool = True,
        loss: str | losses.LossFunction = "squared",
        solver: Any = None,
        tol: float = 1e-3,
        time_limit: float | None = None,
        solver_options: Mapping[str, Any] | None = None,
        random_state: Any = 0,
    ) -> None:
        super().__init__(
            n_gates=n_gates,
            reg=reg,
            activation=activation,
            bias=bias,
            solver=solver,
            tol=tol,
            time_limit=time_limit,
            solver_options=solver_options,
            random_state=random_state,
        )
        self.loss = loss

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> ConvexNNRegressor:
        """Train on samples X (n, d) and targets y, (n,) or (n, c), in a mean weighted by sample_weight (n,).

        Raises ValueError or TypeError for bad data or parameters; warns with scikit-learn's
        ``ConvergenceWarning`` when the certificate does not reach ``tol``.
        """
        if not callable(self.loss) and self.loss not in _REGRESSION_LOSSES:
            raise ValueError(f"loss must be 'squared', 'huber' or a function, not {self.loss!r}.")
        X, y = validate_data(self, X, y, dtype=np.float64, multi_output=True, y_numeric=True)
        X, y, weights = _weighted_samples(X, y, sample_weight)
        self._train(X, y, 1 if y.ndim == 1 else y.shape[1], self.loss, weights)
        self._is_column = y.shape[1:] == (1,)
        return self

    def predict(self, X: Any) -> Float64Array:
        """The predictions for samples X (n, d), in the shape of the targets: (n,) or (n, c)."""
        scores = self._scores(X)
        return scores[:, None] if self._is_column else scores


class ConvexNNClassifier(ClassifierMixin, _ConvexNN):  # type: ignore[misc]
    """Two-layer network for classification, trained by convex optimisation to a certified gap.

    Two classes are told apart by one output and the logistic loss, more by one output per class and the
    softmax loss (cross-entropy), each a mean over the samples. Features are taken as they are: put a
    ``StandardScaler`` in front.

    Parameters
    ----------
    n_gates, reg, activation, bias, solver, tol, time_limit, solver_options, random_state
        As for :class:`ConvexNNRegressor`.

    Attributes
    ----------
    classes_ : array (c,)
        The labels, sorted.
    network_, certificate_, n_features_in_
        As for :class:`ConvexNNRegressor`.
    """

    classes_: NDArray[Any]

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> ConvexNNClassifier:
        """Train on samples X (n, d) and labels y (n,) of two classes or more, weighted by sample_weight (n,).

        Raises ValueError or TypeError for bad data or parameters; warns with scikit-learn's
        ``ConvergenceWarning`` when the certificate does not reach ``tol``.
        """
        X, y = validate_data(self, X, y, dtype=np.float64)
        check_classification_targets(y)
        X, y, weights = _weighted_samples(X, y, sample_weight)
        self.classes_, numbered = np.unique(y, return_inverse=True)
        count = self.classes_.size
        if count < 2:
            raise ValueError(f"y must hold at least two classes, not 1 class ({self.classes_[0]!r}) only.")
        if count == 2:
            self._train(X, 2.0 * numbered - 1.0, 1, "logistic", weights)
        else:
            self._train(X, numbered, count, "softmax", weights)
        return self

    def decision_function(self, X: Any) -> Float64Array:
        """The network's scores: (n,), positive for the second of two classes; else (n, c)."""
        return self._scores(X)

    def predict_proba(self, X: Any) -> Float64Array:
        """The probabilities (n, c) of the classes, in the order of ``classes_``."""
        scores = self._scores(X)
        if scores.ndim == 1:
            return np.column_stack([expit(-scores), expit(scores)])
        return np.asarray(softmax(scores, axis=1))

    def predict(self, X: Any) -> NDArray[Any]:
        """The likeliest class of every sample."""
        scores = self._scores(X)
        winner = (scores > 0.0).astype(np.intp) if scores.ndim == 1 else scores.argmax(axis=1)
        return np.asarray(self.classes_[winner])


def _weighted_samples(
    X: Float64Array, y: NDArray[Any], sample_weight: Any
) -> tuple[Float64Array, NDArray[Any], Float64Array]:
    """Samples, targets and weights without those of weight zero, which must not count even as patterns."""
    samples = (X.shape[0],)
    weights = np.ones(samples) if sample_weight is None else _arrays.numbers(sample_weight, "sample_weight")
    if weights.shape != samples:
        raise ValueError(f"sample_weight must hold one weight per sample, {samples}, not {weights.shape}.")
    if np.any(weights < 0.0) or not np.any(weights):
        raise ValueError("sample_weight must hold weights >= 0, and one that is not zero.")
    kept = weights > 0.0
    if kept.all():  # without a copy: X may be a memory map larger than memory
        return X, y, weights
    return X[kept], y[kept], weights[kept]


def _seed(random_state: Any) -> int:
    """An int itself, so that ``sample_gates`` draws the same gates elsewhere; else one drawn from it."""
    if isinstance(random_state, (int, np.integer)) and random_state >= 0:
        return int(random_state)
    return int(check_random_state(random_state).randint(np.iinfo(np.int32).max))
