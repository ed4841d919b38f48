"""Proximal maps of block penalties, for the semismooth Newton method.

For blocks ``Z_b`` and thresholds ``t_b`` the map is block soft-thresholding of the projection on the
cone, ``prox(Z)_b = (1 - t_b/||P(Z_b)||)_+ P(Z_b)``; without cones ``P`` is the identity. Blocks that it
does not send to zero are *active*. Arrays are (c, d, m): outputs, features, blocks.
"""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from convexnn_solvers.backends import Float64Array
from convexnn_solvers.cones.active_sets import shortest_multiple
from convexnn_solvers.cones.factors import factor_bytes
from convexnn_solvers.cones.memory import ConeMemory
from convexnn_solvers.cones.projections import ActiveRows, PatternCones, machine_code_pays
from convexnn_solvers.gated_programs.fits import LineFunction
from convexnn_solvers.gated_programs.nonsmooth_fits import NonsmoothFit
from convexnn_solvers.gated_programs.program import GatedProgram, Indices, block_norms
from convexnn_solvers.packing import Arrays, Held, below, part

# Losses without a gradient take several times as many projections. Measured: machine code pays, loading
# included, from about this share of the size where it does for others.
_KINKED = 4.0


@dataclass(frozen=True, eq=False)
class ActiveBlocks:
    """The blocks that the proximal map keeps: projected points (c, d, m), their norms, thresholds (m,).

    ``rows``: with cones, for each output the active rows (m, k) of X, padded with -1; ``memories`` may know
    more about them, which only saves time.
    """

    blocks: Indices
    projected: Float64Array
    norms: Float64Array
    thresholds: Float64Array
    rows: tuple[Indices, ...] = ()
    memories: tuple[ConeMemory, ...] = ()

    @property
    def shrink(self) -> Float64Array:
        """The factors ``a_b`` in (0, 1]."""
        return 1.0 - self.thresholds / self.norms

    @property
    def values(self) -> Float64Array:
        """The proximal points (c, d, m)."""
        return self.projected * self.shrink

    @property
    def envelope(self) -> float:
        """``sum_b 1/2 (||P(Z_b)|| - t_b)_+^2``, whose gradient in Z is the proximal map."""
        excess = self.norms - self.thresholds
        return 0.5 * float(excess @ excess)

    def packed(self) -> Arrays:
        """Everything as arrays."""
        fields = {"blocks": self.blocks, "projected": self.projected}
        fields |= {"norms": self.norms, "thresholds": self.thresholds}
        return fields | {f"rows.{k}": rows for k, rows in enumerate(self.rows)}


def unpacked_blocks(held: Held) -> ActiveBlocks:
    """The inverse of :meth:`ActiveBlocks.packed`."""
    rows = tuple(held[f"rows.{k}"] for k in range(sum(name.startswith("rows.") for name in held)))
    return ActiveBlocks(held["blocks"], held["projected"], held["norms"], held["thresholds"], rows)


class BlockLine(Protocol):
    """The proximal map on a line."""

    def __call__(self, length: float) -> tuple[float, float]:
        """The envelope and its derivative in the length."""
        ...

    def at(self, length: float) -> ActiveBlocks:
        """The active blocks."""
        ...


def envelope_line(blocks: BlockLine, start: float, sigma: float) -> LineFunction:
    """The blocks' part of phi on a line, less its value at length 0, where the envelope is ``start``."""

    def line(length: float) -> tuple[float, float]:
        envelope, rate = blocks(length)
        return (envelope - start) / sigma, rate / sigma

    return line


class BlockProx(Protocol):
    """The proximal map at given thresholds; may keep warm starts between calls."""

    def at(self, Z: Float64Array, thresholds: Float64Array) -> ActiveBlocks:
        """The active blocks of ``Z`` (c, d, B)."""
        ...

    def along(self, Z: Float64Array, step: Float64Array, thresholds: Float64Array) -> BlockLine:
        """The line ``Z + length * step``."""
        ...


class PlainProx:
    """Blocks without cones: everything on a line is a quadratic per block."""

    def at(self, Z: Float64Array, thresholds: Float64Array) -> ActiveBlocks:
        """The active blocks of ``Z`` (c, d, B)."""
        norms = block_norms(Z)
        active = np.flatnonzero(norms > thresholds)
        return ActiveBlocks(active, Z[:, :, active], norms[active], thresholds[active])

    def along(self, Z: Float64Array, step: Float64Array, thresholds: Float64Array) -> BlockLine:
        """The line ``Z + length * step``."""
        return _PlainLine(self, Z, step, thresholds)


class _PlainLine:
    """A :class:`BlockLine` without cones, in O(B) operations for each length."""

    def __init__(
        self, prox: PlainProx, Z: Float64Array, step: Float64Array, thresholds: Float64Array
    ) -> None:
        self._prox, self._Z, self._step, self._thresholds = prox, Z, step, thresholds
        self._start = np.einsum("kib,kib->b", Z, Z)
        self._mixed = np.einsum("kib,kib->b", Z, step)
        self._squared = np.einsum("kib,kib->b", step, step)

    def __call__(self, length: float) -> tuple[float, float]:
        mixed, squared = self._mixed, self._squared
        norms = np.sqrt(np.maximum(self._start + length * (2.0 * mixed + length * squared), 0.0))
        active = np.flatnonzero(norms > self._thresholds)
        excess = norms[active] - self._thresholds[active]
        rate = (mixed[active] + length * squared[active]) / norms[active]
        return 0.5 * float(excess @ excess), float(excess @ rate)

    def at(self, length: float) -> ActiveBlocks:
        return self._prox.at(self._Z + length * self._step, self._thresholds)


class ConeProx:
    """Blocks whose columns lie in pattern cones: exact projections, warm-started from the call before."""

    def __init__(self, program: GatedProgram) -> None:
        cones = PatternCones(program.cone_features, program.patterns, _compiled(program))
        gates = program.block_gates(np.arange(program.blocks))
        self._columns = [ConeMemory(cones, gates) for _ in range(program.outputs)]

    def restricted(self, blocks: Indices) -> ConeProx:
        """Another one for some of the blocks, numbered anew, that starts from the same active rows."""
        other = copy(self)
        other._columns = [column.restricted(blocks) for column in self._columns]
        return other

    def packed(self) -> Arrays:
        """What is known from the calls before, as arrays; factors are made anew."""
        arrays: Arrays = {}
        for k, column in enumerate(self._columns):
            arrays |= below(f"{k}", column.packed())
        return arrays

    def restore(self, held: Held) -> None:
        """Go on from what was packed."""
        for k, column in enumerate(self._columns):
            column.restore(part(f"{k}", held))

    def at(self, Z: Float64Array, thresholds: Float64Array) -> ActiveBlocks:
        """The active blocks of ``Z`` (c, d, B); projects only blocks that may be active."""
        candidates = self.exceeding(Z, thresholds)
        projected = self.project(Z[:, :, candidates], candidates, thresholds[candidates])
        norms = block_norms(projected)
        kept = np.flatnonzero(norms > thresholds[candidates])
        blocks = candidates[kept]
        return ActiveBlocks(
            blocks,
            projected[:, :, kept],
            norms[kept],
            thresholds[blocks],
            tuple(column.rows(blocks) for column in self._columns),
            tuple(self._columns),
        )

    def exceeding(self, Z: Float64Array, thresholds: Float64Array) -> Indices:
        """Blocks whose projection may be longer than the threshold, without projecting any.

        ``||z + a w||`` bounds ``||P(z)||`` for every a >= 0 and polar direction ``w = B^T rho``, rho >= 0;
        the w of the latest projection of the same block rules out most blocks that are not active.
        """
        long = np.flatnonzero(block_norms(Z) > thresholds)
        return long[self.bounds(Z[:, :, long], long) > thresholds[long]]

    def bounds(self, Z: Float64Array, blocks: Indices) -> Float64Array:
        """Upper bounds (m,) of the norms of projections of columns (c, d, m), see :meth:`exceeding`."""
        w = np.stack([column.polar[blocks].T for column in self._columns])
        return block_norms(Z + shortest_multiple(Z, w)[:, None, :] * w)

    def project(self, Z: Float64Array, blocks: Indices, limits: Float64Array | None = None) -> Float64Array:
        """Projections (c, d, m) of the columns of ``Z`` on the cones of ``blocks``.

        A block whose norm is at most its limit (m,) may be another point ``Z + B^T rho`` as short as that.
        """
        projected = np.empty_like(Z)
        alone = limits if len(self._columns) == 1 else None  # a short column may be one of a long block
        for k, column in enumerate(self._columns):
            projected[k] = column.project(Z[k], blocks, alone)
        return projected

    def active(self) -> tuple[ActiveRows, ...]:
        """For each output the active rows of all blocks in their latest projections."""
        return tuple(column.active(slice(None)) for column in self._columns)

    def along(self, Z: Float64Array, step: Float64Array, thresholds: Float64Array) -> BlockLine:
        """The line ``Z + length * step``."""
        return _ConeLine(self, Z, step, thresholds)


def _compiled(program: GatedProgram) -> bool:
    """Whether projections are worth machine code, which takes a moment to load."""
    times = _KINKED if isinstance(program.fit, NonsmoothFit) else 1.0
    return machine_code_pays(program.cone_features, program.patterns, times)


def cone_bytes(program: GatedProgram, remembered: int, factored: int) -> int:
    """What a :class:`ConeProx` holds of so many blocks, and factors of so many."""
    n, d = program.X.shape
    width = max(min(n, d), 1)
    factors = factor_bytes(factored, n, d, width) if _compiled(program) else 0
    return int(program.outputs * (8 * remembered * (2 * width + d + 1) + factors))


class _ConeLine:
    """A :class:`BlockLine` with cones: every new length projects."""

    def __init__(self, prox: ConeProx, Z: Float64Array, step: Float64Array, thresholds: Float64Array) -> None:
        self._prox, self._Z, self._step, self._thresholds = prox, Z, step, thresholds
        self._latest: tuple[float, ActiveBlocks] | None = None

    def __call__(self, length: float) -> tuple[float, float]:
        active = self.at(length)
        rate = np.einsum("kib,kib->b", active.values, self._step[:, :, active.blocks])
        return active.envelope, float(np.sum(rate))

    def at(self, length: float) -> ActiveBlocks:
        if self._latest is None or self._latest[0] != length:
            self._latest = length, self._prox.at(self._Z + length * self._step, self._thresholds)
        return self._latest[1]
