"""The solvers that users name. What each does is in its engine's module, imported by the first solve.

Importing this module opens CVXPY's doors to all of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from convexnn_solvers.composite import Composite, DualPoint
from convexnn_solvers.doors import hang_natural_door, open_public_doors
from convexnn_solvers.interface import CompositeSolver, solver_chain
from convexnn_solvers.interface import own_solver as own_solver_of
from convexnn_solvers.options import Options

if TYPE_CHECKING:
    from convexnn_solvers.loop.iterate import Method
    from convexnn_solvers.loop.relay import Engine


class RFISTA(CompositeSolver):
    """Accelerated proximal gradient (R-FISTA) for problems without constraints.

    Smooth losses of affine expressions (squares, Huber, logistic, ...) plus group or l1 norms of variables,
    with bounds on variables where the proximal map allows; never forms a matrix. Stops when the
    *certified* relative gap is at most ``tol``.

    Where one loss of one gated prediction meets a group norm of every gate, steps are taken on a working set
    of gates that the gradient over all of them picks, in the principal components of the features where those
    differ in size; the certificate is about all gates and the problem as it was written.

    Parameters
    ----------
    tol : float
        Relative certified gap, ``(primal - dual) / max(|primal|, |dual|)``.
    max_iter : int
        Iterations; reaching it is status ``user_limit`` with the best certified point.
    time_limit : float or None
        Seconds from the call on, compilation included; the same status.
    device : str
        ``"cpu"`` or ``"cuda"``. The certificate is computed in float64 on the CPU whatever this says.
    dtype : str
        ``"float64"`` or ``"float32"``, of the iteration.
    backend : str or None
        ``"numpy"`` or ``"torch"``; None for NumPy on the CPU, torch on other devices.
    memory : int, float or None
        What a solve may take on its device: bytes, or (a float up to 1.0) a share of what is free; None is
        0.8 of it. Blocks and copies are planned before the solve; what cannot fit is refused with its size.
    verbose : bool
        Print one line per certificate.
    callback : callable or None
        Called with a :class:`~loop.result.Progress` after each certificate; returning True stops.
    checkpoint : path or None
        A file of arrays to write now and then, and when the solve ends or is interrupted by Ctrl-C.
    checkpoint_interval : float
        Seconds between two writes of ``checkpoint``.
    resume : bool
        Go on from ``checkpoint``, if there is one: with the same iterates and history as if nothing had
        happened. That of another problem is refused.

    All of them may also be given to ``problem.solve``. Raises TypeError or ValueError for a bad option.
    """

    def method(
        self, composite: Composite, exact: Composite, multipliers: DualPoint, options: Options
    ) -> Method[Any]:
        """R-FISTA; refuses constraints by name."""
        from convexnn_solvers.first_order.gate_descent import gradient_method
        from convexnn_solvers.method_memory import check_first_order

        check_first_order(self.name(), composite, options.memory)
        return gradient_method(composite, exact, options.tol)


class AugmentedLagrangian(CompositeSolver):
    """Augmented Lagrangian method on top of R-FISTA: constraints, and losses without a gradient.

    Takes what :class:`RFISTA` takes, and besides: absolute values, hinges, quantile losses, norms and maxima
    of affine expressions; any number of penalties on a variable; linear, second-order and semidefinite
    constraints, and bounds on norms, on sums of norms of columns or rows (``model.penalty <= 2``), on maxima,
    absolute values and (sums of) squares. Pattern cones (the constraints of ReLU networks) are projected on
    exactly inside the proximal map, on the CPU; all else goes through multipliers. Where such cones of all
    gates of one prediction are the only constraints and the loss has a gradient, steps are on a working set
    of gates, as in :class:`RFISTA`; the certificate is about all of them. An infeasible problem ends with its
    proof as dual values. Options as for :class:`RFISTA`.
    """

    def method(
        self, composite: Composite, exact: Composite, multipliers: DualPoint, options: Options
    ) -> Method[Any]:
        """The augmented Lagrangian from these multipliers; R-FISTA without constraints."""
        from convexnn_solvers.first_order.cone_descent import constrained_method
        from convexnn_solvers.first_order.gate_descent import gradient_method
        from convexnn_solvers.first_order.rfista import nonsmooth_losses
        from convexnn_solvers.method_memory import check_first_order

        check_first_order(self.name(), composite, options.memory)
        if not (composite.constraints or nonsmooth_losses(composite)):
            return gradient_method(composite, exact, options.tol)
        return constrained_method(composite, exact, options.tol, multipliers)


class SemismoothNewton(CompositeSolver):
    """Semismooth Newton on the dual: the fastest way to a small certified gap for gated and ReLU networks.

    Takes one loss of a gated prediction (squared, Huber or logistic, a sum of absolute values, hinges or
    quantile losses, all with a weight per sample if need be; the norm or the largest of all residuals), a
    group norm of every weight variable (shared by the outputs or per output), pattern cones on all of them or
    on none, and a free output bias; every other problem is refused by name. Tens of steps, hundreds for
    losses without a gradient on cones, each with a Newton system of the size of the samples or of the active
    weights; the last ones are on the optimality conditions themselves where the loss has a gradient. With
    cones, and a squared loss or one without a gradient, iterations of ADMM find the active rows where line
    searches shorten the steps. Works in float64 on the CPU. Options as for :class:`RFISTA`; ``max_iter``
    counts Newton steps, and up to twenty iterations of ADMM as one.
    """

    def method(
        self, composite: Composite, exact: Composite, multipliers: DualPoint, options: Options
    ) -> Method[Any]:
        """The method; refuses by name what is not a gated program."""
        from convexnn_solvers.gated_programs.structure import gated_structure
        from convexnn_solvers.method_memory import check_newton
        from convexnn_solvers.newton.method import semismooth_newton_method

        structure = gated_structure(composite)
        check_newton(structure, options.memory)
        return semismooth_newton_method(structure, options.tol, multipliers)


class BlockDescent(CompositeSolver):
    """Exact block coordinate descent on working sets: the fastest for gated networks at large regularisation.

    Takes what :class:`SemismoothNewton` takes, with a squared or Huber loss and without cones. From about a
    tenth of the regularisation where the zero network is optimal it overtakes Newton's method; far below
    it stalls, and says so. Works in float64 on the CPU. Options as for :class:`RFISTA`; ``max_iter`` counts
    cycles of six sweeps.
    """

    def method(
        self, composite: Composite, exact: Composite, multipliers: DualPoint, options: Options
    ) -> Method[Any]:
        """The method; refuses by name what is not such a gated program."""
        from convexnn_solvers.block_descent.method import block_descent_method
        from convexnn_solvers.gated_programs.structure import gated_structure
        from convexnn_solvers.method_memory import check_descent

        structure = gated_structure(composite)
        check_descent(structure, options.memory)
        return block_descent_method(structure, options.tol)


class ADMM(CompositeSolver):
    """ADMM with an exact step on the weights: for gated networks in float32, on a GPU, or with many outputs.

    Takes one squared, Huber or logistic loss of a gated prediction, a group norm of every weight variable
    (shared by the outputs or per output) and a free output bias; pattern cones and every other problem are
    refused by name. One n x n matrix is factored for all gates and outputs together, so that a step costs
    two products with the features; refused with the bytes that it would need where that matrix does not
    fit into ``memory``. It stays with the problem, and its last factor, for solves at other regularisations
    (see ``KEPT_BYTES`` of :mod:`kept`). Works in float64 and float32, with NumPy and torch,
    ``device="cuda"`` included. Options as for :class:`RFISTA`; ``max_iter`` counts iterations.
    """

    def method(
        self, composite: Composite, exact: Composite, multipliers: DualPoint, options: Options
    ) -> Method[Any]:
        """The method; refuses by name what is not a gated program without cones."""
        from convexnn_solvers.admm.method import admm_method
        from convexnn_solvers.gated_programs.structure import gated_structure

        return admm_method(composite, gated_structure(exact), options.tol, options.memory, warm=multipliers)


class Auto(CompositeSolver):
    """The engine that fits the problem, and another one when it gets stuck.

    For gated programs block descent at large regularisation where few gates explain the targets, R-FISTA
    there with many samples; ADMM with several outputs, many samples, small regularisation, in float32 or on a
    GPU; an interior-point method for squares where the regularisation is next to nothing (1e-4 of the largest
    useful one with cones, 1e-10 without); semismooth Newton for the others, for ReLU programs, and from the
    dual point of an earlier solve with one output. Small networks beside further constraints, or with losses
    without a gradient that are no gated programs, get a splitting that is exact on all affine outputs, and
    Newton steps on its proximal points. Where the samples' Gram matrix cannot be factored, and for all other
    problems, R-FISTA, or the augmented Lagrangian with constraints or losses without a gradient. A
    bound instead of the penalty (``model.penalty <= 2``) is met by programs with the penalty, at the price
    that spends it: its dual value.
    ``extra_stats["engines"]`` lists who ran, why, and how it ended. Options as for :class:`RFISTA`.
    """

    def engines(
        self, composite: Composite, exact: Composite, multipliers: DualPoint, options: Options
    ) -> Iterator[Engine]:
        """The engines of :mod:`auto`."""
        from convexnn_solvers.auto import engines

        return engines(composite, exact, multipliers, options)


_SOLVERS: tuple[type[CompositeSolver], ...] = (
    Auto,
    RFISTA,
    AugmentedLagrangian,
    SemismoothNewton,
    BlockDescent,
    ADMM,
)

#: An instance for what ``solver=`` may be, None for solvers of others.
own_solver = partial(own_solver_of, _SOLVERS)
_chain = partial(solver_chain, _SOLVERS)

hang_natural_door(_chain)
open_public_doors([cls.__name__ for cls in _SOLVERS], _chain)
