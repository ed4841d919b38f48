"""Working sets of gates: the optimum over all gates, certified over all gates, from far fewer of them."""

from __future__ import annotations

import gc
from dataclasses import replace
from typing import Any

import cvxpy as cp
import numpy as np
import pytest

import convexnn_models as cnn
from convexnn_solvers import SemismoothNewton, certificate
from convexnn_solvers.cones.memory import ConeMemory
from convexnn_solvers.functions.nonsmooth_losses import PiecewiseLinear, Supremum
from convexnn_solvers.gated_programs.fits import SquaredFit
from convexnn_solvers.gated_programs.nonsmooth_fits import NonsmoothFit
from convexnn_solvers.gated_programs.program import GatedProgram, block_norms, scaled
from convexnn_solvers.kept import Kept
from convexnn_solvers.newton.dual_newton import DualNewton
from convexnn_solvers.newton.splitting_newton import SplittingNewton
from convexnn_solvers.newton.start import NewtonPolicy, NewtonStart
from convexnn_solvers.newton.working_set import WorkingSetNewton, WorkingSetPolicy, newton_engine

SMALL = WorkingSetPolicy(first=4)


def program(cones: bool, outputs: int = 1, gates: int = 60, share: float = 0.1) -> GatedProgram:
    rng = np.random.default_rng(0)
    X = rng.standard_normal((40, 4))
    patterns = X @ rng.standard_normal((4, gates)) >= 0.0
    Y = np.maximum(X @ rng.standard_normal((4, 3)), 0.0) @ rng.standard_normal((3, outputs))
    signs = (1.0, -1.0) if cones else (1.0,)
    bare = GatedProgram(X, patterns, SquaredFit(Y), np.ones(gates * len(signs)), signs, cones)
    largest = block_norms(bare.adjoint(Y)).max()
    weights = share * largest * rng.uniform(1.0, 1.5, size=bare.blocks)
    return scaled(GatedProgram(X, patterns, SquaredFit(Y), weights, signs, cones))[0]


def run(engine: DualNewton | WorkingSetNewton, tol: float) -> DualNewton | WorkingSetNewton:
    for _ in range(500):
        if engine.gap <= tol:
            break
        engine.step(tol)
    return engine


@pytest.mark.parametrize("share", [1.0, 0.2, 0.02])
@pytest.mark.parametrize("outputs", [1, 2])
@pytest.mark.parametrize("cones", [False, True])
def test_the_optimum_over_all_gates_is_found(cones: bool, outputs: int, share: float) -> None:
    data = program(cones, outputs, share=share)
    small = run(WorkingSetNewton(data, sets=SMALL), 1e-8)
    full = run(DualNewton(data), 1e-8)
    assert small.gap <= 1e-8
    assert small.primal == pytest.approx(full.primal, rel=2e-8)
    assert small.dual <= full.primal * (1.0 + 1e-12)
    prediction = data.forward(small.point)
    value = data.fit.at(prediction).value + float(data.weights @ block_norms(small.point))
    assert small.primal == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize("loss", [PiecewiseLinear(-0.3, 0.7), Supremum()], ids=["quantile", "largest"])
@pytest.mark.parametrize("cones", [False, True])
def test_losses_without_a_gradient_have_the_same_optimum_on_working_sets(
    cones: bool, loss: PiecewiseLinear | Supremum
) -> None:
    data = program(cones, gates=25, share=0.1)
    assert isinstance(data.fit, SquaredFit)
    size = 1.0 if isinstance(loss, Supremum) else 0.15
    fit = NonsmoothFit(loss, np.asarray(size), np.ones((40, 1)), data.fit.Y)
    data = replace(data, fit=fit, kept=Kept())
    small, full = run(WorkingSetNewton(data, sets=SMALL), 1e-6), run(DualNewton(data), 1e-6)
    assert small.gap <= 1e-6
    assert small.primal == pytest.approx(full.primal, rel=2e-6)
    assert small.primal < 0.95 * data.fit.at(np.zeros((40, 1))).value
    norms = block_norms(data.by_block(data.adjoint(small.dual_point)))
    assert cones or np.all(norms <= data.weights * (1.0 + 1e-12))


def test_the_dual_point_is_feasible_for_every_gate() -> None:
    data = program(cones=False)
    engine = run(WorkingSetNewton(data, sets=SMALL), 1e-6)
    norms = block_norms(data.adjoint(engine.dual_point))
    assert np.max(norms / data.weights) <= 1.0 + 1e-12


def test_few_gates_suffice_when_few_are_active() -> None:
    data = program(cones=False, gates=600, share=0.5)
    engine = WorkingSetNewton(data, sets=SMALL)
    run(engine, 1e-7)
    assert engine.gap <= 1e-7
    assert engine.rounds > 1
    assert len(engine.working_set) < 100


@pytest.mark.parametrize("outputs", [1, 2])
def test_what_a_working_set_remembered_goes_with_it(outputs: int) -> None:
    def living() -> int:
        gc.collect()
        return sum(type(one) is ConeMemory for one in gc.get_objects())  # others' proxies answer isinstance

    before = living()
    data = program(cones=True, outputs=outputs)
    assert run(WorkingSetNewton(data, sets=SMALL), 1e-6).gap <= 1e-6
    assert living() == before + outputs  # those of all gates, kept for the next solve


def test_a_start_at_the_optimum_needs_no_step() -> None:
    data = program(cones=True)
    point = run(WorkingSetNewton(data, sets=SMALL), 1e-7).point
    again = run(WorkingSetNewton(data, start=NewtonStart(point), sets=SMALL), 1e-3)
    assert again.newton_steps <= 2


@pytest.mark.parametrize("engine", [DualNewton, WorkingSetNewton])
@pytest.mark.parametrize("cones", [False, True])
def test_the_dual_point_of_a_problem_without_offset_is_no_bound_with_one(cones: bool, engine: Any) -> None:
    data = program(cones)
    assert isinstance(data.fit, SquaredFit)
    fit = SquaredFit(data.fit.Y - data.fit.Y.mean())
    without = run(DualNewton(replace(data, fit=fit, kept=Kept())), 1e-8)
    assert isinstance(without, DualNewton)
    xi, data = without.xi, replace(data, fit=replace(fit, centred=True), kept=Kept())
    optimum = run(DualNewton(data), 1e-8).primal
    assert engine(data, start=NewtonStart(xi=xi)).dual <= optimum * (1.0 + 1e-12)


@pytest.mark.parametrize(
    ("cones", "gates", "share", "expected"),
    [
        (False, 900, 0.1, DualNewton),
        (False, 1100, 0.1, WorkingSetNewton),
        (True, 450, 0.1, SplittingNewton),
        (True, 600, 0.1, WorkingSetNewton),
        (True, 600, 0.001, SplittingNewton),
    ],
)
def test_working_sets_are_used_where_they_pay(cones: bool, gates: int, share: float, expected: Any) -> None:
    data = program(cones, gates=gates, share=share)
    assert type(newton_engine(data, NewtonPolicy(), NewtonStart())) is expected


def test_problems_with_many_gates_are_certified_over_all_of_them() -> None:
    rng = np.random.default_rng(1)
    X = rng.standard_normal((60, 5))
    y = np.maximum(X @ rng.standard_normal((5, 3)), 0.0).sum(axis=1)
    model = cnn.gated_relu(X, cnn.sample_gates(X, 1500, seed=0))
    problem = model.problem(y, reg=0.1 * cnn.lambda_max(model, y))
    problem.solve(solver=SemismoothNewton(tol=1e-6))
    assert problem.status == cp.OPTIMAL
    assert certificate(problem).relative_gap == pytest.approx(0.0, abs=1e-6)
