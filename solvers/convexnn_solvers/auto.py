"""Which engine for which problem, and what to try when one stalls."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial

import numpy as np

from convexnn_solvers.admm.method import admm_method
from convexnn_solvers.backends import Float64Array
from convexnn_solvers.block_descent.method import block_descent_method
from convexnn_solvers.certify.budgets import budgets_of
from convexnn_solvers.composite import Composite, DualPoint
from convexnn_solvers.first_order.cone_descent import constrained_method
from convexnn_solvers.first_order.gate_descent import gradient_method
from convexnn_solvers.first_order.rfista import nonsmooth_losses
from convexnn_solvers.gated_programs.fits import SquaredFit
from convexnn_solvers.gated_programs.maps import gated_maps
from convexnn_solvers.gated_programs.program import GatedProgram
from convexnn_solvers.gated_programs.structure import GatedStructure, gated_structure
from convexnn_solvers.interior_point.method import can_take, interior_point_method
from convexnn_solvers.loop.budget_search import BudgetSearch
from convexnn_solvers.loop.relay import Engine
from convexnn_solvers.method_memory import check_descent, check_first_order, check_interior, check_newton
from convexnn_solvers.newton.method import semismooth_newton_method
from convexnn_solvers.options import Options
from convexnn_solvers.reading.compiler import UnsupportedProblem
from convexnn_solvers.splitting.method import method_beside

# The largest Gram matrix of the samples, in bytes, for programs with cones or several outputs. One output
# without cones needs none: at 20 000 samples conjugate gradients were faster than block descent.
_GRAM_BYTES = 2**30
# Features of more bytes stay where they are, perhaps on disk: solvers of gated programs would copy them.
_FEATURE_BYTES = 2**29
# Block descent is for regularisations of at least this share of the largest useful one, and for features that
# a processor's cache holds, measured: below, so many gates interact that Newton's method needs less time, and
# beyond, sweeps wait for memory. One program must also be of data where at most the share ``_FEW_ALIKE`` of
# the gates has ``_ALIKE`` times the largest dual norm when all weights vanish: where many gates explain the
# targets about as well, many become active. After so many sweeps, of each program, it was a wrong guess.
_LARGE = 0.07
_CACHE_BYTES = 2**23
_ALIKE, _FEW_ALIKE = 0.7, 0.3
_MOST_SWEEPS, _MOST_OF_EACH = 300, 1000
# With one output, from so many samples on, and so many for each feature, R-FISTA was measured to overtake all
# of them at such regularisations: its steps see a few gates only. After so many steps it was a wrong guess.
_MANY, _TALL, _MOST_STEPS = 1500, 20, 1000
# ADMM was measured to overtake Newton's method with several outputs, from so many samples, and from so small
# a share of the largest useful regularisation on, for gaps down to the last number; from ``_RATHER_SMALL`` on
# where the other squared singular values of the features are on average ``_EVEN`` times the largest or more.
_SAMPLES, _SMALL, _TIGHT = 2500, 0.003, 1e-7
_RATHER_SMALL, _EVEN = 0.02, 0.2
# At regularisations of at most these shares of the largest useful one, with cones and without, the number of
# interior-point steps was measured to stay what it is (`tests/test_tiny_regularisation.py` counts them): with
# cones Newton's method takes the more of them the smaller it is, and ADMM does without.
_NEXT_TO_NOTHING_IN_CONES, _NEXT_TO_NOTHING = 1e-4, 1e-10
# Below this share bounds are lost in rounding, whoever tries: dual products have no digits that small.
_HIDDEN = 1e-15
# From this tolerance on ADMM may work in single precision, where a factor takes half of the memory.
_SINGLE = 1e-4
_SMALLEST = float(np.finfo(np.float64).tiny)


def engines(
    composite: Composite, exact: Composite, multipliers: DualPoint, options: Options
) -> Iterator[Engine]:
    """What to run, in this order: what fits a gated program and its regularisation, else first-order.

    ``exact`` is ``composite`` in float64 with NumPy.
    """
    if composite is exact:
        search = _search(exact, multipliers, options)
        if search is not None:
            yield search
    try:
        _check_memory(exact)
        case = _Case(composite, exact, gated_structure(exact), multipliers, options)
        if case.next_to_nothing and (yield from _for_little(case)):
            return
        reason = yield from _for_gates(case)
    except UnsupportedProblem as error:
        reason = str(error)
    beside = method_beside(exact, options.tol, options.memory, multipliers) if composite is exact else None
    if beside is not None:
        yield Engine("SplittingNewton", reason, lambda: beside)
        reason = "SplittingNewton got no further"
    if composite.constraints or nonsmooth_losses(composite):
        check_first_order("AugmentedLagrangian", composite, options.memory)
        method = partial(constrained_method, composite, exact, options.tol, multipliers)
        yield Engine("AugmentedLagrangian", reason, method)
    else:
        check_first_order("RFISTA", composite, options.memory)
        yield Engine("RFISTA", reason, lambda: gradient_method(composite, exact, options.tol))


def _search(exact: Composite, multipliers: DualPoint, options: Options) -> Engine | None:
    """The search for the price of a budget; None without one, or a solver that knows when a price is done."""
    budgets = budgets_of(exact)
    if budgets is None or len(budgets.positions) > 1 or budgets.limits[0] < 0.0:
        return None

    def at(price: float, gap: float, warm: DualPoint) -> Iterator[Engine]:
        priced = budgets.priced([price])
        return engines(priced, priced, warm, replace(options, tol=gap))

    try:
        gated_structure(budgets.unit)
        if not any(engine.make().judges_itself for engine in at(1.0, options.tol, DualPoint(()))):
            return None
    except UnsupportedProblem:
        return None
    reason = "norms are bounded by a number: programs with a price on them, until one spends the bound"
    method = BudgetSearch(budgets, at, options.tol, multipliers)
    return Engine("BudgetSearch", reason, lambda: method)


@dataclass(frozen=True, eq=False)
class _Case:
    """A gated program, and what decides between its engines."""

    composite: Composite
    exact: Composite
    structure: GatedStructure
    multipliers: DualPoint
    options: Options

    @property
    def first(self) -> GatedProgram:
        """The first program; the others have the same features and gates."""
        return self.structure.programs[0]

    @property
    def warm(self) -> bool:
        """Whether an earlier solve left a dual point: Newton's method and ADMM go on from it, others not."""
        return bool(self.multipliers.thetas)

    @cached_property
    def strength(self) -> float | None:
        """The regularisation over that where all weights vanish; None: block descent cannot take it."""
        shares: list[float] = []
        for program in self.structure.programs:
            if program.cones or not isinstance(program.fit, SquaredFit) or program.fit.scales is not None:
                return None
            shares.append(_largest_ratio(program))
        return 1.0 / max([1.0, *shares])

    @cached_property
    def next_to_nothing(self) -> bool:
        """Whether the regularisation is so small that the interior-point method is the one to take."""
        if not (self.at_home and can_take(self.structure)):
            return False
        return 0.0 < self.share <= (_NEXT_TO_NOTHING_IN_CONES if self.first.cones else _NEXT_TO_NOTHING)

    @cached_property
    def share(self) -> float:
        """The smallest regularisation over that where all weights vanish, were there no cones."""
        return min(1.0 / _largest_ratio(program) for program in self.structure.programs)

    @property
    def strength_text(self) -> str:
        """Why few gates are active."""
        share = f"{self.strength:.2g}"
        return f"the regularisation is {share} of that where all weights vanish: few gates are active"

    @property
    def at_home(self) -> bool:
        """Whether the problem is where Newton's method and block descent work."""
        backend = self.composite.backend
        return backend.name == "numpy" and backend.dtype == np.float64

    @cached_property
    def obstacle(self) -> str | None:
        """Why Newton's method cannot work, or would not get a matrix of the samples."""
        if not self.at_home:
            return "SemismoothNewton works in float64 with NumPy on the CPU"
        n, program = self.first.fit.shape[0], self.first
        if 8 * n * n <= _GRAM_BYTES or (program.outputs == 1 and not program.cones):
            return None
        return f"SemismoothNewton would factor a {n} x {n} matrix"

    @property
    def few_active(self) -> bool:
        """Whether the regularisation leaves few gates active, of features that are in memory."""
        held = self.at_home and self.first.stored is None
        return held and self.strength is not None and self.strength >= _LARGE

    @property
    def many_samples(self) -> bool:
        """Whether there is one output and so many samples that first-order steps pay at few active gates."""
        alone = self.first.outputs == len(self.structure.programs) == 1
        n, d = self.first.X.shape
        return alone and n >= max(_MANY, _TALL * d)

    @cached_property
    def for_descent(self) -> bool:
        """Whether block descent is worth a try."""
        cached = self.first.X.nbytes <= _CACHE_BYTES
        return self.few_active and cached and not self.many_samples and _few_gates(self.structure)


def _for_gates(case: _Case) -> Generator[Engine, None, str]:
    """The engines of gated programs; at last, why another one has to be tried.

    Raises UnsupportedProblem where the next one would not fit into memory.
    """
    before = ""
    guess = None if case.warm else _guess(case)
    if guess is not None:
        yield guess
        before = f"{guess.name} made too little progress"
    admm = _admm(case)
    if isinstance(admm, Engine):
        yield replace(admm, reason=before or admm.reason)
        before = "ADMM got no further"
    if case.obstacle is None:
        newton = _newton(case)
        yield replace(newton, reason=before or newton.reason)
        before = "SemismoothNewton got no further"
    if case.for_descent and case.warm:
        yield _descent(case)
    return before or f"{case.obstacle}; {admm}"


def _for_little(case: _Case) -> Generator[Engine, None, bool]:
    """The engines where the regularisation is next to nothing, and nobody after them: first-order steps would
    get nowhere. Whether there is memory for them."""
    try:
        check_interior(case.structure, case.options.memory)
    except UnsupportedProblem:
        return False
    reason = "the regularisation is next to nothing beside that where all weights vanish"
    method = partial(interior_point_method, case.structure, case.options.tol)
    yield Engine("InteriorPoint", reason, method)
    if case.obstacle is None and case.share > _HIDDEN:
        yield replace(_newton(case), reason="InteriorPoint got no further")
    return True


def _guess(case: _Case) -> Engine | None:
    """What is far faster where few gates are active, and is given up after a while where they are not."""
    if case.few_active and case.many_samples:
        check_first_order("RFISTA", case.composite, case.options.memory)
        method = partial(gradient_method, case.composite, case.exact, case.options.tol, _MOST_STEPS)
        name = f"RFISTA ({_MOST_STEPS} steps)"
        return Engine(name, f"{case.strength_text}, and samples are many", method)
    return _descent(case) if case.for_descent else None


def _newton(case: _Case) -> Engine:
    """Newton's method."""
    check_newton(case.structure, case.options.memory)
    newton = semismooth_newton_method(case.structure, case.options.tol, case.multipliers)
    further = ", and it goes on from the last dual point" if case.warm else ""
    reason = f"the problem is a gated program of a size that Newton's method can take{further}"
    return Engine("SemismoothNewton", reason, lambda: newton)


def _descent(case: _Case) -> Engine:
    """Block descent, its machine code loaded."""
    check_descent(case.structure, case.options.memory)
    sweeps = _MOST_SWEEPS if len(case.structure.programs) == 1 else _MOST_OF_EACH
    descent = block_descent_method(case.structure, case.options.tol, sweeps)
    return Engine("BlockDescent", case.strength_text, lambda: descent)


def _admm(case: _Case) -> Engine | str:
    """ADMM where Newton's method cannot work, or takes longer; else why not."""
    structure, options, obstacle = case.structure, case.options, case.obstacle
    if obstacle is None and case.warm and case.first.outputs == 1:
        return "SemismoothNewton goes on from the last dual point"
    reason = _one_factor_pays(structure, case.strength, options.tol)
    single = reason is None and obstacle is None
    if single:
        reason = _single_precision_pays(structure, case.strength, options.tol)
    if obstacle is not None:
        reason = f"{obstacle}; ADMM need not"
    if reason is None:
        return "SemismoothNewton is faster than ADMM"
    try:
        method = admm_method(
            case.composite, structure, options.tol, options.memory, single=single, warm=case.multipliers
        )
    except UnsupportedProblem as error:
        return str(error)
    if not method.affordable:
        return "a factor for ADMM costs more than hundreds of steps without one"
    return Engine("ADMM", reason, lambda: method)


def _one_factor_pays(structure: GatedStructure, strength: float | None, tol: float) -> str | None:
    """Why ADMM, with one factor for all steps, should overtake Newton's method, with one per step.

    Measured on squared losses to a gap of 1e-6 (`make bench` has both as rows).
    """
    fits = [program.fit for program in structure.programs]
    if tol < _TIGHT or strength is None or any(fit.outliers is not None for fit in fits):
        return None
    n = fits[0].shape[0]
    if structure.mirror.shape[1] > 1:
        return "one factor serves all outputs and steps"
    if 8 * n * n > _GRAM_BYTES:
        return None
    if n > _SAMPLES:
        return f"one factor of {n} samples serves all steps"
    if strength <= _SMALL:
        return "the regularisation is small"
    if strength <= _RATHER_SMALL and _evenness(structure.programs[0]) >= _EVEN:
        return "the regularisation is rather small and no direction of the features stands out"
    return None


def _single_precision_pays(structure: GatedStructure, strength: float | None, tol: float) -> str | None:
    """Why ADMM in float32 should overtake Newton's method, whose systems are too large to factor.

    Conjugate gradients then take hundreds of iterations for each, of which the samples wait for memory.
    """
    fits = [program.fit for program in structure.programs]
    n = fits[0].shape[0]
    if tol < _SINGLE or strength is None or any(fit.outliers is not None for fit in fits):
        return None
    if not 8 * n * n > _GRAM_BYTES or 4 * n * n > 2 * _GRAM_BYTES:
        return None
    return f"one factor of {n} samples in float32 serves all steps"


def _check_memory(composite: Composite) -> None:
    size = gated_maps(composite)[0].gates.X.nbytes
    if size > _FEATURE_BYTES:
        raise UnsupportedProblem(f"SemismoothNewton would copy {size / 2**20:.0f} MB of features")


def _largest_ratio(program: GatedProgram) -> float:
    """The largest gradient at zero over its weight, without regard to cones; at least the smallest normal."""
    return max(float(np.max(program.null_norms() / program.weights, initial=0.0)), _SMALLEST)


def _few_gates(structure: GatedStructure) -> bool:
    """Whether few gates of the only program explain the targets nearly as well as the best one.

    Of several programs, block descent takes one after the other, and others did no better on any.
    """
    program = structure.programs[0]
    if len(structure.programs) > 1 or program.outputs > 1:
        return True
    ratios = program.null_norms() / program.weights
    return float(np.mean(ratios >= _ALIKE * np.max(ratios))) <= _FEW_ALIKE


def _evenness(program: GatedProgram) -> float:
    """The mean square of the features' singular values but the largest, over its square."""
    return program.kept.common.once("evenness", partial(_spectral_evenness, program.X))


def _spectral_evenness(X: Float64Array) -> float:
    largest = float(np.max(np.abs(X), initial=0.0))
    if not largest > 0.0:
        return 1.0
    squares = np.linalg.svd(X / largest, compute_uv=False) ** 2
    return float(np.mean(squares[1:]) / squares[0]) if squares.size > 1 else 1.0
