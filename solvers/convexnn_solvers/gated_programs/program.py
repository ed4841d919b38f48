"""The one family of problems that the semismooth Newton method takes, as plain arrays.

    minimise  F(sum_b s_b S_b X U_b)  +  sum_b tau_b ||U_b||_F,

``S_b = D + slope (I - D)`` for the block's pattern D, and F a data fit such as ``1/2 ||. - Y||_F^2``. A
block is a pair (sign, gate) and holds a matrix U_b of shape (d, c), one column per output; with ``cones``
every column lies in the cone of its pattern, ``(2 D - I) X u >= 0``. Where the features of all gates are
``stored`` they take the place of ``S_b X``; X and the patterns are then those of the cones. Samples with
weights of their own have their rows of the features multiplied (see :mod:`fits`), not those of the
cones, which are then ``unscaled``.

Array shapes: points (c, d, B) with B = len(signs) * P blocks, ordered sign by sign; residuals and dual
variables (n, c); products with the adjoint map (c, d, P), one for all signs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from convexnn_solvers.backends import Float64Array
from convexnn_solvers.cones.active_sets import Indices as Indices
from convexnn_solvers.gated_programs.features import BlockFeatures, GatedFeatures, StoredFeatures
from convexnn_solvers.gated_programs.fits import Fit, LogisticFit, SquaredFit
from convexnn_solvers.kept import Kept
from convexnn_solvers.row_blocks import slices

_CHUNK_ENTRIES = 4_000_000  # of an n x gates work array


@dataclass(frozen=True, eq=False)
class GatedProgram:
    """Data of one problem; ``weights`` are the ``tau_b`` (B,), all positive. See the module's text.

    ``stored``: (n, d, P), or None where the features are products of X and the patterns. ``kept`` is for what
    does not depend on the weights: programs that differ in nothing else may share it.
    """

    X: Float64Array
    patterns: NDArray[np.bool_]
    fit: Fit
    weights: Float64Array
    signs: tuple[float, ...] = (1.0,)
    cones: bool = False
    slope: float = 0.0
    stored: Float64Array | None = None
    unscaled: Float64Array | None = None
    kept: Kept = field(default_factory=Kept, compare=False)

    @property
    def gates(self) -> int:
        """The number P of patterns."""
        return int(self.patterns.shape[1])

    @property
    def outputs(self) -> int:
        """The number c of outputs."""
        return self.fit.shape[1]

    @property
    def blocks(self) -> int:
        """The number B of blocks: gates times signs."""
        return self.gates * len(self.signs)

    @property
    def point_shape(self) -> tuple[int, int, int]:
        """The shape (c, d, B) of points."""
        return self.outputs, int(self.X.shape[1]), self.blocks

    @property
    def cone_features(self) -> Float64Array:
        """The matrix of the cones."""
        return self.X if self.unscaled is None else self.unscaled

    def restricted(self, gates: Indices) -> GatedProgram:
        """The program with only some of the gates (both signs of each)."""
        chosen = self.weights.reshape(len(self.signs), self.gates)[:, gates]
        stored = None if self.stored is None else self.stored[:, :, gates]
        patterns = self.patterns[:, gates]
        return replace(self, patterns=patterns, weights=chosen.ravel(), stored=stored, kept=Kept())

    def block_gates(self, blocks: Indices) -> Indices:
        """The gate of each block."""
        return blocks % self.gates

    def block_signs(self, blocks: Indices) -> Float64Array:
        """The sign of each block."""
        return np.asarray(self.signs)[blocks // self.gates]

    def blocks_of(self, gates: Indices) -> Indices:
        """The blocks of some gates, sign by sign."""
        return np.concatenate([k * self.gates + gates for k in range(len(self.signs))])

    def spread(self, blocks: Indices, values: Float64Array) -> Float64Array:
        """The point (c, d, B) that has these values (c, d, m) on its blocks and is zero elsewhere."""
        U = np.zeros(self.point_shape)
        U[:, :, blocks] = values
        return U

    def used_gates(self, U: Float64Array) -> NDArray[np.bool_]:
        """Which gates (P,) have a block of ``U`` (c, d, B) that is not zero."""
        used = np.any(U != 0.0, axis=(0, 1)).reshape(len(self.signs), self.gates)
        return np.asarray(used.any(axis=0))

    def slopes(self, gates: Indices | slice) -> Float64Array:
        """The diagonals of ``S`` as columns (n, m), column-major."""
        bits = self.patterns[:, gates]
        columns = np.empty(bits.shape, order="F")
        np.multiply(bits, 1.0 - self.slope, out=columns)
        columns += self.slope
        return columns

    def features(self, gates: Indices | slice) -> BlockFeatures:
        """The matrices of some gates, without signs."""
        if self.stored is None:
            return GatedFeatures(self.X, self.slopes(gates))
        return StoredFeatures(self.stored[:, :, gates])

    def by_block(self, products: Float64Array) -> Float64Array:
        """Products with the adjoint map (c, d, P) for every block (c, d, B), with the signs."""
        if self.signs == (1.0,):
            return products
        return np.concatenate([sign * products for sign in self.signs], axis=2)

    def gate_slices(self) -> Iterator[slice]:
        """Consecutive gates, few enough that an (n, gates) array stays small."""
        return slices(self.gates, self.gates_at_a_time)

    def adjoint(self, r: Float64Array) -> Float64Array:
        """``X^T S_j r_k`` for every output and gate, (c, d, P), from a few gates' features at a time."""
        c, d, _ = self.point_shape
        out = np.empty((c, d, self.gates))
        for part in self.gate_slices():
            out[:, :, part] = self.features(part).adjoint(r)
        return out

    def forward(self, U: Float64Array) -> Float64Array:
        """The prediction (n, c) of ``U`` (c, d, B), without the offset; zero blocks cost nothing."""
        active = np.flatnonzero(np.any(U != 0.0, axis=(0, 1)))
        total = np.zeros(self.fit.shape)
        for part in slices(active.size, self.gates_at_a_time):
            blocks = active[part]
            signed = U[:, :, blocks] * self.block_signs(blocks)
            total += self.features(self.block_gates(blocks)).forward(signed)
        return total

    def null_norms(self) -> Float64Array:
        """The norms (B,) of the blocks' gradients where all weights vanish, without regard to cones."""

        def found() -> Float64Array:
            null = self.fit.at(np.zeros(self.fit.shape)).xi
            return block_norms(self.by_block(self.adjoint(null)))

        # Of other losses thresholds and weights change them, which may be Parameters.
        known = isinstance(self.fit, SquaredFit | LogisticFit) and self.fit.outliers is None
        return self.kept.once("null norms", found) if known else found()

    @property
    def gates_at_a_time(self) -> int:
        """So many gates' features are made at a time."""
        height = self.X.shape[0] if self.stored is None else self.stored.shape[0] * self.stored.shape[1]
        return max(1, _CHUNK_ENTRIES // max(int(height), 1))


def block_norms(U: Float64Array) -> Float64Array:
    """Frobenius norms of the blocks of a (c, d, m) array."""
    return np.asarray(np.sqrt(np.einsum("kib,kib->b", U, U)))


def next_working_set(used: NDArray[np.bool_], ratios: Float64Array, size: int) -> Indices:
    """The gates in use and those of the largest ``ratios`` (P,), ``size`` in all, rising."""
    if size >= used.size:
        return np.arange(used.size)
    scores = np.where(used, np.inf, ratios)
    return np.sort(np.argpartition(-scores, size - 1)[:size])


@dataclass(frozen=True)
class Scaling:
    """Scalars that make the data of a program of size one; the properties lead back to its own units.

    ``features`` divides X; ``targets`` divides predictions and dual variables.
    """

    features: float
    targets: float

    @property
    def prediction(self) -> float:
        """Factor from scaled to original predictions."""
        return self.targets

    @property
    def point(self) -> float:
        """Factor from scaled to original points ``U``."""
        return self.targets / self.features

    @property
    def dual(self) -> float:
        """Factor from scaled to original dual variables."""
        return self.targets


def scaled(program: GatedProgram) -> tuple[GatedProgram, Scaling]:
    """The program in units where columns of X, or of stored features, have norm one on average, and squared
    targets norm one.

    One factor for all of them: scaling columns one by one would change the penalty.
    """
    common = program.kept.common
    features = common.once("size", lambda: _feature_size(program))
    X = common.once("features", lambda: program.X / features)
    kept = program.kept.part("scaled")
    targets = _size(program.fit)
    fit = program.fit.scaled(targets)
    if fit is None:
        fit, targets = program.fit, 1.0
    stored = None if program.stored is None else program.stored / features
    unscaled = None
    if program.unscaled is not None:
        rows = program.unscaled
        unscaled = common.once("rows of the cones", lambda: rows / features)
    weights = program.weights / features / targets
    inside = replace(program, X=X, fit=fit, weights=weights, stored=stored, unscaled=unscaled, kept=kept)
    return inside, Scaling(features, targets)


def _feature_size(program: GatedProgram) -> float:
    """What the features are divided by."""
    held = program.X if program.stored is None else program.stored
    largest = float(np.max(np.abs(held), initial=0.0))
    if not largest > 0.0:
        return 1.0
    spread = float(np.linalg.norm((held / largest).ravel()))
    return float(largest * spread / np.sqrt(held.size / held.shape[0]))


def _size(fit: Fit) -> float:
    """The norm of the gradient at zero, without overflow on the way; one if it vanishes."""
    gradient = fit.at(np.zeros(fit.shape)).xi
    peak = float(np.max(np.abs(gradient), initial=0.0))
    return peak * float(np.linalg.norm(gradient / peak)) if peak > 0.0 else 1.0
