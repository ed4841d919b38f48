"""Path regularisation: the sum over all paths from an input to the output of the product of |weights|.

For two layers the path norm of a neuron is |a| ||w||_1, so its convex twin has l1 norms where weight decay
has Euclidean ones. Source: Neyshabur, Tomioka and Srebro, *Norm-based capacity control in neural networks*,
COLT 2015.
"""

from __future__ import annotations

import cvxpy as cp
import numpy as np

import convexnn_models as cnn
from convexnn_solvers import RFISTA, certificate

rng = np.random.default_rng(0)
X = rng.standard_normal((40, 3))
y = np.maximum(X[:, 0], 0.0) - np.maximum(X[:, 1], 0.0)
model = cnn.gated_relu(X, cnn.sample_gates(X, 8, seed=0))
paths = cp.sum(cp.abs(model.variables[0]))
loss = cp.sum_squares(model.prediction - y) / 80
problem = cp.Problem(cp.Minimize(loss + 0.02 * paths))

for solver in (RFISTA(), cp.CLARABEL):
    problem.solve(solver=solver)
    print(f"{solver}: {certificate(problem)}")
print(f"path norm {np.abs(model.variables[0].value).sum():.4f}")
