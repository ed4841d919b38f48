"""Which engine for which problem, and what to try when one stalls."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from convexnn_solvers.augmented_lagrangian import augmented_lagrangian_method
from convexnn_solvers.backends import Float64Array
from convexnn_solvers.checkpoint import Keeper
from convexnn_solvers.compiler import UnsupportedProblem
from convexnn_solvers.composite import Composite
from convexnn_solvers.iterate import Candidate, Limits, Method, iterate
from convexnn_solvers.result import HistoryRow, Result
from convexnn_solvers.rfista import rfista_method
from convexnn_solvers.semismooth_newton import semismooth_newton_method
from convexnn_solvers.status import Status

# The largest Gram matrix of the samples, in bytes, that the Newton method may keep (and factor).
_GRAM_BYTES = 2**30
# How a solve ends when another engine may get further from the same point.
_STUCK = (Status.STALLED, Status.NOT_FINITE)


@dataclass(frozen=True)
class Engine:
    """One algorithm for a problem, and why it is the one; ``make`` is called when its turn comes."""

    name: str
    reason: str
    make: Callable[[], Method[Any]]


def engines(composite: Composite, multipliers: Sequence[Float64Array | None], tol: float) -> Iterator[Engine]:
    """What to run, in this order: semismooth Newton where the problem has its form, else first-order."""
    reason = "the problem is a gated program of a size that can be factored"
    try:
        reason_against = _too_large(composite)
        if reason_against is None:
            newton = semismooth_newton_method(composite, tol)
            yield Engine("SemismoothNewton", reason, lambda: newton)
            reason_against = "SemismoothNewton got no further"
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


def _too_large(composite: Composite) -> str | None:
    """Why the Newton method is out of the question before the problem is looked at, or None."""
    backend = composite.backend
    if backend.name != "numpy" or backend.dtype != np.float64:
        return "SemismoothNewton works in float64 with NumPy on the CPU"
    outputs = composite.affine.forward(composite.zeros())[: len(composite.losses)]
    n = max((int(np.shape(q)[0]) for q in outputs if np.ndim(q) > 0), default=0)
    if 8 * n * n > _GRAM_BYTES:
        return f"SemismoothNewton would factor a {n} x {n} matrix"
    return None
