"""A two-layer network with a quadratic activation, as a value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from convexnn_models import _arrays, losses
from convexnn_models._arrays import Float64Array
from convexnn_models.patches import Cells, checked_cells, checked_patches, with_constant
from convexnn_models.polynomial_features import QuadraticActivation
from convexnn_solvers.row_blocks import row_blocks

_ENTRIES = 4_000_000  # of the responses of a block of samples in `predict`


@dataclass(frozen=True, eq=False, repr=False)
class PolynomialNetwork:
    """``f(x)_k = sum_j sum_m output[j, m, k] mean_{p in cell m} s(x_p . u_j) + output_bias[k]``.

    Parameters
    ----------
    activation : QuadraticActivation
        ``s(t) = a t^2 + b t + c``.
    hidden : array (h, N)
        One neuron per column, of Euclidean norm one (ValueError otherwise); with ``bias`` the last row is
        the weight of a constant feature.
    output : array (N, M, c)
        Output weights per neuron, cell and output.
    cells : tuple of tuples
        Which patches are averaged; ``((0,),)`` for plain samples.
    patches : int
        K, the number of patches of a sample.
    bias : bool
        Whether a constant feature is appended to every patch.
    output_bias : array (c,), optional
        Free output biases.
    """

    activation: QuadraticActivation
    hidden: Float64Array
    output: Float64Array
    cells: Cells = ((0,),)
    patches: int = 1
    bias: bool = False
    output_bias: Float64Array | None = None

    def __post_init__(self) -> None:
        hidden, output = _arrays.numbers(self.hidden, "hidden"), _arrays.numbers(self.output, "output")
        cells = checked_cells(self.cells, _arrays.count(self.patches, "patches"))
        if hidden.ndim != 2 or output.ndim != 3 or output.shape[:2] != (hidden.shape[1], len(cells)):
            raise ValueError(
                f"hidden must be (h, N) and output (N, {len(cells)}, c), one slice per cell, "
                f"not {hidden.shape} and {output.shape}."
            )
        norms = np.sqrt(np.sum(hidden * hidden, axis=0))
        if np.any(np.abs(norms - 1.0) > 1e-9):
            worst = float(norms[np.argmax(np.abs(norms - 1.0))])
            raise ValueError(f"hidden must have columns of norm one, not {worst:g}; divide by the norms.")
        object.__setattr__(self, "hidden", hidden)
        object.__setattr__(self, "output", output)
        object.__setattr__(self, "cells", cells)
        if self.output_bias is not None:
            offset = _arrays.shaped(self.output_bias, output.shape[2:], "output_bias")
            object.__setattr__(self, "output_bias", offset)

    def __repr__(self) -> str:
        s = self.activation
        pooled = f" on {self.patches} patches in {len(self.cells)} cells" if self.patches > 1 else ""
        plural = "s" if self.outputs > 1 else ""
        return (
            f"PolynomialNetwork({s.a:g} t^2 + {s.b:g} t + {s.c:g}: {self.width} neurons{pooled}, "
            f"{self.outputs} output{plural})"
        )

    @property
    def width(self) -> int:
        """The number N of hidden neurons."""
        return int(self.hidden.shape[1])

    @property
    def outputs(self) -> int:
        """The number c of outputs."""
        return int(self.output.shape[2])

    @property
    def penalty(self) -> float:
        """The sum of the absolute output weights: what ``reg`` multiplies."""
        return float(np.abs(self.output).sum())

    def predict(self, X: Any) -> Float64Array:
        """The scores of samples (n, d), or of patches (n, K, h): (n,) for one output, (n, c) for several."""
        patches = self._patches(X)
        scores = np.zeros((patches.shape[0], self.outputs))
        for rows in row_blocks(patches.shape[0], self.patches * self.width, _ENTRIES):
            responses = self.activation(patches[rows] @ self.hidden)
            for m, cell in enumerate(self.cells):
                scores[rows] += responses[:, list(cell)].mean(axis=1) @ self.output[:, m]
        if self.output_bias is not None:
            scores += self.output_bias
        return scores[:, 0] if self.outputs == 1 else scores

    @losses.takes_loss_options
    def objective(
        self, X: Any, y: Any, reg: float, loss: str | losses.LossFunction = "squared", **options: Any
    ) -> float:
        """The non-convex training objective ``loss + reg sum |output|``, the loss a mean over samples."""
        return losses.regularised(loss, self.predict(X), y, reg, self.penalty, **options)

    def _patches(self, X: Any) -> Float64Array:
        if self.patches == 1 and np.ndim(X) == 2:
            samples = _arrays.features(X)[:, None, :]
        else:
            samples = checked_patches(X, "X")
        expected = (self.patches, self.hidden.shape[0] - int(self.bias))
        if samples.shape[1:] != expected:
            raise ValueError(
                f"X must have {expected[0]} patches of {expected[1]} features per sample, "
                f"not {samples.shape[1]} of {samples.shape[2]}."
            )
        return with_constant(samples, self.bias)
