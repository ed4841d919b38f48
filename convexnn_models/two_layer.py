"""What ``gated_relu``, ``relu`` and ``piecewise_linear`` share: one block of weights per gate and sign."""

from __future__ import annotations

from typing import Any

import cvxpy as cp

from convexnn_models import _arrays
from convexnn_models.gates import Gates, checked
from convexnn_models.model import ConvexModel, with_output_bias
from convexnn_solvers.reading.atoms import gated, pattern_slack


def two_layer(
    X: Any,
    gates: Gates,
    *,
    names: tuple[str, ...],
    cones: bool,
    slope: float,
    groupings: tuple[str, ...],
    outputs: int,
    grouping: str,
    bias: bool,
    output_bias: bool,
) -> ConvexModel:
    """The model whose weight variables ``names`` enter with signs +1, -1; see the formulations' own texts.

    With ``cones`` every column of a weight variable is constrained to the cone of its gate's pattern.
    """
    data = _arrays.with_ones(_arrays.features(X), bias)
    c = _arrays.count(outputs, "outputs")
    if grouping not in groupings:
        raise ValueError(f"grouping must be one of {', '.join(map(repr, groupings))} here, not {grouping!r}.")
    chosen = checked(gates, data, **_redundant(gates, slope))
    d, P = data.shape[1], len(chosen)
    signs = (1.0, -1.0)[: len(names)]
    weights = tuple(cp.Variable((d * c, P), name=name) for name in names)
    total = weights[0] - weights[1] if len(weights) == 2 else weights[0]
    prediction = gated(data, chosen.patterns, total, slope, chosen.description)
    free: Any = None
    if output_bias:
        prediction, free = with_output_bias(prediction, c)
    return ConvexModel(
        prediction=prediction,
        penalty=sum(group_norms(W, d, c, grouping) for W in weights),
        constraints=[pattern_slack(data, chosen.patterns, W) >= 0 for W in weights] if cones else [],
        variables=weights if free is None else (*weights, free),
        X=data,
        outputs=c,
        gates=chosen,
        grouping=grouping,
        slope=slope,
        bias=bool(bias),
        output_bias=free,
        signs=signs,
        cones=cones,
    )


def group_norms(U: Any, features: int, outputs: int, grouping: str) -> Any:
    """The sum over gates of the norm of the d x c blocks that the columns of ``U`` (d * c, P) stack.

    "shared": Frobenius norm of each block; "per-output": Euclidean norm of each of its columns;
    "nuclear": sum of its singular values. All agree for one output.
    """
    if outputs == 1 or grouping == "shared":
        return cp.sum(cp.norm(U, 2, axis=0))
    if grouping == "per-output":
        return cp.sum(cp.norm(cp.reshape(U, (features, outputs * U.shape[1]), order="F"), 2, axis=0))
    blocks = [cp.reshape(U[:, j], (features, outputs), order="F") for j in range(U.shape[1])]
    return sum(cp.normNuc(block) for block in blocks)


def _redundant(gates: Any, slope: float) -> dict[str, bool]:
    """Which patterns add nothing for this slope: the all-zero one, or one of two complementary ones."""
    if slope == -1.0:
        return {"drop_zero": False, "drop_mirrored": True}
    listed = isinstance(gates, Gates) and bool(gates.patterns.all(axis=0).any())
    return {"drop_zero": slope == 0.0 or (abs(slope) <= 1.0 and listed)}
