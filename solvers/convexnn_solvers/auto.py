"""Which engine for which problem, and what to try when one stalls."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from convexnn_solvers.augmented_lagrangian import augmented_lagrangian_method
from convexnn_solvers.backends import Float64Array
from convexnn_solvers.block_descent import DescentPolicy, block_descent_method
from convexnn_solvers.checkpoint import Keeper
from convexnn_solvers.compiler import UnsupportedProblem
from convexnn_solvers.composite import Composite
from convexnn_solvers.gated_program import block_norms
from convexnn_solvers.gated_structure import GatedStructure, gated_structure
from convexnn_solvers.iterate import Candidate, Limits, Method, iterate
from convexnn_solvers.newton_fits import SquaredFit
from convexnn_solvers.result import HistoryRow, Result
from convexnn_solvers.rfista import rfista_method
from convexnn_solvers.semismooth_newton import semismooth_newton_method
from convexnn_solvers.status import Status

# The largest Gram matrix of the samples, in bytes, that the Newton method may keep (and factor).
_GRAM_BYTES = 2**30
# Block descent is for regularisations of at least this share of the largest useful one, measured: below, so
# many gates interact that Newton's method needs less time. After so many sweeps that was a wrong guess.
_LARGE = 0.07
_MOST_SWEEPS = 1000
# How a solve ends when another engine may get further from the same point.
_STUCK = (Status.STALLED, Status.NOT_FINITE)


@dataclass(frozen=True)
class Engine:
    """One algorithm for a problem, and why it is the one; ``make`` is called when its turn comes."""

    name: str
    reason: str
    make: Callable[[], Method[Any]]


def engines(composite: Composite, multipliers: Sequence[Float64Array | None], tol: float) -> Iterator[Engine]:
    """What to run, in this order: what fits a gated program and its regularisation, else first-order."""
    try:
        _check_arithmetic(composite)
        structure = gated_structure(composite)
        reason_against = ""
        strength = _strength(structure)
        if strength is not None and strength >= _LARGE:
            descent = block_descent_method(structure, tol, DescentPolicy(most_sweeps=_MOST_SWEEPS))
            reason = (
                f"the regularisation is {strength:.2g} of that where all weights vanish: few gates are active"
            )
            yield Engine("BlockDescent", reason, lambda: descent)
            reason_against = "BlockDescent made too little progress"
        n = structure.programs[0].X.shape[0]
        if 8 * n * n <= _GRAM_BYTES:
            newton = semismooth_newton_method(structure, tol)
            reason = reason_against or "the problem is a gated program of a size that can be factored"
            yield Engine("SemismoothNewton", reason, lambda: newton)
            reason_against = "SemismoothNewton got no further"
        else:
            reason_against = f"SemismoothNewton would factor a {n} x {n} matrix"
    except UnsupportedProblem as error:
        reason_against = str(error)
    if composite.constraints:
        on_cpu = str(composite.backend.device) == "cpu"
        yield Engine(
            "AugmentedLagrangian",
            reason_against,
            lambda: augmented_lagrangian_method(composite, project_cones=on_cpu, warm=multipliers),
        )
    else:
        yield Engine("RFISTA", reason_against, lambda: rfista_method(composite))


def run_engines(
    candidates: Iterator[Engine],
    composite: Composite,
    judge: Any,
    starts: Sequence[Candidate],
    limits: Limits,
    keeper: Keeper | None = None,
) -> tuple[Result, list[dict[str, str]]]:
    """Run engine after engine, each from the best point so far, until one ends without being stuck.

    Returns the result (iterations and history of all engines together) and who ran, why, and how it ended.
    A ``keeper`` that found a checkpoint goes on with the engine that wrote it.
    """
    log: list[dict[str, str]] = []
    joined: Result | None = None
    iterations, history = 0, tuple[HistoryRow, ...]()
    for engine in candidates:
        if keeper is not None:
            if not keeper.begins(engine.name, iterations, history):
                continue
            iterations, history = keeper.earlier_iterations, keeper.earlier
        result = iterate(engine.make(), composite, judge, starts, limits, keeper)
        log.append({"engine": engine.name, "reason": engine.reason, "status": result.status.name})
        joined = _joined(iterations, history, result)
        if result.status not in _STUCK:
            break
        iterations, history = joined.iterations, joined.history
        dual = result.certificate.dual_point
        starts = [Candidate(result.point, () if dual is None else (dual,)), *starts]
    if joined is None:
        assert keeper is not None
        raise ValueError(f"the checkpoint was written by {keeper.writer}; solve with that to go on from it.")
    return joined, log


def _joined(iterations: int, history: tuple[HistoryRow, ...], result: Result) -> Result:
    """The result, as the continuation of what other engines did before."""
    later = [HistoryRow({**row, "iteration": row["iteration"] + iterations}) for row in result.history]
    return replace(result, iterations=iterations + result.iterations, history=(*history, *later))


def _check_arithmetic(composite: Composite) -> None:
    backend = composite.backend
    if backend.name != "numpy" or backend.dtype != np.float64:
        raise UnsupportedProblem("SemismoothNewton works in float64 with NumPy on the CPU")


def _strength(structure: GatedStructure) -> float | None:
    """The regularisation over that where all weights vanish; None: block descent cannot take the program."""
    shares: list[float] = []
    for program in structure.programs:
        if program.cones or not isinstance(program.fit, SquaredFit):
            return None
        null = program.fit.at(np.zeros(program.fit.shape)).xi
        norms = block_norms(program.by_block(program.adjoint(null)))
        shares.append(float(np.max(norms / program.weights, initial=0.0)))
    return 1.0 / max([1.0, *shares])
