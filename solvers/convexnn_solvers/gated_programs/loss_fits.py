"""The loss of a gated program as a data fit, with the weights that samples may have."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from convexnn_solvers.backends import Float64Array
from convexnn_solvers.composite import LossTerm
from convexnn_solvers.functions.losses import Huber, Softplus, Square, SumSquares
from convexnn_solvers.functions.nonsmooth_losses import Nonsmooth
from convexnn_solvers.gated_programs.fits import Fit, LogisticFit, SquaredFit
from convexnn_solvers.gated_programs.maps import refusal
from convexnn_solvers.gated_programs.nonsmooth_fits import NonsmoothFit, nonsmooth_fit


@dataclass(frozen=True, eq=False)
class GatedFit:
    """``factor`` times the fit is the loss.

    ``means`` (c,) were taken out of its targets where there is an offset; ``scales`` (n, 1) multiply the
    features and predictions of every sample for its weight (see :mod:`fits`), None: nothing does.
    """

    fit: Fit
    means: Float64Array
    factor: float
    scales: Float64Array | None = None


def gated_fit(term: LossTerm, mirror: Float64Array, shift: Float64Array, centred: bool) -> GatedFit:
    """The fit of a loss of ``mirror o prediction + shift``, arrays (n, c).

    Squared, Huber and logistic losses may have a weight per sample, zero too, one for all of its outputs;
    those without a gradient are in :func:`~nonsmooth_fits.nonsmooth_fit`, and need a scale
    only where weights are zero. Raises UnsupportedProblem for others.
    """
    if isinstance(term.loss, Nonsmooth):
        return _nonsmooth(term, mirror, shift, centred)
    if not isinstance(term.loss, SumSquares | Square | Huber | Softplus):
        raise refusal(f"{term.text} is not a loss that they know")
    factor, scales = _scales(term, shift.shape)
    means = np.zeros(shift.shape[1])
    if isinstance(term.loss, Softplus):
        return GatedFit(LogisticFit(mirror, shift, centred, scales=scales), means, factor, scales)
    r = np.ones((len(shift), 1)) if scales is None else scales
    targets = -mirror * shift
    if centred:
        means = _means(targets, r)
    bend: float | Float64Array | None = None
    if isinstance(term.loss, Huber):
        bend = term.loss.threshold if scales is None else term.loss.threshold * scales
    # Without an offset such a fit is like any other, and for all that take squares.
    fit = SquaredFit(r * (targets - means), centred, bend, scales if centred else None)
    return GatedFit(fit, means, 2.0 * factor, scales)


def one_output(fit: Fit, k: int) -> Fit:
    """The part of a fit that concerns output k."""
    if isinstance(fit, NonsmoothFit):
        return fit.output(k)
    if isinstance(fit, LogisticFit):
        return replace(fit, signs=fit.signs[:, k : k + 1], shift=fit.shift[:, k : k + 1])
    assert isinstance(fit, SquaredFit)
    return replace(fit, Y=fit.Y[:, k : k + 1])


def _scales(term: LossTerm, shape: tuple[int, int]) -> tuple[float, Float64Array | None]:
    """The mean weight, and the roots (n, 1) of the weights over it, None where all are one."""
    weight = np.asarray(term.weight, dtype=np.float64)
    if not np.any(weight > 0.0):
        raise refusal(f"{term.text} has weight zero")
    if np.all(weight == weight.flat[0]):
        return float(weight.flat[0]), None
    of_entries = np.reshape(weight, shape)
    if np.any(of_entries != of_entries[:, :1]):
        raise refusal(f"the entries of a sample in {term.text} have weights of their own")
    mean = float(np.mean(of_entries))
    return mean, np.sqrt(of_entries[:, :1] / mean)


def _means(targets: Float64Array, scales: Float64Array) -> Float64Array:
    """The means (c,) of targets (n, c), weighted by the squares of the scales (n, 1)."""
    return np.asarray((scales.T**2 @ targets)[0] / float(np.sum(scales**2)))


def _nonsmooth(term: LossTerm, mirror: Float64Array, shift: Float64Array, centred: bool) -> GatedFit:
    """The fit of a loss without a gradient."""
    targets = -mirror * shift
    weight = np.asarray(term.weight, dtype=np.float64)
    seen: Float64Array | None = None
    if np.any(weight == 0.0) and np.any(weight > 0.0):
        of_entries = np.reshape(weight, shift.shape) > 0.0
        if np.any(of_entries != of_entries[:, :1]):
            reason = f"some entries of a sample in {term.text} have weight zero"
            raise refusal(reason, "AugmentedLagrangian()")
        seen = of_entries[:, :1].astype(np.float64)
    r = np.ones((len(shift), 1)) if seen is None else seen
    means = _means(targets, r) if centred else np.zeros(shift.shape[1])
    targets = r * (targets - means)
    found = nonsmooth_fit(term.loss, weight, mirror, targets, centred, seen)
    if found is None:
        raise refusal(f"{term.text} is not a loss that they know", "AugmentedLagrangian()")
    return GatedFit(found[0], means, found[1], seen)
