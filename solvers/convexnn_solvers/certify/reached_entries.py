"""Which entries of the variables penalties reach, and when two composites differ in nothing but weights."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from convexnn_solvers.composite import Composite, PenaltyTerm, VariableBlock


def reached_entries(composite: Composite) -> list[NDArray[np.bool_]]:
    """The entries that each penalty reaches with a positive weight, found anew when other weights are."""
    known: dict[int, tuple[PenaltyTerm, NDArray[np.bool_]]] = composite.kept.setdefault("reached entries", {})
    for number, term in enumerate(composite.penalties):
        if number not in known or not _reaches_alike(known[number][0], term):
            known[number] = term, _reach(term, composite.variables[term.variable])
    return [known[number][1] for number in range(len(composite.penalties))]


def _reaches_alike(one: PenaltyTerm, other: PenaltyTerm) -> bool:
    """Whether two penalties are the same but for their positive weights."""
    if one.penalty is not other.penalty or one.view is not other.view or one.variable != other.variable:
        return False
    return np.array_equal(np.asarray(one.weight) > 0.0, np.asarray(other.weight) > 0.0)


def only_weights_differ(one: Composite, other: Composite) -> bool:
    """Whether two composites of a compiled problem are the same but for constants and positive weights of
    penalties: an affine map, losses and variables that did not change are the same objects in both."""
    if one.affine is not other.affine or one.constraints is not other.constraints:
        return False
    if one.across != other.across or len(one.penalties) != len(other.penalties):
        return False
    pairs = (*zip(one.losses, other.losses, strict=True), *zip(one.variables, other.variables, strict=True))
    if any(a is not b for a, b in pairs):
        return False
    if not all(np.array_equal(a, b) for a, b in zip(one.linear, other.linear, strict=True)):
        return False
    return all(_reaches_alike(a, b) for a, b in zip(one.penalties, other.penalties, strict=True))


def _reach(term: PenaltyTerm, block: VariableBlock) -> NDArray[np.bool_]:
    """The entries of the variable that a penalty reaches with a positive weight."""
    view = term.view(np.ones(block.shape))
    positive = np.asarray(term.weight, dtype=np.float64) > 0.0
    # The proximal map at a weight that removes everything, where there is a weight.
    large = np.where(positive, 4.0 * np.sqrt(view.size) + 4.0, 0.0)
    return np.asarray(term.unview(view) - term.unview(term.penalty.prox(view, large, np)) > 0.5)
