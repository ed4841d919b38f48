"""What a compiled problem keeps between solves is never out of date: against one compiled just now."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
from numpy.typing import NDArray

import convexnn_models as cnn
from convexnn_solvers import Auto, DualPoint
from convexnn_solvers.backends import numpy_backend
from convexnn_solvers.certify.certifier import Certifier
from convexnn_solvers.composite import Composite
from convexnn_solvers.gated_programs.structure import gated_structure
from convexnn_solvers.problem_state import compiled
from convexnn_solvers.reading.affine import UnsupportedProblem
from convexnn_solvers.reading.compiler import compile_problem

Float = NDArray[np.float64]
RNG = np.random.default_rng(11)
X: Float = RNG.standard_normal((20, 3))
Y: Float = np.sin(2.0 * X[:, 0]) + 0.1 * RNG.standard_normal(20)
WEIGHTS: Float = RNG.uniform(0.5, 2.0, size=20)
GATES = cnn.sample_gates(X, 6, seed=0)

#: A problem and its Parameters.
Made = tuple[Any, Sequence[Any]]


def _gated(bias: bool, reg: Any) -> Any:
    return cnn.gated_relu(X, GATES, output_bias=bias).problem(Y, reg)


def regularised(bias: bool) -> Made:
    reg = cp.Parameter(nonneg=True)
    return _gated(bias, reg), [reg]


def in_cones() -> Made:
    reg = cp.Parameter(nonneg=True)
    return cnn.relu(X, GATES).problem(Y, reg), [reg]


def nested() -> Made:
    reg, level = cp.Parameter(nonneg=True), cp.Parameter(nonneg=True)
    model = cnn.gated_relu(X, GATES)
    fit = cp.sum_squares(model.prediction - Y) / 40
    return cp.Problem(cp.Minimize(fit + reg * model.penalty + level * cp.norm1(model.variables[0]))), [
        reg,
        level,
    ]


def weighted_samples() -> Made:
    reg, weights = cp.Parameter(nonneg=True), cp.Parameter(20, nonneg=True)
    model = cnn.gated_relu(X, GATES, output_bias=True)
    fit = cp.sum(cp.multiply(weights, cp.square(model.prediction - Y))) / 40
    return cp.Problem(cp.Minimize(fit + reg * model.penalty)), [reg, weights]


def weighted_loss() -> Made:
    reg, price = cp.Parameter(nonneg=True), cp.Parameter(nonneg=True)
    model = cnn.gated_relu(X, GATES)
    fit = price * cp.sum_squares(model.prediction - Y)
    return cp.Problem(cp.Minimize(fit + reg * model.penalty)), [reg, price]


def bent() -> Made:
    reg, bend = cp.Parameter(nonneg=True), cp.Parameter(pos=True)
    threshold: Any = bend  # CVXPY annotates numbers only
    model = cnn.gated_relu(X, GATES)
    fit: Any = cp.sum(cp.huber(model.prediction - Y, threshold)) / 40
    return cp.Problem(cp.Minimize(fit + reg * model.penalty)), [reg, bend]


def targeted() -> Made:
    reg, targets = cp.Parameter(nonneg=True), cp.Parameter(20)
    model = cnn.gated_relu(X, GATES, output_bias=True)
    fit = cp.sum_squares(model.prediction - targets) / 40
    return cp.Problem(cp.Minimize(fit + reg * model.penalty)), [reg, targets]


def bounded() -> Made:
    reg, low = cp.Parameter(nonneg=True), cp.Parameter(3)
    x = cp.Variable(3, bounds=[low, None])
    free = cp.Variable()
    return cp.Problem(cp.Minimize(cp.sum_squares(X @ x + free - Y) + reg * cp.norm1(x))), [reg, low]


def linear() -> Made:
    reg, costs = cp.Parameter(nonneg=True), cp.Parameter(3)
    x = cp.Variable(3)
    objective = cp.sum_squares(X @ x - Y) + reg * cp.norm(x) + costs @ x
    return cp.Problem(cp.Minimize(objective)), [reg, costs]


def tilted() -> Made:
    reg, labels = cp.Parameter(nonneg=True), cp.Parameter(3)
    x = cp.Variable(2)
    scores = X[:3, :2] @ x
    return cp.Problem(cp.Minimize(cp.log_sum_exp(scores) - labels @ scores + reg * cp.norm(x))), [reg, labels]


PROBLEMS: dict[str, Callable[[], Made]] = {
    "gated": lambda: regularised(False),
    "gated, offset": lambda: regularised(True),
    "relu": in_cones,
    "nested penalties": nested,
    "weights of samples": weighted_samples,
    "weight of the loss": weighted_loss,
    "huber's threshold": bent,
    "targets": targeted,
    "bounds": bounded,
    "linear term": linear,
    "labels": tilted,
}


def values(parameters: Sequence[Any]) -> list[list[Any]]:
    """Values of all Parameters: one after the other changes, scales, vanishes, and comes back."""
    first = [
        0.1 if p.shape == () else (WEIGHTS if p.attributes["nonneg"] else Y)[: p.size] for p in parameters
    ]
    found = [first]
    for k, value in enumerate(first):
        least = 0.01 if parameters[k].attributes["pos"] else 0.0
        for factor in (0.5, 3.0, least, 1.0):
            changed: list[Any] = list(first)
            changed[k] = factor * value
            found.append(changed)
        if np.ndim(value):
            changed = list(first)
            changed[k] = np.where(np.arange(np.size(value)) == 1, 0.0, value)
            found += [changed, first]
    return found


def judged(composite: Composite, seed: int) -> list[Any]:
    """Everything that a certificate says of two points, with a dual candidate."""
    rng = np.random.default_rng(seed)
    judge, found = Certifier(composite), list[Any]()
    thetas = tuple(rng.standard_normal(np.shape(b)) for b in composite.offsets()[: len(composite.losses)])
    for scale in (0.0, 0.1):
        point = tuple(scale * rng.standard_normal(block.shape) for block in composite.variables)
        made = judge.certify(point, (DualPoint(thetas),))
        found += [made.primal, made.dual, made.relative_gap, made.max_violation, made.repaired, made.note]
        found += [() if made.dual_point is None else made.dual_point.thetas, judge.objective(point)]
        found.append(judge.obstacle)
    return found


def read(composite: Composite) -> list[Any]:
    """The composite as a gated program, or why it is none."""
    try:
        structure = gated_structure(composite)
    except UnsupportedProblem as error:
        return [str(error)]
    found: list[Any] = [structure.scale, structure.means, structure.factors, structure.scales]
    for program in structure.programs:
        xi = program.fit.at(np.ones(program.fit.shape)).xi
        found += [program.X, program.weights, program.fit.conjugate(xi), xi, program.null_norms()]
    return found


@pytest.mark.filterwarnings("ignore:divide by zero")
@pytest.mark.parametrize("name", PROBLEMS)
def test_what_is_kept_is_what_would_be_found_now(name: str) -> None:
    problem, parameters = PROBLEMS[name]()
    backend = numpy_backend()
    for seed, now in enumerate(values(parameters)):
        for parameter, value in zip(parameters, now, strict=True):
            parameter.value = value
        kept = compiled(problem, backend).composite()
        fresh = compile_problem(problem, backend).composite()
        same(judged(kept, seed), judged(fresh, seed))
        same(read(kept), read(fresh))


def same(one: Any, other: Any) -> None:
    """Projections on cones begin where others ended, which rounding tells: numbers agree to 1e-9."""
    if isinstance(one, list | tuple):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            same(a, b)
    elif one is None or isinstance(one, str | bool):
        assert one == other
    else:
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-12)


def test_problems_of_one_model_keep_their_own() -> None:
    """Two losses of one prediction, solved in turn: each as if the other were not there."""
    model = cnn.gated_relu(X, GATES)
    problems = [model.problem(Y, 0.05), model.problem(-3.0 * Y, 0.05, "huber"), model.problem(Y, 0.02)]
    alone = [_solved(cnn.gated_relu(X, GATES).problem(*given)) for given in ((Y, 0.05), (Y, 0.02))]
    for _ in range(2):
        first, other, last = (_solved(problem) for problem in problems)
        assert [first, last] == pytest.approx(alone, rel=2e-6)
        assert abs(other - first) > 1e-3


def _solved(problem: Any) -> float:
    problem.solve(solver=Auto(tol=1e-6))
    assert problem.status == cp.OPTIMAL
    return float(problem.value)


def test_threads_do_not_disturb_each_other() -> None:
    """Paths of problems with the same features and gates at the same time: each as if it were alone."""

    def values_on_a_path(factor: float) -> list[float]:
        path = cnn.regularization_path(cnn.gated_relu(X, GATES), factor * Y, n_regs=6, tol=1e-6)
        return [point.certificate.primal for point in path]

    factors = [1.0, -2.0, 3.0, 0.5]
    expected = [values_on_a_path(factor) for factor in factors]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(values_on_a_path, factors)) == [pytest.approx(e, rel=3e-6) for e in expected]
