"""The largest memory that a process has used so far.

This file imports the standard library only and can be run by its path, so that a process can measure
itself without importing this package.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

_HIGH_WATER = re.compile(r"^VmHWM:\s*(\d+) kB", re.MULTILINE)


def peak_mb(process: int | None = None) -> float | None:
    """Peak resident memory in MB (1e6 bytes) of this process, or on Linux of any live one.

    None where the system does not tell. Linux is asked for the high-water mark of the memory map, because
    ``getrusage`` of a child starts from the size of the parent that it was forked from.
    """
    status = Path("/proc", "self" if process is None else str(process), "status")
    try:
        found = _HIGH_WATER.search(status.read_text())
    except OSError:
        found = None
    if found is not None:
        return int(found.group(1)) * 1024 / 1e6
    return _from_getrusage() if process is None else None


def _from_getrusage() -> float | None:
    try:
        import resource
    except ImportError:
        return None
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest * (1 if sys.platform == "darwin" else 1024) / 1e6
