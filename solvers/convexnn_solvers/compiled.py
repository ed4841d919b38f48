"""Loops in machine code; needs numba."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

_Function = TypeVar("_Function", bound=Callable[..., Any])


def compiled(function: _Function) -> _Function:
    """Machine code at the first call, kept on disk for the next process; sums may be reordered.

    What is kept goes by the file of the function alone: functions that call each other belong in one file.
    """
    machine_code: Any = numba.njit(cache=True, nogil=True, fastmath={"reassoc", "contract"})(function)
    return cast(_Function, machine_code)
