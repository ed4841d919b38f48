"""Images of dual points that certificates computed, so that a solver need not begin by computing one again.

The next solve begins at the last dual point, a multiple of it, or on the line through the last two. The image
of such a combination is that of the images.
"""

from __future__ import annotations

import numpy as np

from convexnn_solvers.backends import Float64Array
from convexnn_solvers.composite import Composite, DualPoint

# What a combination may miss, relatively; a few roundings.
_EXACT = 1e-14
# Of directions with smaller or larger entries the squares round more than that, or are no numbers.
_SMALLEST, _LARGEST = 1e-100, 1e100
# Numbers in an image that stays with a problem.
_MOST = 2_000_000

Arrays = tuple[Float64Array, ...]


class KnownImages:
    """``A^T theta`` for the latest two directions theta of one affine map."""

    def __init__(self) -> None:
        self._latest: tuple[tuple[Float64Array, Arrays], ...] = ()
        self._newest: tuple[Arrays, Arrays] | None = None

    def add(self, thetas: Arrays, image: Arrays, instead: bool = False) -> None:
        """One more, for the oldest or ``instead`` of the latest; those that are too large are not kept."""
        if sum(part.size for part in image) <= _MOST:
            before = self._latest[:-1] if instead else self._latest[-1:]
            self._latest = (*before, (_flat(thetas), image))
            self._newest = thetas, image

    def newest(self, thetas: Arrays) -> Arrays | None:
        """The image of the latest direction, if it is this very one."""
        held = self._newest
        return None if held is None or held[0] is not thetas else held[1]

    def of(self, thetas: Arrays) -> Arrays | None:
        """The image of a combination of the latest two, to rounding; None for any other direction."""
        known, wanted = self._latest, _flat(thetas)
        if not known or any(theta.shape != wanted.shape for theta, _ in known):
            return None
        (first, image), (second, before) = known[-1], known[0]
        # Gram and Schmidt: a least-squares solver takes longer than products with small features.
        sizes = [float(np.max(np.abs(theta), initial=0.0)) for theta in (wanted, first, second)]
        if not (min(sizes) >= _SMALLEST and max(sizes) <= _LARGEST):  # zero in a program without losses
            return None
        length, overlap = float(np.linalg.norm(first)), 0.0
        along = first / length
        share = float(along @ wanted)
        left, factor = wanted - share * along, 0.0
        if len(known) > 1:
            overlap = float(along @ second)
            across = second - overlap * along
            square = float(across @ across)
            if square > (_EXACT * length) ** 2:
                factor = float(across @ left) / square
                left = left - factor * across
        if not float(np.linalg.norm(left)) <= _EXACT * float(np.linalg.norm(wanted)):
            return None
        main = (share - factor * overlap) / length
        if factor == 0.0:
            return tuple(main * part for part in image)
        return tuple(main * a + factor * b for a, b in zip(image, before, strict=True))


def images_of(composite: Composite) -> KnownImages:
    """Those that stay with a problem, while its affine map does."""
    images: KnownImages = composite.kept.setdefault("images", KnownImages())
    return images


def known_image(composite: Composite, point: DualPoint) -> Arrays | None:
    """The image of somebody's dual point, without regard to its multipliers, where it is known."""
    return images_of(composite).of(point.thetas)


def _flat(thetas: Arrays) -> Float64Array:
    return np.concatenate([np.zeros(0), *(np.ravel(theta) for theta in thetas)])
