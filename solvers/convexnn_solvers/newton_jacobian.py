"""Generalised Jacobians of the proximal maps of :mod:`newton_blocks`, on their active blocks.

With ``a_b = 1 - t_b/||P(Z_b)||``, ``T_b = P(Z_b)/||P(Z_b)||`` and N_k an orthonormal basis of the directions
that the active rows leave free in column k, one generalised Jacobian of an active block is

    C -> a_b (N_k N_k^T C_k)_k + (1 - a_b) T_b <T_b, C>.

Arrays are (c, d, m): outputs, features, blocks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from convexnn_solvers.backends import Float64Array
from convexnn_solvers.cone_memory import complements
from convexnn_solvers.gated_program import GatedProgram, Indices
from convexnn_solvers.newton_blocks import ActiveBlocks


@dataclass(frozen=True, eq=False)
class FreeDirections:
    """Blocks with equally many active rows: their positions (g,), bases (g, d, q) of the free directions."""

    position: Indices
    basis: Float64Array


@dataclass(frozen=True, eq=False)
class Jacobian:
    """The generalised Jacobian of the proximal map on its active blocks, see the module's text.

    ``free``: for each output the groups of free directions; empty without cones.
    """

    shrink: Float64Array
    directions: Float64Array
    free: tuple[tuple[FreeDirections, ...], ...] = ()

    def apply(self, C: Float64Array) -> Float64Array:
        """The Jacobian times ``C`` (c, d, m)."""
        along = np.einsum("kib,kib->b", self.directions, C) * (1.0 - self.shrink)
        return np.asarray(self._free_part(C) * self.shrink + self.directions * along)

    def _free_part(self, C: Float64Array) -> Float64Array:
        if not self.free:
            return C
        out = np.zeros_like(C)
        for k, groups in enumerate(self.free):
            for group in groups:
                coefficients = np.einsum("gdq,dg->gq", group.basis, C[k][:, group.position])
                out[k][:, group.position] = np.einsum("gdq,gq->dg", group.basis, coefficients)
        return out

    def rank(self, output: int) -> int:
        """The number of columns of :meth:`roots`."""
        d, m = self.directions.shape[1:]
        if not self.free:
            return int(d * m)
        return sum(group.position.size * group.basis.shape[2] for group in self.free[output])

    def roots(self, output: int) -> tuple[Float64Array, Indices]:
        """Columns M (d, r) and their blocks (r,) with ``sum M M^T`` the Jacobian within one output."""
        d, m = self.directions.shape[1:]
        whole = FreeDirections(np.arange(m), np.broadcast_to(np.eye(d), (m, d, d)))
        groups = self.free[output] if self.free else (whole,)
        columns = [self._group_roots(group, self.directions[output]) for group in groups]
        owners = [np.repeat(group.position, group.basis.shape[2]) for group in groups]
        if not columns:
            return np.zeros((d, 0)), np.zeros(0, dtype=np.intp)
        return np.hstack(columns), np.concatenate(owners)

    def _group_roots(self, group: FreeDirections, directions: Float64Array) -> Float64Array:
        """``sqrt(a) N + gamma t (N^T t)^T``, t = T/|T|; its square is ``a N N^T + (1 - a) T T^T``."""
        shrink = self.shrink[group.position]
        t = directions[:, group.position].T
        lengths = np.linalg.norm(t, axis=1)
        t = t / np.where(lengths > 0.0, lengths, 1.0)[:, None]
        root = np.sqrt(shrink)
        gamma = np.sqrt(shrink + (1.0 - shrink) * lengths**2) - root
        along = np.einsum("gdq,gd->gq", group.basis, t) * gamma[:, None]
        columns = root[:, None, None] * group.basis + np.einsum("gd,gq->gdq", t, along)
        return np.asarray(columns.transpose(1, 0, 2).reshape(t.shape[1], -1))


def jacobian(program: GatedProgram, active: ActiveBlocks) -> Jacobian:
    """The generalised Jacobian at the point whose active blocks are given."""
    directions = active.projected / active.norms
    free = [_free_directions(program.cone_features, active, k) for k in range(len(active.rows))]
    return Jacobian(active.shrink, directions, tuple(free))


def _free_directions(X: Float64Array, active: ActiveBlocks, output: int) -> tuple[FreeDirections, ...]:
    """What each block's active rows leave free, grouped by the number of active rows."""
    rows = active.rows[output]
    counts = np.sum(rows >= 0, axis=1)
    groups: list[FreeDirections] = []
    for k in np.unique(counts):
        position = np.flatnonzero(counts == k)
        listed = rows[position, :k]  # the padding comes last
        if active.memories:
            basis = active.memories[output].complements(active.blocks[position], listed)
        else:
            basis = complements(X, listed)
        groups.append(FreeDirections(position, basis))
    return tuple(groups)
