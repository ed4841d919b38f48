"""The terms of a problem that get a copy of their argument: nonsmooth losses and constraints.

Their rows are normalised by powers of two, so that multipliers are undone exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from convexnn_solvers.backends import Array, Float64Array
from convexnn_solvers.composite import Composite, Point
from convexnn_solvers.first_order.curvature import OutputHessian
from convexnn_solvers.first_order.envelope import Indicator, Split
from convexnn_solvers.functions.nonsmooth_losses import Nonsmooth

_ROW_PROBES = 16


@dataclass(frozen=True, eq=False)
class SplitTerm:
    """A term with a copy of its argument: the loss or the constraint at ``position``, and its row factors."""

    term: Split
    weight: Array
    constraint: bool
    position: int
    shape: tuple[int, ...]
    text: str
    rows: Array


def split_terms(
    composite: Composite, base: Composite, sharp: Sequence[int], positions: Sequence[int]
) -> tuple[SplitTerm, ...]:
    """The losses at ``sharp`` and the constraints at ``positions``, in the order of ``base``'s outputs."""
    backend, splits = composite.backend, []
    factors = _row_factors(base, len(base.losses))
    for k, rows in zip(sharp, factors, strict=False):
        term = composite.losses[k]
        assert isinstance(term.loss, Nonsmooth)
        even = backend.asarray(term.loss.even(rows))
        splits.append(SplitTerm(term.loss, term.weight, False, k, rows.shape, term.text, even))
    one = backend.asarray(np.asarray(1.0))
    for m, rows in zip(positions, factors[len(sharp) :], strict=True):
        constraint = composite.constraints[m]
        even = backend.asarray(constraint.cone.even(rows))
        indicator = Indicator(constraint.cone)
        splits.append(SplitTerm(indicator, one, True, m, rows.shape, constraint.text, even))
    return tuple(splits)


def row_hessian(count: int, splits: Sequence[SplitTerm]) -> OutputHessian:
    """The curvature of the squares of the normalised rows, whose outputs follow ``count`` others."""

    def apply(outputs: Point) -> tuple[Array | None, ...]:
        scaled = (s.rows * s.rows * q for s, q in zip(splits, outputs[count:], strict=True))
        return (*(None for _ in range(count)), *scaled)

    return apply


def _row_factors(base: Composite, count: int) -> tuple[Float64Array, ...]:
    """One over the norm of every split term's row, estimated by random signs, as powers of two."""
    backend, rng = base.backend, np.random.default_rng(0)
    zeros = base.affine.linear(base.zeros())[count:]
    squares = [np.zeros(tuple(q.shape)) for q in zeros]
    for _ in range(_ROW_PROBES if squares else 0):
        signs = tuple(backend.asarray(rng.choice([-1.0, 1.0], v.shape)) for v in base.variables)
        for total, q in zip(squares, base.affine.linear(signs)[count:], strict=True):
            total += backend.to_numpy(q) ** 2
    return tuple(_inverse_power_of_two(np.sqrt(s / _ROW_PROBES)) for s in squares)


def _inverse_power_of_two(norms: Float64Array) -> Float64Array:
    exponents = np.rint(np.log2(np.where(norms > 0.0, norms, 1.0)))
    return np.asarray(np.exp2(-exponents))
