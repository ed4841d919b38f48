"""ADMM on a gated program with cones, for the Newton method where its own steps are short.

Newton's matrix knows the rows of the cones that are active now, and far from the optimum every step changes
them. ADMM needs no such matrix: with ``Z`` the point, ``V`` the scaled multiplier, ``rho`` the penalty and A
the map from blocks to predictions, one iteration is

    S = (A A^T + rho I)^{-1} (Y - A (Z - V)),    M = Z + alpha A^T S + (1 - alpha) V,
    Z+ = prox(M),    V+ = M - Z+,

one factor for all iterations of a penalty, one product with ``A^T`` and one with A (``A V`` follows from
``A A^T S = Y - A (Z - V) - rho S``), and projections that start next to their ends.
It finds the blocks and rows of the optimum, which Newton's method then needs only a few steps for. Losses
without a gradient have a copy p of the prediction, whose penalty is a multiple of rho, and its scaled
multiplier q: the targets of the linear system are p - q then, and one factor serves all penalties.

:mod:`admm.iteration` is the same mathematics without cones, on any backend, in float32 too. One class for
both would choose in every line between arrays of a device, of which no image is kept, and projections that
remember their active rows; what they could share are the formulas above.

After Boyd, Parikh, Chu, Peleato and Eckstein (2011), sections 3.4.1, 3.4.3 and 6.4; that a Newton method on
the dual begins where such an iteration has got to is from Yang, Sun and Toh (2015), SDPNAL+.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import lapack

from convexnn_solvers.backends import Float64Array
from convexnn_solvers.gated_programs.features import BlockFeatures
from convexnn_solvers.gated_programs.fits import SquaredFit, balanced
from convexnn_solvers.gated_programs.nonsmooth_fits import NonsmoothFit
from convexnn_solvers.gated_programs.program import GatedProgram
from convexnn_solvers.newton.blocks import BlockProx
from convexnn_solvers.packing import Arrays, Held, packed_attributes, restore_attributes

# Over-relaxation; how far the two residuals may be out of balance, and the most by which rho then changes.
_RELAX, _UNBALANCED, _MOST_CHANGE = 1.8, 1.6, 10.0
# The least rho, over the trace of the matrix: below, factors say nothing.
_LEAST = 1e-14
# A factor of more bytes is not made.
_MEMORY = 5e8
# With a copy of the prediction, rho over the penalty of the copy: by counting iterations.
_SHIFT = 0.01
_STATE = ("Z", "V", "rho", "xi", "products", "_image_Z", "_image_V", "prediction", "_q")


def can_split(program: GatedProgram) -> bool:
    """Whether the iteration takes the program: cones, squares or no gradient, a matrix that fits."""
    fit = program.fit
    known = isinstance(fit, NonsmoothFit) or (isinstance(fit, SquaredFit) and fit.outliers is None)
    return program.cones and program.stored is None and known and 16.0 * fit.shape[0] ** 2 <= _MEMORY


@dataclass(frozen=True, eq=False)
class SplittingStart:
    """A point Z and its scaled multiplier V at the penalty rho, (c, d, B) both; the dual variable (n, c)."""

    Z: Float64Array
    V: Float64Array
    rho: float
    xi: Float64Array


def cold_start(program: GatedProgram) -> SplittingStart:
    """Zeros, at the penalty ``tau / |z|`` for a typical block z of B that explain all of the targets."""
    assert isinstance(program.fit, SquaredFit | NonsmoothFit)
    squares = float(np.sum(program.features(slice(None)).squares(np.ones(program.gates))))
    explained = float(np.sqrt(program.blocks * len(program.signs) * squares / program.fit.shape[0]))
    typical = float(np.mean(program.weights)) * explained
    zero = np.zeros(program.point_shape)
    rho = typical / max(float(np.linalg.norm(program.fit.Y)), 1e-30)
    return SplittingStart(zero, zero, rho, np.zeros(program.fit.shape))


def _kept_matrix(program: GatedProgram, features: BlockFeatures) -> Float64Array:
    """``A A^T``, upper triangle, one for all outputs."""
    n = program.fit.shape[0]

    def made() -> Float64Array:
        square = features.gram(np.ones(program.gates), features.base())
        square *= len(program.signs)
        return square

    return program.kept.common.once("matrix of cones", made, 8 * n * n)


class ConeSplitting:
    """The iteration; ``Z`` (c, d, B) is its point, ``xi`` (n, c) its dual variable, ``products`` (c, d, P)
    are ``A^T xi`` without signs. ``features`` and ``prox`` are those of all gates and blocks.
    """

    def __init__(
        self,
        program: GatedProgram,
        features: BlockFeatures,
        prox: BlockProx,
        start: SplittingStart | None = None,
        held: Held | None = None,
    ) -> None:
        assert isinstance(program.fit, SquaredFit | NonsmoothFit)
        self._program, self._features, self._prox = program, features, prox
        self._kinked = program.fit if isinstance(program.fit, NonsmoothFit) else None
        self._signs = np.repeat(np.asarray(program.signs), program.gates)
        self._target = self._centred(program.fit.Y)
        self._matrix: Float64Array | None = None
        self._factor: Float64Array | None = None
        scales = program.fit.scales
        self._added = np.ones((len(program.fit.Y), 1)) if scales is None else scales
        self._balancing: Float64Array | None = None
        if start is None:
            assert held is not None
            restore_attributes(self, _STATE, held)
        else:
            self.Z, self.V = start.Z, start.V
            self.rho = start.rho
            self.xi = np.zeros(program.fit.shape)
            self.products = np.zeros((*self.Z.shape[:2], program.gates))
            self._image_Z, self._image_V = self._image(self.Z), self._image(self.V)
            self.prediction = self._image_Z + self._added * program.fit.at(self._image_Z).offset
            self._q = start.xi * (_SHIFT / self.rho)

    def packed(self) -> Arrays:
        """The state as arrays; the factor is made anew."""
        return packed_attributes(self, _STATE)

    def rest(self) -> None:
        """Give the memory of matrices back until the next iteration."""
        self._matrix = self._factor = None

    def run(self, iterations: int) -> None:
        """So many iterations, and a new penalty where theirs was out of balance."""
        if self._factor is None:
            self._factorise()
        for _ in range(iterations - 1):
            self._iterate()
        before, multiplier = self.Z, self.V
        pulled = self._iterate()
        self._balance(before, multiplier, pulled)

    def _iterate(self) -> Float64Array:
        """One iteration; returns ``A^T S`` by block."""
        program = self._program
        right = self._centred(self._aim) - self._image_Z + self._image_V
        S = self._solve(right)
        products = self._features.adjoint(S)
        pulled = program.by_block(products)
        moved = _RELAX * pulled
        moved += self.Z
        moved += (1.0 - _RELAX) * self.V
        image = self._image_Z + _RELAX * (right - self._shift * S) + (1.0 - _RELAX) * self._image_V
        if self._kinked is not None:
            self._move_copy(self._kinked, S)
        active = self._prox.at(moved, program.weights / self.rho)
        self.Z = np.zeros(program.point_shape)
        self.Z[:, :, active.blocks] = active.values
        self._image_Z = self._image(self.Z)
        moved -= self.Z
        self.V, self._image_V = moved, image - self._image_Z
        self.xi, self.products = -self.rho * S, -self.rho * products
        return pulled

    @property
    def _aim(self) -> Float64Array:
        """Y, the targets of the linear system."""
        return self._target if self._kinked is None else self.prediction - self._q

    @property
    def _shift(self) -> float:
        return self.rho if self._kinked is None else _SHIFT

    def _move_copy(self, fit: NonsmoothFit, S: Float64Array) -> None:
        """The proximal map of the loss at the new prediction, with its offset, and the multiplier."""
        image = self._aim - _SHIFT * S
        shifted = _RELAX * image + (1.0 - _RELAX) * self.prediction + self._q
        self.prediction = fit.Y + fit.prox(shifted - fit.Y, _SHIFT / self.rho)
        self._q = shifted - self.prediction

    def _balance(self, before: Float64Array, multiplier: Float64Array, pulled: Float64Array) -> None:
        """Bring rho to where the two residuals, each relative to its variable, agree on the blocks in use."""
        used = np.any(self.Z != 0.0, axis=(0, 1))
        if not used.any():  # thresholds of 1/rho are too large
            self._change(_MOST_CHANGE)
            return
        images = (before - multiplier + pulled - self.Z, self.Z - before, self.Z, self.V)
        sizes = [float(np.linalg.norm(image[:, :, used])) for image in images]
        if not (np.isfinite(sizes).all() and min(sizes) > 0.0):
            return
        apart, moved, point, dual = sizes
        factor = float(np.sqrt((apart / point) / (moved / dual)))
        factor = float(np.clip(factor, 1.0 / _MOST_CHANGE, _MOST_CHANGE))
        if max(factor, 1.0 / factor) > _UNBALANCED:
            self._change(factor)

    def _change(self, factor: float) -> None:
        """Another penalty for the same multiplier."""
        old = self.rho
        self.rho *= factor
        if self._kinked is None:
            self._factorise()
        self._q = self._q * (old / self.rho)
        self.V = self.V * (old / self.rho)
        self._image_V = self._image_V * (old / self.rho)

    def _factorise(self) -> None:
        if self._matrix is None:
            self._matrix = _kept_matrix(self._program, self._features)
        self.rho = max(self.rho, _LEAST * float(np.trace(self._matrix)))
        self._factor = None  # its memory first
        shifted = self._matrix.copy(order="F")
        shifted.flat[:: len(shifted) + 1] += self._shift
        self._factor, info = lapack.dpotrf(shifted, lower=0, clean=0, overwrite_a=1)
        if info != 0:
            raise FloatingPointError("the Gram matrix of the samples is not finite")
        self._balancing = self._plain(self._added) if self._program.fit.centred else None

    def _solve(self, right: Float64Array) -> Float64Array:
        """``S``; with an offset, orthogonal to what it adds to predictions."""
        S, balancing = self._plain(right), self._balancing
        if balancing is None:
            return S
        return S - balancing @ ((self._added.T @ S) / float(np.vdot(self._added, balancing)))

    def _plain(self, right: Float64Array) -> Float64Array:
        return np.asarray(lapack.dpotrs(self._factor, right, lower=0)[0])

    def _image(self, U: Float64Array) -> Float64Array:
        """``A U`` for blocks (c, d, B), without what an offset can add."""
        c, d, _ = U.shape
        signed = (U * self._signs).reshape(c, d, len(self._program.signs), -1).sum(axis=2)
        return self._centred(self._features.forward(signed))

    def _centred(self, x: Float64Array) -> Float64Array:
        return balanced(self._program.fit, x)
