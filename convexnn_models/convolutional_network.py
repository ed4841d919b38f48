"""A two-layer convolutional network as a value: filters, ReLU or fixed gates, pooling, output weights."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np

from convexnn_models import _arrays, losses
from convexnn_models._arrays import Float64Array
from convexnn_models.patches import Cells, checked_cells, checked_patches, with_constant
from convexnn_solvers.row_blocks import row_blocks

_ENTRIES = 4_000_000  # of the responses of a block of samples in `predict`


class Pooling(Enum):
    """What becomes of a filter's responses at the positions of one cell."""

    AVERAGE = "their mean"
    SUM = "their sum"
    MAXIMUM = "the largest of them"

    def __call__(self, responses: Float64Array) -> Float64Array:
        """Pool responses (n, positions, N) to (n, N)."""
        if self is Pooling.MAXIMUM:
            return np.asarray(responses.max(axis=1))
        total = responses.sum(axis=1)
        return np.asarray(total / responses.shape[1] if self is Pooling.AVERAGE else total)


@dataclass(frozen=True, eq=False, repr=False)
class ConvolutionalNetwork:
    """``f(x)_k = sum_j sum_m output[j, m, k] pool_{p in cell m} (x_p . w_j)_+ + output_bias[k]``.

    Parameters
    ----------
    filters : array (h, N)
        One filter per column; with ``bias`` the last row is the weight of a constant feature.
    output : array (N, M, c)
        Output weights per filter, cell and output.
    cells : tuple of tuples
        Which positions are pooled together.
    patches : int
        K, the number of patches of a sample.
    pooling : Pooling
        How.
    gates : array (h, N), optional
        Fixed gates: the response is ``x_p . w_j`` where ``x_p . g_j >= 0``, else zero. With maximum pooling
        the gate also chooses the position.
    bias : bool
        Whether a constant feature is appended to every patch.
    output_bias : array (c,), optional
        Free output biases.
    """

    filters: Float64Array
    output: Float64Array
    cells: Cells
    patches: int
    pooling: Pooling = Pooling.AVERAGE
    gates: Float64Array | None = None
    bias: bool = False
    output_bias: Float64Array | None = None

    def __post_init__(self) -> None:
        filters, output = _arrays.numbers(self.filters, "filters"), _arrays.numbers(self.output, "output")
        cells = checked_cells(self.cells, _arrays.count(self.patches, "patches"))
        if filters.ndim != 2 or output.ndim != 3 or output.shape[:2] != (filters.shape[1], len(cells)):
            raise ValueError(
                f"filters must be (h, N) and output (N, {len(cells)}, c), one slice per cell, "
                f"not {filters.shape} and {output.shape}."
            )
        for name, shape in (("gates", filters.shape), ("output_bias", output.shape[2:])):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, _arrays.shaped(value, shape, name))
        object.__setattr__(self, "filters", filters)
        object.__setattr__(self, "output", output)
        object.__setattr__(self, "cells", cells)

    def __repr__(self) -> str:
        kind = "ReLU" if self.gates is None else "gated"
        return (
            f"ConvolutionalNetwork({kind}: {self.width} filters on {self.patches} patches, "
            f"{len(self.cells)} cells pooled to {self.pooling.value}, {self.outputs} outputs)"
        )

    @property
    def width(self) -> int:
        """The number N of filters."""
        return int(self.filters.shape[1])

    @property
    def outputs(self) -> int:
        """The number c of outputs."""
        return int(self.output.shape[2])

    @property
    def penalty(self) -> float:
        """``1/2 (||filters||^2 + ||output||^2)``: what ``reg`` multiplies."""
        return 0.5 * (float(np.sum(self.filters**2)) + float(np.sum(self.output**2)))

    def predict(self, patches: Any) -> Float64Array:
        """The scores of samples given as patches (n, K, h): (n,) for one output, (n, c) for several."""
        samples = checked_patches(patches)
        expected = (self.patches, self.filters.shape[0] - int(self.bias))
        if samples.shape[1:] != expected:
            raise ValueError(
                f"patches must have {expected[0]} patches of {expected[1]} features per sample, "
                f"not {samples.shape[1]} of {samples.shape[2]}."
            )
        samples = with_constant(samples, self.bias)
        scores = np.zeros((samples.shape[0], self.outputs))
        for rows in row_blocks(samples.shape[0], self.patches * self.width, _ENTRIES):
            for m, cell in enumerate(self.cells):
                scores[rows] += self._pooled(samples[rows][:, list(cell)]) @ self.output[:, m]
        if self.output_bias is not None:
            scores += self.output_bias
        return scores[:, 0] if self.outputs == 1 else scores

    @losses.takes_loss_options
    def objective(
        self, patches: Any, y: Any, reg: float, loss: str | losses.LossFunction = "squared", **options: Any
    ) -> float:
        """The non-convex training objective ``loss + reg / 2 (||filters||^2 + ||output||^2)``."""
        return losses.regularised(loss, self.predict(patches), y, reg, self.penalty, **options)

    def _pooled(self, samples: Float64Array) -> Float64Array:
        values = samples @ self.filters
        if self.gates is None:
            return self.pooling(np.maximum(values, 0.0))
        return gated_pool(samples @ self.gates, values, self.pooling)


def gated_pool(gate_values: Float64Array, values: Float64Array, pooling: Pooling) -> Float64Array:
    """Pool ``values`` (n, positions, N) where the gates' values, of the same shape, let them through."""
    active = gate_values >= 0.0
    if pooling is not Pooling.MAXIMUM:
        return pooling(np.where(active, values, 0.0))
    chosen = np.argmax(gate_values, axis=1)[:, None, :]
    picked = np.take_along_axis(np.where(active, values, 0.0), chosen, axis=1)
    return np.asarray(picked[:, 0, :])
