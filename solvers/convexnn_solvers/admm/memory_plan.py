"""How much memory a factorisation-based solve needs, decided before anything large is made.

Every array of the size of the problem is listed by name, so that an impossible problem is refused with the
number it would need, and what is left over is spent on speed: larger blocks, patterns in floating point.
"""

from __future__ import annotations

from dataclasses import dataclass

from convexnn_solvers.backends import Backend
from convexnn_solvers.memory_budget import budget, itemsize, readable
from convexnn_solvers.reading.affine import UnsupportedProblem

# Blocks of n x P intermediates: a cache on a CPU, a large product on a GPU; never smaller than the last.
_CPU_BLOCK, _GPU_BLOCK, _LEAST_BLOCK = 2**19, 2**28, 2**16
_CPU_MASKS, _GPU_MASKS = 2**26, 2**33
_POINTS = 10  # arrays of the size of the weights: the point, its multiplier, and intermediates of one step
_JUDGED = 5  # the same in float64 on the host, for certificates


@dataclass(frozen=True)
class Sizes:
    """What memory depends on: samples n, features d, gates in all and at a time, outputs, signs per gate."""

    n: int
    d: int
    gates: int
    working: int
    outputs: int = 1
    signs: int = 1


@dataclass(frozen=True)
class Plan:
    """What a solve may use, in bytes: ``block`` for one block of an intermediate, ``total`` altogether.

    ``masks``: whether to keep the patterns in floating point too.
    """

    block: int
    masks: bool
    total: int


def plan_memory(sizes: Sizes, backend: Backend, memory: float | None = None) -> Plan:
    """A plan for ADMM on ``backend`` that fits into ``memory`` (see :func:`budget`).

    Raises UnsupportedProblem with the number of bytes that the problem would need when it does not fit.
    """
    on_cpu = str(backend.device) == "cpu"
    allowed = budget(memory, backend)
    fixed = requirements(sizes, backend)
    least = sum(fixed.values()) + 4 * _LEAST_BLOCK
    if least > allowed:
        largest = max(fixed, key=lambda name: fixed[name])
        raise UnsupportedProblem(
            f"ADMM would need {readable(least)} on {backend.device} ({readable(fixed[largest])} of it for "
            f"{largest}), and may use {readable(allowed)}; raise memory=, use dtype='float32' or RFISTA() or "
            "AugmentedLagrangian() instead."
        )
    spare = allowed - least
    block = min(_CPU_BLOCK if on_cpu else _GPU_BLOCK, max(_LEAST_BLOCK, spare // 8))
    wanted = itemsize(backend) * sizes.n * sizes.working
    masks = wanted <= min(_CPU_MASKS if on_cpu else _GPU_MASKS, spare // 2)
    return Plan(block, masks, least + 4 * (block - _LEAST_BLOCK) + (wanted if masks else 0))


def requirements(sizes: Sizes, backend: Backend) -> dict[str, int]:
    """The bytes of everything that a solve has to keep at the same time, by name."""
    n, item = sizes.n, itemsize(backend)
    per_gate = sizes.d * sizes.outputs * sizes.signs
    judged = _JUDGED * 8 * per_gate * sizes.gates if str(backend.device) == "cpu" else 0
    needed = {
        "the features": n * sizes.d * item,
        "the patterns": n * sizes.working,
        "predictions": 10 * n * sizes.outputs * item,
        "the weights": _POINTS * item * per_gate * sizes.working + judged,
    }
    name = f"the {n} x {n} factor" if backend.name == "numpy" else f"two {n} x {n} matrices"
    needed[name] = matrix_bytes(n, backend)
    return needed


def matrix_bytes(n: int, backend: Backend) -> int:
    """Those of a matrix of the samples and its factor, which NumPy's holds in the same array."""
    return (1 if backend.name == "numpy" else 2) * n * n * itemsize(backend)
