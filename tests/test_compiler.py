"""The compiled form against CVXPY: objective values, multipliers, refreshes, cost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
import scipy.sparse as sp
from cvxpy.constraints.nonpos import NonNeg, NonPos
from cvxpy.constraints.zero import Zero
from numpy.typing import NDArray

from convexnn_solvers.backends import Backend, numpy_backend, torch_backend
from convexnn_solvers.composite import Composite
from convexnn_solvers.functions.constraint_cones import NONNEGATIVE
from convexnn_solvers.reading import affine
from convexnn_solvers.reading.atoms import gated
from convexnn_solvers.reading.compiler import compile_problem

RNG = np.random.default_rng(3)
N, D, P = 12, 3, 4
X = RNG.standard_normal((N, D))
PATTERNS = RNG.random((N, P)) < 0.5
Y = RNG.standard_normal(N)
LABELS = np.sign(Y)
ONE_HOT = np.eye(P)[RNG.integers(0, P, 6)]
Q = RNG.standard_normal((2, D))
PSD = Q.T @ Q  # singular on purpose
WEIGHTS = RNG.random(N)
BACKENDS = [pytest.param(numpy_backend, id="numpy"), pytest.param(torch_backend, id="torch")]
huber: Any = cp.huber  # annotated for integer thresholds only
Builder = Callable[[Any, Any, Any], Any]


def prediction(U: Any, b: Any) -> Any:
    return gated(X, PATTERNS, U) + b


# U is (3, 4), v is (3,), b is a scalar
OBJECTIVES: dict[str, Builder] = {
    "gated squares": lambda U, v, b: cp.sum_squares(prediction(U, b) - Y) / (2 * N) + group(U),
    "quad_over_lin": lambda U, v, b: cp.quad_over_lin(X @ v - Y, 3.0),
    "sum of squares of entries": lambda U, v, b: cp.sum(cp.square(X @ v - Y)),
    "weighted squares": lambda U, v, b: WEIGHTS @ cp.square(X @ v - Y),
    "squares along an axis": lambda U, v, b: np.arange(4.0) @ cp.sum_squares(X @ U, axis=0),
    "squares keeping dimensions": lambda U, v, b: cp.sum(cp.sum_squares(U, axis=1, keepdims=True)),
    "power of a scalar": lambda U, v, b: 3.0 * (b - 1.0) ** 2,
    "squared norm": lambda U, v, b: cp.norm(X @ v - Y) ** 2,
    "squared Frobenius norm": lambda U, v, b: cp.square(cp.norm(X @ U, "fro")),
    "squared column norms": lambda U, v, b: np.arange(4.0) @ cp.norm(U, 2, axis=0) ** 2,
    "quadratic form": lambda U, v, b: cp.quad_form(v - 1.0, PSD),
    "huber": lambda U, v, b: cp.sum(huber(prediction(U, b) - Y, 0.7)) / N,
    "weighted huber": lambda U, v, b: cp.sum(cp.multiply(WEIGHTS, cp.huber(X @ v - Y))),
    "logistic": lambda U, v, b: cp.sum(cp.logistic(cp.multiply(-LABELS, prediction(U, b)))) / N,
    "logistic minus labels": lambda U, v, b: cp.sum(cp.logistic(X @ v) - cp.multiply(WEIGHTS, X @ v)),
    "cross-entropy": lambda U, v, b: cross_entropy(X[:6] @ U + b),
    "log_sum_exp": lambda U, v, b: 2.0 * cp.log_sum_exp(X @ v - Y),
    "log_sum_exp of columns": lambda U, v, b: np.arange(4.0) @ cp.log_sum_exp(U, axis=0),
    "squared hinge": lambda U, v, b: cp.sum_squares(cp.pos(1.0 - cp.multiply(LABELS, X @ v))) / N,
    "squared hinge of entries": lambda U, v, b: WEIGHTS @ cp.square(cp.maximum(0.0, X @ v)),
    "linear": lambda U, v, b: cp.sum(gated(X, PATTERNS, U)) - 2.0 * b + 5.0,
    "linear and loss": lambda U, v, b: cp.sum_squares(v) + WEIGHTS[:3] @ v + 1.0,
    "shared argument": lambda U, v, b: shared(prediction(U, b)),
    "group norms": lambda U, v, b: group(U) + 0.3 * cp.norm(v),
    "group norms of rows": lambda U, v, b: np.arange(3.0) @ cp.norm(U, 2, axis=1),
    "norms keeping dimensions": lambda U, v, b: cp.sum(cp.pnorm(U, 2, axis=0, keepdims=True)),
    "norm of everything": lambda U, v, b: cp.norm(U, "fro"),
    "norms of a reshape": lambda U, v, b: cp.sum(cp.norm(cp.reshape(U, (2, 6), order="F"), 2, axis=0)),
    "norms of a transpose": lambda U, v, b: np.arange(4.0) @ cp.norm(U.T, 2, axis=1),
    "mixed norm": lambda U, v, b: cp.mixed_norm(U.T, 2, 1),
    "absolute value of norms": lambda U, v, b: np.arange(4.0) @ cp.abs(cp.norm(U, 2, axis=0)),
    "l1 norm": lambda U, v, b: 0.1 * cp.norm1(v) + 0.2 * cp.sum(cp.abs(U)),
    "weighted absolute values": lambda U, v, b: cp.sum(cp.multiply(np.arange(3.0), cp.abs(v))),
    "l1 norms of columns": lambda U, v, b: np.arange(4.0) @ cp.norm1(U, axis=0),
    "absolute value of a scalar": lambda U, v, b: cp.abs(b),
    "constant": lambda U, v, b: cp.Constant(4.0) + 0.0 * b,
}


def group(U: Any) -> Any:
    return 0.2 * cp.sum(cp.norm(U, 2, axis=0))


def cross_entropy(scores: Any) -> Any:
    return cp.sum(cp.log_sum_exp(scores, axis=1)) - cp.sum(cp.multiply(ONE_HOT, scores))


def shared(q: Any) -> Any:
    return cp.sum_squares(q) + cp.sum(cp.huber(q)) + 0.5 * cp.sum(q)


@pytest.fixture(autouse=True)
def _needs_torch(request: pytest.FixtureRequest) -> None:
    if "torch" in request.node.name:
        pytest.importorskip("torch")
        pytest.importorskip("array_api_compat")


def variables() -> tuple[Any, Any, Any]:
    U, v, b = cp.Variable((D, P), name="U"), cp.Variable(D, name="v"), cp.Variable(name="b")
    rng = np.random.default_rng(11)
    for leaf in (U, v, b):
        leaf.value = rng.standard_normal(leaf.shape)
    return U, v, b


def compiled(problem: cp.Problem, backend: Backend | None = None) -> Composite:
    return compile_problem(problem, backend or numpy_backend()).composite()


def point(problem: cp.Problem, backend: Backend) -> tuple[Any, ...]:
    return tuple(backend.asarray(leaf.value) for leaf in problem.variables())


def smooth_gradient(composite: Composite, x: tuple[Any, ...]) -> list[Any]:
    outputs = composite.affine.forward(x)
    rest = (None,) * len(composite.constraints)
    pulled = composite.affine.adjoint((*composite.loss_gradients(outputs), *rest))
    return [g + c for g, c in zip(pulled, composite.linear, strict=True)]


@pytest.mark.parametrize("make_backend", BACKENDS)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_value_is_the_objective(name: str, make_backend: Callable[[], Backend]) -> None:
    backend = make_backend()
    objective = OBJECTIVES[name](*variables())
    for problem in (cp.Problem(cp.Minimize(objective)), cp.Problem(cp.Maximize(-2.0 * objective))):
        composite = compiled(problem, backend)
        expected: Any = problem.objective.value
        value = composite.sign * composite.value(point(problem, backend))
        assert value == pytest.approx(float(expected), rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_gradient_matches_differences(name: str) -> None:
    problem = cp.Problem(cp.Minimize(OBJECTIVES[name](*variables())))
    composite = compiled(problem)
    x = point(problem, numpy_backend())
    direction = tuple(np.random.default_rng(1).standard_normal(part.shape) for part in x)
    slope = sum(float(np.sum(g * p)) for g, p in zip(smooth_gradient(composite, x), direction, strict=True))
    step = 1e-6

    def value(t: float) -> float:
        moved = tuple(part + t * p for part, p in zip(x, direction, strict=True))
        return float(composite.smooth_value(moved, composite.affine.forward(moved)))

    assert slope == pytest.approx((value(step) - value(-step)) / (2 * step), rel=1e-6, abs=1e-6)


CONSTRAINTS: dict[str, Callable[[Any, Any], list[Any]]] = {
    "upper": lambda v, b: [v <= 0.1],
    "lower": lambda v, b: [v >= 0.2],
    "two sides": lambda v, b: [X[:2] @ v <= b - 1.0, v[0] >= b],
    "equality": lambda v, b: [X[0] @ v == 1.0, b == 0.5],
    "variable on the right": lambda v, b: [np.ones(3) <= v, b - 1.0 == b * 0.5],
    "broadcast": lambda v, b: [b <= v],
    "NonNeg": lambda v, b: [NonNeg(v - 0.3)],
    "Zero": lambda v, b: [Zero(v[:2] - 0.3)],
    "matrix": lambda v, b: [cp.reshape(v, (1, 3), order="F") + b >= np.ones((1, 3))],
}


@pytest.mark.parametrize("sense", [cp.Minimize, cp.Maximize])
@pytest.mark.parametrize("name", CONSTRAINTS)
def test_multipliers_are_the_dual_values(name: str, sense: Any) -> None:
    """At the optimum of another solver, grad F - sum G^T mu = 0 with its dual values as mu."""
    v, b = cp.Variable(3), cp.Variable()
    sign = 1.0 if sense is cp.Minimize else -1.0
    problem = cp.Problem(
        sense(sign * (cp.sum_squares(X @ v + b - Y) + cp.sum_squares(b) - v[1])), CONSTRAINTS[name](v, b)
    )
    problem.solve(solver=cp.CLARABEL)
    composite = compiled(problem)
    x = point(problem, numpy_backend())
    outputs = composite.affine.forward(x)[len(composite.losses) :]
    mu = [np.asarray(c.dual_value) for c in problem.constraints]
    assert max(float(np.abs(m).max()) for m in mu) > 1e-3  # an active constraint, or the test is void
    constraints: list[Any] = problem.constraints
    for term, output, constraint in zip(composite.constraints, outputs, constraints, strict=True):
        assert term.id == constraint.id
        assert term.shape == output.shape == constraint.shape == np.shape(constraint.dual_value)
        assert float(np.min(output) if term.cone == NONNEGATIVE else -np.abs(output).max()) >= -1e-6
    pulled = composite.affine.adjoint((*(None for _ in composite.losses), *mu))
    for gradient, force in zip(smooth_gradient(composite, x), pulled, strict=True):
        np.testing.assert_allclose(gradient, force, atol=1e-5)


def test_nonpos_is_turned_round() -> None:
    v = cp.Variable(3)
    v.value = np.arange(3.0)
    with pytest.warns(match="NonPos"):
        nonpos = NonPos(v - 1.0)
    composite = compiled(cp.Problem(cp.Minimize(cp.sum(v)), [nonpos]))
    np.testing.assert_array_equal(composite.affine.forward((v.value,))[0], 1.0 - np.arange(3.0))
    assert composite.constraints[0].cone == NONNEGATIVE


@pytest.mark.parametrize("make_backend", BACKENDS)
def test_parameters_are_refreshed_and_nothing_is_compiled_again(
    make_backend: Callable[[], Backend], monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = make_backend()
    U, v, b = variables()
    reg, slope, target = cp.Parameter(nonneg=True), cp.Parameter(nonneg=True), cp.Parameter(N)
    weights, cap, limit = cp.Parameter(N, nonneg=True), cp.Parameter(3), cp.Parameter(pos=True)
    objective = (
        cp.sum(cp.multiply(weights, huber(X @ v - target, limit))) / N
        + reg * slope * cp.sum(cp.norm(U, 2, axis=0))
        + cp.sum_squares(prediction(U, b) - target) / (1.0 + slope)
        + reg * cp.norm1(v)
        + slope
    )
    problem = cp.Problem(cp.Minimize(objective), [v <= cap + slope])
    program = compile_problem(problem, backend)

    def forbidden(*_: Any) -> None:
        raise AssertionError("compiled again")

    monkeypatch.setattr(affine, "rule_for", forbidden)
    composites = []
    for seed in (1, 2):
        rng = np.random.default_rng(seed)
        for parameter in problem.parameters():
            parameter.value = rng.random(parameter.shape)
        composites.append(program.composite())
        x = point(problem, backend)
        expected: Any = problem.objective.value
        assert composites[-1].value(x) == pytest.approx(float(expected), rel=1e-12)
        output = composites[-1].affine.forward(x)[2]
        np.testing.assert_allclose(backend.to_numpy(output), -problem.constraints[0].expr.value, atol=1e-12)
    x = point(problem, backend)
    assert composites[0].value(x) != pytest.approx(composites[1].value(x))


def test_uniform_weights_become_one_number() -> None:
    U, v, _ = variables()
    composite = compiled(cp.Problem(cp.Minimize(cp.sum(cp.huber(X @ v)) / N + group(U))))
    assert np.shape(composite.losses[0].weight) == ()
    assert composite.losses[0].weight == pytest.approx(1 / N)
    assert np.shape(composite.penalties[0].weight) == ()
    weighted = compiled(cp.Problem(cp.Minimize(np.arange(4.0) @ cp.norm(U, 2, axis=0))))
    np.testing.assert_array_equal(weighted.penalties[0].weight, np.arange(4.0))


def test_views_are_inverse_to_each_other() -> None:
    U, _, _ = variables()
    for view in (U, U.T, cp.reshape(U, (2, 6), order="F"), cp.reshape(U.T, (6, 2), order="C")):
        term = compiled(cp.Problem(cp.Minimize(cp.sum(cp.norm(view, 2, axis=0))))).penalties[0]
        np.testing.assert_array_equal(term.view(U.value), view.value)
        np.testing.assert_array_equal(term.unview(term.view(U.value)), U.value)


def test_scope_is_that_of_the_gates() -> None:
    U, _, b = variables()
    tagged = gated(X, PATTERNS, U, scope="for all 4 patterns")
    plain = gated(X, PATTERNS, U)
    loss = cp.sum_squares
    assert compiled(cp.Problem(cp.Minimize(loss(tagged - Y) + loss(tagged)))).scope == "for all 4 patterns"
    both = compiled(cp.Problem(cp.Minimize(loss(tagged - Y)), [plain >= b])).scope
    assert set(both.split("; ")) == {"for all 4 patterns", "for the 4 given gates"}
    assert compiled(cp.Problem(cp.Minimize(loss(U)))).scope == ""


def test_constant_problems() -> None:
    composite = compiled(cp.Problem(cp.Maximize(3.0)))
    assert composite.variables == ()
    assert composite.sign * composite.value(()) == 3.0
    bound = compiled(cp.Problem(cp.Minimize(cp.Constant(1.0)), [cp.Constant(2.0) <= cp.Constant(np.ones(2))]))
    np.testing.assert_array_equal(bound.affine.forward(())[0], [-1.0, -1.0])


def test_inputs_are_not_changed() -> None:
    before = X.copy(), PATTERNS.copy(), Y.copy()
    problem = cp.Problem(cp.Minimize(OBJECTIVES["gated squares"](*variables())))
    composite = compiled(problem)
    x = point(problem, numpy_backend())
    smooth_gradient(composite, x)
    for old, new in zip(before, (X, PATTERNS, Y), strict=True):
        np.testing.assert_array_equal(old, new)


COST = """
import json, resource, sys, time
import numpy as np
import cvxpy as cp
from convexnn_solvers.reading.atoms import gated, pattern_slack
from convexnn_solvers.backends import select_backend
from convexnn_solvers.reading.compiler import compile_problem

n, d, P = 20_000, 200, 500
rng = np.random.default_rng(0)
X, D, y = rng.standard_normal((n, d)), rng.random((n, P)) < 0.5, rng.standard_normal(n)
backend = select_backend(backend=sys.argv[1])
reg = cp.Parameter(nonneg=True, value=0.1)


def measure(count):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    variables = [cp.Variable((d, P)) for _ in range(count)]
    weights = variables[0] if count == 1 else variables[0] - variables[1]
    penalty = sum(cp.sum(cp.norm(U, 2, axis=0)) for U in variables)
    cones = [pattern_slack(X, D, U) >= 0 for U in variables] if count == 2 else []
    loss = cp.sum_squares(gated(X, D, weights) - y) / (2 * n)
    program = compile_problem(cp.Problem(cp.Minimize(loss + reg * penalty), cones), backend)
    program.composite()
    compiled = time.process_time()
    program.composite()
    refreshed = time.process_time()
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return compiled - start, refreshed - compiled, (after - before) / 1024


print(json.dumps([measure(2), measure(1)]))
"""


@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_compiling_costs_nothing(backend: str) -> None:
    """Convex ReLU and gated programs of n=20 000, d=200, P=500: 6e9 and 1e9 non-zeros if stuffed."""
    command = [sys.executable, "-c", COST, backend]
    child = subprocess.run(command, capture_output=True, text=True, env=os.environ | paths(), check=True)
    for seconds, again, megabytes in json.loads(child.stdout):
        assert seconds < 1.0
        assert again < 0.1
        assert megabytes < 300


def paths() -> dict[str, str]:
    return {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


def test_head_factors_are_psd_roots() -> None:
    rng = np.random.default_rng(0)
    v = cp.Variable(D)
    point_: NDArray[np.float64] = rng.standard_normal(D)
    v.value = point_
    matrices: list[Any] = [PSD, np.zeros((D, D)), np.eye(D), sp.eye_array(D, format="csc")]
    for matrix in matrices:
        composite = compiled(cp.Problem(cp.Minimize(cp.quad_form(v, cp.psd_wrap(matrix)))))
        expected = float(point_ @ (matrix @ point_))
        assert composite.value((point_,)) == pytest.approx(expected, abs=1e-12)
