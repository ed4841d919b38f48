"""The augmented Lagrangian; where nothing is left for multipliers, on working sets of gates in cones."""

from __future__ import annotations

from typing import Any

from convexnn_solvers.composite import Composite, DualPoint
from convexnn_solvers.first_order.augmented_lagrangian import augmented_lagrangian_method
from convexnn_solvers.first_order.gate_columns import gate_columns
from convexnn_solvers.first_order.gate_descent import GateDescent
from convexnn_solvers.loop.iterate import Method
from convexnn_solvers.reading.affine import UnsupportedProblem


def constrained_method(composite: Composite, exact: Composite, tol: float, warm: DualPoint) -> Method[Any]:
    """The method for a problem with constraints or losses without a gradient.

    Where the only constraints are pattern cones of all gates of one prediction with a smooth loss, its steps
    are on a working set of gates; ``exact`` is the problem in float64 with NumPy. On devices cones are left
    to multipliers, since projections run on the host. Raises UnsupportedProblem as
    :func:`~augmented_lagrangian.augmented_lagrangian_method` does.
    """
    on_cpu = str(composite.backend.device) == "cpu"
    if on_cpu:
        try:
            return GateDescent(gate_columns(composite, exact), tol, name="augmented Lagrangian")
        except UnsupportedProblem:
            pass
    return augmented_lagrangian_method(composite, project_cones=on_cpu, warm=warm)
