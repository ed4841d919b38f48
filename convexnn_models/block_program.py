"""A convex ReLU program with one block of weights per (activation pattern, output sign).

Its optimum is the best network whose neurons all have one of these patterns and signs; one output. Column
generation and the analysis of a given network solve many of them.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import cvxpy as cp
import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from convexnn_models._arrays import Float64Array
from convexnn_models.network import Network
from convexnn_models.pruning import pruning_factors
from convexnn_models.training_task import TrainingTask
from convexnn_solvers.cones.projections import PatternCones
from convexnn_solvers.reading.atoms import gated, pattern_slack
from convexnn_solvers.solver_classes import Auto

Rows = NDArray[np.intp]

_ROUNDS = 30  # of adding violated constraints
_LARGE = 3_000_000  # n * d * P, beyond which interior points take too long and too much memory
_TIGHT = 1e-9  # relative slack of a constraint that counts as active

# What is said where numbers are too far apart for the solver.
_NO_SOLUTION = (
    "the convex program of the blocks has no solution that its solver could find; rescale X or y, or take a "
    "reg nearer to lambda_max, from which on the network without neurons is optimal."
)


@dataclass(frozen=True, eq=False)
class Blocks:
    """``patterns`` (n, P) bool, ``signs`` (P,) of +-1, ``weights`` (d, P) inside the patterns' cones."""

    patterns: NDArray[np.bool_]
    signs: Float64Array
    weights: Float64Array

    @staticmethod
    def none(samples: int, features: int) -> Blocks:
        """No blocks."""
        return Blocks(np.zeros((samples, 0), dtype=np.bool_), np.zeros(0), np.zeros((features, 0)))

    def __len__(self) -> int:
        return int(self.signs.size)

    @property
    def costs(self) -> Float64Array:
        """The norms (P,) of the blocks' weights."""
        return np.asarray(np.linalg.norm(self.weights, axis=0))

    @property
    def keys(self) -> list[bytes]:
        """What tells pattern and sign of the blocks apart."""
        packed = np.packbits(np.vstack([self.patterns, self.signs > 0.0]), axis=0)
        return [column.tobytes() for column in packed.T]

    def take(self, index: NDArray[np.intp] | NDArray[np.bool_]) -> Blocks:
        """Some of the blocks."""
        return Blocks(self.patterns[:, index], self.signs[index], self.weights[:, index])

    def joined(self, other: Blocks) -> Blocks:
        """These blocks, then those of ``other`` with other patterns or signs."""
        known = set(self.keys)
        fresh = []
        for index, key in enumerate(other.keys):
            if key not in known:
                known.add(key)
                fresh.append(index)
        new = other.take(np.array(fresh, dtype=np.intp))
        return Blocks(
            np.concatenate([self.patterns, new.patterns], axis=1),
            np.concatenate([self.signs, new.signs]),
            np.concatenate([self.weights, new.weights], axis=1),
        )

    def with_both_signs(self) -> Blocks:
        """The same blocks and, without weights, those of the other sign."""
        return self.joined(Blocks(self.patterns, -self.signs, np.zeros_like(self.weights)))


def blocks_along(X: Float64Array, directions: Float64Array, signs: Float64Array) -> Blocks:
    """Blocks without weights for the patterns of directions (d, m) on ``X`` (n, d)."""
    empty = Blocks.none(*X.shape)
    return empty.joined(Blocks(X @ directions >= 0.0, np.sign(signs), np.zeros(directions.shape)))


@dataclass(frozen=True, eq=False)
class BlockSolution:
    """A feasible point of the program: blocks, output bias, its objective and its scores (n, 1)."""

    blocks: Blocks
    offset: float
    objective: float
    scores: Float64Array


def block_solution(task: TrainingTask, blocks: Blocks, offset: float) -> BlockSolution:
    """The point that these blocks and this output bias are, evaluated."""
    active = np.where(blocks.patterns, task.X @ blocks.weights, 0.0)
    scores = (active @ blocks.signs + offset)[:, None]
    objective = task.fit(scores) + task.reg * float(blocks.costs.sum())
    return BlockSolution(blocks, offset, objective, scores)


def solve_blocks(
    task: TrainingTask, blocks: Blocks, offset: float, *, tol: float = 1e-7, solver: Any = None
) -> BlockSolution:
    """Solve the program to the relative accuracy ``tol``; never worse than the weights it starts from.

    Of the n cone constraints of a block at most d are active at a solution. Without a ``solver`` only those
    that were found violated are given to Clarabel, until the solution, projected on its cones, costs no more
    than the relaxed optimum. A CVXPY ``solver`` gets the whole program, once; so does our ``Auto`` when the
    program is too large for interior points.
    """
    best = block_solution(task, blocks, offset)
    if len(blocks) == 0:
        return block_solution(task, blocks, float(task.best_offsets(best.scores)[0]))
    program = BlockProgram(task, blocks, offset)
    if solver is not None or task.X.size * len(blocks) > _LARGE:
        program.solve(Auto(tol=max(tol, 1e-7)) if solver is None else solver, None)
        return min(program.repaired()[0], best, key=lambda solution: solution.objective)
    rows = _tight_rows(task.X, blocks)
    for _ in range(_ROUNDS):
        try:
            relaxed = program.solve(cp.CLARABEL, rows, **_tolerances(tol))
        except cp.SolverError as error:  # nobody asked for this solver: its words would lead nowhere
            raise cp.SolverError(_NO_SOLUTION) from error
        found, violated = program.repaired()
        best = min(found, best, key=lambda solution: solution.objective)
        wider = [np.union1d(old, new) for old, new in zip(rows, violated, strict=True)]
        added = sum(w.size - r.size for w, r in zip(wider, rows, strict=True))
        if added == 0 or best.objective - relaxed <= tol * abs(best.objective):
            break
        rows = wider
    return best


def _tolerances(tol: float) -> dict[str, float]:
    """Clarabel's settings for an objective that is accurate to ``tol``, relatively."""
    goal = min(max(0.01 * tol, 1e-13), 1e-8)
    return {"tol_gap_abs": goal, "tol_gap_rel": goal, "tol_feas": goal}


def without_small_blocks(task: TrainingTask, solution: BlockSolution, tol: float) -> BlockSolution:
    """As many of the smallest blocks left out as raise the objective by ``tol``, relatively, at most."""
    costs = solution.blocks.costs
    allowed = solution.objective + tol * abs(solution.objective)
    for threshold in 10.0 ** -np.arange(1, 13):
        kept = np.flatnonzero(costs > threshold * costs.max(initial=0.0))
        trimmed = block_solution(task, solution.blocks.take(kept), solution.offset)
        if trimmed.objective <= allowed:
            return trimmed
    return solution


def _tight_rows(X: Float64Array, blocks: Blocks) -> list[Rows]:
    """The cone constraints that are active at the weights of each block."""
    limits = _TIGHT * np.linalg.norm(X, axis=1)[:, None] * blocks.costs
    tight = (np.abs(X @ blocks.weights) <= limits) & (blocks.costs > 0.0)
    return [np.flatnonzero(column) for column in tight.T]


class BlockProgram:
    """One program, whose variables hold the weights of the blocks until it is solved."""

    def __init__(self, task: TrainingTask, blocks: Blocks, offset: float) -> None:
        self._task, self._blocks = task, blocks
        self._cones = PatternCones(task.X, blocks.patterns)
        self._offset: Any = cp.Variable(name="output_bias", value=offset) if task.output_bias else None
        self._parts: list[_Part] = []
        prediction: Any = np.zeros(task.X.shape[0])
        penalty: Any = 0.0
        for sign, name in ((1.0, "V"), (-1.0, "W")):
            chosen = np.flatnonzero(blocks.signs == sign)
            if chosen.size:
                weights = cp.Variable(
                    (task.X.shape[1], chosen.size), name=name, value=blocks.weights[:, chosen]
                )
                patterns = np.ascontiguousarray(blocks.patterns[:, chosen])
                self._parts.append(_Part(task.X, patterns, chosen, weights))
                prediction = prediction + sign * gated(task.X, patterns, weights)
                penalty = penalty + cp.sum(cp.norm(weights, 2, axis=0))
        if self._offset is not None:
            prediction = prediction + self._offset
        self._objective = cp.Minimize(task.expression(prediction) + task.reg * penalty)

    def problem(self, rows: list[Rows] | None) -> Any:
        """With the constraints ``rows[j]`` of block j (None: all of them)."""
        constraints = [constraint for part in self._parts for constraint in part.constraints(rows)]
        return cp.Problem(self._objective, constraints)

    def solve(self, solver: Any, rows: list[Rows] | None, **options: float) -> float:
        """Solve :meth:`problem`; the optimal value."""
        problem = self.problem(rows)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # an inaccurate solution is judged by us
            problem.solve(solver=solver, **options)
        return float(problem.value)

    def repaired(self) -> tuple[BlockSolution, list[Rows]]:
        """The solution with every block projected on its cone, and the rows that the projections needed."""
        held = np.zeros_like(self._blocks.weights)
        for part in self._parts:
            if part.weights.value is None or not np.isfinite(part.weights.value).all():
                raise cp.SolverError(_NO_SOLUTION)
            held[:, part.chosen] = part.weights.value
        projection = self._cones.project(held, np.arange(len(self._blocks)))
        moved = Blocks(self._blocks.patterns, self._blocks.signs, projection.points)
        scores = block_solution(self._task, moved, 0.0).scores
        solution = block_solution(self._task, moved, float(self._task.best_offsets(scores)[0]))
        return solution, [active[active >= 0] for active in projection.rows]


@dataclass(frozen=True, eq=False)
class _Part:
    """The blocks of one sign: patterns (n, m), their numbers (m,), and the variable of the weights (d, m)."""

    X: Float64Array
    patterns: NDArray[np.bool_]
    chosen: Rows
    weights: Any

    def constraints(self, rows: list[Rows] | None) -> list[Any]:
        """``+-x_i . w_j >= 0``, for all rows or as one sparse matrix times the stacked weights."""
        if rows is None:
            return [pattern_slack(self.X, self.patterns, self.weights) >= 0]
        own = [rows[j] for j in self.chosen]
        d, m = self.weights.shape
        block = np.repeat(np.arange(m), [r.size for r in own])
        if block.size == 0:
            return []
        sample = np.concatenate(own)
        values = np.where(self.patterns[sample, block], 1.0, -1.0)[:, None] * self.X[sample]
        columns = block[:, None] * d + np.arange(d)
        parts: Any = (values.ravel(), columns.ravel(), np.arange(0, values.size + 1, d))
        matrix = sp.csr_array(parts, shape=(block.size, m * d))
        return [matrix @ cp.vec(self.weights, order="F") >= 0.0]


def as_network(task: TrainingTask, solution: BlockSolution) -> Network:
    """The network of a solution, without neurons that depend on others; its objective is not higher."""
    blocks = solution.blocks.take(np.flatnonzero(solution.blocks.costs > 0.0))
    if len(blocks):
        hidden = np.maximum(task.X @ blocks.weights, 0.0)
        factors = pruning_factors(hidden, blocks.signs[:, None], blocks.costs)
        kept = np.flatnonzero(factors > 0.0)
        blocks = Blocks(blocks.patterns, blocks.signs, blocks.weights * factors).take(kept)
    roots = np.sqrt(blocks.costs)
    W1 = blocks.weights / roots
    d = task.X.shape[1] - int(task.bias)
    return Network(
        W1=W1[:d],
        W2=(blocks.signs * roots)[:, None],
        b1=W1[d] if task.bias else None,
        b2=np.array([solution.offset]) if task.output_bias else None,
    )
