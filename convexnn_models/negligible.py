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
# The share of the largest penalty up to which neurons are small.
_THRESHOLDS = tuple(10.0**-k for k in range(1, 17))


def needed(cost: Float64Array, objective: Callable[[NDArray[np.bool_]], float]) -> NDArray[np.bool_]:
    """A mask of all neurons but the smallest ones, as many as leave the objective as it is.

    ``cost`` (m,) are the neurons' penalties and ``objective`` the training objective of those kept.
    """
    everything = np.ones(cost.size, dtype=np.bool_)
    largest, before, last = float(cost.max(initial=0.0)), None, -1
    for threshold in _THRESHOLDS:
        keep = np.asarray(cost > threshold * largest)
        count = int(np.count_nonzero(keep))
        if count == cost.size:
            break
        if count == last:  # no others than at the threshold before, which the objective does notice
            continue
        last = count
        before = objective(everything) if before is None else before
        if -_UNCHANGED * abs(before) <= objective(keep) - before <= _ROUNDING * abs(before):
            return keep
    return everything
