"""What a ``cp.Problem`` holds for our solvers: compiled forms, and where to start from."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from convexnn_solvers.backends import Backend, Float64Array
from convexnn_solvers.composite import Composite, DualPoint

if TYPE_CHECKING:
    from convexnn_solvers.loop.iterate import Candidate
    from convexnn_solvers.reading.compiler import Compiled

_ON_PROBLEM = "_convexnn_compiled"


class _Kept:
    """Compiled forms of one problem; lives on the problem, and is neither copied nor pickled with it."""

    def __init__(self) -> None:
        self.compiled: dict[tuple[Backend, float | None], Compiled] = {}
        self._features: list[Float64Array] | None = None
        self._sums: list[Float64Array] = []

    def forget_other_features(self, problem: Any) -> None:
        """Drop everything where somebody wrote into the features, which atoms hold by reference."""
        from convexnn_solvers.reading.compiler import features_of

        if self._features is None:
            self._features = features_of(problem)
        with np.errstate(over="ignore", invalid="ignore"):
            sums = [total for X in self._features for total in _sums(X)]
        if self._sums and any(
            not np.array_equal(a, b, equal_nan=True) for a, b in zip(sums, self._sums, strict=True)
        ):
            self.compiled.clear()
        self._sums = sums

    def __deepcopy__(self, memo: Any) -> _Kept:
        return _Kept()

    def __reduce__(self) -> tuple[type[_Kept], tuple[()]]:
        return (_Kept, ())


def _sums(X: Float64Array) -> tuple[Float64Array, Float64Array]:
    """Sums by columns and by rows, weighted by cosines of 1, 2, ...: no integers relate those.

    Plain sums stay the same when samples exchange their categories in one-hot features.
    """
    rows, columns = (_cosines(size) for size in X.shape)
    return np.einsum("ij,i->j", X, rows), np.einsum("ij,j->i", X, columns)


@lru_cache(maxsize=4)
def _cosines(size: int) -> Float64Array:
    return np.asarray(np.cos(np.arange(1.0, size + 1.0)))


def compiled(problem: Any, backend: Backend, memory: float | None = None) -> Compiled:
    """The problem compiled for a backend and what it may use there, once."""
    from convexnn_solvers.reading.compiler import compile_problem
    from convexnn_solvers.reading.operator_memory import plan_operators

    kept = problem.__dict__.setdefault(_ON_PROBLEM, _Kept())
    kept.forget_other_features(problem)
    key = (backend, memory)
    if key not in kept.compiled:
        kept.compiled[key] = compile_problem(problem, backend, plan_operators(problem, backend, memory))
    compiled: Compiled = kept.compiled[key]
    return compiled


def starts(
    problem: Any, composite: Composite, warm_start: bool, left: DualPoint | None = None
) -> list[Candidate]:
    """The variables' values with the dual point that was ``left``, if there are any, and the origin."""
    from convexnn_solvers.loop.iterate import Candidate

    zero = Candidate(tuple(np.zeros(block.shape) for block in composite.variables))
    if not warm_start:
        return [zero]
    values = {variable.id: variable.value for variable in problem.variables()}
    point = tuple(_usable(values[block.id], block.shape) for block in composite.variables)
    if not any(np.any(value) for value in point):
        return [zero]
    return [Candidate(point, () if left is None else (left,)), zero]


def _usable(value: Any, shape: tuple[int, ...]) -> Float64Array:
    """A variable's value as a start: zeros where there is none or it is not finite."""
    array = np.zeros(shape) if value is None else np.asarray(value, dtype=np.float64).reshape(shape)
    return array if np.isfinite(array).all() else np.zeros(shape)


def left_by_last(problem: Any) -> DualPoint | None:
    """The dual point that the last solve of a problem left, if it was one of ours."""
    from convexnn_solvers.certify.dual_values import left_dual_point

    return left_dual_point(problem)


def warm_duals(problem: Any, composite: Composite, last: DualPoint | None) -> DualPoint:
    """The constraints' dual values, and what else a solve left; all of them only starting points."""
    from convexnn_solvers.certify.dual_values import held_multipliers

    held = held_multipliers(problem, composite)
    if last is None:
        return DualPoint((), held)
    left = (*last.multipliers, *(None for _ in held[len(last.multipliers) :]))
    return DualPoint(last.thetas, tuple(b if a is None else a for a, b in zip(held, left, strict=False)))
