"""Problems of one gated prediction, restricted to some of their gates and in features that suit the solver.

A gate is a column of every weight variable, and gates whose weights are zero change nothing: an accelerated
method may leave them out until the gradient asks for them. Group norms of whole columns (of each output, or
of all together) do not change when the features are rotated, so that they may as well be the principal
components of X, in which every feature can have a step length of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from convexnn_solvers.backends import Array, Backend, Float64Array
from convexnn_solvers.composite import Composite, PenaltyTerm, Point
from convexnn_solvers.cones.active_sets import Indices
from convexnn_solvers.first_order.gate_metric import Metric, in_metric
from convexnn_solvers.functions.group_shrinkage import shrunk
from convexnn_solvers.functions.nonsmooth_losses import Nonsmooth
from convexnn_solvers.functions.penalties import GroupNorm
from convexnn_solvers.functions.tilted import Tilted
from convexnn_solvers.gated_programs.gate_cones import GateCones
from convexnn_solvers.gated_programs.gated_reading import gated_reading
from convexnn_solvers.gated_programs.maps import gated_maps, refusal
from convexnn_solvers.gated_programs.structure import group_prices, weight_variables
from convexnn_solvers.reading.operators import GateArrays, GatedOperator
from convexnn_solvers.reading.output_selection import selected


@dataclass(frozen=True, eq=False)
class ColumnMap:
    """The affine map ``mirror o (sum_v ratio_v gated(x_v) + factor b) + shift`` of some gates."""

    operator: GatedOperator
    ratios: tuple[tuple[int, float], ...]
    offset: tuple[int, float] | None
    mirror: Array | None
    shift: Array
    shapes: tuple[tuple[int, ...], ...]

    def forward(self, x: Point) -> Point:
        """The loss's argument."""
        return (self.linear(x)[0] + self.shift,)

    def linear(self, x: Point) -> Point:
        """The same without the shift."""
        xp = self.operator.gates.backend.xp
        (position, ratio), *others = self.ratios
        summed = x[position] if ratio == 1.0 else ratio * x[position]
        for position, ratio in others:
            summed = summed + ratio * x[position]
        image = self.operator.forward(summed)
        if self.offset is not None:
            position, factor = self.offset
            b = factor * xp.reshape(x[position], (-1,))
            image = image + b
        if self.mirror is not None:
            image = self.mirror * xp.reshape(image, tuple(self.mirror.shape))
        return (xp.reshape(image, tuple(self.shift.shape)),)

    def adjoint(self, cotangents: tuple[Array | None, ...]) -> Point:
        """One array per variable."""
        backend = self.operator.gates.backend
        (g,) = cotangents
        if g is None:
            return tuple(backend.zeros(shape) for shape in self.shapes)
        xp, outputs = backend.xp, self.operator.outputs
        r = g if self.mirror is None else self.mirror * xp.reshape(g, tuple(self.mirror.shape))
        r = xp.reshape(r, (-1, outputs) if outputs > 1 else (-1,))
        products = self.operator.adjoint(r)
        pulled: list[Array] = [products] * len(self.shapes)
        for position, ratio in self.ratios:
            pulled[position] = products if ratio == 1.0 else ratio * products
        if self.offset is not None:
            position, factor = self.offset
            pulled[position] = factor * xp.reshape(xp.sum(r, axis=0), self.shapes[position])
        return tuple(pulled)


@dataclass(frozen=True, eq=False)
class ColumnShrinkage:
    """The proximal map of the group norms of some gates: ``prices[v]`` (g, k), None for a free variable.

    ``cones[v]``: those of a variable's ``chosen`` gates (on the host), where it lies in cones.
    """

    prices: tuple[Array | None, ...]
    backend: Backend
    cones: Mapping[int, GateCones]
    chosen: Indices

    def __call__(self, point: Point, steps: Any) -> Point:
        """The proximal point; a step is a number, or one per row of the variable (rows, 1)."""
        return tuple(
            v if price is None else self._shrunk(self._projected(k, v, price, step), price, step)
            for k, (v, price, step) in enumerate(zip(point, self.prices, steps, strict=True))
        )

    def _projected(self, position: int, v: Array, price: Array, step: Any) -> Array:
        """On the cones, if there are any, before the shrinkage; there one step is that of all entries."""
        if position not in self.cones:
            return v
        cones = self.cones[position]
        Z = np.asarray(self.backend.to_numpy(v)).reshape(cones.outputs, -1, self.chosen.size)
        limits = step * np.asarray(self.backend.to_numpy(price))
        return self.backend.asarray(cones.project(Z, self.chosen, limits).reshape(v.shape))

    def _shrunk(self, v: Array, price: Array, step: Any) -> Array:
        xp, groups = self.backend.xp, int(price.shape[0])
        if not isinstance(step, float):
            step = xp.reshape(step, (groups, -1, 1))
        blocks = xp.reshape(v, (groups, -1, int(v.shape[1])))
        return xp.reshape(shrunk(blocks, price, step, xp), tuple(v.shape))


@dataclass(frozen=True, eq=False)
class GateColumns:
    """How a composite on any backend follows from its gates; ``ratios``: position and factor of the weights.

    ``prices[k]`` (g, P) belongs to the k-th of them, g = 1 where the outputs share groups. ``gates`` hold the
    features in the metric's basis. ``cones``: those that the weights
    lie in, all of them or none, by position and in the order of the constraints.
    """

    whole: Composite
    operator: GatedOperator
    gates: GateArrays
    metric: Metric | None
    ratios: tuple[tuple[int, float], ...]
    prices: tuple[Array, ...]
    offset: tuple[int, float] | None
    mirror: Array | None
    shift: Array
    cones: Mapping[int, GateCones]

    @cached_property
    def quadratic(self) -> bool:
        """Whether the loss is a sum of squares and there is nothing else that is smooth."""
        xp = self.whole.backend.xp
        loss = self.whole.losses[0].loss
        plain = loss.quadratic and not isinstance(loss, Tilted)
        return plain and not any(xp.any(c != 0.0) for c in self.whole.linear)

    @property
    def count(self) -> int:
        """The number P of gates."""
        return int(self.gates.bits.shape[1])

    def restricted(self, chosen: Array) -> Composite:
        """The problem of some gates."""
        backend, count = self.whole.backend, int(chosen.shape[0])
        weights = {position: price for (position, _), price in zip(self.ratios, self.prices, strict=True)}
        blocks, penalties = list(self.whole.variables), []
        for position, price in weights.items():
            height = blocks[position].shape[0]
            blocks[position] = replace(blocks[position], shape=(height, count))
            penalties.append(self._penalty(position, backend.xp.take(price, chosen, axis=1)))
        gates = self.gates if count == self.count else self.gates.taken(chosen)
        operator = replace(self.operator, gates=gates)
        shapes = tuple(block.shape for block in blocks)
        affine = ColumnMap(operator, self.ratios, self.offset, self.mirror, self.shift, shapes)
        return replace(
            self.whole,
            variables=tuple(blocks),
            affine=affine,
            penalties=tuple(penalties),
            linear=self.taken(self.whole.linear, chosen),
            kept={},
        )

    def shrinkage(self, composite: Composite, chosen: Array) -> ColumnShrinkage:
        """The proximal map of a restricted problem."""
        prices: list[Array | None] = [None] * len(composite.variables)
        for term in composite.penalties:
            prices[term.variable] = term.weight
        backend = composite.backend
        host = np.asarray(backend.to_numpy(chosen) if self.cones else (), dtype=np.intp)
        return ColumnShrinkage(tuple(prices), backend, self.cones, host)

    def taken(self, point: Point, chosen: Array) -> Point:
        """The columns of some gates of a point of the whole problem, in the metric's basis."""
        xp, parts = self.whole.backend.xp, list(point)
        for position, _ in self.ratios:
            parts[position] = self._turned(xp.take(point[position], chosen, axis=1), back=False)
        return tuple(parts)

    def moved(self, point: Point, old: Array, new: Array) -> Point:
        """A point on the gates ``old`` as one on ``new``, which include all that are in use."""
        xp, parts = self.whole.backend.xp, list(point)
        for position, _ in self.ratios:
            parts[position] = xp.take(self._spread(point[position], old), new, axis=1)
        return tuple(parts)

    def lifted(self, point: Point, chosen: Array) -> Point:
        """A point on some gates as one of the whole problem."""
        parts = list(point)
        for position, _ in self.ratios:
            parts[position] = self._spread(self._turned(point[position], back=True), chosen)
        return tuple(parts)

    def used(self, point: Point) -> Array:
        """Which columns of a point on some gates have an entry other than zero."""
        xp = self.whole.backend.xp
        found = [xp.any(point[position] != 0.0, axis=0) for position, _ in self.ratios]
        return found[0] if len(found) == 1 else xp.any(xp.stack(found), axis=0)

    def ratios_of(self, gradient: Point) -> Array:
        """Of every gate the largest norm of a group of the gradient (whole problem) over its weight (P,).

        With cones of the negative gradient's projection, or an upper bound of it where that is at most 1.
        """
        xp, found = self.whole.backend.xp, []
        for (position, _), price in zip(self.ratios, self.prices, strict=True):
            if position in self.cones:
                prices = np.asarray(self.whole.backend.to_numpy(price), dtype=np.float64)
                ratios = self.cones[position].ratios(self._pull(gradient, position), prices)
                found.append(self.whole.backend.asarray(np.max(ratios, axis=0)))
                continue
            g = xp.reshape(gradient[position], (int(price.shape[0]), -1, self.count))
            found.append(xp.max(xp.sqrt(xp.sum(g * g, axis=1)) / price, axis=0))
        return found[0] if len(found) == 1 else xp.max(xp.stack(found), axis=0)

    def multipliers(self, gradient: Point) -> tuple[Float64Array | None, ...]:
        """One array per constraint, at a gradient of the whole problem."""
        prices = {position: price for (position, _), price in zip(self.ratios, self.prices, strict=True)}
        return tuple(
            cones.multipliers(self._pull(gradient, k), np.asarray(self.whole.backend.to_numpy(prices[k])))
            for k, cones in self.cones.items()
        )

    def _pull(self, gradient: Point, position: int) -> Float64Array:
        """The negative gradient of a weight variable as blocks (c, d, P) on the host."""
        pulled = np.asarray(self.whole.backend.to_numpy(gradient[position]), dtype=np.float64)
        return -pulled.reshape(self.operator.outputs, -1, self.count)

    def _spread(self, columns: Array, chosen: Array) -> Array:
        everything = self.whole.backend.zeros((int(columns.shape[0]), self.count))
        everything[:, chosen] = columns
        return everything

    def _turned(self, columns: Array, back: bool) -> Array:
        """Weights of the features as weights of their components, or back."""
        if self.metric is None:
            return columns
        xp, basis = self.whole.backend.xp, self.metric.basis
        turn = basis if back else basis.T
        blocks = xp.reshape(columns, (self.operator.outputs, -1, int(columns.shape[1])))
        return xp.reshape(turn @ blocks, tuple(columns.shape))

    def _penalty(self, position: int, price: Array) -> PenaltyTerm:
        xp, groups = self.whole.backend.xp, int(price.shape[0])
        rows, width = self.whole.variables[position].shape[0], int(price.shape[1])
        return PenaltyTerm(
            GroupNorm(1),
            price,
            position,
            lambda v: xp.reshape(v, (groups, -1, width)),
            lambda v: xp.reshape(v, (rows, width)),
            "group norms",
        )


def gate_columns(composite: Composite, exact: Composite) -> GateColumns:
    """Read a composite; ``exact`` is the same in float64 with NumPy. UnsupportedProblem where it is not
    one loss with a gradient of one gated prediction, with a group norm of every column and nothing else but
    their pattern cones and a free output bias.
    """
    if len(exact.losses) != 1 or isinstance(exact.losses[0].loss, Nonsmooth):
        raise refusal("there is not one loss with a gradient alone")
    if any(block.lower is not None or block.upper is not None for block in exact.variables):
        raise refusal("variables have bounds")
    known, there = gated_maps(exact), gated_maps(composite)
    if len(known) != 1 or not isinstance(there[0], GatedOperator) or not isinstance(known[0], GatedOperator):
        raise refusal("there is more than one gated prediction")
    backend = composite.backend
    reading = gated_reading(exact, known, weight_variables(exact, known[0]))
    prices = [group_prices(exact, position, known[0]) for position in reading.weights]
    if any(not np.all(price > 0.0) for price in prices):
        raise refusal("a group norm has weight zero (reg = 0)")
    operator = there[0]
    # Cones are not what they were where steps of features differ.
    metric, gates = (None, operator.gates) if reading.cones else in_metric(exact, known[0], operator.gates)
    shift = composite.offsets()[0]
    mirror = reading.mirror[:, 0] if operator.outputs == 1 else reading.mirror
    return GateColumns(
        whole=_unconstrained(composite),
        operator=operator,
        gates=gates,
        metric=metric,
        ratios=tuple((p, float(f)) for p, f in zip(reading.weights, reading.ratios, strict=True)),
        prices=tuple(backend.asarray(np.ascontiguousarray(price)) for price in prices),
        offset=reading.offset,
        mirror=None if np.all(mirror == 1.0) else backend.asarray(np.ascontiguousarray(mirror)),
        shift=shift,
        cones={c.pattern_cone.variable: GateCones(c) for c in exact.constraints if c.pattern_cone},
    )


def _unconstrained(composite: Composite) -> Composite:
    """The problem without its constraints, and without their products."""
    if not composite.constraints:
        return composite
    count = len(composite.losses)
    affine = selected(composite.affine, tuple(range(count)), count + len(composite.constraints))
    return replace(composite, affine=affine, constraints=(), kept={})
