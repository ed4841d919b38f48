"""Generalised Jacobians of the proximal maps of :mod:`blocks`, on their active blocks.

With ``a_b = 1 - t_b/||P(Z_b)||``, ``T_b = P(Z_b)/||P(Z_b)||`` and N_k an orthonormal basis of the directions
that the active rows leave free in column k, one generalised Jacobian of an active block is

    C -> a_b (N_k N_k^T C_k)_k + (1 - a_b) T_b <T_b, C>.

Arrays are (c, d, m): outputs, features, blocks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from convexnn_solvers.backends import Float64Array
from convexnn_solvers.cones.memory import complements
from convexnn_solvers.gated_programs.program import GatedProgram, Indices
from convexnn_solvers.newton.blocks import ActiveBlocks


@dataclass(frozen=True, eq=False)
class FreeDirections:
    """Of every active block: bases (m, d, q) of the free directions, padded with columns of zeros, and how
    many (m,) there are."""

    basis: Float64Array
    counts: Indices


@dataclass(frozen=True, eq=False)
class Jacobian:
    """The generalised Jacobian of the proximal map on its active blocks, see the module's text.

    ``free``: for each output the free directions; empty without cones.
    """

    shrink: Float64Array
    directions: Float64Array
    free: tuple[FreeDirections, ...] = ()

    def apply(self, C: Float64Array) -> Float64Array:
        """The Jacobian times ``C`` (c, d, m)."""
        along = np.einsum("kib,kib->b", self.directions, C) * (1.0 - self.shrink)
        return np.asarray(self._free_part(C) * self.shrink + self.directions * along)

    def _free_part(self, C: Float64Array) -> Float64Array:
        if not self.free:
            return C
        out = np.empty_like(C)
        for k, free in enumerate(self.free):
            out[k] = np.matvec(free.basis, np.vecmat(C[k].T, free.basis)).T
        return out

    def rank(self, output: int) -> int:
        """The number of columns of :meth:`roots`."""
        d, m = self.directions.shape[1:]
        return int(np.sum(self.free[output].counts)) if self.free else int(d * m)

    def roots(self, output: int) -> tuple[Float64Array, Indices]:
        """Columns M (d, r) and their blocks (r,) with ``sum M M^T`` the Jacobian within one output.

        A block's are ``sqrt(a) N + gamma t (N^T t)^T``, t = T/|T|; the square is ``a N N^T + (1 - a) T T^T``.
        """
        d, m = self.directions.shape[1:]
        if self.free:
            basis, counts = self.free[output].basis, self.free[output].counts
        else:
            basis, counts = np.broadcast_to(np.eye(d), (m, d, d)), np.full(m, d)
        t = self.directions[output].T
        lengths = np.linalg.norm(t, axis=1)
        t = t / np.where(lengths > 0.0, lengths, 1.0)[:, None]
        root = np.sqrt(self.shrink)
        gamma = np.sqrt(self.shrink + (1.0 - self.shrink) * lengths**2) - root
        along = np.vecmat(t, basis) * gamma[:, None]
        columns = root[:, None, None] * basis + t[:, :, None] * along[:, None, :]
        listed = np.arange(basis.shape[2]) < counts[:, None]
        return columns.transpose(1, 0, 2)[:, listed], np.repeat(np.arange(m), counts)


def jacobian(program: GatedProgram, active: ActiveBlocks) -> Jacobian:
    """The generalised Jacobian at the point whose active blocks are given."""
    directions = active.projected / active.norms
    free = [_free_directions(program.cone_features, active, k) for k in range(len(active.rows))]
    return Jacobian(active.shrink, directions, tuple(free))


def _free_directions(X: Float64Array, active: ActiveBlocks, output: int) -> FreeDirections:
    """What each block's active rows leave free."""
    rows = active.rows[output]
    if active.memories:
        basis = active.memories[output].complements(active.blocks, rows)
    else:
        basis = complements(X, rows)
    return FreeDirections(basis, X.shape[1] - np.count_nonzero(rows >= 0, axis=1))
