"""What it costs a bound to move a dual direction onto sums that rounding misses, worked out by hand."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from dense_map import DenseMap
from numpy.typing import NDArray

from convexnn_solvers.backends import numpy_backend
from convexnn_solvers.certify.dual_norms import DualNorms
from convexnn_solvers.certify.thin_domains import ThinDomains
from convexnn_solvers.composite import Composite, LossTerm, PenaltyTerm, VariableBlock
from convexnn_solvers.functions.losses import LogSumExp, Loss, SumSquares
from convexnn_solvers.functions.nonsmooth_losses import Maximum
from convexnn_solvers.functions.penalties import AbsoluteValue
from convexnn_solvers.functions.tilted import Tilted

Float = NDArray[np.float64]
EPS = float(np.finfo(np.float64).eps)
LAM = 1e-3
# Sums to one only where 0.1, 0.2 and 0.7 do.
ONE = np.array([0.1, 0.2, 0.7])
MISSED = float(1 - sum(map(Fraction, ONE)))
OFFSET = np.array([1.0, -2.0, 0.5])


def moves(*losses: Loss) -> ThinDomains:
    """Those of losses of the same three variables, in an l1 norm of weight LAM."""
    shape = (3,)
    composite = Composite(
        backend=numpy_backend(),
        variables=(VariableBlock(0, shape, "x"),),
        affine=DenseMap(tuple((np.eye(3),) for _ in losses), tuple(OFFSET for _ in losses), (shape,)),
        losses=tuple(LossTerm(loss, 1.0, "loss") for loss in losses),
        penalties=(PenaltyTerm(AbsoluteValue(), np.asarray(LAM), 0, np.asarray, np.asarray, "l1"),),
        constraints=(),
        linear=(np.zeros(shape),),
        constant=0.0,
        sign=1.0,
        scope="",
    )
    return ThinDomains(composite, DualNorms(composite), tuple(OFFSET for _ in losses))


@pytest.mark.parametrize("loss", [LogSumExp(), Maximum()], ids=["log_sum_exp", "max"])
@pytest.mark.parametrize("fixed", [False, True])
def test_a_sum_missed_by_rounding_moves_the_direction_by_its_share(loss: Loss, fixed: bool) -> None:
    """Every entry grows by its share of what is missed, the largest by 0.7 of it; zero does not move."""
    image = (np.zeros(3),)
    assert abs(MISSED) >= EPS / 8.0
    for theta, share in ((-ONE, 0.7), (-ONE[[0, 2, 1]], 0.7)):
        found = moves(loss).in_image((theta,), image, fixed)
        assert found == pytest.approx(share * abs(MISSED) / LAM, rel=1e-9, abs=0.0)
    assert moves(loss).in_image((-np.array([0.25, 0.25, 0.5]),), image, fixed) == 0.0


def test_moves_of_several_losses_add_up_and_others_do_not_move() -> None:
    image = (np.zeros(3),)
    thetas = (-ONE, np.array([1.0, 3.0, -1.0]), -ONE)
    found = moves(LogSumExp(), SumSquares(), Maximum()).in_image(thetas, image, True)
    assert found == pytest.approx(1.4 * abs(MISSED) / LAM, rel=1e-9, abs=0.0)
    exact = -np.array([0.25, 0.25, 0.5])
    assert moves(SumSquares(), LogSumExp()).in_image((-ONE, exact), image, True) == 0.0
    assert moves(SumSquares()).in_image((-ONE,), image, False) == 0.0
    assert moves(Tilted(SumSquares(), ONE)).in_image((-ONE,), image, False) == 0.0


@pytest.mark.parametrize(("fixed", "size"), [(True, 0.0), (False, 0.0), (False, 2.0)])
def test_directions_that_may_be_scaled_pay_for_the_move_of_zero_too(fixed: bool, size: float) -> None:
    """Of ``log_sum_exp(q) - <ONE, q>`` zero is such a point itself; the move grows with the image."""
    image = (np.array([size * LAM, 0.0, -LAM]),)
    theta, loss = np.array([0.1, 0.2, -0.3]), Tilted(LogSumExp(), -ONE)
    direction, zero = (float(np.abs(loss.shift(v, 1.0)).max()) / LAM for v in (-theta, np.zeros(3)))
    assert direction != zero
    assert min(direction, zero) >= 0.7 * abs(MISSED)
    found = moves(loss).in_image((theta,), image, fixed)
    expected = direction if fixed else direction + zero * (1.0 + max(size, 1.0))
    assert found == pytest.approx(expected, rel=1e-12, abs=0.0)


@pytest.mark.parametrize("scale", [1.0, 0.5])
@pytest.mark.parametrize("others", ["none", "before", "after"])
def test_the_value_pays_for_moves_along_the_offsets(scale: float, others: str) -> None:
    """Sums of three are off by 14 eps at most; entropies change by their share of it, on three entries."""
    losses: list[Any] = [LogSumExp()]
    thetas = [-ONE]
    if others != "none":
        at = 0 if others == "before" else 1
        losses.insert(at, SumSquares())
        thetas.insert(at, np.full(3, 9.0))
    found = moves(*losses).in_value(tuple(thetas), scale, -5.0)
    slack = 2.0 * (3 + 4) * EPS
    along = float(np.sum(scale * ONE * (np.abs(OFFSET) + 2.0)))
    assert found == pytest.approx(slack * along + slack * 5.0, rel=1e-12, abs=0.0)
    assert moves(SumSquares()).in_value((-ONE,), scale, 5.0) == 0.0


def test_what_is_missed_is_missed_on_the_side_of_the_conjugate() -> None:
    """A tilt tells one sign from the other."""
    loss, theta = Tilted(LogSumExp(), -ONE), np.array([0.5, -0.25, 0.125])
    expected = float(np.sum(loss.missed(-theta) * (np.abs(OFFSET) + 2.0)))
    assert moves(loss).in_value((theta,), 1.0, 0.0) == pytest.approx(expected, rel=1e-12, abs=0.0)
    assert expected != pytest.approx(
        float(np.sum(loss.missed(theta) * (np.abs(OFFSET) + 2.0))), rel=1e-3, abs=0.0
    )
