"""Losses without a gradient, one row each: against CVXPY, Fenchel-Young, Moreau, and their envelopes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import cvxpy as cp
import numpy as np
import pytest
from numpy.typing import NDArray

from convexnn_solvers.backends import torch_backend
from convexnn_solvers.first_order.envelope import Envelope, Indicator, Split
from convexnn_solvers.functions.constraint_cones import (
    NONNEGATIVE,
    ZERO,
    Cone,
    NormSumCone,
    SecondOrder,
    Semidefinite,
)
from convexnn_solvers.functions.nonsmooth_losses import Maximum, Norms, Nuclear, PiecewiseLinear, Supremum

Float = NDArray[np.float64]
SHAPE = (4, 3)
ENTRIES = np.random.default_rng(1).random(SHAPE) + 0.1


class Row(NamedTuple):
    loss: Any
    atom: Callable[[Any], Any]  # the same loss in CVXPY, entry by entry or group by group
    weights: tuple[Any, ...]


LOSSES = {
    "abs": Row(PiecewiseLinear(), cp.abs, (0.3, ENTRIES)),
    "hinge": Row(PiecewiseLinear(0.0, 1.0), cp.pos, (0.3, ENTRIES)),
    "quantile": Row(PiecewiseLinear(-0.2, 0.8), lambda q: cp.maximum(-0.2 * q, 0.8 * q), (0.3, ENTRIES)),
}
GROUPS = ENTRIES[0]
LOSSES |= {
    "norm": Row(Norms(), lambda q: cp.norm(q, "fro"), (0.3,)),
    "norms of columns": Row(Norms(0), lambda q: cp.norm(q, 2, axis=0), (0.3, GROUPS)),
    "max": Row(Maximum(), cp.max, (0.3,)),
    "max of columns": Row(Maximum(0), lambda q: cp.max(q, axis=0), (0.3, GROUPS)),
    "max of rows": Row(Maximum(1), lambda q: cp.max(q, axis=1), (ENTRIES[:, 0],)),
    "norm_inf": Row(Supremum(), lambda q: cp.norm_inf(q), (0.3,)),
    "norm_inf of columns": Row(Supremum(0), lambda q: cp.norm_inf(q, axis=0), (0.3, GROUPS)),
    "nuclear": Row(Nuclear(), cp.normNuc, (0.3,)),
}
CASES = [pytest.param(row, np.asarray(w), id=name) for name, row in LOSSES.items() for w in row.weights]


def samples(seed: int) -> list[Float]:
    """Random points of several magnitudes, integers (ties), and zero."""
    rng = np.random.default_rng(seed)
    ties = rng.integers(-2, 3, SHAPE).astype(np.float64)
    return [np.zeros(SHAPE), ties, *(10.0**k * rng.standard_normal(SHAPE) for k in range(-2, 2))]


def steps(loss: Any, seed: int) -> Float:
    return np.asarray(loss.even(np.exp2(np.random.default_rng(seed).integers(-2, 3, SHAPE))))


@pytest.mark.parametrize(("row", "weight"), CASES)
def test_value_is_that_of_the_atom(row: Row, weight: Any) -> None:
    for q in samples(0):
        expected = np.sum(weight * row.atom(cp.Constant(q)).value)
        assert float(row.loss.value(q, weight, np)) == pytest.approx(float(expected), rel=1e-12, abs=1e-12)


@pytest.mark.parametrize(("row", "weight"), CASES)
def test_subgradient_lies_below_and_in_the_domain(row: Row, weight: Any) -> None:
    for q in samples(1):
        g = row.loss.gradient(q, weight, np)
        value, near = float(row.loss.value(q, weight, np)), row.loss.nearest(g, weight)
        np.testing.assert_allclose(near, g, rtol=1e-13, atol=1e-16)
        assert value == pytest.approx(
            float(np.sum(g * q)) - row.loss.conjugate(near, weight), rel=1e-12, abs=1e-13
        )
        for z in samples(2):
            below = value + float(np.sum(g * (z - q)))
            assert float(row.loss.value(z, weight, np)) >= below - 1e-12 * (1.0 + abs(below))


@pytest.mark.parametrize(("row", "weight"), CASES)
def test_prox_satisfies_fenchel_young(row: Row, weight: Any) -> None:
    """``v = (q - z) / step`` lies in the domain and makes the inequality of Fenchel and Young an equality."""
    step = steps(row.loss, 3)
    for q in samples(4):
        z = row.loss.prox(q, weight, step, np)
        v = (q - z) / step
        near = row.loss.nearest(v, weight)
        np.testing.assert_allclose(near, v, rtol=1e-10, atol=1e-12)
        both = float(row.loss.value(z, weight, np)) + row.loss.conjugate(near, weight)
        assert both == pytest.approx(float(np.sum(v * z)), rel=1e-10, abs=1e-10)


@pytest.mark.parametrize(("row", "weight"), CASES)
def test_nearest_is_the_projection_on_the_domain(row: Row, weight: Any) -> None:
    """In the domain, of finite conjugate, and at an obtuse angle to everything else in there."""
    others = [row.loss.nearest(z, weight) for z in samples(5)]
    for v in samples(6):
        near = row.loss.nearest(v, weight)
        assert np.isfinite(row.loss.conjugate(near, weight))
        np.testing.assert_allclose(row.loss.nearest(near, weight), near, rtol=1e-12, atol=1e-13)
        for other in others:
            assert float(np.sum((v - near) * (other - near))) <= 1e-10 * (1.0 + float(np.sum(v * v)))
        outside = near + 1.1 * (v - near)
        if np.max(np.abs(outside - near)) > 1e-9:
            assert row.loss.conjugate(outside, weight) == np.inf


@pytest.mark.parametrize(("row", "weight"), CASES)
def test_torch_agrees(row: Row, weight: Any) -> None:
    pytest.importorskip("torch")
    backend = torch_backend()
    there, step = backend.asarray(weight), steps(row.loss, 7)
    for q in samples(8):
        moved = row.loss.prox(backend.asarray(q), there, backend.asarray(step), backend.xp)
        np.testing.assert_allclose(backend.to_numpy(moved), row.loss.prox(q, weight, step, np), atol=1e-12)
        value = float(row.loss.value(backend.asarray(q), there, backend.xp))
        assert value == pytest.approx(float(row.loss.value(q, weight, np)), rel=1e-12, abs=1e-12)
        gradient = row.loss.gradient(backend.asarray(q), there, backend.xp)
        np.testing.assert_allclose(backend.to_numpy(gradient), row.loss.gradient(q, weight, np), atol=1e-12)


CONES: dict[str, Cone] = {
    "zero": ZERO,
    "nonneg": NONNEGATIVE,
    "second-order columns": SecondOrder(0),
    "second-order rows": SecondOrder(1),
}


@pytest.mark.parametrize("cone", CONES.values(), ids=CONES)
def test_projections_on_a_cone_and_its_dual(cone: Cone) -> None:
    """Moreau: ``s = P(s) - D(-s)``, the two orthogonal; a violation is what the projection removes."""
    for s in samples(9):
        inside, dual = cone.project(s, np), cone.nearest_dual(-s)
        np.testing.assert_allclose(inside - dual, s, rtol=1e-12, atol=1e-12)
        assert float(np.sum(inside * dual)) == pytest.approx(0.0, abs=1e-10 * (1.0 + float(np.sum(s * s))))
        assert float(cone.violations(inside).max()) <= 1e-12 * (1.0 + float(np.abs(s).max()))
        far = float(np.linalg.norm(s - inside))
        assert far / np.sqrt(s.size) - 1e-12 <= float(cone.violations(s).max()) <= 2.0 * far + 1e-12


@pytest.mark.parametrize("size", [1, 2, 4])
def test_the_cone_of_a_sum_of_norms(size: int) -> None:
    """Moreau, on vectors; the dual cone is that of the largest norm."""
    cone = NormSumCone(size)
    for s in (z.ravel() for z in samples(9)):
        s = s[: 1 + (s.size - 1) // size * size]
        inside, dual = cone.project(s, np), cone.nearest_dual(-s)
        np.testing.assert_allclose(inside - dual, s, rtol=1e-12, atol=1e-12)
        assert float(np.sum(inside * dual)) == pytest.approx(0.0, abs=1e-10 * (1.0 + float(s @ s)))
        assert float(cone.violations(inside).max()) <= 1e-12 * (1.0 + float(np.abs(s).max()))
        norms = np.linalg.norm(dual[1:].reshape(-1, size), axis=1)
        assert norms.max() <= dual[0] * (1.0 + 1e-12) + 1e-12


def test_the_semidefinite_cone() -> None:
    """Only the symmetric part counts, and dual matrices are symmetric."""
    cone, rng = Semidefinite(), np.random.default_rng(0)
    for scale in (0.1, 1.0, 30.0):
        s = scale * rng.standard_normal((4, 4))
        inside, dual = cone.project(s, np), cone.nearest_dual(-s)
        np.testing.assert_allclose(inside - dual, s, atol=1e-12 * scale)
        np.testing.assert_allclose(dual, dual.T, atol=1e-13 * scale)
        assert float(np.sum(inside * dual)) == pytest.approx(0.0, abs=1e-11 * scale**2)
        assert float(cone.violations(inside).max()) <= 1e-13 * scale
        assert float(cone.violations(s).max()) == pytest.approx(float(-np.linalg.eigvalsh((s + s.T) / 2)[0]))


SPLITS: list[Any] = [
    *(pytest.param(row.loss, np.asarray(row.weights[0]), id=name) for name, row in LOSSES.items()),
    *(pytest.param(Indicator(cone), np.asarray(1.0), id=name) for name, cone in CONES.items()),
]


@pytest.mark.parametrize(("term", "weight"), SPLITS)
def test_envelopes_are_consistent(term: Split, weight: Any) -> None:
    """Gradient against differences, the Bregman formula against its definition, and the multipliers."""
    rng = np.random.default_rng(0)
    rows = np.asarray(term.even(np.exp2(rng.integers(-1, 2, SHAPE))))
    envelope = Envelope(term, weight, rng.standard_normal(SHAPE), rows)
    delta = np.asarray(1.7)
    for old in samples(10)[2:]:
        new = old + rng.standard_normal(SHAPE)
        gradient = envelope.gradient(old, delta, np)
        h = 1e-6 * rng.standard_normal(SHAPE)
        slope = envelope.value(old + h, delta, np) - envelope.value(old - h, delta, np)
        assert float(slope) == pytest.approx(2.0 * float(np.sum(h * gradient)), rel=1e-4, abs=1e-11)
        definition = envelope.value(new, delta, np) - envelope.value(old, delta, np)
        definition = float(definition - np.sum(gradient * (new - old)))
        assert float(envelope.bregman(new, old, delta, np)) == pytest.approx(definition, rel=1e-9, abs=1e-11)
        np.testing.assert_allclose(rows * envelope.updated(old, delta, np), -gradient, atol=1e-13)
        change = envelope.gradient(new, delta, np) - gradient
        assert np.linalg.norm(change) <= 1.7 * envelope.curvature * np.linalg.norm(new - old) * (1 + 1e-12)


@pytest.mark.parametrize(("term", "weight"), SPLITS)
@pytest.mark.parametrize("size", [1e-1, 1e-3, 1e-5, 1e-7, 1e-9])
def test_bregman_distances_of_short_steps_are_no_rounding(term: Split, weight: Any, size: float) -> None:
    """They lie between the two bounds of any convex function with such a gradient, however short the step.

    Rounding above the upper one would shorten the steps of R-FISTA without end.
    """
    rng = np.random.default_rng(0)
    rows = np.asarray(term.even(np.exp2(rng.integers(-1, 2, SHAPE))))
    envelope = Envelope(term, weight, rng.standard_normal(SHAPE), rows)
    delta = np.asarray(1.7)
    lipschitz = 1.7 * envelope.curvature
    for old in samples(10)[2:]:
        new = old + size * rng.standard_normal(SHAPE)
        change = envelope.gradient(new, delta, np) - envelope.gradient(old, delta, np)
        distance = float(envelope.bregman(new, old, delta, np))
        assert distance >= float(np.sum(change**2)) / (2.0 * lipschitz) * (1.0 - 1e-5)
        assert distance <= 0.5 * lipschitz * float(np.sum((new - old) ** 2)) * (1.0 + 1e-5)
