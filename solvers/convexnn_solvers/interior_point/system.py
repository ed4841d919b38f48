"""The linear system of an interior-point step: a small matrix per block, and one of the samples.

A step (dxi, dU) solves, for curvatures C of the fit's conjugate and ``H_b = X^T diag(r_b) X + S_b^T S_b``,

    C dxi - sum_b A_b dU_b = g,        A_b^T dxi + H_b dU_b = f_b,

hence ``(C + sum_b A_b H_b^{-1} A_b^T) dxi = g + sum_b A_b H_b^{-1} f_b``. Ratios r_b of slacks and
multipliers span many orders of magnitude near an optimum, so that ``H_b`` is never formed: its factor is that
of a QR decomposition of its roots.
"""

from __future__ import annotations

import numpy as np
from scipy.linalg import lapack, qr

from convexnn_solvers.backends import Float64Array
from convexnn_solvers.gated_programs.features import BlockFeatures, outer
from convexnn_solvers.gated_programs.fits import balanced
from convexnn_solvers.gated_programs.program import GatedProgram
from convexnn_solvers.row_blocks import slices

# Entries of a work array; as many as a program's own.
_CHUNK_ENTRIES = 4_000_000


class StepSystem:
    """The factors. ``roots`` (B, k, d) are those of H_b without the rows of the cones, whose matrix ``rows``
    (m, d) has weights (m, B) ``ratios``; ``curvature`` (n, 1). ``features`` are those of all gates."""

    def __init__(
        self,
        program: GatedProgram,
        features: BlockFeatures,
        rows: Float64Array,
        ratios: Float64Array,
        roots: Float64Array,
        curvature: Float64Array,
    ) -> None:
        self._program, self._features, self._curvature = program, features, curvature
        self._inverse = _inverse_factors(rows, ratios, roots)
        self._factor = self._factorised()
        scales = program.fit.scales
        self._added = np.ones_like(curvature) if scales is None else scales
        self._balancing = self._plain(self._added) if program.fit.centred else None

    def solve(self, g: Float64Array, f: Float64Array) -> tuple[Float64Array, Float64Array]:
        """``dxi`` (n, 1) and ``dU`` (d, B), for g (n, 1) and f (d, B); refined once."""
        xi = self._reduced(g + self._image(self._eliminated(f)))
        U = self._eliminated(f - self._products(xi))
        missed = balanced(self._program.fit, g - self._curvature * xi + self._image(U))
        more = self._reduced(missed)
        return xi + more, U - self._eliminated(self._products(more))

    def _eliminated(self, f: Float64Array) -> Float64Array:
        """``H_b^{-1} f_b``."""
        half = np.einsum("bij,ib->bj", self._inverse, f)
        return np.asarray(np.einsum("bij,bj->ib", self._inverse, half))

    def _image(self, U: Float64Array) -> Float64Array:
        return image(self._program, self._features, U)

    def _products(self, xi: Float64Array) -> Float64Array:
        return products(self._program, self._features, xi)

    def _factorised(self) -> Float64Array:
        """The upper factor of the samples' matrix, by its roots where Cholesky's method fails."""
        n, blocks = len(self._curvature), len(self._inverse)
        parts = list(slices(blocks, max(1, _CHUNK_ENTRIES // (n * self._inverse.shape[1]))))
        matrix = np.asfortranarray(np.diag(self._curvature[:, 0]))
        for part in parts:
            matrix = outer(self._columns(part), matrix)
        factor, info = lapack.dpotrf(matrix, lower=0, clean=1, overwrite_a=1)
        if info == 0:
            return np.asarray(factor, dtype=np.float64)
        factor = np.diag(np.sqrt(self._curvature[:, 0]))
        for part in parts:
            roots = np.vstack([factor, self._columns(part).T])
            factor = qr(roots, mode="r", overwrite_a=True, check_finite=False)[0][:n]
        if not np.all(np.diagonal(factor) != 0.0):
            raise np.linalg.LinAlgError("the matrix of the samples is singular in working precision")
        return np.asarray(factor, dtype=np.float64)

    def _columns(self, part: slice) -> Float64Array:
        """``A_b R_b^{-1}`` of some blocks as one matrix (n, m d)."""
        inverse = self._inverse[part]
        owners = self._program.block_gates(np.arange(len(self._inverse))[part])
        width = inverse.shape[1]
        flat = inverse.transpose(1, 0, 2).reshape(width, -1)
        return self._features.times(flat, np.repeat(owners, width))

    def _reduced(self, right: Float64Array) -> Float64Array:
        """Solve with the samples' matrix; with an offset, orthogonal to what it adds to predictions."""
        found, balancing = self._plain(right), self._balancing
        if balancing is None:
            return found
        missed = float(np.vdot(self._added, found)) / float(np.vdot(self._added, balancing))
        return np.asarray(found - missed * balancing)

    def _plain(self, right: Float64Array) -> Float64Array:
        return np.asarray(lapack.dpotrs(self._factor, right, lower=0)[0])


def image(program: GatedProgram, features: BlockFeatures, U: Float64Array) -> Float64Array:
    """``sum_b s_b A_b U_b`` (n, 1) for U (d, B)."""
    folded = U.reshape(len(U), len(program.signs), -1)
    return features.forward(np.einsum("s,dsp->dp", np.asarray(program.signs), folded)[None])


def products(program: GatedProgram, features: BlockFeatures, xi: Float64Array) -> Float64Array:
    """``s_b A_b^T xi`` (d, B) for xi (n, 1)."""
    return np.asarray(program.by_block(features.adjoint(xi))[0])


def _inverse_factors(rows: Float64Array, ratios: Float64Array, roots: Float64Array) -> Float64Array:
    """``R_b^{-1}`` (B, d, d) with ``H_b = R_b^T R_b``, a few blocks at a time."""
    blocks, _, width = roots.shape
    inverse = np.empty((blocks, width, width))
    for part in slices(blocks, max(1, _CHUNK_ENTRIES // (width * (len(rows) + roots.shape[1])))):
        weighted = np.sqrt(ratios[:, part]).T[:, :, None] * rows
        factors = np.asarray(np.linalg.qr(np.concatenate([weighted, roots[part]], axis=1), mode="r"))
        inverse[part] = np.linalg.solve(factors, np.broadcast_to(np.eye(width), factors.shape))
    return inverse
