"""A CVXPY affine expression DAG as a tape: forward and adjoint products without any matrix.

The tape reads *expressions*, before CVXPY canonicalises them; what a subexpression is worth is computed
once however many terms use it. Constants are brought to the backend once, Parameters (and whatever
depends on them alone) at every :meth:`Tape.with_values`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import cvxpy as cp
import numpy as np

from convexnn_solvers.affine_products import PRODUCTS
from convexnn_solvers.affine_rules import MOVES, Coefficient, Rule
from convexnn_solvers.backends import Array, Backend
from convexnn_solvers.composite import Point
from convexnn_solvers.loading import Loader, is_sparse


class UnsupportedProblem(cp.SolverError):  # type: ignore[misc]
    """The problem has a part that the matrix-free solvers cannot take; the message says what to do."""


@dataclass(frozen=True)
class _Slot:
    """A constant of the tape, and whether Parameters can change it."""

    coefficient: Coefficient
    parametric: bool


@dataclass(frozen=True)
class _Node:
    """One step: a rule applied to earlier nodes, or (without a rule) the additive constant of a slot."""

    inputs: tuple[int, ...]
    rule: Rule | None
    slot: int | None


@dataclass(frozen=True)
class _Program:
    """The fixed part of a tape; node k < len(shapes) is variable k."""

    backend: Backend
    shapes: tuple[tuple[int, ...], ...]
    output_shapes: tuple[tuple[int, ...], ...]
    nodes: tuple[_Node, ...]
    outputs: tuple[int, ...]
    last_use: tuple[int, ...]


@dataclass(frozen=True)
class TapeMap:
    """An :class:`~convexnn_solvers.composite.AffineMap` with the constants of one moment."""

    program: _Program
    constants: tuple[Any, ...]
    offsets: tuple[Array | None, ...]

    def forward(self, x: Point) -> Point:
        """``A x + b`` for every output."""
        images = zip(self.linear(x), self.offsets, strict=True)
        return tuple(image if offset is None else image + offset for image, offset in images)

    def linear(self, x: Point) -> Point:
        """``A x`` for every output."""
        return _finished(self.program, _run(self.program, self.constants, list(x), additive=False))

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


@dataclass
class Tape:
    """Grows while expressions are added; :meth:`with_values` freezes a map of what was added so far.

    ``variables`` are the leaves: CVXPY variables, or any expressions that are to be treated as such.
    Tapes with one loader share what it loaded.
    """

    loader: Loader
    variables: Sequence[Any]
    _known: dict[int, int] = field(init=False)
    _nodes: list[_Node] = field(init=False, default_factory=list)
    _slots: list[_Slot] = field(init=False, default_factory=list)
    _outputs: list[tuple[int, tuple[int, ...]]] = field(init=False, default_factory=list)
    _kept: list[Any] = field(init=False, default_factory=list)
    _loaded: dict[Any, tuple[Any, Any]] = field(init=False, default_factory=dict)
    _fixed: dict[int, Any] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._known = {id(variable): k for k, variable in enumerate(self.variables)}

    def add_output(self, expr: Any) -> int:
        """Make an affine expression an output; returns its number. Raises UnsupportedProblem."""
        self._outputs.append((self._add(expr), expr.shape))
        return len(self._outputs) - 1

    def count_as_zero(self, expr: Any) -> None:
        """Let a subexpression be zero wherever it occurs in what is added from now on."""
        self._known[id(expr)] = self._add_constant(cp.Constant(np.zeros(expr.shape)))
        self._kept.append(expr)

    @property
    def is_parametric(self) -> bool:
        """Whether a Parameter enters the map."""
        return any(slot.parametric for slot in self._slots)

    @property
    def has_parametric_factors(self) -> bool:
        """Whether the linear part, not only the offset, depends on Parameters."""
        factors = (node.slot for node in self._nodes if node.rule is not None and node.slot is not None)
        return any(self._slots[slot].parametric for slot in factors)

    def with_values(self) -> TapeMap:
        """The map of all outputs with the Parameter values of now.

        Raises ValueError when a Parameter has no value or data are NaN or infinite.
        """
        constants = tuple(self._value_of(k, slot) for k, slot in enumerate(self._slots))
        program = self._program()
        values = _run(program, constants, [None] * len(program.shapes), additive=True)
        offsets = tuple(
            None if values[k] is None else self.loader.xp.reshape(values[k], shape)
            for k, shape in zip(program.outputs, program.output_shapes, strict=True)
        )
        return TapeMap(program, constants, offsets)

    def _add(self, expr: Any) -> int:
        if id(expr) not in self._known:
            number = self._add_constant(expr) if expr.is_constant() else self._add_atom(expr)
            self._known[id(expr)] = number
            self._kept.append(expr)  # a collected expression's id could be taken by another
        return self._known[id(expr)]

    def _add_constant(self, expr: Any) -> int:
        slot = self._add_slot(Coefficient(expr, self.loader.dense))
        return self._push(_Node((), None, slot))

    def _add_atom(self, expr: Any) -> int:
        if isinstance(expr, cp.Variable):
            raise UnsupportedProblem(f"variable {expr.name()} does not belong to this problem.")
        rule = rule_for(expr, self.loader)
        if rule is None:
            raise UnsupportedProblem(_no_rule(expr))
        inputs = tuple(self._add(argument) for argument in rule.inputs)
        slot = None if rule.coefficient is None else self._add_slot(rule.coefficient)
        return self._push(_Node(inputs, rule, slot))

    def _push(self, node: _Node) -> int:
        self._nodes.append(node)
        return len(self.variables) + len(self._nodes) - 1

    def _add_slot(self, coefficient: Coefficient) -> int:
        self._slots.append(_Slot(coefficient, bool(coefficient.expr.parameters())))
        return len(self._slots) - 1

    def _value_of(self, number: int, slot: _Slot) -> Any:
        """A constant on the backend; one array in memory however many expressions hold it."""
        if number in self._fixed:
            return self._fixed[number]
        value, load = value_of(slot.coefficient.expr), slot.coefficient.load
        if slot.parametric:
            return load(value)
        key = (id(value), load)
        if key not in self._loaded:
            self._loaded[key] = (value, load(value))
        self._fixed[number] = self._loaded[key][1]
        return self._fixed[number]

    def _program(self) -> _Program:
        count = len(self.variables)
        outputs = tuple(number for number, _ in self._outputs)
        return _Program(
            self.loader.backend,
            tuple(variable.shape for variable in self.variables),
            tuple(shape for _, shape in self._outputs),
            tuple(self._nodes),
            outputs,
            _last_uses(count, self._nodes, outputs),
        )


def _last_uses(variables: int, nodes: Sequence[_Node], outputs: Sequence[int]) -> tuple[int, ...]:
    """The last node that reads each node; one past the end for outputs."""
    last_use = list(range(variables + len(nodes)))
    for k, node in enumerate(nodes):
        for source in node.inputs:
            last_use[source] = variables + k
    for number in outputs:
        last_use[number] = len(last_use)
    return tuple(last_use)


def _pruned(program: _Program, chosen: Sequence[int]) -> _Program:
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
        _Node(tuple(renumbered[i] for i in node.inputs), node.rule, node.slot)
        for node in (program.nodes[number - count] for number in kept)
    )
    new_outputs = tuple(renumbered[number] for number in outputs)
    return _Program(
        program.backend,
        program.shapes,
        tuple(program.output_shapes[k] for k in chosen),
        nodes,
        new_outputs,
        _last_uses(count, nodes, new_outputs),
    )


_RULES = {**MOVES, **PRODUCTS}


def rule_for(expr: Any, loader: Loader) -> Rule | None:
    """The rule of an affine atom with at least one variable inside; None for an unknown atom."""
    for kind in type(expr).__mro__:
        if kind in _RULES:
            return _RULES[kind](expr, loader)
    return None


def value_of(expr: Any) -> Any:
    """The finite value of a constant expression, or a ValueError in one sentence."""
    for parameter in expr.parameters():
        if parameter.value is None:
            raise ValueError(
                f"Parameter {parameter.name()} has no value; set {parameter.name()}.value first."
            )
    value = expr.value
    entries = value.data if is_sparse(value) else value
    if not np.isfinite(entries).all():
        names = ", ".join(parameter.name() for parameter in expr.parameters())
        where = f"the value of Parameter {names}" if names else "the data"
        raise ValueError(f"{where} of the problem contains NaN or infinite entries: {shortened(expr)}.")
    return value


def _run(
    program: _Program, constants: tuple[Any, ...], x: list[Array | None], additive: bool
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


def _finished(program: _Program, values: list[Array | None]) -> Point:
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


def _is_view(program: _Program, number: int) -> bool:
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


def _no_rule(expr: Any) -> str:
    kind = type(expr).__name__
    if expr.is_affine():
        return f"the affine atom {kind} has no matrix-free form; solve with cp.CLARABEL instead."
    return (
        f"{kind} stands where only affine expressions can: {shortened(expr)}; "
        "move it into a constraint, or solve with cp.CLARABEL."
    )


def shortened(expr: Any, length: int = 80) -> str:
    """A one-line text of an expression for messages."""
    with np.printoptions(threshold=8, edgeitems=1):  # printing data in full takes longer than compiling
        text = " ".join(str(expr).split())
    return text if len(text) <= length else text[: length - 3] + "..."
