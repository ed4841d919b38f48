"""Inputs are checked once, at the door: what passes is a real, finite float64 array of the right shape.

Arrays that are float64 already, memory maps (``np.memmap``) included, are used by reference and never
written to; anything else (lists, data frames, integers, float32) is converted once, in memory. Every
refusal is one sentence with the remedy.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any

import cvxpy as cp
import numpy as np
from numpy.typing import NDArray

from convexnn_solvers.row_blocks import first_not_finite

Float64Array = NDArray[np.float64]


def features(X: Any, name: str = "X") -> Float64Array:
    """``X`` as a float64 array (n, d) with n, d >= 1."""
    array = numbers(X, name)
    if array.ndim != 2:
        hint = "; a single feature is X.reshape(-1, 1), a single sample X.reshape(1, -1)"
        raise ValueError(
            f"{name} must have shape (n, d), rows are samples, not {array.shape}"
            f"{hint.replace('X', name) if array.ndim == 1 else ''}."
        )
    if 0 in array.shape:
        raise ValueError(f"{name} must hold at least one sample and one feature, not shape {array.shape}.")
    return array


def vectors(values: Any) -> Float64Array:
    """``vectors`` as a float64 array (d, P), one gate per column, with d, P >= 1."""
    array = numbers(values, "vectors", "drop those gates")
    if array.ndim != 2 or 0 in array.shape:
        hint = "; a single gate is vectors.reshape(-1, 1)" if array.ndim == 1 else ""
        raise ValueError(f"vectors must have shape (d, P), one gate per column, not {array.shape}{hint}.")
    return array


def with_ones(X: Float64Array, bias: bool) -> Float64Array:
    """``X`` itself, or with a column of ones appended when there is a ``bias``."""
    return np.hstack([X, np.ones((X.shape[0], 1))]) if bias else X


def targets(y: Any, samples: int, outputs: int, name: str = "y") -> Float64Array:
    """``y`` as a float64 array (n,) for one output, (n, c) for several; (n, 1) counts as (n,)."""
    array = numbers(y, name)
    if outputs == 1 and array.shape == (samples, 1):
        array = array[:, 0]
    expected = (samples,) if outputs == 1 else (samples, outputs)
    if array.shape == expected:
        return array
    if array.ndim == 2 and array.shape[0] == samples and 0 not in array.shape:
        raise ValueError(
            f"{name} has {array.shape[1]} columns but the model outputs={outputs}; "
            f"build the model with outputs={array.shape[1]}."
        )
    raise ValueError(f"{name} must have shape {expected}, one entry per sample, not {array.shape}.")


def numbers(values: Any, name: str, missing: str = "impute or drop those samples") -> Float64Array:
    """``values`` as a finite float64 array of any shape; ``missing`` is the remedy for NaN and infinity."""
    if values is None:
        raise TypeError(f"{name} must hold real numbers, not None; pass an array.")
    array = _as_array(values, name)
    if array.dtype.kind not in "fiub":
        remedy = _remedy(array.dtype.kind, name)
        raise TypeError(f"{name} must hold real numbers, not {array.dtype}; {remedy}.")
    array = np.asarray(array, dtype=np.float64)
    where = first_not_finite(array)
    if where is not None:
        raise ValueError(f"{name} must not contain NaN or infinity (first at {where}); {missing}.")
    return array


def shaped(values: Any, shape: tuple[int, ...], name: str) -> Float64Array:
    """``values`` as a finite float64 array of exactly this shape."""
    array = numbers(values, name)
    if array.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, not {array.shape}.")
    return array


def count(value: Any, name: str, *, least: int = 1) -> int:
    """``value`` as an int >= ``least``."""
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be a whole number, not {_shown(value)}.") from None
    if isinstance(value, bool):
        raise TypeError(f"{name} must be a whole number, not {value}.")
    if number < least:
        raise ValueError(f"{name} must be at least {least}, not {number}.")
    return number


def number(value: Any, name: str) -> float:
    """``value`` as a finite float."""
    array = _scalar(value, name)
    if not np.isfinite(array):
        raise ValueError(f"{name} must be finite, not {value!r}.")
    return float(array)


def positive(value: Any, name: str, remedy: str = "") -> float:
    """``value`` as a finite float > 0; ``remedy`` is what the refusal adds."""
    given = number(value, name)
    if given <= 0.0:
        raise ValueError(f"{name} must be positive{remedy}, not {value!r}.")
    return given


def not_negative(value: Any, name: str, *, finite: bool = True) -> float:
    """``value`` as a float >= 0, infinity only where ``finite`` is False."""
    given = number(value, name) if finite else float(_scalar(value, name))
    if not given >= 0.0:
        raise ValueError(f"{name} must be at least 0, not {value!r}.")
    return given


def listed(values: Any, name: str) -> list[Any]:
    """The entries of a sequence; a text or a single value is none."""
    if isinstance(values, str) or not isinstance(values, Iterable) or getattr(values, "shape", None) == ():
        raise TypeError(f"{name} must be a sequence such as [{_shown(values)}], not {_shown(values)} itself.")
    return list(values)


def generator(seed: Any) -> np.random.Generator:
    """A random generator: ``seed`` itself, or the one that this seed makes."""
    try:
        return np.random.default_rng(seed)
    except (TypeError, ValueError):
        raise ValueError(
            "seed must be a whole number >= 0, a np.random.Generator, or None for another one each time; "
            f"not {_shown(seed)}."
        ) from None


def _scalar(value: Any, name: str) -> NDArray[Any]:
    array = _as_array(value, name)
    if array.ndim != 0 or array.dtype.kind not in "fiu":
        raise TypeError(f"{name} must be a real number, not {_shown(value)}.")
    return array


def _shown(value: Any) -> str:
    """``value`` in a line: of an array, a frame or the like only the shape."""
    shape = getattr(value, "shape", ())
    return f"an array of shape {shape}" if shape else repr(value)


def _as_array(values: Any, name: str) -> NDArray[Any]:
    if isinstance(values, cp.Expression):
        raise TypeError(
            f"{name} must be numbers, not a CVXPY {type(values).__name__}: pass {name}.value, or write the "
            "cp.Problem with model.prediction, model.penalty and model.constraints."
        )
    if hasattr(values, "toarray"):
        raise TypeError(f"{name} must be dense; convert the sparse matrix with {name}.toarray().")
    if isinstance(values, np.ma.MaskedArray) and np.ma.is_masked(values):
        raise ValueError(f"{name} has masked entries; fill or drop them, e.g. {name}.filled(0.0).")
    try:
        return np.asarray(values)
    except Exception as error:
        raise TypeError(f"{name} must be an array of numbers; NumPy says: {error}") from error


def _remedy(kind: str, name: str) -> str:
    if kind == "c":
        return f"stack real and imaginary parts, np.hstack([{name}.real, {name}.imag])"
    if kind in "mM":
        return "convert dates and durations to numbers first"
    return "encode text and categories as numbers and fill missing values first"
