"""What a solver hands back: the point, what was certified about it, and how it got there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, TypedDict

from convexnn_solvers.backends import Float64Array
from convexnn_solvers.status import Status

if TYPE_CHECKING:
    from convexnn_solvers.certify.certifier import Certificate


class HistoryRow(TypedDict):
    """One look at the certificate: best primal and dual values so far, in the user's units."""

    iteration: int
    seconds: float
    primal: float
    dual: float | None
    relative_gap: float | None


@dataclass(frozen=True)
class Progress:
    """What a callback is told. Values are the best certified ones so far, in the user's units.

    ``seconds`` are since the call, compilation included. ``primal`` is the objective; ``relative_gap`` and
    ``dual`` are None when there is no bound; ``max_violation`` is that of the point
    as the iteration held it, before any repair.
    """

    iteration: int
    seconds: float
    primal: float
    dual: float | None
    relative_gap: float | None
    max_violation: float


@dataclass(frozen=True, eq=False)
class Result:
    """The end of a solve.

    ``point`` is the best certified point, one float64 array per variable; ``certificate`` was recomputed
    at this very point, with the best dual point that was verified. ``make_multipliers`` makes
    :attr:`multipliers`: arrays of samples x gates for pattern cones, which not everybody asks for.
    """

    status: Status
    point: tuple[Float64Array, ...]
    certificate: Certificate
    make_multipliers: Callable[[], tuple[Float64Array, ...]]
    iterations: int
    seconds: float
    history: tuple[HistoryRow, ...]

    @cached_property
    def multipliers(self) -> tuple[Float64Array, ...]:
        """One array per constraint, in CVXPY's signs and shapes: those of the bound, if there is one."""
        return self.make_multipliers()
