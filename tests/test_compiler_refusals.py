"""What the compiler refuses: by the name of the part, with the remedy, before anything is solved."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
import scipy.sparse as sp
from numpy.typing import NDArray
from test_affine import compiled, variables

from convexnn_solvers.backends import numpy_backend
from convexnn_solvers.reading.compiler import UnsupportedProblem, compile_problem

D, P = 3, 4
huber: Any = cp.huber  # annotated for integer thresholds only


def problem_of(objective: Any, *constraints: Any) -> cp.Problem:
    return cp.Problem(cp.Minimize(objective), list(constraints))


REFUSED: dict[str, tuple[Callable[[Any, Any, Any], cp.Problem], str]] = {
    "entropy": (lambda U, v, b: problem_of(-cp.sum(cp.entr(v))), "entr is neither a loss.*cp.CLARABEL"),
    "other norm": (lambda U, v, b: problem_of(cp.pnorm(v, 3)), "p = 1, 2, inf"),
    "largest eigenvalue": (lambda U, v, b: problem_of(cp.lambda_max(U[:, :3])), "lambda_max is neither"),
    "loss of a convex argument": (lambda U, v, b: problem_of(cp.sum_squares(cp.exp(v))), "quad_over_lin"),
    "largest entries": (lambda U, v, b: problem_of(cp.sum_largest(v, 2)), "write k . t.*t = cp.Variable"),
    "squares beyond an interval that may be empty": (
        lambda U, v, b: problem_of(cp.sum_squares(cp.pos(cp.abs(v) + 0.1))),
        "quad_over_lin has an argument that is not affine: maximum.*write a variable t",
    ),
    "norm inside of a loss": (
        lambda U, v, b: problem_of(cp.sum(cp.logistic(v + cp.norm(v)))),
        "logistic has an argument that is not affine: .*Pnorm.*<= if it is concave",
    ),
    "other power": (lambda U, v, b: problem_of(cp.sum(cp.power(v, 4))), "[Pp]ower"),
    "exponential cone": (lambda U, v, b: problem_of(b, cp.ExpCone(b, b, b)), "ExpCone.*cp.CLARABEL"),
    "bound on a loss": (lambda U, v, b: problem_of(b, cp.sum(huber(v)) <= b), "bounds huber, whose epigraph"),
    "bound on a sum of norms": (
        lambda U, v, b: problem_of(b, cp.norm(v) + cp.norm(U[:, 0]) <= b),
        "has 2 convex atoms; bound each by a variable, and the sum of these",
    ),
    "bound on mixed entries": (
        lambda U, v, b: problem_of(b, np.ones((2, D)) @ cp.abs(v) <= b),
        "combines entries.*cp.CLARABEL",
    ),
    "bound with a Parameter as factor": (
        lambda U, v, b: problem_of(b, cp.Parameter(nonneg=True, value=1.0) * cp.norm(v) <= b),
        "Parameter as a coefficient",
    ),
    "integer": (
        lambda U, v, b: problem_of(cp.sum_squares(cp.Variable(2, integer=True, name="k"))),
        "k.*HIGHS",
    ),
    "diagonal": (
        lambda U, v, b: problem_of(cp.sum_squares(cp.Variable((2, 2), diag=True, name="S"))),
        "S has the attribute diag",
    ),
    "complex": (
        lambda U, v, b: problem_of(cp.sum_squares(cp.Variable(2, complex=True, name="c"))),
        "c has the attribute complex",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_name_the_part_and_the_remedy(name: str) -> None:
    build, text = REFUSED[name]
    U, v, b = cp.Variable((D, P)), cp.Variable(D), cp.Variable()
    with pytest.raises(UnsupportedProblem, match=f"(?s){text}") as caught:
        compile_problem(build(U, v, b), numpy_backend())
    assert isinstance(caught.value, cp.SolverError)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "build",
    [
        lambda v: cp.Problem(cp.Minimize(-cp.sum_squares(v))),
        lambda v: cp.Problem(cp.Maximize(cp.norm(v))),
        lambda v: cp.Problem(cp.Minimize(cp.sum(v)), [cp.norm(v) >= 1]),
        lambda v: cp.Problem(cp.Minimize(cp.sum(cp.sqrt(v)))),
    ],
)
def test_dcp_is_checked(build: Callable[[Any], cp.Problem]) -> None:
    with pytest.raises(cp.DCPError, match="DCP rules"):
        compile_problem(build(cp.Variable(3)), numpy_backend())


def test_missing_and_bad_values_are_one_sentence() -> None:
    v = cp.Variable(3)
    reg = cp.Parameter(nonneg=True, name="reg")
    program = compile_problem(cp.Problem(cp.Minimize(cp.sum_squares(v) + reg * cp.norm1(v))), numpy_backend())
    with pytest.raises(ValueError, match="reg has no value"):
        program.composite()
    reg.value = 1.0
    program.composite()
    for bad in (np.array([1.0, np.nan, 0.0]), sp.csc_array([[np.inf, 0.0, 0.0]])):
        broken = cp.Problem(cp.Minimize(cp.sum_squares(bad @ v)))
        with pytest.raises(ValueError, match="NaN or infinite"):
            compile_problem(broken, numpy_backend()).composite()
    divisor = cp.Parameter(pos=True)
    divisor.value = 2.0
    ratio = compile_problem(cp.Problem(cp.Minimize(cp.quad_over_lin(v, divisor))), numpy_backend())
    assert float(ratio.composite().losses[0].weight) == 0.5


def test_negative_weights_are_refused() -> None:
    """CVXPY lets a Parameter's sign be trusted; a value set behind its back is caught here."""
    v = cp.Variable(3)
    reg = cp.Parameter(nonneg=True)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(v) + reg * cp.norm1(v)))
    program = compile_problem(problem, numpy_backend())
    setattr(reg, "_value", np.asarray(-1.0))  # noqa: B010 (a private attribute, on purpose)
    with pytest.raises(ValueError, match="negative weight"):
        program.composite()


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (lambda M: cp.abs(M) + 1, "abs"),
        (lambda M: cp.imag(M), "imag"),
        (lambda M: cp.concatenate([M, M], axis=None), "Concatenate"),
        (lambda M: cp.sum(cp.square(M)), "quad_over_lin|power|Power"),
    ],
)
def test_unknown_atoms_are_named(build: Callable[[Any], Any], text: str) -> None:
    leaves = variables()
    with pytest.raises(UnsupportedProblem, match=text):
        compiled(leaves, [build(leaves[0])], numpy_backend())


def test_foreign_variables_are_refused() -> None:
    with pytest.raises(UnsupportedProblem, match="does not belong"):
        compiled(variables(), [cp.Variable(3, name="stranger")], numpy_backend())


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_data_must_be_finite(bad: float) -> None:
    leaves = variables()
    data: NDArray[np.float64] = np.full((3, 4), bad)
    parameter = cp.Parameter((3, 4), name="weights")
    for expr in (leaves[0] + data, cp.multiply(data, leaves[0]), sp.csr_array(data.T) @ leaves[0]):
        with pytest.raises(ValueError, match="NaN or infinite"):
            compiled(leaves, [expr], numpy_backend())
    with pytest.raises(ValueError, match="weights has no value"):
        compiled(leaves, [cp.multiply(parameter, leaves[0])], numpy_backend())
    with pytest.raises(ValueError, match="divides by zero"):
        compiled(leaves, [leaves[0] / np.zeros((3, 4))], numpy_backend())
