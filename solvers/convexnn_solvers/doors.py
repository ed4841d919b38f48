"""How ``problem.solve(...)`` reaches our solvers with the expressions as the user wrote them.

Two doors lead to the same object. The public one is CVXPY's registry of solve methods,
``problem.solve(method="RFISTA")``. The natural one, ``problem.solve(solver=RFISTA())`` (also by name and in a
``solver_path``), wraps ``cp.Problem._construct_chain`` and leaves every other solver alone; it is hung only
where that function has the signature that we know, and a solver that is reached without it says so.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import cvxpy as cp

#: From a solver argument to the chain for a problem; None for a solver that is not ours.
ChainBuilder = Callable[[Any, Any], Any | None]

_DOOR = "_construct_chain"
_KNOWN = {"self", "solver", "gp", "enforce_dpp", "ignore_dpp", "canon_backend", "solver_opts"}
_NOT_OURS = ("gp", "qcp", "requires_grad", "nlp")


def hang_natural_door(build: ChainBuilder) -> bool:
    """Wrap ``cp.Problem._construct_chain`` once; False if its signature is not one that we know."""
    original: Any = getattr(cp.Problem, _DOOR, None)
    if original is None:
        return False
    if getattr(original, "leads_to_convexnn", False):
        return True
    signature = inspect.signature(original)
    if not {"self", "solver", "gp"} <= set(signature.parameters) <= _KNOWN:
        return False

    @functools.wraps(original)
    def _construct_chain(*args: Any, **kwargs: Any) -> Any:
        call = signature.bind(*args, **kwargs)
        call.apply_defaults()
        chain = build(call.arguments["self"], call.arguments["solver"])
        if chain is None:
            return original(*args, **kwargs)
        if call.arguments["gp"]:
            raise cp.SolverError(_refusal("gp", str(chain.solver.name())))
        return chain

    _construct_chain.leads_to_convexnn = True  # type: ignore[attr-defined]
    setattr(cp.Problem, _DOOR, _construct_chain)
    return True


def open_public_doors(names: Sequence[str], build: ChainBuilder) -> None:
    """Register ``problem.solve(method=name)`` for every name."""
    for name in names:
        cp.Problem.register_solve(name, functools.partial(_solve, name, build))


def _solve(
    name: str,
    build: ChainBuilder,
    problem: Any,
    *,
    solver: Any = None,
    warm_start: bool = True,
    verbose: bool = False,
    **options: Any,
) -> Any:
    """What ``problem.solve(method=name)`` does: our chain, then CVXPY's own way to unpack a result."""
    if solver is not None:
        raise cp.SolverError(f"method={name!r} names the solver already; leave solver={solver!r} out.")
    for flag in _NOT_OURS:
        if options.pop(flag, False):
            raise cp.SolverError(_refusal(flag, name))
    chain = build(problem, name)
    if chain is None:
        raise cp.SolverError(f"method {name!r} is unknown.")
    data, inverse_data = chain.apply(problem)
    raw = chain.solve_via_data(problem, data, warm_start, verbose, options)
    problem.unpack_results(raw, chain, inverse_data)
    return problem.value


def _refusal(flag: str, name: str) -> str:
    return f"{name} takes DCP problems as they stand, without {flag}=True; leave it out, or use cp.CLARABEL."
