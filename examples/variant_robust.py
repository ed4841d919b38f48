"""Robust regression: labels with gross errors, and Huber's loss, which grows linearly.

Source: Huber, *Robust estimation of a location parameter*, Annals of Mathematical Statistics 35, 1964.
"""

from __future__ import annotations

import cvxpy as cp
import numpy as np

import convexnn_models as cnn
from convexnn_solvers import AugmentedLagrangian, certificate

rng = np.random.default_rng(0)
X = rng.standard_normal((40, 3))
y = np.maximum(X[:, 0], 0.0) + 0.1 * rng.standard_normal(40)
y[:4] += 20.0
model = cnn.relu(X, cnn.sample_gates(X, 8, seed=0))
loss = cp.sum(cp.huber(model.prediction - y)) / 40
problem = cp.Problem(cp.Minimize(loss + 0.01 * model.penalty), model.constraints)

for solver in (AugmentedLagrangian(), cp.CLARABEL):
    problem.solve(solver=solver)
    print(f"{solver}: {certificate(problem)}")
print(f"mean error of the clean labels: {np.abs(model.prediction.value - y)[4:].mean():.2f}")
