"""Why training got stuck: a network against the convex programs of its own activation patterns."""

from __future__ import annotations

from typing import Any

import cvxpy as cp
import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

import convexnn_models as cnn

SEED = 8
rng = np.random.default_rng(SEED)
X = rng.standard_normal((6, 2))
y = np.sin(2.0 * X[:, 0]) + 0.3 * rng.standard_normal(6)
reg = 0.05


def objective(v: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
    """Squared loss and weight decay of two neurons, and their gradient."""
    U, a = v[:4].reshape(2, 2), v[4:]
    hidden = np.maximum(X @ U, 0.0)
    residual = hidden @ a - y
    first = X.T @ ((X @ U > 0.0) * np.outer(residual, a)) / len(y)
    gradient = np.concatenate([first.ravel(), hidden.T @ residual / len(y)]) + reg * v
    return float(residual @ residual) / (2 * len(y)) + reg / 2 * float(v @ v), gradient


def trained(steps: int) -> cnn.Network:
    """A network after some steps of L-BFGS from a random start."""
    start = np.random.default_rng(SEED).standard_normal(6)
    options: Any = {"maxiter": steps, "ftol": 0.0, "gtol": 1e-12}
    v = minimize(objective, start, jac=True, method="L-BFGS-B", options=options).x
    return cnn.Network(v[:4].reshape(2, 2), v[4:, None])


# Before it is done, training is not at the optimum of its own patterns and signs; afterwards it is.
for steps in (5, 20, 1000):
    report = cnn.stationarity(trained(steps), X, y, reg)
    print(f"{steps:5d} steps: gradient {report.gradient:.0e}, gap to its own program {report.own.gap:.1e}")

# That says nothing about neurons with the same patterns and the other output sign, or with new patterns.
print(f"gap with both signs {report.both_signs.gap:.4f}, prices {report.opposite_prices.round(3)} times reg")
report.both_problem.solve(solver=cp.CLARABEL)
print(f"objective {report.objective:.6f}, with both signs at best {report.both_problem.value:.6f}")
