"""Newton's method on the optimality conditions themselves: point and dual variable in one step.

With ``V = prox(U - sigma A^T xi)`` a pair is optimal when ``U = V`` and ``F*'(xi) = A V``. The method's inner
problems solve the second equation for a fixed U, and penalties have to grow until U follows. Where the active
blocks, and with cones their rows, are those of the optimum, both are smooth there, and Newton's method on the
two converges quadratically from any penalty. With T_b = V_b / ||V_b|| and the free directions N_b, the first
one says on an active block, linearised,

    dV_b = -M_b ((U_b - V_b) / sigma + A_b^T dxi),
    M_b = (||V_b|| / tau_b) (N_b N_b^T - T_b T_b^T) + large T_b T_b^T,

for ``large`` without bound: along T_b the dual product has to reach its threshold, whatever the length of
V_b. So the matrix for dxi is that of an inner problem with a very large penalty, at its solution.

Between two regularisations, or two steps, that matrix changes little: a step with the one before costs two
products and a triangular solve, and still comes much closer (a simplified Newton step, or chord).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from convexnn_solvers.backends import Float64Array
from convexnn_solvers.gated_programs.features import BlockFeatures
from convexnn_solvers.gated_programs.program import GatedProgram, block_norms
from convexnn_solvers.newton.blocks import ActiveBlocks
from convexnn_solvers.newton.operator import NewtonOperator, newton_operator

# The penalty that stands for an unbounded one, over the largest ||V_b|| / tau_b: its inverse is what a step
# leaves. In cones exact factors do not mind a larger one; beside the mean of the gates it takes iterations.
_LARGE, _LARGE_IN_CONES = 1e3, 1e4


@dataclass(frozen=True, eq=False)
class PairStep:
    """The change of the dual variable (n, 1), its products (1, d, P), the blocks' new values (1, d, m)."""

    xi: Float64Array
    products: Float64Array
    values: Float64Array


def pair_operator(
    program: GatedProgram, active: ActiveBlocks, features: BlockFeatures, curvature: Float64Array
) -> NewtonOperator:
    """The matrix for dxi: that of an inner problem with a very large penalty, at its solution."""
    lengths = block_norms(active.values)
    weights = program.weights[active.blocks]
    large = (_LARGE_IN_CONES if program.cones else _LARGE) * float(np.max(lengths / weights))
    norms = lengths + large * weights
    projected = active.projected * (norms / active.norms)
    far = replace(active, projected=projected, norms=norms, thresholds=large * weights)
    return replace(newton_operator(program, far, features, large, curvature), pair=True)


def pair_step(
    program: GatedProgram,
    operator: NewtonOperator,
    values: Float64Array,
    missed: Float64Array,
    gradient: Float64Array,
    solve: Callable[[Float64Array], Float64Array],
    adjoint: Callable[[Float64Array], Float64Array],
) -> PairStep:
    """One step from the proximal values V (1, d, m) of the operator's blocks, where ``missed`` (1, d, m) is
    ``(U - V) / sigma`` on them and ``gradient`` (n, 1) is ``F*'(xi) - A V``.

    ``solve`` solves with the operator, (n, 1) for (n, 1); ``adjoint`` gives the products (1, d, P) of all
    gates with (n, 1).
    """
    blocks = operator.active.blocks
    gates, signs = program.block_gates(blocks), program.block_signs(blocks)
    first = operator.sigma * operator.jacobian.apply(missed)
    xi = -solve(gradient + operator.features.forward(first * signs))
    products = adjoint(xi)
    second = operator.sigma * operator.jacobian.apply(products[:, :, gates] * signs)
    return PairStep(xi, products, values - first - second)
