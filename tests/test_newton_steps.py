"""Steps of the semismooth Newton method that remember what was found out: none of it is out of date."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from convexnn_solvers.cones.projections import PatternCones
from convexnn_solvers.gated_programs.fits import SquaredFit
from convexnn_solvers.gated_programs.program import GatedProgram, block_norms
from convexnn_solvers.kept import Kept
from convexnn_solvers.newton.dual_newton import DualNewton
from convexnn_solvers.newton.start import NewtonPolicy, NewtonStart
from convexnn_solvers.newton.working_set import WorkingSetNewton

#: The usual policy, and those under which some, or all, trial steps are refused.
POLICIES = {
    "usual": NewtonPolicy(),
    "some refused": NewtonPolicy(pair_gain=0.05, old_gain=0.05),
    "all refused": NewtonPolicy(pair_gain=0.0, old_gain=0.0, first_gain=0.0),
}


def program(cones: bool, centred: bool, bend: float | None) -> GatedProgram:
    rng = np.random.default_rng(7)
    X = rng.standard_normal((30, 4))
    patterns = X @ rng.standard_normal((4, 9)) >= 0.0
    Y = rng.standard_normal((30, 1))
    signs = (1.0, -1.0) if cones else (1.0,)
    weights = rng.uniform(0.5, 1.0, size=9 * len(signs))
    return GatedProgram(X, patterns, SquaredFit(Y - centred * Y.mean(), centred, bend), weights, signs, cones)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("bend", [None, 0.7], ids=["squared", "huber"])
@pytest.mark.parametrize("centred", [False, True], ids=["no offset", "offset"])
@pytest.mark.parametrize("cones", [False, True], ids=["gated", "relu"])
def test_a_step_depends_on_nothing_that_is_out_of_date(
    cones: bool, centred: bool, bend: float | None, policy: str
) -> None:
    """A method that was made anew from what this one packs, and remembers nothing, takes the same step."""
    data, given = program(cones, centred, bend), POLICIES[policy]
    solved = DualNewton(data, given)
    while not solved.gap <= 1e-9 and solved.newton_steps < 100:
        anew = DualNewton(replace(data, kept=Kept()), given, NewtonStart(held=solved.packed()))
        for method in (solved, anew):
            method.step(1e-9)
        assert anew.newton_steps == solved.newton_steps
        assert anew.primal == pytest.approx(solved.primal, rel=1e-9)
        assert anew.dual == pytest.approx(solved.dual, rel=1e-9)
        np.testing.assert_allclose(anew.xi, solved.xi, atol=1e-8)
        np.testing.assert_allclose(anew.point, solved.point, atol=1e-7)
    assert solved.gap <= 1e-9


@pytest.mark.parametrize("cones", [False, True], ids=["gated", "relu"])
def test_refused_steps_change_nothing_but_the_time(cones: bool) -> None:
    """Another regularisation is begun with the last factor and points: with every trial refused as well."""
    data = program(cones, centred=True, bend=None)
    first = DualNewton(data)
    while not first.gap <= 1e-9 and first.newton_steps < 100:
        first.step(1e-9)
    values = []
    for policy in POLICIES.values():
        start = NewtonStart(point=first.point, xi=-first.dual_point)
        other = DualNewton(replace(data, weights=0.8 * data.weights), policy, start)
        while not other.gap <= 1e-9 and other.newton_steps < 100:
            other.step(1e-9)
        assert other.gap <= 1e-9
        values.append(other.primal)
    assert values == pytest.approx([values[0]] * len(values), rel=3e-9)


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize("method", [DualNewton, WorkingSetNewton])
def test_a_start_outside_its_cones_is_taken_in(
    method: type[DualNewton | WorkingSetNewton], warm: bool
) -> None:
    data = program(cones=True, centred=False, bend=None)
    cones, gates = PatternCones(data.X, data.patterns), data.block_gates(np.arange(data.blocks))
    rng = np.random.default_rng(0)
    outside = 0.2 * rng.standard_normal(data.point_shape)
    outside[:, :, ::3] = 0.0
    assert np.any(cones.slack_violation(outside[0], gates) > 0.1)
    given = outside.copy()
    begun = method(data, start=NewtonStart(point=outside, xi=rng.standard_normal((30, 1)) if warm else None))
    np.testing.assert_array_equal(outside, given)
    assert np.all(cones.slack_violation(begun.point[0], gates) <= 1e-14)
    value = data.fit.at(data.forward(begun.point)).value + float(data.weights @ block_norms(begun.point))
    assert begun.primal == pytest.approx(value, rel=1e-12)


def test_the_next_regularisation_in_cones_begins_with_a_bound() -> None:
    data = program(cones=True, centred=False, bend=None)
    first = DualNewton(data)
    while not first.gap <= 1e-9 and first.newton_steps < 100:
        first.step(1e-9)
    start = NewtonStart(point=first.point, xi=-first.dual_point)
    assert DualNewton(data, start=start).gap <= 2e-9
    for share in (0.9, 0.1):
        other = DualNewton(replace(data, weights=share * data.weights), start=start)
        assert 0.0 < other.dual < other.primal
        while not other.gap <= 1e-9 and other.newton_steps < 100:
            other.step(1e-9)
        assert other.gap <= 1e-9
