"""What it costs a bound to move a dual direction all the way into domains without an inside.

Softmax and its like have conjugates that are finite where sums have one value only, which rounding misses a
little: such a direction proves the bound of its neighbour inside.
"""

from __future__ import annotations

import numpy as np

from convexnn_solvers.backends import Float64Array
from convexnn_solvers.certify.dual_norms import DualNorms
from convexnn_solvers.certify.free_variables import Arrays
from convexnn_solvers.composite import Composite
from convexnn_solvers.functions.losses import ThinDomain
from convexnn_solvers.functions.norm_balls import rounding


class ThinDomains:
    """The moves of one problem, whose losses have the given ``offsets`` in their arguments."""

    def __init__(self, composite: Composite, norms: DualNorms, offsets: Arrays) -> None:
        self._composite, self._norms, self._offsets = composite, norms, offsets
        #: Whether no loss has such a domain, and nothing ever moves.
        self.none = not any(isinstance(term.loss, ThinDomain) for term in composite.losses)

    def in_image(self, thetas: Arrays, image: Arrays, fixed: bool) -> float:
        """What the move adds to a quotient of dual norm and penalty, at scale one.

        At another scale, unless the direction is ``fixed``, the move lies between those of the thetas and of
        zero. ``image`` is that of the direction on the variables.
        """
        if self.none:
            return 0.0
        missed = self._moved(thetas)
        if not fixed:
            missed += self._moved(tuple(0.0 * t for t in thetas)) * (1.0 + self._norms.unprojected(image))
        return missed

    def in_value(self, thetas: Arrays, scale: float, conjugates: float) -> float:
        """What the move can take off the dual value, of which the ``conjugates`` are a part."""
        total = 0.0
        if self.none:
            return total
        for term, theta, b in zip(self._composite.losses, thetas, self._offsets, strict=True):
            if isinstance(term.loss, ThinDomain):
                missed = term.loss.missed(-scale * theta)
                total += float(np.sum(missed * (np.abs(b) + 2.0)))
                total += 2.0 * rounding(theta.size) * abs(conjugates)  # entropies change by their share
        return total

    def _moved(self, thetas: Arrays) -> float:
        """The largest quotient of the move of the thetas."""
        shifts: tuple[Float64Array | None, ...] = tuple(
            -term.loss.shift(-theta, term.weight) if isinstance(term.loss, ThinDomain) else None
            for term, theta in zip(self._composite.losses, thetas, strict=True)
        )
        if all(shift is None or not shift.any() for shift in shifts):
            return 0.0
        none = (None for _ in self._composite.constraints)
        image = self._composite.affine.adjoint((*shifts, *none))
        return self._norms.unprojected(tuple(np.asarray(a, dtype=np.float64) for a in image))
