"""What ADMM is made of: the Gram matrix without the map, its factors, and proximal maps on predictions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from convexnn_solvers.admm.gram_factor import gram_factor
from convexnn_solvers.admm.prediction_prox import prediction_prox
from convexnn_solvers.backends import Backend, select_backend
from convexnn_solvers.gated_programs.fits import LogisticFit, SquaredFit
from convexnn_solvers.reading.operators import load_gates

BACKENDS = pytest.mark.parametrize("backend", ["numpy", "torch"])
RNG = np.random.default_rng(0)


def where(backend: str, dtype: str = "float64") -> Backend:
    return select_backend("cpu", dtype, backend)


@BACKENDS
@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize(("slope", "copies"), [(0.0, 1), (0.3, 2), (-1.0, 1)])
def test_the_factor_is_that_of_the_dense_matrix(
    backend: str, centred: bool, slope: float, copies: int
) -> None:
    rng = np.random.default_rng(0)
    n, d, P = 300, 4, 7  # more rows than a block
    X = rng.standard_normal((n, d))
    patterns = X @ rng.standard_normal((d, P)) >= 0.0
    S = np.where(patterns, 1.0, slope)
    A = np.hstack([S[:, [j]] * X for j in range(P)])
    A = A - A.mean(axis=0) if centred else A
    dense = copies * A @ A.T
    rhs = rng.standard_normal((n, 3))
    rhs = rhs - rhs.mean(axis=0)
    place = where(backend)
    factor = gram_factor(load_gates(X, patterns, place), slope, copies, centred)
    assert factor.mean == pytest.approx(np.trace(dense) / n, rel=1e-12)
    assert 0.5 * np.linalg.norm(dense, 2) <= factor.largest <= (1.0 + 1e-12) * np.linalg.norm(dense, 2)
    for shift in (3.0, 0.1, 20.0):  # the matrix survives its factors
        factor.factor(shift)
        found = place.to_numpy(factor.solve(place.asarray(rhs)))
        np.testing.assert_allclose(found, np.linalg.solve(dense + shift * np.eye(n), rhs), atol=1e-9)


@BACKENDS
def test_an_indefinite_matrix_is_an_error(backend: str) -> None:
    X = np.array([[1.0], [2.0]])
    factor = gram_factor(load_gates(X, np.ones((2, 1), dtype=np.bool_), where(backend)))
    with pytest.raises(np.linalg.LinAlgError, match="not positive definite"):
        factor.factor(-0.5)


FITS: dict[str, Any] = {
    "logistic": LogisticFit(
        np.where(RNG.random((200, 2)) < 0.5, 1.0, -1.0), 3.0 * RNG.standard_normal((200, 2))
    ),
    "huber": SquaredFit(RNG.standard_normal((200, 2)), outliers=0.7),
}


@BACKENDS
@pytest.mark.parametrize(("dtype", "most"), [("float64", 1e-12), ("float32", 2e-5)])
@pytest.mark.parametrize("name", FITS)
def test_the_proximal_point_is_stationary(name: str, dtype: str, most: float, backend: str) -> None:
    rng = np.random.default_rng(0)
    place = where(backend, dtype)
    prox = prediction_prox(FITS[name], place)
    assert prox is not None
    h = 5.0 * rng.standard_normal((200, 2))
    p = place.to_numpy(prox(place.asarray(h)))
    gradient = FITS[name].at(p).xi
    np.testing.assert_allclose(prox.weight * (h - p), gradient, atol=most)


def test_squares_need_no_proximal_map() -> None:
    assert prediction_prox(SquaredFit(np.zeros((3, 1))), where("numpy")) is None
