"""Objects as dictionaries of plain arrays, for checkpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Arrays = dict[str, NDArray[Any]]
Held = Mapping[str, NDArray[Any]]


def packed_attributes(owner: object, names: Sequence[str]) -> Arrays:
    """Numbers and arrays that an object has under some of these names, copied."""
    return {name: np.array(getattr(owner, name)) for name in names if hasattr(owner, name)}


def restore_attributes(owner: object, names: Sequence[str], held: Held) -> None:
    """The inverse of :func:`packed_attributes`; numbers are Python's own again."""
    for name in names:
        if name in held:
            array = held[name]
            setattr(owner, name, array.item() if array.ndim == 0 else array.copy(order="K"))


def below(name: str, arrays: Held) -> Arrays:
    """The same arrays as parts of something larger."""
    return {f"{name}.{key}": array for key, array in arrays.items()}


def part(name: str, held: Held) -> Arrays:
    """The inverse of :func:`below`: the arrays of one part; an empty dictionary where there is none."""
    prefix = f"{name}."
    return {key.removeprefix(prefix): array for key, array in held.items() if key.startswith(prefix)}
