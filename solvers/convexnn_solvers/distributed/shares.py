"""The share of one process in a problem whose gates are divided among several.

Every process holds some columns of every weight variable (a column belongs to a gate). The prediction is the
sum of what the shares predict, a penalty the sum of what it is on the shares: the same problem, written
down with fewer columns, is all that a process has to compute with.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import cvxpy as cp
import numpy as np
from cvxpy.atoms.affine.add_expr import AddExpression
from cvxpy.atoms.affine.binary_operators import DivExpression, MulExpression, multiply
from cvxpy.atoms.affine.reshape import reshape
from cvxpy.atoms.affine.sum import Sum
from cvxpy.atoms.affine.unary_operators import NegExpression
from cvxpy.atoms.elementwise.abs import abs as cp_abs
from cvxpy.atoms.norm1 import norm1
from cvxpy.atoms.pnorm import Pnorm

from convexnn_solvers.backends import Float64Array
from convexnn_solvers.reading.affine import UnsupportedProblem, shortened
from convexnn_solvers.reading.atoms import gated

# What may be done to a divided variable: every entry of the result belongs to one gate, ...
_ALONG = (AddExpression, NegExpression, cp_abs)
# ... or is multiplied by one number.
_SCALED = (multiply, MulExpression, DivExpression)


@dataclass(frozen=True)
class Division:
    """How ``size`` gates are divided among ``ranks`` processes; this one is number ``rank``."""

    rank: int
    ranks: int

    def own(self, size: int, rank: int | None = None) -> slice:
        """The gates of this process (or another): consecutive, as many as any other's up to one."""
        k = self.rank if rank is None else rank
        return slice(k * size // self.ranks, (k + 1) * size // self.ranks)


@dataclass(frozen=True, eq=False)
class Share:
    """A problem with the columns of one process; its variables stand for those of ``whole``, in order."""

    problem: Any
    whole: tuple[Any, ...]
    division: Division

    def restricted(self, point: tuple[Float64Array, ...]) -> tuple[Float64Array, ...]:
        """The own columns of a point of the whole problem."""
        return tuple(
            np.ascontiguousarray(value[:, self.division.own(variable.shape[1])])
            for value, variable in zip(point, self.whole, strict=True)
        )

    def spread(self, point: tuple[Float64Array, ...]) -> tuple[Float64Array, ...]:
        """The own columns in arrays of the whole size, zero elsewhere."""
        result = []
        for value, variable in zip(point, self.whole, strict=True):
            everything = np.zeros(variable.shape)
            everything[:, self.division.own(variable.shape[1])] = value
            result.append(everything)
        return tuple(result)


def share_of(problem: Any, division: Division) -> Share:
    """The share of a process in a problem; refuses, by name, what does not fall apart into gates."""
    if problem.constraints:
        raise UnsupportedProblem(
            f"GateParallel takes no constraints, and the problem has {shortened(problem.constraints[0])}; "
            "solve with AugmentedLagrangian() in one process."
        )
    gates = _gates(problem)
    whole: tuple[Any, ...] = tuple(problem.variables())
    for variable in whole:
        _check(variable, gates, division.ranks)
    divided = {}
    for variable in whole:
        own = division.own(variable.shape[1])
        mine = cp.Variable((variable.shape[0], own.stop - own.start), name=variable.name())
        if variable.value is not None:
            mine.value = np.asarray(variable.value)[:, own]
        divided[variable.id] = mine
    objective = problem.objective
    narrowed = type(objective)(_Narrowing(divided, division).of(objective.args[0]))
    shared = cp.Problem(narrowed)
    order = {mine.id: variable for variable, mine in ((v, divided[v.id]) for v in whole)}
    return Share(shared, tuple(order[v.id] for v in shared.variables()), division)


def _gates(problem: Any) -> dict[int, int]:
    """The number of gates of every variable that some gated prediction depends on."""
    found: dict[int, int] = {}
    pending: list[Any] = [problem.objective.args[0]]
    seen: set[int] = set()
    while pending:
        expr = pending.pop()
        if id(expr) in seen:
            continue
        seen.add(id(expr))
        pending.extend(expr.args)
        if isinstance(expr, gated):
            found |= {variable.id: int(expr.patterns.shape[1]) for variable in expr.variables()}
    return found


def _check(variable: Any, gates: Mapping[int, int], ranks: int) -> None:
    if variable.id not in gates or variable.ndim != 2 or variable.shape[1] != gates[variable.id]:
        raise UnsupportedProblem(
            f"GateParallel divides variables with one column per gate, and {variable.name()} is none; "
            "leave it out, or solve with RFISTA() in one process."
        )
    if any(value is not None and value is not False for value in variable.attributes.values()):
        raise UnsupportedProblem(f"GateParallel takes no bounds or attributes on {variable.name()}.")
    if gates[variable.id] < ranks:
        raise ValueError(
            f"{ranks} processes cannot share {gates[variable.id]} gates; start at most as many as gates."
        )


@dataclass(frozen=True, eq=False)
class _Narrowing:
    """Rewrites expressions for the own columns."""

    variables: Mapping[int, Any]
    division: Division
    known: dict[int, Any] = field(default_factory=dict)

    def of(self, expr: Any) -> Any:
        """The expression in the own columns; refuses what mixes columns other than by adding.

        What several terms share, they share afterwards too: the compiler goes by identity.
        """
        if id(expr) not in self.known:
            self.known[id(expr)] = self._rewritten(expr)
        return self.known[id(expr)]

    def _rewritten(self, expr: Any) -> Any:
        if isinstance(expr, cp.Variable):
            return self.variables[expr.id]
        if not expr.variables():
            return expr
        args = [self.of(arg) for arg in expr.args]
        if isinstance(expr, gated):
            own = np.ascontiguousarray(expr.patterns[:, self.division.own(expr.patterns.shape[1])])
            return gated(expr.X, own, args[0], expr.slope, expr.scope)
        if all(new.shape == old.shape for new, old in zip(args, expr.args, strict=True)):
            # One process, or all columns were added up below: what is above sees the same shapes.
            return expr.copy(args)
        if self._columnwise(expr, args):
            return expr.copy(args)
        if isinstance(expr, reshape):
            return self._reshaped(expr, args[0])
        raise self._refusal(expr)

    def _refusal(self, expr: Any) -> UnsupportedProblem:
        return UnsupportedProblem(
            f"GateParallel cannot divide {shortened(expr)} among processes: it mixes the columns of "
            "different gates; solve with RFISTA() in one process."
        )

    def _columnwise(self, expr: Any, args: list[Any]) -> bool:
        if isinstance(expr, _ALONG):
            return all(new.shape != old.shape for new, old in zip(args, expr.args, strict=True))
        if isinstance(expr, _SCALED):
            return bool(sum(arg.size != 1 for arg in args) == 1)
        if isinstance(expr, Pnorm):
            return bool(expr.axis == 0 and len(args[0].shape) == 2)
        return bool(isinstance(expr, Sum | norm1) and expr.axis is None)

    def _reshaped(self, expr: Any, arg: Any) -> Any:
        """The columns of each gate cut into pieces: (c d, P) as (d, c P), column by column."""
        height, gates = expr.args[0].shape
        rows, columns = expr.shape if expr.ndim == 2 else (expr.size, 1)
        pieces = height // rows
        if expr.order != "F" or pieces * rows != height or columns != pieces * gates:
            raise self._refusal(expr)
        return cp.reshape(arg, (rows, pieces * arg.shape[1]), order="F")
