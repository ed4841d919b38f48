"""The atoms against the same formulas in plain CVXPY: values, canonical matrices, optima, copies."""

from __future__ import annotations

import copy
import pickle
from typing import Any, NamedTuple

import cvxpy as cp
import numpy as np
import pytest
from numpy.typing import NDArray

from convexnn_solvers.reading.atoms import gated, pattern_slack


class Shape(NamedTuple):
    n: int
    d: int
    gates: int
    outputs: int
    slope: float


SHAPES = [
    Shape(6, 3, 4, 1, 0.0),
    Shape(6, 3, 4, 2, 0.0),
    Shape(6, 2, 3, 1, -0.5),
    Shape(5, 2, 3, 3, 0.2),
    Shape(1, 1, 1, 1, 0.0),
    Shape(1, 2, 1, 2, 0.0),
    Shape(4, 1, 2, 1, 0.0),
]
BACKENDS = ["CPP", "SCIPY", "COO"]


class Instance(NamedTuple):
    X: NDArray[np.float64]
    patterns: NDArray[np.bool_]
    y: NDArray[np.float64]


def make(shape: Shape) -> Instance:
    rng = np.random.default_rng(7)
    X = rng.standard_normal((shape.n, shape.d))
    X[-1, 0] = 1.0 if shape.n == 1 else 0.0  # a stored zero must not disturb the sparse matrix
    patterns = rng.random((shape.n, shape.gates)) < 0.5
    y = rng.standard_normal((shape.n, shape.outputs))
    return Instance(X, patterns, y[:, 0] if shape.outputs == 1 else y)


def plain_gated(data: Instance, U: Any, shape: Shape) -> Any:
    S = data.patterns + shape.slope * ~data.patterns
    d = shape.d
    columns = [cp.sum(cp.multiply(S, data.X @ U[k * d : (k + 1) * d]), axis=1) for k in range(shape.outputs)]
    return columns[0] if shape.outputs == 1 else cp.vstack(columns).T


def plain_slack(data: Instance, V: Any, shape: Shape) -> Any:
    signs = 2.0 * data.patterns - 1.0
    d = shape.d
    return cp.vstack([cp.multiply(signs, data.X @ V[k * d : (k + 1) * d]) for k in range(shape.outputs)])


def relu_problem(data: Instance, shape: Shape, use_atoms: bool) -> cp.Problem:
    """A convex ReLU program with an output bias, written with our atoms or in plain CVXPY."""
    V, W = (cp.Variable((shape.d * shape.outputs, shape.gates)) for _ in range(2))
    bias = cp.Variable() if shape.outputs == 1 else cp.Variable((1, shape.outputs))
    if use_atoms:
        prediction = gated(data.X, data.patterns, V - W, shape.slope)
        slacks = [pattern_slack(data.X, data.patterns, Z) for Z in (V, W)]
    else:
        prediction = plain_gated(data, V - W, shape)
        slacks = [plain_slack(data, Z, shape) for Z in (V, W)]
    penalty = cp.sum(cp.norm(V, 2, axis=0)) + cp.sum(cp.norm(W, 2, axis=0))
    loss = cp.sum_squares(prediction + bias - data.y) / (2 * shape.n)
    return cp.Problem(cp.Minimize(loss + 0.02 * penalty), [slack >= 0 for slack in slacks])


def dense(value: Any) -> NDArray[np.float64]:
    return np.asarray(value.toarray() if hasattr(value, "toarray") else value, dtype=np.float64)


@pytest.mark.parametrize("shape", SHAPES)
def test_values_match_the_formula(shape: Shape) -> None:
    data = make(shape)
    U = cp.Variable((shape.d * shape.outputs, shape.gates))
    U.value = np.random.default_rng(1).standard_normal(U.shape)
    atoms: list[Any] = [gated(data.X, data.patterns, U, shape.slope), pattern_slack(data.X, data.patterns, U)]
    for atom, plain in zip(atoms, [plain_gated(data, U, shape), plain_slack(data, U, shape)], strict=True):
        assert atom.shape == plain.shape
        assert atom.outputs == shape.outputs
        np.testing.assert_allclose(atom.value, plain.value, atol=1e-13)


@pytest.mark.parametrize("solver", [cp.CLARABEL, cp.SCS])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_canonical_matrices_match_the_plain_writing(shape: Shape, backend: str, solver: str) -> None:
    data = make(shape)
    # The plain side always uses SCIPY: CPP itself is wrong on sum(axis=1) of some of these shapes.
    ours = relu_problem(data, shape, True).get_problem_data(solver, canon_backend=backend)[0]
    theirs = relu_problem(data, shape, False).get_problem_data(solver, canon_backend="SCIPY")[0]
    for key in "Abc":
        np.testing.assert_allclose(dense(ours[key]), dense(theirs[key]), atol=1e-14, err_msg=key)


@pytest.mark.parametrize(("solver", "atol"), [(cp.CLARABEL, 1e-6), (cp.SCS, 1e-3)])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", SHAPES[:4])
def test_optimum_matches_the_plain_writing(shape: Shape, backend: str, solver: str, atol: float) -> None:
    data = make(shape)
    ours, plain = relu_problem(data, shape, True), relu_problem(data, shape, False)
    ours.solve(solver=solver, canon_backend=backend)
    plain.solve(solver=cp.CLARABEL, canon_backend="SCIPY")
    assert ours.status == cp.OPTIMAL
    assert ours.value == pytest.approx(plain.value, rel=atol, abs=atol)
    constraints: list[Any] = ours.constraints
    assert [np.shape(c.dual_value) for c in constraints] == [c.shape for c in constraints]


@pytest.mark.parametrize("backend", BACKENDS)
def test_parameters_inside_the_argument_stay_dpp(backend: str) -> None:
    shape = SHAPES[1]
    data = make(shape)
    U = cp.Variable((shape.d * shape.outputs, shape.gates))
    scale = cp.Parameter(nonneg=True)
    problem = cp.Problem(
        cp.Minimize(
            cp.sum_squares(gated(data.X, data.patterns, scale * U) - data.y) + cp.sum(cp.norm(U, 2, axis=0))
        )
    )
    assert problem.is_dpp()
    for value in (1.0, 3.0):
        scale.value = value
        problem.solve(solver=cp.CLARABEL, canon_backend=backend)
        fixed = cp.Variable(U.shape)
        reference = cp.Problem(
            cp.Minimize(
                cp.sum_squares(value * plain_gated(data, fixed, shape) - data.y)
                + cp.sum(cp.norm(fixed, 2, axis=0))
            )
        )
        reference.solve(solver=cp.CLARABEL, canon_backend="SCIPY")
        assert problem.value == pytest.approx(reference.value, rel=1e-6)


def test_curvature_sign_and_monotonicity() -> None:
    data = make(SHAPES[0])
    positive = np.abs(data.X)
    U = cp.Variable((3, 4), nonneg=True)
    free = cp.Variable((3, 4))
    assert gated(data.X, data.patterns, free).is_affine()
    assert pattern_slack(data.X, data.patterns, free).is_affine()
    assert gated(positive, data.patterns, U).is_nonneg()
    assert gated(positive, data.patterns, -U).is_nonpos()
    assert not gated(data.X, data.patterns, U).is_nonneg()
    assert not gated(positive, data.patterns, U, slope=-1.0).is_nonneg()
    assert gated(positive, data.patterns, cp.square(free)).is_convex()
    assert not gated(data.X, data.patterns, cp.square(free)).is_convex()
    assert not pattern_slack(data.X, data.patterns, cp.square(free)).is_convex()


def test_copies_and_pickles_keep_the_map() -> None:
    shape = SHAPES[3]
    data = make(shape)
    U = cp.Variable((shape.d * shape.outputs, shape.gates))
    U.value = np.random.default_rng(2).standard_normal(U.shape)
    for atom in (
        gated(data.X, data.patterns, U, shape.slope, scope="for 3 gates"),
        pattern_slack(data.X, data.patterns, U),
    ):
        for twin in (
            copy.copy(atom),
            copy.deepcopy(atom),
            pickle.loads(pickle.dumps(atom)),
            atom.tree_copy(),
        ):
            assert type(twin) is type(atom)
            np.testing.assert_array_equal(twin.value, atom.value)
            assert getattr(twin, "scope", "") == getattr(atom, "scope", "")
        assert copy.copy(atom).X is atom.X
        assert len(atom.name()) < 100


def test_gradient_is_the_transposed_map() -> None:
    shape = SHAPES[1]
    data = make(shape)
    U = cp.Variable((shape.d * shape.outputs, shape.gates))
    weights = np.random.default_rng(3).standard_normal(U.shape)
    U.value = weights
    atom: Any = gated(data.X, data.patterns, U)
    jacobian = dense(atom.grad[U]).T
    np.testing.assert_allclose(jacobian @ weights.ravel(order="F"), atom.value.ravel(order="F"), atol=1e-13)


def test_inputs_are_neither_copied_nor_changed() -> None:
    shape = SHAPES[0]
    data = make(shape)
    X, patterns = data.X.copy(), data.patterns.copy()
    problem = relu_problem(data, shape, True)
    problem.solve(solver=cp.CLARABEL)
    np.testing.assert_array_equal(data.X, X)
    np.testing.assert_array_equal(data.patterns, patterns)
    assert gated(data.X, data.patterns, cp.Variable((3, 4))).X is data.X


X_OK = np.ones((4, 2))
D_OK = np.ones((4, 3), dtype=np.bool_)


@pytest.mark.parametrize(
    ("X", "patterns", "shape", "error", "text"),
    [
        (np.ones(4), D_OK, (2, 3), ValueError, r"X must have shape \(n, d\)"),
        (np.ones((4, 0)), D_OK, (2, 3), ValueError, "X must have shape"),
        (np.array([["a", "b"]]), D_OK, (2, 3), TypeError, "real numbers"),
        (1j * X_OK, D_OK, (2, 3), TypeError, "real numbers"),
        (cp.Constant(X_OK), D_OK, (2, 3), TypeError, "dense NumPy array"),
        (np.full((4, 2), np.nan), D_OK, (2, 3), ValueError, "NaN"),
        (X_OK, D_OK.astype(float), (2, 3), TypeError, "boolean"),
        (X_OK, D_OK[:3], (2, 3), ValueError, "n = 4"),
        (X_OK, D_OK[:, 0], (2, 3), ValueError, "patterns must have shape"),
        (X_OK, D_OK[:, :0], (2, 3), ValueError, "P >= 1"),
        (X_OK, D_OK, (3, 3), ValueError, "d = 2 and P = 3"),
        (X_OK, D_OK, (2, 4), ValueError, "d = 2 and P = 3"),
        (X_OK, D_OK, (6,), ValueError, "d = 2 and P = 3"),
    ],
)
def test_bad_arguments_are_named(
    X: Any, patterns: Any, shape: tuple[int, ...], error: type[Exception], text: str
) -> None:
    for atom in (gated, pattern_slack):
        with pytest.raises(error, match=text):
            atom(X, patterns, cp.Variable(shape))


def test_other_bad_arguments() -> None:
    with pytest.raises(ValueError, match="slope"):
        gated(X_OK, D_OK, cp.Variable((2, 3)), slope=np.inf)
    with pytest.raises(ValueError, match="complex"):
        gated(X_OK, D_OK, cp.Variable((2, 3), complex=True))
