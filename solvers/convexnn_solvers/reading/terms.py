"""What a convex atom of the objective is to our solvers: a loss of an affine map, or a penalty of a variable.

Reading an atom needs no values; its weight, the coefficient with which it stands in the objective, is
given later, at every refresh. An atom that is neither is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import cvxpy as cp
import numpy as np
from cvxpy.atoms.affine.affine_atom import AffAtom
from cvxpy.atoms.elementwise.abs import abs as absolute
from cvxpy.atoms.elementwise.exp import exp
from cvxpy.atoms.elementwise.huber import huber
from cvxpy.atoms.elementwise.logistic import logistic
from cvxpy.atoms.elementwise.maximum import maximum
from cvxpy.atoms.elementwise.power import Power
from cvxpy.atoms.log_sum_exp import log_sum_exp
from cvxpy.atoms.max import max as maximal
from cvxpy.atoms.norm1 import norm1
from cvxpy.atoms.norm_inf import norm_inf
from cvxpy.atoms.norm_nuc import normNuc
from cvxpy.atoms.pnorm import Pnorm
from cvxpy.atoms.quad_form import QuadForm
from cvxpy.atoms.quad_over_lin import quad_over_lin
from cvxpy.atoms.sum_largest import sum_largest
from numpy.typing import NDArray

from convexnn_solvers.backends import Float64Array
from convexnn_solvers.functions.losses import (
    Exponential,
    Huber,
    LogSumExp,
    Loss,
    Softplus,
    Square,
    SquaredHinge,
    SumSquares,
)
from convexnn_solvers.functions.nonsmooth_losses import Maximum, Norms, Nuclear, PiecewiseLinear, Supremum
from convexnn_solvers.functions.penalties import AbsoluteValue, GroupNorm, NuclearNorm, Penalty
from convexnn_solvers.reading.affine import UnsupportedProblem, shortened, value_of
from convexnn_solvers.reading.loading import to_dense
from convexnn_solvers.reading.maxima import affine_pieces, hinge_rows, rows
from convexnn_solvers.reading.multiples import (
    as_entrywise_multiple,
    as_maximum,
    as_multiple,
    as_selection,
    is_a,
    is_same,
)
from convexnn_solvers.reading.quadratic_root import root_of, root_of_now

Weighted = tuple[Loss, Float64Array]

# Losses of groups along an axis, or of everything.
_ALONG_AXES: tuple[tuple[type, type], ...] = (
    (Pnorm, Norms),
    (norm_inf, Supremum),
    (maximal, Maximum),
    (log_sum_exp, LogSumExp),
)


@dataclass(frozen=True)
class LossReading:
    """``sum(weight * atom)`` is ``loss(argument)``; ``make`` turns ``sign * weight`` into loss and weight.

    The ``sign`` of a concave atom is -1, as it stands with weights that are at most 0.
    """

    atom: Any
    argument: Any
    make: Callable[[Float64Array], Weighted]
    sign: float = 1.0

    @cached_property
    def text(self) -> str:
        """The atom as messages show it."""
        return shortened(self.atom)

    @cached_property
    def fixed(self) -> bool:
        """Whether no Parameter enters the atom, so that its weight is all that can change."""
        return not self.atom.parameters()


@dataclass(frozen=True, eq=False)
class PenaltyReading:
    """``sum(weight * atom)`` is ``sum(weigh(weight) * penalty.norms(view))``, of entries of one variable.

    ``positions`` holds, in the shape of the view, which entries of the variable these are, each at most
    once. ``loss`` is the same term as a loss of the view, for where a proximal map does not exist.
    """

    atom: Any
    view: Any
    variable: Any
    positions: NDArray[np.int64]
    penalty: Penalty
    weigh: Callable[[Float64Array], Float64Array]
    loss: LossReading

    @cached_property
    def text(self) -> str:
        """The atom as messages show it."""
        return shortened(self.atom)


def convex_atoms(objective: Any) -> list[Any]:
    """The atoms at which the affine part of an objective ends, each once, in order of appearance."""
    found: dict[int, Any] = {}
    pending = [objective]
    while pending:
        expr = pending.pop()
        if expr.is_constant() or is_a(expr, cp.Variable):
            continue
        if isinstance(expr, AffAtom):
            pending.extend(reversed(expr.args))
        else:
            found.setdefault(id(expr), expr)
    return list(found.values())


def read_atom(atom: Any) -> LossReading | PenaltyReading:
    """What the atom is; UnsupportedProblem, naming it, if it is nothing we know."""
    reading = _read_penalty(atom) or _read_loss(atom)
    if reading is None:
        raise UnsupportedProblem(_refusal(atom))
    return reading


def _read_penalty(atom: Any) -> PenaltyReading | None:
    """Norms of entries of one variable, each entry at most once."""
    loss = _norms(atom) or (_piecewise_linear(atom) if is_a(atom, norm1, absolute) else None)
    penalty = None if loss is None else _as_penalty(loss.make(np.asarray(1.0))[0])
    selected = None if loss is None else as_selection(loss.argument)
    if loss is None or penalty is None or selected is None:
        return None
    variable, positions = selected
    weigh = loss.make
    return PenaltyReading(atom, loss.argument, variable, positions, penalty, lambda w: weigh(w)[1], loss)


def _as_penalty(loss: Any) -> Penalty | None:
    """The penalty that a loss without a gradient is on entries of a variable; None if there is none."""
    if isinstance(loss, Norms):
        return GroupNorm(loss.axis)
    if isinstance(loss, Nuclear):
        return NuclearNorm()
    return AbsoluteValue() if isinstance(loss, PiecewiseLinear) else None


def _norms(atom: Any) -> LossReading | None:
    """Norms and maxima, also soft ones, along one axis or of everything, and l1 norms of them: their sums."""
    if is_a(atom, norm1, absolute) and is_a(atom.args[0], Pnorm):  # mixed_norm
        inner = _norms(atom.args[0])
        if inner is None:
            return None
        make, reduced = inner.make, atom.args[0]
        return replace(inner, make=lambda w: make(_over_entries(w, atom, reduced)))
    if is_a(atom, normNuc):
        return LossReading(atom, atom.args[0], lambda w: (Nuclear(), w))
    for kind, loss in _ALONG_AXES:
        if not is_a(atom, kind) or isinstance(atom.axis, tuple):
            continue
        if loss is Norms and float(atom.p) != 2.0:
            return None
        return _along_axis(atom, loss)
    return None


def _along_axis(atom: Any, loss: type) -> LossReading:
    argument, axis = atom.args[0], None if atom.axis is None else int(atom.axis)
    groups = () if axis is None else tuple(np.delete(argument.shape, axis).tolist())
    return LossReading(atom, argument, lambda w: (loss(axis), np.reshape(w, groups) if w.ndim else w))


def _read_loss(atom: Any) -> LossReading | None:
    reading = _squares(atom) or _entrywise(atom) or _norms(atom) or _hinges(atom)
    reading = reading or _piecewise_linear(atom) or _least(atom)
    if reading is not None and not reading.argument.is_affine():
        return None
    return reading


def _squares(atom: Any) -> LossReading | None:
    """Sums of squares in their many writings."""
    if is_a(atom, quad_over_lin):
        argument, divisor = atom.args
        return _grouped_squares(atom, argument, atom, divisor) if divisor.is_constant() else None
    if is_a(atom, QuadForm):
        return _quad_form(atom)
    if is_a(atom, Power) and float(atom.p.value) == 2.0:
        base = atom.args[0]
        if is_a(base, Pnorm) and float(base.p) == 2.0:
            return _grouped_squares(atom, base.args[0], base, None)
        hinge = hinge_rows(base)
        if hinge is not None:
            argument, copies = hinge
            return LossReading(atom, argument, lambda w: (SquaredHinge(), copies(w)))
        return LossReading(atom, _without_sign(base), lambda w: _square(w))
    return None


def _grouped_squares(atom: Any, argument: Any, reduced: Any, divisor: Any) -> LossReading:
    """The squares of ``argument``, summed as the axis atom ``reduced`` does and divided by a constant."""
    hinge = hinge_rows(argument)
    inner = _without_sign(argument) if hinge is None else hinge[0]

    def make(weight: Float64Array) -> Weighted:
        if divisor is not None:
            value = float(np.asarray(value_of(divisor)))
            if value <= 0.0:
                raise ValueError(f"{shortened(atom)} divides by {value}; the divisor must be positive.")
            weight = weight / value
        entries = weight if weight.ndim == 0 else _over_entries(weight, reduced, argument)
        return _square(entries) if hinge is None else (SquaredHinge(), hinge[1](entries))

    return LossReading(atom, inner, make)


def _without_sign(expr: Any) -> Any:
    """What has the same squares: ``q`` of ``|q|``."""
    return expr.args[0] if is_a(expr, absolute) else expr


def _square(weight: Float64Array) -> Weighted:
    return (SumSquares(), weight) if weight.ndim == 0 else (Square(), weight)


def _quad_form(atom: Any) -> LossReading | None:
    x, matrix = atom.args
    if not matrix.is_constant():
        return None
    if matrix.parameters():  # the root follows the Parameter's value
        root = cp.CallbackParam(lambda: root_of_now(matrix, atom), matrix.shape)
        return LossReading(atom, root @ x, lambda w: (SumSquares(), w))
    factor = root_of(to_dense(value_of(matrix)), atom)
    return LossReading(atom, factor @ x, lambda w: (SumSquares(), w))


def _entrywise(atom: Any) -> LossReading | None:
    if is_a(atom, huber):
        return LossReading(atom, atom.args[0], lambda w: (Huber(_threshold(atom)), w))
    if is_a(atom, exp):
        return LossReading(atom, atom.args[0], lambda w: (Exponential(), w))
    if is_a(atom, logistic):
        return LossReading(atom, atom.args[0], lambda w: (Softplus(), w))
    return None


def _piecewise_linear(atom: Any) -> LossReading | None:
    """Absolute values, hinges, and maxima of two multiples of one expression, such as the quantile loss."""
    if is_a(atom, absolute, norm1):
        argument = atom.args[0]
        return LossReading(atom, argument, lambda w: (PiecewiseLinear(), _over_entries(w, atom, argument)))
    hinge = hinge_rows(atom) if is_a(atom, maximum) else None
    if hinge is not None:
        row, copies = hinge
        return LossReading(atom, row, lambda w: (PiecewiseLinear(0.0, 1.0, "hinge"), copies(w)))
    if is_a(atom, maximum) and len(atom.args) == 2:
        (low, base), (high, other) = (as_multiple(argument) for argument in atom.args)
        if is_same(base, other) and base.shape == atom.shape:
            slopes = min(low, high), max(low, high)
            return LossReading(atom, base, lambda w: (PiecewiseLinear(*slopes, "maximum"), w))
    pieces = affine_pieces(atom) if is_a(atom, maximum) else None
    if pieces is None:
        return None
    return LossReading(
        atom, rows(pieces, atom.shape), lambda w: (Maximum(0), np.ravel(np.broadcast_to(w, atom.shape)))
    )


def _least(atom: Any) -> LossReading | None:
    """Minima, and so CVXPY's ``neg``: minus the maxima of the negative arguments."""
    opposite = as_maximum(atom)
    reading = None if opposite is None else _read_loss(opposite)
    return None if reading is None else replace(reading, atom=atom, sign=-1.0)


def _hinges(atom: Any) -> LossReading | None:
    """``max(a q, b q)`` with slopes for every entry, one of them ``>= 0``, the other ``<= 0``.

    Quantile losses of several levels are such. It is a hinge of ``q`` and one of ``-q``.
    """
    if not is_a(atom, maximum) or len(atom.args) != 2:
        return None
    (a, base), (b, other) = (as_entrywise_multiple(argument) for argument in atom.args)
    levels = base.shape == atom.shape and np.size(a) * np.size(b) > 1 and not np.any(a * b > 0.0)
    if not levels or not is_same(base, other):
        return None
    slopes = [np.ravel(np.broadcast_to(s, atom.shape)) for s in (np.maximum(a, b), -np.minimum(a, b))]
    row = cp.reshape(base, (1, atom.size), order="C")

    def make(weight: Float64Array) -> Weighted:
        entries = np.ravel(np.broadcast_to(weight, atom.shape))
        return PiecewiseLinear(0.0, 1.0, "maximum"), np.stack([entries * s for s in slopes])

    return LossReading(atom, cp.vstack([row, -row]), make)


def _threshold(atom: Any) -> float:
    value = float(np.asarray(value_of(atom.M)))
    if value <= 0.0:
        raise ValueError(f"the threshold M of {shortened(atom)} must be positive, not {value}.")
    return value


def _over_entries(weight: Float64Array, atom: Any, argument: Any) -> Float64Array:
    """One weight per entry of the argument, from one per entry of an atom that reduces along its axis."""
    shape, axis = argument.shape, getattr(atom, "axis", None)
    if weight.shape == shape:
        return weight
    if axis is None or weight.ndim == 0:
        return np.broadcast_to(np.reshape(weight, ()), shape)
    axes = np.atleast_1d(axis)
    kept = tuple(1 if i in axes else size for i, size in enumerate(shape))
    return np.broadcast_to(np.reshape(weight, kept), shape)


def _refusal(atom: Any) -> str:
    kind, text = type(atom).__name__.removesuffix("Approx"), shortened(atom)
    if is_a(atom, sum_largest):
        return (
            "sum_largest(q, k) is not known: write k * t + cp.sum(cp.pos(q - t)) with t = cp.Variable(), or "
            f"solve with cp.CLARABEL, instead of {text}."
        )
    curved = [argument for argument in atom.args if not argument.is_affine()]
    if curved:
        return (
            f"{kind} has an argument that is not affine: {shortened(curved[0])}; write a variable t in its "
            "place and the constraint t >= the argument (<= if it is concave), or solve with cp.CLARABEL."
        )
    if is_a(atom, Pnorm):
        return (
            f"norms are known for p = 1, 2, inf along at most one axis, not {text}; solve with cp.CLARABEL."
        )
    return (
        f"{kind} is neither a loss of an affine expression that we know nor a norm of a variable: {text}; "
        "solve with cp.CLARABEL."
    )
