"""Our own solver on the problem of a polynomial model: the optimum in its variables, and the proof."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from convexnn_models import _arrays
from convexnn_models._arrays import Float64Array
from convexnn_models.fitting import refuse_other_models, squared_targets
from convexnn_models.polynomial import Pair, PolynomialModel
from convexnn_models.polynomial_certificate import balanced, polynomial_certificate
from convexnn_models.polynomial_solver import LiftedPoint, PolynomialProgress, minimise_lifted
from convexnn_solvers.certify.certificate import Certificate
from convexnn_solvers.named_options import checked_options
from convexnn_solvers.status import Status

_LARGEST = 20_000  # side of the dense matrix of a Newton step


@dataclass(frozen=True)
class PolynomialFit:
    """How :func:`solve_polynomial` ended: ``status``, and the ``certificate`` of the point in the variables.

    ``iterations`` are those of all outputs together, ``seconds`` include the certificates; ``history`` holds
    one tuple of :class:`PolynomialProgress` per output.
    """

    status: Status
    certificate: Certificate
    iterations: int
    seconds: float
    history: tuple[tuple[PolynomialProgress, ...], ...]

    def __str__(self) -> str:
        return f"{self.status.name.lower()} after {self.iterations} iterations: {self.certificate}"


@checked_options
def solve_polynomial(
    model: PolynomialModel,
    *,
    tol: float = 1e-8,
    max_iter: int = 100,
    time_limit: float | None = None,
    verbose: bool = False,
) -> PolynomialFit:
    """Solve the latest ``model.problem(y, reg)``; it then holds values, duals and status like any other.

    A structured interior-point method: its Newton systems have the side min(n, number of coefficients),
    so widths in the hundreds take seconds where general-purpose solvers take minutes or do not fit.

    Parameters
    ----------
    model : PolynomialModel
        After ``model.problem(y, reg)`` with the squared loss and ``reg > 0``.
    tol : float
        The relative certified gap to reach.
    max_iter : int
        Newton steps per output.
    time_limit : float or None
        Seconds for all outputs together.
    verbose : bool
        Print one line per iteration.

    Returns a :class:`PolynomialFit`. Raises ValueError when the problem is not of this form or too large.
    """
    refuse_other_models(model, PolynomialModel, "polynomial(X, a, b, c)")
    y, reg = squared_targets(model)
    if reg <= 0.0:
        raise ValueError("reg must be positive here; for reg=0 use model.problem(y, 0).solve(cp.CLARABEL).")
    tolerance = _arrays.positive(tol, "tol")
    steps = _arrays.count(max_iter, "max_iter")
    features = model.fitted_features
    _refuse_large(y.shape[0], sum((cell.width + 1) * (cell.width + 2) // 2 for cell in features))
    started = time.perf_counter()
    deadline = np.inf if time_limit is None else started + _arrays.positive(time_limit, "time_limit")
    points: list[LiftedPoint] = []
    statuses: list[Status] = []
    history: list[tuple[PolynomialProgress, ...]] = []
    iterations = 0
    for k in range(model.outputs):
        rows: list[PolynomialProgress] = []
        point, status, taken = minimise_lifted(
            features,
            y[:, k] if model.output_bias is None else y[:, k] - y[:, k].mean(),
            reg,
            tol=0.5 * tolerance,  # the certificate's margin for rounding needs the rest
            max_iter=steps,
            deadline=deadline,
            report=_reporter(rows, k, verbose),
        )
        points.append(point)
        statuses.append(status)
        history.append(tuple(rows))
        iterations += taken
    status = next((s for s in statuses if s is not Status.OPTIMAL), Status.OPTIMAL)
    _unpack(model, points, y, reg, status)
    proof = polynomial_certificate(model)
    if status is Status.OPTIMAL and (proof.relative_gap is None or proof.relative_gap > tolerance):
        status = Status.STALLED
        _unpack(model, points, y, reg, status)
    return PolynomialFit(status, proof, iterations, time.perf_counter() - started, tuple(history))


@dataclass(frozen=True)
class _Solution:
    """What ``cp.Problem.unpack`` reads: values of variables and constraint duals by id."""

    status: str
    primal_vars: dict[int, Float64Array]
    dual_vars: dict[int, Float64Array]


def _unpack(
    model: PolynomialModel, points: list[LiftedPoint], y: Float64Array, reg: float, status: Status
) -> None:
    """Leave the points in the problem as any solver would: values, constraint duals, status."""
    h, even = model.patches.shape[2], model.activation.b == 0.0
    primal: dict[int, Float64Array] = {}
    dual: dict[int, Float64Array] = {}
    constraints = iter(model.constraints)
    pairs: list[list[Pair]] = []
    for row, point in zip(model.pairs, points, strict=True):
        pairs.append([])
        for variables, matrices, slacks in zip(row, point.matrices, point.slacks, strict=True):
            up, down = (balanced(model, Z[:h, :h] if even else Z) for Z in matrices)
            pairs[-1].append((up, down))
            for variable, Z, S in zip(variables, (up, down), slacks, strict=True):
                primal[variable.id] = Z[:h, :h] if even else Z
                dual[next(constraints).id] = S[:h, :h] + S[h, h] * np.eye(h) if even else S
            if not even:
                total = model.activation.c * float(point.theta.sum())
                for sign, S in zip((1.0, -1.0), slacks, strict=True):
                    dual[next(constraints).id] = np.asarray(reg - sign * total - S[h, h])
    model.thetas = np.stack([point.theta for point in points], axis=1)
    if model.output_bias is not None:
        model.thetas -= model.thetas.mean(axis=0)
        best = np.mean(y - model.scores(pairs).reshape(y.shape), axis=0)
        primal[model.output_bias.id] = best.reshape(model.output_bias.shape)
    model.latest.unpack(_Solution(status.cvxpy, primal, dual))


def _refuse_large(n: int, coefficients: int) -> None:
    side = min(n, coefficients)
    if side > _LARGEST:
        raise ValueError(
            f"{n} samples and {coefficients} coefficients need a dense matrix of side {side} (more than "
            f"{_LARGEST}); train on fewer samples, or on patches or features of lower dimension."
        )


def _reporter(
    rows: list[PolynomialProgress], output: int, verbose: bool
) -> Callable[[PolynomialProgress], None]:
    def report(progress: PolynomialProgress) -> None:
        rows.append(progress)
        if verbose:
            if progress.iteration == 0:
                print(f"{'output':>6} {'iter':>5} {'seconds':>8} {'primal':>16} {'dual':>16} {'gap':>9}")
            print(
                f"{output:6d} {progress.iteration:5d} {progress.seconds:8.2f} {progress.primal:16.9e} "
                f"{progress.dual:16.9e} {progress.gap:9.2e}",
                flush=True,
            )

    return report
