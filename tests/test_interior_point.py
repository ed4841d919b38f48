"""The parts of the interior-point method against their definitions, written out densely."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.linalg import lapack

from convexnn_solvers.gated_programs.fits import LogisticFit, SquaredFit
from convexnn_solvers.gated_programs.program import GatedProgram
from convexnn_solvers.interior_point import system
from convexnn_solvers.interior_point.iteration import InteriorPoint
from convexnn_solvers.interior_point.second_order import longest_step, product, quotient, scaling
from convexnn_solvers.interior_point.system import StepSystem, image, products
from convexnn_solvers.newton.start import kept_features

Float = NDArray[np.float64]
D, B = 3, 7


def inside(seed: int, margin: float = 1.0) -> Float:
    """Points inside the cones, as close to their boundaries as ``margin`` says."""
    u = np.random.default_rng(seed).standard_normal((D, B))
    return np.vstack([np.linalg.norm(u, axis=0) * (1.0 + margin), u])


def arrow(x: Float) -> Float:
    """The matrix of the product with x."""
    matrix: Float = x[0] * np.eye(len(x))
    matrix[0, 1:] = matrix[1:, 0] = x[1:]
    return matrix


def test_products_are_those_of_arrow_matrices_and_quotients_undo_them() -> None:
    x, y = inside(0), np.random.default_rng(1).standard_normal((1 + D, B))
    dense = np.stack([arrow(x[:, b]) @ y[:, b] for b in range(B)], axis=1)
    np.testing.assert_allclose(product(x, y), dense, rtol=1e-13, atol=1e-13)
    np.testing.assert_allclose(product(x, quotient(x, y)), y, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("margin", [1.0, 1e-3, 1e-9])
def test_the_scaling_takes_the_two_points_to_one(margin: float) -> None:
    s, z = inside(0, margin), 1e-6 * inside(1, margin)
    found = scaling(s, z)
    np.testing.assert_allclose(found.times(z), found.inverse(s), rtol=1e-4 if margin < 1e-6 else 1e-9)
    np.testing.assert_allclose(found.inverse(found.times(z)), z, rtol=1e-6, atol=1e-12)


def test_parts_of_the_inverse_square_are_its_own() -> None:
    found = scaling(inside(0), inside(1))
    columns = [
        found.inverse(found.inverse(np.repeat(np.eye(1 + D)[:, [k]], B, axis=1))) for k in range(1 + D)
    ]
    square = np.stack(columns, axis=1)  # (row, column, B)
    np.testing.assert_allclose(found.corner, square[0, 0], rtol=1e-12)
    np.testing.assert_allclose(found.mixed, square[1:, 0], rtol=1e-12, atol=1e-14)
    left = square[1:, 1:] - square[1:, :1] * square[:1, 1:] / square[0, 0]
    roots = found.root
    np.testing.assert_allclose(roots @ roots, left.transpose(2, 0, 1), rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("seed", range(6))
def test_the_longest_step_ends_on_the_boundary(seed: int) -> None:
    x, step = inside(seed), np.random.default_rng(100 + seed).standard_normal((1 + D, B))

    def slack(length: float) -> float:
        moved = x + length * step
        return float(np.min(moved[0] - np.linalg.norm(moved[1:], axis=0)))

    length = longest_step(x, step)
    assert np.isfinite(length)
    assert slack(length) == pytest.approx(0.0, abs=1e-12)
    assert slack(0.999 * length) > 0.0
    assert slack(1.001 * length) < 0.0


@pytest.mark.parametrize(
    ("step", "length"),
    [
        ([1.0, 0.0, 0.0, 0.0], np.inf),
        ([1.0, 1.0, 0.0, 0.0], np.inf),
        ([-1.0, 0.0, 0.0, 0.0], 2.0),
        ([0.0, 1.0, 0.0, 0.0], 2.0),
        ([-1.0, -1.0, 0.0, 0.0], 1.0),
        ([0.0, 0.0, 0.0, 0.0], np.inf),
    ],
)
def test_steps_that_are_known(step: list[float], length: float) -> None:
    x = np.array([[2.0], [0.0], [0.0], [0.0]])
    with np.errstate(all="raise"):
        assert longest_step(x, np.array(step)[:, None]) == pytest.approx(length)


def small_program(centred: bool = False, signs: tuple[float, ...] = (1.0, -1.0)) -> GatedProgram:
    rng = np.random.default_rng(3)
    X = rng.standard_normal((20, D))
    patterns = X @ rng.standard_normal((D, 5)) >= 0.0
    fit = SquaredFit(np.abs(X @ rng.standard_normal((D, 1))) / 5.0, centred)
    weights = np.full(5 * len(signs), 1e-3)
    return GatedProgram(X / 5.0, patterns, fit, weights, signs, cones=len(signs) == 2)


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("spread", [0.0, 12.0, 40.0], ids=["even", "uneven", "beyond a double"])
@pytest.mark.parametrize("entries", [4_000_000, 130], ids=["at once", "in parts"])
@pytest.mark.parametrize("by_roots", [False, True])
def test_a_step_solves_its_system(
    spread: float, centred: bool, entries: int, by_roots: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where Cholesky's method fails, as it may where slacks and multipliers are far apart."""
    monkeypatch.setattr(system, "_CHUNK_ENTRIES", entries)
    if by_roots:
        monkeypatch.setattr(lapack, "dpotrf", lambda matrix, **_: (matrix, 1))
    program = small_program(centred)
    features, rng = kept_features(program), np.random.default_rng(0)
    n, blocks = program.fit.shape[0], program.blocks
    ratios = 10.0 ** rng.uniform(-spread / 2.0, 0.0, (n, blocks))
    roots = np.broadcast_to(np.eye(D) * 10.0 ** (-spread / 4.0), (blocks, D, D))
    g, f = rng.standard_normal((n, 1)), rng.standard_normal((D, blocks))
    if centred:
        g -= g.mean()
    xi, U = StepSystem(program, features, program.X, ratios, roots, np.ones((n, 1))).solve(g, f)
    H = np.einsum("ni,nb,nj->bij", program.X, ratios, program.X) + roots @ roots
    first = xi - image(program, features, U) - g
    first -= first.mean() if centred else 0.0
    second = products(program, features, xi) + np.einsum("bij,jb->ib", H, U) - f
    size = 1.0 + np.abs(U).max()
    assert np.abs(first).max() <= 1e-13 * size
    assert np.abs(second).max() <= 1e-7 * np.abs(f).max() * max(1.0, np.abs(xi).max())
    if centred:
        assert abs(float(xi.sum())) <= 1e-12 * size


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("signs", [(1.0,), (1.0, -1.0)], ids=["gated", "relu"])
def test_what_it_packed_goes_on_with_the_same_bits(signs: tuple[float, ...], centred: bool) -> None:
    program = small_program(centred, signs)
    first = InteriorPoint(program)
    for _ in range(11):
        first.step(0.0)
    second = InteriorPoint(small_program(centred, signs), first.packed())
    for method in (first, second):
        while method.gap > 1e-9 and not method.stalled:
            method.step(1e-9)
    assert first.steps == second.steps
    assert first.primal == second.primal
    assert first.dual == second.dual
    np.testing.assert_array_equal(first.point, second.point)
    assert first.gap <= 1e-9
    first.look_again()
    assert first.gap <= 1.1e-9


def test_losses_other_than_squares_are_solved_too_where_their_weights_are_larger() -> None:
    """The linearisation is in terms of any conjugate, though Auto takes it for squares alone."""
    program = small_program()
    signs = np.where(np.arange(20)[:, None] % 2 == 0, 1.0, -1.0)
    method = InteriorPoint(replace(program, fit=LogisticFit(signs, np.zeros((20, 1)))))
    while method.gap > 1e-6 and not method.stalled:
        method.step(1e-6)
    assert method.gap <= 1e-6


def test_steps_that_cannot_be_solved_end_the_method() -> None:
    """Cones that are a point have no inside: it says that it is stuck, and what it has is what it proves."""
    program = small_program()
    X = np.vstack([program.X, -program.X])
    patterns = np.vstack([program.patterns, program.patterns])
    fit = SquaredFit(np.vstack([program.fit.at(np.zeros((20, 1))).xi] * 2))
    method = InteriorPoint(replace(program, X=X, patterns=patterns, fit=fit))
    while method.gap > 1e-12 and not method.stalled:
        method.step(1e-12)
    assert method.primal >= method.dual
    assert method.gap <= 1e-12 or method.stalled
