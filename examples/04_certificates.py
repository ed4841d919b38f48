"""A certificate judges the values that the variables hold, whoever put them there."""

from __future__ import annotations

import cvxpy as cp
import numpy as np

import convexnn_models as cnn
from convexnn_solvers import certificate

rng = np.random.default_rng(0)
X = rng.standard_normal((50, 4))
y = np.sin(X[:, 0])
model = cnn.relu(X, cnn.sample_gates(X, 20, seed=0))
problem = model.problem(y, reg=0.01)

for solver in (cp.CLARABEL, cp.SCS):
    problem.solve(solver=solver)
    print(f"{solver}: {certificate(problem)}")

for variable in model.variables:
    variable.value = 0.99 * variable.value  # a point of our own, a little away from the optimum
print(f"1% off: {certificate(problem)}")

for variable in model.variables:
    variable.value = rng.standard_normal(variable.shape)  # outside the cones: judged on a repaired copy
print(f"random: {certificate(problem)}")
