"""R-FISTA with the gates divided among the processes of a ``torch.distributed`` job.

Every process owns a slice of the gates: the columns of the weights, their patterns, their part of the forward
and adjoint products. A step needs one all-reduce, of the n x c prediction with a handful of numbers behind
it; everything that a decision rests on comes out of an all-reduce, so that all processes take the same path
bit for bit. The job is started by torchrun and the problem is the one that a single process would solve::

    problem.solve(solver=GateParallel(tol=1e-4))      # torchrun --nproc-per-node 4 script.py
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from cvxpy import settings

from convexnn_solvers.backends import Array, Backend, Float64Array, numpy_backend
from convexnn_solvers.certify.certifier import Certifier
from convexnn_solvers.composite import AffineMap, Composite, Point
from convexnn_solvers.distributed.ranks import RankLost as RankLost
from convexnn_solvers.distributed.ranks import Ranks, join
from convexnn_solvers.distributed.shares import Division, Share, share_of
from convexnn_solvers.first_order.accelerated import Descent, Smooth, Trial
from convexnn_solvers.first_order.rfista import AcceleratedGradient, rfista_method
from convexnn_solvers.interface import CompositeSolver, Solved
from convexnn_solvers.loop.checkpoint import Arrays, File, identity, keeper_for, probe_point, whole_point
from convexnn_solvers.loop.iterate import Candidate, Limits
from convexnn_solvers.loop.relay import Engine, run_engines
from convexnn_solvers.loop.result import Progress
from convexnn_solvers.named_options import parameter_names, refuse_unknown
from convexnn_solvers.options import Options
from convexnn_solvers.problem_state import starts
from convexnn_solvers.reading.affine import UnsupportedProblem
from convexnn_solvers.reading.compiler import compile_problem
from convexnn_solvers.reading.variables import read_variable
from convexnn_solvers.status import Status

# What a checkpoint holds column by column; everything else in it is the same in all processes.
_DIVIDED = ("state.x", "state.y", "watch.point", "watch.previous")


class GateParallel(CompositeSolver):
    """R-FISTA over all processes of a job; every process calls ``solve`` on the same problem.

    Takes what :class:`RFISTA` takes, with one column of weights per gate in every
    variable. Afterwards every process holds the whole solution and the certificate of the whole problem.
    A checkpoint is one file, written by the first process, from which any number of processes (or
    ``RFISTA`` in one) can go on.

    Parameters
    ----------
    timeout : float
        Seconds without an answer after which a process counts as lost; one that dies is noticed at once.
        Every other process then ends with :class:`RankLost`.
    **options
        As for :class:`RFISTA`. ``verbose`` prints, and ``callback`` is called, in
        the first process only; ``device="cuda"`` is the process's own device (``LOCAL_RANK``).

    Raises ImportError without torch and RuntimeError outside a job.
    """

    def __init__(self, *, timeout: float = 300.0, **options: Any) -> None:
        refuse_unknown(type(self).__name__, options, ["timeout", *parameter_names(CompositeSolver.__init__)])
        super().__init__(**options)
        if not timeout > 0.0:
            raise ValueError(f"timeout must be seconds > 0, not {timeout!r}.")
        self.timeout = float(timeout)

    def __eq__(self, other: object) -> bool:
        return super().__eq__(other) and isinstance(other, GateParallel) and other.timeout == self.timeout

    def __hash__(self) -> int:
        return hash((super().__hash__(), self.timeout))

    def solve_via_data(
        self,
        data: dict[str, Any],
        warm_start: bool,
        verbose: bool,
        solver_opts: dict[str, Any],
        solver_cache: Any = None,
    ) -> Solved:
        """Compile the own share, iterate with the others, gather the solution."""
        started = time.perf_counter()
        options = self.options.updated(self.name(), solver_opts)
        ranks = join(options.device, self.timeout)
        try:
            limits = _AgreedLimits(
                tol=options.tol,
                max_iter=options.max_iter,
                time_limit=options.time_limit,
                verbose=(options.verbose or verbose) and ranks.rank == 0,
                callback=_Callback(ranks, options.callback),
                started=started,
                ranks=ranks,
            )
            with ranks.interruptible():
                return _solve_together(data["problem"], options, limits, ranks, warm_start)
        finally:
            ranks.close()

    def invert(self, solution: Any, inverse_data: Any) -> Any:
        """CVXPY's Solution for the whole problem; ``extra_stats["traffic"]`` says what was sent."""
        found = super().invert(solution, inverse_data)
        found.attr[settings.EXTRA_STATS]["traffic"] = solution.traffic
        return found


def _solve_together(
    problem: Any, options: Options, limits: _AgreedLimits, ranks: Ranks, warm_start: bool
) -> _SolvedTogether:
    decisive = [options.tol, options.max_iter, options.checkpoint is None, options.resume, warm_start]
    ranks.check_equal([np.asarray(decisive, dtype=np.float64)], "the options")
    backend, reference = options.selected_backend(), numpy_backend()
    share = share_of(problem, Division(ranks.rank, ranks.count))
    composite = _joined(compile_problem(share.problem, backend).composite(), share, ranks)
    exact = composite
    if backend != reference:
        exact = _joined(compile_problem(share.problem, reference).composite(), share, ranks)
    kept = None
    if options.checkpoint is not None:
        storage = _SharedFile(File(Path(options.checkpoint)), ranks, share)
        probe = share.restricted(probe_point([variable.shape for variable in share.whole]))
        here = identity(exact, probe)
        kept = keeper_for(storage, options.checkpoint_interval, options.resume, here)
    begin = starts(share.problem, exact, warm_start)
    if ranks.max(float(len(begin))) > len(begin):
        begin = [*begin, *begin]  # the own columns of another process's start are all zero
    compile_seconds = limits.seconds()
    engine = Engine("RFISTA", f"divided among {ranks.count} processes", lambda: _method(composite, ranks))
    result, log = run_engines(iter([engine]), composite, Certifier(exact), begin, limits, kept)
    point = ranks.sum_arrays(share.spread(result.point))
    blocks = tuple(read_variable(variable) for variable in share.whole)
    traffic = asdict(ranks.traffic) | {"processes": ranks.count}
    whole = replace(exact, variables=blocks)
    return _SolvedTogether(replace(result, point=point), whole, compile_seconds, log, traffic)


@dataclass(frozen=True, eq=False)
class _SolvedTogether(Solved):
    """A result with what this process sent for it."""

    traffic: dict[str, int]


@dataclass(frozen=True, eq=False)
class Together:
    """Sums and maxima over the processes; see :class:`~composite.Across`."""

    ranks: Ranks
    share: Share

    def sum(self, value: float) -> float:
        """The sum of every process's value."""
        return self.ranks.sum(value)

    def max(self, value: float) -> float:
        """The largest of every process's values."""
        return self.ranks.max(value)

    def normal(self, rng: np.random.Generator, variable: int, shape: tuple[int, ...]) -> Float64Array:
        """The own columns of what a single process would draw, so that it would take the same path."""
        everything = rng.standard_normal(self.share.whole[variable].shape)
        return np.ascontiguousarray(everything[:, self.share.division.own(everything.shape[1])])


@dataclass(frozen=True, eq=False)
class SharedMap:
    """An affine map whose linear part is the sum of what the processes' own maps give."""

    own: AffineMap
    offsets: Point
    backend: Backend
    ranks: Ranks

    def forward(self, x: Point) -> Point:
        """``A x + b``: one all-reduce."""
        return self.forward_with(x, [])[0]

    def linear(self, x: Point) -> Point:
        """``A x``: one all-reduce."""
        return self.ranks.sum_predictions(self.own.linear(x), [], self.backend)[0]

    def adjoint(self, cotangents: tuple[Array | None, ...]) -> Point:
        """The own columns of ``A^T``, without any communication."""
        return self.own.adjoint(cotangents)

    def forward_with(self, x: Point, scalars: Sequence[float]) -> tuple[Point, list[float]]:
        """``A x + b`` and the sums of some numbers, in one all-reduce."""
        images, sums = self.ranks.sum_predictions(self.own.linear(x), scalars, self.backend)
        return tuple(a + b for a, b in zip(images, self.offsets, strict=True)), sums


@dataclass(frozen=True, eq=False)
class SharedSmooth(Smooth):
    """The smooth part, where one trial point costs one all-reduce."""

    def tried(self, x: Point, state: Descent) -> Trial:
        """Outputs, distance and direction of a trial point together."""
        shared: Any = self.composite.affine
        outputs, (moved, turned) = shared.forward_with(x, self.own_products(x, state))
        return Trial(outputs, moved, turned)


@dataclass(frozen=True, eq=False)
class SharedGradient(AcceleratedGradient):
    """R-FISTA that ends when all processes agree that one of them was interrupted."""

    ranks: Ranks | None = None

    def wants_look(self, state: Descent) -> bool:
        """When somebody pressed Ctrl-C."""
        return self.ranks is not None and self.ranks.agreed.interrupted

    def candidate(self, state: Descent) -> Candidate:
        """The own columns, after making sure that the processes still agree about their sum."""
        assert self.ranks is not None
        backend = self.smooth.composite.backend
        self.ranks.check_equal([backend.to_numpy(q) for q in state.outputs], "the prediction")
        finding = Status.INTERRUPTED if self.ranks.agreed.interrupted else None
        return replace(super().candidate(state), finding=finding)


@dataclass(frozen=True)
class _AgreedLimits(Limits):
    """The clock of one process is only a wish; all stop where the sum of the wishes says so."""

    ranks: Ranks | None = None

    @property
    def out_of_time(self) -> bool:
        """Whether some process ran out of time before the last sum."""
        assert self.ranks is not None
        self.ranks.wishes.late = self.time_limit is not None and self.seconds() >= self.time_limit
        return self.ranks.agreed.late


@dataclass(frozen=True, eq=False)
class _Callback:
    """The user's callback in the first process; its wish to stop counts for all."""

    ranks: Ranks
    given: Callable[[Progress], object] | None

    def __call__(self, progress: Progress) -> bool:
        stop = self.ranks.rank == 0 and self.given is not None and bool(self.given(progress))
        return self.ranks.max(float(stop)) > 0.0


@dataclass(frozen=True, eq=False)
class _SharedFile:
    """A checkpoint of the whole problem in one file, which the first process reads and writes."""

    file: File
    ranks: Ranks
    share: Share

    def read(self) -> Arrays | None:
        """The own columns of what the first process finds."""
        found: Arrays | str | None = None
        if self.ranks.rank == 0:
            try:
                found = self.file.read()
            except ValueError as error:
                found = str(error)
        found = self.ranks.broadcast(found)
        if isinstance(found, str):
            raise ValueError(found)
        if found is None:
            return None
        for name in _divided(found):
            columns = self.share.restricted(whole_point(name, found))
            found |= {f"{name}.{k}": own for k, own in enumerate(columns)}
        return found

    def write(self, arrays: Arrays) -> None:
        """Gather all columns; the first process writes."""
        names = _divided(arrays)
        spread = [array for name in names for array in self.share.spread(whole_point(name, arrays))]
        gathered = iter(self.ranks.sum_arrays(spread))
        for name in names:
            arrays = arrays | {f"{name}.{k}": next(gathered) for k in range(len(self.share.whole))}
        if self.ranks.rank == 0:
            self.file.write(arrays)
        self.ranks.wishes.due = self.ranks.agreed.due = False

    def agreed(self, wish: bool) -> bool:
        """Whether the first process wanted it before the last sum."""
        self.ranks.wishes.due = wish and self.ranks.rank == 0
        return self.ranks.agreed.due


def _divided(arrays: Arrays) -> list[str]:
    return [name for name in _DIVIDED if f"{name}.count" in arrays]


def _joined(composite: Composite, share: Share, ranks: Ranks) -> Composite:
    """The composite of a share with the sums over all processes in it."""
    if any(bool(np.any(composite.backend.to_numpy(c))) for c in composite.linear):
        raise UnsupportedProblem("GateParallel takes no linear term of the weights; solve with RFISTA().")
    penalised = {term.variable for term in composite.penalties}
    for index, block in enumerate(composite.variables):
        if index not in penalised:
            raise UnsupportedProblem(
                f"GateParallel divides penalised weights, and {block.name} carries no penalty; "
                "solve with RFISTA() in one process."
            )
    offsets = composite.affine.forward(composite.zeros())
    ranks.check_equal([composite.backend.to_numpy(b) for b in offsets], "the targets")
    shared = SharedMap(composite.affine, offsets, composite.backend, ranks)
    return replace(composite, affine=shared, across=Together(ranks, share))


def _method(composite: Composite, ranks: Ranks) -> SharedGradient:
    alone = rfista_method(composite)
    return SharedGradient(SharedSmooth(composite, alone.smooth.scales), alone.prox, ranks=ranks)
