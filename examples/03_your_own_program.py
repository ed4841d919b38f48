"""Variants of your own in a few lines of CVXPY: another loss, weighted samples, extra constraints."""

from __future__ import annotations

import cvxpy as cp
import numpy as np

import convexnn_models as cnn
from convexnn_solvers import Auto, certificate

rng = np.random.default_rng(0)
X = rng.standard_normal((60, 3))
y = X[:, 0] + 0.1 * rng.standard_normal(60)
y[:3] += 20.0  # outliers, which a robust loss should ignore
trust = rng.uniform(0.5, 1.0, 60)  # how reliable each sample is
model = cnn.relu(X, cnn.sample_gates(X, 15, seed=0))

robust = trust @ cp.huber(model.prediction - y) / len(y)
problem = cp.Problem(cp.Minimize(robust + 0.01 * model.penalty), model.constraints)
problem.solve(solver=Auto())
print(f"robust:          {certificate(problem)}")
print(f"average error without the outliers {np.abs(model.prediction.value - y)[3:].mean():.2f}")

problem.solve(solver=cp.CLARABEL)  # the same object, unchanged, by another solver
print(f"by CLARABEL:     {certificate(problem)}")

constrained = cp.Problem(problem.objective, [*model.constraints, model.prediction >= 0])
constrained.solve(solver=cp.CLARABEL)
print(f"and non-negative {certificate(constrained)}")
print(f"smallest prediction {model.prediction.value.min():.1e}")
