"""Passes over large arrays by blocks of rows: no mask or product of the array's own size is ever formed.

Features may be a memory map larger than the memory that a process is allowed, so that even ``X >= 0`` (an
eighth of X in size) has to be asked block by block.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

_ENTRIES = 2**20  # of one block


def slices(size: int, step: int) -> Iterator[slice]:
    """Consecutive slices of ``range(size)``, each of ``step`` numbers but the last."""
    return (slice(start, min(start + step, size)) for start in range(0, size, step))


def row_blocks(rows: int, columns: int, entries: int = _ENTRIES) -> Iterator[slice]:
    """Consecutive slices of ``rows`` rows with about ``entries`` entries of ``columns`` columns each."""
    return slices(rows, max(1, entries // max(1, columns)))


def blocks_of(array: NDArray[Any]) -> Iterator[slice]:
    """The slices along the first axis that :func:`row_blocks` makes of an array of at least one dimension."""
    return row_blocks(array.shape[0], array.size // max(1, array.shape[0]))


def first_not_finite(array: NDArray[Any]) -> tuple[int, ...] | None:
    """The position of the first NaN or infinite entry, or None."""
    whole = np.atleast_1d(array)
    for rows in blocks_of(whole):
        finite = np.isfinite(whole[rows])
        if not finite.all():
            first, *rest = (int(i) for i in np.argwhere(~finite)[0])
            return (rows.start + first, *rest)[: array.ndim]
    return None


def none_negative(array: NDArray[Any]) -> bool:
    """Whether every entry is at least 0."""
    return all(bool(np.all(array[rows] >= 0.0)) for rows in blocks_of(array))
