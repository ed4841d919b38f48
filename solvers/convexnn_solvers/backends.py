"""Where arrays live: NumPy, or torch on the CPU or a CUDA device, behind one array-API namespace.

A :class:`Backend` is a value: the namespace, the floating-point type and the device. Everything
numerical in this package takes its functions from ``backend.xp`` and never asks which library it is.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: An array of the backend at hand (``numpy.ndarray`` or ``torch.Tensor``); no common static type exists.
Array = Any
#: The arrays of the float64, NumPy-only parts: certificates, recovery, everything that is printed.
Float64Array = NDArray[np.float64]

_TORCH_HINT = "install it with: pip install 'convexnn[torch]'"


@dataclass(frozen=True)
class Backend:
    """An array library together with the type and device of every array made through it."""

    name: str
    xp: Any
    dtype: Any
    device: Any

    def asarray(self, value: Any) -> Array:
        """``value`` as a floating-point array of this backend (copied only when it must be)."""
        if self.name == "numpy":
            return np.asarray(value, dtype=self.dtype)
        if isinstance(value, np.ndarray):
            value = np.require(value, requirements=["C", "W"])
        return self.xp.asarray(value, dtype=self.dtype, device=self.device)

    def asbits(self, value: Any) -> Array:
        """A boolean array on this backend's device: activation patterns stay bits, never recomputed."""
        if self.name == "numpy":
            return np.asarray(value, dtype=np.bool_)
        return self.xp.asarray(np.array(value, dtype=np.bool_), device=self.device)

    def zeros(self, shape: tuple[int, ...]) -> Array:
        """Zeros of this backend's type on its device."""
        return self.xp.zeros(shape, dtype=self.dtype, device=self.device)

    def to_numpy(self, value: Array) -> Float64Array:
        """``value`` as a float64 NumPy array, wherever it lived."""
        if self.name == "numpy":
            return np.asarray(value, dtype=np.float64)
        return np.asarray(value.detach().cpu().numpy(), dtype=np.float64)


def numpy_backend(dtype: str = "float64") -> Backend:
    """NumPy on the CPU; ``dtype`` is ``"float64"`` or ``"float32"``."""
    return Backend("numpy", np, np.dtype(_checked_dtype(dtype)), "cpu")


def torch_backend(device: str = "cpu", dtype: str = "float64") -> Backend:
    """Torch on ``device``. Raises ImportError without torch, ValueError without a usable CUDA device."""
    try:
        torch = importlib.import_module("torch")
        xp = importlib.import_module("array_api_compat.torch")
    except ImportError as error:
        raise ImportError(f"backend='torch' needs torch and array-api-compat: {_TORCH_HINT}") from error
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError("device='cuda' was asked for, but torch sees no CUDA device; use device='cpu'.")
    return Backend("torch", xp, getattr(torch, _checked_dtype(dtype)), torch.device(device))


def select_backend(device: str = "cpu", dtype: str = "float64", backend: str | None = None) -> Backend:
    """The backend for solver options: NumPy on ``"cpu"`` unless ``backend="torch"``, torch on ``"cuda"``."""
    if not isinstance(device, str) or (device != "cpu" and device.split(":")[0] != "cuda"):
        raise ValueError(f"device must be 'cpu' or 'cuda', not {device!r}.")
    chosen = backend or ("numpy" if device == "cpu" else "torch")
    if chosen == "torch":
        return torch_backend(device, dtype)
    if chosen != "numpy":
        raise ValueError(f"backend must be 'numpy' or 'torch', not {backend!r}.")
    if device != "cpu":
        raise ValueError("backend='numpy' runs on device='cpu' only; use backend='torch' for device='cuda'.")
    return numpy_backend(dtype)


def _checked_dtype(dtype: str) -> str:
    if dtype not in ("float32", "float64"):
        raise ValueError(f"dtype must be 'float32' or 'float64', not {dtype!r}.")
    return dtype
