"""What features and patterns take on a backend, planned before any of them is loaded."""

from __future__ import annotations

from typing import Any

from convexnn_solvers.backends import Backend
from convexnn_solvers.memory_budget import budget, itemsize, readable
from convexnn_solvers.reading.affine import UnsupportedProblem
from convexnn_solvers.reading.atoms import gated, pattern_slack
from convexnn_solvers.reading.compiler import subexpressions
from convexnn_solvers.reading.operators import CPU_MEMORY, GPU_MEMORY, MemoryPlan

# A block of an intermediate is never smaller, and never takes more than this share of what is left.
_LEAST_BLOCK, _BLOCK_SHARE, _MASKS_SHARE = 2**16, 8, 4


def plan_operators(problem: Any, backend: Backend, memory: float | None) -> MemoryPlan:
    """Blocks and copies that fit into ``memory`` (see :func:`memory_budget.budget`) beside the data.

    Raises UnsupportedProblem with the bytes that the data would need when they alone do not fit.
    """
    allowed, needed = budget(memory, backend), copied_bytes(problem, backend)
    if needed > allowed:
        raise UnsupportedProblem(
            f"the features and patterns would need {readable(needed)} on {backend.device}, and may use "
            f"{readable(allowed)}; raise memory=, use dtype='float32', or fewer gates."
        )
    usual = CPU_MEMORY if str(backend.device) == "cpu" else GPU_MEMORY
    spare = allowed - needed
    block = min(usual.block, max(_LEAST_BLOCK, spare // _BLOCK_SHARE))
    return MemoryPlan(block, min(usual.masks, spare // _MASKS_SHARE))


def copied_bytes(problem: Any, backend: Backend) -> int:
    """Bytes of the features and patterns that the backend holds for itself; NumPy shares what it can."""
    atoms = [atom for atom in subexpressions(problem) if isinstance(atom, gated | pattern_slack)]
    features = {id(atom.X): atom.X.size * itemsize(backend) for atom in atoms}
    patterns = {id(atom.patterns): atom.patterns.size for atom in atoms}
    if backend.name != "numpy":
        return sum(features.values()) + sum(patterns.values())
    return 0 if itemsize(backend) == 8 else sum(features.values())
