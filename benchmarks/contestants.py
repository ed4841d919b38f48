"""Who takes part: our solvers and the conic solvers that CVXPY knows. Other packages are in ``peers``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import cvxpy as cp
import numpy as np

from benchmarks.cases import Instance
from benchmarks.referee import TARGETS, Referee
from convexnn_solvers import RFISTA, AugmentedLagrangian, Auto, BlockDescent, DualPoint, SemismoothNewton

# Conic solvers get the n x (d P) matrix and need several copies of it; larger ones are not tried.
_MOST_ENTRIES = 150_000_000


class Contestant(Protocol):
    """One method; all of them share this and nothing else."""

    @property
    def name(self) -> str:
        """What its rows are called."""
        ...

    def can_take(self, instance: Instance) -> str | None:
        """Why it does not take part, or None."""
        ...

    def solve(self, instance: Instance, referee: Referee) -> None:
        """Solve from cold until the referee has seen enough; points are in our variables and scaling."""
        ...


@dataclass(frozen=True)
class Ours:
    """One of our solvers: a solve per target, since they stop at their own certificate, which is charged."""

    name: str
    make: Callable[..., Any]
    cones: bool | None = None

    def can_take(self, instance: Instance) -> str | None:
        """Two take no constraints, and the augmented Lagrangian is R-FISTA without them."""
        if self.cones is not None and self.cones != instance.relu:
            return "takes no constraints" if instance.relu else "is R-FISTA where there are no constraints"
        return None

    def solve(self, instance: Instance, referee: Referee) -> None:
        """Once per target, each from cold."""
        for target in TARGETS:
            model, problem = instance.problem()
            referee.begin()
            problem.solve(solver=self.make(tol=target, time_limit=referee.cap))
            extra = problem.solver_stats.extra_stats
            referee.compiled(float(extra["compile_seconds"]))
            dual = extra["dual_point"]
            duals = [dual] if isinstance(dual, DualPoint) else []
            referee.look([variable.value for variable in model.variables], duals)
            if not referee.reached(target):
                referee.reason = f"{extra['status'].name.lower()} at tol={target:g}"
                return


@dataclass(frozen=True)
class Conic:
    """A solver behind CVXPY: compiled once (charged to every solve), then a ladder of tolerances.

    ``options(tolerance, seconds)`` are the solver's own.
    """

    name: str
    options: Callable[[float, float], Mapping[str, Any]]
    tolerances: tuple[float, ...] = (1e-5, 1e-7, 1e-9, 1e-11)

    def can_take(self, instance: Instance) -> str | None:
        """Needs to be installed, and the matrix to fit."""
        if self.name not in cp.installed_solvers():
            return "is not installed (or has no licence)"
        n, d = instance.X.shape
        entries = n * d * len(instance.gates) * instance.outputs * (3 if instance.relu else 1)
        return f"not tried with {entries:.0e} matrix entries" if entries > _MOST_ENTRIES else None

    def solve(self, instance: Instance, referee: Referee) -> None:
        """Compile, then solve to tighter and tighter tolerances until the last target is certified."""
        model, problem = instance.problem()
        referee.begin()
        data, chain, inverse = problem.get_problem_data(self.name, solver_opts={})
        compile_seconds = referee.seconds
        for tolerance in self.tolerances:
            referee.begin(compile_seconds)
            referee.compiled(compile_seconds)
            options = dict(self.options(tolerance, referee.remaining))
            solution = chain.solve_via_data(problem, data, False, False, options)
            seconds = referee.seconds
            try:
                problem.unpack_results(solution, chain, inverse)
            except cp.SolverError as error:
                referee.reason = " ".join(str(error).split())
                return
            values = [variable.value for variable in model.variables]
            if any(value is None or not np.isfinite(value).all() for value in values):
                referee.reason = f"no point at tolerance {tolerance:g} ({problem.status})"
                return
            if referee.look(values) or seconds >= 0.95 * referee.cap:
                return


def _clarabel(tolerance: float, seconds: float) -> Mapping[str, Any]:
    names = ("tol_gap_abs", "tol_gap_rel", "tol_feas")
    return {**dict.fromkeys(names, tolerance), "time_limit": seconds, "max_iter": 1000, "max_threads": 1}


def _scs(tolerance: float, seconds: float) -> Mapping[str, Any]:
    return {
        "eps_abs": tolerance,
        "eps_rel": tolerance,
        "max_iters": 10_000_000,
        "time_limit_secs": seconds,
        "acceleration_lookback": 10,
    }


def _mosek(tolerance: float, seconds: float) -> Mapping[str, Any]:
    kinds = ("REL_GAP", "PFEAS", "DFEAS")
    tolerances = {f"MSK_DPAR_INTPNT_CO_TOL_{kind}": tolerance for kind in kinds}
    limits = {"MSK_DPAR_OPTIMIZER_MAX_TIME": seconds, "MSK_IPAR_NUM_THREADS": 1}
    return {"mosek_params": {**tolerances, **limits}, "accept_unknown": True}


def contestants() -> dict[str, Contestant]:
    """All of them by name, ours first."""
    from benchmarks.peers import Celer, Scnn, Skglm

    listed: list[Contestant] = [
        Ours("Auto", Auto),
        Ours("SemismoothNewton", SemismoothNewton),
        Ours("BlockDescent", BlockDescent, cones=False),
        Ours("RFISTA", RFISTA, cones=False),
        Ours("AugmentedLagrangian", AugmentedLagrangian, cones=True),
        Scnn(),
        Skglm(),
        Celer(),
        Conic("CLARABEL", _clarabel),
        Conic("SCS", _scs),
        Conic("MOSEK", _mosek),
        Conic("MOREAU", lambda tolerance, seconds: {}, tolerances=(1e-8,)),
    ]
    return {contestant.name: contestant for contestant in listed}
