"""Principal components of the features, in which every one can have a step length of its own."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from convexnn_solvers.backends import Array, Float64Array
from convexnn_solvers.composite import Composite
from convexnn_solvers.reading.operators import GateArrays, GatedOperator

# Principal components are worth steps of their own where the geometric mean of their curvatures is below this
# share of the largest, and where finding them costs no more than so many iterations.
_UNEVEN, _ITERATIONS = 0.1, 20
# Curvatures below these shares of the largest count as that large, in double and in single precision.
_FLOORS = {8: 1e-10, 4: 1e-5}
# Features of more bytes are not copied; they may lie on a disk.
_COPIED_BYTES = 2**29


@dataclass(frozen=True, eq=False)
class Metric:
    """Features ``X basis``, and the curvature that each has, relative to the largest (d, 1)."""

    basis: Array
    curvatures: Array


def in_metric(
    exact: Composite, operator: GatedOperator, gates: GateArrays
) -> tuple[Metric | None, GateArrays]:
    """The principal components of the features, where their curvatures differ enough."""
    if "principal components" not in exact.kept:
        exact.kept["principal components"] = _components(operator)
    found: tuple[Float64Array, Float64Array] | None = exact.kept["principal components"]
    if found is None:
        return None, gates
    backend, (basis, curvatures) = gates.backend, found
    floor = _FLOORS[gates.X.dtype.itemsize]
    metric = Metric(backend.asarray(basis), backend.asarray(np.maximum(curvatures, floor)[:, None]))
    return metric, replace(gates, X=gates.X @ metric.basis)


def _components(operator: GatedOperator) -> tuple[Float64Array, Float64Array] | None:
    """The principal directions (d, d) and their relative curvatures; None where they are not worth it."""
    X = operator.gates.X
    n, d = X.shape
    products = 4.0 * n * d * operator.gates.bits.shape[1] * operator.outputs
    if X.nbytes > _COPIED_BYTES or _on_disk(X) or 2.0 * n * d * d + 20.0 * d**3 > _ITERATIONS * products:
        return None
    largest = float(np.max(np.abs(X), initial=0.0))
    if not largest > 0.0:
        return None
    scaled = X / largest
    squares, basis = np.linalg.eigh(scaled.T @ scaled)
    curvatures = np.clip(squares / squares[-1], 0.0, None)
    if float(np.exp(np.mean(np.log(np.maximum(curvatures, _FLOORS[4]))))) > _UNEVEN:
        return None
    return basis, curvatures


def _on_disk(X: Float64Array) -> bool:
    """Whether an array is a view of a memory map."""
    base: Any = X
    while base is not None:
        if isinstance(base, np.memmap):
            return True
        base = getattr(base, "base", None)
    return False
