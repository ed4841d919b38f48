"""From a ``cp.Problem`` to the composite form, reading the expressions and never canonicalising them.

The affine head of the objective is a tape of its own, whose leaves are the variables, the convex atoms
and the losses' arguments: its adjoint at 1 is the linear term, the weight of every atom and the tilt of
every loss (as in cross-entropy), whatever Parameters stand in between. Compiling looks at the structure
only; :meth:`Compiled.composite` puts in the values of now.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import cvxpy as cp
import numpy as np
from numpy.typing import NDArray

from convexnn_solvers.backends import Array, Backend, Float64Array
from convexnn_solvers.composite import Composite, ConstraintTerm, LossTerm, PenaltyTerm, VariableBlock
from convexnn_solvers.functions.tilted import Tilted
from convexnn_solvers.reading.affine import Tape, TapeMap, shortened
from convexnn_solvers.reading.affine import UnsupportedProblem as UnsupportedProblem
from convexnn_solvers.reading.atoms import gated, pattern_slack
from convexnn_solvers.reading.constraints import read_constraints
from convexnn_solvers.reading.convex_constraints import WeightedNorm
from convexnn_solvers.reading.loading import Loader
from convexnn_solvers.reading.operators import MemoryPlan
from convexnn_solvers.reading.penalty_layout import ProximalPenalty, arranged
from convexnn_solvers.reading.terms import LossReading, PenaltyReading, convex_atoms, read_atom
from convexnn_solvers.reading.variables import implied_constraints, read_variable


@dataclass(frozen=True)
class _Penalty:
    """A penalty with the position of its variable and its view as array functions.

    ``atoms`` are the positions of its readings' weights among those of all penalties' atoms.
    """

    layout: ProximalPenalty
    atoms: tuple[int, ...]
    variable: int
    view: Any
    unview: Any


@dataclass(frozen=True)
class Compiled:
    """A problem whose structure was read once, for one backend."""

    backend: Backend
    sign: float
    scope: str
    _variables: tuple[Any, ...]
    _losses: tuple[LossReading, ...]
    _penalties: tuple[_Penalty, ...]
    _tilted: tuple[int, ...]
    _constraints: tuple[ConstraintTerm, ...]
    _affine: Tape
    _head: Tape
    _head_shape: tuple[int, ...]
    _kept: dict[str, Any] = field(default_factory=dict, compare=False)

    def composite(self) -> Composite:
        """The problem with the Parameter values of now; nothing is compiled again.

        Raises ValueError for a Parameter without value, NaN or infinite data, or a negative weight.
        """
        head = self._head.with_values()
        offset = head.offsets[0]
        one = self.backend.asarray(np.full(self._head_shape, self.sign))
        pulled = head.adjoint((one,))
        atoms = sum(len(penalty.atoms) for penalty in self._penalties)
        ends = np.cumsum([len(self._variables), len(self._losses), atoms])
        linear, weights, scales, tilts = (pulled[a:b] for a, b in itertools.pairwise([0, *ends, None]))
        of_argument = dict(zip(self._tilted, tilts, strict=True))
        return Composite(
            backend=self.backend,
            variables=tuple(self._variable(variable) for variable in self._variables),
            affine=self._map(),
            losses=tuple(
                self._loss(k, reading, weight, of_argument.get(k))
                for k, (reading, weight) in enumerate(zip(self._losses, weights, strict=True))
            ),
            penalties=tuple(_weighed(penalty, scales, self.backend) for penalty in self._penalties),
            constraints=self._constraints,
            linear=linear,
            constant=0.0 if offset is None else self.sign * float(self.backend.to_numpy(offset).item()),
            sign=self.sign,
            scope=self.scope,
            kept={} if self._affine.is_parametric else self._kept,
        )

    def _map(self) -> TapeMap:
        """The affine map, which stays the same one if no Parameter enters it."""
        if self._affine.is_parametric:
            return self._affine.with_values()
        if "map" not in self._kept:
            self._kept["map"] = self._affine.with_values()
        known: TapeMap = self._kept["map"]
        return known

    def _variable(self, variable: Any) -> VariableBlock:
        """A variable, which stays the same object unless its bounds may change."""
        if variable.attributes["bounds"] is not None:
            return read_variable(variable)
        known: dict[int, VariableBlock] = self._kept.setdefault("variables", {})
        if variable.id not in known:
            known[variable.id] = read_variable(variable)
        return known[variable.id]

    def _loss(self, number: int, reading: LossReading, weight: Array, tilt: Array | None) -> LossTerm:
        """A loss, which stays the same object while its weight does: what follows from it may be kept."""
        weights = reading.sign * self.backend.to_numpy(weight)
        tilted = tilt is not None and bool(self.backend.xp.any(tilt != 0.0))
        lasting = reading.fixed and not tilted
        known: dict[int, tuple[Float64Array, LossTerm]] = self._kept.setdefault("losses", {})
        if lasting and number in known and np.array_equal(known[number][0], weights):
            return known[number][1]
        loss, entries = reading.make(_checked_weight(weights, reading.atom))
        term = LossTerm(Tilted(loss, tilt) if tilted else loss, self.backend.asarray(entries), reading.text)
        if lasting:
            known[number] = weights, term
        return term


def compile_problem(problem: cp.Problem, backend: Backend, plan: MemoryPlan | None = None) -> Compiled:
    """Read a problem for one backend; ``plan`` says what its operators may spend on speed.

    Raises ``cp.DCPError`` when the problem does not follow the DCP rules, and :class:`UnsupportedProblem`
    (a ``cp.SolverError``), naming the part and a solver that can take it, when it is beyond this form.
    """
    _check_discipline(problem)
    objective: Any = problem.objective.args[0]
    variables: tuple[Any, ...] = tuple(problem.variables())
    for variable in variables:
        read_variable(variable)
    readings = [read_atom(atom) for atom in convex_atoms(objective)]
    constraints, outputs, bounded, budgets = read_constraints(
        [*problem.constraints, *implied_constraints(variables)], variables
    )
    in_cones = {variables[c.pattern_cone.variable].id for c in constraints if c.pattern_cone is not None}
    norms = [reading for reading in readings if isinstance(reading, PenaltyReading)]
    layouts, split = arranged(norms, in_cones)
    losses = (*(reading for reading in readings if isinstance(reading, LossReading)), *split)
    loader = Loader(backend, plan)
    constraints = _with_budgets(constraints, budgets, norms, in_cones, variables, loader)
    affine = Tape(loader, variables)
    for loss in losses:
        affine.add_output(loss.argument)
    for atom in bounded:
        affine.count_as_zero(atom)
    for output in outputs:
        affine.add_output(output)
    # One argument per group of losses that share it; a bare variable has its linear term already.
    arguments = {id(r.argument): k for k, r in reversed(list(enumerate(losses)))}
    tilted = tuple(k for k in sorted(arguments.values()) if not _is_leaf(losses[k].argument))
    penalised = [reading.atom for layout in layouts for reading in layout.readings]
    atoms = [*(r.atom for r in losses), *penalised]
    head = Tape(loader, [*variables, *atoms, *(losses[k].argument for k in tilted)])
    head.add_output(objective)
    return Compiled(
        backend=backend,
        sign=1.0 if isinstance(problem.objective, cp.Minimize) else -1.0,
        scope=_scope(problem),
        _variables=variables,
        _losses=losses,
        _penalties=tuple(_with_views(layouts, variables, loader)),
        _tilted=tilted,
        _constraints=constraints,
        _affine=affine,
        _head=head,
        _head_shape=objective.shape,
    )


def _check_discipline(problem: cp.Problem) -> None:
    if not problem.is_dcp():
        raise cp.DCPError(f"Problem does not follow DCP rules: {_first_violation(problem)}.")
    if problem.is_mixed_integer():
        variables: list[Any] = problem.variables()
        kinds = ("boolean", "integer")
        names = ", ".join(v.name() for v in variables if any(v.attributes[kind] for kind in kinds))
        raise UnsupportedProblem(
            f"the problem is mixed-integer ({names}); solve with a mixed-integer solver such as cp.HIGHS."
        )


def _first_violation(problem: cp.Problem) -> str:
    objective: Any = problem.objective
    if not objective.is_dcp():
        wanted = "convex" if isinstance(objective, cp.Minimize) else "concave"
        return f"the objective is not {wanted}: {shortened(objective.args[0])}"
    broken: list[Any] = [constraint for constraint in problem.constraints if not constraint.is_dcp()]
    return f"the constraint {shortened(broken[0])}"


def _with_views(
    layouts: Sequence[ProximalPenalty], variables: tuple[Any, ...], loader: Loader
) -> Iterator[_Penalty]:
    atoms = itertools.count()
    for layout in layouts:
        variable = layout.readings[0].variable
        position = next(k for k, other in enumerate(variables) if other is variable)
        numbers = tuple(next(atoms) for _ in layout.readings)
        yield _Penalty(layout, numbers, position, *_views(layout.positions, variable, loader))


def _weighed(penalty: _Penalty, scales: Sequence[Array], backend: Backend) -> PenaltyTerm:
    """A penalty with the weights of its atoms, among those of all."""
    layout = penalty.layout
    checked = [
        _checked_weight(backend.to_numpy(scales[k]), reading.atom)
        for k, reading in zip(penalty.atoms, layout.readings, strict=True)
    ]
    groups = checked[0] if len(checked) == 1 and checked[0].ndim == 0 else layout.weigh(checked)
    return PenaltyTerm(
        layout.penalty,
        backend.asarray(groups),
        penalty.variable,
        penalty.view,
        penalty.unview,
        layout.readings[0].text,
    )


def _with_budgets(
    constraints: tuple[ConstraintTerm, ...],
    budgets: Mapping[int, Sequence[WeightedNorm]],
    penalised: Sequence[PenaltyReading],
    in_cones: Collection[int],
    variables: tuple[Any, ...],
    loader: Loader,
) -> tuple[ConstraintTerm, ...]:
    """The constraints, of which those that bound norms of variables by a number hold these as penalties.

    Unless they bound a variable that has a penalty or another budget too, or that is split from its penalty.
    """
    terms = list(constraints)
    owners = [{reading.variable.id for reading, _ in norms} for norms in budgets.values()]
    taken = Counter([*(r.variable.id for r in penalised), *itertools.chain(*owners)])
    for (position, norms), own in zip(budgets.items(), owners, strict=True):
        weights = {id(reading): weight for reading, weight in norms}
        layouts, split = arranged([reading for reading, _ in norms], in_cones)
        if split or any(taken[variable] > 1 for variable in own):
            continue
        scales = [weights[id(reading)] for layout in layouts for reading in layout.readings]
        found = _with_views(layouts, variables, loader)
        budget = tuple(
            _weighed(p, [loader.backend.asarray(s) for s in scales], loader.backend) for p in found
        )
        terms[position] = replace(terms[position], budget=budget)
    return tuple(terms)


def _views(positions: NDArray[np.int64], variable: Any, loader: Loader) -> tuple[Any, Any]:
    """Taking the entries at ``positions``, and putting them back among zeros."""
    size, shape = variable.size, variable.shape
    if positions.shape == shape and np.array_equal(positions.ravel(), np.arange(size)):
        return _same, _same
    if np.array_equal(positions.ravel(), np.arange(size)):
        return lambda x: loader.xp.reshape(x, positions.shape), lambda y: loader.xp.reshape(y, shape)
    places = loader.positions(positions.ravel())

    def put_back(y: Array) -> Array:
        entries = loader.backend.zeros((size,))
        entries[places] = loader.xp.reshape(y, (-1,))
        return loader.xp.reshape(entries, shape)

    return lambda x: loader.xp.reshape(loader.xp.reshape(x, (-1,))[places], positions.shape), put_back


def _is_leaf(expr: Any) -> bool:
    return isinstance(expr, cp.Variable) or bool(expr.is_constant())


def _same(x: Array) -> Array:
    return x


def _checked_weight(weight: Float64Array, atom: Any) -> Float64Array:
    """The weight of a term as one number if it is the same everywhere. Rounding below zero is cut off."""
    low, high = (float(weight.min()), float(weight.max())) if weight.size else (0.0, 0.0)
    if low < -1e-12 * max(high, 0.0) or (low < 0.0 and high <= 0.0):
        raise ValueError(
            f"{shortened(atom)} has the negative weight {low}; weights of losses and penalties must be >= 0."
        )
    if low == high:
        return np.asarray(max(low, 0.0))
    return np.clip(weight, 0.0, None)


def _scope(problem: cp.Problem) -> str:
    """For which gates a bound holds, as the gated atoms of the problem say."""
    found: dict[str, None] = {}
    for atom in subexpressions(problem):
        if isinstance(atom, gated):
            found[atom.scope or f"for the {atom.patterns.shape[1]} given gates"] = None
    return "; ".join(found)


def features_of(problem: cp.Problem) -> list[Float64Array]:
    """The features that the atoms of a problem hold by reference, each array once; CVXPY copies constants."""
    held = {id(a.X): a.X for a in subexpressions(problem) if isinstance(a, gated | pattern_slack)}
    return list(held.values())


def subexpressions(problem: cp.Problem) -> list[Any]:
    """Every node of the problem's expressions, each once."""
    constraints: list[Any] = problem.constraints
    pending: list[Any] = [*(arg for c in constraints[::-1] for arg in c.args), problem.objective.args[0]]
    seen: dict[int, Any] = {}
    while pending:
        expr = pending.pop()
        if id(expr) not in seen:
            seen[id(expr)] = expr
            pending.extend(expr.args)
    return list(seen.values())
