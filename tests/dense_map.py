"""An affine map written out as matrices, for composites that tests put together by hand."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from convexnn_solvers.backends import Array
from convexnn_solvers.composite import Point

Float = NDArray[np.float64]


@dataclass(frozen=True)
class DenseMap:
    """An affine map as one dense matrix per pair of output and variable, ravelled row by row."""

    matrices: tuple[tuple[Float, ...], ...]
    offsets: tuple[Float, ...]
    shapes: tuple[tuple[int, ...], ...]

    def forward(self, x: Point) -> Point:
        return tuple(a + b for a, b in zip(self.linear(x), self.offsets, strict=True))

    def linear(self, x: Point) -> Point:
        return tuple(
            sum((m @ np.ravel(v) for m, v in zip(row, x, strict=True)), np.zeros(b.size)).reshape(b.shape)
            for row, b in zip(self.matrices, self.offsets, strict=True)
        )

    def adjoint(self, cotangents: tuple[Array | None, ...]) -> Point:
        total = [np.zeros(shape) for shape in self.shapes]
        for row, cotangent in zip(self.matrices, cotangents, strict=True):
            if cotangent is not None:
                for i, matrix in enumerate(row):
                    total[i] += (matrix.T @ np.ravel(cotangent)).reshape(self.shapes[i])
        return tuple(total)
