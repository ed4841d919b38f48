"""Which problems semismooth Newton recognises, however they are written, and how it refuses others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cvxpy as cp
import numpy as np
import pytest

from convexnn_solvers import SemismoothNewton, UnsupportedProblem, certificate, gated, pattern_slack

RNG = np.random.default_rng(0)
X = RNG.standard_normal((20, 3))
D = X @ RNG.standard_normal((3, 5)) >= 0.0
D[3] = False  # a sample that no gate sees
OTHER = ~D
y = RNG.standard_normal(20)
labels = np.sign(y)
V, W, b = cp.Variable((3, 5), name="V"), cp.Variable((3, 5), name="W"), cp.Variable(name="b")
B = cp.Variable(2, name="B")
V2, W2 = cp.Variable((3, 5), name="V2"), cp.Variable((3, 5), name="W2")


def group_norms(*variables: Any) -> Any:
    return 0.05 * sum(cp.sum(cp.norm(variable, 2, axis=0)) for variable in variables)


def squares(prediction: Any) -> Any:
    return cp.sum_squares(prediction - y) / 40.0


def residual() -> Any:
    return gated(X, D, V) - y


def pinball(residual: Any, low: float, high: float) -> Any:
    return cp.sum(cp.maximum(low * residual, high * residual))


def cones(*variables: Any) -> list[Any]:
    return [pattern_slack(X, D, variable) >= 0 for variable in variables]


def logistic(prediction: Any) -> Any:
    return cp.sum(cp.logistic(cp.multiply(-labels, prediction))) / 20.0


F, F1 = cp.Variable((1, 5), name="F"), cp.Variable((1, 1), name="F1")
U, U1 = cp.Variable((6, 5), name="U"), cp.Variable((6, 1), name="U1")
T = RNG.standard_normal((20, 2))
TAKEN: dict[str, Callable[[], tuple[Any, list[Any]]]] = {
    "difference inside": lambda: (squares(gated(X, D, V - W)) + group_norms(V, W), cones(V, W)),
    "difference outside": lambda: (squares(gated(X, D, V) - gated(X, D, W)) + group_norms(V, W), cones(V, W)),
    "multiples": lambda: (squares(2.0 * gated(X, D, V - 3.0 * W)) + group_norms(V, W), cones(V, W)),
    "minus": lambda: (squares(-gated(X, D, V)) + group_norms(V), []),
    "labels first": lambda: (cp.sum_squares(y - gated(X, D, V) - b) / 40.0 + group_norms(V), []),
    "one sign": lambda: (squares(gated(X, D, V)) + group_norms(V), cones(V)),
    "logistic and bias": lambda: (logistic(gated(X, D, V) + 0.5 * b) + group_norms(V), []),
    "logistic of one class": lambda: (cp.sum(cp.logistic(-gated(X, D, V))) / 20.0 + group_norms(V), []),
    "reshaped": lambda: (squares(cp.reshape(gated(X, D, V), (20,), order="F")) + group_norms(V), []),
    "l1 of norms": lambda: (squares(gated(X, D, V)) + 0.05 * cp.norm1(cp.norm(V, 2, axis=0)), []),
    "other weights": lambda: (
        squares(gated(X, D, V)) + 0.05 * cp.sum(cp.multiply(np.arange(1.0, 6.0), cp.norm(V, 2, axis=0))),
        [],
    ),
    "gate by gate": lambda: (
        squares(gated(X, D, V)) + cp.sum([0.05 * (j + 1) * cp.norm(V[:, j]) for j in range(5)]),
        [],
    ),
    "output by output": lambda: (
        cp.sum_squares(gated(X, D, U) - T) / 40.0 + 0.1 * group_norms(U[:3]) + group_norms(U[3:]),
        [],
    ),
    "two maps": lambda: (
        logistic(gated(X, D, V) + 2.0 * gated(X[::-1], OTHER, W, slope=0.5) + b) + group_norms(V, W),
        [],
    ),
    "two maps of both signs": lambda: (
        squares(
            gated(X, D, V) - 2.0 * gated(X, OTHER, W) - gated(X, D, V2) + gated(X, OTHER, W2),
        )
        + group_norms(V, W, V2, W2),
        [],
    ),
    "absolute values of weighted samples": lambda: (
        np.arange(1.0, 21.0) @ cp.abs(y - gated(X, D, V + 2.0 * W)) / 200.0 + group_norms(V, W),
        cones(V, W),
    ),
    "hinge and bias": lambda: (
        cp.sum(cp.pos(1.0 - cp.multiply(labels, gated(X, D, V) + 0.5 * b))) / 20.0 + group_norms(V),
        cones(V),
    ),
    "quantile": lambda: (pinball(residual(), 0.3, -0.7) / 20.0 + group_norms(V), cones(V)),
    "largest residual": lambda: (0.2 * cp.norm_inf(residual()) + group_norms(V), cones(V)),
    "largest residual and bias": lambda: (0.2 * cp.norm_inf(residual() + b) + group_norms(V), []),
    "norm": lambda: (0.2 * cp.norm(residual(), 2) + group_norms(V), cones(V)),
    "absolute values output by output": lambda: (
        cp.sum(cp.abs(gated(X, D, U) - T)) / 20.0 + 0.1 * group_norms(U[:3]) + group_norms(U[3:]),
        [],
    ),
    "one feature of one gate": lambda: (squares(gated(X[:, :1], D[:, :1], F1)) + group_norms(F1), []),
    "one gate with its cone": lambda: (
        squares(gated(X[:, :1], D[:, :1], F1)) + group_norms(F1),
        [pattern_slack(X[:, :1], D[:, :1], F1) >= 0],
    ),
    "absolute values of one feature": lambda: (
        squares(gated(X[:, :1], D, F)) + 0.05 * cp.sum(cp.multiply(np.arange(1.0, 6.0)[None], cp.abs(F))),
        [],
    ),
    "maximised": lambda: (-squares(gated(X, D, V)) - group_norms(V), []),
    "with a constant": lambda: (7.0 + squares(gated(X, D, V, slope=-0.5)) + group_norms(V), []),
}


@pytest.mark.parametrize("name", TAKEN)
def test_gated_programs_are_recognised_however_they_are_written(name: str) -> None:
    objective, constraints = TAKEN[name]()
    sense = cp.Maximize if name == "maximised" else cp.Minimize
    problem = cp.Problem(sense(objective), constraints)
    value = problem.solve(solver=SemismoothNewton(tol=1e-8))
    assert problem.status == cp.OPTIMAL
    assert certificate(problem).relative_gap == pytest.approx(0.0, abs=1e-8)
    assert value == pytest.approx(problem.solve(solver=cp.CLARABEL), rel=1e-5)


REFUSED: dict[str, tuple[Callable[[], tuple[Any, list[Any]]], str]] = {
    "no penalty": (lambda: (squares(gated(X, D, V)), []), "no penalty"),
    "reg = 0": (
        lambda: (squares(gated(X, D, V)) + cp.Parameter(nonneg=True, value=0.0) * group_norms(V), []),
        "weight zero",
    ),
    "another loss": (
        lambda: (cp.sum_squares(cp.pos(1.0 - gated(X, D, V))) + group_norms(V), []),
        "not a loss that they know",
    ),
    "norms of samples": (
        lambda: (cp.sum(cp.norm(gated(X, D, U) - T, 2, axis=1)) + group_norms(U), []),
        "not a loss that they know.*AugmentedLagrangian",
    ),
    "slopes of one sign": (
        lambda: (pinball(residual(), 0.3, 0.7) + group_norms(V), []),
        "not a loss that they know.*AugmentedLagrangian",
    ),
    "weights of entries": (
        lambda: (
            cp.sum(cp.multiply(np.arange(1.0, 41.0).reshape(20, 2), cp.square(gated(X, D, U) - T)))
            + group_norms(U),
            [],
        ),
        "entries of a sample in .* have weights of their own",
    ),
    "weight zero": (
        lambda: (np.zeros(20) @ cp.square(gated(X, D, V) - y) + group_norms(V), []),
        "weight zero",
    ),
    "weighted samples": (
        lambda: (cp.sum_squares(cp.multiply(np.arange(1.0, 21.0), gated(X, D, V) - y)) + group_norms(V), []),
        "depends on V in another way",
    ),
    "no loss": (lambda: (group_norms(V), [V >= 1.0]), "0 losses"),
    "two losses": (
        lambda: (squares(gated(X, D, V)) + logistic(gated(X, D, V)) + group_norms(V), []),
        "2 losses",
    ),
    "l1 norm": (lambda: (squares(gated(X, D, V)) + cp.sum(cp.abs(V)), []), "not a group norm per gate"),
    "one norm": (lambda: (squares(gated(X, D, V)) + cp.norm(V, "fro"), []), "not a group norm per gate"),
    "rows": (
        lambda: (squares(gated(X, D, V)) + cp.sum(cp.norm(V, 2, axis=1)), []),
        "not a group norm per gate",
    ),
    "two maps with cones": (
        lambda: (
            squares(gated(X, D, V) + gated(X, OTHER, W)) + group_norms(V, W),
            [pattern_slack(X, OTHER, W) >= 0],
        ),
        "several gated predictions",
    ),
    "two maps with signs": (
        lambda: (squares(gated(X, D, V) - gated(X, OTHER, W)) + group_norms(V, W), []),
        "do not have weight variables of the same signs",
    ),
    "one variable in two maps": (
        lambda: (squares(gated(X, D, V) + gated(X, OTHER, V)) + group_norms(V), []),
        "depends on V in another way",
    ),
    "no gates": (lambda: (cp.sum_squares(X @ V[:, 0] - y) + group_norms(V), []), "has no gated"),
    "linear term": (lambda: (squares(gated(X, D, V)) + group_norms(V) + cp.sum(V), []), "linear term in V"),
    "free weights": (lambda: (squares(gated(X, D, V) + X @ W[:, 0]) + group_norms(V), []), "depends on W"),
    "two biases": (lambda: (squares(gated(X, D, V) + b + B[0]) + group_norms(V), []), "depends on B"),
    "constraint": (lambda: (squares(gated(X, D, V)) + group_norms(V), [V >= -1.0]), "no pattern cone"),
    "half of the cones": (
        lambda: (squares(gated(X, D, V - W)) + group_norms(V, W), cones(V)),
        "some weights lie in pattern cones",
    ),
    "other cones": (
        lambda: (squares(gated(X, D, V)) + group_norms(V), [pattern_slack(X, OTHER, V) >= 0]),
        "patterns of its own",
    ),
    "bounds": (
        lambda: (squares(gated(X, D, cp.Variable((3, 5), name="N", nonneg=True))) + group_norms(V), []),
        "bounds",
    ),
    "two norms": (
        lambda: (squares(gated(X, D, V)) + group_norms(V) + cp.norm(V, "fro"), []),
        "not a group norm per gate",
    ),
    "a gate without": (lambda: (squares(gated(X, D, V)) + group_norms(V[:, 1:]), []), "not a group norm"),
    "an output without": (
        lambda: (cp.sum_squares(gated(X, D[:, :1], U1) - T) + cp.norm(U1[:3]), []),
        "not a group norm per gate",
    ),
    "mixed grouping": (
        lambda: (
            cp.sum_squares(gated(X, D, U) - T)
            + cp.sum(cp.norm(cp.reshape(U, (2, 15), order="F"), 2, axis=0)),
            [],
        ),
        "not a group norm per gate",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_problems_are_refused_by_name_with_a_remedy(name: str) -> None:
    make, reason = REFUSED[name]
    objective, constraints = make()
    problem = cp.Problem(cp.Minimize(objective), constraints)
    with pytest.raises(UnsupportedProblem, match=reason) as error:
        problem.solve(solver=SemismoothNewton())
    assert "use " in str(error.value)


def test_other_arithmetic_is_refused() -> None:
    problem = cp.Problem(cp.Minimize(squares(gated(X, D, V)) + group_norms(V)))
    with pytest.raises(ValueError, match="float64 with NumPy"):
        problem.solve(solver=SemismoothNewton(dtype="float32"))


@pytest.mark.parametrize("loss", [cp.norm2, cp.norm_inf], ids=["norm", "largest"])
def test_norms_of_all_residuals_do_not_fall_apart_into_outputs(loss: Callable[[Any], Any]) -> None:
    rng = np.random.default_rng(5)
    data, targets, W = rng.standard_normal((8, 2)), rng.standard_normal((8, 2)), cp.Variable((4, 3))
    patterns = data @ rng.standard_normal((2, 3)) >= 0.0
    residual = cp.vec(gated(data, patterns, W) - targets, order="C")
    apart = sum(cp.sum(cp.norm(W[rows], 2, axis=0)) for rows in (slice(2), slice(2, 4)))
    problem = cp.Problem(cp.Minimize(loss(residual) + 0.05 * apart))
    with pytest.raises(UnsupportedProblem, match=r"no sum over outputs.*use AugmentedLagrangian"):
        problem.solve(solver=SemismoothNewton())
    together = cp.Problem(cp.Minimize(loss(residual) + 0.05 * cp.sum(cp.norm(W, 2, axis=0))))
    value = together.solve(solver=SemismoothNewton(tol=1e-7))
    assert value == pytest.approx(together.solve(solver=cp.CLARABEL), rel=1e-5)
