"""What a gated structure owes to the affine map and the constraints alone: read once per compiled problem."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from convexnn_solvers.backends import Float64Array
from convexnn_solvers.composite import Composite
from convexnn_solvers.gated_programs.maps import GatedMap, refusal
from convexnn_solvers.gated_programs.probe import GatedProbe
from convexnn_solvers.kept import Kept


@dataclass(frozen=True, eq=False)
class GatedReading:
    """The loss's argument is ``mirror o (ratios * gated maps of the weights + offset) + shift``.

    ``weights``: positions of the weight variables, sign by sign and map by map; ``offset``: position and
    factor of the free output bias; ``mirror``, ``shift``: (n, c). ``cones``: whether the weights lie in
    their pattern cones. ``kept``: one per output, see :class:`~program.GatedProgram`.
    """

    weights: list[int]
    ratios: Float64Array
    mirror: Float64Array
    offset: tuple[int, float] | None
    shift: Float64Array
    cones: bool
    kept: tuple[Kept, ...]


def gated_reading(composite: Composite, maps: tuple[GatedMap, ...], penalised: list[int]) -> GatedReading:
    """The loss's linear map, compared with the gated maps; ``penalised``: positions of the weights."""
    if "gated reading" not in composite.kept:
        composite.kept["gated reading"] = _read(composite, maps, penalised)
    found: GatedReading = composite.kept["gated reading"]
    return found


def _read(composite: Composite, maps: tuple[GatedMap, ...], penalised: list[int]) -> GatedReading:
    operator, count = maps[0], len(maps)
    others = [i for i in range(len(composite.variables)) if i not in penalised]
    probe, kept = GatedProbe(composite, maps), Kept()
    mirror = probe.mirror(penalised, others)
    factors = [probe.weight_factor(position, mirror) for position in penalised]
    weights, ratios = _ordered(penalised, factors, count)
    offsets = [(position, probe.offset_factor(position, mirror)) for position in others]
    if len(offsets) > 1:
        raise refusal("there is more than one free variable")
    if composite.constraints and count > 1:
        raise refusal("several gated predictions have pattern cones", "AugmentedLagrangian()")
    return GatedReading(
        weights,
        ratios,
        mirror,
        offsets[0] if offsets else None,
        probe.shift,
        _has_cones(composite, weights, operator),
        tuple(kept.output(k) for k in range(operator.outputs)),
    )


def _ordered(
    positions: list[int], entries: list[tuple[float, int]], count: int
) -> tuple[list[int], Float64Array]:
    """Weight variables and their factors, sign by sign and map by map; all maps must have the same signs."""
    of_map: list[list[tuple[int, float]]] = [[] for _ in range(count)]
    for position, (factor, cell) in zip(positions, entries, strict=True):
        of_map[cell].append((position, factor))
    if count > 1:
        of_map = [sorted(own, key=lambda pair: -pair[1]) for own in of_map]
    if len({tuple(np.sign(factor) for _, factor in own) for own in of_map}) > 1:
        raise refusal("the gated predictions do not have weight variables of the same signs")
    ordered = [own[k] for k in range(len(of_map[0])) for own in of_map]
    return [position for position, _ in ordered], np.array([factor for _, factor in ordered])


def _has_cones(composite: Composite, weights: list[int], operator: GatedMap) -> bool:
    """Whether every weight variable lies in the cones of its gates; nothing else may be constrained."""
    coned: list[int] = []
    for constraint in composite.constraints:
        cone = constraint.pattern_cone
        if cone is None:
            raise refusal(f"the constraint {constraint.text} is no pattern cone", "AugmentedLagrangian()")
        same = np.array_equal(cone.X, operator.gates.X) and np.array_equal(cone.patterns, operator.gates.bits)
        if not same or cone.outputs != operator.outputs or cone.variable in coned:
            raise refusal(
                f"the constraint {constraint.text} has patterns of its own", "AugmentedLagrangian()"
            )
        coned.append(cone.variable)
    if coned and sorted(coned) != weights:
        raise refusal("some weights lie in pattern cones and others do not", "AugmentedLagrangian()")
    return bool(coned)
