"""Bounds on norms of weights, by programs with a price on them: the search for the one that spends the bound.

At the price ``p`` the weights that minimise ``f(x) + p norms(x)`` spend ``s(p)``, which falls in ``p``, and
they solve the program with the bound ``t`` where ``s(p) = t``. Logarithms of prices are interpolated, every
program starts from the solution of the last, and points are stretched or shrunk until they spend ``t``: their
objective is then off by a second order of what they missed, so that a few programs do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from convexnn_solvers.backends import Float64Array
from convexnn_solvers.certify.budget_bounds import BudgetBounds
from convexnn_solvers.certify.budgets import Budgets
from convexnn_solvers.composite import DualPoint, Point
from convexnn_solvers.loop.iterate import Candidate, Method
from convexnn_solvers.loop.relay import Engine
from convexnn_solvers.status import Status

#: The engines for the program at a price, to a relative gap, from a dual point of it.
Engines = Callable[[float, float, DualPoint], Iterator[Engine]]

# Without another start the first price is this share of the one at which nothing is spent.
_FIRST = 0.1
# While nothing is known on the other side prices move by a power of what was spent over the bound, which
# doubles from price to price, within these factors.
_POWER, _STEEPEST, _LEAST, _MOST = 1.5, 100.0, 1.02, 30.0
# Programs are solved to this gap where the spending misses the bound by more than the share ``_FAR``, else to
# a share of the tolerance, which shrinks from program to program.
_ROUGH, _FAR, _CLOSE, _SHRINK = 1e-2, 0.3, 0.3, 0.5
_LEAST_GAP = 1e-13
# No better price is to be found within this share, or below this share of the first one.
_SAME, _NOTHING = 1e-13, 1e-12
_MOST_STALLED = 3
# Of the segment between two points.
_HALVINGS = 40


@dataclass(frozen=True, eq=False)
class Tried:
    """The logarithm of a price, the point that its program found, what that spent and its objective without
    the price. ``miss``: by how much the spending misses the bound, over the sum of both."""

    log_price: float
    miss: float
    spent: float
    value: float
    point: tuple[Float64Array, ...]


@dataclass(frozen=True, eq=False)
class Search:
    """A program at a price, being solved, and what is known of other prices.

    ``spends``: the largest price known that spends too much, ``saves``: the smallest that spends too little;
    ``run``: how many of the last prices were on one side, negative if they saved; ``first``: the first price;
    ``share``: of the tolerance, for programs close to the bound; ``left``: the engines for this price that
    were not tried.
    """

    price: float
    method: Method[Any]
    inner: Any
    left: Iterator[Engine]
    first: float
    spends: Tried | None = None
    saves: Tried | None = None
    run: int = 0
    share: float = _CLOSE
    stalled: int = 0
    failed: bool = False


@dataclass(frozen=True, eq=False)
class BudgetSearch:
    """The method for :func:`iterate.iterate`; one step is one of the method at a price.

    ``budgets`` has one, of the problem in float64 with NumPy; ``held`` is the dual point of an earlier solve.
    """

    budgets: Budgets
    engines: Engines
    tol: float
    held: DualPoint
    name: str = "budget search"
    judges_itself: bool = True

    def start(self, x: Point) -> Search:
        """The first program: at the last price, or the one that the point asks for."""
        point = tuple(np.asarray(self.budgets.composite.backend.to_numpy(a)) for a in x)
        known = self.budgets.prices(self.held)
        spent = self._spent(point)
        if known is not None and known[0] > 0.0 and self.held.thetas:
            price, gap = known[0], _CLOSE * self.tol
        else:
            asked, gap = self._asked(point), _ROUGH
            price = asked if spent > 0.0 else _FIRST * asked
        others = DualPoint(self.held.thetas, self.budgets.others(self.held.multipliers))
        begun = self._begun(self.engines(price, gap, others), point)
        if begun is None:
            raise ValueError("a budget search needs a program whose solver knows its gap.")
        return Search(price, *begun, first=price)

    def step(self, state: Search) -> Search:
        """One step; from a program that is solved to the next."""
        if self.wants_look(state) and not state.failed:
            state = self._next(state)
        if state.failed:
            return state
        return replace(state, inner=state.method.step(state.inner))

    def residual(self, state: Search) -> float:
        """That of the program."""
        return state.method.residual(state.inner)

    def wants_look(self, state: Search) -> bool:
        """Whether the program is solved."""
        return state.failed or state.method.wants_look(state.inner)

    def candidate(self, state: Search) -> Candidate:
        """The program's point made to spend the bound, and its dual point with the price."""
        found = state.method.candidate(state.inner)
        duals = tuple(self.budgets.completed(dual, [state.price]) for dual in found.duals)
        other = state.saves if self._spent(found.point) > self._limit else state.spends
        fitting = [self._stretched(found.point)]
        if other is not None:
            fitting.append(self._mixed(found.point, other.point))
        best = min(fitting, key=self.budgets.composite.value)
        return Candidate(best, duals, Status.STALLED if state.failed else None)

    def multipliers(self, state: Search) -> tuple[Float64Array, ...]:
        """None of its own: they follow from the dual point."""
        return ()

    @property
    def _limit(self) -> float:
        return self.budgets.limits[0]

    def _spent(self, x: tuple[Float64Array, ...]) -> float:
        return self.budgets.spent(x)[0]

    def _asked(self, x: tuple[Float64Array, ...]) -> float:
        """The price at which the losses' gradients at a point are those of a solution."""
        bounds = BudgetBounds(self.budgets)
        asked = bounds.asked(bounds.residual(self.budgets.composite.affine.forward(x)))
        return 1.0 if asked is None else asked[0]

    def _stretched(self, x: tuple[Float64Array, ...]) -> tuple[Float64Array, ...]:
        """The better one of the point, where it is within the bound, and its multiple that spends it."""
        spent, problem = self._spent(x), self.budgets.composite
        factor = self._limit / spent if spent > 0.0 else 1.0
        own = {term.variable for term in self.budgets.terms[0].budget}
        scaled = tuple(factor * value if k in own else value for k, value in enumerate(x))
        return x if factor >= 1.0 and problem.value(x) <= problem.value(scaled) else scaled

    def _mixed(self, x: tuple[Float64Array, ...], y: tuple[Float64Array, ...]) -> tuple[Float64Array, ...]:
        """The point between two, of which one spends too much, that spends the bound, or a little less.

        Where spending jumps at a price, both solve its program, and so do all points between them.
        """
        inside, outside = (y, x) if self._spent(x) > self._limit else (x, y)
        low, high = 0.0, 1.0
        for _ in range(_HALVINGS):
            share = 0.5 * (low + high)
            mixed = _between(inside, outside, share)
            low, high = (share, high) if self._spent(mixed) <= self._limit else (low, share)
        return _between(inside, outside, low)

    def _next(self, state: Search) -> Search:
        """The next program, from the solution of the last."""
        found = state.method.candidate(state.inner)
        stalled = found.finding is Status.STALLED
        if stalled:
            other = self._begun(state.left, found.point)
            if other is not None:
                method, inner, left = other
                return replace(state, method=method, inner=inner, left=left)
        problem, spent, limit = self.budgets.composite, self._spent(found.point), self._limit
        miss = (spent - limit) / (spent + limit) if spent != limit else 0.0
        moved = _narrowed(
            state, Tried(math.log(state.price), miss, spent, problem.value(found.point), found.point)
        )
        price = _following(moved, spent / limit if limit > 0.0 else math.inf)
        value = abs(problem.value(found.point))
        # Far from the bound, which may be more than anybody would spend, a price can cost nothing any more.
        close = abs(miss) <= _FAR or price * abs(limit - spent) <= self.tol * value
        moved = replace(
            moved,
            price=price,
            share=state.share * _SHRINK if close else state.share,
            stalled=state.stalled + 1 if stalled else 0,
        )
        if moved.stalled >= _MOST_STALLED or not price > _NOTHING * state.first:
            return replace(moved, price=state.price, failed=True)
        whole = value + price * spent
        gap = moved.share * self.tol * (value / whole if whole > 0.0 else 1.0)
        gap = max(gap, _LEAST_GAP if close else _ROUGH)
        dual = found.duals[0] if found.duals else DualPoint(())
        begun = self._begun(self.engines(price, gap, dual), found.point)
        if begun is None:
            return replace(moved, price=state.price, failed=True)
        method, inner, left = begun
        return replace(moved, method=method, inner=inner, left=left)

    def _begun(
        self, engines: Iterator[Engine], x: tuple[Float64Array, ...]
    ) -> tuple[Method[Any], Any, Iterator[Engine]] | None:
        """The next method that knows its gap, at a point, and the engines after it."""
        for engine in engines:
            method = engine.make()
            if method.judges_itself:
                backend = self.budgets.composite.backend
                return method, method.start(tuple(backend.asarray(a) for a in x)), engines
        return None


def _between(
    x: tuple[Float64Array, ...], y: tuple[Float64Array, ...], share: float
) -> tuple[Float64Array, ...]:
    return tuple((1.0 - share) * a + share * b for a, b in zip(x, y, strict=True))


def _narrowed(state: Search, tried: Tried) -> Search:
    """What is known with one more price."""
    above = tried.miss > 0.0
    run = max(state.run, 0) + 1 if above else min(state.run, 0) - 1
    spends, saves = (tried, state.saves) if above else (state.spends, tried)
    # Programs solved roughly may have told the wrong side.
    if spends is not None and saves is not None and not saves.log_price - spends.log_price > _SAME:
        spends, saves = (tried, None) if above else (None, tried)
    return replace(state, spends=spends, saves=saves, run=run)


def _following(state: Search, ratio: float) -> float:
    """The next price; ``ratio``: what the last one spent over the bound."""
    spends, saves = state.spends, state.saves
    if spends is None or saves is None:
        factor = math.pow(
            min(max(ratio, 1.0 / _MOST), _MOST), min(_POWER * 2.0 ** (abs(state.run) - 1), _STEEPEST)
        )
        factor = max(factor, _LEAST) if saves is None else min(factor, 1.0 / _LEAST)
        return state.price * min(max(factor, 1.0 / _MOST), _MOST)
    if abs(state.run) > 1:
        # The same end again: interpolation comes from one side only. At a kink of the value as a function of
        # the price, the price is where the values of both points, as linear functions of it, meet.
        meeting = (saves.value - spends.value) / (spends.spent - saves.spent)
        if spends.log_price < math.log(max(meeting, math.exp(spends.log_price))) < saves.log_price:
            return meeting
    share = spends.miss / (spends.miss - saves.miss)
    return math.exp(spends.log_price + share * (saves.log_price - spends.log_price))
