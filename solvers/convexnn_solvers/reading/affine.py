"""Reading a DAG of affine CVXPY expressions as a tape, which gives products without any matrix.

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

from convexnn_solvers.reading.affine_products import PRODUCTS
from convexnn_solvers.reading.affine_rules import MOVES, Coefficient, Rule
from convexnn_solvers.reading.loading import Loader, is_sparse
from convexnn_solvers.reading.tape import Node, TapeProgram, last_uses, run
from convexnn_solvers.reading.tape import TapeMap as TapeMap


class UnsupportedProblem(cp.SolverError):  # type: ignore[misc]
    """The problem has a part that the matrix-free solvers cannot take; the message says what to do."""


@dataclass(frozen=True)
class _Slot:
    """A constant of the tape, and whether Parameters can change it."""

    coefficient: Coefficient
    parametric: bool


@dataclass
class Tape:
    """Grows while expressions are added; :meth:`with_values` freezes a map of what was added so far.

    ``variables`` are the leaves: CVXPY variables, or any expressions that are to be treated as such.
    Tapes with one loader share what it loaded.
    """

    loader: Loader
    variables: Sequence[Any]
    _known: dict[int, int] = field(init=False)
    _nodes: list[Node] = field(init=False, default_factory=list)
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
        values = run(program, constants, [None] * len(program.shapes), additive=True)
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
        return self._push(Node((), None, slot))

    def _add_atom(self, expr: Any) -> int:
        if isinstance(expr, cp.Variable):
            raise UnsupportedProblem(f"variable {expr.name()} does not belong to this problem.")
        rule = rule_for(expr, self.loader)
        if rule is None:
            raise UnsupportedProblem(_no_rule(expr))
        inputs = tuple(self._add(argument) for argument in rule.inputs)
        slot = None if rule.coefficient is None else self._add_slot(rule.coefficient)
        return self._push(Node(inputs, rule, slot))

    def _push(self, node: Node) -> int:
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

    def _program(self) -> TapeProgram:
        count = len(self.variables)
        outputs = tuple(number for number, _ in self._outputs)
        return TapeProgram(
            self.loader.backend,
            tuple(variable.shape for variable in self.variables),
            tuple(shape for _, shape in self._outputs),
            tuple(self._nodes),
            outputs,
            last_uses(count, self._nodes, outputs),
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
        text = " ".join(str(expr).split()).replace("Approx(", "(")  # CVXPY's name of a norm that may be one
    return text if len(text) <= length else text[: length - 3] + "..."
