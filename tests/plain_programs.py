"""Programs that have nothing but variables and penalties, put together by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
from dense_map import DenseMap
from numpy.typing import NDArray

from convexnn_solvers.backends import numpy_backend
from convexnn_solvers.composite import Composite, PenaltyTerm, VariableBlock
from convexnn_solvers.functions.penalties import Penalty

Float = NDArray[np.float64]


def no_hints(z: tuple[Float, ...]) -> tuple[None, ...]:
    return tuple(None for _ in z)


def plain(blocks: tuple[VariableBlock, ...], penalties: tuple[PenaltyTerm, ...] = ()) -> Composite:
    """A program that has nothing but variables and penalties."""
    shapes = tuple(block.shape for block in blocks)
    return Composite(
        backend=numpy_backend(),
        variables=blocks,
        affine=DenseMap((), (), shapes),
        losses=(),
        penalties=penalties,
        constraints=(),
        linear=tuple(np.zeros(shape) for shape in shapes),
        constant=0.0,
        sign=1.0,
        scope="",
    )


def term(penalty: Penalty, weight: Any, variable: int = 0) -> PenaltyTerm:
    return PenaltyTerm(penalty, np.asarray(weight), variable, np.asarray, np.asarray, "penalty")
