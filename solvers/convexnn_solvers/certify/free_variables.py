"""Dual directions of problems with free variables, such as an output bias.

A variable ``b`` without penalty and bounds enters the losses as ``C b``. The dual function is minus infinity
unless ``C^T theta + G^T mu = c`` on it exactly (G, c: its columns in the constraints and its linear
term): for an output bias the entries of ``theta`` must sum to zero. For quadratic losses the nearest such
``theta`` will do; a loss whose conjugate has a bounded domain would be left by that, so there the
free variables are refitted first, which makes the gradient satisfy the condition from within.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from convexnn_solvers.backends import Float64Array
from convexnn_solvers.certify.dual_blocks import DualBlock, in_domain, nearest_meeting, slopes_of
from convexnn_solvers.certify.reach import Offsets, reach_of_constraints, reach_of_equalities, reach_of_losses
from convexnn_solvers.composite import Composite
from convexnn_solvers.functions.constraint_cones import NONNEGATIVE, ZERO

Arrays = tuple[Float64Array, ...]
Dual = tuple[Arrays, tuple[Float64Array | None, ...]]

# Relative to the sum of the absolute values of its terms, the condition counts as satisfied up to the first
# (a bound pays for the rest, see :meth:`FreeVariables.leak`), and as satisfied to rounding up to the second.
_ROUNDING = 1e-12
_EPS = float(np.finfo(np.float64).eps)
_EXACT = 8.0 * _EPS
_NEWTON_STEPS = 60
# Shifts beyond this are those of a condition that cannot be met.
_FAR = 1e150
# Columns of constraints with a smaller share of entries that are not zero are multiplied without the zeros.
_SPARSE = 0.2


@dataclass(frozen=True, eq=False)
class FreeVariables:
    """The condition on dual directions from all free variables (N scalars) together.

    ``losses`` and ``constraints`` hold their columns, one dense array (outputs, N) each; ``linear`` (N,).
    ``signs`` is 0 for a free scalar; where only a lower (upper) bound exists it is 1 (-1), and the condition
    is that ``C^T theta + G^T mu - c`` must not have this sign; where it is 2 there is a penalty, and the
    condition is to lie in its dual ball, on which ``ball`` projects.
    """

    losses: Arrays
    constraints: Arrays
    linear: Float64Array
    signs: NDArray[np.int8]
    composite: Composite
    quadratic: bool
    offsets: Offsets
    ball: Callable[[Float64Array], Float64Array] | None = None

    @property
    def entries(self) -> int:
        """How many numbers the columns hold."""
        return sum(columns.size for columns in (*self.losses, *self.constraints))

    def theta_columns(self) -> Float64Array:
        """The columns of all losses on top of each other."""
        return np.concatenate(self.losses) if self.losses else np.empty((0, self.linear.size))

    def residual(self, thetas: Arrays, multipliers: Sequence[Float64Array | None]) -> Float64Array:
        """``C^T theta + G^T mu - c``, as far as it must vanish: zero iff a finite bound exists."""
        total = self._image(thetas, multipliers)
        wrong = np.where(self.signs == 1, np.clip(total, 0.0, None), np.clip(total, None, 0.0))
        wrong = np.where(self.signs == 0, total, wrong)
        balled = self.signs == 2
        wrong[balled] = total[balled] - self._in_ball(total[balled])
        return wrong

    def _in_ball(self, z: Float64Array) -> Float64Array:
        return z if self.ball is None else self.ball(z)

    def _image(self, thetas: Arrays, multipliers: Sequence[Float64Array | None]) -> Float64Array:
        total = -self.linear
        for columns, theta in zip(self.losses, thetas, strict=True):
            total = total + columns.T @ theta.ravel()
        for columns, mu in zip(self._thin_constraints, multipliers, strict=True):
            if mu is not None:
                total = total + columns.T @ mu.ravel()
        return total

    @cached_property
    def _thin_constraints(self) -> tuple[Any, ...]:
        """Their columns, those of pattern cones without zeros: every gate has rows of its own."""
        return tuple(
            csr_array(columns) if np.count_nonzero(columns) < _SPARSE * columns.size else columns
            for columns in self.constraints
        )

    def satisfied(
        self, thetas: Arrays, multipliers: Sequence[Float64Array | None], tolerance: float = _ROUNDING
    ) -> bool:
        """Whether :meth:`residual` is zero, relative to its terms."""
        size = self._term_sizes(thetas, multipliers)
        return bool(np.all(np.abs(self.residual(thetas, multipliers)) <= tolerance * size))

    def _term_sizes(self, thetas: Arrays, multipliers: Sequence[Float64Array | None]) -> Float64Array:
        """The sums of the absolute values of the terms of :meth:`residual`.

        Multipliers of cones that tie entries together round all of them by a share of the largest.
        """
        size = np.abs(self.linear)
        for columns, theta in zip(self.losses, thetas, strict=True):
            size = size + np.abs(columns).T @ np.abs(theta.ravel())
        terms = zip(self.composite.constraints, self._thin_constraints, multipliers, strict=True)
        for term, columns, mu in terms:
            if mu is not None:
                size = size + abs(columns).T @ term.cone.even(np.abs(mu)).ravel()
        return size

    def leak(self, thetas: Arrays, multipliers: Sequence[Float64Array | None], held: Float64Array) -> float:
        """What the residual can make of a bound, with free variables as large as offsets ask for.

        Labels around 1e8 take an output bias there, and make an error of 1e-12 in the condition one of 1e-4;
        columns that differ by 1e-8 take their coefficients as far, and constraints theirs. At least as large
        as they are ``held`` (N,), which what offsets ask for may miss: no point passes its own bound.
        """
        residual, size = self.residual(thetas, multipliers), self._term_sizes(thetas, multipliers)
        directions, equal, apart = self._reach
        errors = np.abs(directions @ residual) + _EPS * (np.abs(directions) @ size)
        leaked = self.offsets.losses * float(np.linalg.norm(errors))
        leaked += float(np.sum(np.abs(equal @ residual) + _EPS * (np.abs(equal) @ size)))
        return leaked + float((np.abs(residual) + _EPS * size) @ np.maximum(apart, np.abs(held)))

    @cached_property
    def _reach(self) -> tuple[Float64Array, Float64Array, Float64Array]:
        """How far the losses' offsets move the free variables, in units of one, and those of equalities
        together and of constraints one by one.

        Variables that no loss reads go at least as far as the losses' largest offset.
        """
        columns = self.theta_columns()
        unread = np.where(np.any(columns, axis=0), 0.0, self.offsets.losses)
        pairs = zip(self.composite.constraints, self.constraints, strict=True)
        equal = [np.empty((0, self.linear.size)), *(c for term, c in pairs if term.cone == ZERO)]
        return (
            reach_of_losses(columns),
            reach_of_equalities(np.concatenate(equal), self.offsets.equalities),
            np.maximum(reach_of_constraints(self.constraints, self.offsets), unread),
        )

    def project(
        self,
        thetas: Arrays,
        multipliers: Sequence[Float64Array | None],
        weights: Arrays | None = None,
    ) -> Arrays:
        """The nearest ``theta`` that satisfies the condition (check with :meth:`satisfied`).

        Entries move in proportion to their ``weights`` (as one without any).
        """
        if not thetas or np.any(self.signs) or self.satisfied(thetas, multipliers, _EXACT):
            return thetas
        columns = self.theta_columns()
        moved = (
            columns if weights is None else np.concatenate([w.ravel() for w in weights])[:, None] * columns
        )
        gram = columns.T @ moved
        blocks = np.split(moved, np.cumsum([theta.size for theta in thetas])[:-1])
        for _ in range(2):  # twice, for full accuracy
            shift = np.linalg.lstsq(gram, self.residual(thetas, multipliers), rcond=1e-13)[0]
            reach = max((float(np.abs(block).max(initial=0.0)) for block in blocks), default=0.0)
            if not np.abs(shift).max(initial=0.0) * max(reach, 1.0) < _FAR:
                return thetas  # nothing that can move meets the condition
            thetas = tuple(
                theta - (block @ shift).reshape(theta.shape)
                for block, theta in zip(blocks, thetas, strict=True)
            )
        return thetas

    def enter(self, thetas: Arrays, multipliers: Sequence[Float64Array | None]) -> Dual:
        """The nearest dual point in all domains and dual cones that satisfies the condition, by Newton.

        See :mod:`dual_blocks`. Check with :meth:`satisfied`: domains may exclude the
        condition.
        """
        given = [m for m, mu in enumerate(multipliers) if mu is not None]
        if not thetas and not given:
            return thetas, tuple(multipliers)
        losses = zip(self.composite.losses, self.losses, thetas, strict=True)
        blocks = [DualBlock(v, columns, in_domain(term)) for term, columns, v in losses]
        for m in given:
            cone, columns = self.composite.constraints[m].cone, self._thin_constraints[m]
            blocks.append(DualBlock(np.asarray(multipliers[m]), columns, cone.nearest_dual, slopes_of(cone)))
        # What one-sided bounds allow is a multiplier of theirs; what penalties allow, a point of their ball.
        image = self._image(thetas, multipliers)
        bounded, balled = np.flatnonzero(np.abs(self.signs) == 1), np.flatnonzero(self.signs == 2)
        signed = np.eye(self.linear.size)[bounded] * self.signs[bounded, None]
        allowed = np.clip(-self.signs[bounded] * image[bounded], 0.0, None)
        blocks.append(DualBlock(allowed, signed, NONNEGATIVE.nearest_dual, slopes_of(NONNEGATIVE)))
        within = self._in_ball(image[balled])
        blocks.append(DualBlock(within, -np.eye(self.linear.size)[balled], self._in_ball))

        def split(parts: Sequence[Float64Array]) -> Dual:
            moved = iter(parts[len(thetas) :])
            return tuple(parts[: len(thetas)]), tuple(
                None if mu is None else next(moved) for mu in multipliers
            )

        def met(parts: Sequence[Float64Array], exactly: bool) -> bool:
            return self.satisfied(*split(parts), *((_EXACT,) if exactly else ()))

        return split(nearest_meeting(blocks, self.linear, 1e-7 / self._largest_entries(), met))

    def refit(self, outputs: Arrays, multipliers: Sequence[Float64Array | None]) -> Arrays:
        """Minus the gradients of the losses after the best shift of the free variables (damped Newton)."""
        shift = np.zeros(self.linear.size)
        zero = tuple(np.zeros(q.shape) for q in outputs)
        slope = -self.residual(zero, multipliers)  # the linear part of the objective along the shift

        def value(t: Float64Array) -> float:
            moved = self._shifted(outputs, t)
            terms = (
                float(term.loss.value(q, term.weight, np))
                for term, q in zip(self.composite.losses, moved, strict=True)
            )
            return sum(terms) + float(slope @ t)

        def gradient(t: Float64Array) -> Float64Array:
            return -self.residual(self._thetas(self._shifted(outputs, t)), multipliers)

        unit = self._unit(outputs)
        current, g = value(shift), gradient(shift)
        for _ in range(_NEWTON_STEPS):
            jacobian = np.column_stack([(gradient(shift + h) - g) / h.max() for h in np.diag(1e-6 * unit)])
            jacobian = 0.5 * (jacobian + jacobian.T)
            jacobian += 1e-12 * np.trace(jacobian) * np.eye(g.size)
            # Without curvature (every Huber term in its linear part) a step of the typical size is tried.
            steepness = np.abs(g) / unit
            flat = np.diag(jacobian) <= 1e-9 * steepness
            jacobian += np.diag(np.where(flat, steepness, 0.0))
            direction = -np.linalg.lstsq(jacobian, g, rcond=None)[0]
            length = 1.0
            while length > 1e-6:
                moved = shift + length * direction
                after, slope_after = value(moved), gradient(moved)
                # Close to the minimum its values are all rounding, and only the gradient tells.
                same = after <= current + _ROUNDING * abs(current)
                if after < current or (same and np.linalg.norm(slope_after) < np.linalg.norm(g)):
                    break
                length *= 0.5
            else:
                break
            shift, current, g = moved, after, slope_after
        # The rest is rounding of the outputs: entries on the flat parts of their losses must stay there.
        low, high = (self._thetas(self._shifted(outputs, shift + h)) for h in (-1e-6 * unit, 1e-6 * unit))
        curved = tuple(np.abs(a - b) for a, b in zip(low, high, strict=True))
        return self.project(self._thetas(self._shifted(outputs, shift)), multipliers, curved)

    def _shifted(self, outputs: Arrays, t: Float64Array) -> Arrays:
        return tuple(q + (c @ t).reshape(q.shape) for c, q in zip(self.losses, outputs, strict=True))

    def _thetas(self, outputs: Arrays) -> Arrays:
        return tuple(np.asarray(-g) for g in self.composite.loss_gradients(outputs))

    def _unit(self, outputs: Arrays) -> Float64Array:
        """A typical size of each free variable: it moves the losses' arguments by about their own size."""
        typical = 1.0 + max((float(np.max(np.abs(q), initial=0.0)) for q in outputs), default=0.0)
        return np.asarray(typical / self._largest_entries())

    def _largest_entries(self) -> Float64Array:
        largest = np.max(np.abs(self.theta_columns()), axis=0, initial=0.0)
        return np.where(largest > 0.0, largest, 1.0)


def into_domains(
    composite: Composite, thetas: Sequence[Float64Array], multipliers: Sequence[Float64Array | None]
) -> Dual:
    """Every theta at the nearest point of its loss's domain, every multiplier at that of its dual cone."""
    inside = tuple(in_domain(t)(v) for t, v in zip(composite.losses, thetas, strict=True))
    pairs = zip(composite.constraints, multipliers, strict=True)
    return inside, tuple(None if mu is None else term.cone.nearest_dual(mu) for term, mu in pairs)
