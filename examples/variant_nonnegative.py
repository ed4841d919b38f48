"""A network with non-negative weights only: parts add up and never cancel.

Source: Chorowski and Zurada, *Learning understandable neural networks with nonnegative weight constraints*,
IEEE Trans. Neural Networks and Learning Systems 26, 2015.
"""

from __future__ import annotations

import cvxpy as cp
import numpy as np

import convexnn_models as cnn
from convexnn_solvers import AugmentedLagrangian, certificate

rng = np.random.default_rng(0)
X = rng.standard_normal((40, 3))
y = np.abs(X[:, 0]) + 0.5 * np.maximum(X[:, 1], 0.0)
model = cnn.gated_relu(X, cnn.sample_gates(X, 8, seed=0))
(weights,) = model.variables
problem = cp.Problem(
    cp.Minimize(cp.sum_squares(model.prediction - y) / 80 + 0.01 * model.penalty), [weights >= 0.0]
)

for solver in (AugmentedLagrangian(), cp.CLARABEL):
    problem.solve(solver=solver)
    print(f"{solver}: {certificate(problem)}")
print(f"smallest weight {weights.value.min():.1e}")
