"""Our solvers as CVXPY sees them: ``problem.solve(solver=RFISTA())`` on any plain ``cp.Problem``.

The solvers stand alone in their chain and take the expressions as the user wrote them: nothing is
canonicalised, and matrices of the size n x (d P) are never formed. This is the only file that imports
``cvxpy.reductions``. The compiler is imported by the first solve: importing the package has to stay cheap.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from importlib.metadata import version
from itertools import chain
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cvxpy as cp
import numpy as np
from cvxpy import settings
from cvxpy.reductions.solution import Solution
from cvxpy.reductions.solvers.constant_solver import ConstantSolver
from cvxpy.reductions.solvers.solver import Solver
from cvxpy.reductions.solvers.solving_chain import SolvingChain

from convexnn_solvers.backends import numpy_backend
from convexnn_solvers.composite import Composite, DualPoint
from convexnn_solvers.loop.result import Progress, Result
from convexnn_solvers.named_options import checked_options
from convexnn_solvers.options import Options
from convexnn_solvers.problem_state import compiled, left_by_last, starts, warm_duals
from convexnn_solvers.status import Status

if TYPE_CHECKING:
    from convexnn_solvers.loop.iterate import Method
    from convexnn_solvers.loop.relay import Engine

_UNREACHED = (
    "{name} takes the problem before CVXPY compiles it, and CVXPY {version} has no door for that which we "
    "know; use problem.solve(method='{name}')."
)


@dataclass(frozen=True, eq=False)
class Solved:
    """What travels from ``solve_via_data`` to ``invert``."""

    result: Result
    composite: Composite
    compile_seconds: float
    engines: list[dict[str, str]]


class CompositeSolver(Solver):  # type: ignore[misc]
    """What our solvers have in common; a subclass names itself and says which method it runs.

    Instances with equal options are equal, so that CVXPY keeps what it cached for the problem.
    """

    MIP_CAPABLE = False
    BOUNDED_VARIABLES = True

    @checked_options
    def __init__(
        self,
        *,
        tol: float = 1e-4,
        max_iter: int = 100_000,
        time_limit: float | None = None,
        device: str = "cpu",
        dtype: str = "float64",
        backend: str | None = None,
        memory: float | None = None,
        verbose: bool = False,
        callback: Callable[[Progress], object] | None = None,
        checkpoint: str | PathLike[str] | None = None,
        checkpoint_interval: float = 60.0,
        resume: bool = False,
    ) -> None:
        super().__init__()
        self.options = Options(
            tol=tol,
            max_iter=max_iter,
            time_limit=time_limit,
            device=device,
            dtype=dtype,
            backend=backend,
            memory=memory,
            verbose=verbose,
            callback=callback,
            checkpoint=checkpoint,
            checkpoint_interval=checkpoint_interval,
            resume=resume,
        )

    def method(
        self, composite: Composite, exact: Composite, multipliers: DualPoint, options: Options
    ) -> Method[Any]:
        """The algorithm for one problem; ``multipliers`` is the dual point to start from.

        ``composite`` lives on the backend of the options, ``exact`` is the same in float64 with NumPy.
        """
        raise NotImplementedError

    def engines(
        self, composite: Composite, exact: Composite, multipliers: DualPoint, options: Options
    ) -> Iterator[Engine]:
        """What to run, in this order, each only when the one before got stuck: here :meth:`method` alone."""
        from convexnn_solvers.loop.relay import Engine

        method = self.method(composite, exact, multipliers, options)
        return iter([Engine(self.name(), "asked for by name", lambda: method)])

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other.options == self.options

    def __hash__(self) -> int:
        return hash((type(self), self.options))

    def __getstate__(self) -> dict[str, Any]:
        """Options by name: in what an earlier version stored, those that came later have their defaults."""
        return vars(self) | {"options": vars(self.options)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, value)
        # Not checked again: the folder of a checkpoint need not be on the machine that reads this.
        self.options = Options()
        self.options.__dict__.update(state["options"])

    def __repr__(self) -> str:
        values = ((field, getattr(self.options, field.name)) for field in fields(Options))
        given = ", ".join(f"{field.name}={value!r}" for field, value in values if value != field.default)
        return f"{type(self).__name__}({given})"

    def name(self) -> str:
        """The name of the class, which is also that of its door."""
        return type(self).__name__

    def import_solver(self) -> None:
        """Nothing to import."""

    def cite(self, data: Any) -> str:
        """The paper that this solver follows, as BibTeX."""
        return _CITATION

    def can_solve(self, problem_form: Any) -> bool:
        """Only asked where our door does not hang; says which one does."""
        raise cp.SolverError(_UNREACHED.format(name=self.name(), version=version("cvxpy")))

    def accepts(self, problem: Any) -> bool:
        """Whether the problem is left as it stands, which it always is."""
        return True

    def apply(self, problem: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """The problem itself is the data, and the dual point that its last solve left."""
        return {"problem": problem, "left": left_by_last(problem)}, {}

    def solve_via_data(
        self,
        data: dict[str, Any],
        warm_start: bool,
        verbose: bool,
        solver_opts: dict[str, Any],
        solver_cache: Any = None,
    ) -> Solved:
        """Compile (once per problem and backend), put in the Parameter values of now, and iterate.

        A warm start begins at the variables' values and the dual point of ``data``.
        """
        started = time.perf_counter()
        from convexnn_solvers.certify.certifier import Certifier
        from convexnn_solvers.loop.checkpoint import File, identity, keeper_for
        from convexnn_solvers.loop.iterate import Limits
        from convexnn_solvers.loop.relay import run_engines

        problem = data["problem"]
        options = self.options.updated(self.name(), solver_opts)
        backend, reference = options.selected_backend(), numpy_backend()
        composite = compiled(problem, backend, options.memory).composite()
        # What the device may use says nothing about the host.
        exact = composite if backend == reference else compiled(problem, reference).composite()
        multipliers = warm_duals(problem, exact, data["left"]) if warm_start else DualPoint(())
        engines = self.engines(composite, exact, multipliers, options)
        # The first one is made now: what it loads counts as compiling.
        engines = chain([next(engines)], engines)
        judge = Certifier(exact)
        limits = Limits(
            tol=options.tol,
            max_iter=options.max_iter,
            time_limit=options.time_limit,
            verbose=options.verbose or verbose,
            callback=options.callback,
            started=started,
        )
        compile_seconds = time.perf_counter() - started
        begin = starts(problem, exact, warm_start, data["left"])
        kept = None
        if options.checkpoint is not None:
            file = File(Path(options.checkpoint))
            kept = keeper_for(file, options.checkpoint_interval, options.resume, identity(exact))
        result, engines_run = run_engines(engines, composite, judge, begin, limits, kept)
        return Solved(result, exact, compile_seconds, engines_run)

    def invert(self, solution: Solved, inverse_data: Any) -> Any:
        """CVXPY's Solution: status, value, variables, dual values and statistics."""
        result, composite = solution.result, solution.composite
        statistics = {
            settings.SOLVE_TIME: result.seconds - solution.compile_seconds,
            settings.SETUP_TIME: solution.compile_seconds,
            settings.NUM_ITERS: result.iterations,
            settings.EXTRA_STATS: {
                "certificate": result.certificate,
                "dual_point": result.certificate.dual_point,
                "iterations": result.iterations,
                "history": list(result.history),
                "status": result.status,
                "compile_seconds": solution.compile_seconds,
                "engines": solution.engines,
            },
        }
        status = result.status.cvxpy
        pairs = zip(composite.constraints, result.multipliers, strict=False)
        duals = {t.id: mu if t.to_dual_value is None else t.to_dual_value(mu) for t, mu in pairs}
        if result.status is Status.UNBOUNDED:
            return Solution(status, composite.sign * -np.inf, {}, {}, statistics)
        if result.status is Status.INFEASIBLE:  # the dual values are the proof
            return Solution(status, composite.sign * np.inf, {}, duals, statistics)
        primal = {block.id: value for block, value in zip(composite.variables, result.point, strict=True)}
        return Solution(status, result.certificate.primal, primal, duals, statistics)


def own_solver(classes: Sequence[type[CompositeSolver]], solver: Any) -> CompositeSolver | None:
    """One of our solvers, an instance or the name of one of the classes; None for anybody else's."""
    if isinstance(solver, str):
        solver = next((cls() for cls in classes if cls.__name__.upper() == solver.upper()), None)
    if isinstance(solver, type) and issubclass(solver, CompositeSolver):
        raise cp.SolverError(f"solver={solver.__name__} is a class; write solver={solver.__name__}().")
    return solver if isinstance(solver, CompositeSolver) else None


def solver_chain(classes: Sequence[type[CompositeSolver]], problem: Any, solver: Any) -> Any | None:
    """The chain for one of our solvers, see :func:`own_solver`; None for anybody else's."""
    found = own_solver(classes, solver)
    if found is None:
        return None
    if not problem.variables():
        return SolvingChain(reductions=[ConstantSolver()])
    return SolvingChain(reductions=[found])


_CITATION = """@inproceedings{mishkin2022fast,
  title={Fast Convex Optimization for Two-Layer {ReLU} Networks:
         Equivalent Model Classes and Cone Decompositions},
  author={Mishkin, Aaron and Sahiner, Arda and Pilanci, Mert},
  booktitle={International Conference on Machine Learning},
  year={2022}
}"""
