"""The affine outputs of a small problem as one dense matrix, ``q = B x + b``, for points as one vector."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from convexnn_solvers.backends import Float64Array
from convexnn_solvers.composite import AffineMap, Composite, Point
from convexnn_solvers.memory_budget import budget, readable
from convexnn_solvers.reading.affine import UnsupportedProblem
from convexnn_solvers.reading.output_selection import selected

# Beyond, a factor takes longer than what it saves, and so do copies of the matrix.
_LARGEST_FACTOR, _MOST_ENTRIES = 2500, 2**23
# Copies of the matrix that are there at a time.
_COPIES = 4


@dataclass(frozen=True, eq=False)
class DenseRows:
    """``matrix`` B (m, N) and ``offsets`` b (m,) of some outputs; points are (N,), outputs (m,)."""

    matrix: Float64Array
    offsets: Float64Array
    variables: tuple[tuple[int, ...], ...]
    outputs: tuple[tuple[int, ...], ...]

    def forward(self, x: Float64Array) -> Float64Array:
        """``B x + b``."""
        return np.asarray(self.matrix @ x + self.offsets)

    def point(self, x: Float64Array) -> Point:
        """One array per variable."""
        return tuple(_parted(x, self.variables))

    def parts(self, q: Float64Array) -> list[Float64Array]:
        """One array per output."""
        return _parted(q, self.outputs)


def flat(arrays: Point) -> Float64Array:
    """The inverse of ``point`` and ``parts``."""
    return np.concatenate([np.zeros(0), *(np.ravel(np.asarray(a, dtype=np.float64)) for a in arrays)])


def dense_rows(composite: Composite, positions: tuple[int, ...], memory: float | None) -> DenseRows:
    """The rows of the losses and of the constraints at ``positions``, made once per affine map.

    Raises UnsupportedProblem where they are too many for a dense matrix and its factor.
    """
    held = composite.kept.get("dense rows")
    if held is not None and held[0] is composite.affine and held[1] == positions:
        known: DenseRows = held[2]
        return known
    count = len(composite.losses)
    outputs = (*range(count), *(count + m for m in positions))
    affine = selected(composite.affine, outputs, count + len(composite.constraints))
    offsets = affine.forward(composite.zeros())
    variables = tuple(block.shape for block in composite.variables)
    shapes = tuple(tuple(np.shape(b)) for b in offsets)
    _check_size(sum(map(math.prod, shapes)), sum(map(math.prod, variables)), composite, memory)
    rows = DenseRows(_matrix(affine, variables, shapes), flat(offsets), variables, shapes)
    composite.kept["dense rows"] = composite.affine, positions, rows
    return rows


def _check_size(m: int, N: int, composite: Composite, memory: float | None) -> None:
    if min(m, N) > _LARGEST_FACTOR or m * N > _MOST_ENTRIES or m == 0:
        raise UnsupportedProblem(f"{m} rows of {N} weights are no small dense matrix")
    needed = 8 * (_COPIES * m * N + 2 * min(m, N) ** 2)
    if memory is not None and needed > budget(memory, composite.backend):
        raise UnsupportedProblem(f"{m} rows of {N} weights and their factor take {readable(needed)}")


def _matrix(
    affine: AffineMap, variables: tuple[tuple[int, ...], ...], outputs: tuple[tuple[int, ...], ...]
) -> Float64Array:
    """Row by row from the adjoint, or column by column where there are fewer columns."""
    m, N = sum(map(math.prod, outputs)), sum(map(math.prod, variables))
    B = np.empty((m, N))
    unit = np.zeros(min(m, N))
    for k in range(unit.size):
        unit[k] = 1.0
        if N < m:
            B[:, k] = flat(affine.linear(tuple(_parted(unit, variables))))
        else:
            B[k] = flat(affine.adjoint(tuple(_parted(unit, outputs))))
        unit[k] = 0.0
    return B


def _parted(x: Float64Array, shapes: tuple[tuple[int, ...], ...]) -> list[Float64Array]:
    ends = np.cumsum([0, *map(math.prod, shapes)])
    return [x[a:b].reshape(shape) for a, b, shape in zip(ends, ends[1:], shapes, strict=False)]
