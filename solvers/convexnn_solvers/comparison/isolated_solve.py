"""What a contestant's own process does: load the problem, start cold, solve, report. See ``isolation``.

Everything is reported as it happens, so that a process that is ended or dies has still told how far it
came. The report holds the point and what the solver left beside it, never an opinion about its quality.
"""

from __future__ import annotations

import os
import pickle
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import cvxpy as cp

from convexnn_solvers.certify.dual_values import left_dual_point
from convexnn_solvers.comparison.peak_memory import peak_mb
from convexnn_solvers.comparison.swallowed_errors import listening
from convexnn_solvers.composite import DualPoint
from convexnn_solvers.interface import CompositeSolver

#: What installed solvers call their own time limit, where hitting it still returns a point.
TIME_LIMIT_OPTIONS = {"CLARABEL": "time_limit", "SCS": "time_limit_secs"}
# Arguments of ``solve`` that are CVXPY's and not the solver's.
_CVXPY_ARGUMENTS = ("canon_backend", "enforce_dpp", "gp", "ignore_dpp", "verbose")
# The share of the time left that a solver may use, so that it can hand in its point before the end.
_SHARE = 0.8


@dataclass(frozen=True)
class Task:
    """A problem without anything cached, who is to solve it, how, and in how many seconds."""

    problem: Any
    solver: Any
    options: Mapping[str, Any]
    time_limit: float


@dataclass(frozen=True)
class Outcome:
    """What a solver left behind: values in the order of ``problem.variables()`` and the constraints' order.

    ``sentence`` is what the solver says of its status, if it says anything.
    """

    status: str
    values: tuple[Any, ...]
    duals: tuple[tuple[Any, ...], ...]
    dual_point: DualPoint | None
    history: tuple[Mapping[str, Any], ...]
    iterations: int | None
    compile_seconds: float | None
    solve_seconds: float
    peak_mb: float | None
    sentence: str


Send = Callable[[str, Any], None]


def main(path: str) -> None:
    """Run the pickled :class:`Task` at ``path``; the messages go to standard output as pickled pairs."""
    send = _private_channel()
    try:
        with open(path, "rb") as file:
            task: Task = pickle.load(file)
        send("ready", None)
        send("outcome", solve(task, send))
    except BaseException as error:
        send("peak", peak_mb())
        send("failed", one_line(error))
    os._exit(0)  # some solver libraries hang or crash on the way out


def solve(task: Task, send: Send) -> Outcome:
    """Solve from a cold start and collect what there is to judge."""
    problem = task.problem
    for variable in problem.variables():
        variable.save_value(None)
    started = time.perf_counter()
    solver, options = task.solver, dict(task.options)
    if isinstance(solver, str) and solver.upper() in cp.installed_solvers():
        compile_seconds = _solve_in_two_steps(problem, solver.upper(), options, task.time_limit, send)
    else:
        if _is_ours(solver):
            options.setdefault("time_limit", _SHARE * task.time_limit)
        problem.solve(solver=solver, **options)
        compile_seconds = _extra(problem).get("compile_seconds", problem.compilation_time)
    seconds = time.perf_counter() - started
    extra = _extra(problem)
    return Outcome(
        status=problem.status,
        values=tuple(variable.value for variable in problem.variables()),
        duals=tuple(tuple(dual.value for dual in c.dual_variables) for c in problem.constraints),
        dual_point=left_dual_point(problem),
        history=tuple(dict(row) for row in extra.get("history", ())),
        iterations=getattr(problem.solver_stats, "num_iters", None),
        compile_seconds=compile_seconds,
        solve_seconds=seconds - (compile_seconds or 0.0),
        peak_mb=peak_mb(),
        sentence=str(getattr(extra.get("status"), "value", "")),
    )


def one_line(error: BaseException) -> str:
    """An exception's type and words on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _solve_in_two_steps(
    problem: Any, solver: str, options: dict[str, Any], time_limit: float, send: Send
) -> float:
    """Compile, say how long that took, then let the solver run for most of the time that is left."""
    arguments = {name: options.pop(name) for name in _CVXPY_ARGUMENTS if name in options}
    started = time.perf_counter()
    data, chain, inverse = problem.get_problem_data(solver, solver_opts=options, **arguments)
    seconds = time.perf_counter() - started
    send("compiled", seconds)
    if solver in TIME_LIMIT_OPTIONS:
        options.setdefault(TIME_LIMIT_OPTIONS[solver], max(_SHARE * (time_limit - seconds), 1e-3))
    verbose = bool(arguments.get("verbose", False))
    with listening() as heard:
        solution = chain.solve_via_data(problem, data, False, verbose, options)
    try:
        problem.unpack_results(solution, chain, inverse)
    except cp.SolverError as error:
        raise (heard[-1] if heard else error) from error
    return seconds


def _is_ours(solver: Any) -> bool:
    """Whether this is one of our solvers, by name or by instance, without a time limit of its own."""
    if isinstance(solver, CompositeSolver):
        return solver.options.time_limit is None
    return isinstance(solver, str) and solver.upper() in {
        cls.__name__.upper() for cls in CompositeSolver.__subclasses__()
    }


def _extra(problem: Any) -> Mapping[str, Any]:
    extra = getattr(problem.solver_stats, "extra_stats", None)
    return extra if isinstance(extra, dict) and "history" in extra else {}


def _private_channel() -> Send:
    """Keep standard output for messages; whatever solvers print there goes to standard error."""
    channel = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    sys.stdout = sys.stderr

    def send(name: str, value: Any) -> None:
        pickle.dump((name, value), channel)
        channel.flush()

    return send
