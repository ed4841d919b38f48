"""The certificate of a CVXPY problem at the values that its variables hold now, whoever put them there."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import cvxpy as cp
import numpy as np

from convexnn_solvers.backends import Float64Array, numpy_backend
from convexnn_solvers.certify.certifier import Certificate as Certificate
from convexnn_solvers.certify.certifier import Certifier as Certifier
from convexnn_solvers.certify.dual_values import held_multipliers, left_dual_point
from convexnn_solvers.certify.free_variables import Arrays
from convexnn_solvers.certify.kink_duals import kink_duals
from convexnn_solvers.certify.relaxation import relaxation
from convexnn_solvers.composite import Composite, DualPoint
from convexnn_solvers.named_options import checked_options
from convexnn_solvers.reading.compiler import UnsupportedProblem, compile_problem

# How well the compiled objective and CVXPY's own must agree.
_AGREEMENT = 1e-8
_ROUNDING = 1e-13
# A relative gap up to this is not worth looking for better duals at the kinks of losses.
_CLOSE = 1e-7
# Dual values of an interior-point solver are tried as they are, and raised by what they may be off.
_PRICES = (1.0, 1.0 + 1e-7)


@checked_options
def certificate(problem: Any, duals: Iterable[Any] | DualPoint = ()) -> Certificate:
    """How far the values that the variables of a CVXPY problem hold now are from its optimum.

    Parameters
    ----------
    problem : cp.Problem
        Solved by any solver, or filled in by hand; nothing is written to it.
    duals : iterable of DualPoint
        More dual candidates; each is verified, so a wrong one costs time only. An array stands for a
        DualPoint of a problem with a single loss.

    Raises ValueError when a variable has no value, cvxpy.DCPError when the problem is not convex, and
    cvxpy.SolverError when our reading of the problem disagrees with CVXPY's own objective value. A problem
    with a term that we do not recognise gets a certificate without a bound, and the note names the term.
    """
    if not isinstance(problem, cp.Problem):
        raise TypeError(
            f"problem must be a cp.Problem, such as model.problem(y, reg), not {type(problem).__name__}."
        )
    empty = [variable.name() for variable in problem.variables() if variable.value is None]
    if empty:
        raise ValueError(
            f"variable {empty[0]} has no value: solve the problem first, or set {empty[0]}.value."
        )
    if not isinstance(duals, Iterable | DualPoint):
        raise TypeError(
            f"duals must be a list of DualPoint values or arrays, not {duals!r}; leave it out for none."
        )
    candidates = [_as_dual_point(dual) for dual in ([duals] if isinstance(duals, DualPoint) else duals)]
    try:
        compiled = compile_problem(problem, numpy_backend())
    except UnsupportedProblem as error:
        return _without_bound(problem, f"no lower bound: {error}")
    composite = compiled.composite()
    values = {variable.id: variable.value for variable in problem.variables()}
    x = tuple(_dense(values[block.id]) for block in composite.variables)
    certifier = Certifier(composite)
    _cross_check(problem, certifier.objective(x), composite, x)
    candidates += _left_by_solvers(problem, composite)
    found = certifier.certify(x, candidates)
    if certifier.obstacle or (found.relative_gap is not None and abs(found.relative_gap) <= _CLOSE):
        return found
    multipliers = candidates[-1].multipliers if candidates else ()
    kinks = kink_duals(composite, certifier.repair(x), multipliers)
    found = certifier.certify(x, [*candidates, *kinks]) if kinks else found
    return _with_prices(problem, found, composite.sign)


def _with_prices(problem: Any, found: Certificate, sign: float) -> Certificate:
    """The certificate with the bound of the problem's relaxation, where that is better.

    At prices that are a hair too low the relaxation has no minimum where the point makes one of a kink.
    """
    for factor in _PRICES:
        relaxed = relaxation(problem, factor)
        if relaxed is None:
            break
        bound = certificate(relaxed).dual
        if bound is not None:
            better = found.dual is None or sign * (bound - found.dual) > 0.0
            return found.with_bound(bound, sign) if better else found
    return found


def _left_by_solvers(problem: Any, composite: Composite) -> list[DualPoint]:
    """What the last solve left behind: our own solvers' dual point, anybody's constraint dual values."""
    ours, multipliers = left_dual_point(problem), held_multipliers(problem, composite)
    left = [] if ours is None else [ours]
    if any(value is not None for value in multipliers):
        left.append(DualPoint((), multipliers))
    return left


def _as_dual_point(dual: Any) -> DualPoint:
    if isinstance(dual, DualPoint):
        return dual
    if isinstance(dual, np.ndarray) and dual.dtype.kind in "fiu":
        return DualPoint((np.asarray(dual, dtype=np.float64),))
    raise TypeError(f"duals must hold DualPoint values or real arrays, in a list, not {type(dual).__name__}.")


def _cross_check(problem: Any, ours: float, composite: Composite, x: Arrays) -> None:
    """Our reading of the objective against CVXPY's own, at the same point."""
    value = problem.objective.value
    theirs = float("nan") if value is None else float(np.real(value))
    terms = sum(float(np.sum(np.abs(c * v))) for c, v in zip(composite.linear, x, strict=True))
    size = max(abs(ours), abs(theirs)) + terms + abs(composite.constant)
    # Where a quadratic form vanishes, all that is left of the terms that cancel in it is their rounding.
    # Their size shows at the same point with other signs, and at zero.
    rng = np.random.default_rng(0)
    flipped = tuple(v * rng.choice([-1.0, 1.0], v.shape) for v in x)
    rounding = _ROUNDING * max(abs(composite.value(v)) for v in (flipped, composite.zeros()))
    if not abs(ours - theirs) <= _AGREEMENT * size + rounding:
        raise cp.SolverError(
            f"The compiled objective is {ours!r}, but problem.objective.value is {theirs!r}: no certificate "
            "can be trusted. Either the problem has a value outside its domain, or this is an error of "
            "convexnn_solvers worth reporting."
        )


def _without_bound(problem: Any, note: str) -> Certificate:
    """A certificate that proves nothing, for problems that we cannot read."""
    value = problem.objective.value
    violations = (float(np.max(constraint.violation(), initial=0.0)) for constraint in problem.constraints)
    return Certificate(
        primal=float("nan") if value is None else float(np.real(value)),
        dual=None,
        gap=None,
        relative_gap=None,
        max_violation=max(violations, default=0.0),
        scope="",
        note=note,
    )


def _dense(value: Any) -> Float64Array:
    return np.asarray(value.toarray() if hasattr(value, "toarray") else value, dtype=np.float64)
