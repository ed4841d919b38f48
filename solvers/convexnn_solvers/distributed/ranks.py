"""The processes of a torch.distributed job as the solvers see them: sums, maxima, and what all agree on.

Every number that a decision rests on comes out of a collective operation, which gives all processes the same
bits; clocks and signals, which differ, only become wishes that travel with the next sum.
"""

from __future__ import annotations

import atexit
import importlib
import math
import os
import signal
import threading
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from convexnn_solvers.backends import Array, Backend, Float64Array

_HINT = "GateParallel needs torch: install it with: pip install 'convexnn[distributed]'"
_LAUNCH = (
    "GateParallel runs in processes that torchrun started: torchrun --nproc-per-node 2 script.py (or call "
    "torch.distributed.init_process_group yourself)."
)


class RankLost(RuntimeError):
    """Another process of the job has died, or did not answer within the timeout."""


@dataclass
class Traffic:
    """What this process gave to collective operations: how often and how many bytes."""

    predictions: int = 0
    prediction_bytes: int = 0
    others: int = 0
    other_bytes: int = 0


@dataclass
class Wishes:
    """What a process would like to happen, and (after the next sum) what all will do."""

    late: bool = False
    interrupted: bool = False
    due: bool = False

    def packed(self) -> list[float]:
        """For the sum."""
        return [float(self.late), float(self.interrupted), float(self.due)]


@dataclass(eq=False)
class Ranks:
    """One process of the group; all methods but the counters are collective."""

    distributed: Any
    torch: Any
    group: Any
    rank: int
    count: int
    timeout: float
    traffic: Traffic = field(default_factory=Traffic)
    wishes: Wishes = field(default_factory=Wishes)
    agreed: Wishes = field(default_factory=Wishes)

    def sum(self, value: float) -> float:
        """The sum of one number of every process."""
        return self._scalars([value], "SUM")[0]

    def max(self, value: float) -> float:
        """The largest of one number of every process; NaN if any is."""
        missing = math.isnan(value)
        largest, missing_somewhere = self._scalars([-math.inf if missing else value, float(missing)], "MAX")
        return math.nan if missing_somewhere > 0.0 else largest

    def sum_arrays(self, arrays: Sequence[NDArray[Any]]) -> tuple[NDArray[Any], ...]:
        """The sums of float64 NumPy arrays, together in one operation."""
        flat = np.concatenate([np.asarray(a, dtype=np.float64).ravel() for a in arrays])
        self._reduce(self.torch.from_numpy(flat), "SUM")
        self._count(flat.nbytes)
        return _cut(flat, [a.shape for a in arrays])

    def sum_predictions(
        self, outputs: Sequence[Array], scalars: Sequence[float], backend: Backend
    ) -> tuple[tuple[Array, ...], list[float]]:
        """The sums of predictions, of a few numbers and of the wishes, in one operation."""
        extra = [*scalars, *self.wishes.packed()]
        xp = backend.xp
        parts = [xp.reshape(q, (-1,)) for q in outputs]
        flat = xp.concat([*parts, backend.asarray(np.asarray(extra))])
        self._reduce(self.torch.from_numpy(flat) if backend.name == "numpy" else flat, "SUM")
        self.traffic.predictions += 1
        self.traffic.prediction_bytes += int(flat.size if backend.name == "numpy" else flat.numel()) * (
            flat.dtype.itemsize
        )
        size = int(sum(math.prod(q.shape) for q in outputs))
        *sums, late, interrupted, due = (float(value) for value in backend.to_numpy(flat[size:]))
        self.agreed = Wishes(late > 0.0, interrupted > 0.0, due > 0.0)
        return _cut(flat[:size], [tuple(q.shape) for q in outputs]), sums

    def check_equal(self, arrays: Sequence[Float64Array], what: str) -> None:
        """Raise RuntimeError unless these have the same bits everywhere, as they should."""
        digest = 0
        for array in arrays:
            digest = crc32(np.ascontiguousarray(array).tobytes(), digest)
        if self.max(float(digest)) != -self.max(-float(digest)):
            raise RuntimeError(
                f"the processes disagree about {what}: give all of them the same problem and options, on the "
                "same kind of processor and with the same versions of NumPy and torch."
            )

    def broadcast(self, value: Any) -> Any:
        """The first process's value, for all."""
        box = [value]
        with self._contact():
            self.distributed.broadcast_object_list(box, src=self._first, group=self.group)
        return box[0]

    @contextmanager
    def interruptible(self) -> Generator[None]:
        """Within, Ctrl-C is a wish that all processes will follow together."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def wish(*_: Any) -> None:
            self.wishes.interrupted = True

        before = signal.signal(signal.SIGINT, wish)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def close(self) -> None:
        """Leave the group; the job's own stays. A group that lost a process has nothing left to leave."""
        with suppress(RuntimeError):
            self.distributed.destroy_process_group(self.group)

    @property
    def _first(self) -> int:
        return int(self.distributed.get_global_rank(self.group, 0))

    def _scalars(self, values: list[float], operation: str) -> list[float]:
        tensor = self.torch.tensor(values, dtype=self.torch.float64)
        self._reduce(tensor, operation)
        self._count(8 * len(values))
        return [float(value) for value in tensor]

    def _count(self, size: int) -> None:
        self.traffic.others += 1
        self.traffic.other_bytes += size

    def _reduce(self, tensor: Any, operation: str) -> None:
        with self._contact():
            kind = getattr(self.distributed.ReduceOp, operation)
            self.distributed.all_reduce(tensor, op=kind, group=self.group)

    @contextmanager
    def _contact(self) -> Generator[None]:
        try:
            yield
        except RuntimeError as error:
            raise RankLost(
                f"process {self.rank} of {self.count} lost contact with the others (one of them died, or did "
                f"not answer for {self.timeout:g} seconds); look for the first error above, start the job "
                f"again, and with checkpoint=... and resume=True it goes on. torch says: {error}"
            ) from error


def join(device: str, timeout: float) -> Ranks:
    """The processes of this job; makes the job's process group from torchrun's environment if need be.

    Raises ImportError without torch, RuntimeError outside a job.
    """
    try:
        torch: Any = importlib.import_module("torch")
        distributed: Any = importlib.import_module("torch.distributed")
    except ImportError as error:
        raise ImportError(_HINT) from error
    if not distributed.is_available():
        raise ImportError(f"this build of torch has no torch.distributed. {_HINT}")
    on_gpu = device.startswith("cuda")
    backend = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
    limit = timedelta(seconds=timeout)
    if not distributed.is_initialized():
        if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
            raise RuntimeError(_LAUNCH)
        distributed.init_process_group(backend, timeout=limit)
        atexit.register(_leave_job, distributed)
    if on_gpu and device == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    group = distributed.new_group(backend=backend, timeout=limit)
    rank, count = int(distributed.get_rank(group)), int(distributed.get_world_size(group))
    return Ranks(distributed, torch, group, rank, count, timeout)


def _leave_job(distributed: Any) -> None:
    """End the group that ``join`` made: its threads, alive at exit, abort the process now and then."""
    with suppress(RuntimeError):
        if distributed.is_initialized():
            distributed.destroy_process_group()


def _cut(flat: Array, shapes: Sequence[tuple[int, ...]]) -> tuple[Array, ...]:
    pieces, start = [], 0
    for shape in shapes:
        size = math.prod(shape)
        pieces.append(flat[start : start + size].reshape(shape))
        start += size
    return tuple(pieces)
