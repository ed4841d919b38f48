"""One run of scnn 0.0.10 on a program of ours, on any of its devices, stopped by whoever watches it.

scnn minimises over the same gates; see :mod:`benchmarks.scalings` for its units. It has one group of weights
per gate and output, and reports through its own callback, with metrics off.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.scalings import Float64Array, ScnnTerms, scnn_terms
from convexnn_models import Gates

#: Fetches the weights of now.
Fetch = Callable[[], list[Float64Array]]

_NEVER = 10**9
_MODULES = (
    *("lab", "scnn.metrics", "scnn.models", "scnn.optimize", "scnn.private.interface"),
    *("scnn.private.methods", "scnn.private.models", "scnn.regularizers", "scnn.solvers"),
)


class _Enough(Exception):
    """The watcher has seen enough."""


def missing(module: str = "scnn.optimize") -> str | None:
    """Why a package cannot be imported, or None."""
    try:
        importlib.import_module(module)
    except ImportError as error:
        return f"cannot be imported: {error}"
    return None


def load_scnn() -> None:
    """Import all of it, which takes seconds and is no part of a run."""
    for name in _MODULES:
        importlib.import_module(name)


class ScnnRun:
    """R-FISTA for gated programs, scnn's augmented Lagrangian with ``relu``, made ready on a device.

    ``X`` (n, d) with its column of ones, ``Y`` (n,) or (n, c), ``gates`` of X, ``reg`` in our scaling with
    one group per output. ``device``: scnn takes NumPy on "cpu", torch on "cuda"; ``torch``: there too. Its
    choice of device and precision is global: one run at a time.
    """

    def __init__(
        self,
        X: Float64Array,
        Y: Float64Array,
        gates: Gates,
        reg: float,
        relu: bool = False,
        device: str = "cpu",
        dtype: str = "float64",
        torch: bool = False,
    ) -> None:
        load_scnn()
        self._lab: Any = importlib.import_module("lab")
        self._torch: Any = importlib.import_module("torch")
        self._before = self._torch.is_grad_enabled(), self._torch.get_default_dtype()
        self._c = Y.shape[1] if Y.ndim == 2 else 1
        self._shape = (-1, self._c, len(gates), X.shape[1])
        self._terms: ScnnTerms = scnn_terms(X, reg, self._c)
        self._dtype = np.dtype(dtype)
        try:
            interface = importlib.import_module("scnn.private.interface")
            interface.set_device(device, dtype, 0)
            if torch:
                self._lab.set_backend("torch")
                self._lab.set_device(device)
            self._data = (self._tensor(self._terms.X), self._tensor(Y.reshape(len(Y), -1)))
            kind = importlib.import_module("scnn.regularizers").NeuronGL1(self._terms.lam)
            self._model = self._models(gates, relu, interface.build_internal_regularizer(kind))
            settings = importlib.import_module("scnn.metrics").Metrics(metric_freq=_NEVER)
            self._procedure: Any = interface.build_optimizer(self._solver(gates, relu), kind, settings)
        except BaseException:
            self._restore_torch()
            raise
        if relu:
            criteria = importlib.import_module("scnn.private.methods")
            self._procedure.outer_term_criterion = criteria.ConstrainedHeuristic(0.0, 0.0)
        self._procedure.metric_freq = self._procedure.log_freq = _NEVER

    def _models(self, gates: Gates, relu: bool, regularizer: Any) -> Any:
        models = importlib.import_module("scnn.private.models")
        D, G = self._tensor(gates.patterns), self._tensor(gates.vectors)
        options: dict[str, Any] = {"regularizer": regularizer, "c": self._c}
        if relu:
            return models.AL_MLP(self._shape[-1], D, G, "einsum", delta=1000, **options)
        return models.ConvexMLP(self._shape[-1], D, G, "einsum", **options)

    def _solver(self, gates: Gates, relu: bool) -> Any:
        solvers, public = importlib.import_module("scnn.solvers"), importlib.import_module("scnn.models")
        if relu:
            network = public.ConvexReLU(gates.vectors, c=self._c)
            return solvers.AL(network, max_primal_iters=10**8, max_dual_iters=10**8)
        return solvers.RFISTA(public.ConvexGatedReLU(gates.vectors, c=self._c), max_iters=10**8, tol=0.0)

    def until(self, enough: Callable[[Fetch], bool]) -> bool:
        """Run without tolerance until ``enough`` says so after an iteration; False: it stopped by itself.

        ``enough`` is given a function that fetches the weights, in our variables' shapes (d * c, P): one, or
        two for ReLU programs.
        """

        def submit(state: Any, X: Any, y: Any) -> Any:
            if enough(lambda: self._ours(state.weights)):
                raise _Enough
            return state

        log = logging.getLogger("scnn")
        metrics: tuple[list[str], ...] = ([], [], [])
        try:
            with np.errstate(divide="ignore"):  # where its gradient is zero
                self._procedure(
                    log, self._model, lambda m: m, self._data, self._data, metrics, callback=submit
                )
        except _Enough:
            return True
        finally:
            self._restore_torch()
        return False

    def _restore_torch(self) -> None:
        """Undo what scnn has set for all of torch."""
        self._torch.set_grad_enabled(self._before[0])
        self._torch.set_default_dtype(self._before[1])

    def _tensor(self, array: Any) -> Any:
        # With torch, scnn takes the precision of what it is given.
        return self._lab.tensor(np.asarray(array, dtype=self._dtype))

    def _ours(self, weights: Any) -> list[Float64Array]:
        held = np.asarray(self._lab.to_np(weights), dtype=np.float64)
        return [self._terms.ours(part) for part in held.reshape(self._shape)]
