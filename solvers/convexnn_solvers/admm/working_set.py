"""ADMM on all gates, or on a growing set of them that is certified over all.

A gate whose dual norm ``||X^T S_j W||`` stays below its weight may be left out. Rounds of the iteration on
the set alternate with one pass over all gates, which scales the dual point until it is feasible for every
gate and brings in the gates of the largest dual norms. Every round builds and factors a matrix, so that sets
pay where few of many gates are active, or where all of them do not fit.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convexnn_solvers.admm.iteration import AdmmIteration
from convexnn_solvers.admm.problem import AdmmProblem, Bounds
from convexnn_solvers.backends import Array, Float64Array
from convexnn_solvers.gaps import relative_gap
from convexnn_solvers.gated_programs.program import Indices, next_working_set
from convexnn_solvers.loop.checkpoint import Arrays
from convexnn_solvers.reading.operators import GateArrays, GatedOperator

# A set of gates is worth its factorisations from so many gates on, and only at large weights.
_FROM, _LARGEST_RATIO = 1500, 50.0
# ... and where a factorisation, n^3 / 3 operations, costs no more than so many iterations, 4 n d P c each.
_MOST_ITERATIONS = 25
# The first set, its growth over the gates in use, and the share of the gap at which a round ends.
_FIRST, _GROWTH, _SHARE = 200, 2.0, 0.2
# Looks come after so many iterations, then as a share of all iterations of the round, up to a number.
_LOOK, _LOOK_SHARE, _LATEST_LOOK = 5, 0.1, 50
# So many rounds in a row without a better gap are a stall, or so many iterations and half of all of them.
_IDLE_ROUNDS, _PATIENCE = 6, 300
# A round that leaves more than this share of the gap had too few gates.
_SLOW = 0.5
_NOTHING = Bounds(np.inf, -np.inf, np.zeros((0, 0)), np.zeros(0))
# What a checkpoint keeps of an engine as numbers.
_COUNTS = ("iterations", "rounds", "failed", "_improved", "_in_round", "_next_look", "_idle", "_growing")
_GAPS = ("_best_gap", "_before", "_gap_before")


class AdmmEngine:
    """The iteration, its looks and its sets of gates; ``gap`` is over all gates.

    ``most``: the largest set of gates that memory allows; ``dual``: a dual point (n, c) to start from,
    feasible or not; ``held`` is what :meth:`packed` gave.
    """

    def __init__(
        self,
        problem: AdmmProblem,
        point: Float64Array,
        most: int,
        first: int | None = None,
        dual: Float64Array | None = None,
        held: Mapping[str, NDArray[Any]] | None = None,
    ) -> None:
        self.problem = problem
        self.iterations = self.rounds = 0
        self.failed = False
        self._best = self._inner = _NOTHING
        self._point, self._most = point, most
        self._improved = self._in_round = self._next_look = 0
        self._best_gap = self._before = np.inf
        self._iteration: AdmmIteration
        self._found: tuple[Indices, Array] | None = None
        self._idle, self._gap_before = 0, np.inf
        count = problem.program.gates
        self._growing = count > most or first is not None
        if count >= _FROM and not self._growing and self._factors_are_cheap:
            self._growing = self._ratio() <= _LARGEST_RATIO
        self._first = min(_FIRST if first is None else first, most)
        self._W = dual
        self._gates: Indices = np.arange(0 if self._growing else count)
        if held is None:
            self._begin_round(None)
        else:
            self._restore(held)

    def copied(self) -> AdmmEngine:
        """The same state; steps of the copy leave this one as it is, and end its own."""
        other = copy(self)
        other._iteration = copy(self._iteration)
        return other

    def packed(self) -> Arrays:
        """The state as arrays."""
        arrays: Arrays = {f"iteration.{name}": a for name, a in self._iteration.packed().items()}
        for name, bounds in (("best", self._best), ("inner", self._inner)):
            arrays[f"{name}.values"] = np.asarray([bounds.primal, bounds.dual])
            arrays[f"{name}.dual"], arrays[f"{name}.offset"] = bounds.dual_point, bounds.offset
        arrays["counts"] = np.asarray([int(getattr(self, name)) for name in _COUNTS])
        arrays["gaps"] = np.asarray([float(getattr(self, name)) for name in _GAPS])
        arrays["point"], arrays["gates"] = self.point, self._gates
        return arrays if self._W is None else arrays | {"W": self._W}

    def _restore(self, held: Mapping[str, NDArray[Any]]) -> None:
        for name, value in zip(_COUNTS, held["counts"], strict=True):
            setattr(self, name, int(value))
        for name, value in zip(_GAPS, held["gaps"], strict=True):
            setattr(self, name, float(value))
        self._best, self._inner = (_unpacked(held, name) for name in ("best", "inner"))
        self._point, self._gates, self._W = held["point"], held["gates"], held.get("W")
        inside = self.problem if self._whole else self.problem.restricted(self._gates)
        iteration = {name.removeprefix("iteration."): a for name, a in held.items() if "iteration." in name}
        self._iteration = AdmmIteration(inside, self._point, held=iteration)

    @property
    def gap(self) -> float:
        """The relative gap of the best bounds; NaN when something was not finite."""
        return relative_gap(self._best.primal, self._best.dual)

    @property
    def stalled(self) -> bool:
        """Whether neither iterations nor rounds bring the gap down, or a matrix could not be factored."""
        waited = self.iterations - self._improved > max(_PATIENCE, self.iterations // 2)
        return self.failed or waited or self._idle > _IDLE_ROUNDS

    @property
    def bounds(self) -> Bounds:
        """The best bounds, of the point and of the dual point."""
        return self._best

    @property
    def point(self) -> Float64Array:
        """The best point (c, d, B)."""
        if self._found is not None:
            gates, Z = self._found
            self._point, self._found = self._everywhere(gates, Z), None
        return self._point

    @property
    def working_set(self) -> Indices:
        """The gates of the current round."""
        return self._gates

    def step(self, tol: float) -> None:
        """One iteration, and what is due after it: a look, or the next set of gates."""
        try:
            self._iteration.step()
            self.iterations += 1
            self._in_round += 1
            if self._in_round >= self._next_look:
                self._look(tol)
        except (FloatingPointError, np.linalg.LinAlgError):
            self.failed = True

    def look_now(self) -> None:
        """Bring the bounds up to date, and leave the penalty as it is."""
        if self._in_round > 0 and not self.failed:
            self._offer(self._iteration.peek())

    def look_again(self) -> None:
        """Find the best bounds anew in float64 on the host, and forget those that these do not prove."""
        problem, program = self.problem, self.problem.program
        prediction = program.forward(self.point)
        fitted = program.fit.at(prediction)
        primal = fitted.value + float(np.sum(problem.taus * problem.norms(self.point, np)))
        W = self._best.dual_point if self._best.dual_point.size else -fitted.xi
        W = W - W.mean(axis=0) if program.fit.centred else W
        norms = problem.norms(program.by_block(program.adjoint(W)), np)
        value, scale = problem.best_dual(W, float(np.max(norms / problem.taus, initial=0.0)))
        self._best = Bounds(primal, value, scale * W, fitted.offset)
        self._inner = self._best if self._whole else _NOTHING
        self._best_gap, self._improved = self._inner_gap, self.iterations

    def _look(self, tol: float) -> None:
        found = self._iteration.look()
        pause = max(_LOOK, min(int(_LOOK_SHARE * self._in_round), _LATEST_LOOK))
        self._next_look = self._in_round + pause
        self._offer(found)
        if not self._whole and self._inner_gap <= max(_SHARE * self._before, 0.5 * tol):
            self._W = self._inner.dual_point
            self._begin_round(self._iteration.rho)
            self._idle = 0 if self.gap < 0.99 * self._gap_before else self._idle + 1
            self._gap_before = self.gap

    def _offer(self, found: Bounds) -> None:
        """Take what is better; a bound over some of the gates is none over all of them."""
        if not found.primal >= self._best.primal:
            self._best = replace(self._best, primal=found.primal, offset=found.offset)
            self._found = (self._gates, self._iteration.Z)
        if not found.dual <= self._inner.dual:
            self._inner = found
        if self._whole:
            self._offer_dual(found.dual, found.dual_point)
        gap = self._inner_gap
        if not gap >= 0.99 * self._best_gap:
            self._best_gap, self._improved = gap, self.iterations

    @property
    def _inner_gap(self) -> float:
        """The relative gap of the program on the round's gates."""
        return relative_gap(self._best.primal, self._inner.dual)

    @property
    def _whole(self) -> bool:
        """Whether the set is that of all gates."""
        return len(self._gates) == self.problem.program.gates

    def _offer_dual(self, dual: float, dual_point: Float64Array) -> None:
        if not dual <= self._best.dual:
            self._best = replace(self._best, dual=dual, dual_point=dual_point)

    def _begin_round(self, rho: float | None) -> None:
        """The next set of gates, after one pass over all of them, and the iteration on it."""
        if self._growing:
            self._gates = self._chosen(self._certified())
        self._before = self.gap if self.rounds > 0 else 1.0
        self._best_gap, self._improved = np.inf, self.iterations
        self._inner = _NOTHING
        inside = self.problem if self._whole else self.problem.restricted(self._gates)
        point = self.point[:, :, self.problem.program.blocks_of(self._gates)]
        if self.rounds > 0:
            self._iteration.release()  # its matrix first
        self._iteration = AdmmIteration(inside, point, rho, self._W)
        self._in_round, self._next_look = 0, _LOOK
        self.rounds += 1
        if self.rounds == 1:
            self._offer(self._iteration.bounds)

    @property
    def _factors_are_cheap(self) -> bool:
        program = self.problem.program
        n, d = program.X.shape
        return bool(n**2 <= 12 * _MOST_ITERATIONS * d * program.gates * program.outputs)

    def _ratio(self) -> float:
        """The largest weight at which anything is active, over the smallest there is."""
        program = self.problem.program
        null = program.fit.at(np.zeros(program.fit.shape)).xi
        return float(np.max(self._ratios(null), initial=0.0))

    def _certified(self) -> Float64Array:
        """The ratios at the latest dual point (gates,); offers the bound over all gates that it gives."""
        W = self._W
        if W is None:
            program = self.problem.program
            W = -program.fit.at(program.forward(self.point)).xi
        ratios = self._ratios(W)
        value, scale = self.problem.best_dual(W, float(np.max(ratios, initial=0.0)))
        self._offer_dual(value, scale * W)
        return ratios

    def _ratios(self, W: Float64Array) -> Float64Array:
        """Every gate's largest norm of a group of ``A^T W`` over its weight, in one pass on the backend."""
        problem, backend = self.problem, self.problem.backend
        c, d, _ = problem.program.point_shape
        residual = backend.asarray(W)
        taus = problem.taus.reshape(len(problem.taus), len(problem.program.signs), -1).min(axis=1)
        ratios = np.empty(problem.program.gates)
        for part in problem.program.gate_slices():
            bits = backend.asbits(problem.program.patterns[:, part])
            gates = GateArrays(backend, problem.features, bits, None, problem.plan.block)
            products = GatedOperator(gates, c, problem.program.slope).adjoint(residual)
            norms = backend.to_numpy(problem.norms(backend.xp.reshape(products, (c, d, -1))))
            ratios[part] = np.max(norms / taus[:, part], axis=0)
        return ratios

    def _chosen(self, ratios: Float64Array) -> Indices:
        """The gates in use and those of the largest ratios; more of them when the last set gained little."""
        used = self.problem.program.used_gates(self.point)
        slow = self.rounds > 1 and not self.gap <= _SLOW * self._gap_before
        size = max(self._first, int(_GROWTH * used.sum()), (2 if slow else 1) * len(self._gates))
        return next_working_set(used, ratios, min(size, self._most))

    def _everywhere(self, gates: Indices, Z: Array) -> Float64Array:
        """A point on some gates as one on all of them, on the host."""
        point = self.problem.backend.to_numpy(Z)
        if len(gates) == self.problem.program.gates:
            return point
        whole = np.zeros(self.problem.program.point_shape)
        whole[:, :, self.problem.program.blocks_of(gates)] = point
        return whole


def _unpacked(held: Mapping[str, NDArray[Any]], name: str) -> Bounds:
    primal, dual = (float(value) for value in held[f"{name}.values"])
    return Bounds(primal, dual, held[f"{name}.dual"], held[f"{name}.offset"])
