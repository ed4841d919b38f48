"""ADMM on cones: the program's optimum, and Newton's method that lets it go ahead where steps are short."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from convexnn_solvers.cones.projections import PatternCones
from convexnn_solvers.functions.nonsmooth_losses import Norms, PiecewiseLinear, Supremum
from convexnn_solvers.gated_programs.fits import LogisticFit, SquaredFit, balanced
from convexnn_solvers.gated_programs.nonsmooth_fits import NonsmoothFit
from convexnn_solvers.gated_programs.program import GatedProgram, block_norms, scaled
from convexnn_solvers.kept import Kept
from convexnn_solvers.newton import working_set as gate_working_set
from convexnn_solvers.newton.cone_splitting import ConeSplitting, SplittingStart, can_split, cold_start
from convexnn_solvers.newton.dual_newton import DualNewton
from convexnn_solvers.newton.duals import best_multiple
from convexnn_solvers.newton.splitting_newton import SplittingNewton, SplittingPolicy, usual_splitting
from convexnn_solvers.newton.start import NewtonPolicy, NewtonStart, kept_cones, kept_features
from convexnn_solvers.newton.working_set import newton_engine

Float = NDArray[np.float64]
#: ADMM first, and again and again; Newton's method first; ADMM that is given up after a few iterations.
POLICIES = {
    "first": SplittingPolicy(small=0.0, far=0.0, far_again=0.0, first=1e-1),
    "later": SplittingPolicy(small=np.inf, short=1, far=0.0, far_again=0.0),
    "impatient": SplittingPolicy(small=0.0, patience=1, most=3),
}


def program(outputs: int = 1, centred: bool = False, slope: float = 0.0, share: float = 0.01) -> GatedProgram:
    rng = np.random.default_rng(3)
    X = rng.standard_normal((40, 4))
    patterns = X @ rng.standard_normal((4, 10)) >= 0.0
    Y = np.abs(X @ rng.standard_normal((4, outputs))) + 0.3 * rng.standard_normal((40, outputs))
    fit = SquaredFit(Y, centred)
    bare = GatedProgram(X, patterns, fit, np.ones(20), (1.0, -1.0), True, slope)
    weights = share * block_norms(bare.adjoint(Y)).max() * rng.uniform(1.0, 1.5, size=20)
    return scaled(replace(bare, weights=weights))[0]


def weighted(data: GatedProgram) -> GatedProgram:
    """The same with other samples' weights, some zero."""
    assert isinstance(data.fit, SquaredFit)
    r = np.linspace(0.0, 2.0, len(data.X))[:, None]
    return replace(
        data, X=r * data.X, unscaled=data.X, fit=replace(data.fit, Y=r * data.fit.Y, scales=r), kept=Kept()
    )


def kinked(loss: PiecewiseLinear | Norms | Supremum, centred: bool = False, outputs: int = 1) -> GatedProgram:
    """The same targets with a loss that has no gradient, and weights below those where all blocks vanish."""
    data = program(outputs=outputs, centred=centred)
    assert isinstance(data.fit, SquaredFit)
    Y, weight = (
        data.fit.Y,
        np.ones(data.fit.Y.shape) if isinstance(loss, PiecewiseLinear) else np.asarray(1.0),
    )
    if isinstance(loss, PiecewiseLinear):
        weight = np.linspace(0.05, 0.3, Y.size).reshape(Y.shape)
    fit = NonsmoothFit(loss, weight, np.ones(Y.shape), Y, centred)
    bare = replace(data, fit=fit, kept=Kept())
    return replace(bare, weights=0.1 * float(np.max(bare.null_norms())) * np.linspace(1.0, 1.5, 20))


KINKED = {
    "absolute": kinked(PiecewiseLinear()),
    "quantile with offset": kinked(PiecewiseLinear(-0.3, 0.7), centred=True),
    "absolute of outputs": kinked(PiecewiseLinear(), outputs=2),
    "norm": kinked(Norms()),
    "largest with offset": kinked(Supremum(), centred=True),
}
VARIANTS = {
    "plain": program(),
    "offset": program(centred=True),
    "weighted offset": weighted(program(centred=True)),
    "outputs": program(outputs=2),
    "leaky": program(slope=0.3),
    "large weights": program(share=0.3),
}


def splitting(data: GatedProgram, start: SplittingStart | None = None) -> ConeSplitting:
    return ConeSplitting(data, kept_features(data), kept_cones(data), start or cold_start(data))


def optimum(data: GatedProgram) -> float:
    engine = DualNewton(replace(data, weights=data.weights))
    while engine.gap > 1e-9 and not engine.stalled:
        engine.step(1e-9)
    assert engine.gap <= 1e-9
    return engine.primal


@pytest.mark.parametrize("name", VARIANTS)
def test_the_iteration_converges_to_the_optimum(name: str) -> None:
    data = VARIANTS[name]
    admm = splitting(data)
    for _ in range(25):
        admm.run(20)
    cones = PatternCones(data.cone_features, data.patterns)
    for U in admm.Z:
        assert np.max(cones.slack_violation(U, data.block_gates(np.arange(data.blocks)))) <= 1e-12
    value = data.fit.at(data.forward(admm.Z)).value + float(data.weights @ block_norms(admm.Z))
    found = best_multiple(data, admm.xi, data.by_block(data.adjoint(admm.xi)), kept_cones(data))
    best = optimum(data)
    assert best * (1.0 - 1e-9) <= value <= best * (1.0 + 1e-6)
    assert best * (1.0 - 1e-5) <= found.value <= best * (1.0 + 1e-9)
    np.testing.assert_allclose(admm.products, data.adjoint(admm.xi), atol=1e-10)
    np.testing.assert_allclose(balanced(data.fit, admm.xi), admm.xi, atol=1e-12)


def bounds(data: GatedProgram, point: Float, xi: Float) -> tuple[float, float]:
    """The value of a point, and that of the best feasible multiple near a dual variable."""
    value = data.fit.at(data.forward(point)).value + float(data.weights @ block_norms(point))
    inside = data.fit.nearest(balanced(data.fit, xi))
    found = best_multiple(data, inside, data.by_block(data.adjoint(inside)), kept_cones(data))
    return value, found.value


@pytest.mark.parametrize("name", KINKED)
def test_the_iteration_comes_near_the_optimum_of_losses_without_a_gradient(name: str) -> None:
    data = KINKED[name]
    admm = splitting(data)
    for _ in range(20):
        admm.run(20)
    value, bound = bounds(data, admm.Z, admm.xi)
    assert value * 0.95 <= bound <= value


@pytest.mark.parametrize("name", KINKED)
def test_losses_without_a_gradient_are_solved_by_both_together(name: str) -> None:
    data = KINKED[name]
    engine = SplittingNewton(data, splitting=replace(usual_splitting(data.fit), small=0.0))
    while engine.gap > 1e-5 and not engine.stalled:
        engine.step(1e-5)
    assert engine.gap <= 1e-5
    value, bound = bounds(data, engine.point, -engine.dual_point)
    assert engine.primal == pytest.approx(value, rel=1e-12)
    assert bound >= engine.dual * (1.0 - 1e-9)
    assert engine.turns > 0


@pytest.mark.parametrize("name", VARIANTS)
def test_an_optimal_pair_stays_where_it_is(name: str) -> None:
    data = VARIANTS[name]
    engine = DualNewton(data)
    while engine.gap > 1e-12 and engine.newton_steps < 200 and not engine.stalled:
        engine.step(1e-12)
    point = engine.point
    xi = data.fit.at(data.forward(point)).xi
    for rho in (0.02, 1.0):
        admm = splitting(data, SplittingStart(point, -data.by_block(data.adjoint(xi)) / rho, rho, xi))
        admm.run(10)
        assert np.linalg.norm(admm.Z - point) <= 1e-4 * np.linalg.norm(point)
        assert np.linalg.norm(admm.xi - xi) <= 1e-4 * np.linalg.norm(xi)


@pytest.mark.parametrize("factor", [1e-3, 1e3])
@pytest.mark.parametrize("name", ["plain", "large weights"])
def test_a_penalty_that_is_far_off_is_corrected(name: str, factor: float) -> None:
    data = VARIANTS[name]
    start = cold_start(data)
    admm = splitting(data, replace(start, rho=factor * start.rho))
    for _ in range(25):
        admm.run(15)
    value = data.fit.at(data.forward(admm.Z)).value + float(data.weights @ block_norms(admm.Z))
    assert value <= optimum(data) * (1.0 + 1e-3)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", VARIANTS)
def test_both_methods_together_reach_the_optimum(name: str, policy: str) -> None:
    data = VARIANTS[name]
    engine = SplittingNewton(data, splitting=POLICIES[policy])
    for _ in range(400):
        engine.step(1e-8)
    best = optimum(data)
    assert engine.gap <= 1e-8
    assert engine.dual <= best * (1.0 + 1e-9)
    assert engine.primal == pytest.approx(best, rel=2e-8)
    assert engine.turns <= POLICIES[policy].most
    assert engine.turns > 0 or policy == "later"
    value = data.fit.at(data.forward(engine.point)).value + float(data.weights @ block_norms(engine.point))
    assert engine.primal == pytest.approx(value, rel=1e-12)


def test_short_steps_give_the_turn_to_admm() -> None:
    eager, lazy = POLICIES["later"], replace(POLICIES["later"], most=0)
    engines = [SplittingNewton(VARIANTS["plain"], splitting=policy) for policy in (eager, lazy)]
    for engine in engines:
        for _ in range(400):
            engine.step(1e-8)
    assert [engine.turns > 0 for engine in engines] == [True, False]
    assert engines[0].newton_steps < engines[1].newton_steps


@pytest.mark.parametrize("before", [1, 4, 9, 15])
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("make", [program, lambda: kinked(PiecewiseLinear(), centred=True)])
def test_what_is_packed_goes_on_alike(make: Callable[[], GatedProgram], policy: str, before: int) -> None:
    data, chosen = make(), POLICIES[policy]
    first = SplittingNewton(data, splitting=chosen)
    for _ in range(before):
        first.step(1e-9)
    fresh = make()
    again = SplittingNewton(fresh, start=NewtonStart(held=first.packed()), splitting=chosen)
    for engine in (first, again):
        for _ in range(4):
            engine.step(1e-9)
    counts = [(engine.turns, engine.newton_steps, engine.iterations) for engine in (first, again)]
    assert counts[0] == counts[1]
    assert again.primal == pytest.approx(first.primal, rel=1e-9)
    assert again.dual == pytest.approx(first.dual, rel=1e-9)


def test_where_an_earlier_solve_left_a_dual_point_newtons_method_begins() -> None:
    data, policy = VARIANTS["plain"], POLICIES["first"]
    assert SplittingNewton(data, splitting=policy).turns == 1
    left = NewtonStart(xi=0.5 * data.fit.at(np.zeros(data.fit.shape)).xi)
    assert SplittingNewton(data, start=left, splitting=policy).turns == 0


def test_which_programs_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    data = VARIANTS["plain"]
    assert isinstance(data.fit, SquaredFit)
    signs = np.where(data.fit.Y > 0.0, 1.0, -1.0)
    others = [
        replace(data, fit=replace(data.fit, outliers=0.1)),
        replace(data, fit=LogisticFit(signs, np.zeros_like(signs))),
        replace(data, cones=False, signs=(1.0,), weights=data.weights[:10]),
    ]
    assert [can_split(each) for each in (data, *others)] == [True, False, False, False]
    assert type(newton_engine(data, NewtonPolicy(), NewtonStart())) is DualNewton
    monkeypatch.setattr(gate_working_set, "_SPLIT_FROM", 40)
    assert all(can_split(each) for each in KINKED.values())
    assert isinstance(newton_engine(data, NewtonPolicy(), NewtonStart()), SplittingNewton)
    assert all(type(newton_engine(p, None, NewtonStart())) is DualNewton for p in others)
