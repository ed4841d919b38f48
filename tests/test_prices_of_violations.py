"""What violations may have saved counts against `optimal`: small units are no licence to miss constraints.

Every row misses a homogeneous constraint by a thousandth of the point, and is off along the constraint by
as much as makes its objective the optimum's: the gap alone is zero.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import cvxpy as cp
import numpy as np
import pytest
from numpy.typing import NDArray

from convexnn_solvers.backends import numpy_backend
from convexnn_solvers.certify.certificate import Certificate, Certifier
from convexnn_solvers.certify.dual_values import held_multipliers
from convexnn_solvers.composite import Composite, DualPoint
from convexnn_solvers.gaps import relative_price
from convexnn_solvers.loop.watch import Candidate, Limits, Watch
from convexnn_solvers.reading.compiler import compile_problem
from convexnn_solvers.status import Status

Float = NDArray[np.float64]

TIGHT = {"tol_gap_abs": 1e-12, "tol_gap_rel": 1e-12, "tol_feas": 1e-12}
TARGET = np.array([2.0, 5.0, 1.0, 1.0])
MISS = 1e-3
CONES = ["equality", "inequality", "second-order", "semidefinite"]
UNITS = [1e-8, 1e-5, 1e-4]


class _Row(NamedTuple):
    """In units of one: the optimum, its dual point, and a point outside of the same objective."""

    optimum: Float
    dual: DualPoint
    outside: Float


def _problem(cone: str, unit: float) -> tuple[cp.Problem, cp.Variable]:
    """min 1/2 ||x - target||^2 + 0.1 ||x||_1, its constraint active, in units of ``unit``."""
    x = cp.Variable(4, name="x")
    constraint: Any = {
        "equality": x[0] - x[1] == 0.0,
        "inequality": x[0] - x[1] >= 0.0,
        "second-order": cp.SOC(x[0], x[1:3]),
        "semidefinite": cp.bmat([[x[0], x[1]], [x[1], x[2]]]) >> 0,
    }[cone]
    cost = cp.sum_squares(x - unit * TARGET) / 2 + 0.1 * unit * cp.norm1(x)
    return cp.Problem(cp.Minimize(cost), [constraint]), x


def _composite(cone: str, unit: float) -> Composite:
    return compile_problem(_problem(cone, unit)[0], numpy_backend()).composite()


def _row(cone: str) -> _Row:
    problem, x = _problem(cone, 1.0)
    problem.solve(solver=cp.CLARABEL, **TIGHT)
    best = np.asarray(x.value, dtype=np.float64)
    composite = compile_problem(problem, numpy_backend()).composite()
    certifier = Certifier(composite)
    dual = certifier.certify((best,), [DualPoint((), held_multipliers(problem, composite))]).dual_point
    assert dual is not None
    value = certifier.objective((best,))
    missed = best + MISS * np.array([0.0, 1.0, 0.0, 0.0])
    inside, outside = 0.0, 1.0  # the last entry is in no constraint: it is wrong by what the others save
    for _ in range(100):
        middle = 0.5 * (inside + outside)
        lower = certifier.objective((missed + np.array([0.0, 0.0, 0.0, middle]),)) < value
        inside, outside = (middle, outside) if lower else (inside, middle)
    assert inside > 0.0
    return _Row(best, dual, missed + np.array([0.0, 0.0, 0.0, inside]))


ROWS = {cone: _row(cone) for cone in CONES}


def _scaled(dual: DualPoint, unit: float) -> DualPoint:
    multipliers = tuple(None if mu is None else unit * mu for mu in dual.multipliers)
    return DualPoint(tuple(unit * theta for theta in dual.thetas), multipliers)


def _at(cone: str, unit: float, point: Float) -> tuple[Status | None, Certificate]:
    """What the loop says to the point, and its certificate."""
    certifier = Certifier(_composite(cone, unit))
    dual = _scaled(ROWS[cone].dual, unit)
    watch = Watch(certifier, Limits(tol=1e-5), 1.0, "a table", (unit * point,))
    status = watch.look(1, Candidate((unit * point,), (dual,)))
    return status, certifier.certify((unit * point,), [dual])


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("cone", CONES)
def test_what_a_point_owes_to_violations_is_not_optimal(cone: str, unit: float) -> None:
    status, found = _at(cone, unit, ROWS[cone].outside)
    assert found.relative_gap is not None
    assert abs(found.relative_gap) < 1e-6  # by the gap alone it would pass
    assert status is None
    assert found.price > 1e-5 * abs(found.primal)
    assert not found.within(1e-5)
    assert found.within(1e-2)


@pytest.mark.parametrize("unit", [*UNITS, 1.0, 1e5])
@pytest.mark.parametrize("cone", CONES)
def test_optima_pay_nothing_in_any_units(cone: str, unit: float) -> None:
    status, found = _at(cone, unit, ROWS[cone].optimum)
    assert status is Status.OPTIMAL
    assert found.within(1e-5)


@pytest.mark.parametrize("cone", CONES)
def test_prices_are_in_the_units_of_the_objective(cone: str) -> None:
    prices = [_at(cone, unit, ROWS[cone].outside)[1].price / unit**2 for unit in (*UNITS, 1.0)]
    np.testing.assert_allclose(prices, prices[-1], rtol=1e-6)


@pytest.mark.parametrize("cone", CONES)
def test_with_its_price_no_point_is_below_the_bound(cone: str) -> None:
    rng = np.random.default_rng(0)
    certifier = Certifier(_composite(cone, 1.0))
    for _ in range(20):
        point = ROWS[cone].optimum + rng.standard_normal(4) * np.power(10.0, rng.uniform(-6.0, 0.0))
        found = certifier.certify((point,), [ROWS[cone].dual])
        assert found.dual is not None
        assert found.primal + found.price >= found.dual


@pytest.mark.parametrize(
    ("price", "primal", "dual", "rounding", "relative"),
    [
        (0.0, 0.0, 0.0, 0.0, 0.0),
        (1.0, -4.0, 2.0, 0.0, 0.25),
        (1.0, 4.0, 2.0, 1.0, 0.0),
        (2.0, 4.0, 2.0, 1.0, 0.5),
        (1e-3, 0.0, 0.0, 0.0, 1.0),
        (3.0, 0.0, 1e-301, 0.0, 3.0),
    ],
)
def test_a_price_has_the_unit_of_the_relative_gap(
    price: float, primal: float, dual: float, rounding: float, relative: float
) -> None:
    assert relative_price(price, primal, dual, rounding) == relative


def test_what_violations_are_worth_is_printed_where_it_is_more_than_rounding() -> None:
    shown = {
        price: str(Certificate(1.0, 0.5, 0.5, 0.5, 1e-7, "for all", price=price)) for price in (0.0, 0.25)
    }
    assert "max violation 1.0e-07 (worth up to 2.5e-01)" in shown[0.25]
    assert "worth" not in shown[0.0]
