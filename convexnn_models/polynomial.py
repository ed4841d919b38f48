"""Networks with a quadratic activation, as semidefinite programs: exact, whatever the data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import cvxpy as cp
import numpy as np

from convexnn_models import _arrays
from convexnn_models._arrays import Float64Array
from convexnn_models.losses import LossFunction
from convexnn_models.model import ConvexModel, with_output_bias
from convexnn_models.patches import Cells, checked_cells, checked_patches, with_constant
from convexnn_models.polynomial_features import (
    CellFeatures,
    QuadraticActivation,
    cell_features,
    centred_features,
)
from convexnn_solvers.named_options import checked_options
from convexnn_solvers.reading.stuffing_limit import size_checked

_LARGE = 10_000_000  # coefficients of a prediction, above which a conic solver is only tried if they fit
_WIDEST = 4000  # side of a lifted matrix, beyond which one factorisation takes minutes

#: The lifted matrices of the neurons with positive and with negative output weights.
Pair = tuple[Float64Array, Float64Array]


@dataclass(eq=False, repr=False, kw_only=True)
class PolynomialModel(ConvexModel):
    """What :func:`polynomial` returns: a :class:`ConvexModel` with the lifted matrices as variables.

    ``variables`` holds, for every output and every cell, the matrices of the neurons with positive and
    with negative output weights; then the output bias, if there is one. Each is symmetric (h + 1, h + 1),
    or (h, h) for an even activation (b = 0), for which nothing else matters.

    Attributes
    ----------
    patches : array (n, K, h)
        The samples as the program sees them, K = 1 for plain samples.
    cells : tuple of tuples
        Which patches are averaged.
    activation : QuadraticActivation
        ``a t^2 + b t + c``.
    thetas : array (n, c) or None
        The dual point that our own solver found last; certificates try it.
    latest : cp.Problem or None
        What :meth:`problem` returned last.
    """

    patches: Float64Array
    cells: Cells
    activation: QuadraticActivation
    thetas: Float64Array | None = field(default=None, init=False)
    latest: Any = field(default=None, init=False)

    def __repr__(self) -> str:
        s, (n, K, h) = self.activation, self.patches.shape
        cells = f", {len(self.cells)} cells of {K} patches" if K > 1 else ""
        return (
            f"PolynomialModel({n} samples, {h} features{cells}, outputs={self.outputs}, "
            f"{s.a:g} t^2 + {s.b:g} t + {s.c:g})"
        )

    def problem(self, y: Any, reg: Any, loss: str | LossFunction = "squared", **options: Any) -> Any:
        """See :meth:`ConvexModel.problem`; :func:`solve_polynomial` solves the latest one."""
        self.latest = super().problem(y, reg, loss, **options)
        return self.latest

    @cached_property
    def features(self) -> list[CellFeatures]:
        """What the lifted matrices are multiplied with, cell by cell."""
        return cell_features(self.patches, self.cells, self.activation)

    @cached_property
    def fitted_features(self) -> list[CellFeatures]:
        """The same as the squared loss sees them: centred where a free output bias takes the mean."""
        if self.output_bias is None:
            return self.features
        return centred_features(self.patches, self.cells, self.activation)

    @property
    def pairs(self) -> list[list[tuple[Any, Any]]]:
        """The variables, as (positive, negative) pairs: one list per output, one pair per cell."""
        count = len(self.cells)
        blocks = self.variables[: 2 * count * self.outputs]
        pairs = list(zip(blocks[0::2], blocks[1::2], strict=True))
        return [pairs[k * count : (k + 1) * count] for k in range(self.outputs)]

    def lifted(self, value: Float64Array) -> Float64Array:
        """A variable's value as an (h + 1, h + 1) matrix, whether or not the activation is even."""
        if self.activation.b != 0.0:
            return value
        h = value.shape[0]
        whole = np.zeros((h + 1, h + 1))
        whole[:h, :h] = value
        whole[h, h] = np.trace(value)
        return whole

    def scores(self, pairs: list[list[Pair]], offset: Float64Array | float = 0.0) -> Float64Array:
        """The prediction, (n,) or (n, c), for lifted (h + 1, h + 1) matrices and an output bias (c,)."""
        columns = [
            np.sum([cell.apply(p - m) for cell, (p, m) in zip(self.features, row, strict=True)], axis=0)
            for row in pairs
        ]
        return (columns[0] if self.outputs == 1 else np.stack(columns, axis=1)) + offset


@checked_options
def polynomial(
    X: Any,
    a: float,
    b: float,
    c: float,
    *,
    outputs: int = 1,
    cells: Sequence[Sequence[int]] | None = None,
    bias: bool = False,
    output_bias: bool = False,
) -> PolynomialModel:
    """The semidefinite program of networks with activation ``s(t) = a t^2 + b t + c``.

    Exact twin, whatever the data, of training ``sum_j s(x . u_j) alpha_j`` over any number of neurons
    with ``||u_j|| = 1`` and the penalty ``reg sum_j |alpha_j|``: the two optimal values are equal, and
    at most 2 (h + 1) neurons per cell and output are needed. Prediction, with ``Z = Z+ - Z-`` in blocks
    ``Z1`` (h, h), ``z2``, ``z4``:

        a x^T Z1 x + b x^T z2 + c z4,    penalty z4+ + z4-,    Z+, Z- >> 0,    trace(Z1) == z4 for both.

    For b = 0 the blocks z2 drop out, and for ``s(t) = t^2`` the penalty is the nuclear norm of Z1. Several
    outputs share no neurons: the twin's neurons feed one output each. Pooled patches, neurons
    ``mean_{p in cell} s(x_p . u_j)`` with one set of output weights per cell: the twin of convolutional
    networks with global average pooling (:func:`global_pooling`), local average pooling
    (:func:`local_pooling`, :func:`window_pooling`) or none (:func:`flatten`).

    Weight decay in place of unit norms is NP-hard in general and not offered. Source: the lifting and
    its decomposition are Bartan and Pilanci's (arXiv 2101.02429); checked here against training.

    Parameters
    ----------
    X : array (n, h), or (n, K, h) with ``cells``
        Training samples, or K patches per sample. Rows of norm about one suit the activation best.
    a, b, c : float
        The activation; 0.09, 0.5, 0.47 imitate ReLU.
    outputs : int
        The number of outputs.
    cells : sequence of sequences of int
        For patches: which positions are averaged.
    bias : bool
        Append a constant feature to every sample (or patch); it counts in the norm of ``u``.
    output_bias : bool
        A free, unpenalised constant per output.

    Returns a :class:`PolynomialModel`. Raises ValueError or TypeError when an argument cannot be meant or
    lifted matrices would have a side above 4000. Where the program would not fit into this machine's memory a
    conic solver is refused with ``cp.SolverError``; :func:`solve_polynomial` forms no such matrix.
    """
    activation = QuadraticActivation(a, b, c)
    count = _arrays.count(outputs, "outputs")
    patches, chosen = _samples_and_cells(X, cells, bool(bias))
    side = _side(patches, activation)
    blocks = [[_pair(side, k, m, len(chosen)) for m in range(len(chosen))] for k in range(count)]
    pairs = [pair for row in blocks for pair in row]
    lifted = [block for pair in pairs for block in pair]
    prediction = _prediction(patches, chosen, blocks, activation)
    entries = len(lifted) * patches.shape[0] * side * side
    if entries > _LARGE:
        prediction = size_checked(
            prediction, entries, f"the prediction from matrices of side {side}", "solve_polynomial(model)"
        )
    free: Any = None
    if output_bias:
        prediction, free = with_output_bias(prediction, count)
    return PolynomialModel(
        prediction=prediction,
        penalty=sum(_size(block, activation) for block in lifted),
        constraints=[constraint for pair in pairs for constraint in _in_cone(pair, activation)],
        variables=tuple(lifted if free is None else [*lifted, free]),
        X=patches.reshape(patches.shape[0], -1),
        outputs=count,
        grouping="per-output",
        bias=bool(bias),
        output_bias=free,
        patches=patches,
        cells=chosen,
        activation=activation,
    )


def _samples_and_cells(X: Any, cells: Any, bias: bool) -> tuple[Float64Array, Cells]:
    """Patches (n, K, h), with their constant feature, and which are averaged; samples are one patch each."""
    if cells is not None:
        patches = checked_patches(X, "X")
        return with_constant(patches, bias), checked_cells(cells, patches.shape[1])
    given = _arrays.numbers(X, "X")
    if given.ndim == 3:
        raise ValueError("X holds patches (n, K, h): say how to pool them, e.g. cells=global_pooling(K).")
    return with_constant(_arrays.features(given)[:, None, :], bias), ((0,),)


def _side(patches: Float64Array, s: QuadraticActivation) -> int:
    """Of the lifted matrices; ValueError where no computer would factor them."""
    side = int(patches.shape[2]) + (1 if s.b != 0.0 else 0)
    if side > _WIDEST:
        raise ValueError(
            f"X has {patches.shape[2]} features, for lifted matrices of side {side} (at most {_WIDEST}): use "
            "patches or features of lower dimension, for example principal components."
        )
    return side


def _pair(side: int, output: int, cell: int, cells: int) -> list[Any]:
    """The lifted matrices of the neurons with positive and with negative output weights."""
    label = f"{output}" if cells == 1 else f"{output},{cell}"
    return [cp.Variable((side, side), symmetric=True, name=f"Z{sign}[{label}]") for sign in "+-"]


def _in_cone(pair: list[Any], s: QuadraticActivation) -> list[Any]:
    """What makes two matrices sums of neurons of unit norm: semidefiniteness of both, then their traces."""
    definite = [Z >> 0 for Z in pair]
    return definite if s.b == 0.0 else definite + [cp.trace(Z[:-1, :-1]) == Z[-1, -1] for Z in pair]


def _prediction(
    patches: Float64Array, cells: Cells, blocks: list[list[list[Any]]], s: QuadraticActivation
) -> Any:
    """(n,) for one output, (n, c) for several: each the sum over its cells."""
    columns = [
        sum(
            _scores(patches[:, list(cell)], Z - minus, s) for cell, (Z, minus) in zip(cells, row, strict=True)
        )
        for row in blocks
    ]
    return columns[0] if len(columns) == 1 else cp.vstack(columns).T


def _scores(patches: Float64Array, Z: Any, s: QuadraticActivation) -> Any:
    """``<Q_i, Z>``, the average over the patches (n, K, h) of a cell, as a plain expression."""
    n, K, h = patches.shape
    terms: list[Any] = []
    if s.a != 0.0:
        stacked = patches.reshape(n * K, h)
        squares = cp.sum(cp.multiply(stacked @ Z[:h, :h], stacked), axis=1)
        average = squares if K == 1 else cp.sum(cp.reshape(squares, (n, K), order="C"), axis=1) / K
        terms.append(s.a * average)
    if s.b != 0.0:
        terms.append(s.b * (patches.mean(axis=1) @ Z[:h, h]))
    if s.c != 0.0:
        terms.append(s.c * _size(Z, s) * np.ones(n))
    return sum(terms[1:], terms[0])


def _size(Z: Any, s: QuadraticActivation) -> Any:
    """The sum of the absolute output weights behind ``Z``."""
    return Z[-1, -1] if s.b != 0.0 else cp.trace(Z)
