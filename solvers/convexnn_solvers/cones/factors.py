"""What the compiled active-set method remembers of a block between two projections of it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_MOST_BYTES = 2.0**25
#: Whose factors are in a free place.
NO_BLOCK = -1


class ConeFactors(NamedTuple):
    """Factors of the active rows, and slacks, of some of the blocks; block b has its place at ``b % slots``.

    ``block`` (slots,): whose factors these are; ``basis`` (slots, k, d) and ``triangle`` (slots, k, k):
    orthonormal rows Q and upper triangle R with ``R^T Q`` the signed active rows. ``seen`` (slots,): whose
    slacks (slots, n) at ``centre`` (slots, d) these are. ``coefficients``, ``solution`` (k,): scratch.
    """

    block: NDArray[np.intp]
    basis: NDArray[np.float64]
    triangle: NDArray[np.float64]
    seen: NDArray[np.intp]
    slack: NDArray[np.float64]
    centre: NDArray[np.float64]
    coefficients: NDArray[np.float64]
    solution: NDArray[np.float64]


def empty_factors(blocks: int, rows: int, features: int, capacity: int) -> ConeFactors:
    """Room for as many of the blocks as fit into a fixed size, at least one."""
    slots = _slots(blocks, rows, features, capacity)
    return ConeFactors(
        np.full(slots, NO_BLOCK, dtype=np.intp),
        np.empty((slots, capacity, features)),
        np.empty((slots, capacity, capacity)),
        np.full(slots, NO_BLOCK, dtype=np.intp),
        np.empty((slots, rows)),
        np.empty((slots, features)),
        np.empty(capacity),
        np.empty(capacity),
    )


def factor_bytes(blocks: int, rows: int, features: int, capacity: int) -> int:
    """What :func:`empty_factors` allocates."""
    return int(_slots(blocks, rows, features, capacity) * _each(rows, features, capacity))


def _slots(blocks: int, rows: int, features: int, capacity: int) -> int:
    return int(max(1, min(blocks, _MOST_BYTES // _each(rows, features, capacity))))


def _each(rows: int, features: int, capacity: int) -> float:
    """Bytes of one block."""
    return 8.0 * (capacity * (features + capacity) + rows + features)
