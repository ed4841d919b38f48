"""Contestants that misbehave, each in one way; in a file of their own, where another process finds them."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import numpy as np
from cvxpy.reductions.solvers.conic_solvers.clarabel_conif import CLARABEL


class Sleeper(CLARABEL):  # type: ignore[misc]
    """Never comes back."""

    def name(self) -> Any:
        return "SLEEPER"

    def solve_via_data(self, *args: Any, **kwargs: Any) -> Any:
        time.sleep(600.0)


class Crasher(CLARABEL):  # type: ignore[misc]
    """Takes its process down, after some words on both streams."""

    def name(self) -> Any:
        return "CRASHER"

    def solve_via_data(self, *args: Any, **kwargs: Any) -> Any:
        print("to standard output", flush=True)
        os.write(2, b"last words\n")
        os.kill(os.getpid(), signal.SIGSEGV)


class Liar(CLARABEL):  # type: ignore[misc]
    """Says "optimal" about a point that is one and a half times the optimum."""

    def name(self) -> Any:
        return "LIAR"

    def invert(self, solution: Any, inverse_data: Any) -> Any:
        result = super().invert(solution, inverse_data)
        result.primal_vars = {key: 1.5 * np.asarray(value) for key, value in result.primal_vars.items()}
        return result


class Glutton(CLARABEL):  # type: ignore[misc]
    """Uses 300 MB for nothing."""

    def name(self) -> Any:
        return "GLUTTON"

    def solve_via_data(self, *args: Any, **kwargs: Any) -> Any:
        np.ones(300_000_000 // 8).sum()
        return super().solve_via_data(*args, **kwargs)
