"""Which engine for which problem, and what to try when one stalls."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import replace
from functools import partial

import numpy as np

from convexnn_solvers.admm.method import admm_method
from convexnn_solvers.backends import Float64Array
from convexnn_solvers.block_descent.method import block_descent_method
from convexnn_solvers.certify.budgets import budgets_of
from convexnn_solvers.composite import Composite, DualPoint
from convexnn_solvers.first_order.cone_descent import constrained_method
from convexnn_solvers.first_order.gate_descent import gradient_method
from convexnn_solvers.first_order.rfista import nonsmooth_losses
from convexnn_solvers.gated_case import GatedCase, gram_share
from convexnn_solvers.gated_programs.maps import gated_maps
from convexnn_solvers.gated_programs.program import GatedProgram
from convexnn_solvers.gated_programs.structure import GatedStructure, gated_structure
from convexnn_solvers.interior_point.method import interior_point_method
from convexnn_solvers.loop.budget_search import BudgetSearch
from convexnn_solvers.loop.relay import Engine
from convexnn_solvers.method_memory import check_descent, check_first_order, check_interior, check_newton
from convexnn_solvers.newton.method import semismooth_newton_method
from convexnn_solvers.options import Options
from convexnn_solvers.reading.compiler import UnsupportedProblem
from convexnn_solvers.splitting.method import method_beside

# Features of more bytes stay where they are, perhaps on disk: solvers of gated programs would copy them.
_FEATURE_BYTES = 2**29
# After so many sweeps, or so many for each of several programs, block descent was a wrong guess; R-FISTA
# after so many steps.
_MOST_SWEEPS, _MOST_OF_EACH = 300, 1000
_MOST_STEPS = 1000
# ADMM was measured to overtake Newton's method with several outputs, from so many samples, and from so small
# a share of the largest useful regularisation on, for gaps down to the last number; from ``_RATHER_SMALL`` on
# where the other squared singular values of the features are on average ``_EVEN`` times the largest or more.
_SAMPLES, _SMALL, _TIGHT = 2500, 0.003, 1e-7
_RATHER_SMALL, _EVEN = 0.02, 0.2
# From this tolerance on ADMM may work in single precision, where a factor takes half of the memory.
_SINGLE = 1e-4


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
        case = GatedCase(composite, exact, gated_structure(exact), multipliers, options)
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


def _for_gates(case: GatedCase) -> Generator[Engine, None, str]:
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


def _for_little(case: GatedCase) -> Generator[Engine, None, bool]:
    """The engines where the regularisation is next to nothing, and nobody after them: first-order steps would
    get nowhere. Whether there is memory for them."""
    try:
        check_interior(case.structure, case.options.memory)
    except UnsupportedProblem:
        return False
    reason = "the regularisation is next to nothing beside that where all weights vanish"
    method = partial(interior_point_method, case.structure, case.options.tol)
    yield Engine("InteriorPoint", reason, method)
    if case.obstacle is None and not case.hides_bounds:
        yield replace(_newton(case), reason="InteriorPoint got no further")
    return True


def _guess(case: GatedCase) -> Engine | None:
    """What is far faster where few gates are active, and is given up after a while where they are not."""
    if case.few_active and case.many_samples:
        check_first_order("RFISTA", case.composite, case.options.memory)
        method = partial(gradient_method, case.composite, case.exact, case.options.tol, _MOST_STEPS)
        name = f"RFISTA ({_MOST_STEPS} steps)"
        return Engine(name, f"{case.strength_text}, and samples are many", method)
    return _descent(case) if case.for_descent else None


def _newton(case: GatedCase) -> Engine:
    """Newton's method."""
    check_newton(case.structure, case.options.memory)
    newton = semismooth_newton_method(case.structure, case.options.tol, case.multipliers)
    further = ", and it goes on from the last dual point" if case.warm else ""
    reason = f"the problem is a gated program of a size that Newton's method can take{further}"
    return Engine("SemismoothNewton", reason, lambda: newton)


def _descent(case: GatedCase) -> Engine:
    """Block descent, its machine code loaded."""
    check_descent(case.structure, case.options.memory)
    sweeps = _MOST_SWEEPS if len(case.structure.programs) == 1 else _MOST_OF_EACH
    descent = block_descent_method(case.structure, case.options.tol, sweeps)
    return Engine("BlockDescent", case.strength_text, lambda: descent)


def _admm(case: GatedCase) -> Engine | str:
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
    if gram_share(n) > 1.0:
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
    if not 1.0 < gram_share(n) <= 4.0:
        return None
    return f"one factor of {n} samples in float32 serves all steps"


def _check_memory(composite: Composite) -> None:
    size = gated_maps(composite)[0].gates.X.nbytes
    if size > _FEATURE_BYTES:
        raise UnsupportedProblem(f"SemismoothNewton would copy {size / 2**20:.0f} MB of features")


def _evenness(program: GatedProgram) -> float:
    """The mean square of the features' singular values but the largest, over its square."""
    return program.kept.common.once("evenness", partial(_spectral_evenness, program.X))


def _spectral_evenness(X: Float64Array) -> float:
    largest = float(np.max(np.abs(X), initial=0.0))
    if not largest > 0.0:
        return 1.0
    squares = np.linalg.svd(X / largest, compute_uv=False) ** 2
    return float(np.mean(squares[1:]) / squares[0]) if squares.size > 1 else 1.0
