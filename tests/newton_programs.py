"""Small gated programs for the parts of Newton's method."""

from __future__ import annotations

import numpy as np

from convexnn_solvers.gated_programs.fits import SquaredFit
from convexnn_solvers.gated_programs.program import GatedProgram


def program(cones: bool, outputs: int = 1, centred: bool = False, slope: float = 0.0) -> GatedProgram:
    rng = np.random.default_rng(0)
    X = rng.standard_normal((24, 4))
    patterns = X @ rng.standard_normal((4, 7)) >= 0.0
    Y = rng.standard_normal((24, outputs))
    signs = (1.0, -1.0) if cones else (1.0,)
    weights = rng.uniform(0.5, 1.0, size=7 * len(signs))
    return GatedProgram(
        X, patterns, SquaredFit(Y - centred * Y.mean(axis=0), centred), weights, signs, cones, slope
    )
