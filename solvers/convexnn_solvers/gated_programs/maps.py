"""The gated maps in a loss: one, or several where the cells of a network have their own weights."""

from __future__ import annotations

import numpy as np

from convexnn_solvers.backends import Float64Array
from convexnn_solvers.composite import Composite
from convexnn_solvers.reading.affine import TapeMap, UnsupportedProblem
from convexnn_solvers.reading.operators import GatedOperator
from convexnn_solvers.reading.pooled import PooledOperator, Pooling, stored_bytes

GatedMap = GatedOperator | PooledOperator

# Bytes of the stored features of all gates.
_STORED_BYTES = 2**29


def refusal(reason: str, remedy: str = "RFISTA() or AugmentedLagrangian()") -> UnsupportedProblem:
    """The error for a problem that is not a gated program, for a reason, and what to use instead."""
    return UnsupportedProblem(
        f"Solvers of gated programs take a loss of one gated prediction with group norms, but {reason}; "
        f"use {remedy} instead."
    )


def gated_maps(composite: Composite) -> tuple[GatedMap, ...]:
    """The gated maps in the first loss, with gates of their own and otherwise alike; refuses other losses."""
    if not composite.losses:
        raise refusal("the objective has 0 losses")
    affine, text = composite.affine, composite.losses[0].text
    operators: tuple[GatedMap, ...] = ()
    if isinstance(affine, TapeMap):
        kept = composite.kept  # they are those of the map, whatever the Parameters are
        operators = kept["operators"] if "operators" in kept else affine.select((0,)).operators
        kept["operators"] = operators
    found = {id(op.gates): op for op in operators[::-1] if isinstance(op, GatedOperator | PooledOperator)}
    maps = tuple(found.values())[::-1]
    if not maps:
        raise refusal(f"{text} has no gated(X, patterns, U) in it")
    if len({(_samples(op), op.gates.X.shape[1], op.gates.bits.shape[1], op.outputs) for op in maps}) > 1:
        raise refusal(f"the gated predictions in {text} have different sizes")
    return maps


def stored_features(maps: tuple[GatedMap, ...]) -> Float64Array | None:
    """The features (n, d, P) of all maps, side by side; None for the features of one map without pooling."""
    if len(maps) == 1 and isinstance(maps[0], GatedOperator):
        return None
    needed = sum(stored_bytes(_samples(op), *_size(op), op.gates.backend) for op in maps)
    if needed > _STORED_BYTES:
        raise refusal(f"the features of {len(maps)} gated predictions would need {needed / 2**20:.0f} MB")
    return np.concatenate([_features(op) for op in maps], axis=2)


def _features(operator: GatedMap) -> Float64Array:
    d, P = _size(operator)
    if isinstance(operator, PooledOperator):
        return np.asarray(operator.blocks).reshape(-1, d, P)
    n = _samples(operator)
    alone = Pooling(np.arange(n)[:, None], np.ones((n, 1)))
    return alone.blocks(operator.gates.X, operator.gates.bits, operator.slope)


def _size(operator: GatedMap) -> tuple[int, int]:
    return int(operator.gates.X.shape[1]), int(operator.gates.bits.shape[1])


def _samples(operator: GatedMap) -> int:
    return operator.pooling.samples if isinstance(operator, PooledOperator) else operator.gates.X.shape[0]


def row_sizes(operator: GatedMap) -> Float64Array:
    """Bounds (n,) on the norms of the rows of every gate's features, for slopes of at most one."""
    X = operator.gates.X
    return operator.pooling.sizes(X) if isinstance(operator, PooledOperator) else _row_norms(X)


def _row_norms(X: Float64Array) -> Float64Array:
    """Without an array of the size of ``X``, which may lie on a disk."""
    return np.asarray(np.sqrt(np.einsum("ij,ij->i", X, X)))
