"""Convex gated-ReLU networks: the gates are fixed, the weights they let through are trained."""

from __future__ import annotations

from typing import Any

from convexnn_models.gates import Gates
from convexnn_models.model import ConvexModel
from convexnn_models.two_layer import two_layer
from convexnn_solvers.named_options import checked_options


@checked_options
def gated_relu(
    X: Any,
    gates: Gates,
    *,
    outputs: int = 1,
    grouping: str = "shared",
    bias: bool = False,
    output_bias: bool = False,
) -> ConvexModel:
    """Prediction ``sum_j D_j X u_j`` with penalty ``sum_j ||u_j||``: an unconstrained convex program.

    For one output it is the exact convex twin of gated networks: it has the optimal value of training
    ``sum_j D_j X w_j a_j`` with ``loss + reg/2 sum_j (||w_j||^2 + a_j^2)``. Several outputs, W_j (d, c):

    * ``grouping="shared"``, penalty ``||U_j||_F``: twin of ``sum_j alpha_j D_j X W_j`` with
      ``reg/2 sum_j (alpha_j^2 + ||W_j||_F^2)``; for gated networks with weight decay a lower bound.
    * ``grouping="per-output"``, penalty ``sum_k ||u_jk||``: twin of networks with weight decay in which
      every neuron feeds one output.
    * ``grouping="nuclear"``, penalty ``||U_j||_*``: twin of gated networks with weight decay and up to
      min(d, c) neurons per gate. For conic solvers (a semidefinite block per gate).

    Parameters
    ----------
    X : array (n, d)
        Training samples, real and finite; float64 arrays are used by reference.
    gates : Gates
        Made from the same X, for example ``sample_gates(X, 500)``. Repeated patterns and the pattern
        without active samples add nothing and are dropped.
    outputs : int
        The number c of outputs.
    grouping : str
        See above; no difference for one output.
    bias : bool
        Append a column of ones to X: hidden biases, regularised like weights. The gates must have been
        made with ``bias=True`` too.
    output_bias : bool
        A free, unpenalised constant per output.

    Raises ValueError or TypeError when an argument cannot be meant, or the gates are not those of this X.
    """
    return two_layer(
        X,
        gates,
        names=("U",),
        cones=False,
        slope=0.0,
        groupings=("shared", "per-output", "nuclear"),
        outputs=outputs,
        grouping=grouping,
        bias=bias,
        output_bias=output_bias,
    )
