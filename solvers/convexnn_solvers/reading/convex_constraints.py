"""Convex constraints ``atom <= affine`` as affine expressions in cones.

Where the atom is a norm, a maximum, an absolute value, a hinge or a sum of squares, its epigraph is a linear
image of a cone that can be projected on. The affine rest of the constraint needs no symbolic algebra: it is
what the expression is worth when the atom is zero, and the tape that reads it is told so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cvxpy as cp
import numpy as np

from convexnn_solvers.backends import Float64Array, numpy_backend
from convexnn_solvers.functions.constraint_cones import NONNEGATIVE, Cone, NormSumCone, SecondOrder
from convexnn_solvers.functions.losses import Square, SumSquares
from convexnn_solvers.functions.nonsmooth_losses import Maximum, Norms, PiecewiseLinear, Supremum
from convexnn_solvers.reading.affine import Tape, UnsupportedProblem, shortened
from convexnn_solvers.reading.loading import Loader
from convexnn_solvers.reading.terms import LossReading, PenaltyReading, convex_atoms, read_atom

#: A norm of entries of one variable and the weight with which it stands in a bound.
WeightedNorm = tuple[PenaltyReading, Float64Array]


@dataclass(frozen=True)
class Epigraph:
    """``output in cone`` is the constraint, where ``atoms`` count as zero inside ``output``.

    ``slopes`` are the derivatives of the output with respect to the affine side: the constraint's dual value
    is the sum of multipliers times slopes, along the first axis (``None``: of everything). ``norms``: of a
    bound by a number on norms of variables, these and their weights; nothing of others.
    """

    cone: Cone
    output: Any
    atoms: tuple[Any, ...]
    slopes: Float64Array
    axis: int | None
    norms: tuple[WeightedNorm, ...] = ()

    def dual_value(self, mu: Float64Array) -> Float64Array:
        """CVXPY's dual value of the constraint."""
        return np.asarray(np.sum(self.slopes * mu, axis=self.axis))


def epigraph(constraint: Any, gap: Any) -> Epigraph:
    """The constraint ``gap >= 0`` for a concave ``gap``; UnsupportedProblem, naming it, if it is another."""
    atoms = convex_atoms(gap)
    parts: list[tuple[Any, Float64Array, Any]] = []
    weights, by_number = _weights(constraint, gap, atoms)
    readings = [read_atom(atom) for atom in atoms]
    for reading, weight in zip(readings, weights, strict=True):
        loss_reading = reading if isinstance(reading, LossReading) else reading.loss
        loss, scales = loss_reading.make(loss_reading.sign * weight)
        parts.append((loss, np.asarray(scales), loss_reading.argument))
    found = _norms_together(parts, gap)
    if found is None and len(atoms) != 1:
        raise _refusal(
            constraint, f"has {len(atoms)} convex atoms; bound each by a variable, and the sum of these"
        )
    loss, entries, argument = parts[0]
    found = found or _as_cone(loss, entries, argument, gap)
    if found is None:
        kind = type(atoms[0]).__name__
        raise _refusal(constraint, f"bounds {kind}, whose epigraph has no simple projection")
    cone, output, slopes, axis = found
    norms = tuple((r, w) for r, w in zip(readings, weights, strict=True) if isinstance(r, PenaltyReading))
    bounded = by_number and gap.ndim == 0 and isinstance(cone, NormSumCone | SecondOrder)
    norms = norms if bounded and len(norms) == len(atoms) else ()
    return Epigraph(cone, output, tuple(atoms), np.broadcast_to(slopes, output.shape), axis, norms)


def _norms_together(
    parts: list[tuple[Any, Float64Array, Any]], gap: Any
) -> tuple[Cone, Any, Float64Array, int | None] | None:
    """A bound on a sum of norms of columns, all as long: such as that on the penalty of a network."""
    columns = []
    for loss, weight, q in parts:
        if gap.ndim or not isinstance(loss, Norms) or loss.axis is None or q.ndim != 2:
            return None
        rows = q.T if loss.axis in (0, -2) else q
        scales = np.reshape(np.broadcast_to(weight, rows.shape[:1]), (-1, 1)) * np.ones(rows.shape)
        columns.append(cp.multiply(scales, rows))
    sizes = {rows.shape[1] for rows in columns}
    if len(sizes) != 1:
        return None
    entries = [cp.reshape(rows, (rows.size,), order="C") for rows in columns]
    output = cp.hstack([cp.reshape(gap, (1,), order="C"), *entries])
    return NormSumCone(sizes.pop()), output, np.eye(1, output.size)[0], None


def _weights(constraint: Any, gap: Any, atoms: list[Any]) -> tuple[list[Float64Array], bool]:
    """The coefficients with which the atoms stand in ``-gap``, entry by entry or of their sums; and whether
    nothing else in it varies."""
    tape = Tape(Loader(numpy_backend()), [*gap.variables(), *atoms])
    tape.add_output(gap)
    if tape.has_parametric_factors:
        raise _refusal(constraint, "has a Parameter as a coefficient; move it to the affine side")
    map_ = tape.with_values()
    rng = np.random.default_rng(0)
    probe = rng.standard_normal(gap.shape) if gap.ndim else np.asarray(1.0)
    everything, other = (map_.adjoint((np.asarray(v),)) for v in (np.ones(gap.shape), probe))
    ones, random = everything[-len(atoms) :], other[-len(atoms) :]
    by_number = not any(np.any(slope) for slope in everything[: -len(atoms)])
    for atom, one, other in zip(atoms, ones, random, strict=True):
        same = atom.shape == gap.shape and np.allclose(other, one * probe, rtol=1e-12, atol=0.0)
        if gap.ndim and not same:
            raise _refusal(constraint, "combines entries of its convex atom; bound every entry on its own")
    return [np.asarray(-one, dtype=np.float64) for one in ones], by_number


def _as_cone(
    loss: Any, weight: Float64Array, q: Any, gap: Any
) -> tuple[Cone, Any, Float64Array, int | None] | None:
    """Cone, output, slopes with respect to ``gap``, and the axis along which they belong to one entry."""
    one_bound = gap.ndim == 0
    if isinstance(loss, SumSquares | Square):
        root = np.sqrt(np.broadcast_to(weight, q.shape))
        t = cp.reshape(gap, (1, gap.size), order="C")
        scaled = cp.reshape(cp.multiply(2.0 * root, q), (q.size, 1) if one_bound else (1, q.size), order="C")
        output = cp.vstack([1.0 + t, scaled, 1.0 - t])
        slopes = np.zeros(output.shape)
        slopes[0], slopes[-1] = 1.0, -1.0
        return SecondOrder(0), output, slopes, None if one_bound else 0
    if isinstance(loss, PiecewiseLinear) and not one_bound:  # of as many entries, or of several rows of them
        scaled = cp.reshape(cp.multiply(weight, q), (q.size // gap.size, gap.size), order="C")
        repeated = np.ones((scaled.shape[0], 1)) @ cp.reshape(gap, (1, gap.size), order="C")
        output = cp.vstack([repeated - slope * scaled for slope in (loss.low, loss.high)])
        return NONNEGATIVE, output, np.ones(output.shape), 0
    if isinstance(loss, PiecewiseLinear):
        middle, half = 0.5 * (loss.low + loss.high), 0.5 * (loss.high - loss.low)
        w = np.broadcast_to(weight, q.shape)
        head = gap - cp.sum(cp.multiply(middle * w, q)) if middle else gap
        rest = cp.multiply(half * w, q)
        output = cp.hstack([cp.reshape(head, (1,), order="C"), cp.reshape(rest, (q.size,), order="C")])
        return NormSumCone(), output, np.eye(1, output.size)[0], None
    if not isinstance(loss, Norms | Maximum | Supremum):
        return None
    return _along_axis(loss, weight, q, gap)


def _along_axis(
    loss: Norms | Maximum | Supremum, weight: Float64Array, q: Any, gap: Any
) -> tuple[Cone, Any, Float64Array, int | None] | None:
    """Bounds on norms or maxima of groups, as columns of one matrix per group."""
    if gap.ndim == 0 and loss.axis is not None:
        return None  # a bound on a sum of norms ties the groups together
    if loss.axis is None:
        columns, count = cp.reshape(q, (q.size, 1), order="C"), 1
    elif q.ndim == 2:
        columns, count = (q if loss.axis in (0, -2) else q.T), int(gap.size)
    else:
        columns, count = cp.reshape(q, (q.size, 1), order="C"), 1
    columns = cp.multiply(np.reshape(np.broadcast_to(weight, (count,)), (1, count)), columns)
    t = cp.reshape(gap, (1, count), order="C")
    axis = None if gap.ndim == 0 else 0
    if isinstance(loss, Norms):
        output = cp.vstack([t, columns])
        return SecondOrder(0), output, np.eye(1, output.shape[0]).T * np.ones(output.shape), axis
    repeated = np.ones((columns.shape[0], 1)) @ t
    output = repeated - columns
    if isinstance(loss, Supremum):
        output = cp.vstack([output, repeated + columns])
    return NONNEGATIVE, output, np.ones(output.shape), axis


def _refusal(constraint: Any, reason: str) -> UnsupportedProblem:
    return UnsupportedProblem(
        f"the constraint {shortened(constraint)} is not linear and {reason}, or solve with cp.CLARABEL."
    )
