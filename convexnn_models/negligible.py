"""Neurons that a solution holds without needing them: interior-point solutions are dense."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from convexnn_models._arrays import Float64Array

# Leaving neurons out may lower the objective by at most this, relatively ...
_UNCHANGED = 1e-8
# ... and must not raise it by more than rounding.
_ROUNDING = 1e-14


def needed(cost: Float64Array, objective: Callable[[NDArray[np.bool_]], float]) -> NDArray[np.bool_]:
    """A mask of all neurons but the smallest ones, as many as leave the objective as it is.

    ``cost`` (m,) are the neurons' penalties and ``objective`` the training objective of those kept.
    """
    everything = np.ones(cost.size, dtype=np.bool_)
    if cost.size == 0:
        return everything
    before, last = objective(everything), -1
    for threshold in 10.0 ** -np.arange(1, 17):
        keep = np.asarray(cost > threshold * cost.max())
        count = int(np.count_nonzero(keep))
        if count == cost.size:
            break
        if count == last:  # no others than at the threshold before, which the objective does notice
            continue
        last = count
        if -_UNCHANGED * abs(before) <= objective(keep) - before <= _ROUNDING * abs(before):
            return keep
    return everything
