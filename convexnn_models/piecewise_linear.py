"""Convex networks with leaky-ReLU, absolute-value or any other two-piece linear activation."""

from __future__ import annotations

from typing import Any

from convexnn_models import _arrays
from convexnn_models.gates import Gates
from convexnn_models.model import ConvexModel
from convexnn_models.two_layer import two_layer
from convexnn_solvers.named_options import checked_options


@checked_options
def piecewise_linear(
    X: Any,
    gates: Gates,
    slope: float,
    *,
    outputs: int = 1,
    grouping: str = "shared",
    bias: bool = False,
    output_bias: bool = False,
) -> ConvexModel:
    """The program of ``relu`` with ``D_j + slope (I - D_j)`` in the place of ``D_j`` in the prediction.

    The convex twin, in the sense of ``relu``, of networks with the activation ``t`` for t >= 0 and
    ``slope * t`` for t < 0: leaky ReLU for 0 < slope < 1, the absolute value for slope = -1, ReLU for 0.
    The cones stay those of ``relu``, and so does everything said there about several outputs.

    Parameters
    ----------
    X : array (n, d)
        Training samples, real and finite; float64 arrays are used by reference.
    gates : Gates
        Made from the same X. Repeated patterns are dropped; so is the pattern without active samples
        where it adds nothing (slope 0; or |slope| <= 1 if the pattern with all samples active is there)
        and, for the absolute value, one of every two complementary patterns. For other slopes the
        pattern without active samples is a feature of its own, which ``sample_gates`` does not draw:
        give it with ``all_gates`` or ``gates_from_vectors``.
    slope : float
        Any finite number; 1 is a linear model.
    outputs, grouping, bias, output_bias
        As for ``relu``.

    Raises ValueError or TypeError when an argument cannot be meant, or the gates are not those of this X.
    """
    return two_layer(
        X,
        gates,
        names=("V", "W"),
        cones=True,
        slope=_arrays.number(slope, "slope"),
        groupings=("shared", "per-output"),
        outputs=outputs,
        grouping=grouping,
        bias=bias,
        output_bias=output_bias,
    )
