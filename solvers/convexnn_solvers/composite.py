"""The form that our solvers and certificates read: losses of affine maps, penalties, constraints.

    minimise   sum_k  w_k f_k(A_k x + b_k)  +  sum_i  sum(lam_i * norms_i(view_i(x)))  +  <c, x>  +  constant
    subject to G_m x + e_m  in  cone_m   (see :mod:`functions.constraint_cones`)

Its Lagrangian dual, with ``theta_k`` for the losses and ``mu_m`` in the dual cone for the constraints:

    D(theta, mu) = sum_k [ -(w_k f_k)^*(-theta_k) - <theta_k, b_k> ] - sum_m <mu_m, e_m> + constant

for ``z = sum_k A_k^T theta_k + sum_m G_m^T mu_m - c`` with ``dual_norms_i(view_i(z)) <= lam_i`` on every
penalised group and ``z = 0`` on every unpenalised variable. A constraint that is a pattern cone of its
variable (:class:`PatternCone`) may be dualised exactly: ``||P_K(z)||`` replaces ``||z||``.

A point ``x`` is a tuple of arrays, one per variable, in the order of ``variables`` and in CVXPY's shapes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from convexnn_solvers.backends import Array, Backend, Float64Array
from convexnn_solvers.cones.active_sets import ActiveRows
from convexnn_solvers.functions.constraint_cones import Cone
from convexnn_solvers.functions.losses import Loss
from convexnn_solvers.functions.penalties import Penalty

Point = tuple[Array, ...]


class AffineMap(Protocol):
    """All affine expressions of a problem at once: the losses' arguments, then the constraints'."""

    def forward(self, x: Point) -> Point:
        """``A x + b`` for every output."""
        ...

    def linear(self, x: Point) -> Point:
        """``A x`` for every output, without the offsets."""
        ...

    def adjoint(self, cotangents: tuple[Array | None, ...]) -> Point:
        """``A^T`` applied to one cotangent per output (None counts as zero); one array per variable."""
        ...


@dataclass(frozen=True)
class VariableBlock:
    """One CVXPY variable: its id, shape and name, and its entrywise bounds (None where there is none)."""

    id: int
    shape: tuple[int, ...]
    name: str
    lower: Float64Array | None = None
    upper: Float64Array | None = None


@dataclass(frozen=True)
class LossTerm:
    """``sum(weight * loss(output))``; the k-th loss reads the k-th output of the affine map."""

    loss: Loss
    weight: Array
    text: str


@dataclass(frozen=True)
class PenaltyTerm:
    """``sum(weight * penalty.norms(view(x[variable])))``; ``unview`` is ``view``'s inverse and adjoint."""

    penalty: Penalty
    weight: Array
    variable: int
    view: Callable[[Array], Array]
    unview: Callable[[Array], Array]
    text: str


@dataclass(frozen=True)
class PatternCone:
    """``(2 D_j - I) X u >= 0`` for every gate j and output k, u = rows k*d..(k+1)*d of column j."""

    X: Float64Array
    patterns: NDArray[np.bool_]
    outputs: int
    variable: int


@dataclass(frozen=True)
class ConstraintTerm:
    """``output in cone``; the m-th constraint reads output ``len(losses) + m`` of the affine map.

    The output is ``b - a`` for CVXPY's ``a <= b`` and ``a == b``, so that multipliers ``mu`` of the
    Lagrangian ``... - <mu, output>`` are CVXPY's dual values, sign and shape included. For other cones
    ``to_dual_value`` makes of them what CVXPY's constraint takes, and ``from_dual_value`` the reverse,
    where the dual value says enough. ``budget``: the constraint is that these penalties of variables, which
    nothing else penalises, are together at most the first entry of the output at the origin.
    """

    cone: Cone
    shape: tuple[int, ...]
    id: int
    text: str
    pattern_cone: PatternCone | None = None
    to_dual_value: Callable[[Float64Array], Float64Array] | None = None
    from_dual_value: Callable[[Any], Float64Array] | None = None
    budget: tuple[PenaltyTerm, ...] = ()


@dataclass(frozen=True, eq=False)
class DualPoint:
    """A candidate for a lower bound: ``thetas``, one array per loss, and ``multipliers``, one per constraint.

    Each has the shape of the argument of its loss or constraint; a multiplier of None is not given. ``rows``
    may say of pattern cones, constraint by constraint, which rows could be active in the projections that
    prove it; they only tell where to begin. Nobody has to believe any of it: what it proves is computed anew.
    """

    thetas: tuple[Float64Array, ...]
    multipliers: tuple[Float64Array | None, ...] = ()
    rows: tuple[ActiveRows | None, ...] = ()

    def __repr__(self) -> str:
        """The shapes: the arrays are as large as the data."""
        thetas = [theta.shape for theta in self.thetas]
        multipliers = [None if mu is None else mu.shape for mu in self.multipliers]
        return f"DualPoint(thetas of {thetas}, multipliers of {multipliers})"


class Across(Protocol):
    """Sums and maxima over everybody who holds a share of the variables; see :class:`Alone`."""

    def sum(self, value: float) -> float:
        """The sum of everybody's value."""
        ...

    def max(self, value: float) -> float:
        """The largest of everybody's values."""
        ...

    def normal(self, rng: np.random.Generator, variable: int, shape: tuple[int, ...]) -> Float64Array:
        """The part that is here, of this shape, of normal numbers for all entries of a variable."""
        ...


@dataclass(frozen=True)
class Alone:
    """All variables are here."""

    def sum(self, value: float) -> float:
        """The value itself."""
        return value

    def max(self, value: float) -> float:
        """The value itself."""
        return value

    def normal(self, rng: np.random.Generator, variable: int, shape: tuple[int, ...]) -> Float64Array:
        """All of them."""
        return rng.standard_normal(shape)


@dataclass(frozen=True)
class Composite:
    """A problem as the solvers see it, with the parameter values of the moment; see the module's text.

    ``sign`` is +1 for Minimize and -1 for Maximize: everything here is the minimisation form, and
    ``sign * value`` is in the user's units. ``scope`` says for which gates a bound holds. ``variables`` may
    be a share of those of a problem (columns of its weights) whose affine outputs are the sum over all
    shares; ``across`` then makes what is added up variable by variable that of the whole problem.
    ``kept`` is for what takes a while to find out and follows from the affine map and the constraints alone,
    or from terms beside which it is kept: composites of one compiled problem share it, unless a Parameter
    enters the map. Losses and variables in which nothing changed are the same objects in all of them.
    """

    backend: Backend
    variables: tuple[VariableBlock, ...]
    affine: AffineMap
    losses: tuple[LossTerm, ...]
    penalties: tuple[PenaltyTerm, ...]
    constraints: tuple[ConstraintTerm, ...]
    linear: Point
    constant: float
    sign: float
    scope: str
    across: Across = field(default_factory=Alone)
    kept: dict[str, Any] = field(default_factory=dict, compare=False)

    def zeros(self) -> Point:
        """The origin."""
        return tuple(self.backend.zeros(v.shape) for v in self.variables)

    def offsets(self) -> Point:
        """The affine outputs of the origin, computed once per affine map."""
        held = self.kept.get("offsets")
        if held is None or held[0] is not self.affine:
            held = self.kept["offsets"] = self.affine, self.affine.forward(self.zeros())
        offsets: Point = held[1]
        return offsets

    def smooth_value(self, x: Point, outputs: Point) -> Array:
        """Losses and linear term at ``x``, whose affine outputs are ``outputs``."""
        xp = self.backend.xp
        total: Any = 0.0
        for term, q in zip(self.losses, outputs, strict=False):
            total = total + term.loss.value(q, term.weight, xp)
        for c, v in zip(self.linear, x, strict=True):
            total = total + xp.sum(c * v)
        return total

    def loss_gradients(self, outputs: Point) -> tuple[Array, ...]:
        """The gradient of every loss with respect to its own affine output."""
        xp = self.backend.xp
        return tuple(t.loss.gradient(q, t.weight, xp) for t, q in zip(self.losses, outputs, strict=False))

    def penalty_value(self, x: Point) -> Array:
        """All penalties at ``x``."""
        xp = self.backend.xp
        total: Any = 0.0
        for term in self.penalties:
            total = total + xp.sum(term.weight * term.penalty.norms(term.view(x[term.variable]), xp))
        return self.across.sum(total)

    def value(self, x: Point) -> float:
        """The objective of the minimisation form at ``x``, constraints aside."""
        return float(self.smooth_value(x, self.affine.forward(x)) + self.penalty_value(x)) + self.constant
