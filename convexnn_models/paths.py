"""The same program along a sequence of regularisations: every solve starts where the last one ended."""

from __future__ import annotations

import time
import warnings
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from convexnn_models import _arrays, losses
from convexnn_models._arrays import Float64Array
from convexnn_models.lambda_max import lambda_max
from convexnn_models.model import ConvexModel
from convexnn_models.network import Network
from convexnn_models.recovery import recover_two_layer
from convexnn_solvers import Auto, Certificate, DualPoint, Status, certificate
from convexnn_solvers.interface import CompositeSolver
from convexnn_solvers.solver_classes import own_solver


@dataclass(frozen=True, eq=False, repr=False)
class PathPoint:
    """One regularisation of a path: what the solver said, what is proved, and the network.

    ``reg``; CVXPY's ``status``; the ``certificate`` of the solution; the ``network`` recovered from it; and
    the ``seconds`` of the solve.
    """

    reg: float
    status: str
    certificate: Certificate
    network: Network
    seconds: float

    def __repr__(self) -> str:
        return f"PathPoint(reg={self.reg:.4g}, {self.status}, {self.network!r})"

    def __str__(self) -> str:
        return f"{_HEADINGS}\n{_row(self)}"


@dataclass(frozen=True, eq=False, repr=False)
class RegularizationPath(Sequence[PathPoint]):
    """The points of a path, from the largest regularisation to the smallest."""

    points: tuple[PathPoint, ...]

    def __len__(self) -> int:
        return len(self.points)

    def __getitem__(self, index: Any) -> Any:
        return self.points[index]

    def __iter__(self) -> Iterator[PathPoint]:
        return iter(self.points)

    @property
    def regs(self) -> Float64Array:
        """The regularisations, falling."""
        return np.array([point.reg for point in self.points])

    def __repr__(self) -> str:
        return f"RegularizationPath({len(self)} points, reg from {self.regs[0]:.4g} to {self.regs[-1]:.4g})"

    def __str__(self) -> str:
        return "\n".join([_HEADINGS, *map(_row, self.points)])


_HEADINGS = f"{'reg':>11} {'objective':>13} {'rel. gap':>9} {'width':>6} {'seconds':>8}  status"


def _row(point: PathPoint) -> str:
    """A point below ``_HEADINGS``."""
    gap = point.certificate.proved_gap
    shown = "-" if gap is None else f"{gap:.1e}"
    return (
        f"{point.reg:11.4e} {point.certificate.primal:13.7g} {shown:>9} {point.network.width:6d} "
        f"{point.seconds:8.2f}  {point.status}"
    )


@losses.takes_loss_options
def regularization_path(
    model: ConvexModel,
    y: Any,
    n_regs: int = 30,
    *,
    ratio: float = 1e-2,
    regs: Any = None,
    loss: str | losses.LossFunction = "squared",
    solver: Any = None,
    tol: float = 1e-4,
    **options: Any,
) -> RegularizationPath:
    """Solve ``model.problem(y, reg, loss)`` for falling regularisations, each warm-started, each certified.

    Parameters
    ----------
    model : ConvexModel
        A ``relu``, ``gated_relu`` or ``piecewise_linear`` model. It is left as it was: the values of its
        variables, ``model.reg`` and what ``recover`` says of it are those of before.
    y : array (n,) or (n, c)
        As in ``model.problem``.
    n_regs : int
        How many, geometrically from ``lambda_max(model, y, loss)``, where the zero network is optimal, down
        to ``ratio`` times that.
    ratio : float
        See ``n_regs``; between 0 and 1.
    regs : array or None
        The positive regularisations themselves, instead of ``n_regs`` and ``ratio``; solved in falling order.
    loss : str or function
        As in ``model.problem``; with a loss that ``lambda_max`` does not know, ``regs`` must be given.
    solver : CVXPY solver or None
        Anything that ``problem.solve(solver=...)`` takes; None for ``Auto(tol=tol)``.
    tol : float
        The relative certified gap that ``Auto`` stops at; not passed to a given ``solver``.
    **options
        Of the loss.

    Returns a :class:`RegularizationPath`; every point's ``certificate`` was computed at that point: by our
    solvers before they returned it, by :func:`convexnn_solvers.certificate` for any other ``solver``. Raises
    ValueError or TypeError for bad arguments; warns (UserWarning) of points that a limit ended, saying which.
    """
    values = falling_regs(model, y, n_regs, ratio, regs, loss, options)
    with _left_as_it_was(model):
        problem = model.problem(y, float(values[0]), loss, **options)
        return RegularizationPath(
            tuple(_walk(model, problem, values, Auto(tol=tol) if solver is None else solver))
        )


@contextmanager
def _left_as_it_was(model: ConvexModel) -> Generator[None]:
    """Put back what the variables held and what the model was last fitted to, however a path ends."""
    training, values = model.training, [variable.value for variable in model.variables]
    try:
        yield
    finally:
        model.training = training
        for variable, value in zip(model.variables, values, strict=True):
            variable.save_value(value)


def _walk(model: ConvexModel, problem: Any, values: Float64Array, solver: Any) -> Iterator[PathPoint]:
    """Solve at one regularisation after the other."""
    ours = own_solver(solver)
    ends: list[_End] = []
    for reg in values:
        started = time.perf_counter()
        model.reg.save_value(np.asarray(reg))  # checked already
        if ours is None:
            status, proof = _solved_by_others(problem, solver)
        else:
            status, proof, end = _solved(problem, ours, _extrapolated(ends, float(reg)), float(reg))
            ends = [*ends[-1:], end]
        seconds = time.perf_counter() - started
        yield PathPoint(float(reg), status, proof, recover_two_layer(model), seconds)


@dataclass(frozen=True, eq=False)
class _End:
    """A regularisation, the values of the problem's variables there, and the dual point that was left."""

    reg: float
    values: tuple[Float64Array, ...]
    dual: DualPoint | None


def _solved(
    problem: Any, solver: CompositeSolver, start: _End | None, reg: float
) -> tuple[str, Certificate, _End]:
    """Solve by a solver of ours, without what CVXPY makes of a result and no path reads: the objective once
    more, and dual values, which of pattern cones are arrays of samples x gates."""
    variables: list[Any] = problem.variables()
    for variable, value in zip(variables, () if start is None else start.values, strict=start is not None):
        variable.save_value(value)
    left = None if start is None else start.dual
    found = solver.solve_via_data({"problem": problem, "left": left}, True, False, {})
    result = found.result
    if result.status is not Status.OPTIMAL:
        warnings.warn(f"At reg = {reg:.4g}: {result.status.value}", stacklevel=2)
    points = {block.id: value for block, value in zip(found.composite.variables, result.point, strict=True)}
    for variable in variables:
        variable.save_value(points[variable.id])
    proof, values = result.certificate, tuple(points[variable.id] for variable in variables)
    return result.status.cvxpy, _light(proof), _End(reg, values, proof.dual_point)


def _solved_by_others(problem: Any, solver: Any) -> tuple[str, Certificate]:
    """Solve by any solver of CVXPY, which starts where it likes; certified afterwards."""
    problem.solve(solver=solver, warm_start=True)
    return str(problem.status), _light(certificate(problem))


def _light(proof: Certificate) -> Certificate:
    """Without multipliers of the cones, arrays of samples x gates, which follow from the rest."""
    if proof.dual_point is None:
        return proof
    return replace(proof, dual_point=DualPoint(proof.dual_point.thetas))


def _extrapolated(ends: Sequence[_End], reg: float) -> _End | None:
    """Where the lines through the last two solutions lead, or the last one, if there is any.

    The path is piecewise smooth in reg; blocks that vanish in one of the solutions stay as they are. The dual
    point moves as if it were linear in reg^2, which is less far: gates that become active hold it back, and
    where it breaks a condition, its bound falls by as much. Where that leaves the pattern cones, or what is
    feasible for the dual, the solver goes back.
    """
    if len(ends) < 2:
        return ends[0] if ends else None
    before, last = ends
    gap = before.reg - last.reg
    ahead = min((last.reg - reg) / gap, 1.0) if gap > 0.0 else 0.0
    values = []
    for old, new in zip(before.values, last.values, strict=True):
        moved = new + ahead * (new - old)
        both = old.any(axis=0) & new.any(axis=0) if new.ndim == 2 else True
        values.append(np.where(both, moved, new))
    if before.dual is None or last.dual is None:
        return _End(reg, tuple(values), last.dual)
    pairs = zip(before.dual.thetas, last.dual.thetas, strict=True)
    ahead *= (last.reg + reg) / (before.reg + last.reg)
    thetas = tuple(new + ahead * (new - old) for old, new in pairs)
    return _End(reg, tuple(values), DualPoint(thetas, last.dual.multipliers))


def falling_regs(
    model: ConvexModel,
    y: Any,
    n_regs: int,
    ratio: float,
    regs: Any,
    loss: str | losses.LossFunction,
    options: dict[str, Any],
) -> Float64Array:
    """The regularisations of a path, checked: those given, or ``n_regs`` from the largest useful one down."""
    if regs is not None:
        given = _arrays.numbers(regs, "regs")
        if given.ndim != 1 or given.size == 0 or not np.all(given > 0.0):
            raise ValueError("regs must be a non-empty sequence of positive numbers.")
        return np.sort(given)[::-1]
    count = _arrays.count(n_regs, "n_regs")
    share = _arrays.number(ratio, "ratio")
    if not 0.0 < share < 1.0:
        raise ValueError(f"ratio must lie between 0 and 1, not {ratio!r}.")
    largest = lambda_max(model, y, loss, **options)
    if largest == 0.0:
        raise ValueError("y leaves nothing to fit: the zero network is optimal for every reg; pass regs.")
    return np.asarray(largest * np.geomspace(1.0, share, count))
