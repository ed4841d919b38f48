"""What a point may miss of its constraints: in whose units, by how much, in which words; by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
from shrinkage_points import at, shrinkage

from convexnn_solvers.backends import numpy_backend
from convexnn_solvers.certify.certificate import Certifier, certificate
from convexnn_solvers.functions.constraint_cones import Nonnegative, Zero
from convexnn_solvers.loop.watch import Candidate, Limits, Watch
from convexnn_solvers.reading.atoms import pattern_slack
from convexnn_solvers.reading.compiler import compile_problem


@pytest.mark.parametrize(
    ("error", "note", "bounded"),
    [
        (0.0, "", True),
        (1e-13, "", True),
        (9e-7, "up to the violation of", True),
        (-9e-7, "up to the violation of", True),
        (1.1e-6, "no upper bound: the point violates", False),
        (-1e-3, "no upper bound: the point violates", False),
    ],
)
def test_equalities_count_as_satisfied_up_to_a_millionth(error: float, note: str, bounded: bool) -> None:
    problem, x = shrinkage(lambda x: x[0] == 1.0)
    found = at(problem, x, [1.0 + error, -1.0])
    assert found.max_violation == pytest.approx(abs(error), rel=1e-6, abs=1e-15)
    assert (note in found.note) if note else (found.note == "")
    assert (found.gap is not None) == bounded
    assert found.dual is not None


@pytest.mark.parametrize(("error", "excess"), [(2e-6, 2.0), (5e-7, 0.5)])
def test_constraints_know_their_cone_by_what_it_is(error: float, excess: float) -> None:
    """Equalities allow a millionth, whoever made their cone; inequalities with a one in them two of them."""
    problem, _ = shrinkage(lambda x: x[0] == 1.0)
    composite = compile_problem(problem, numpy_backend()).composite()
    (term,) = composite.constraints
    for cone in (term.cone, Zero(), Nonnegative()):
        own = replace(composite, constraints=(replace(term, cone=cone),), kept={})
        found = [Certifier(own).certify((np.array([1.0 + e, -1.0]),)).excess for e in (error, -error)]
        expected = [excess, excess] if isinstance(cone, Zero) else [excess / 2.0, 0.0]
        np.testing.assert_allclose(sorted(found), sorted(expected), rtol=1e-6)


@pytest.mark.parametrize("row", [0, 1])
@pytest.mark.parametrize(("share", "bounded"), [(0.9, True), (1.2, False)])
def test_what_an_inequality_may_miss_grows_with_its_numbers(row: int, share: float, bounded: bool) -> None:
    """The first row of ``x <= (1, 10)`` may miss 2e-6 and the second 1.1e-5; neither helps the other."""
    problem, x = shrinkage(lambda x: x <= np.array([1.0, 10.0]))
    outside = share * (2e-6, 1.1e-5)[row]
    found = at(problem, x, [1.0 + (outside, 0.0)[row], (0.0, 10.0 + outside)[row]])
    assert found.max_violation == pytest.approx(outside, rel=1e-6)
    assert (found.gap is not None) == bounded


@pytest.mark.parametrize("kind", ["equality", "inequality", "second-order"])
@pytest.mark.parametrize(("miss", "tied"), [(0.8e-3, True), (1.1e-3, False)])
def test_entries_of_one_cone_lend_each_other_their_size(kind: str, miss: float, tied: bool) -> None:
    """``||(x, 0)|| <= t`` at t = 1e3 may be missed by the rounding of 1e3, ``x <= t`` by that of one."""
    x = cp.Variable(2, name="x")
    constraint: Any = {
        "equality": x[1] - x[0] == 0.0,
        "inequality": x[1] - x[0] >= 0.0,
        "second-order": cp.SOC(x[1], cp.hstack([x[0], 0.0])),
    }[kind]
    found = at(cp.Problem(cp.Minimize(cp.norm1(x)), [constraint]), x, [1e3 + miss, 1e3])
    assert found.max_violation == pytest.approx(miss, rel=1e-6)
    assert (found.excess <= 1.0) == (tied and kind == "second-order")
    if kind == "second-order":
        assert found.excess == pytest.approx(miss / 1.001e-3, rel=1e-4)


@pytest.mark.parametrize("kind", ["equality", "inequality", "second-order", "semidefinite"])
def test_a_row_in_small_units_is_not_lost_beside_others(kind: str) -> None:
    """x = (10, 0) violates the second row of ``diag(1, 1e-8) x >= (10, 1e-7)`` as much as any point can."""
    x = cp.Variable(2, name="x")
    slack = np.diag([1.0, 1e-8]) @ x - np.array([10.0, 1e-7])
    constraint: Any = {
        "equality": slack == 0,
        "inequality": slack >= 0,
        "second-order": cp.SOC(slack, cp.Constant(np.zeros((1, 2)))),
        "semidefinite": cp.bmat([[slack[1], 0.0], [0.0, slack[1]]]) >> 0,
    }[kind]
    problem = cp.Problem(cp.Minimize(cp.norm1(x)), [constraint])
    for miss in (0.0, 5e-7):  # the first row may miss so much, which is more than the second can
        wrong = at(problem, x, [10.0 - miss, 0.0])
        assert wrong.gap is None
        assert "no upper bound" in wrong.note
    right = at(problem, x, [10.0, 10.0 * (1.0 + 1e-9)])
    assert right.excess <= 1.0


def test_without_a_bound_the_violated_row_in_small_units_counts() -> None:
    """The lower of two points is the worse one, because nothing but its violation is small."""
    x = cp.Variable(2, name="x")
    problem = cp.Problem(cp.Minimize(cp.sum(x) + cp.sum_squares(x[0])), [1e-8 * x >= 1e-7])
    judge = Certifier(compile_problem(problem, numpy_backend()).composite())
    low, feasible = (np.zeros(2),), (np.full(2, 10.0),)
    assert judge.certify(low).dual is None
    for first, second in ((low, feasible), (feasible, low)):
        watch = Watch(judge, Limits(), 1.0, "test", first)
        watch.look(0, Candidate(first))
        watch.look(1, Candidate(second))
        np.testing.assert_array_equal(watch.point[0], feasible[0])


def test_the_constraint_named_is_the_worst_for_its_size() -> None:
    """A violation of 1e-3 beside a slack of 1e6 is rounding, one of 1e-5 beside nothing is not."""
    problem, x = shrinkage(lambda x: 1e6 * x <= np.array([1e6, 2e6]), lambda x: x[1] == -1.0)
    found = at(problem, x, [1.0 + 1e-9, -1.0 + 1e-5])
    assert found.max_violation == pytest.approx(1e-3, rel=1e-6)
    assert "x[1] == -1.0" in found.note
    assert "by 1.0e-05" in found.note
    assert found.gap is None
    swapped = cp.Problem(problem.objective, problem.constraints[::-1])
    again = certificate(swapped)
    assert (again.note, again.max_violation) == (found.note, found.max_violation)


@pytest.mark.parametrize(
    ("scale", "miss", "excess"),
    [
        (1e-9, 1e-6, 0.5),
        (1e-9, 4e-6, 2.0),
        (1.0, 9e-7, 0.9),
        (1.0, 1.2e-6, 1.2),
        (1e12, 1.9e-12, 0.0),
        (1e12, 4e-12, 2e6),
    ],
)
def test_what_a_pattern_cone_may_miss_is_relative_to_the_point(
    scale: float, miss: float, excess: float
) -> None:
    """The second sample's terms are ``scale`` each and cancel but for the violation ``scale * miss``.

    May be missed: a millionth of ``2 scale`` or of one, or what ``2 scale`` is rounded by. The penalty leaves
    one of the weights free, so that nobody projects on the cone.
    """
    V = cp.Variable((2, 1), name="V")
    slack = pattern_slack(np.array([[1.0, 0.0], [1.0, 1.0]]), np.ones((2, 1), dtype=bool), V)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(V - scale) + cp.norm1(V[0])), [slack >= 0])
    V.value = scale * np.array([[1.0], [-1.0 - miss]])
    found = certificate(problem)
    assert found.max_violation == pytest.approx(scale * miss, rel=1e-3)
    assert found.excess == pytest.approx(excess, rel=1e-3)
    assert ("no upper bound" in found.note) == (excess > 1.0)
    assert ("up to the violation" in found.note) == (0.0 < excess <= 1.0)


@pytest.mark.parametrize("size", [1e-12, 1.0, 1e12])
def test_what_points_out_of_its_cone_is_repaired_to_zero(size: float) -> None:
    """Rounding, as would be left of minus the mean of the cone's rows, would lie in no cone."""
    rows = np.random.default_rng(3).uniform(0.1, 1.0, (6, 4))
    V = cp.Variable((4, 1), name="V")
    slack = pattern_slack(rows, np.ones((6, 1), dtype=bool), V)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(V) + cp.norm1(V)), [slack >= 0])
    V.value = -size * rows.mean(axis=0)[:, None]
    found = certificate(problem)
    assert (found.primal, found.excess, found.repaired) == (0.0, 0.0, True)


def test_where_all_weights_are_zero_nothing_is_violated() -> None:
    V = cp.Variable((2, 1), name="V")
    slack = pattern_slack(np.array([[0.0, 0.0], [1.0, 1.0]]), np.ones((2, 1), dtype=bool), V)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(V - 1.0) + cp.norm1(V)), [slack >= 0])
    V.value = np.zeros((2, 1))
    assert certificate(problem).excess == 0.0
