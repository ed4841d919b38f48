"""Newton systems preconditioned by the mean of the gates."""

from __future__ import annotations

from typing import Any

import cvxpy as cp
import numpy as np
import pytest
from numpy.typing import NDArray

import convexnn_models as cnn
from convexnn_solvers import SemismoothNewton
from convexnn_solvers.gated_programs.features import StoredFeatures
from convexnn_solvers.gated_programs.fits import SquaredFit
from convexnn_solvers.gated_programs.program import GatedProgram
from convexnn_solvers.newton import system as newton_system
from convexnn_solvers.newton.blocks import PlainProx
from convexnn_solvers.newton.factors import apart, mean_gates
from convexnn_solvers.newton.operator import NewtonOperator, newton_operator
from convexnn_solvers.newton.system import NewtonSystems, SystemLimits

Float = NDArray[np.float64]
N, D, GATES = 150, 5, 40
#: Where iterations cost nothing beside a factor.
_EAGER = SystemLimits(overhead=0.0, mean_iterations=0.0)


def program(same: bool = False, stored: bool = False, centred: bool = False) -> GatedProgram:
    rng = np.random.default_rng(0)
    X = rng.standard_normal((N, D)) / np.sqrt(N)
    patterns = X @ rng.standard_normal((D, 1 if same else GATES)) >= 0.0
    patterns = np.repeat(patterns, GATES, axis=1) if same else patterns
    blocks = X[:, :, None] * np.where(patterns, 1.0, 0.2)[:, None, :]
    fit = SquaredFit(rng.standard_normal((N, 1)), centred)
    given = blocks if stored else None
    return GatedProgram(X, patterns, fit, np.ones(GATES), slope=0.2, stored=given)


def operator_of(data: GatedProgram, sigma: float, column: bool = False) -> NewtonOperator:
    rng = np.random.default_rng(1)
    active = PlainProx().at(2.0 * rng.standard_normal(data.point_shape), np.full(data.blocks, 1.5))
    assert 10 < active.blocks.size <= GATES
    h = rng.uniform(1.0, 2.0, size=(N, 1))
    extra = rng.standard_normal((N, 1)) if column else None
    return newton_operator(data, active, data.features(active.blocks), sigma, h, extra)


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("column", [False, True])
def test_the_mean_of_gates_that_are_all_alike_solves_exactly(stored: bool, column: bool) -> None:
    operator = operator_of(program(same=True, stored=stored), 100.0, column)
    right = np.random.default_rng(2).standard_normal((N, 1))
    np.testing.assert_allclose(
        operator(mean_gates(operator).solve(operator.coupling(0))(right)), right, atol=1e-9
    )


def test_stored_features_have_the_mean_of_the_gated_ones() -> None:
    gated, stored = (operator_of(program(stored=stored), 100.0) for stored in (False, True))
    assert isinstance(stored.features, StoredFeatures)
    right = np.random.default_rng(2).standard_normal((N, 1))
    solved = [mean_gates(one).solve(one.coupling(0))(right) for one in (gated, stored)]
    np.testing.assert_allclose(solved[0], solved[1], atol=1e-10)


@pytest.mark.parametrize("sigma", [1.0, 3.0, 10.0])
def test_the_mean_of_the_gates_saves_most_iterations_that_the_diagonal_takes(sigma: float) -> None:
    data, right = program(), np.random.default_rng(2).standard_normal((N, 1))
    operator, counts = operator_of(data, sigma), []
    for limits in (_EAGER, SystemLimits(memory=0.0)):
        systems = NewtonSystems(data, limits)
        systems.solve(operator, right, 1e-2)
        counts.append(systems.counts)
    assert counts[0].factorisations == 0
    assert 1 < counts[0].iterations <= counts[1].iterations / 2


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("sigma", [1.0, 10.0])
def test_systems_are_solved_without_an_exact_factor(stored: bool, centred: bool, sigma: float) -> None:
    data = program(stored=stored, centred=centred)
    systems, operator = NewtonSystems(data, _EAGER), operator_of(data, sigma)
    right = np.random.default_rng(3).standard_normal((N, 1))
    right -= centred * right.mean(axis=0)
    x = systems.solve(operator, right, 1e-4)
    left = operator(x)
    left -= centred * left.mean(axis=0)
    assert np.linalg.norm(left - right) <= 1e-4 * np.linalg.norm(right)
    assert not centred or np.abs(x.sum()) <= 1e-10
    assert systems.counts.factorisations == 0
    assert systems.counts.iterations > 1
    assert systems.latest_pair(data) is None


class _Counted:
    """A preconditioner that says nothing of the matrix, and how often it was made."""

    condition = 1.0
    made = 0

    def solve(self, coupling: Float) -> Any:
        self.made += 1
        return lambda right: right


def test_where_the_mean_says_little_a_factor_is_made_and_it_is_tried_less_and_less(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    useless = _Counted()
    monkeypatch.setattr(newton_system, "mean_gates", lambda operator: useless)
    data = program()
    systems = NewtonSystems(data, SystemLimits(overhead=0.0, mean_iterations=0.0, reuse=0.0))
    operator, rng = operator_of(data, 1e4), np.random.default_rng(4)
    attempts = []
    for _ in range(12):
        right = rng.standard_normal((N, 1))
        x = systems.solve(operator, right, 1e-8)
        assert np.linalg.norm(operator(x) - right) <= 1e-8 * np.linalg.norm(right)
        attempts.append(useless.made)
        again = NewtonSystems(data, SystemLimits(overhead=0.0, mean_iterations=0.0, reuse=0.0))
        again.restore(systems.packed())
        systems = again  # what a checkpoint keeps
    assert attempts == [1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3]


def test_paths_of_many_gates_do_mostly_without_exact_factors(monkeypatch: pytest.MonkeyPatch) -> None:
    made = [0]
    refactor = NewtonSystems._refactor  # pyright: ignore[reportPrivateUsage]

    def counted(*arguments: Any) -> Any:
        made[0] += 1
        return refactor(*arguments)

    monkeypatch.setattr(NewtonSystems, "_refactor", counted)
    rng = np.random.default_rng(5)
    X = rng.standard_normal((800, 20))
    y = np.maximum(X @ rng.standard_normal((20, 5)), 0.0).sum(axis=1) + 0.5 * rng.standard_normal(800)
    model = cnn.gated_relu(X, cnn.sample_gates(X, 120, seed=0))
    factors = []
    for limits in (SystemLimits(), SystemLimits(mean_iterations=np.inf)):
        monkeypatch.setattr(newton_system, "SystemLimits", lambda limits=limits: limits)
        for variable in model.variables:
            variable.value = None
        made[0] = 0
        path = cnn.regularization_path(model, y, 15, ratio=0.1, solver=SemismoothNewton())
        assert all(point.status == cp.OPTIMAL for point in path)
        factors.append(made[0])
    assert factors[0] <= 0.6 * factors[1]


def test_a_factor_that_has_lost_the_offset_to_rounding_still_solves_among_sums_of_zero() -> None:
    """Features that are all ones beside an offset, at a regularisation of rounding: a division by zero."""
    lost = apart(program(centred=True), [lambda right: right - right.mean(axis=0)])
    solved = lost(np.random.default_rng(5).standard_normal((N, 1)))
    assert np.abs(solved.sum()) <= 1e-10
    assert np.linalg.norm(solved) > 1.0
