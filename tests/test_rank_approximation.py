"""Training on few directions: the bound for the full data holds, and is tight where nothing was lost."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import convexnn_models as cnn
from convexnn_solvers import Status

Array = NDArray[np.float64]


def decaying(noise: float, seed: int = 0, n: int = 16) -> tuple[Array, Array]:
    """Five features of which two carry most; targets of a small network."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, 2)) @ rng.standard_normal((2, 5)) + noise * rng.standard_normal((n, 5))
    y = np.maximum(X @ rng.standard_normal(5), 0.0) - 0.5 * np.maximum(X[:, 0], 0.0)
    return X, y + 0.1 * rng.standard_normal(n)


@pytest.mark.parametrize(
    ("loss", "bias", "output_bias"),
    [("squared", False, False), ("squared", True, True), ("huber", True, False), ("logistic", False, True)],
)
@pytest.mark.parametrize("noise", [0.02, 0.5])
def test_the_optimum_of_the_full_data_is_inside(
    loss: str, bias: bool, output_bias: bool, noise: float
) -> None:
    X, y = decaying(noise)
    y = np.where(y > np.median(y), 1.0, -1.0) if loss == "logistic" else y
    kinds: dict[str, Any] = {"loss": loss, "bias": bias, "output_bias": output_bias}
    reg = 0.05
    full = cnn.train_to_global_optimum(X, y, reg, **kinds)
    part = cnn.rank_approximation(X, y, reg, rank=2 + bias, gap=1e-4, **kinds)
    assert full.status is Status.OPTIMAL
    assert part.lower <= full.upper
    assert part.upper >= full.lower
    assert part.upper == pytest.approx(part.network.objective(X, y, reg, loss=loss))
    assert part.upper == pytest.approx(part.reduced.upper, rel=1e-9)
    assert 0.0 < part.relative_gap < (0.1 if noise == 0.02 else 1.0)
    assert 0.0 < part.prior <= part.lower
    assert "full data" in str(part)


def test_nothing_is_lost_on_data_of_that_rank() -> None:
    X, y = decaying(0.0)
    part = cnn.rank_approximation(X, y, 0.02, rank=2, gap=1e-4)
    assert part.dropped < 1e-11
    assert part.relative_gap == pytest.approx(part.reduced.relative_gap, abs=1e-9)
    assert part.network.W1.shape[0] == 5


def test_the_bound_is_the_theorem() -> None:
    """Huber: exactly the factor 1 + threshold sigma / (reg sqrt(n)); squared: the solved quadratic."""
    X, y = decaying(0.3)
    reg, sigma = 0.05, float(np.linalg.svd(X, compute_uv=False)[2])
    part = cnn.rank_approximation(X, y, reg, rank=2, loss="huber", threshold=0.5)
    factor = 1.0 + 0.5 * sigma / (reg * np.sqrt(len(X)))
    assert part.prior == pytest.approx(part.reduced.lower / factor, rel=1e-9)
    part = cnn.rank_approximation(X, y, reg, rank=2)
    root = np.sqrt(part.prior)
    assert root + sigma / (reg * np.sqrt(2.0 * len(X))) * part.prior == pytest.approx(
        np.sqrt(part.reduced.lower), rel=1e-9
    )


def test_bad_arguments_are_named() -> None:
    X, y = decaying(0.1)
    for rank in (0, 6):
        with pytest.raises(ValueError, match="rank"):
            cnn.rank_approximation(X, y, 0.1, rank=rank)
    with pytest.raises(ValueError, match="reg"):
        cnn.rank_approximation(X, y, 0.0, rank=2)
