"""Targets and their gradients: where the slope of a function is known too, few samples are enough.

Within its pattern a network is linear, so that its gradient at a sample is the sum of the weights of the
gates that are active there. Source: Czarnecki et al., *Sobolev training for neural networks*, NIPS 2017.
"""

from __future__ import annotations

import cvxpy as cp
import numpy as np

import convexnn_models as cnn
from convexnn_solvers import AugmentedLagrangian, certificate

rng = np.random.default_rng(0)
X = rng.standard_normal((40, 3))
y, gradients = np.abs(X[:, 0]) + 0.5 * X[:, 1], np.zeros((40, 3))
gradients[:, 0], gradients[:, 1] = np.sign(X[:, 0]), 0.5
gates = cnn.sample_gates(X, 8, seed=0)
model = cnn.relu(X, gates)
V, W = model.variables
slopes = gates.patterns.astype(float) @ (V - W).T  # (n, d)
loss = (cp.sum_squares(model.prediction - y) + cp.sum_squares(slopes - gradients)) / 80
problem = cp.Problem(cp.Minimize(loss + 0.01 * model.penalty), model.constraints)

for solver in (AugmentedLagrangian(), cp.CLARABEL):
    problem.solve(solver=solver)
    print(f"{solver}: {certificate(problem)}")
print(f"slopes off by {np.abs(slopes.value - gradients).mean():.3f} on average")
