"""The parts of the semismooth Newton method: proximal maps, Jacobians, linear systems, dual points."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from newton_programs import program
from numpy.typing import NDArray

from convexnn_solvers.cones import projections as cones
from convexnn_solvers.functions.nonsmooth_losses import PiecewiseLinear
from convexnn_solvers.gated_programs.fits import SquaredFit
from convexnn_solvers.gated_programs.nonsmooth_fits import NonsmoothFit
from convexnn_solvers.gated_programs.program import GatedProgram, block_norms, scaled
from convexnn_solvers.newton import system as newton_system
from convexnn_solvers.newton.blocks import ConeProx, PlainProx, cone_bytes
from convexnn_solvers.newton.dual_newton import DualNewton
from convexnn_solvers.newton.jacobian import jacobian
from convexnn_solvers.newton.operator import newton_operator
from convexnn_solvers.newton.pairs import pair_operator, pair_step
from convexnn_solvers.newton.start import NewtonPolicy, NewtonStart
from convexnn_solvers.newton.system import NewtonSystems, SystemLimits

Float = NDArray[np.float64]


def prox_of(cones: bool, data: GatedProgram) -> Any:
    return ConeProx(data) if cones else PlainProx()


@pytest.mark.parametrize("outputs", [1, 2])
@pytest.mark.parametrize("cones", [False, True])
def test_proximal_points_satisfy_their_definition_after_any_history(cones: bool, outputs: int) -> None:
    data, rng = program(cones, outputs), np.random.default_rng(1)
    prox, thresholds = prox_of(cones, data), 1.5 * np.ones(data.blocks)
    everything = np.arange(data.blocks)
    inside = rng.standard_normal(data.point_shape)  # points inside the cones leave no polar direction
    if cones:
        inside = ConeProx(data).project(inside, everything)
    for Z in (3.0 * inside, *(2.0 * rng.standard_normal((12, *data.point_shape)))):
        found = prox.at(Z, thresholds)
        exact = ConeProx(data).project(Z, everything) if cones else Z
        norms = block_norms(exact)
        np.testing.assert_array_equal(found.blocks, np.flatnonzero(norms > thresholds))
        expected = exact * np.maximum(1.0 - thresholds / norms, 0.0)
        np.testing.assert_allclose(found.values, expected[:, :, found.blocks], atol=1e-10)


@pytest.mark.parametrize("cones", [False, True])
def test_the_line_is_the_envelope_and_its_derivative(cones: bool) -> None:
    data, rng = program(cones, 2), np.random.default_rng(2)
    prox, thresholds = prox_of(cones, data), np.ones(data.blocks)
    Z, step = 2.0 * rng.standard_normal((2, *data.point_shape))
    line = prox.along(Z, step, thresholds)
    for length in (0.0, 0.3, 1.0):
        value, derivative = line(length)
        assert value == pytest.approx(prox.at(Z + length * step, thresholds).envelope, rel=1e-12)
        assert derivative == pytest.approx((line(length + 1e-6)[0] - line(length - 1e-6)[0]) / 2e-6, rel=1e-6)


@pytest.mark.parametrize("outputs", [1, 2])
@pytest.mark.parametrize("cones", [False, True])
def test_the_jacobian_is_the_derivative_and_has_the_roots_it_says(cones: bool, outputs: int) -> None:
    data, rng = program(cones, outputs), np.random.default_rng(3)
    prox, thresholds = prox_of(cones, data), np.ones(data.blocks)
    Z, step = 2.0 * rng.standard_normal((2, *data.point_shape))
    active = prox.at(Z, thresholds)
    J = jacobian(data, active)
    ahead, behind = (prox.at(Z + h * step, thresholds) for h in (1e-6, -1e-6))
    np.testing.assert_array_equal(ahead.blocks, behind.blocks)
    C = step[:, :, active.blocks]
    np.testing.assert_allclose(J.apply(C), (ahead.values - behind.values) / 2e-6, atol=1e-6)
    for k in range(outputs):
        columns, owner = J.roots(k)
        only = np.zeros_like(C)
        only[k] = C[k]
        squared = np.zeros_like(C[k])
        for column, block in zip(columns.T, owner, strict=True):
            squared[:, block] += column * (column @ C[k][:, block])
        np.testing.assert_allclose(squared, J.apply(only)[k], atol=1e-10)


def test_losses_without_a_gradient_are_worth_machine_code_earlier(monkeypatch: pytest.MonkeyPatch) -> None:
    data = program(cones=True)
    assert isinstance(data.fit, SquaredFit)
    Y = data.fit.Y
    kinked = replace(data, fit=NonsmoothFit(PiecewiseLinear(), np.asarray(1.0), np.ones(Y.shape), Y))
    sizes = []
    for share in (0.5, 2.0, 100.0):  # of what is worth it for squares
        monkeypatch.setattr(cones, "_COMPILED_FROM", share * data.X.size * data.gates)
        sizes.append([cone_bytes(one, 14, 14) for one in (data, kinked)])
    assert sizes[0][0] == sizes[0][1] == sizes[1][1] > sizes[1][0] == sizes[2][0] == sizes[2][1]


LIMITS = {
    "cheapest": SystemLimits(),
    "Cholesky or Woodbury": SystemLimits(plain_iterations=np.inf),
    "diagonal": SystemLimits(memory=0.0),
}


@pytest.mark.parametrize("limits", LIMITS)
@pytest.mark.parametrize("sigma", [0.1, 1e4])
@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("outputs", [1, 2])
@pytest.mark.parametrize("cones", [False, True])
def test_newton_systems_are_solved_however_large_they_are(
    cones: bool, outputs: int, centred: bool, sigma: float, limits: str
) -> None:
    data, rng = program(cones, outputs, centred, slope=0.3), np.random.default_rng(4)
    for kept in (data.gates, 2):  # the second is of low rank
        small = data.restricted(np.arange(kept))
        active = prox_of(cones, small).at(
            2.0 * rng.standard_normal(small.point_shape), np.full(small.blocks, 0.1)
        )
        features = small.features(small.block_gates(active.blocks))
        diagonal = rng.uniform(1.0, 2.0, size=(24, outputs))
        operator = newton_operator(small, active, features, sigma, diagonal)
        systems = NewtonSystems(small, LIMITS[limits])
        for _ in range(2):  # the second time with the factor of the first
            right = rng.standard_normal((24, outputs))
            right -= centred * right.mean(axis=0)
            x = systems.solve(operator, right, 1e-10)
            left = operator(x)
            left -= centred * left.mean(axis=0)
            assert np.linalg.norm(left - right) <= 1e-9 * np.linalg.norm(right)
            assert not centred or np.abs(x.sum(axis=0)).max() <= 1e-12


def test_exact_factors_need_one_iteration_and_old_ones_are_used_again() -> None:
    data = program(cones=False)
    active = PlainProx().at(np.ones(data.point_shape), np.full(data.blocks, 0.1))
    operator = newton_operator(data, active, data.features(active.blocks), 10.0, np.ones((24, 1)))
    systems = NewtonSystems(data, SystemLimits(overhead=0.0, reuse=1e6))
    for _ in range(3):
        systems.solve(operator, np.ones((24, 1)), 1e-8)
    assert (systems.counts.factorisations, systems.counts.iterations) == (1, 3)


def test_an_interrupt_while_factors_are_made_leaves_a_usable_solver(monkeypatch: pytest.MonkeyPatch) -> None:
    data = program(cones=False)
    active = PlainProx().at(np.ones(data.point_shape), np.full(data.blocks, 0.1))
    operator = newton_operator(data, active, data.features(active.blocks), 10.0, np.ones((24, 1)))
    systems, right = NewtonSystems(data), np.ones((24, 1))  # stays with a problem for its next solves

    def interrupted(operator: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(newton_system, "packed_operator", interrupted)
        with pytest.raises(KeyboardInterrupt):
            systems.solve(operator, right, 1e-8)
    x = systems.solve(operator, right, 1e-8)
    np.testing.assert_allclose(operator(x), right, atol=1e-7)


class _WithoutPairs(NewtonSystems):
    """As if the matrices of steps on the optimality conditions were never positive definite."""

    refused = 0

    def solve(self, operator: Any, right: Float, rtol: float) -> Float:
        if rtol == NewtonPolicy().pair_forcing:
            self.refused += 1
            raise FloatingPointError("not positive definite")
        return super().solve(operator, right, rtol)


@pytest.mark.parametrize("cones", [False, True])
def test_a_pair_step_that_cannot_be_factored_is_left_out(cones: bool) -> None:
    data = program(cones)
    systems = _WithoutPairs(data)
    solved = DualNewton(data, start=NewtonStart(systems=systems))
    while not solved.gap <= 1e-9 and solved.newton_steps < 100:
        solved.step(1e-9)
    assert solved.gap <= 1e-9
    assert systems.refused > 0


def test_damping_has_a_limit() -> None:
    data = program(cones=True)
    solved = DualNewton(data, NewtonPolicy(sigma=1e3, damping_growth=1e100))
    while not solved.gap <= 1e-9 and solved.newton_steps < 100:
        solved.step(1e-9)
    assert solved.gap <= 1e-9


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("cones", [False, True])
def test_steps_on_the_optimality_conditions_converge_quadratically(cones: bool, centred: bool) -> None:
    data, rng = program(cones, centred=centred), np.random.default_rng(6)
    solved = DualNewton(data)
    while not solved.gap <= 1e-13 and solved.newton_steps < 200:
        solved.step(1e-13)
    assert solved.gap <= 1e-12
    sigma, best = 5.0, solved.point
    errors = rng.standard_normal(best.shape) * (best != 0.0), rng.standard_normal(solved.xi.shape)
    left = []
    for size in (1e-2, 1e-3, 1e-4):
        U, xi = best + size * errors[0], solved.xi + size * (errors[1] - centred * errors[1].mean())
        products = data.by_block(data.adjoint(xi))
        active = prox_of(cones, data).at(U - sigma * products, sigma * data.weights)
        features = data.features(data.block_gates(active.blocks))
        gradient = data.fit.derivative(xi) - features.forward(active.values * data.block_signs(active.blocks))
        gradient -= centred * gradient.mean(axis=0)
        operator = pair_operator(data, active, features, data.fit.curvature(xi))
        systems = NewtonSystems(data)

        def solve(right: Float, systems: Any = systems, operator: Any = operator) -> Float:
            return np.asarray(systems.solve(operator, right - centred * right.mean(axis=0), 1e-10))

        missed = (U[:, :, active.blocks] - active.values) / sigma
        step = pair_step(data, operator, active.values, missed, gradient, solve, data.adjoint)
        np.testing.assert_allclose(step.products, data.adjoint(step.xi), atol=1e-12)
        after = np.zeros_like(best)
        after[:, :, active.blocks] = step.values
        left.append(max(np.abs(after - best).max(), np.abs(xi + step.xi - solved.xi).max()))
    assert left[1] <= 0.03 * left[0]
    assert left[2] <= 0.03 * left[1] or left[2] <= 1e-6
    assert left[1] <= 1e-4


def test_the_operator_is_what_its_text_says() -> None:
    data, rng = program(cones=True, outputs=2, slope=-0.5), np.random.default_rng(5)
    active = ConeProx(data).at(3.0 * rng.standard_normal(data.point_shape), np.ones(data.blocks))
    features = data.features(data.block_gates(active.blocks))
    operator = newton_operator(data, active, features, 2.0, np.full((24, 2), 3.0))
    x = rng.standard_normal((24, 2))
    adjoint = data.adjoint(x)[:, :, data.block_gates(active.blocks)]
    moved = jacobian(data, active).apply(adjoint)
    np.testing.assert_allclose(operator(x), 3.0 * x + 2.0 * features.forward(moved))


@pytest.mark.parametrize("factor", [1e-8, 1.0, 1e8])
def test_scaled_programs_have_the_same_solutions(factor: float) -> None:
    data = program(cones=False, outputs=2)
    large = GatedProgram(factor * data.X, data.patterns, data.fit, factor * data.weights)
    inside, scaling = scaled(large)
    reference, back = scaled(data)
    np.testing.assert_allclose(inside.X, reference.X)
    np.testing.assert_allclose(inside.weights, reference.weights)
    assert scaling.point * factor == pytest.approx(back.point)
    assert np.linalg.norm(inside.fit.at(np.zeros((24, 2))).xi) == pytest.approx(1.0)


@pytest.mark.parametrize("cones", [False, True])
def test_what_is_kept_for_a_program_is_not_taken_for_something_else(cones: bool) -> None:
    data = program(cones)
    inside, scaling = scaled(data)
    values = []
    for one in (data, inside, data):
        solved = DualNewton(one)
        while not solved.gap <= 1e-9 and solved.newton_steps < 200:
            solved.step(1e-9)
        values.append(solved.primal)
    np.testing.assert_allclose(values[1] * scaling.targets**2, values[::2], rtol=1e-8)


def test_adjoint_and_forward_are_adjoint() -> None:
    data, rng = program(cones=True, outputs=2, slope=0.2), np.random.default_rng(10)
    U, r = rng.standard_normal(data.point_shape), rng.standard_normal((24, 2))
    assert np.vdot(data.forward(U), r) == pytest.approx(float(np.vdot(U, data.by_block(data.adjoint(r)))))
