"""Convex ReLU networks: fixed activation patterns, and weights constrained to realise them."""

from __future__ import annotations

from typing import Any

from convexnn_models.gates import Gates
from convexnn_models.model import ConvexModel
from convexnn_models.two_layer import two_layer
from convexnn_solvers.named_options import checked_options


@checked_options
def relu(
    X: Any,
    gates: Gates,
    *,
    outputs: int = 1,
    grouping: str = "shared",
    bias: bool = False,
    output_bias: bool = False,
) -> ConvexModel:
    """Prediction ``sum_j D_j X (v_j - w_j)``, penalty ``sum_j ||v_j|| + ||w_j||``, v_j and w_j in K_j.

    ``K_j = {u : (2 D_j - I) X u >= 0}`` are the weights that activate exactly as gate j does. For one
    output the program is the exact convex twin of ReLU networks: with every pattern among the gates (and
    enough neurons) it has the optimal value of ``sum_j (X w_j)_+ a_j`` trained with
    ``loss + reg/2 sum_j (||w_j||^2 + a_j^2)``; with sampled gates, that of the networks whose neurons
    have these patterns, an upper bound on the former. Several outputs, V_j and W_j (d, c):

    * ``grouping="per-output"``, penalty ``sum_k ||v_jk|| + ||w_jk||``: exact twin of networks with weight
      decay in which every neuron feeds one output.
    * ``grouping="shared"``, penalty ``||V_j||_F + ||W_j||_F``: a model of its own, which selects gates for
      all outputs together; its value bounds that of a network with weight decay from neither side.

    The exact twin of weight decay across outputs needs a gauge that no convex solver has in closed form,
    so ``grouping="nuclear"`` exists for ``gated_relu`` only.

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
        names=("V", "W"),
        cones=True,
        slope=0.0,
        groupings=("shared", "per-output"),
        outputs=outputs,
        grouping=grouping,
        bias=bias,
        output_bias=output_bias,
    )
