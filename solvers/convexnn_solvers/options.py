"""The options that all our solvers share, given to the class or to ``problem.solve``."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from numbers import Integral, Real
from os import PathLike
from pathlib import Path
from typing import Any

from convexnn_solvers.backends import Backend, select_backend
from convexnn_solvers.loop.result import Progress
from convexnn_solvers.named_options import refuse_unknown


@dataclass(frozen=True)
class Options:
    """Validated options; see :class:`solver_classes.RFISTA` for what they mean."""

    tol: float = 1e-4
    max_iter: int = 100_000
    time_limit: float | None = None
    device: str = "cpu"
    dtype: str = "float64"
    backend: str | None = None
    memory: float | None = None
    verbose: bool = False
    callback: Callable[[Progress], object] | None = None
    checkpoint: str | PathLike[str] | None = None
    checkpoint_interval: float = 60.0
    resume: bool = False

    def __post_init__(self) -> None:
        if not _is_number(self.tol) or not 0.0 <= self.tol < math.inf:
            raise ValueError(f"tol must be a number >= 0 (a relative certified gap), not {self.tol!r}.")
        if isinstance(self.max_iter, bool) or not isinstance(self.max_iter, Integral) or self.max_iter < 0:
            raise ValueError(f"max_iter must be an integer >= 0, not {self.max_iter!r}.")
        limit = self.time_limit
        if limit is not None and (not _is_number(limit) or math.isnan(limit) or limit < 0.0):
            raise ValueError(f"time_limit must be seconds >= 0, or None for no limit, not {limit!r}.")
        memory = self.memory
        if memory is not None and (not _is_number(memory) or not 0.0 < memory < math.inf):
            raise ValueError(
                "memory must be a number of bytes > 0, a share of the free memory as a float up to 1.0, or "
                f"None for 0.8 of it, not {memory!r}."
            )
        if self.callback is not None and not callable(self.callback):
            raise TypeError(f"callback must be a function of one argument, not {self.callback!r}.")
        if not isinstance(self.verbose, bool):
            raise TypeError(f"verbose must be True or False, not {self.verbose!r}.")
        self._check_checkpoint()

    def _check_checkpoint(self) -> None:
        interval = self.checkpoint_interval
        if not _is_number(interval) or math.isnan(interval) or interval < 0.0:
            raise ValueError(f"checkpoint_interval must be seconds >= 0, not {interval!r}.")
        if not isinstance(self.resume, bool):
            raise TypeError(f"resume must be True or False, not {self.resume!r}.")
        if self.checkpoint is None:
            if self.resume:
                raise ValueError("resume=True needs checkpoint=..., the file to go on from.")
            return
        if not isinstance(self.checkpoint, str | PathLike):
            raise TypeError(f"checkpoint must be the path of a file, not {self.checkpoint!r}.")
        path = Path(self.checkpoint)
        if path.is_dir() or not path.absolute().parent.is_dir():
            raise ValueError(f"checkpoint={str(path)!r} must be a file in a folder that exists.")

    def updated(self, solver: str, given: Mapping[str, Any]) -> Options:
        """These options with those of one ``solve`` call on top; an unknown one is refused by name."""
        if not given:
            return self
        known = [field.name for field in fields(self)]
        refuse_unknown(solver, given, known)
        return replace(self, **given)

    def selected_backend(self) -> Backend:
        """The array library that device, dtype and backend ask for, or an error that says what is missing."""
        return select_backend(self.device, self.dtype, self.backend)


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)
