"""What stays with a problem for its next solves, all of it under one budget."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

T = TypeVar("T")

#: Bytes of matrices, factors and the like that may stay with one problem when a solve has ended.
KEPT_BYTES = 2**29


class Kept:
    """Results by name: what takes a while to find out, and the next solve of the same problem asks for again.

    Those that come with a size share :data:`KEPT_BYTES` with all parts of the same problem; what does not fit
    is made anew by every solve. ``common`` is what the problem's outputs have in common: the same as this,
    unless this is about one output.
    """

    def __init__(self) -> None:
        self.common = self
        self._found: dict[str, tuple[Any, float]] = {}
        self._used = [0.0]  # by all parts

    def once(self, name: str, make: Callable[[], T], size: float = 0.0) -> T:
        """What is kept under a name, made by the first call; with a ``size`` in bytes kept if that fits."""
        if name in self._found:
            return cast("T", self._found[name][0])
        made = make()
        if not size > 0.0 or self._used[0] + size <= KEPT_BYTES:
            self._found[name] = made, size
            self._used[0] += size
        return made

    def take(self, name: str) -> Any:
        """What was kept under a name, which is not kept any more; None where nothing was."""
        found, size = self._found.pop(name, (None, 0.0))
        self._used[0] -= size
        return found

    def part(self, name: str) -> Kept:
        """A part with names of its own, about the same outputs."""
        return self.once(
            f"part {name}", lambda: self._new(None if self.common is self else self.common.part(name))
        )

    def output(self, number: int) -> Kept:
        """A part about one output."""
        return self.once(f"output {number}", lambda: self._new(self))

    def _new(self, common: Kept | None) -> Kept:
        part = Kept()
        part._used = self._used
        part.common = part if common is None else common
        return part
