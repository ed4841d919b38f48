"""Robust to every distribution of (features, label) within a Wasserstein ball, for absolute errors.

With transport measured in the largest entry, the worst case adds the l1 norm of (weights, -1). Source:
Pallage and Lesage-Landry, *Wasserstein distributionally robust shallow convex neural networks*, 2024.
"""

from __future__ import annotations

import cvxpy as cp
import numpy as np

import convexnn_models as cnn
from convexnn_solvers import AugmentedLagrangian, certificate

rng = np.random.default_rng(0)
X = rng.standard_normal((40, 3))
y = np.maximum(X[:, 0], 0.0) + 0.1 * rng.standard_normal(40)
model = cnn.gated_relu(X, cnn.sample_gates(X, 8, seed=0))
(weights,) = model.variables
radius = 0.02
worst_case = radius * (cp.sum(cp.abs(weights)) + 1.0)
problem = cp.Problem(cp.Minimize(cp.sum(cp.abs(model.prediction - y)) / 40 + worst_case))

for solver in (AugmentedLagrangian(), cp.CLARABEL):
    problem.solve(solver=solver)
    print(f"{solver}: {certificate(problem)}")
print(f"mean absolute error {np.abs(model.prediction.value - y).mean():.3f}")
