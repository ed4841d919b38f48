"""How far points are outside of constraints: in units of their rows, and in units of the objective.

What passes as feasible is judged row by row. Where nothing says how large a row is, as in ``G x == 0`` at
points that are tiny, a point may pass that misses the row by a large part of itself; what that saved is seen
in the objective, at the multipliers of a dual bound.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from convexnn_solvers.backends import Float64Array
from convexnn_solvers.certify.dual_directions import Multipliers
from convexnn_solvers.certify.free_variables import Arrays
from convexnn_solvers.certify.row_sizes import row_sizes
from convexnn_solvers.composite import Composite, PatternCone, Point
from convexnn_solvers.functions.constraint_cones import NONNEGATIVE, ZERO

# A violation up to this, in the units of its row (see :func:`allowances`), still counts as feasible.
FEASIBLE = 1e-6
# Rounding in the constraints of a repaired point is not worth a word.
SILENT = 1e-12


class Violation(NamedTuple):
    """Of one constraint: the ``largest`` violation, and the ``worst`` one for what may pass there.

    ``excess`` is that one over what may pass.
    """

    largest: float
    worst: float
    excess: float
    text: str


def violations(
    composite: Composite, x: Arrays, outputs: Point, allowances: Sequence[Float64Array]
) -> list[Violation]:
    """Of each constraint and bound; ``allowances`` are those of the composite, see :func:`allowances`."""
    found: list[Violation] = []
    slacks = outputs[len(composite.losses) :]
    for term, output, allowed in zip(composite.constraints, slacks, allowances, strict=True):
        value = np.asarray(output, dtype=np.float64)
        if term.pattern_cone is not None:
            size = _sizes_of_rays(term.pattern_cone, x[term.pattern_cone.variable])
            outside = term.cone.violations(np.min(value, axis=1, initial=0.0))
            beyond, allowed = np.maximum(outside - SILENT * size, 0.0), FEASIBLE * np.minimum(size, 1.0)
        else:
            outside = beyond = term.cone.violations(value)
            if term.cone not in (ZERO, NONNEGATIVE):  # there entries of a cone lend each other their size
                allowed = allowed + FEASIBLE * term.cone.even(np.abs(value))
        if outside.size:
            shares, outside = np.broadcast_arrays(beyond / allowed, outside)
            worst = np.unravel_index(int(np.argmax(shares)), shares.shape)
            found.append(
                Violation(float(outside.max()), float(outside[worst]), float(shares[worst]), term.text)
            )
    for value, block in zip(x, composite.variables, strict=True):
        for limit, sign in ((block.lower, 1.0), (block.upper, -1.0)):
            if limit is not None:
                past = float(np.max(sign * (limit - value), initial=0.0))
                found.append(Violation(past, past, past / FEASIBLE, f"the bounds of {block.name}"))
    return found


def price_of_violations(composite: Composite, outputs: Point, multipliers: Multipliers) -> float:
    """``sum <mu, v>`` over the constraints, with ``v`` the least that takes ``G x + e`` into its cone.

    The point is feasible for the program whose constraints are relaxed by ``v``. A dual point with these
    multipliers proves a bound for that one, too, lower than the program's own by no more than this price: so
    much may the objective owe to violations, in its own units. Pattern cones have none; they are repaired,
    or have a unit that comes from the point.
    """
    price, slacks = 0.0, outputs[len(composite.losses) :]
    for term, output, mu in zip(composite.constraints, slacks, multipliers, strict=True):
        if mu is None or term.pattern_cone is not None or not np.any(mu):
            continue
        value = np.asarray(output, dtype=np.float64)
        missing = np.asarray(term.cone.project(value, np), dtype=np.float64) - value
        share = np.sum(np.abs(mu * missing)) if term.cone == ZERO else np.sum(mu * missing)
        price += max(float(share), 0.0)
    return price


def allowances(composite: Composite) -> list[Float64Array]:
    """Of every row of ``G x + e`` the violation that may pass as rounding: its unit's millionth.

    The unit is 1, or less in a row in small units: the size of e or, if larger, that of G x for x of size
    one. A row such as ``1e-8 x >= 1e-7`` would otherwise hold everywhere. Inequalities in large units, of
    an e beyond 1, may miss more. None for pattern cones, which have no such unit (:func:`_sizes_of_rays`).
    """
    offsets = composite.offsets()[len(composite.losses) :]
    found = []
    for term, slopes, offset in zip(composite.constraints, row_sizes(composite), offsets, strict=True):
        if term.pattern_cone is not None:
            found.append(np.empty(0))
            continue
        e = term.cone.even(np.abs(np.asarray(offset, dtype=np.float64)))
        size = np.maximum(slopes, e)
        unit = np.where(size > 0.0, np.minimum(size, 1.0), 1.0)
        found.append(FEASIBLE * (unit if term.cone == ZERO else unit + e))
    return found


def _sizes_of_rays(cone: PatternCone, weights: Float64Array) -> Float64Array:
    """Per sample and output the unit of violations of ``(2 D_j - I) X u_j >= 0``: what neurons predict there.

    Multiples of a point in the cone are in it, so that only the point says what is large: for all neurons
    ``a_i = sum_k |x_ik| max_j |u_kj|`` at sample i, and the unit is ``||x_i||`` times the largest
    ``a_i / ||x_i||`` of all samples. A violation is what a recovered neuron predicts at the sample beyond the
    program's. Up to ``1e-12`` units, of the order of what predictions are rounded by, it is none; beyond
    that a millionth of the unit, or of 1 where that is less, may pass.
    """
    largest = np.max(np.abs(weights), axis=1, initial=0.0).reshape(cone.outputs, -1)
    norms = np.linalg.norm(cone.X, axis=1)
    unit = np.where(norms > 0.0, norms, 1.0)
    size = np.max(largest @ np.abs(cone.X / unit[:, None]).T, axis=1, initial=0.0)
    sizes = (size[:, None] * unit).ravel()
    return np.asarray(
        np.maximum(sizes, np.finfo(np.float64).tiny / FEASIBLE)
    )  # nothing is violated where all is zero
