"""What a method takes for a bound and is none: a certificate refuses it, and it is found anew, not kept.

Methods remember the best value of a point and of a dual point that they have met. Sums over many steps, an
image that somebody gave or the numbers of single precision can make one of them better than it is; it would
then stand in the way of every true one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import convexnn_models as cnn
from convexnn_solvers import SemismoothNewton
from convexnn_solvers.admm.method import admm_method
from convexnn_solvers.backends import numpy_backend
from convexnn_solvers.block_descent.method import block_descent_method
from convexnn_solvers.certify.certificate import Certifier
from convexnn_solvers.composite import Composite
from convexnn_solvers.gated_programs.structure import GatedStructure, gated_structure
from convexnn_solvers.loop.iterate import Candidate, Limits, iterate
from convexnn_solvers.newton import working_set as gate_working_set
from convexnn_solvers.newton.method import semismooth_newton_method
from convexnn_solvers.reading.compiler import compile_problem
from convexnn_solvers.status import Status

Float = NDArray[np.float64]
RNG = np.random.default_rng(5)
X: Float = RNG.standard_normal((30, 4))
Y: Float = np.sin(2.0 * X[:, 0]) + 0.1 * RNG.standard_normal(30)
GATES = cnn.sample_gates(X, 12, seed=0)
TOL = 1e-6

PROBLEMS: dict[str, Callable[[], Any]] = {
    "gated": lambda: cnn.gated_relu(X, GATES).problem(Y, 0.02),
    "offset": lambda: cnn.gated_relu(X, GATES, output_bias=True).problem(Y, 0.02),
    "huber": lambda: cnn.gated_relu(X, GATES).problem(Y, 0.02, "huber"),
    "relu": lambda: cnn.relu(X, GATES).problem(Y, 0.02),
    "leaky": lambda: cnn.piecewise_linear(X, GATES, slope=0.3).problem(Y, 0.02, "huber"),
}


def newton(composite: Composite) -> Any:
    return semismooth_newton_method(gated_structure(composite), TOL)


def descent(composite: Composite) -> Any:
    return block_descent_method(gated_structure(composite), TOL)


def admm(composite: Composite, single: bool = False) -> Any:
    return admm_method(composite, gated_structure(composite), 1e-4 if single else TOL, single=single)


METHODS: dict[str, tuple[Callable[[Composite], Any], tuple[str, ...]]] = {
    "newton": (newton, tuple(PROBLEMS)),
    "newton on a set": (newton, tuple(PROBLEMS)),
    "newton with admm": (newton, ("relu", "leaky")),
    "block descent": (descent, ("gated", "offset", "huber")),
    "admm": (admm, ("gated", "offset", "huber")),
    "admm in float32": (lambda composite: admm(composite, single=True), ("gated", "offset", "huber")),
}


class Misled:
    """A method whose state, after three steps, has a bound that is none; else as it is."""

    judges_itself = True

    def __init__(self, inner: Any, number: str, factor: float) -> None:
        self.inner, self.number, self.factor = inner, number, factor
        self.steps = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def step(self, state: Any) -> Any:
        self.steps += 1
        state = self.inner.step(state)
        return self.misled(state) if self.steps == 3 else state

    def misled(self, state: Any) -> Any:
        arrays = dict(self.inner.packed(state))
        changed = 0
        for key in list(arrays):
            if key in {f"0.{self.number}", f"0.dual newton.{self.number}"}:
                arrays[key] = self.factor * arrays[key]
                changed += 1
            elif key in {"engine.best.values", "engine.inner.values"}:
                factors = (self.factor, 1.0) if self.number == "primal" else (1.0, self.factor)
                arrays[key] = np.asarray(factors) * arrays[key]
                changed += 1
        assert changed, sorted(arrays)
        return self.inner.unpacked(arrays)


@pytest.mark.parametrize(("number", "factor"), [("dual", 3.0), ("primal", 0.4)], ids=["dual", "primal"])
@pytest.mark.parametrize(
    ("method", "problem"),
    [(name, problem) for name, (_, problems) in METHODS.items() for problem in problems],
)
def test_a_bound_that_is_none_is_forgotten(
    method: str, problem: str, number: str, factor: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    if method == "newton on a set":
        monkeypatch.setattr(gate_working_set, "_PLAIN_FROM", 5)
        monkeypatch.setattr(gate_working_set, "_CONES_FROM", 5)
    if method == "newton with admm":
        monkeypatch.setattr(gate_working_set, "_SPLIT_FROM", 1)
    composite = compile_problem(PROBLEMS[problem](), numpy_backend()).composite()
    tol = 1e-4 if "float32" in method else TOL
    misled: Any = Misled(METHODS[method][0](composite), number, factor)
    start = Candidate(composite.zeros())
    result = iterate(misled, composite, Certifier(composite), [start], Limits(tol=tol, max_iter=3000))
    assert misled.steps > 3
    assert result.status is Status.OPTIMAL
    assert result.certificate.relative_gap is not None
    assert abs(result.certificate.relative_gap) <= tol


@pytest.mark.parametrize("problem", ["gated", "huber", "relu", "leaky"])
def test_an_image_that_is_none_is_forgotten(problem: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given too short, it makes multiples of the direction feasible that are not."""
    right = GatedStructure.products

    def too_short(self: GatedStructure, dual: Any) -> Any:
        found = right(self, dual)
        return None if found is None else [0.5 * part for part in found]

    made = PROBLEMS[problem]()
    made.solve(solver=SemismoothNewton(tol=TOL))
    monkeypatch.setattr(GatedStructure, "products", too_short)
    made.parameters()[0].value = 0.015
    made.solve(solver=SemismoothNewton(tol=TOL), warm_start=True)
    assert made.status == "optimal"
