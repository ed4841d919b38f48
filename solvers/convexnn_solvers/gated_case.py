"""A gated program, and what of its size and regularisation decides between engines."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from convexnn_solvers.composite import Composite, DualPoint
from convexnn_solvers.gated_programs.fits import SquaredFit
from convexnn_solvers.gated_programs.program import GatedProgram
from convexnn_solvers.gated_programs.structure import GatedStructure
from convexnn_solvers.interior_point.method import can_take, dear_and_wide
from convexnn_solvers.options import Options

# The largest Gram matrix of the samples, in bytes, for programs with cones or several outputs. One output
# without cones needs none: at 20 000 samples conjugate gradients were faster than block descent.
_GRAM_BYTES = 2**30
# Block descent is for regularisations of at least this share of the largest useful one, and for features that
# a processor's cache holds, measured: below, so many gates interact that Newton's method needs less time, and
# beyond, sweeps wait for memory. One program must also be of data where at most the share ``_FEW_ALIKE`` of
# the gates has ``_ALIKE`` times the largest dual norm when all weights vanish: where many gates explain the
# targets about as well, many become active.
_LARGE = 0.07
_CACHE_BYTES = 2**23
_ALIKE, _FEW_ALIKE = 0.7, 0.3
# With one output, from so many samples on, and so many for each feature, R-FISTA was measured to overtake all
# of them at such regularisations: its steps see a few gates only.
_MANY, _TALL = 1500, 20
# At regularisations of at most these shares of the largest useful one, with cones and without, the number of
# interior-point steps was measured to stay what it is (`tests/test_tiny_regularisation.py` counts them): with
# cones Newton's method takes the more of them the smaller it is, and ADMM does without.
_NEXT_TO_NOTHING_IN_CONES, _NEXT_TO_NOTHING = 1e-4, 1e-10
# With as many features as samples, whose steps are dear, Newton's method still ends quickly from here on.
_NEWTON_ENDS = 1e-10
# Bounds are lost below this share: dual products have no digits that small.
_HIDDEN = 1e-15
_SMALLEST = float(np.finfo(np.float64).tiny)


@dataclass(frozen=True, eq=False)
class GatedCase:
    """A gated program, and what decides between its engines."""

    composite: Composite
    exact: Composite
    structure: GatedStructure
    multipliers: DualPoint
    options: Options

    @property
    def first(self) -> GatedProgram:
        """The first program; the others have the same features and gates."""
        return self.structure.programs[0]

    @property
    def warm(self) -> bool:
        """Whether an earlier solve left a dual point: Newton's method and ADMM go on from it, others not."""
        return bool(self.multipliers.thetas)

    @cached_property
    def strength(self) -> float | None:
        """The regularisation over that where all weights vanish; None: block descent cannot take it."""
        shares: list[float] = []
        for program in self.structure.programs:
            if program.cones or not isinstance(program.fit, SquaredFit) or program.fit.scales is not None:
                return None
            shares.append(_largest_ratio(program))
        return 1.0 / max([1.0, *shares])

    @cached_property
    def next_to_nothing(self) -> bool:
        """Whether the regularisation is so small that the interior-point method is the one to take."""
        if not (self.at_home and can_take(self.structure)):
            return False
        if self.share >= _NEWTON_ENDS and dear_and_wide(self.first):
            return False
        return 0.0 < self.share <= (_NEXT_TO_NOTHING_IN_CONES if self.first.cones else _NEXT_TO_NOTHING)

    @cached_property
    def share(self) -> float:
        """The smallest regularisation over that where all weights vanish, were there no cones."""
        return min(1.0 / _largest_ratio(program) for program in self.structure.programs)

    @property
    def hides_bounds(self) -> bool:
        """Whether the regularisation is so small that bounds are lost in rounding, whoever tries."""
        return self.share <= _HIDDEN

    @property
    def strength_text(self) -> str:
        """Why few gates are active."""
        share = f"{self.strength:.2g}"
        return f"the regularisation is {share} of that where all weights vanish: few gates are active"

    @property
    def at_home(self) -> bool:
        """Whether the problem is where Newton's method and block descent work."""
        backend = self.composite.backend
        return backend.name == "numpy" and backend.dtype == np.float64

    @cached_property
    def obstacle(self) -> str | None:
        """Why Newton's method cannot work, or would not get a matrix of the samples."""
        if not self.at_home:
            return "SemismoothNewton works in float64 with NumPy on the CPU"
        n, program = self.first.fit.shape[0], self.first
        if gram_share(n) <= 1.0 or (program.outputs == 1 and not program.cones):
            return None
        return f"SemismoothNewton would factor a {n} x {n} matrix"

    @property
    def few_active(self) -> bool:
        """Whether the regularisation leaves few gates active, of features that are in memory."""
        held = self.at_home and self.first.stored is None
        return held and self.strength is not None and self.strength >= _LARGE

    @property
    def many_samples(self) -> bool:
        """Whether there is one output and so many samples that first-order steps pay at few active gates."""
        alone = self.first.outputs == len(self.structure.programs) == 1
        n, d = self.first.X.shape
        return alone and n >= max(_MANY, _TALL * d)

    @cached_property
    def for_descent(self) -> bool:
        """Whether block descent is worth a try."""
        cached = self.first.X.nbytes <= _CACHE_BYTES
        return self.few_active and cached and not self.many_samples and _few_gates(self.structure)


def _largest_ratio(program: GatedProgram) -> float:
    """The largest gradient at zero over its weight, without regard to cones; at least the smallest normal."""
    return max(float(np.max(program.null_norms() / program.weights, initial=0.0)), _SMALLEST)


def _few_gates(structure: GatedStructure) -> bool:
    """Whether few gates of the only program explain the targets nearly as well as the best one.

    Of several programs, block descent takes one after the other, and others did no better on any.
    """
    program = structure.programs[0]
    if len(structure.programs) > 1 or program.outputs > 1:
        return True
    ratios = program.null_norms() / program.weights
    return float(np.mean(ratios >= _ALIKE * np.max(ratios))) <= _FEW_ALIKE


def gram_share(n: int) -> float:
    """The size of a Gram matrix of ``n`` samples in float64 over the largest that is made."""
    return 8 * n * n / _GRAM_BYTES
