"""Dual points that Newton's method makes feasible: with and without projections, and from warm starts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from newton_programs import program
from numpy.typing import NDArray

from convexnn_solvers.gated_programs.program import GatedProgram, block_norms
from convexnn_solvers.newton import dual_newton
from convexnn_solvers.newton.blocks import ConeProx
from convexnn_solvers.newton.copies import residual_copy
from convexnn_solvers.newton.dual_newton import DualNewton
from convexnn_solvers.newton.duals import best_multiple, multiple_at_proximal_point, warm_multiple
from convexnn_solvers.newton.position import Position
from convexnn_solvers.newton.start import NewtonStart

Float = NDArray[np.float64]


@pytest.mark.parametrize("cones", [False, True])
def test_multiples_of_a_direction_are_feasible_and_as_large_as_they_can_be(cones: bool) -> None:
    data, rng = program(cones), np.random.default_rng(11)
    xi = -data.fit.at(np.zeros((24, 1))).xi
    for direction in (-xi, rng.standard_normal((24, 1)) - 0.5 * xi):
        products = data.by_block(data.adjoint(direction))
        found = best_multiple(data, direction, products, ConeProx(data) if cones else None)
        exact = ConeProx(data).project(-products, np.arange(data.blocks)) if cones else products
        largest = found.scale * float(np.max(block_norms(exact) / data.weights))
        assert largest <= 1.0 + 1e-12
        wanted = data.fit.wanted_scale(direction)
        assert found.scale == pytest.approx(wanted) or largest == pytest.approx(1.0)
        assert found.value == pytest.approx(-data.fit.conjugate(found.scale * direction))


@pytest.mark.parametrize("outputs", [1, 2])
def test_multiples_at_a_proximal_point_are_feasible_wherever_it_is(outputs: int) -> None:
    """Also where blocks of the point are long, many of them leave, and projections were cut short."""
    data, rng = program(cones=True, outputs=outputs), np.random.default_rng(13)
    residual = data.fit.at(np.zeros(data.fit.shape)).xi
    left = 0
    for sigma, size in ((0.1, 1.0), (1.0, 0.01), (10.0, 1.0), (10.0, 0.0)):
        cones = ConeProx(data)
        for _ in range(3):  # from the second on the cones remember
            xi = residual + 0.3 * rng.standard_normal(data.fit.shape)
            U = size * rng.standard_normal(data.point_shape) * (rng.random(data.blocks) < 0.5)
            at = Position(data, data.features(slice(None)), cones, residual_copy(data.fit))
            at.U, at.xi, at.sigma = U, xi, sigma
            at.find(data.adjoint(xi))
            left += at.left().size
            products = data.by_block(at.products)
            found = multiple_at_proximal_point(data, xi, products, cones, at.active.blocks, at.left())
            exact = ConeProx(data).project(-found.scale * products, np.arange(data.blocks))
            assert np.max(block_norms(exact) / data.weights) <= 1.0 + 1e-12
            assert found.scale > 0.0
            assert found.value == pytest.approx(-data.fit.conjugate(found.scale * xi))
    assert left > 0


def test_multiples_at_an_optimum_are_the_best() -> None:
    data = program(cones=True)
    solved = DualNewton(data)
    while not solved.gap <= 1e-10 and solved.newton_steps < 200:
        solved.step(1e-10)
    cones = ConeProx(data)
    at = Position(data, data.features(slice(None)), cones, residual_copy(data.fit))
    at.U, at.xi, at.sigma = solved.point, -solved.dual_point, 1.0
    at.find(data.adjoint(at.xi))
    products = data.by_block(at.products)
    found = multiple_at_proximal_point(data, at.xi, products, cones, at.active.blocks, at.left())
    best = best_multiple(data, at.xi, products, ConeProx(data))
    assert at.active.blocks.size > 0
    assert found.scale == pytest.approx(best.scale, rel=1e-6)


@pytest.mark.parametrize("cones", [False, True])
def test_the_dual_point_of_other_weights_is_scaled_to_these(cones: bool) -> None:
    data = program(cones)
    solved = DualNewton(data)
    while not solved.gap <= 1e-12 and solved.newton_steps < 200:
        solved.step(1e-12)
    prediction = data.forward(solved.point)
    scale = warm_multiple(data, solved.point, prediction, solved.xi / 0.7, lambda: 0.5)
    assert scale == pytest.approx(0.7, rel=1e-5)
    assert warm_multiple(data, 0.0 * solved.point, 0.0 * prediction, solved.xi, lambda: 0.5) == 0.5
    assert warm_multiple(data, solved.point, prediction, -solved.xi, lambda: 0.5) == 0.5
    assert warm_multiple(data, solved.point, prediction, -solved.xi, lambda: 0.0) == 1.0


@pytest.mark.parametrize("cones", [False, True])
def test_no_direction_is_made_feasible_twice(cones: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With cones that takes projections; a warm start tries the dual point that it is given, scaled."""
    tried: list[Float] = []

    def noted(make: Callable[..., Any]) -> Callable[..., Any]:
        def noting(data: GatedProgram, xi: Float, *others: Any) -> Any:
            tried.append(xi / np.linalg.norm(xi))
            return make(data, xi, *others)

        return noting

    for made in (best_multiple, multiple_at_proximal_point):
        monkeypatch.setattr(dual_newton, made.__name__, noted(made))
    start, data = None, program(cones)
    for share in (1.0, 0.97):
        data = replace(data, weights=share * data.weights)
        solved = DualNewton(data, start=start)
        while not solved.gap <= 1e-9 and solved.newton_steps < 100:
            solved.step(1e-9)
        assert solved.gap <= 1e-9
        start = NewtonStart(solved.point, solved.xi)
        assert len(tried) > 1
        assert all(np.linalg.norm(a - b) > 1e-14 for a, b in pairwise(tried))
        tried.clear()
