"""Hear the exceptions that CVXPY's solver interfaces catch and drop.

Several interfaces wrap the solver's call in ``except Exception: pass`` and report "Solver failed": the
words that a person needs ("model too large for the licence") are lost. A trace function on the frames of
these interfaces, and on no others, sees the exceptions before they are dropped.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Generator
from types import FrameType
from typing import Any

_INTERFACE_FILES = ("_conif.py", "_qpif.py")


@contextlib.contextmanager
def listening() -> Generator[list[BaseException], None, None]:
    """Collect, in order, the exceptions that pass through a solver interface's frames in this thread."""
    heard: list[BaseException] = []

    def on_call(frame: FrameType, event: str, arg: Any) -> Any:
        if not frame.f_code.co_filename.endswith(_INTERFACE_FILES):
            return None
        frame.f_trace_lines = False
        return on_event

    def on_event(frame: FrameType, event: str, arg: Any) -> Any:
        if event == "exception":
            heard.append(arg[1])
        return on_event

    before = sys.gettrace()
    sys.settrace(on_call)
    try:
        yield heard
    finally:
        sys.settrace(before)
