"""R-FISTA as a method of the common loop, for problems without constraints."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from convexnn_solvers.backends import Float64Array
from convexnn_solvers.composite import Composite, Point
from convexnn_solvers.first_order.accelerated import (
    Descent,
    Smooth,
    advance,
    descend_from,
    packed_descent,
    smooth_part,
    unpacked_descent,
)
from convexnn_solvers.first_order.proximal import ProximalMap, proximal_map
from convexnn_solvers.functions.nonsmooth_losses import Nonsmooth
from convexnn_solvers.loop.checkpoint import Arrays
from convexnn_solvers.loop.iterate import Candidate
from convexnn_solvers.reading.affine import UnsupportedProblem


@dataclass(frozen=True, eq=False)
class AcceleratedGradient:
    """The method for :func:`loop.iterate.iterate`: R-FISTA on a problem without constraints."""

    smooth: Smooth
    prox: ProximalMap
    name: str = "R-FISTA"
    judges_itself: bool = False

    def start(self, x: Point) -> Descent:
        """The first step length is the inverse of the estimated Lipschitz constant."""
        lipschitz = self.smooth.lipschitz()
        # Now, since processes that share the gates send no more than one product a step.
        _ = self.smooth.at_zero
        return descend_from(self.smooth, x, 1.0 / lipschitz if lipschitz > 0.0 else 1.0)

    def step(self, state: Descent) -> Descent:
        """One accelerated step."""
        return advance(self.smooth, self.prox, state)

    def residual(self, state: Descent) -> float:
        """NaN when the last step produced one."""
        return 0.0 if math.isinf(state.residual) else state.residual

    def wants_look(self, state: Descent) -> bool:
        """Never: there is no cheaper opinion than the certificate's."""
        return False

    def candidate(self, state: Descent) -> Candidate:
        """The iterate itself; the certificate makes its own dual point of its residual."""
        return Candidate(tuple(self.smooth.composite.backend.to_numpy(a) for a in state.x))

    def multipliers(self, state: Descent) -> tuple[Float64Array, ...]:
        """There are no constraints."""
        return ()

    def packed(self, state: Descent) -> Arrays:
        """The whole state."""
        return packed_descent(state, self.smooth.composite.backend)

    def unpacked(self, arrays: Mapping[str, NDArray[Any]]) -> Descent:
        """The state that was packed."""
        return unpacked_descent(arrays, self.smooth.composite.backend)


def rfista_method(composite: Composite) -> AcceleratedGradient:
    """R-FISTA for a problem without constraints. Raises UnsupportedProblem, naming what it cannot take."""
    check_smooth(composite)
    return AcceleratedGradient(smooth_part(composite), proximal_map(composite))


def check_smooth(composite: Composite) -> None:
    """Raise UnsupportedProblem where there are constraints or losses without a gradient."""
    if composite.constraints:
        raise UnsupportedProblem(
            f"RFISTA takes no constraints, and the problem has {composite.constraints[0].text}; "
            "solve with AugmentedLagrangian() or cp.CLARABEL."
        )
    sharp = nonsmooth_losses(composite)
    if sharp:
        raise UnsupportedProblem(
            f"RFISTA takes losses with a gradient, and {composite.losses[sharp[0]].text} has none; "
            "solve with AugmentedLagrangian() or cp.CLARABEL."
        )


def nonsmooth_losses(composite: Composite) -> tuple[int, ...]:
    """Positions of the losses that have a proximal map instead of a gradient."""
    return tuple(k for k, term in enumerate(composite.losses) if isinstance(term.loss, Nonsmooth))
