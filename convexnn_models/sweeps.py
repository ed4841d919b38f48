"""Many trainings side by side: seeds and folds, each a whole regularisation path, in parallel over joblib.

joblib decides where they run: processes of this machine by default, a Dask or Ray cluster inside
``joblib.parallel_config(backend="dask")`` or ``"ray"``. What comes back does not depend on it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import cvxpy as cp
import numpy as np
from numpy.typing import NDArray

from convexnn_models import _arrays, losses
from convexnn_models._arrays import Float64Array
from convexnn_models.gated_relu import gated_relu
from convexnn_models.gates import Gates, sample_gates
from convexnn_models.model import ConvexModel
from convexnn_models.network import Network
from convexnn_models.paths import falling_regs, regularization_path
from convexnn_solvers import Certificate

#: Training samples and gates to a model: ``relu``, or ``functools.partial(relu, outputs=3)``.
Formulation = Callable[[Any, Gates], ConvexModel]
_Rows = NDArray[np.intp]


@dataclass(frozen=True, eq=False, repr=False)
class SweepPoint:
    """One training: what was asked, what is proved about it, and its mean loss on the samples left out.

    ``seed`` of the gates, number of the ``fold`` that was left out and ``reg``; the solver's ``status`` and
    the ``certificate`` on the other folds; the ``network``, and ``held_out``, its mean loss on this one;
    ``seconds``.
    """

    seed: int
    fold: int
    reg: float
    status: str
    certificate: Certificate
    held_out: float
    network: Network
    seconds: float

    def __repr__(self) -> str:
        return (
            f"SweepPoint(seed={self.seed}, fold={self.fold}, reg={self.reg:.4g}, {self.status}, "
            f"held_out={self.held_out:.4g})"
        )


@dataclass(frozen=True, eq=False, repr=False)
class Sweep(Sequence[SweepPoint]):
    """The points of a sweep: seed by seed, fold by fold, regularisations falling."""

    points: tuple[SweepPoint, ...]

    def __len__(self) -> int:
        return len(self.points)

    def __getitem__(self, index: Any) -> Any:
        return self.points[index]

    def __iter__(self) -> Iterator[SweepPoint]:
        return iter(self.points)

    @property
    def regs(self) -> Float64Array:
        """The regularisations, falling."""
        return np.unique([point.reg for point in self.points])[::-1]

    @property
    def held_out(self) -> Float64Array:
        """The loss on the samples left out, averaged over seeds and folds, for each of ``regs``."""
        means = [np.mean([p.held_out for p in self.points if p.reg == reg]) for reg in self.regs]
        return np.asarray(means, dtype=np.float64)

    @property
    def best_reg(self) -> float:
        """The regularisation with the smallest such average."""
        return float(self.regs[int(np.argmin(self.held_out))])

    def __repr__(self) -> str:
        return f"Sweep({len(self)} trainings, best reg {self.best_reg:.4g})"

    def __str__(self) -> str:
        lines = [f"{'reg':>11} {'held-out loss':>13} {'spread':>9} {'worst gap':>9} {'width':>7}"]
        for reg, mean in zip(self.regs, self.held_out, strict=True):
            same = [point for point in self.points if point.reg == reg]
            gaps = [point.certificate.proved_gap for point in same]
            worst = "-" if None in gaps else f"{max(gap for gap in gaps if gap is not None):.1e}"
            spread = float(np.std([point.held_out for point in same]))
            width = float(np.mean([point.network.width for point in same]))
            lines.append(f"{reg:11.4e} {mean:13.6g} {spread:9.2e} {worst:>9} {width:7.1f}")
        return "\n".join(lines)


@dataclass(frozen=True, eq=False)
class _Job:
    """One path: everything that a process elsewhere needs."""

    seed: int
    fold: int
    train: _Rows
    test: _Rows
    gates: int
    bias: bool
    formulation: Formulation
    regs: Float64Array
    loss: str | losses.LossFunction
    solver: Any
    tol: float
    options: dict[str, Any]


@losses.takes_loss_options
def sweep(
    X: Any,
    y: Any,
    *,
    n_gates: int = 100,
    seeds: Sequence[int] = (0,),
    folds: int = 5,
    n_regs: int = 10,
    ratio: float = 1e-2,
    regs: Any = None,
    formulation: Formulation = gated_relu,
    bias: bool = False,
    loss: str | losses.LossFunction = "squared",
    solver: Any = None,
    tol: float = 1e-3,
    n_jobs: int | None = None,
    **options: Any,
) -> Sweep:
    """Cross-validated regularisation paths over several seeds of the gates, in parallel.

    Parameters
    ----------
    X, y : arrays
        Samples (n, d) and targets as in ``model.problem``.
    n_gates, seeds : int, sequence of int
        How many gates to sample (on the training rows of each fold), and with which seeds.
    folds : int
        At least 2: each sample is left out once per seed. The same folds for all seeds.
    n_regs, ratio, regs :
        As in ``regularization_path``; the largest is that of all samples and the first seed.
    formulation : function
        ``(X, gates) -> model``, importable (or a ``functools.partial`` of such a function) so that other
        processes find it.
    bias : bool
        Gates with an offset; give ``formulation`` its own ``bias=True`` too.
    loss, solver, tol, **options :
        As in ``regularization_path``.
    n_jobs : int or None
        As in ``joblib.Parallel``: None leaves it to ``joblib.parallel_config``, else runs one at a time.

    Raises ImportError without joblib, ValueError or TypeError for bad arguments.
    """
    try:
        joblib: Any = importlib.import_module("joblib")
    except ImportError as error:
        raise ImportError("sweep needs joblib; install it with: pip install 'convexnn[sweeps]'") from error
    samples = _arrays.features(X)
    targets = np.asarray(y)
    if targets.ndim == 0 or targets.shape[0] != samples.shape[0]:
        raise ValueError(f"y must have one entry per sample, {samples.shape[0]}, not shape {targets.shape}.")
    chosen = [_arrays.count(seed, "every entry of seeds", least=0) for seed in _arrays.listed(seeds, "seeds")]
    if not chosen:
        raise ValueError("seeds must hold at least one seed.")
    if not callable(formulation):
        raise TypeError(f"formulation must be a function such as relu or gated_relu, not {formulation!r}.")
    gates = _arrays.count(n_gates, "n_gates")
    model = formulation(samples, sample_gates(samples, gates, chosen[0], bias=bias))
    values = falling_regs(model, y, n_regs, ratio, regs, loss, options)
    jobs = [
        _Job(seed, k, train, test, gates, bias, formulation, values, loss, solver, tol, options)
        for seed in chosen
        for k, (train, test) in enumerate(_split(samples.shape[0], folds))
    ]
    run = joblib.delayed(_run)
    found = joblib.Parallel(n_jobs=n_jobs)(run(samples, targets, job) for job in jobs)
    return Sweep(tuple(point for points in found for point in points))


def _run(X: Float64Array, y: NDArray[Any], job: _Job) -> list[SweepPoint]:
    """One path on the training rows of a fold, judged on the others."""
    train = X[job.train]
    model = job.formulation(train, sample_gates(train, job.gates, job.seed, bias=job.bias))
    path = regularization_path(
        model, y[job.train], regs=job.regs, loss=job.loss, solver=job.solver, tol=job.tol, **job.options
    )
    return [
        SweepPoint(
            seed=job.seed,
            fold=job.fold,
            reg=point.reg,
            status=point.status,
            # What has the size of the training data stays where it was made.
            certificate=replace(point.certificate, dual_point=None),
            held_out=_loss(job, point.network, X[job.test], y[job.test]),
            network=replace(point.network, info=None),
            seconds=point.seconds,
        )
        for point in path
    ]


def _loss(job: _Job, network: Network, X: Float64Array, y: NDArray[Any]) -> float:
    prediction = cp.Constant(network.predict(X))
    return float(losses.expression(job.loss, prediction, y, **job.options).value)


def _split(samples: int, folds: int) -> list[tuple[_Rows, _Rows]]:
    """Random folds of equal size up to one; the same ones every time."""
    count = _arrays.count(folds, "folds")
    if not 2 <= count <= samples:
        raise ValueError(f"folds must lie between 2 and the {samples} samples, not {folds!r}.")
    order = np.random.default_rng(0).permutation(samples)
    parts = [np.sort(part) for part in np.array_split(order, count)]
    return [(np.sort(np.concatenate([*parts[:k], *parts[k + 1 :]])), parts[k]) for k in range(count)]
