"""Relative gaps between values and bounds, and what counts beside them: one for certificates and solvers."""

from __future__ import annotations

# Sums below this, of however many numbers, may have lost digits to underflow: they say nothing relatively.
_UNDERFLOW = 1e-300


def relative_gap(primal: float, dual: float, rounding: float = 0.0) -> float:
    """``(primal - dual) / max(|primal|, |dual|)``, and 0 where both are zero.

    0 too where neither is larger than ``rounding``, the value that rounding alone may make of zero. At least
    1 where both are so small that underflow may be all of them; NaN when one is not finite.
    """
    size = max(abs(primal), abs(dual))
    if size == 0.0 or _UNDERFLOW <= size <= rounding:
        return 0.0
    ratio = (primal - dual) / size
    return ratio if not size < _UNDERFLOW else max(1.0, ratio)


def underflows(primal: float, dual: float) -> bool:
    """Whether both values are so small that underflow may be all of them, and no gap says anything."""
    return 0.0 < max(abs(primal), abs(dual)) < _UNDERFLOW


def relative_price(price: float, primal: float, dual: float, rounding: float = 0.0) -> float:
    """``price`` in the unit of :func:`relative_gap`, and 0 where it is none, or no more than ``rounding``."""
    if price <= rounding:
        return 0.0
    size = max(abs(primal), abs(dual))
    return price / size if size >= _UNDERFLOW else max(1.0, price)
