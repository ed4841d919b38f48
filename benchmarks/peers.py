"""Other packages, at their best settings: scnn (R-FISTA and its augmented Lagrangian), skglm and celer.

scnn reports through its own callback, with metrics off; skglm continues from tolerance to tolerance; celer
starts anew for each. All in float64 (float32 cannot certify 1e-6).
"""

from __future__ import annotations

import importlib
import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.cases import Float64Array, Instance
from benchmarks.referee import Referee
from benchmarks.scalings import from_groups, gated_features, scnn_terms
from convexnn_solvers import DualPoint

# Materialised features above this many bytes are declined.
_MOST_BYTES = 4 * 2**30


class _Enough(Exception):
    """The referee has seen enough."""


@dataclass(frozen=True)
class Scnn:
    """scnn 0.0.10: R-FISTA for gated programs, its augmented Lagrangian for ReLU programs."""

    name: str = "scnn"

    def can_take(self, instance: Instance) -> str | None:
        """One group per output only."""
        if instance.outputs > 1 and instance.grouping != "per-output":
            return "has one group per output only"
        return _missing("scnn.optimize")

    def solve(self, instance: Instance, referee: Referee) -> None:
        """One run, without tolerance, until the referee has seen enough."""
        lab, interface = importlib.import_module("lab"), importlib.import_module("scnn.private.interface")
        public, models = (
            importlib.import_module("scnn.models"),
            importlib.import_module("scnn.private.models"),
        )
        solvers, metrics = importlib.import_module("scnn.solvers"), importlib.import_module("scnn.metrics")
        regularizer = importlib.import_module("scnn.regularizers").NeuronGL1
        interface.set_device("cpu", "float64", 0)
        referee.begin()
        terms = scnn_terms(instance.X, instance.reg, instance.outputs)
        kind = regularizer(terms.lam)
        d, c = instance.X.shape[1], instance.outputs
        D, G = lab.tensor(instance.gates.patterns * 1.0), lab.tensor(instance.gates.vectors)
        internal = interface.build_internal_regularizer(kind)
        settings = metrics.Metrics(metric_freq=10**9)
        if instance.relu:
            model = models.AL_MLP(d, D, G, "einsum", delta=1000, regularizer=internal, c=c)
            solver = solvers.AL(
                public.ConvexReLU(instance.gates.vectors, c=c), max_primal_iters=10**8, max_dual_iters=10**8
            )
        else:
            model = models.ConvexMLP(d, D, G, "einsum", regularizer=internal, c=c)
            solver = solvers.RFISTA(
                public.ConvexGatedReLU(instance.gates.vectors, c=c), max_iters=10**8, tol=0.0
            )
        procedure = interface.build_optimizer(solver, kind, settings)
        if instance.relu:
            criteria = importlib.import_module("scnn.private.methods")
            procedure.outer_term_criterion = criteria.ConstrainedHeuristic(0.0, 0.0)
        procedure.metric_freq = procedure.log_freq = 10**9

        def submit(state: Any, X: Any, y: Any) -> Any:
            if referee.due or referee.seconds >= referee.cap:
                weights = np.asarray(state.weights).reshape(-1, c, len(instance.gates), d)
                if referee.look([terms.ours(part) for part in weights]):
                    raise _Enough
            return state

        train = (lab.tensor(terms.X), lab.tensor(instance.Y.reshape(len(instance.Y), -1)))
        referee.compiled()
        try:
            procedure(
                logging.getLogger("scnn"), model, lambda m: m, train, train, ([], [], []), callback=submit
            )
        except _Enough:
            return
        referee.reason = "stopped by itself"


@dataclass(frozen=True)
class Skglm:
    """skglm's GroupBCD (block descent, working sets, Anderson acceleration) on materialised features."""

    name: str = "skglm"

    def can_take(self, instance: Instance) -> str | None:
        """Unconstrained programs whose features fit, one group per output."""
        return _no_group_lasso(instance) or _missing("skglm")

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
        return _no_group_lasso(instance) or _missing("celer")

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


def _missing(module: str) -> str | None:
    """Why a package cannot be imported, or None."""
    try:
        importlib.import_module(module)
    except ImportError as error:
        return f"cannot be imported: {error}"
    return None
