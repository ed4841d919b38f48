"""Patches of images, and which of them are pooled together.

Patches are arrays (n, K, h): n samples, K positions, h numbers at each. A pooling is a value too: one tuple
of positions per cell, and what is computed at the positions of a cell is averaged (or summed, or compared).
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

from convexnn_models import _arrays
from convexnn_models._arrays import Float64Array
from convexnn_solvers.named_options import checked_options

#: Positions that are pooled together: one tuple per cell.
Cells = tuple[tuple[int, ...], ...]


@checked_options
def image_patches(images: Any, size: int, stride: int = 1) -> Float64Array:
    """All ``size`` x ``size`` windows of images (n, rows, columns[, channels]), row by row: (n, K, h).

    The corners of the windows lie ``stride`` apart; windows that stick out are left out. Raises ValueError
    when no window fits.
    """
    array = _arrays.numbers(images, "images")
    if array.ndim not in (3, 4) or 0 in array.shape:
        raise ValueError(f"images must have shape (n, rows, columns[, channels]), not {array.shape}.")
    side, step = _arrays.count(size, "size"), _arrays.count(stride, "stride")
    if side > min(array.shape[1:3]):
        raise ValueError(f"size={side} is larger than the images, which are {array.shape[1:3]}.")
    windows = np.lib.stride_tricks.sliding_window_view(array, (side, side), axis=(1, 2))
    chosen = windows[:, ::step, ::step]
    return np.ascontiguousarray(chosen.reshape(array.shape[0], chosen.shape[1] * chosen.shape[2], -1))


@checked_options
def global_pooling(patches: int) -> Cells:
    """One cell of all positions, ``patches`` in number; ValueError or TypeError unless that is a count."""
    return (tuple(range(_arrays.count(patches, "patches"))),)


@checked_options
def local_pooling(patches: int, size: int) -> Cells:
    """Consecutive cells of ``size`` positions each; for windows of an image see :func:`window_pooling`.

    ``patches`` must be a multiple of ``size`` (ValueError).
    """
    total, length = _arrays.count(patches, "patches"), _arrays.count(size, "size")
    if total % length:
        raise ValueError(f"size={length} does not divide the {total} patches; list unequal cells as tuples.")
    return tuple(tuple(range(start, start + length)) for start in range(0, total, length))


@checked_options
def window_pooling(rows: int, columns: int, size: int) -> Cells:
    """The ``size`` x ``size`` windows that tile a ``rows`` x ``columns`` grid of positions, row by row.

    ``rows`` and ``columns`` must be multiples of ``size`` (ValueError).
    """
    height, width = _arrays.count(rows, "rows"), _arrays.count(columns, "columns")
    side = _arrays.count(size, "size")
    if height % side or width % side:
        raise ValueError(f"size={side} does not divide the {height} x {width} positions.")
    grid = np.arange(height * width).reshape(height // side, side, width // side, side)
    windows = grid.transpose(0, 2, 1, 3).reshape(-1, side * side)
    return tuple(tuple(int(k) for k in window) for window in windows)


@checked_options
def flatten(patches: int) -> Cells:
    """One cell per position, ``patches`` in number: no pooling, every position has output weights of its own.

    ValueError or TypeError unless that is a count.
    """
    return tuple((k,) for k in range(_arrays.count(patches, "patches")))


def checked_cells(cells: Sequence[Sequence[int]], patches: int) -> Cells:
    """``cells`` as tuples of positions below ``patches``; ValueError or TypeError for anything else."""
    try:
        result = tuple(tuple(operator.index(k) for k in cell) for cell in cells)
    except TypeError:
        raise TypeError(
            "cells must be a sequence of cells, each of whole numbers: flatten(K), or ((0, 1), (2, 3))."
        ) from None
    if not result or not all(result):
        raise ValueError("cells must list at least one cell, and every cell at least one patch position.")
    if any(not 0 <= k < patches for cell in result for k in cell):
        raise ValueError(f"cells must name patch positions from 0 to {patches - 1}.")
    return result


def checked_patches(patches: Any, name: str = "patches") -> Float64Array:
    """``patches`` as a finite float64 array (n, K, h) without an empty axis."""
    array = _arrays.numbers(patches, name)
    if array.ndim != 3 or 0 in array.shape:
        raise ValueError(f"{name} must have shape (n, K, h), K patches per sample, not {array.shape}.")
    return array


@checked_options
def stacked_patches(patches: Any) -> Float64Array:
    """All patches of all samples as rows (n * K, h), sample by sample: what their gates are sampled from.

    ValueError or TypeError unless ``patches`` are finite numbers (n, K, h).
    """
    array = checked_patches(patches)
    return array.reshape(-1, array.shape[2])


def with_constant(patches: Float64Array, bias: bool) -> Float64Array:
    """``patches`` (n, K, h) themselves, or with a constant 1 appended to each when there is a ``bias``."""
    return np.concatenate([patches, np.ones((*patches.shape[:2], 1))], axis=2) if bias else patches
