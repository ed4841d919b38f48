"""Every cell of the table (loss, penalty, constraint, outputs): no point and no dual makes a bound wrong.

Truth is an interior-point solver at tight tolerances. Every run takes a share of the cells that differs from
number to number, of fixed seed; ``python tests/test_soundness_table.py`` runs all of them,
and ``python tests/test_soundness_table.py 0 300`` the first 300 of a fixed random order.
"""

from __future__ import annotations

import itertools
import sys
import traceback
from collections.abc import Callable
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
from interior_point import optimum
from numpy.typing import NDArray

from convexnn_solvers import certificate
from convexnn_solvers.backends import numpy_backend
from convexnn_solvers.certify.certificate import Certifier
from convexnn_solvers.certify.free_variables import into_domains
from convexnn_solvers.composite import Composite, DualPoint
from convexnn_solvers.reading.compiler import compile_problem

Float = NDArray[np.float64]
N, D = 10, 4
RNG = np.random.default_rng(3)
X: Float = RNG.standard_normal((N, D))
huber: Any = cp.huber
tv: Any = cp.tv

# Losses of a prediction F (N, c) with targets Y.
LOSSES: dict[str, Callable[[Any, Float], Any]] = {
    "squared": lambda F, Y: cp.sum_squares(F - Y) / (2 * N),
    "huber": lambda F, Y: cp.sum(huber(F - Y, 0.4)) / (2 * N),
    "absolute": lambda F, Y: cp.sum(cp.abs(F - Y)) / N,
    "quantile": lambda F, Y: cp.sum(cp.maximum(0.8 * (F - Y), -0.2 * (F - Y))) / N,
    "hinge": lambda F, Y: cp.sum(cp.pos(1 - cp.multiply(np.sign(Y), F))) / N,
    "squared hinge": lambda F, Y: cp.sum(cp.square(cp.pos(1 - cp.multiply(np.sign(Y), F)))) / N,
    "logistic": lambda F, Y: cp.sum(cp.logistic(cp.multiply(-np.sign(Y), F))) / N,
    "poisson": lambda F, Y: (cp.sum(cp.exp(F)) - cp.sum(cp.multiply(np.floor(np.abs(Y)), F))) / N,
    "norm": lambda F, Y: cp.norm(F - Y, "fro") / N,
    "norms of samples": lambda F, Y: cp.sum(cp.norm(F - Y, 2, axis=1)) / N,
    "largest": lambda F, Y: cp.norm_inf(F - Y) / 3,
    "worst": lambda F, Y: cp.max(F - Y) / 3 + cp.sum_squares(F - Y) / (4 * N),
    "log-sum-exp": lambda F, Y: cp.sum(cp.log_sum_exp(cp.hstack([F, -F]), axis=1)) / N,
}
# Penalties of weights W (D, c); all but the last bound every entry.
PENALTIES: dict[str, Callable[[Any], Any]] = {
    "groups": lambda W: 0.1 * cp.sum(cp.norm(W, 2, axis=1)),
    "l1": lambda W: 0.1 * cp.norm1(W),
    "sparse groups": lambda W: 0.05 * cp.norm1(W) + 0.08 * cp.sum(cp.norm(W, 2, axis=1)),
    "partly nested": lambda W: 0.05 * cp.norm1(W) + 0.08 * cp.norm(W[:2], "fro"),
    "elastic net": lambda W: 0.08 * cp.norm1(W) + 0.05 * cp.sum_squares(W),
    "nuclear": lambda W: 0.1 * cp.normNuc(W),
    "infinity": lambda W: 0.1 * cp.norm_inf(W),
    "two kinds": lambda W: 0.1 * cp.norm(W[:2], "fro") + 0.1 * cp.norm1(W[2:]),
    "total variation": lambda W: 0.1 * cp.sum(cp.abs(W[1:] - W[:-1])) + 0.03 * cp.sum_squares(W),
    "none of the last": lambda W: 0.1 * cp.norm(W[:-1], "fro"),
}
CONSTRAINTS: dict[str, Callable[[Any, Any], list[Any]]] = {
    "nothing": lambda W, F: [],
    "inequalities": lambda W, F: [F[:3] >= -0.2, W[0] <= 0.1],
    "equality": lambda W, F: [cp.sum(W) == 0.1],
    "second-order": lambda W, F: [cp.norm(W, "fro") <= 0.3],
    "box": lambda W, F: [W >= -0.2, W <= 0.2],
    "l1 ball": lambda W, F: [cp.sum(cp.abs(W)) <= 0.5],
}
CELLS: list[tuple[str, str, str, int, bool]] = list(
    itertools.product(LOSSES, PENALTIES, CONSTRAINTS, (1, 2), (False, True))
)
SHARE = 23


def problem_of(loss: str, penalty: str, constraint: str, outputs: int, bias: bool) -> cp.Problem:
    rng = np.random.default_rng(CELLS.index((loss, penalty, constraint, outputs, bias)))
    W = cp.Variable((D, outputs), name="W")
    F: Any = X @ W
    if bias:
        F = F + np.ones((N, 1)) @ cp.reshape(cp.Variable(outputs, name="b"), (1, outputs), order="C")
    Y = rng.standard_normal((N, outputs)) + 0.3
    return cp.Problem(cp.Minimize(LOSSES[loss](F, Y) + PENALTIES[penalty](W)), CONSTRAINTS[constraint](W, F))


def duals_near(composite: Composite, held: DualPoint | None, scale: float, seed: int) -> DualPoint:
    """A dual point of this size around a held one (or zero), put into the domains."""
    rng = np.random.default_rng(seed)
    shapes = [np.shape(q) for q in composite.affine.forward(composite.zeros())]
    count = len(composite.losses)
    thetas: list[Float] = [scale * rng.standard_normal(s) for s in shapes[:count]]
    mus: list[Float | None] = [scale * rng.standard_normal(s) for s in shapes[count:]]
    if held is not None:
        thetas = [a + b for a, b in zip(thetas, held.thetas, strict=True)]
        pairs = zip(mus, (*held.multipliers, *(None for _ in mus[len(held.multipliers) :])), strict=True)
        mus = [a if b is None or a is None else a + b for a, b in pairs]
    inside, dual = into_domains(composite, thetas, mus)
    return DualPoint(inside, dual)


def check(cell: tuple[str, str, str, int, bool]) -> None:
    problem = problem_of(*cell)
    try:
        value = optimum(problem, 1e-9, 1e-8)
    except AssertionError:
        return  # the truth is not known well enough
    slack = 1e-6 * (1.0 + abs(value))
    best = {v: np.asarray(v.value) for v in problem.variables()}
    at_optimum = certificate(problem)
    assert at_optimum.dual is None or at_optimum.dual <= value + slack
    composite = compile_problem(problem, numpy_backend()).composite()
    certifier = Certifier(composite)
    rng = np.random.default_rng(len(str(cell)))
    for k, scale in enumerate((0.0, 1e-5, 1e-2, 1.0)):
        x = tuple(optimal + scale * rng.standard_normal(optimal.shape) for optimal in best.values())
        candidates = [
            duals_near(composite, at_optimum.dual_point, scale, k),
            duals_near(composite, None, 1.0, k),
        ]
        found = certifier.certify(x, candidates)
        assert found.dual is None or found.dual <= value + slack
        if found.gap is not None:
            assert found.gap >= found.primal - value - slack


# Cells that once ended in an error, or a warning.
KNOWN: list[tuple[str, str, str, int, bool]] = [
    ("logistic", "none of the last", "inequalities", 1, False),
    ("poisson", "infinity", "second-order", 1, False),
]


@pytest.mark.parametrize("cell", [*CELLS[::SHARE], *KNOWN], ids=str)
def test_no_cell_makes_a_wrong_claim(cell: tuple[str, str, str, int, bool]) -> None:
    check(cell)


def main(first: int = 0, last: int = len(CELLS)) -> int:
    """The cells from ``first`` to ``last`` of a fixed random order; prints every one that fails."""
    failed = 0
    order = np.random.default_rng(0).permutation(len(CELLS))[first:last]
    for number, k in enumerate(order, 1):
        try:
            check(CELLS[k])
        except Exception:
            failed += 1
            print(f"{CELLS[k]} fails:\n{traceback.format_exc()}", flush=True)
        if number % 100 == 0 or number == len(order):
            print(f"{number} of {len(order)} cells, {failed} failed", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(1 if main(*(int(argument) for argument in sys.argv[1:3])) else 0)
