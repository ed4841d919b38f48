"""How many of a data set's activation patterns a set of gates has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from convexnn_models import _arrays
from convexnn_models.arrangements import all_gates
from convexnn_models.coordinates import Coordinates
from convexnn_models.gates import Gates, checked, distinct
from convexnn_solvers.named_options import checked_options


@dataclass(frozen=True)
class Coverage:
    """``found`` different patterns with an active sample, of ``total`` that open sets of gates have.

    ``listed``: whether ``total`` was counted, else it is Cover's number, which none exceeds; ``foreign``: how
    many patterns no open set of gates has (gates with ties), not counted in ``found``; None if not listed.
    """

    found: int
    total: int
    listed: bool
    foreign: int | None

    @property
    def share(self) -> float:
        """``found / total``: a lower bound of the true share when the patterns were not listed."""
        return self.found / self.total if self.total else 1.0

    def __str__(self) -> str:
        if self.listed:
            return f"{self.found} of the {self.total} patterns ({self.share:.1%})"
        return f"{self.found} of at most {self.total:.3g} patterns (too many to list)"


@checked_options
def coverage(gates: Gates, X: Any, *, bias: bool = False, max_patterns: int = 100_000) -> Coverage:
    """Compare ``gates`` with every pattern of ``X``, where there are at most ``max_patterns``.

    The pattern without active samples is left out on both sides: it contributes nothing to a ReLU network.

    Raises ValueError or TypeError when the gates do not belong to ``X`` (with the same ``bias``).
    """
    data = _arrays.with_ones(_arrays.features(X), bias)
    limit = _arrays.count(max_patterns, "max_patterns")
    own = checked(gates, data, drop_zero=True)
    coordinates = Coordinates.of(data)
    try:
        every = all_gates(data, max_patterns=limit).patterns[coordinates.live]
    except ValueError:  # too many
        return Coverage(len(own), coordinates.general_count, False, None)
    every = every[:, every.any(axis=0)]
    total = every.shape[1]
    both = np.concatenate([every, own.patterns[coordinates.live]], axis=1)
    foreign = distinct(both, np.ones(len(both), dtype=np.bool_)).size - total
    return Coverage(len(own) - foreign, total, True, foreign)
