"""A refusal instead of a machine that runs out of memory: how large a matrix CVXPY may be asked to build.

Interior-point solvers get a problem as one sparse matrix, which takes CVXPY about 115 bytes per non-zero on
the way (measured). Expressions that know their number of non-zeros beforehand ask here before they expand.
"""

from __future__ import annotations

import os
from typing import Any

import cvxpy as cp
from cvxpy.atoms.affine.affine_atom import AffAtom

from convexnn_solvers.backends import Float64Array

_BYTES = 115  # per non-zero, at CVXPY's peak
_ALWAYS = 10_000_000  # non-zeros that are never refused


def refuse_too_large(entries: int, what: str, remedy: str) -> None:
    """Raise ``cp.SolverError`` when a matrix of ``entries`` non-zeros does not fit into this machine."""
    memory = physical_memory()
    if entries <= _ALWAYS or memory is None or _BYTES * entries <= memory:
        return
    raise cp.SolverError(
        f"{what} has {entries:.1e} coefficients, for which CVXPY would need about "
        f"{_BYTES * entries / 2**30:.0f} GiB to hand it to a conic solver (this machine has "
        f"{memory / 2**30:.0f} GiB); use {remedy}, which form no matrix."
    )


def physical_memory() -> int | None:
    """The bytes of main memory, or None where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None


class size_checked(AffAtom):  # type: ignore[misc]
    """``expression`` itself, which a conic solver only gets if its ``entries`` coefficients fit into memory.

    ``what`` names the expression and ``remedy`` the solvers to use instead, for the message.
    """

    _allow_complex = False

    def __init__(self, expression: Any, entries: int, what: str, remedy: str) -> None:
        self.entries, self.what, self.remedy = int(entries), str(what), str(remedy)
        super().__init__(expression)

    def shape_from_args(self) -> tuple[int, ...]:
        """The expression's shape."""
        return tuple(self.args[0].shape)

    def sign_from_args(self) -> tuple[bool, bool]:
        """The expression's sign."""
        return self.args[0].is_nonneg(), self.args[0].is_nonpos()

    def is_incr(self, idx: int) -> bool:
        """True."""
        return True

    def is_decr(self, idx: int) -> bool:
        """False."""
        return False

    def get_data(self) -> Any:
        """What a copy needs besides the argument."""
        return [self.entries, self.what, self.remedy]

    def name(self) -> str:
        """The expression's own."""
        return str(self.args[0].name())

    def numeric(self, values: list[Any]) -> Float64Array:
        """The expression's value."""
        return values[0]  # type: ignore[no-any-return]

    def graph_implementation(
        self, arg_objs: list[Any], shape: tuple[int, ...], data: Any = None
    ) -> tuple[Any, list[Any]]:
        """The expression's own operator; ``cp.SolverError`` when it is too large."""
        refuse_too_large(self.entries, self.what, self.remedy)
        return arg_objs[0], []
