"""An affine map without the outputs that a method has no use for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from convexnn_solvers.backends import Array
from convexnn_solvers.composite import AffineMap, Point
from convexnn_solvers.reading.affine import TapeMap


@dataclass(frozen=True, eq=False)
class _Selected:
    """Some outputs of an affine map."""

    affine: AffineMap
    outputs: tuple[int, ...]
    total: int

    def forward(self, x: Point) -> Point:
        """``A x + b`` for the selected outputs."""
        every = self.affine.forward(x)
        return tuple(every[k] for k in self.outputs)

    def linear(self, x: Point) -> Point:
        """``A x`` for the selected outputs."""
        every = self.affine.linear(x)
        return tuple(every[k] for k in self.outputs)

    def adjoint(self, cotangents: tuple[Array | None, ...]) -> Point:
        """``A^T`` applied to one cotangent per selected output."""
        spread: list[Array | None] = [None] * self.total
        for k, cotangent in zip(self.outputs, cotangents, strict=True):
            spread[k] = cotangent
        return self.affine.adjoint(tuple(spread))


def selected(affine: AffineMap, outputs: Sequence[int], total: int) -> AffineMap:
    """The map of some of ``total`` outputs only."""
    if isinstance(affine, TapeMap):
        return affine.select(outputs)
    return _Selected(affine, tuple(outputs), total)
