"""A network that chooses its inputs: one group per feature, over all its neurons.

Source: Yuan and Lin, *Model selection and estimation in regression with grouped variables*, JRSS B 68, 2006.
"""

from __future__ import annotations

import cvxpy as cp
import numpy as np

import convexnn_models as cnn
from convexnn_solvers import RFISTA, certificate

rng = np.random.default_rng(0)
X = rng.standard_normal((60, 8))
y = np.maximum(X[:, 0] - X[:, 1], 0.0)
model = cnn.gated_relu(X, cnn.sample_gates(X, 8, seed=0))
(weights,) = model.variables  # a row per feature, a column per gate
loss = cp.sum_squares(model.prediction - y) / 120
problem = cp.Problem(cp.Minimize(loss + 0.2 * cp.sum(cp.norm(weights, 2, axis=1))))

for solver in (RFISTA(), cp.CLARABEL):
    problem.solve(solver=solver)
    print(f"{solver}: {certificate(problem)}")
used = np.flatnonzero(np.linalg.norm(weights.value, axis=1) > 1e-4)
print(f"features in use: {used}")
