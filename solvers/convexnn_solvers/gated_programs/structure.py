"""Recognising gated programs in the composite form, whatever way they were written down.

The prediction may be ``gated(X, D, V - W)``, ``gated(X, D, V) - gated(X, D, W)``, a multiple of it, with
a free output bias added or the labels multiplied in: instead of matching expressions, the linear map of the
loss is compared with ``factor * mirror o gated(...)``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from convexnn_solvers.backends import Float64Array
from convexnn_solvers.certify.known_images import known_image
from convexnn_solvers.composite import Composite, DualPoint, LossTerm, PenaltyTerm, VariableBlock
from convexnn_solvers.cones.active_sets import ActiveRows, joined
from convexnn_solvers.functions.penalties import AbsoluteValue, GroupNorm
from convexnn_solvers.gated_programs.gated_reading import GatedReading, gated_reading
from convexnn_solvers.gated_programs.loss_fits import GatedFit, gated_fit, one_output
from convexnn_solvers.gated_programs.maps import GatedMap, gated_maps, refusal, stored_features
from convexnn_solvers.gated_programs.nonsmooth_fits import NonsmoothFit
from convexnn_solvers.gated_programs.program import GatedProgram, Indices
from convexnn_solvers.kept import Kept
from convexnn_solvers.reading.affine import UnsupportedProblem


@dataclass(frozen=True, eq=False)
class GatedStructure:
    """How points and duals of a composite correspond to those of one gated program, or one per output.

    ``variables``: positions of the weight variables, in the order of the programs' signs and, for each sign,
    of the gated maps; ``factors``: the absolute value of the number that each is multiplied by. ``offset``:
    position and factor of the free output bias. ``scale``: the composite's objective over that of the
    programs. ``mirror`` (n, c): the signs +-1 between prediction and the loss's argument. ``scales`` (n, 1):
    what the programs' predictions are multiplied by, sample by sample, for their weights; None: nothing.
    """

    composite: Composite
    programs: tuple[GatedProgram, ...]
    variables: tuple[int, ...]
    factors: tuple[float, ...]
    offset: tuple[int, float] | None
    means: Float64Array
    scale: float
    mirror: Float64Array
    scales: Float64Array | None = None

    def blocks(self, x: tuple[Float64Array, ...]) -> list[Float64Array]:
        """The programs' points (c, d, B) for a point of the composite."""
        c, d = self.mirror.shape[1], self.programs[0].X.shape[1]
        parts = [
            factor * np.reshape(x[position], (c, d, -1))
            for position, factor in zip(self.variables, self.factors, strict=True)
        ]
        stacked = np.concatenate(parts, axis=2)
        return [stacked] if len(self.programs) == 1 else [stacked[k : k + 1] for k in range(c)]

    def point(self, blocks: list[Float64Array], offsets: list[Float64Array]) -> tuple[Float64Array, ...]:
        """The composite's point for the programs' points and offsets."""
        stacked = np.concatenate(blocks)
        result = [np.zeros(block.shape) for block in self.composite.variables]
        parts = np.split(stacked, len(self.variables), axis=2)
        for position, factor, part in zip(self.variables, self.factors, parts, strict=True):
            result[position] = part.reshape(result[position].shape) / factor
        if self.offset is not None:
            position, factor = self.offset
            bias = (np.concatenate(offsets) + self.means) / factor
            result[position] = bias.reshape(result[position].shape)
        return tuple(result)

    def dual(self, points: list[Float64Array], rows: list[ActiveRows]) -> DualPoint:
        """The composite's dual point for the programs' dual points W.

        ``rows``: with cones, the active rows of all blocks for every output, which save the judge work.
        """
        theta = self.scale * self.mirror * np.hstack(points)
        theta = theta if self.scales is None else self.scales * theta
        shape = self.composite.offsets()[0].shape
        return DualPoint((theta.reshape(shape),), rows=self._rows(rows) if rows else ())

    def directions(self, dual: DualPoint) -> list[Float64Array] | None:
        """The programs' parts W (n, c) of somebody's dual point; None where it is not of this problem."""
        if len(dual.thetas) != 1 or dual.thetas[0].size != self.mirror.size:
            return None
        W = np.reshape(dual.thetas[0], self.mirror.shape) * self.mirror / self.scale
        if self.scales is not None:
            W = np.divide(W, self.scales, out=np.zeros(W.shape), where=self.scales > 0.0)
        if not np.isfinite(W).all() or not W.any():
            return None
        return [W] if len(self.programs) == 1 else np.split(W, len(self.programs), axis=1)

    def products(self, dual: DualPoint) -> list[Float64Array] | None:
        """The programs' products (c, d, P) of their features with what :meth:`directions` says, where the
        image of the dual point is known: products with all features are what takes time."""
        if self.scales is not None or len(self.variables) != len(self.programs[0].signs):
            return None
        image = known_image(self.composite, dual)
        if image is None:
            return None
        factor = self.scale * self.factors[0] * self.programs[0].signs[0]
        c, d = self.mirror.shape[1], self.programs[0].X.shape[1]
        found = image[self.variables[0]].reshape(c, d, -1) / factor
        return [found] if len(self.programs) == 1 else np.split(found, len(self.programs))

    def _rows(self, rows: list[ActiveRows]) -> tuple[ActiveRows | None, ...]:
        """Constraint by constraint, all outputs of a variable one after the other."""
        P = self.programs[0].gates
        cones = [constraint.pattern_cone for constraint in self.composite.constraints]
        places = [None if cone is None else self.variables.index(cone.variable) for cone in cones]
        return tuple(
            None if k is None else joined([active.take(slice(k * P, (k + 1) * P)) for active in rows])
            for k in places
        )


def gated_structure(composite: Composite) -> GatedStructure:
    """Read a composite as gated programs; UnsupportedProblem says what stands in the way, and what can do it.

    Taken are: one loss of a gated prediction, pooled or not, or without cones of a sum of several (see
    :func:`~loss_fits.gated_fit`); one group norm, shared or per output, of every weight
    variable; nothing else but their pattern cones and a free output bias.
    """
    if composite.backend.name != "numpy" or composite.backend.dtype != np.float64:
        raise ValueError(
            "solvers of gated programs work in float64 with NumPy; use device='cpu', dtype='float64'."
        )
    maps = gated_maps(composite)
    operator, count = maps[0], len(maps)
    loss = _the_loss(composite)
    found = weight_variables(composite, operator)
    known = gated_reading(composite, maps, found)
    weights, ratios, mirror, offset = known.weights, known.ratios, known.mirror, known.offset
    found_fit = _fit_for(composite, loss, known)
    fit, scale, scales = found_fit.fit, found_fit.factor, found_fit.scales
    prices = [group_prices(composite, position, operator) for position in weights]
    taus = _thresholds(prices, [scale * abs(ratio) for ratio in ratios])
    if len(taus) > 1 and isinstance(fit, NonsmoothFit) and not fit.separable:
        raise refusal(f"{loss.text} is no sum over outputs with groups of their own", "AugmentedLagrangian()")
    X, stored, bits = operator.gates.X, stored_features(maps), operator.gates.bits
    kept, unscaled = known.kept, None
    if scales is not None:
        kept = _kept_for(composite, scales, len(kept))
        if stored is None:
            X, unscaled = scales * X, X
        else:
            stored = scales[:, :, None] * stored
    programs = tuple(
        GatedProgram(
            X=X,
            patterns=bits if count == 1 else np.hstack([op.gates.bits[:0] for op in maps]),
            fit=fit if len(taus) == 1 else one_output(fit, k),
            weights=row,
            signs=tuple(float(sign) for sign in np.sign(ratios[::count])),
            cones=known.cones,
            slope=operator.slope,
            stored=stored,
            unscaled=unscaled,
            kept=kept[k],
        )
        for k, row in enumerate(taus)
    )
    return GatedStructure(
        composite=composite,
        programs=programs,
        variables=tuple(weights),
        factors=tuple(float(abs(ratio)) for ratio in ratios),
        offset=offset,
        means=found_fit.means,
        scale=scale,
        mirror=mirror,
        scales=scales,
    )


def _thresholds(prices: list[Float64Array], units: list[float]) -> Float64Array:
    """The weights of all groups (g, B), in units of the program's own variables."""
    if len({price.shape for price in prices}) > 1:
        raise refusal("the weight variables are grouped in different ways")
    taus = np.hstack([price / unit for price, unit in zip(prices, units, strict=True)])
    if not np.all(taus > 0.0):
        raise refusal("a group norm has weight zero (reg = 0)", "RFISTA() or cp.CLARABEL")
    return taus


def _fit_for(composite: Composite, loss: LossTerm, known: GatedReading) -> GatedFit:
    """The fit of a loss, until it is another one: the map, and with it how it was read, stays the same."""
    held = composite.kept.get("gated fit")
    if held is None or held[0] is not loss:
        fit = gated_fit(loss, known.mirror, known.shift, known.offset is not None)
        held = composite.kept["gated fit"] = loss, fit
    found: GatedFit = held[1]
    return found


def _kept_for(composite: Composite, scales: Float64Array, outputs: int) -> tuple[Kept, ...]:
    """What is kept for programs whose samples have weights, until they have others (of a Parameter)."""
    held = composite.kept.get("weighted samples")
    if held is None or not np.array_equal(held[0], scales):
        kept = Kept()
        held = composite.kept["weighted samples"] = scales, tuple(kept.output(k) for k in range(outputs))
    found: tuple[Kept, ...] = held[1]
    return found


def _the_loss(composite: Composite) -> LossTerm:
    if len(composite.losses) != 1:
        raise refusal(f"the objective has {len(composite.losses)} losses")
    term = composite.losses[0]
    for c, block in zip(composite.linear, composite.variables, strict=True):
        if np.any(c != 0.0):
            raise refusal(f"the objective has a linear term in {block.name}")
    for block in composite.variables:
        if block.lower is not None or block.upper is not None:
            raise refusal(f"variable {block.name} has bounds")
    return term


def weight_variables(composite: Composite, operator: GatedMap) -> list[int]:
    """Positions of the variables that carry a penalty; all must have the shape of weights."""
    shape = (operator.gates.X.shape[1] * operator.outputs, operator.gates.bits.shape[1])
    penalised = sorted({term.variable for term in composite.penalties})
    for position in penalised:
        block = composite.variables[position]
        if block.shape != shape:
            raise refusal(f"variable {block.name} of shape {block.shape} is penalised, not weights {shape}")
    if not penalised:
        raise refusal("there is no penalty", "RFISTA() or cp.CLARABEL")
    return penalised


def group_prices(composite: Composite, position: int, operator: GatedMap) -> Float64Array:
    """The weight of every group norm of a variable: (1, P) if outputs share groups, else (c, P)."""
    known: dict[Any, tuple[list[int], Indices]] = composite.kept.setdefault("groups", {})
    terms = [term for term in composite.penalties if term.variable == position]
    key = position, operator.outputs, *((term.penalty, term.view) for term in terms)
    if key not in known:
        known[key] = _groups(composite.variables[position], terms, operator.outputs)
    sizes, groups = known[key]
    prices = [np.broadcast_to(np.ravel(t.weight), size) for t, size in zip(terms, sizes, strict=True)]
    return np.asarray(np.concatenate(prices)[groups], dtype=np.float64)


def _groups(block: VariableBlock, terms: list[PenaltyTerm], outputs: int) -> tuple[list[int], Indices]:
    """How many groups each term has, and the groups (1 or c, P) of every gate among those of all terms."""
    sizes: list[int] = []
    labels = np.zeros(block.shape, dtype=np.intp)  # the label 0 is that of no group
    for term in terms:
        own = _labels(term, block.shape)
        if own is None or np.any((labels > 0) & (own > 0)):
            raise _no_group_norm(terms, block)
        labels = labels + np.where(own > 0, own + sum(sizes), 0)
        sizes.append(int(own.max()))
    c, P = outputs, block.shape[1]
    stacked = labels.reshape(c, -1, P)
    per_output = stacked[:, 0, :]
    if np.all(labels > 0) and np.all(stacked == per_output[:, None, :]):
        if np.unique(per_output).size == c * P:
            return sizes, per_output - 1
        if np.unique(per_output).size == P and np.all(per_output == per_output[0]):
            return sizes, per_output[:1] - 1
    raise _no_group_norm(terms, block)


def _no_group_norm(terms: list[PenaltyTerm], block: VariableBlock) -> UnsupportedProblem:
    text = " + ".join(term.text for term in terms)
    return refusal(f"{text} is not a group norm per gate, or per gate and output, of {block.name}")


def _labels(term: PenaltyTerm, shape: tuple[int, ...]) -> Indices | None:
    """The number of each entry's group from 1 on, in the shape of the variable, 0 where the penalty does not
    reach; None for other penalties."""
    # Absolute values are the norms of groups of one entry, as where there is one feature.
    if not isinstance(term.penalty, GroupNorm | AbsoluteValue):
        return None
    view = np.asarray(term.view(np.zeros(shape)))
    return np.asarray(term.unview(term.penalty.groups(view.shape) + 1.0), dtype=np.intp)
