"""Three-layer ReLU networks with parallel branches: an exact convex program, for tiny data only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cvxpy as cp
import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from convexnn_models import _arrays
from convexnn_models._arrays import Float64Array
from convexnn_models.deep_network import DeepNetwork, Layers
from convexnn_models.fitting import held_value, pruned
from convexnn_models.gates import Gates, checked
from convexnn_models.model import ConvexModel
from convexnn_solvers.named_options import checked_options
from convexnn_solvers.reading.atoms import pattern_slack

_LARGEST = 20_000  # columns of the variable; beyond, interior-point solvers take minutes


@dataclass(eq=False, repr=False, kw_only=True)
class ThreeLayerModel(ConvexModel):
    """What :func:`three_layer` returns; its variable is Z (d, 4 P1 P2).

    Columns are grouped by second-layer pattern and sign of the output weight (2 P2 groups), then by the
    sign of the second-layer weight and the first-layer gate (2 P1 columns each).

    Attributes
    ----------
    first : Gates
        The gates of the first layer. (``gates`` is for two-layer models.)
    second : array (n, P2), bool
        The patterns of the second layer.
    """

    first: Gates
    second: NDArray[np.bool_]

    def __repr__(self) -> str:
        n, d = self.X.shape
        patterns = f"{len(self.first)} x {self.second.shape[1]} patterns"
        return f"ThreeLayerModel({n} samples, {d} features, {patterns})"


@checked_options
def three_layer(
    X: Any, gates: Gates, *, second: NDArray[np.bool_] | None = None, bias: bool = False
) -> ThreeLayerModel:
    """The convex program of parallel three-layer ReLU networks. A reference implementation for tiny data.

    Twin of ``sum_k ((X W_1^k)_+ w_2^k)_+ w_3^k`` over any number of branches k with the penalty ``1/2
    sum_k (||W_1^k||_F^3 + ||w_2^k||^3 + |w_3^k|^3)``; one second-layer neuron per branch is no loss, as
    branches with several split without cost. A branch costs 3/2 times the product of its norms, so with
    ``z_j = |w_2j| w_1j`` it costs ``3/2 |w_3| sum_j ||z_j||``, and fixing the signs and both layers' patterns
    makes everything linear: for every second-layer pattern E and output sign

        h = sum_j s_j D_j X z_j,   (2 E - I) h >= 0,   (2 D_j - I) X z_j >= 0,   prediction +-E h.

    Exact when ``gates`` are all patterns of X (``all_gates(X)``) and ``second`` all patterns at all, which
    is the default: 2^n of them. With fewer its value is an upper bound. Ordinary weight decay instead of
    cubes has a duality gap: see :func:`rank_one_three_layer`.

    Parameters
    ----------
    X : array (n, d)
        A handful of samples.
    gates : Gates
        First-layer patterns, made from the same X.
    second : array (n, P2), bool, optional
        Second-layer patterns.
    bias : bool
        Append a column of ones to X; the gates must have been made with ``bias=True`` too.

    Raises ValueError when the program would have more than 20 000 column blocks.
    """
    data = _arrays.with_ones(_arrays.features(X), bool(bias))
    n, d = data.shape
    first = checked(gates, data, drop_zero=True)
    patterns = _second_patterns(second, n)
    P1, P2 = len(first), int(patterns.shape[1])
    columns = 4 * P1 * P2
    if columns > _LARGEST:
        raise ValueError(
            f"{P1} first-layer and {P2} second-layer patterns make {columns} blocks (at most {_LARGEST}): "
            "this is a reference program for tiny data; pass fewer samples, gates or second patterns."
        )
    Z = cp.Variable((d, columns), name="Z")
    active = np.tile(first.patterns, 4 * P2)
    slack = pattern_slack(data, active, Z)  # equals X z_j where gate j is active
    inner = np.tile(np.repeat([1.0, -1.0], P1), 2 * P2)
    groups = sp.kron(sp.eye_array(2 * P2), np.ones((2 * P1, 1)), format="csr")
    h = cp.multiply(active * inner, slack) @ groups
    both = np.repeat(patterns, 2, axis=1)
    outer = np.tile([1.0, -1.0], P2)
    return ThreeLayerModel(
        prediction=cp.sum(cp.multiply(both * outer, h), axis=1),
        penalty=1.5 * cp.sum(cp.norm(Z, 2, axis=0)),
        constraints=[slack >= 0, cp.multiply(2.0 * both - 1.0, h) >= 0],
        variables=(Z,),
        X=data,
        bias=bool(bias),
        first=first,
        second=patterns,
    )


def recover_three_layer(model: ThreeLayerModel, prune: bool = True) -> DeepNetwork:
    """The parallel network at the value that Z holds: one branch per second-layer pattern and output sign.

    At a feasible point its penalty ``1/2 sum (||W_1||^3 + ||w_2||^3 + |w_3|^3)`` is the convex one and its
    predictions are the convex ones; interior-point solutions violate cones by about 1e-8, and so much the
    network differs. ``prune`` leaves out branches that change the objective by less than 1e-8 relative
    without raising it, then as many as depend linearly on others on the samples: at most n remain.
    Raises ValueError when the variable has no value.
    """
    branches = _branches(model, held_value(model.variables[0]))
    if prune and branches:
        X = model.X[:, :-1] if model.bias else model.X
        values = np.column_stack([_network(model, [branch]).predict(X) for branch in branches])
        cost = np.array([_network(model, [branch]).penalty for branch in branches])
        roots = pruned(model, values, np.ones((cost.size, 1)), cost) ** (1.0 / 3.0)
        branches = [
            tuple(root * layer for layer in branch)
            for branch, root in zip(branches, roots, strict=True)
            if root > 0.0
        ]
    return _network(model, branches)


def _branches(model: ThreeLayerModel, Z: Float64Array) -> list[Layers]:
    """One branch per group of columns, its three layers of equal norm."""
    P1 = len(model.first)
    size = np.asarray(np.linalg.norm(Z, axis=0))
    branches: list[Layers] = []
    for group, start in enumerate(range(0, Z.shape[1], 2 * P1)):
        columns = start + np.flatnonzero(size[start : start + 2 * P1] > 0.0)
        if columns.size == 0:
            continue
        roots = np.sqrt(size[columns])
        total = float(size[columns].sum())
        signs = np.where(columns - start < P1, 1.0, -1.0)
        scale = total ** (-1.0 / 6.0)
        W1, w2 = scale * Z[:, columns] / roots, (scale * roots * signs)[:, None]
        w3 = np.array([[(1.0 if group % 2 == 0 else -1.0) * total ** (1.0 / 3.0)]])
        branches.append((W1, w2, w3))
    return branches


def _network(model: ThreeLayerModel, branches: list[Layers]) -> DeepNetwork:
    return DeepNetwork(tuple(branches), (int(model.X.shape[1]), 1), slope=0.0, bias=model.bias)


def _second_patterns(second: NDArray[np.bool_] | None, n: int) -> NDArray[np.bool_]:
    """The given patterns, or all of {0, 1}^n; without the all-zero one, which contributes nothing."""
    if second is None:
        if n > 12:
            raise ValueError(
                f"X has {n} samples, so 2^{n} second-layer patterns: pass some of them as second=..., or at "
                "most 12 samples; this is a reference program for tiny data."
            )
        numbers = np.arange(1, 2**n)
        return np.asarray((numbers >> np.arange(n)[:, None]) & 1, dtype=np.bool_)
    patterns = np.asarray(second)
    if patterns.dtype != np.bool_ or patterns.ndim != 2 or patterns.shape[0] != n:
        raise ValueError(f"second must be a boolean array ({n}, P2), not {patterns.dtype} {patterns.shape}.")
    patterns = patterns[:, patterns.any(axis=0)]
    if patterns.shape[1] == 0:
        raise ValueError("second has no pattern with an active sample; leave it out to take all.")
    return patterns
