"""Deep networks with parallel branches, linear or ReLU, as values."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np

from convexnn_models import _arrays, losses
from convexnn_models._arrays import Float64Array

Layers = tuple[Float64Array, ...]


@dataclass(frozen=True, eq=False, repr=False)
class DeepNetwork:
    """``f(X) = sum_b phi(.. phi(phi(X W_1^b) W_2^b) ..) W_L^b + output_bias``: branches of depth L.

    Parameters
    ----------
    branches : tuple of tuples of arrays
        Per branch its layers W_1 (d, m_1), W_2 (m_1, m_2), ..., W_L (m_(L-1), c). One branch is the
        standard network; none is the zero network, which then needs ``shape``.
    shape : (d, c)
        The numbers of inputs and outputs.
    slope : float
        ``phi(t) = t`` for t >= 0, ``slope * t`` otherwise: 1 is a linear network, 0 ReLU.
    bias : bool
        Whether a constant feature is appended to every sample (d counts it).
    output_bias : array (c,), optional
        Free output biases.
    """

    branches: tuple[Layers, ...]
    shape: tuple[int, int]
    slope: float = 1.0
    bias: bool = False
    output_bias: Float64Array | None = None

    def __post_init__(self) -> None:
        checked = tuple(
            tuple(_arrays.features(W, f"branches[{b}][{k}]") for k, W in enumerate(layers))
            for b, layers in enumerate(self.branches)
        )
        for b, layers in enumerate(checked):
            sizes = [W.shape for W in layers]
            fits = all(left[1] == right[0] for left, right in itertools.pairwise(sizes))
            if not layers or not fits or (sizes[0][0], sizes[-1][1]) != tuple(self.shape):
                raise ValueError(
                    f"branches[{b}] must chain from {self.shape[0]} to {self.shape[1]}, not {sizes}."
                )
        object.__setattr__(self, "branches", checked)
        if self.output_bias is not None:
            offset = _arrays.shaped(self.output_bias, (self.shape[1],), "output_bias")
            object.__setattr__(self, "output_bias", offset)

    def __repr__(self) -> str:
        (d, c), kinds = self.shape, {1.0: "linear", 0.0: "ReLU"}
        kind = f"{kinds.get(self.slope, f'slope {self.slope:g}')}, depth {self.depth}"
        return f"DeepNetwork({kind}: {d} inputs, {len(self.branches)} branches, {c} outputs)"

    @property
    def depth(self) -> int:
        """L, the number of layers of a branch (0 for the zero network)."""
        return len(self.branches[0]) if self.branches else 0

    @property
    def penalty(self) -> float:
        """``1/2 sum_b sum_l ||W_l^b||_F^L``: the penalty with which parallel branches have no duality gap."""
        return 0.5 * sum(float(np.linalg.norm(W)) ** len(layers) for layers in self.branches for W in layers)

    @property
    def weight_decay(self) -> float:
        """``1/2 sum_b sum_l ||W_l^b||_F^2``."""
        return 0.5 * sum(float(np.sum(W * W)) for layers in self.branches for W in layers)

    def predict(self, X: Any) -> Float64Array:
        """The scores of samples (n, d): (n,) for one output, (n, c) for several."""
        samples = _arrays.with_ones(_arrays.features(X), self.bias)
        if samples.shape[1] != self.shape[0]:
            expected = self.shape[0] - int(self.bias)
            raise ValueError(f"X must have {expected} columns, not {samples.shape[1] - int(self.bias)}.")
        scores = np.zeros((samples.shape[0], self.shape[1]))
        for first, *others in self.branches:
            values = samples @ first
            for W in others:
                values = np.where(values >= 0.0, values, self.slope * values) @ W
            scores += values
        if self.output_bias is not None:
            scores += self.output_bias
        return scores[:, 0] if self.shape[1] == 1 else scores

    @losses.takes_loss_options
    def objective(
        self, X: Any, y: Any, reg: float, loss: str | losses.LossFunction = "squared", **options: Any
    ) -> float:
        """The training objective ``loss + reg * penalty``, the loss a mean over the samples."""
        return losses.regularised(loss, self.predict(X), y, reg, self.penalty, **options)


def parallel_branches(M: Float64Array, depth: int, rank: int | None = None) -> tuple[Layers, ...]:
    """The cheapest parallel network that computes ``M`` (d, c): one rank-one branch per singular value.

    With ``M = sum_i s_i u_i v_i^T`` the layers of branch i are ``s_i^(1/L) u_i``, ``s_i^(1/L)``, ...,
    ``s_i^(1/L) v_i^T``, hidden widths one; its penalty is ``(L / 2) s_i``. Singular values that are
    rounding make no branch, and with ``rank`` only the largest ones do.
    """
    U, singular, Vt = np.linalg.svd(M, full_matrices=False)
    branches: list[Layers] = []
    for i in np.flatnonzero(singular > 1e-15 * singular[0])[:rank]:
        root = float(singular[i]) ** (1.0 / depth)
        middle = [np.array([[root]]) for _ in range(depth - 2)]
        branches.append((root * U[:, i : i + 1], *middle, root * Vt[i : i + 1]))
    return tuple(branches)


def standard_layers(M: Float64Array, depth: int) -> Layers:
    """The single branch of least weight decay that computes ``M`` (d, c): ``(L / 2) sum_i s_i^(2 / L)``."""
    U, singular, Vt = np.linalg.svd(M, full_matrices=False)
    roots = singular ** (1.0 / depth)
    return (U * roots, *(np.diag(roots) for _ in range(depth - 2)), roots[:, None] * Vt)
