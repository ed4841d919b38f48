"""Checkpoints of long solves: what the loop and a method need to go on as if nothing had happened.

A file is one ``.npz`` of plain arrays, never of pickled objects. It is written beside its final place and
then moved there, so that a whole file is always to be found: this one or the one before. Nothing that is
claimed is taken from it: the best point and dual point in it are certified anew.
"""

from __future__ import annotations

import os
import time
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from convexnn_solvers.backends import Array, Float64Array
from convexnn_solvers.composite import Composite, Point
from convexnn_solvers.loop.result import HistoryRow
from convexnn_solvers.packing import Arrays as Arrays

State = TypeVar("State")

_FORMAT = 4
# Two readings of one problem agree this well at a random point, whatever the machine.
_SAME = 1e-9
_MISSING = np.nan


@runtime_checkable
class Resumable(Protocol[State]):
    """A method whose states can be put into arrays and back; others go on from their best point."""

    def packed(self, state: State) -> Arrays:
        """Everything that the next steps depend on."""
        ...

    def unpacked(self, arrays: Mapping[str, NDArray[Any]]) -> State:
        """The state that :meth:`packed` was given."""
        ...


@runtime_checkable
class StepsInPlace(Resumable[State], Protocol[State]):
    """One whose steps change the state they are given: it is packed before each step, where that is kept."""

    @property
    def steps_in_place(self) -> bool:
        """True."""
        ...


class Storage(Protocol):
    """Where a checkpoint lies. Processes that share a problem have one between them."""

    def read(self) -> Arrays | None:
        """What was written last; None if there is nothing."""
        ...

    def write(self, arrays: Arrays) -> None:
        """Keep these instead."""
        ...

    def agreed(self, wish: bool) -> bool:
        """Whether to write now, the same answer for all processes."""
        ...


@dataclass(frozen=True)
class File:
    """A checkpoint in a file of this process alone."""

    path: Path

    def read(self) -> Arrays | None:
        """The arrays of the file; ValueError when it is no checkpoint, None when there is no file."""
        if not self.path.exists():
            return None
        try:
            with self.path.open("rb") as file, np.load(file, allow_pickle=False) as held:
                arrays = {name: held[name] for name in held.files}
        except (ValueError, OSError, EOFError, zipfile.BadZipFile, AttributeError, TypeError) as error:
            raise ValueError(f"checkpoint={str(self.path)!r} cannot be read: {error}.") from error
        if int(arrays.get("format", np.asarray(0))) != _FORMAT:
            raise ValueError(f"checkpoint={str(self.path)!r} is not a checkpoint of this version; remove it.")
        return arrays

    def write(self, arrays: Arrays) -> None:
        """Write beside and move; a full disk is a warning, because the solve itself is not harmed."""
        beside = self.path.with_name(f"{self.path.name}.{os.getpid()}.part")
        try:
            with beside.open("wb") as file:
                np.savez(file, allow_pickle=False, **arrays)
                file.flush()
                os.fsync(file.fileno())
            beside.replace(self.path)
        except OSError as error:
            warnings.warn(f"the checkpoint {self.path} was not written: {error}", stacklevel=2)
        finally:
            beside.unlink(missing_ok=True)

    def agreed(self, wish: bool) -> bool:
        """The wish."""
        return wish


@dataclass(eq=False)
class Keeper:
    """The checkpoint of one solve: when to write, what was found, and whether it belongs to the problem.

    ``identity`` are numbers that another problem does not share; ``earlier`` the history of engines that
    ended before the one that is running.
    """

    storage: Storage
    interval: float
    identity: Float64Array
    saved: Arrays | None = None
    engine: str = ""
    writer: str = ""
    earlier: tuple[HistoryRow, ...] = ()
    earlier_iterations: int = 0
    _written: float = field(default_factory=time.perf_counter)

    def __post_init__(self) -> None:
        self.writer = "" if self.saved is None else str(self.saved["engine"])

    def due(self) -> bool:
        """Whether an interval has passed since the last writing."""
        return self.storage.agreed(time.perf_counter() - self._written >= self.interval)

    def write(self, arrays: Arrays) -> None:
        """Keep the loop's arrays together with what the engines before it did."""
        head: Arrays = {
            "format": np.asarray(_FORMAT),
            "identity": self.identity,
            "engine": np.asarray(self.engine),
            "earlier.iterations": np.asarray(self.earlier_iterations),
            "earlier.history": packed_history(self.earlier),
        }
        self.storage.write(head | arrays)
        self._written = time.perf_counter()

    def begins(self, engine: str, iterations: int, history: tuple[HistoryRow, ...]) -> bool:
        """Whether it is this engine's turn: always, except before the one that wrote the checkpoint."""
        if self.saved is not None:
            if self.writer != engine:
                return False
            iterations = int(self.saved["earlier.iterations"])
            history = unpacked_history(self.saved["earlier.history"])
        self.engine, self.earlier_iterations, self.earlier = engine, iterations, history
        return True

    def taken(self) -> Arrays | None:
        """What was found, once."""
        found, self.saved = self.saved, None
        return found


def keeper_for(storage: Storage, interval: float, resume: bool, identity: Float64Array) -> Keeper:
    """The keeper of a solve; with ``resume`` it holds what is stored, if anything is.

    Raises ValueError when that belongs to another problem.
    """
    saved = storage.read() if resume else None
    if saved is not None:
        there = saved["identity"]
        if there.shape != identity.shape or not np.allclose(there, identity, rtol=_SAME, atol=0.0):
            raise ValueError(
                "the checkpoint belongs to another problem (other data, parameters or shapes); "
                "give another path, or leave resume=True out to start anew."
            )
    return Keeper(storage, interval, identity, saved)


def identity(composite: Composite, probe: Point | None = None) -> Float64Array:
    """Numbers that tell problems apart: shapes, bounds, and values at a random point.

    ``composite`` is in float64 on the NumPy backend; ``probe`` is that point, by default
    :func:`probe_point` of its variables.
    """
    x = probe_point([v.shape for v in composite.variables]) if probe is None else probe
    outputs = composite.affine.forward(x)
    found = [composite.constant, composite.sign, float(composite.smooth_value(x, outputs))]
    found.append(float(composite.penalty_value(x)))
    found += [float(np.sqrt(np.sum(np.square(q)))) for q in outputs]
    bounds = [b for v in composite.variables for b in (v.lower, v.upper) if b is not None]
    found += [float(crc32(np.ascontiguousarray(bound).tobytes())) for bound in bounds]
    return np.asarray(found, dtype=np.float64)


def probe_point(shapes: Sequence[tuple[int, ...]]) -> tuple[Float64Array, ...]:
    """The same random point every time."""
    rng = np.random.default_rng(0)
    return tuple(np.asarray(rng.standard_normal(shape)) for shape in shapes)


def packed_point(name: str, point: Sequence[Array | None], to_numpy: Any = np.asarray) -> Arrays:
    """A tuple of arrays under numbered names; None is left out."""
    return {f"{name}.{k}": to_numpy(a) for k, a in enumerate(point) if a is not None} | {
        f"{name}.count": np.asarray(len(point))
    }


def unpacked_point(name: str, arrays: Mapping[str, NDArray[Any]]) -> tuple[NDArray[Any] | None, ...]:
    """The inverse of :func:`packed_point`."""
    return tuple(arrays.get(f"{name}.{k}") for k in range(int(arrays[f"{name}.count"])))


def whole_point(name: str, arrays: Mapping[str, NDArray[Any]]) -> tuple[NDArray[Any], ...]:
    """The same for tuples without None."""
    return tuple(arrays[f"{name}.{k}"] for k in range(int(arrays[f"{name}.count"])))


def packed_history(rows: Sequence[HistoryRow]) -> Float64Array:
    """One row of five numbers each; NaN for None."""
    table = [
        [
            row["iteration"],
            row["seconds"],
            row["primal"],
            _MISSING if row["dual"] is None else row["dual"],
            _MISSING if row["relative_gap"] is None else row["relative_gap"],
        ]
        for row in rows
    ]
    return np.asarray(table, dtype=np.float64).reshape(-1, 5)


def unpacked_history(table: NDArray[Any]) -> tuple[HistoryRow, ...]:
    """The inverse of :func:`packed_history`."""
    return tuple(
        HistoryRow(
            iteration=int(iteration),
            seconds=float(seconds),
            primal=float(primal),
            dual=None if np.isnan(dual) else float(dual),
            relative_gap=None if np.isnan(gap) else float(gap),
        )
        for iteration, seconds, primal, dual, gap in table
    )
