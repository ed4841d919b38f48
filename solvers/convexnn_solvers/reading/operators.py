"""The two linear maps of gated networks as products with dense features and pattern bits.

Nothing of the size n x (d P) is ever formed, and n x P intermediates only a block of rows at a time, so
that they stay in the processor's cache: the work is one matrix product with ``X`` per direction.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from convexnn_solvers.backends import Array, Backend, Float64Array
from convexnn_solvers.row_blocks import slices

_MIN_ROWS = 128  # below this the call overhead of small products shows
_MIN_ADJOINT_ROWS = 256  # below this the accumulation of the result, not the product, takes the time


@dataclass(frozen=True)
class MemoryPlan:
    """How much memory the operators may spend on speed, in bytes.

    ``block``: one block of the n x P intermediate; a cache's size on a CPU. ``masks``: a floating-point
    copy of the patterns is kept up to this size, else every block converts its own bits (10-20 % slower
    for d = 20, 1 % for d = 200).
    """

    block: int = 2**19
    masks: int = 2**26


CPU_MEMORY = MemoryPlan()
GPU_MEMORY = MemoryPlan(block=2**28, masks=2**30)


@dataclass(frozen=True)
class GateArrays:
    """Features and patterns on a backend, shared by all operators of a problem."""

    backend: Backend
    X: Array
    bits: Array
    masks: Array | None
    block_bytes: int
    mask_bytes: int = 0

    def taken(self, chosen: Array) -> GateArrays:
        """The same with only some of the gates, by their positions on the backend."""
        xp = self.backend.xp
        bits = xp.take(self.bits, chosen, axis=1)
        if self.masks is not None:
            return replace(self, bits=bits, masks=xp.take(self.masks, chosen, axis=1))
        kept = self.X.dtype.itemsize * int(np.prod(tuple(bits.shape))) <= self.mask_bytes
        return replace(self, bits=bits, masks=self.backend.asarray(bits) if kept else None)

    def blocks(self, columns: int, minimum: int = _MIN_ROWS) -> Iterator[slice]:
        """Row slices whose intermediates with ``columns`` columns fill one block of memory."""
        rows = max(minimum, self.block_bytes // (self.X.dtype.itemsize * max(columns, 1)))
        return slices(int(self.X.shape[0]), rows)

    def mask(self, rows: slice, columns: Array | None = None) -> Array:
        """The patterns of some rows as zeros and ones of the backend's type; of all gates, or of some."""
        if columns is not None:  # bits are gathered faster than numbers
            return self.backend.asarray(self.bits[rows][:, columns])
        return self.backend.asarray(self.bits[rows]) if self.masks is None else self.masks[rows]

    @cached_property
    def signs(self) -> Array:
        """The patterns as -1 and +1 in 8 bits, which multiply as fast as a copy in floating point."""
        return 2 * self.backend.xp.asarray(self.bits, dtype=self.backend.xp.int8) - 1


def load_gates(
    X: Float64Array, patterns: NDArray[np.bool_], backend: Backend, memory: MemoryPlan | None = None
) -> GateArrays:
    """``X`` (n, d) and ``patterns`` (n, P) on the backend; the NumPy arrays are shared where possible."""
    on_cpu = str(backend.device) == "cpu"
    plan = memory or (CPU_MEMORY if on_cpu else GPU_MEMORY)
    features, bits = backend.asarray(X), backend.asbits(patterns)
    wanted = features.dtype.itemsize * int(np.prod(patterns.shape))
    masks = backend.asarray(bits) if wanted <= plan.masks else None
    return GateArrays(backend, features, bits, masks, plan.block, plan.masks)


@dataclass(frozen=True)
class GatedOperator:
    """``sum_j (D_j + slope (I - D_j)) X u_j``, for ``U`` of shape (d * outputs, P); see ``atoms.gated``."""

    gates: GateArrays
    outputs: int = 1
    slope: float = 0.0

    def forward(self, U: Array) -> Array:
        """(d * outputs, P) -> (n,), or (n, outputs) for several outputs."""
        g, xp = self.gates, self.gates.backend.xp
        n, d = (int(size) for size in g.X.shape)
        result = g.backend.zeros((n, self.outputs))
        columns = self._few_columns(U)
        used = U if columns is None else U[:, columns]
        # Bits that are converted block by block may lie on a disk, and are read in whole rows.
        width = int(U.shape[1]) if columns is None or g.masks is None else max(int(columns.size), d)
        for rows in g.blocks(width):
            mask = g.mask(rows, columns)
            for k in range(self.outputs):
                result[rows, k] = xp.linalg.vecdot(mask @ used[k * d : (k + 1) * d].T, g.X[rows])
        if self.slope != 0.0:
            summed = xp.reshape(xp.sum(U, axis=1), (self.outputs, d))
            result = (1.0 - self.slope) * result + self.slope * (g.X @ summed.T)
        return result[:, 0] if self.outputs == 1 else result

    def _few_columns(self, U: Array) -> Array | None:
        """The gates whose weights are not zero, where they are so few that the products with theirs alone
        are faster: solutions leave most gates out. None elsewhere, and where a device would wait for it."""
        if self.gates.backend.name != "numpy":
            return None
        used = np.flatnonzero(U.any(axis=0))
        return used if 2 * used.size < U.shape[1] else None

    def adjoint(self, r: Array) -> Array:
        """(n,), or (n, outputs) for several outputs, -> (d * outputs, P)."""
        g, xp = self.gates, self.gates.backend.xp
        n, d = (int(size) for size in g.X.shape)
        height, width = d * self.outputs, int(g.bits.shape[1])
        residual = xp.reshape(r, (n, self.outputs))
        result: Array | None = None
        # Without bits to convert the scaled rows are all that a block needs.
        for rows in g.blocks(height if g.masks is not None else max(height, width), _MIN_ADJOINT_ROWS):
            # Scaling the rows of X instead of the mask leaves one product for all outputs.
            scaled = residual[rows][:, :, None] * g.X[rows][:, None, :]
            product = xp.reshape(scaled, (-1, height)).T @ g.mask(rows)
            if result is None:
                result = product
            else:
                result += product
        if result is None:  # no samples
            return g.backend.zeros((height, width))
        if self.slope != 0.0:
            everywhere = xp.reshape(residual.T @ g.X, (height, 1))
            result = (1.0 - self.slope) * result + self.slope * everywhere
        return result


@dataclass(frozen=True)
class SlackOperator:
    """``(2 D_j - I) X v_j`` for every gate; ``V`` has shape (d * outputs, P), see ``atoms.pattern_slack``."""

    gates: GateArrays
    outputs: int = 1

    def forward(self, V: Array) -> Array:
        """(d * outputs, P) -> (n * outputs, P)."""
        g, xp = self.gates, self.gates.backend.xp
        n, d = (int(size) for size in g.X.shape)
        width = int(V.shape[1])
        shape = (n * self.outputs, width)
        result = xp.empty(shape, dtype=g.backend.dtype, device=g.backend.device)
        for rows in g.blocks(width):
            for k in range(self.outputs):
                # In place: temporaries of this size would be fresh pages from the system every time.
                image = result[_shifted(rows, k * n)]
                xp.matmul(g.X[rows], V[k * d : (k + 1) * d], out=image)
                image *= g.signs[rows]
        return result

    def adjoint(self, R: Array) -> Array:
        """(n * outputs, P) -> (d * outputs, P)."""
        g = self.gates
        n, d = (int(size) for size in g.X.shape)
        width = int(R.shape[1])
        result = g.backend.zeros((d * self.outputs, width))
        for rows in g.blocks(width):
            for k in range(self.outputs):
                signed = R[_shifted(rows, k * n)] * g.signs[rows]
                result[k * d : (k + 1) * d] += g.X[rows].T @ signed
        return result


def _shifted(rows: slice, offset: int) -> slice:
    return slice(rows.start + offset, rows.stop + offset)
