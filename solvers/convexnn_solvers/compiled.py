"""Loops in machine code; needs numba."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar, cast

import numba

_Function = TypeVar("_Function", bound=Callable[..., Any])


def compiled(function: _Function) -> _Function:
    """Machine code at the first call, kept on disk for the next process; sums may be reordered.

    What is kept goes by the file of the function alone: functions that call each other belong in one file.
    """
    in_machine_code: Any = partial(numba.njit, nogil=True, fastmath={"reassoc", "contract"})
    try:
        machine_code = in_machine_code(cache=True)(function)
    except RuntimeError:  # no folder can be written: every process compiles anew
        machine_code = in_machine_code()(function)
    return cast(_Function, machine_code)
