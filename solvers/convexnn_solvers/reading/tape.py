"""Running a tape: forward and adjoint products of an affine map, node by node, without any matrix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from convexnn_solvers.backends import Array, Backend
from convexnn_solvers.composite import Point
from convexnn_solvers.reading.affine_rules import Rule


@dataclass(frozen=True)
class Node:
    """One step: a rule applied to earlier nodes, or (without a rule) the additive constant of a slot."""

    inputs: tuple[int, ...]
    rule: Rule | None
    slot: int | None


@dataclass(frozen=True)
class TapeProgram:
    """The fixed part of a tape; node k < len(shapes) is variable k."""

    backend: Backend
    shapes: tuple[tuple[int, ...], ...]
    output_shapes: tuple[tuple[int, ...], ...]
    nodes: tuple[Node, ...]
    outputs: tuple[int, ...]
    last_use: tuple[int, ...]


@dataclass(frozen=True)
class TapeMap:
    """An :class:`~composite.AffineMap` with the constants of one moment."""

    program: TapeProgram
    constants: tuple[Any, ...]
    offsets: tuple[Array | None, ...]

    def forward(self, x: Point) -> Point:
        """``A x + b`` for every output."""
        images = zip(self.linear(x), self.offsets, strict=True)
        return tuple(image if offset is None else image + offset for image, offset in images)

    def linear(self, x: Point) -> Point:
        """``A x`` for every output."""
        return _finished(self.program, run(self.program, self.constants, list(x), additive=False))

    def adjoint(self, cotangents: tuple[Array | None, ...]) -> Point:
        """``A^T`` applied to one cotangent per output; one array per variable."""
        program = self.program
        count = len(program.shapes) + len(program.nodes)
        sums: list[Array | None] = [None] * count
        fresh = [False] * count  # whether the array is ours alone, not a view of a cotangent
        for output, cotangent in zip(program.outputs, cotangents, strict=True):
            if cotangent is not None:
                _accumulate(sums, fresh, output, cotangent, owned=False)
        for number in range(count - 1, len(program.shapes) - 1, -1):
            node, g = program.nodes[number - len(program.shapes)], sums[number]
            if node.rule is None or g is None:
                continue
            sums[number] = None
            constant = None if node.slot is None else self.constants[node.slot]
            for source, part in zip(node.inputs, node.rule.adjoint(constant, g), strict=True):
                _accumulate(sums, fresh, source, part, owned=not node.rule.view)
        return tuple(
            _owned(sums[k], fresh[k], program.backend, shape) for k, shape in enumerate(program.shapes)
        )

    @property
    def operators(self) -> tuple[Any, ...]:
        """The operators of rules that have one, in the order of the tape."""
        rules = (node.rule for node in self.program.nodes)
        return tuple(rule.operator for rule in rules if rule is not None and rule.operator is not None)

    def select(self, outputs: Sequence[int]) -> TapeMap:
        """The map of some outputs only, without the steps that the others need."""
        offsets = tuple(self.offsets[k] for k in outputs)
        return TapeMap(_pruned(self.program, outputs), self.constants, offsets)


def run(
    program: TapeProgram, constants: tuple[Any, ...], x: list[Array | None], additive: bool
) -> list[Array | None]:
    """The value of every output node (None: zero); the others are dropped after their last use."""
    values: list[Array | None] = [*x, *([None] * len(program.nodes))]
    for number, node in enumerate(program.nodes, start=len(x)):
        if node.rule is None:
            assert node.slot is not None
            values[number] = constants[node.slot] if additive else None
            continue
        arguments = [values[source] for source in node.inputs]
        if any(argument is not None for argument in arguments):
            constant = None if node.slot is None else constants[node.slot]
            values[number] = node.rule.forward(constant, arguments)
        for source in node.inputs:
            if program.last_use[source] == number:
                values[source] = None
    return values


def _finished(program: TapeProgram, values: list[Array | None]) -> Point:
    """The outputs in their shapes, each in memory of its own."""
    result = []
    for number, shape in zip(program.outputs, program.output_shapes, strict=True):
        value = values[number]
        if value is None:
            result.append(program.backend.zeros(shape))
            continue
        shared = program.outputs.count(number) > 1 or _is_view(program, number)
        result.append(program.backend.xp.reshape(1.0 * value if shared else value, shape))
    return tuple(result)


def _is_view(program: TapeProgram, number: int) -> bool:
    """Whether a node's value may share memory with a variable or with another node."""
    k = number - len(program.shapes)
    if k < 0:
        return True
    rule = program.nodes[k].rule
    return rule is None or rule.view


def _accumulate(sums: list[Array | None], fresh: list[bool], number: int, part: Array, owned: bool) -> None:
    before = sums[number]
    sums[number] = part if before is None else before + part
    fresh[number] = owned or before is not None


def _owned(value: Array | None, fresh: bool, backend: Backend, shape: tuple[int, ...]) -> Array:
    if value is None:
        return backend.zeros(shape)
    return value if fresh else 1.0 * value


def last_uses(variables: int, nodes: Sequence[Node], outputs: Sequence[int]) -> tuple[int, ...]:
    """The last node that reads each node; one past the end for outputs."""
    last_use = list(range(variables + len(nodes)))
    for k, node in enumerate(nodes):
        for source in node.inputs:
            last_use[source] = variables + k
    for number in outputs:
        last_use[number] = len(last_use)
    return tuple(last_use)


def _pruned(program: TapeProgram, chosen: Sequence[int]) -> TapeProgram:
    """The program of some outputs, renumbered."""
    count = len(program.shapes)
    outputs = [program.outputs[k] for k in chosen]
    needed = set(outputs)
    for number in range(count + len(program.nodes) - 1, count - 1, -1):
        if number in needed:
            needed.update(program.nodes[number - count].inputs)
    kept = [number for number in range(count, count + len(program.nodes)) if number in needed]
    renumbered = {old: old for old in range(count)} | {old: count + k for k, old in enumerate(kept)}
    nodes = tuple(
        Node(tuple(renumbered[i] for i in node.inputs), node.rule, node.slot)
        for node in (program.nodes[number - count] for number in kept)
    )
    new_outputs = tuple(renumbered[number] for number in outputs)
    return TapeProgram(
        program.backend,
        program.shapes,
        tuple(program.output_shapes[k] for k in chosen),
        nodes,
        new_outputs,
        last_uses(count, nodes, new_outputs),
    )
