"""Other packages, at their best settings: scnn (R-FISTA and its augmented Lagrangian), skglm and celer.

scnn reports through its own callback, with metrics off; skglm continues from tolerance to tolerance; celer
starts anew for each. All in float64 (float32 cannot certify 1e-6).
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.cases import Float64Array, Instance
from benchmarks.referee import Referee
from benchmarks.scalings import from_groups, gated_features
from benchmarks.scnn_run import Fetch, ScnnRun, load_scnn, missing
from convexnn_solvers import DualPoint

# Materialised features above this many bytes are declined.
_MOST_BYTES = 4 * 2**30


@dataclass(frozen=True)
class Scnn:
    """scnn 0.0.10: R-FISTA for gated programs, its augmented Lagrangian for ReLU programs.

    ``device``, ``dtype`` and ``torch`` as in :class:`benchmarks.scnn_run.ScnnRun`.
    """

    name: str = "scnn"
    device: str = "cpu"
    dtype: str = "float64"
    torch: bool = False

    def can_take(self, instance: Instance) -> str | None:
        """One group per output only."""
        if instance.outputs > 1 and instance.grouping != "per-output":
            return "has one group per output only"
        return missing("scnn.optimize")

    def solve(self, instance: Instance, referee: Referee) -> None:
        """One run, without tolerance, until the referee has seen enough."""
        load_scnn()
        referee.begin()
        terms = instance.X, instance.Y, instance.gates, instance.reg
        run = ScnnRun(*terms, instance.relu, self.device, self.dtype, self.torch)
        referee.compiled()

        def enough(fetch: Fetch) -> bool:
            return (referee.due or referee.seconds >= referee.cap) and referee.look(fetch())

        if not run.until(enough):
            referee.reason = "stopped by itself"


@dataclass(frozen=True)
class Skglm:
    """skglm's GroupBCD (block descent, working sets, Anderson acceleration) on materialised features."""

    name: str = "skglm"

    def can_take(self, instance: Instance) -> str | None:
        """Unconstrained programs whose features fit, one group per output."""
        return _no_group_lasso(instance) or missing("skglm")

    def solve(self, instance: Instance, referee: Referee) -> None:
        """Continue to smaller and smaller violations of optimality, by factors of 4."""
        groups = importlib.import_module("skglm.datafits").QuadraticGroup
        penalties = importlib.import_module("skglm.penalties").WeightedGroupL2
        method = importlib.import_module("skglm.solvers").GroupBCD
        d, gates = instance.X.shape[1], len(instance.gates)
        referee.begin()
        features = gated_features(instance.X, instance.gates.patterns)
        pointers = np.arange(0, d * gates + 1, d, dtype=np.int32)
        indices = np.arange(d * gates, dtype=np.int32)
        penalty = penalties(instance.reg, np.ones(gates), pointers, indices)
        datafit = groups(pointers, indices)
        targets = instance.Y.reshape(len(instance.Y), -1)
        coefficients = [np.zeros(d * gates) for _ in targets.T]
        fits = [np.zeros(len(targets)) for _ in targets.T]
        referee.compiled()
        tolerance = instance.reg / 16.0
        while tolerance > 1e-13 * instance.reg:
            solver = method(max_iter=1000, max_epochs=1000, tol=tolerance)
            for k, y in enumerate(targets.T):
                target = np.ascontiguousarray(y)
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    solution = solver.solve(features, target, datafit, penalty, coefficients[k], fits[k])
                coefficients[k] = solution[0]
                fits[k] = features @ coefficients[k]
            if referee.look([from_groups(np.stack(coefficients, axis=1), d)]):
                return
            tolerance /= 4.0
        referee.reason = "its smallest tolerance was met"


@dataclass(frozen=True)
class Celer:
    """celer's group Lasso (block descent, dual extrapolation, working sets) on materialised features."""

    name: str = "celer"

    def can_take(self, instance: Instance) -> str | None:
        """Unconstrained programs whose features fit, one group per output."""
        return _no_group_lasso(instance) or missing("celer")

    def solve(self, instance: Instance, referee: Referee) -> None:
        """Once per tolerance on its duality gap, each from cold; the judge gets its dual point too."""
        path = importlib.import_module("celer").celer_path
        d, targets = instance.X.shape[1], instance.Y.reshape(len(instance.Y), -1)
        scale = float(np.mean(targets**2)) / 2.0
        for relative in (1e-3, 1e-5, 1e-7, 1e-9):
            referee.begin()
            features = gated_features(instance.X, instance.gates.patterns)
            referee.compiled()
            found: list[Float64Array] = []
            thetas: list[Float64Array] = []
            for y in targets.T:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    solution: Sequence[Any] = path(
                        features,
                        np.ascontiguousarray(y),
                        "grouplasso",
                        alphas=[instance.reg],
                        groups=d,
                        max_iter=1000,
                        tol=relative * scale,
                        prune=1,
                        return_thetas=True,
                    )
                found.append(solution[1][:, 0])
                thetas.append(solution[3][0])
            theta = thetas[0] if instance.Y.ndim == 1 else np.stack(thetas, axis=1)
            if referee.look([from_groups(np.stack(found, axis=1), d)], [DualPoint((theta,))]):
                return
        referee.reason = "its smallest tolerance was met"


def _no_group_lasso(instance: Instance) -> str | None:
    if instance.relu:
        return "takes no constraints"
    if instance.outputs > 1 and instance.grouping != "per-output":
        return "has groups of one output only"
    size = 8 * instance.X.size * len(instance.gates)
    return f"materialised features take {size / 2**30:.1f} GB" if size > _MOST_BYTES else None
