"""The bridge between gated and ReLU networks: what each says about the other, in numbers.

For the same gates and the same ``reg`` let d* be the optimum of the gated program and p* that of the ReLU
program. Every ReLU solution is a gated one, and a gated solution splits into ReLU neurons (its cone
decomposition), so

    d*  <=  p*  <=  the decomposed network's objective,

whichever way its neurons are split: at the least cost, or by the smooth approximation.

For ``reg -> 0`` the first two meet if every gate's cone ``{u : (2 D - I) X u >= 0}`` has an interior, because
then every u is a difference of two points of the cone; with a gate through a sample they need not. For larger
``reg`` the distances are large in general, which is why they are computed here and not estimated.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from convexnn_models import _arrays
from convexnn_models.cone_decomposition import to_relu
from convexnn_models.gated_relu import gated_relu
from convexnn_models.gates import Gates
from convexnn_models.losses import LossFunction, takes_loss_options
from convexnn_models.recovery import recover_two_layer
from convexnn_models.relu import relu
from convexnn_solvers.certify.certificate import certificate
from convexnn_solvers.solver_classes import Auto


@dataclass(frozen=True)
class BridgePoint:
    """``gated <= d*`` and ``relu_lower <= p* <= relu_upper <= ...``, each certified, for one ``reg``.

    ``decomposed``: the objective of the ReLU network of the gated solution's decomposition, with refitted
    scales; ``raw``: before refitting; ``approximate``, ``approximate_raw``: the same with the approximate
    split, so ``raw <= approximate_raw`` up to the solver's accuracy, while refitting may turn the order of
    the other two around; ``zero``: of the best network without neurons.
    """

    reg: float
    gated: float
    relu_lower: float
    relu_upper: float
    decomposed: float
    raw: float
    approximate: float
    approximate_raw: float
    zero: float

    @property
    def gap(self) -> float:
        """How far gated and the better decomposed network leave p* undecided, relative to the latter."""
        upper = min(self.decomposed, self.approximate)
        return (upper - self.gated) / upper if upper > 0.0 else 0.0


@takes_loss_options
def gated_bridge(
    X: Any,
    y: Any,
    regs: Iterable[float],
    gates: Gates,
    *,
    bias: bool = False,
    output_bias: bool = False,
    loss: str | LossFunction = "squared",
    solver: Any = None,
    **options: Any,
) -> list[BridgePoint]:
    """These values for every regularisation of ``regs``, one output.

    Parameters
    ----------
    X, y : arrays (n, d) and (n,)
        The training samples.
    regs : sequence of float
        Positive.
    gates : Gates
        Of both programs. With ``all_gates(X)`` p* is the optimum over all ReLU networks.
    bias, output_bias, loss, **options
        As for :func:`relu` and its ``problem``.
    solver : CVXPY solver, optional
        For both programs; by default :class:`Auto` to a relative gap of 1e-6.

    The bounds are those of certificates, so they hold whatever the solver's accuracy. Raises ValueError or
    TypeError when an argument cannot be meant, and when a gate passes through a sample (see :func:`to_relu`).
    """
    strengths = [_arrays.positive(reg, "regs") for reg in _arrays.listed(regs, "regs")]
    chosen = Auto(tol=1e-6) if solver is None else solver
    models = [f(X, gates, bias=bias, output_bias=output_bias) for f in (gated_relu, relu)]
    points = []
    for strength in strengths:
        proofs = []
        for model in models:
            problem = model.problem(y, strength, loss, **options)
            problem.solve(solver=chosen)
            proofs.append(certificate(problem))
        gated, exact = proofs
        if gated.dual is None or exact.dual is None:
            raise ValueError(f"loss {loss!r} has no bound; use a named one.")
        network = recover_two_layer(models[0])
        found, rough = (to_relu(network, approximate=way).info for way in (False, True))
        points.append(
            BridgePoint(
                reg=strength,
                gated=gated.dual,
                relu_lower=exact.dual,
                relu_upper=exact.primal,
                decomposed=found.objective,
                raw=found.raw_objective,
                approximate=rough.objective,
                approximate_raw=rough.raw_objective,
                zero=found.zero_objective,
            )
        )
    return points
