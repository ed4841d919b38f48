"""Elastic net: the group norms, which drop neurons, and a ridge, which spreads weight over alike ones.

Source: Zou and Hastie, *Regularization and variable selection via the elastic net*, JRSS B 67, 2005.
"""

from __future__ import annotations

import cvxpy as cp
import numpy as np

import convexnn_models as cnn
from convexnn_solvers import AugmentedLagrangian, certificate

rng = np.random.default_rng(0)
X = rng.standard_normal((40, 3))
y = np.abs(X[:, 0]) + 0.1 * rng.standard_normal(40)
model = cnn.relu(X, cnn.sample_gates(X, 8, seed=0))
loss = cp.sum_squares(model.prediction - y) / 80
ridge = sum(cp.sum_squares(weights) for weights in model.variables)
problem = cp.Problem(cp.Minimize(loss + 0.01 * model.penalty + 0.01 * ridge), model.constraints)

for solver in (AugmentedLagrangian(), cp.CLARABEL):
    problem.solve(solver=solver)
    print(f"{solver}: {certificate(problem)}")
print(f"objective {problem.value:.6f}")
