"""Dual points of gated programs: the best feasible multiple of a direction, and every block's say in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from convexnn_solvers.backends import Float64Array
from convexnn_solvers.gated_programs.fits import excess
from convexnn_solvers.gated_programs.program import GatedProgram, Indices, block_norms
from convexnn_solvers.newton.blocks import ConeProx


@dataclass(frozen=True, eq=False)
class DualMultiple:
    """``W = -scale xi`` is feasible and has dual value ``value``.

    ``ratios`` (B,): the dual norms of ``-A^T xi`` over their bounds. With cones they are exact only where
    they matter for the scale, and upper bounds elsewhere.
    """

    value: float
    scale: float
    ratios: Float64Array


def best_multiple(
    program: GatedProgram, xi: Float64Array, products: Float64Array, cones: ConeProx | None
) -> DualMultiple:
    """The best feasible multiple of ``-xi``; ``products`` are ``A^T xi`` by block (c, d, B)."""
    wanted = program.fit.wanted_scale(xi)
    ratios = block_norms(products) / program.weights
    if cones is not None and wanted > 0.0:
        long = cones.exceeding(-products, program.weights / wanted)
        points = cones.project(-products[:, :, long], long, program.weights[long] / wanted)
        ratios = np.minimum(ratios, 1.0 / wanted)
        ratios[long] = block_norms(points) / program.weights[long]
    return _multiple(program, xi, ratios)


def multiple_at_proximal_point(
    program: GatedProgram,
    xi: Float64Array,
    products: Float64Array,
    cones: ConeProx,
    active: Indices,
    left: Indices,
) -> DualMultiple:
    """As :func:`best_multiple`, hardly worse, at a point U whose ``V = prox(U - sigma A^T xi)`` is known.

    Where both vanish, the projection that was no longer than ``sigma tau`` was sigma times the dual one. In
    the ``active`` blocks of V its multipliers are almost those of the dual one, and at an optimum the same.
    Only the other blocks of U, which V has ``left``, are projected.
    """
    norms = program.weights.copy()
    norms[active] = cones.bounds(-products[:, :, active], active)
    if left.size:
        norms[left] = block_norms(cones.project(-products[:, :, left], left))
    return _multiple(program, xi, norms / program.weights)


def _multiple(program: GatedProgram, xi: Float64Array, ratios: Float64Array) -> DualMultiple:
    wanted = max(program.fit.wanted_scale(xi), 0.0)
    largest = max(float(np.max(ratios, initial=0.0)), excess(program.fit, xi))
    scale = wanted / max(1.0, wanted * largest)
    return DualMultiple(-program.fit.conjugate(scale * xi), scale, ratios)


@dataclass(frozen=True, eq=False)
class ProgramBounds:
    """Both bounds of a program: the value of a point with its ``offset`` (c,), and of a dual point."""

    primal: float
    offset: Float64Array
    dual: DualMultiple


def bounds_anew(
    program: GatedProgram, U: Float64Array, W: Float64Array, cones: ConeProx | None
) -> ProgramBounds:
    """What a point (c, d, B) and a dual point (n, c) prove, from products that are made for nothing else.

    Whatever led there, products that somebody gave or that many steps added up, is not in them.
    """
    fitted = program.fit.at(program.forward(U))
    primal = fitted.value + float(program.weights @ block_norms(U))
    dual = best_multiple(program, -W, program.by_block(program.adjoint(-W)), cones)
    return ProgramBounds(primal, fitted.offset, dual)


def warm_multiple(
    program: GatedProgram,
    U: Float64Array,
    prediction: Float64Array,
    xi: Float64Array,
    feasible: Callable[[], float],
) -> float:
    """The multiple of a given ``xi`` to start from together with ``U``.

    At an optimum ``-<xi, A U>`` is the penalty of U. The dual point of another regularisation gets there by
    the ratio of the two; without a U, by the multiple that is ``feasible``.
    """
    along = -float(np.vdot(xi, prediction))
    penalty = float(program.weights @ block_norms(U))
    scale = penalty / along if along > 0.0 and penalty > 0.0 else feasible()
    return scale if scale > 0.0 and program.fit.admits(scale * xi) else 1.0
