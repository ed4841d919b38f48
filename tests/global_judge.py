"""A judge of global bounds that shares no code with the package, and random instances for it.

On tiny data the optimum over networks of any width is bracketed from both sides without believing a solver:
above by a network that exists, below by a dual point whose price is the largest of 2^n projections.
"""

from __future__ import annotations

import contextlib
import itertools
import warnings
from typing import Any, NamedTuple

import cvxpy as cp
import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize, minimize_scalar, nnls

Array = NDArray[np.float64]


class Instance(NamedTuple):
    X: Array
    y: Array
    reg: float
    bias: bool
    output_bias: bool
    loss: str

    @property
    def kinds(self) -> dict[str, Any]:
        return {"bias": self.bias, "output_bias": self.output_bias, "loss": self.loss}

    @property
    def data(self) -> Array:
        """The samples with the column of ones, if there is one."""
        return np.hstack([self.X, np.ones((len(self.X), 1))]) if self.bias else self.X


def instance(seed: int, samples: int = 6, features: int = 3) -> Instance:
    """Up to so many samples: generic, zero, duplicated, parallel, dependent or integer rows; three losses."""
    rng = np.random.default_rng(seed)
    n, d = int(rng.integers(1, samples + 1)), int(rng.integers(1, features + 1))
    X = rng.standard_normal((n, d))
    kind = seed % 6
    if kind == 1:
        X = rng.integers(-1, 2, (n, d)).astype(float)
    elif kind == 2:
        X[rng.integers(n)] = 0.0
        X[rng.integers(n)] = -2.0 * X[0]
    elif kind == 3:
        X = rng.standard_normal((n, 1)) @ rng.standard_normal((1, d))
    elif kind == 4:
        X = X[rng.integers(n, size=n)]
    loss = ("squared", "squared", "huber", "logistic")[seed % 4]
    y = rng.standard_normal(n) if loss != "logistic" else np.where(np.arange(n) % 2 == 0, 1.0, -1.0)
    output_bias = seed % 3 == 0 and (loss != "logistic" or n > 1)
    return Instance(X, y, float(10.0 ** rng.uniform(-3, 0)), seed % 5 < 2, output_bias, loss)


def loss_value(problem: Instance, f: Array) -> float:
    """The mean loss of scores (n,)."""
    if problem.loss == "logistic":
        return float(np.mean(np.logaddexp(0.0, -problem.y * f)))
    r = np.abs(f - problem.y)
    return float(
        np.mean(0.5 * r**2 if problem.loss == "squared" else np.where(r <= 1.0, 0.5 * r**2, r - 0.5))
    )


def residual(problem: Instance, f: Array) -> Array:
    """Minus the gradient of the mean loss."""
    y, n = problem.y, len(f)
    if problem.loss == "logistic":
        return np.asarray(y * np.exp(-np.logaddexp(0.0, y * f)) / n)
    return np.asarray((y - f if problem.loss == "squared" else np.clip(y - f, -1.0, 1.0)) / n)


def dual_value(problem: Instance, theta: Array) -> float:
    """``-F*(-theta)`` of the mean loss; -infinity outside its domain."""
    y, n = problem.y, len(problem.y)
    if problem.loss == "logistic":
        a = n * y * theta
        if a.min() < 0.0 or a.max() > 1.0:
            return -np.inf
        logs = [np.log(p, where=p > 0.0, out=np.zeros(n)) for p in (a, 1.0 - a)]
        return float(-np.mean(a * logs[0] + (1.0 - a) * logs[1]))
    if problem.loss == "huber" and np.abs(theta).max() > 1.0 / n:
        return -np.inf
    return float(theta @ y - 0.5 * n * theta @ theta)


def objective(problem: Instance, vectors: Array, signs: Array, offset: float) -> float:
    """The objective of the network with these weights times output signs, (d, m) and (m,), in balance."""
    f = np.maximum(problem.data @ vectors, 0.0) @ signs + offset
    return loss_value(problem, f) + problem.reg * float(np.linalg.norm(vectors, axis=0).sum())


def brute_force_price(X: Array, theta: Array) -> float:
    """At least the maximum over the ball of |theta^T (X u)_+|: any multipliers >= 0 bound a projection."""
    best = 0.0
    for signs in itertools.product([1.0, -1.0], repeat=len(X)):
        s = np.asarray(signs)
        block = X.T @ (theta * (s > 0.0))
        for z in (block, -block):
            multipliers = nnls((s[:, None] * X).T, -z)[0]
            best = max(best, float(np.linalg.norm(z + (s[:, None] * X).T @ multipliers)))
    return best * (1.0 + 1e-13)


def rounding(problem: Instance) -> float:
    """What the judge does not tell apart."""
    return 1e-12 * loss_value(problem, np.zeros(len(problem.y)))


def judged_bracket(problem: Instance) -> tuple[float, float]:
    """Below and above the optimum over all networks, from one program with all 2^n sign patterns."""
    lower, upper = -np.inf, np.inf
    program = _AllPatterns(problem)
    for tol in (1e-11, 1e-10, 1e-9, 1e-8):
        vectors, offset = program.solved(tol)
        signs = np.repeat([1.0, -1.0], vectors.shape[1] // 2)
        for point in ((vectors, signs, offset), polished(problem, vectors, signs, offset)):
            below, above = _bracket(problem, *point)
            lower, upper = max(lower, below), min(upper, above)
            if upper - lower <= 1e-7 * upper + rounding(problem):
                return lower, upper
    return lower, upper


def _bracket(problem: Instance, vectors: Array, signs: Array, start: float) -> tuple[float, float]:
    """The objectives of the networks with these weights and without any, and the bound of their residual."""
    X, n = problem.data, len(problem.X)
    values = np.maximum(X @ vectors, 0.0) @ signs
    offset = _fitted_offset(problem, values, start)
    nothing = np.zeros((X.shape[1], 0))
    constant = objective(problem, nothing, np.zeros(0), _fitted_offset(problem, np.zeros(n), 0.0))
    upper = min(objective(problem, vectors, signs, offset), constant)
    theta = residual(problem, values + offset)
    if problem.output_bias:
        gain, loss = theta[theta > 0.0].sum(), -theta[theta < 0.0].sum()
        heavier = theta > 0.0 if gain > loss else theta < 0.0
        theta = np.where(heavier, theta * (min(gain, loss) / max(gain, loss, 1e-300)), theta)
    top = brute_force_price(X, theta)
    limit = min(problem.reg / top if top > 0.0 else 1e6, 1e6)
    found = minimize_scalar(
        lambda s: -max(dual_value(problem, s * theta), -1e9), bounds=(0.0, limit), method="bounded"
    )
    scales = [0.0, limit, float(found.x), min(1.0, limit)]
    return max(dual_value(problem, s * theta) for s in scales), upper


def _fitted_offset(problem: Instance, f: Array, start: float) -> float:
    if not problem.output_bias:
        return 0.0
    found = minimize_scalar(
        lambda b: loss_value(problem, f + b), bracket=(start - 0.1, start + 0.1), tol=1e-12
    )
    low, high = float(found.x) - 1e-3, float(found.x) + 1e-3
    for _ in range(60):  # the slope is monotone: more digits than values can give
        middle = 0.5 * (low + high)
        low, high = (middle, high) if residual(problem, f + middle).sum() > 0.0 else (low, middle)
    return 0.5 * (low + high)


class _AllPatterns:
    """The program with all sign patterns in plain CVXPY (cells or not: all are networks)."""

    def __init__(self, problem: Instance) -> None:
        X, y, n = problem.data, problem.y, len(problem.X)
        patterns = np.array(list(itertools.product([0.0, 1.0], repeat=n)))
        self._signed = [cp.Variable((len(patterns), X.shape[1])) for _ in range(2)]
        plus, minus = self._signed
        f: Any = sum(
            cp.multiply(patterns[:, i], (plus - minus) @ X[i]).sum() * np.eye(n)[i] for i in range(n)
        )
        self._offset = cp.Variable()
        constraints: list[Any] = [cp.multiply(2.0 * patterns - 1.0, V @ X.T) >= 0 for V in self._signed]
        if not problem.output_bias:
            constraints.append(self._offset == 0.0)
        f = f + self._offset
        fits = {
            "squared": lambda: cp.sum_squares(f - y) / 2,
            "huber": lambda: cp.sum(cp.huber(f - y)) / 2,
            "logistic": lambda: cp.sum(cp.logistic(cp.multiply(-y, f))),
        }
        cost: Any = sum(cp.sum(cp.norm(V, 2, axis=1)) for V in self._signed)
        self._program: Any = cp.Problem(
            cp.Minimize(fits[problem.loss]() / n + problem.reg * cost), constraints
        )

    def solved(self, tol: float) -> tuple[Array, float]:
        """Weights (d, 2 * 2^n), positive outputs first, and the output bias, as Clarabel leaves them."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Solution may be inaccurate")
            with contextlib.suppress(cp.SolverError):
                self._program.solve(solver=cp.CLARABEL, tol_gap_abs=tol, tol_gap_rel=tol, tol_feas=tol)
        columns = [np.zeros(V.shape).T if V.value is None else np.asarray(V.value).T for V in self._signed]
        offset = 0.0 if self._offset.value is None else float(np.asarray(self._offset.value))
        return np.concatenate(columns, axis=1), offset


def trained(problem: Instance, width: int, seed: int) -> float:
    """The objective of a network after L-BFGS on its own weights: a network like any other."""
    start = np.random.default_rng(seed).standard_normal((problem.data.shape[1] + 1, width))
    W, a, offset = descended(problem, start[:-1], start[-1], 0.0)
    f = np.maximum(problem.data @ W, 0.0) @ a + offset
    return loss_value(problem, f) + 0.5 * problem.reg * float(np.sum(W**2) + np.sum(a**2))


def polished(problem: Instance, vectors: Array, signs: Array, offset: float) -> tuple[Array, Array, float]:
    """The weights after L-BFGS from those that are not negligible, in the form that they came in."""
    sizes = np.linalg.norm(vectors, axis=0)
    kept = sizes > 1e-7 * sizes.max(initial=1e-300)
    roots = np.sqrt(sizes[kept])
    W, a, offset = descended(problem, vectors[:, kept] / roots, signs[kept] * roots, offset)
    return W * np.abs(a), np.sign(a), offset


def descended(problem: Instance, W: Array, a: Array, offset: float) -> tuple[Array, Array, float]:
    """Hidden weights (d, m), output weights (m,) and output bias after L-BFGS on all of them."""
    X, (d, m) = problem.data, W.shape

    def value(flat: Array) -> tuple[float, Array]:
        hidden_weights, outputs = flat[: d * m].reshape(d, m), flat[d * m : -1]
        products = X @ hidden_weights
        hidden = np.maximum(products, 0.0)
        back = -residual(problem, hidden @ outputs + (flat[-1] if problem.output_bias else 0.0))
        pull = X.T @ np.where(products > 0.0, np.outer(back, outputs), 0.0)
        into = pull + problem.reg * hidden_weights
        slope = np.array([float(problem.output_bias) * back.sum()])
        decay = 0.5 * problem.reg * float(flat[:-1] @ flat[:-1])
        fit = loss_value(problem, hidden @ outputs + (flat[-1] if problem.output_bias else 0.0))
        return fit + decay, np.concatenate([into.ravel(), hidden.T @ back + problem.reg * outputs, slope])

    start = np.concatenate([W.ravel(), a, [offset]])
    flat = minimize(
        value, start, jac=True, method="L-BFGS-B", options={"maxiter": 3000, "ftol": 1e-15, "gtol": 1e-12}
    ).x
    return flat[: d * m].reshape(d, m), flat[d * m : -1], float(flat[-1]) if problem.output_bias else 0.0
