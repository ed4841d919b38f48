"""Our program in other packages' terms, and their coefficients in ours: exact, not approximate."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float64Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class ScnnTerms:
    """What scnn minimises: 1/(2 n c) ||A' u' - Y||^2 + lam sum ||u'||, made of ``X`` = ours / ``scale``.

    scnn unitises columns by default, which changes the penalty unless all columns get the same factor. One
    common factor does no harm: u' = scale * u gives the same predictions and scale times the penalty. For
    standardised data with a column of ones it *is* scnn's own unitising.
    """

    X: Float64Array
    lam: float
    scale: float

    def ours(self, weights: Float64Array) -> Float64Array:
        """scnn's weights (c, P, d) as our variable (d * c, P)."""
        c, gates, d = weights.shape
        return np.asarray(weights.transpose(0, 2, 1).reshape(c * d, gates) / self.scale)


def scnn_terms(X: Float64Array, reg: float, outputs: int) -> ScnnTerms:
    """Our program with ``reg``, one group per output, in scnn's scaling."""
    scale = float(np.sqrt(np.mean(np.sum(X * X, axis=0))))
    return ScnnTerms(X / scale, reg / (outputs * scale), scale)


def gated_features(X: Float64Array, patterns: NDArray[np.bool_]) -> Float64Array:
    """[D_1 X, ..., D_P X] (n, P * d), columns stored one after the other; groups are runs of d columns."""
    n, d = X.shape
    features = np.empty((n, patterns.shape[1] * d), order="F")
    for j in range(patterns.shape[1]):
        features[:, j * d : (j + 1) * d] = patterns[:, j, None] * X
    return features


def from_groups(coefficients: Float64Array, d: int) -> Float64Array:
    """Coefficients (P * d, c) or (P * d,) of :func:`gated_features` as our variable (d * c, P)."""
    columns = coefficients.reshape(coefficients.shape[0], -1)
    return np.concatenate([column.reshape(-1, d).T for column in columns.T])
