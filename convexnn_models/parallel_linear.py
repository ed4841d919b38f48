"""Deep linear networks with parallel branches: a nuclear norm, and no duality gap."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import cvxpy as cp
import numpy as np
from numpy.typing import NDArray

from convexnn_models import _arrays
from convexnn_models._arrays import Float64Array
from convexnn_models.deep_network import DeepNetwork, parallel_branches, standard_layers
from convexnn_models.fitting import held_value
from convexnn_models.model import ConvexModel, with_output_bias
from convexnn_models.negligible import needed
from convexnn_solvers.named_options import checked_options

_IN_RANGE = 1e-9  # relative residual up to which targets count as reachable


@dataclass(eq=False, repr=False, kw_only=True)
class ParallelLinearModel(ConvexModel):
    """What :func:`parallel_linear` returns: a :class:`ConvexModel` whose first variable is M (d, c).

    Attributes
    ----------
    depth : int
        L, the number of layers of every branch.
    thetas : array (n, c) or None
        The dual point that our own solver found last; certificates try it.
    """

    depth: int
    thetas: Float64Array | None = field(default=None, init=False)

    def __repr__(self) -> str:
        n, d = self.X.shape
        return f"ParallelLinearModel({n} samples, {d} features, outputs={self.outputs}, depth={self.depth})"


@dataclass(frozen=True)
class LinearInterpolation:
    """Deep linear networks that fit their targets exactly: what the two architectures cost, in closed form.

    Attributes
    ----------
    matrix : array (d, c)
        ``X^+ Y``, the linear map that both compute.
    parallel : float
        The least penalty ``1/2 sum ||W||_F^L`` of parallel branches: ``(L / 2) ||X^+ Y||_*``. It equals
        its dual value: no gap.
    standard : float
        The least weight decay ``1/2 sum ||W_l||_F^2`` of one branch: ``(L / 2) sum s_i^(2 / L)``.
    standard_dual : float
        What Lagrangian duality can prove about ``standard``: ``(L / 2) ||X^+ Y||_*^(2 / L)``.
    parallel_network, standard_network : DeepNetwork
        Networks that attain ``parallel`` and ``standard``.
    """

    matrix: Float64Array
    parallel: float
    standard: float
    standard_dual: float
    parallel_network: DeepNetwork
    standard_network: DeepNetwork

    @property
    def standard_gap(self) -> float:
        """The duality gap of the standard network; zero for depth 2 or rank one only."""
        return self.standard - self.standard_dual


@checked_options
def parallel_linear(
    X: Any, depth: int, *, outputs: int = 1, bias: bool = False, output_bias: bool = False
) -> ParallelLinearModel:
    """Prediction ``X M``, penalty ``(L / 2) ||M||_*`` (nuclear norm), for M (d, c).

    Exact twin of ``sum_b X W_1^b ... W_L^b`` over any number of branches with the penalty ``1/2 sum_b
    sum_l ||W_l^b||_F^L``: by the inequality of the means a branch costs at least ``(L / 2)`` times the
    product of its norms, which is at least its nuclear norm, and one rank-one branch per singular value
    attains it. (With ordinary weight decay parallel branches change nothing, and a standard network has a
    positive duality gap from depth 3 on: see :func:`linear_interpolation`.)

    Parameters
    ----------
    X : array (n, d)
        Training samples.
    depth : int
        L >= 2.
    outputs : int
        The number c of outputs.
    bias : bool
        Append a column of ones to X (regularised like any feature).
    output_bias : bool
        A free, unpenalised constant per output.

    Raises ValueError or TypeError when an argument cannot be meant.
    """
    data = _arrays.with_ones(_arrays.features(X), bool(bias))
    L, c = checked_depth(depth), _arrays.count(outputs, "outputs")
    M = cp.Variable((data.shape[1], c), name="M")
    prediction = data @ M[:, 0] if c == 1 else data @ M
    free: Any = None
    if output_bias:
        prediction, free = with_output_bias(prediction, c)
    return ParallelLinearModel(
        prediction=prediction,
        penalty=0.5 * L * cp.normNuc(M),
        constraints=[],
        variables=(M,) if free is None else (M, free),
        X=data,
        outputs=c,
        grouping="nuclear",
        bias=bool(bias),
        output_bias=free,
        depth=L,
    )


@checked_options
def linear_interpolation(X: Any, Y: Any, depth: int) -> LinearInterpolation:
    """The cheapest deep linear networks with ``f(X) = Y`` exactly, parallel and standard, in closed form.

    ``X`` (n, d), ``Y`` (n,) or (n, c), ``depth`` L >= 2. Both architectures compute ``X^+ Y``, as any
    other solution has larger singular values. The dual of the standard network fixes the norm t of each of
    its first L - 2 layers; then the dual value is ``t^-(L-2) ||X^+ Y||_*`` plus ``(L - 2) t^2 / 2``, and
    the best t gives ``(L / 2) ||X^+ Y||_*^(2 / L)``. Raises ValueError when Y is not in the range of X.
    """
    data, L = _arrays.features(X), checked_depth(depth)
    target = _arrays.numbers(Y, "Y")
    if target.ndim not in (1, 2) or target.shape[0] != data.shape[0] or 0 in target.shape:
        raise ValueError(f"Y must have shape ({data.shape[0]},) or ({data.shape[0]}, c), not {target.shape}.")
    target = target.reshape(data.shape[0], -1)
    M: Float64Array = np.asarray(np.linalg.lstsq(data, target, rcond=None)[0], dtype=np.float64)
    residual = float(np.linalg.norm(data @ M - target))
    if residual > _IN_RANGE * float(np.linalg.norm(target)):
        raise ValueError(
            f"Y is not in the range of X (residual {residual:.1e}), so no linear network fits it exactly; "
            "use parallel_linear(X, depth).problem(Y, reg)."
        )
    singular = np.linalg.svd(M, compute_uv=False)
    nuclear = float(singular.sum())
    shape = (int(M.shape[0]), int(M.shape[1]))
    return LinearInterpolation(
        matrix=M,
        parallel=0.5 * L * nuclear,
        standard=0.5 * L * float(np.sum(singular ** (2.0 / L))),
        standard_dual=0.5 * L * nuclear ** (2.0 / L),
        parallel_network=DeepNetwork(parallel_branches(M, L), shape),
        standard_network=DeepNetwork((standard_layers(M, L),), shape),
    )


def recover_parallel_linear(model: ParallelLinearModel, prune: bool = True) -> DeepNetwork:
    """The network at the value that ``M`` holds: one rank-one branch of depth L per singular value.

    Its penalty ``1/2 sum ||W||_F^L`` is ``(L / 2) ||M||_*``, so its objective is the convex one. ``prune``
    leaves out singular values that change the objective by less than 1e-8 relative, without raising it.
    Raises ValueError when the variable has no value.
    """
    M = held_value(model.variables[0])
    offset = None if model.output_bias is None else held_value(model.output_bias).reshape(model.outputs)
    U, singular, Vt = np.linalg.svd(M, full_matrices=False)
    training, rank = model.training, singular.size
    if prune and training is not None:
        left = model.X @ (U * singular)

        def objective(keep: NDArray[np.bool_]) -> float:
            scores = left[:, keep] @ Vt[keep] + (0.0 if offset is None else offset)
            penalty = 0.5 * model.depth * float(singular[keep].sum())
            return training.objective(scores[:, 0] if model.outputs == 1 else scores, penalty)

        rank = int(np.count_nonzero(needed(singular, objective)))
    branches = parallel_branches(M, model.depth, rank)
    shape = (int(M.shape[0]), int(M.shape[1]))
    return DeepNetwork(branches, shape, bias=model.bias, output_bias=offset)


def checked_depth(depth: int) -> int:
    """``depth`` as an int >= 2."""
    L = _arrays.count(depth, "depth")
    if L < 2:
        raise ValueError(f"depth must be at least 2, not {L}; depth 1 is linear regression.")
    return L
