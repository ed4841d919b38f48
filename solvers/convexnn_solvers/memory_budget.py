"""How many bytes a solve may use, and how many there are."""

from __future__ import annotations

import os
from pathlib import Path

from convexnn_solvers.backends import Backend

# The share of the free memory that is taken without being asked.
_SHARE = 0.8
_UNITS = ((2**40, "TB"), (2**30, "GB"), (2**20, "MB"), (2**10, "kB"))


def budget(memory: float | None, backend: Backend) -> int:
    """Bytes that a solve may use: an integer is that many, a float at most 1 a share of what is free."""
    if memory is None:
        return int(_SHARE * free_bytes(backend))
    if isinstance(memory, float) and memory <= 1.0:
        return int(memory * free_bytes(backend))
    return int(memory)


def free_bytes(backend: Backend) -> int:
    """Memory that nobody uses now, on the backend's device."""
    if str(backend.device) != "cpu":
        free, _ = backend.xp.cuda.mem_get_info(backend.device)
        return int(free)
    found = [_available(), _left_in_group()]
    return min(value for value in found if value is not None)


def itemsize(backend: Backend) -> int:
    """Bytes of one number."""
    return int(backend.dtype.itemsize)


def readable(count: float) -> str:
    """A number of bytes as people write it."""
    for size, unit in _UNITS:
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f} bytes"


def _available() -> int:
    """What the system would hand out without swapping."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return 1024 * int(line.split()[1])
    except OSError:
        pass
    try:
        return int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, OSError, ValueError):
        return 2**33  # a system that does not say


def _left_in_group() -> int | None:
    """What a container's limit leaves, where there is one; files that were only read can be dropped."""
    folder = Path("/sys/fs/cgroup")
    try:
        limit = (folder / "memory.max").read_text().strip()
        if limit == "max":
            return None
        statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        used = int((folder / "memory.current").read_text()) - int(statistics.get("inactive_file", "0"))
        return max(int(limit) - used, 0)
    except (OSError, ValueError):
        return None
