"""Several solvers on one problem, each in its own process, judged by our certificate at the point it returns.

A contestant reports a point and what it left beside it (dual values); everything that is said about the
quality of the point is computed here, in this process, from the problem's data. A solver that fails, is
not installed or has no licence is a row with its own words as the reason.
"""

from __future__ import annotations

import contextlib
import math
import pickle
import textwrap
from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypedDict

import cvxpy as cp
import numpy as np

from convexnn_solvers.backends import numpy_backend
from convexnn_solvers.certify.certificate import Certificate, certificate
from convexnn_solvers.comparison.isolated_solve import Outcome, Task, one_line
from convexnn_solvers.comparison.isolation import Report, cvxpy_peak_mb, solve_isolated
from convexnn_solvers.named_options import checked_options
from convexnn_solvers.reading.compiler import UnsupportedProblem, compile_problem


@dataclass(frozen=True, eq=False)
class Contestant:
    """A solver with what only it is given.

    Parameters
    ----------
    solver : str or solver instance
        As for ``problem.solve(solver=...)``.
    problem : cp.Problem, optional
        The problem that this contestant solves and is judged by, instead of the common one.
    options : mapping
        Further arguments of ``problem.solve``.
    name : str
        The row's name; by default the solver's.
    """

    solver: Any
    problem: Any = None
    options: Mapping[str, Any] = field(default_factory=dict)
    name: str = ""


class ComparisonRow(TypedDict):
    """What is known about one contestant; None where there is nothing to know.

    ``objective`` is the value at the returned point as it stands, ``certificate`` our verdict on it, with
    ``max_violation`` and, as ``relative_gap``, its ``proved_gap``: violations and their price included.
    ``width`` is the number of penalised groups that are not exactly zero, ``solve_seconds`` includes
    everything after compiling, ``peak_mb`` is memory in MB above a process that only imports CVXPY,
    ``values`` the returned point, one array per entry of ``problem.variables()``,
    and ``history`` the certified progress, where a solver reports it.
    """

    solver: str
    status: str
    objective: float | None
    relative_gap: float | None
    max_violation: float | None
    compile_seconds: float | None
    solve_seconds: float | None
    peak_mb: float | None
    width: int | None
    iterations: int | None
    certificate: Certificate | None
    values: tuple[Any, ...] | None
    history: tuple[Mapping[str, Any], ...]
    reason: str


@dataclass(frozen=True)
class Comparison:
    """The outcome of :func:`compare`; ``str()`` is the table, ``repr()`` says who took part.

    ``rows``: a :class:`ComparisonRow`, which is a dictionary, per contestant, in their order.
    """

    rows: list[ComparisonRow]

    def __repr__(self) -> str:
        return f"<Comparison of {', '.join(row['solver'] for row in self.rows)}>"

    def __str__(self) -> str:
        width = max((len(row["solver"]) for row in self.rows), default=0)
        return "\n".join([_heading(width), *(_line(row, width) for row in self.rows), _FOOTNOTE])


@checked_options
def compare(
    problem: Any, solvers: Iterable[Any], *, time_limit: float = 60.0, verbose: bool = True
) -> Comparison:
    """Solve one problem with several solvers, each in its own process, and judge what they return.

    Parameters
    ----------
    problem : cp.Problem or None
        What everybody solves (None if every contestant brings its own). It is left as it is; all
        contestants start cold.
    solvers : iterable of str, solver instances or Contestant
        Names and instances are what ``problem.solve(solver=...)`` takes.
    time_limit : float
        Seconds per solver, compiling included, from the moment that its process has loaded the problem; it is
        enforced by ending the process. Solvers that can stop in time and hand in their point are told to.
    verbose : bool
        Print the table, row by row.

    A solver that fails is a row, not an exception. Raises TypeError or ValueError for wrong arguments.
    """
    contestants = _contestants(problem, solvers)
    limit = _seconds(time_limit)
    names = [c.name or solver_name(c.solver) for c in contestants]
    width = max(len(name) for name in names)
    if verbose:
        print(_heading(width), flush=True)
    rows: list[ComparisonRow] = []
    for contestant, name in zip(contestants, names, strict=True):
        rows.append(_row(contestant, name, limit))
        if verbose:
            print(_line(rows[-1], width), flush=True)
    if verbose:
        print(_FOOTNOTE, flush=True)
    return Comparison(rows)


def solver_name(solver: Any) -> str:
    """The name that a row gets: upper case for names, ``solver.name()`` for instances."""
    return solver.upper() if isinstance(solver, str) else str(solver.name())


def _row(contestant: Contestant, name: str, time_limit: float) -> ComparisonRow:
    problem = contestant.problem
    # A copy without cache: CVXPY keeps compiled solver objects, which cannot be pickled.
    bare = cp.Problem(problem.objective, problem.constraints)
    try:
        report = solve_isolated(Task(bare, contestant.solver, dict(contestant.options), time_limit))
    except (pickle.PicklingError, TypeError, AttributeError) as error:
        reason = f"cannot be sent to another process, define it in a module: {one_line(error)}"
        report = Report(None, reason, False, 0.0, None, None)
    outcome = report.outcome
    row = ComparisonRow(
        solver=name,
        status=_status(report),
        objective=None,
        relative_gap=None,
        max_violation=None,
        compile_seconds=report.compile_seconds,
        solve_seconds=outcome.solve_seconds if outcome else None,
        peak_mb=_above_cvxpy(report.peak_mb),
        width=None,
        iterations=outcome.iterations if outcome else None,
        certificate=None,
        values=None,
        history=outcome.history if outcome else (),
        reason=outcome.sentence if outcome else report.failure,
    )
    if outcome is not None:
        _judge(row, bare, outcome)
    return row


def _judge(row: ComparisonRow, problem: Any, outcome: Outcome) -> None:
    """Fill in what the returned point is worth."""
    if any(value is None for value in outcome.values):
        row["reason"] = row["reason"] or "no point was returned"
        return
    row["values"] = outcome.values
    if not all(np.isfinite(np.asarray(value, dtype=np.float64)).all() for value in outcome.values):
        row["reason"] = "the returned point holds NaN or infinity"
        return
    with _held(problem, outcome):
        row["objective"] = float(problem.objective.value)
        row["width"] = _width(problem)
        try:
            verdict = certificate(problem, [] if outcome.dual_point is None else [outcome.dual_point])
        except (cp.SolverError, ValueError) as error:
            row["reason"] = f"no certificate: {one_line(error)}"
            return
    row["certificate"] = verdict
    row["relative_gap"] = verdict.proved_gap
    row["max_violation"] = verdict.max_violation
    row["reason"] = row["reason"] or ("" if verdict.relative_gap is not None else verdict.note)


@contextlib.contextmanager
def _held(problem: Any, outcome: Outcome) -> Generator[None, None, None]:
    """Let the problem's variables and dual variables hold the outcome for a while."""
    duals = [dual for constraint in problem.constraints for dual in constraint.dual_variables]
    leaves = [*problem.variables(), *duals]
    values = [*outcome.values, *(value for group in outcome.duals for value in group)]
    before = [leaf.value for leaf in leaves]
    try:
        for leaf, value in zip(leaves, values, strict=True):
            leaf.save_value(value)
        yield
    finally:
        for leaf, value in zip(leaves, before, strict=True):
            leaf.save_value(value)


def _width(problem: Any) -> int | None:
    """How many penalised groups are not exactly zero; None without penalties that we recognise."""
    try:
        composite = compile_problem(problem, numpy_backend()).composite()
    except UnsupportedProblem:
        return None
    values = {variable.id: variable.value for variable in problem.variables()}
    counts = [
        np.count_nonzero(term.penalty.norms(term.view(values[composite.variables[term.variable].id]), np))
        for term in composite.penalties
    ]
    return int(sum(counts)) if counts else None


def _status(report: Report) -> str:
    if report.outcome is not None:
        return report.outcome.status
    return "time limit" if report.timed_out else "failed"


def _above_cvxpy(peak: float | None) -> float | None:
    base = cvxpy_peak_mb()
    return None if peak is None or base is None else max(peak - base, 0.0)


def _contestants(problem: Any, solvers: Any) -> list[Contestant]:
    if problem is not None and not isinstance(problem, cp.Problem):
        raise TypeError(f"problem must be a cp.Problem, not {type(problem).__name__}.")
    if isinstance(solvers, str) or not isinstance(solvers, Iterable):
        raise TypeError("solvers must be a list, for example [cp.CLARABEL, RFISTA()].")
    listed = [s if isinstance(s, Contestant) else Contestant(s) for s in solvers]
    if not listed:
        raise ValueError("solvers must name at least one solver.")
    for contestant in listed:
        solver, own = contestant.solver, contestant.problem
        if isinstance(solver, type) or not (isinstance(solver, str) or hasattr(solver, "name")):
            raise TypeError(f"solvers must hold names or solver instances such as RFISTA(), not {solver!r}.")
        if not isinstance(problem if own is None else own, cp.Problem):
            raise TypeError(f"{solver_name(solver)} has no cp.Problem: give compare or the Contestant one.")
    return [
        Contestant(c.solver, problem if c.problem is None else c.problem, c.options, c.name) for c in listed
    ]


def _seconds(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 < value < math.inf:
        raise ValueError(f"time_limit must be a positive number of seconds, not {value!r}.")
    return float(value)


_FOOTNOTE = (
    "gap: certified here at the returned point, relative, and what its violations may be worth;\n"
    "violation: of any constraint by that point; "
    "peak MB: above a process that only imports CVXPY; width: penalised groups that are not exactly zero."
)


def _heading(width: int) -> str:
    return (
        f"{'solver':<{width}} {'status':<18} {'objective':>13} {'gap':>8} {'violation':>9} "
        f"{'compile s':>9} {'solve s':>8} {'peak MB':>8} {'width':>6}"
    )


def _line(row: ComparisonRow, width: int) -> str:
    columns = (
        f"{row['solver']:<{width}} {row['status']:<18} {_number(row['objective'], '13.7g')} "
        f"{_number(row['relative_gap'], '8.1e')} {_number(row['max_violation'], '9.1e')} "
        f"{_number(row['compile_seconds'], '9.2f')} {_number(row['solve_seconds'], '8.2f')} "
        f"{_number(row['peak_mb'], '8.0f')} {_number(row['width'], '6d')}"
    )
    if not row["reason"] or row["relative_gap"] is not None:
        return columns
    return columns + "\n" + textwrap.indent(textwrap.fill(row["reason"], 96), "    ")


def _number(value: float | None, form: str) -> str:
    width = form.split(".")[0].rstrip("d")
    return f"{'-':>{width}}" if value is None else f"{value:{form}}"
