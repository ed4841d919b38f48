"""Roots of quadratic forms whose eigenvalues differ by many powers of ten, judged in exact arithmetic."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
from numpy.typing import NDArray

from convexnn_solvers.certify.certificate import certificate
from convexnn_solvers.reading.quadratic_root import quadratic_root

Float = NDArray[np.float64]
SPECTRA: dict[str, list[float]] = {
    "one small": [1.0, 0.5, 1e-9],
    "smaller": [1.0, 0.5, 1e-12],
    "small ones alike": [2.0, 1.1e-9, 1e-9, 1.05e-9],
    "graded": [1e4, 1.0, 1e-4, 1e-8],
    "even": [1.0, 0.9, 0.8],
}


def form(name: str, seed: int, unit: float = 1.0) -> tuple[Float, Float]:
    """A matrix of these eigenvalues and the eigenvector of the smallest."""
    values = np.array(SPECTRA[name])
    Q = np.linalg.qr(np.random.default_rng(seed).standard_normal((values.size, values.size)))[0]
    P = (Q * (unit * values)) @ Q.T
    return (P + P.T) / 2.0, Q[:, int(np.argmin(values))]


def exact_solution(P: Float, c: Float) -> list[Fraction]:
    """``P^-1 c`` by elimination in rational numbers."""
    rows = [[Fraction(float(v)) for v in (*row, b)] for row, b in zip(P, c, strict=True)]
    for k, pivot in enumerate(rows):
        rows[k] = [v / pivot[k] for v in pivot]
        for i, row in enumerate(rows):
            if i != k:
                rows[i] = [a - row[k] * b for a, b in zip(row, rows[k], strict=True)]
    return [row[-1] for row in rows]


def exact_value(P: Float, c: Float) -> float:
    """``c^T P^-1 c``."""
    return float(sum(Fraction(float(a)) * b for a, b in zip(c, exact_solution(P, c), strict=True)))


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("unit", [1.0, 2.0**-300, 3e100])
def test_small_eigenvalues_are_as_exact_as_large_ones(name: str, unit: float) -> None:
    for seed in range(10):
        P, c = form(name, seed, unit)
        F = quadratic_root(P)
        assert F is not None
        assert F.shape == P.shape
        np.testing.assert_allclose(F.T @ F, P, rtol=0.0, atol=1e-14 * np.abs(P).max())
        own = np.linalg.norm(np.linalg.solve(F.T / np.sqrt(unit), c)) ** 2
        # What is left is the rounding of the root's own entries, and of P's long products.
        smallest = min(SPECTRA[name]) / max(SPECTRA[name])
        assert own == pytest.approx(unit * exact_value(P, c), rel=1e-14 / smallest**0.5 + 1e-18 / smallest)


@pytest.mark.parametrize("size", [40, 90])
def test_large_matrices_are_rebuilt(size: int) -> None:
    rng = np.random.default_rng(0)
    Q = np.linalg.qr(rng.standard_normal((size, size)))[0]
    for kept in (size, size // 2):
        values = np.power(10.0, -10.0 * np.arange(kept) / kept)
        P = (Q[:, :kept] * values) @ Q[:, :kept].T
        F = quadratic_root(P)
        assert F is not None
        assert F.shape == (kept, size)
        np.testing.assert_allclose(F.T @ F, P, rtol=0.0, atol=1e-14)


def test_forms_without_an_inside_or_a_sign() -> None:
    zero = quadratic_root(np.zeros((3, 3)))
    assert zero is not None
    np.testing.assert_array_equal(zero, np.zeros((1, 3)))
    assert quadratic_root(np.diag([1.0, -1e-8])) is None
    rounded = quadratic_root(np.diag([4.0, -1e-10]))
    assert rounded is not None
    np.testing.assert_array_equal(np.abs(rounded), [[2.0, 0.0]])


@pytest.mark.parametrize("name", ["one small", "small ones alike"])
@pytest.mark.parametrize("size", [0.0, 1.0])
def test_no_bound_passes_the_minimum_of_a_quadratic_form(name: str, size: float) -> None:
    """Of eigenvalues 1 and 1e-9 the bound at zero was wrong in the seventh digit, and above the optimum."""
    for seed in range(5):
        P, c = form(name, seed)
        optimum = -exact_value(P, c) / 4.0
        z = cp.Variable(c.size)
        problem: Any = cp.Problem(cp.Minimize(cp.quad_form(z, cp.psd_wrap(P)) - c @ z))
        z.value = size / 2.0 * np.array([float(v) for v in exact_solution(P, c)])
        found = certificate(problem)
        assert found.dual is not None
        assert optimum * (1.0 + 1e-6) <= found.dual <= optimum * (1.0 - 1e-10)
