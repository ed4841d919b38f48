"""Convolutional networks with one layer of filters: fixed activation patterns on every patch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cvxpy as cp
import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from convexnn_models import _arrays
from convexnn_models._arrays import Float64Array
from convexnn_models.convolutional_network import Pooling
from convexnn_models.gates import Gates, checked
from convexnn_models.model import ConvexModel, with_output_bias
from convexnn_models.patches import Cells, checked_cells, checked_patches, global_pooling, with_constant
from convexnn_models.two_layer import group_norms
from convexnn_solvers.named_options import checked_options
from convexnn_solvers.reading.atoms import gated, pattern_slack

_LARGEST = 20_000_000  # coefficients of the cones of maximum pooling; beyond, no solver takes them in minutes


@dataclass(eq=False, repr=False, kw_only=True)
class ConvolutionalModel(ConvexModel):
    """What :func:`convolutional` returns; its variables are one (h * c, P) block per cell and sign.

    Attributes
    ----------
    patches : array (n, K, h)
        The samples as the program sees them, with the constant feature when there is a bias.
    cells : tuple of tuples
        Which positions are pooled together.
    pooling : Pooling
        How.
    filter_gates : Gates
        The gates in use, with patterns (n * K, P) on the stacked patches. (``gates`` is for plain samples.)
    relu : bool
        Whether cones hold every filter to its gate's pattern.
    """

    patches: Float64Array
    cells: Cells
    pooling: Pooling
    filter_gates: Gates
    relu: bool

    def __repr__(self) -> str:
        n, K, h = self.patches.shape
        return (
            f"ConvolutionalModel({n} samples, {K} patches of {h}, {len(self.filter_gates)} gates, "
            f"{len(self.cells)} cells pooled to {self.pooling.value}, outputs={self.outputs})"
        )

    @property
    def blocks(self) -> list[tuple[Any, ...]]:
        """The weight variables by cell: (V, W) for a ReLU program, (U,) for a gated one."""
        signs = 2 if self.relu else 1
        weights = self.variables[: signs * len(self.cells)]
        return [tuple(weights[signs * m : signs * (m + 1)]) for m in range(len(self.cells))]

    def rows(self, cell: int) -> Float64Array:
        """The patches of a cell as rows, sample by sample: (n * positions, h)."""
        chosen = self.patches[:, list(self.cells[cell])]
        return np.ascontiguousarray(chosen.reshape(-1, chosen.shape[2]))


@checked_options
def convolutional(
    patches: Any,
    gates: Gates,
    *,
    cells: Sequence[Sequence[int]] | None = None,
    pooling: Pooling = Pooling.AVERAGE,
    relu: bool = True,
    outputs: int = 1,
    bias: bool = False,
    output_bias: bool = False,
) -> ConvolutionalModel:
    """The convex program of ``sum_j sum_m pool_{p in cell m} (x_p . u_j)_+ a_jm`` on patches x_1..x_K.

    One gate acts on every patch. With average or sum pooling over one cell, S the pooling over patches,

        prediction sum_j S D_j X (v_j - w_j),    (2 D_j - I) X v_j >= 0,  (2 D_j - I) X w_j >= 0,

    X (n K, h) the stacked patches, and penalty ``sum_j ||v_j|| + ||w_j||``: the exact convex twin of the
    network with weight decay ``reg/2 (||u_j||^2 + a_j^2)`` for one output, if every pattern is among the
    gates (else of networks whose filters have these patterns). Every further cell and every further
    output has blocks of its own: twin of networks whose filters feed one cell and one output each
    (with one cell per position, :func:`flatten`, that is a network per position).

    Maximum pooling: the gate also fixes which position of a cell responds most, the cone keeps it so:
    ``(x_max - x_p) . u >= 0`` for all p and ``x_max . u >= 0``, or ``x_p . u <= 0`` for all p. These cones
    are general linear constraints, for interior-point solvers and small windows; everything else here is
    made of the gated atom and pattern cones, which our solvers take without forming a matrix.

    ``relu=False`` leaves the cones out, with one block per gate: the exact twin of a gated network.

    Parameters
    ----------
    patches : array (n, K, h)
        For example ``image_patches(images, 3)``.
    gates : Gates
        Made from ``stacked_patches(patches)``, with ``bias=True`` if the model has a bias.
    cells : sequence of sequences of int, optional
        Which positions are pooled together; all of them by default.
    pooling : Pooling
        ``Pooling.AVERAGE``, ``SUM`` or ``MAXIMUM``.
    relu : bool
        See above.
    outputs : int
        The number c of outputs, with separate filters.
    bias : bool
        Append a constant feature to every patch.
    output_bias : bool
        A free, unpenalised constant per output.

    Raises ValueError when an argument cannot be meant, or when the cones of maximum pooling would have more
    than 20 million coefficients. ``Auto`` picks ``SemismoothNewton``, or ``RFISTA`` for features that do not
    fit into memory and ``AugmentedLagrangian`` for cones of several cells or of maximum pooling.
    """
    samples = with_constant(checked_patches(patches), bool(bias))
    n, K, h = samples.shape
    c = _arrays.count(outputs, "outputs")
    chosen = global_pooling(K) if cells is None else checked_cells(cells, K)
    if not isinstance(pooling, Pooling):
        raise TypeError(f"pooling must be Pooling.AVERAGE, SUM or MAXIMUM, not {pooling!r}.")
    used = _usable(gates, samples, pooling)
    bits = used.patterns.reshape(n, K, len(used))
    names = ("V", "W") if relu else ("U",)
    variables: list[Any] = []
    constraints: list[Any] = []
    prediction: Any = 0.0
    for m, cell in enumerate(chosen):
        positions = list(cell)
        rows = np.ascontiguousarray(samples[:, positions].reshape(-1, h))
        active = bits[:, positions]
        weights = [cp.Variable((h * c, len(used)), name=f"{name}[{m}]") for name in names]
        if pooling is Pooling.MAXIMUM:
            largest, active = _largest(samples[:, positions], active, used.vectors)
            if relu:
                stays = _stays_largest(samples[:, positions], largest, active)
                constraints += [stays @ _columns(V, h) >= 0 for V in weights]
        patterns = np.ascontiguousarray(active.reshape(-1, len(used)))
        if relu and pooling is not Pooling.MAXIMUM:
            constraints += [pattern_slack(rows, patterns, V) >= 0 for V in weights]
        total = weights[0] - weights[1] if relu else weights[0]
        variables += weights
        prediction = prediction + _summed(n, len(cell), pooling) @ gated(
            rows, patterns, total, 0.0, used.description
        )
    free: Any = None
    if output_bias:
        prediction, free = with_output_bias(prediction, c)
    return ConvolutionalModel(
        prediction=prediction,
        penalty=sum(group_norms(W, h, c, "per-output") for W in variables),
        constraints=constraints,
        variables=tuple(variables if free is None else [*variables, free]),
        X=samples.reshape(n, -1),
        outputs=c,
        grouping="per-output",
        bias=bool(bias),
        output_bias=free,
        patches=samples,
        cells=chosen,
        pooling=pooling,
        filter_gates=used,
        relu=bool(relu),
    )


def _usable(gates: Gates, samples: Float64Array, pooling: Pooling) -> Gates:
    """The gates without redundant ones; equal patterns may still differ in the position that is largest."""
    stacked = samples.reshape(-1, samples.shape[2])
    kept = checked(gates, stacked, drop_zero=True)
    if pooling is not Pooling.MAXIMUM:
        return kept
    return gates.subset(np.flatnonzero(gates.patterns.any(axis=0)))


def _largest(
    samples: Float64Array, active: NDArray[np.bool_], vectors: Float64Array
) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """Per sample and gate the position (n, P) that responds most, and the pattern of it alone (n, k, P)."""
    positions = np.argmax(samples @ vectors, axis=1)
    alone = np.zeros_like(active)
    np.put_along_axis(alone, positions[:, None, :], True, axis=1)
    return positions, alone & active


def _stays_largest(samples: Float64Array, largest: NDArray[np.intp], active: NDArray[np.bool_]) -> Any:
    """One sparse block per gate: the differences that must stay non-negative, (n * k * P, h * P)."""
    n, k, h = samples.shape
    entries = n * k * h * largest.shape[1]
    if entries > _LARGEST:
        raise ValueError(
            f"patches and gates make {entries} coefficients in the cones of maximum pooling (at most "
            f"{_LARGEST}): these are for small windows; pass fewer gates or samples, or pool by average."
        )
    blocks: list[Any] = []
    for j in range(largest.shape[1]):
        lit = np.flatnonzero(active[:, :, j].any(axis=1))
        top = np.take_along_axis(samples, largest[:, j][:, None, None], axis=1)
        rows = -samples
        rows[lit] += top[lit]
        rows[lit, largest[lit, j]] = top[lit, 0]
        blocks.append(rows.reshape(n * k, h))
    return cp.Constant(sp.block_diag(blocks, format="csr"), name="largest_stays_largest")


def _columns(V: Any, features: int) -> Any:
    """The weights of all gates as one column per output, (h * P, c)."""
    outputs = V.shape[0] // features
    parts = [cp.vec(V[k * features : (k + 1) * features], order="F") for k in range(outputs)]
    return parts[0] if outputs == 1 else cp.vstack(parts).T


def _summed(samples: int, positions: int, pooling: Pooling) -> Any:
    """The sparse matrix (n, n * positions) that adds or averages the positions of each sample."""
    value = 1.0 / positions if pooling is Pooling.AVERAGE else 1.0
    return cp.Constant(
        sp.kron(sp.eye_array(samples), np.full((1, positions), value), format="csr"), name="pooling"
    )
