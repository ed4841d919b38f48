"""The size of the network is bounded, not priced: the least loss of weights whose norms sum to 1.5 at most.

Source: Tibshirani, *Regression shrinkage and selection via the lasso*, JRSS B 1996, equation (1).
"""

from __future__ import annotations

import cvxpy as cp
import numpy as np

import convexnn_models as cnn
from convexnn_solvers import Auto, certificate

rng = np.random.default_rng(0)
X = rng.standard_normal((60, 4))
y = np.abs(X[:, 0]) - X[:, 1] + 0.1 * rng.standard_normal(60)
model = cnn.relu(X, cnn.sample_gates(X, 12, seed=0))
loss = cp.sum_squares(model.prediction - y) / 120
problem = cp.Problem(cp.Minimize(loss), [*model.constraints, model.penalty <= 1.5])

for solver in (Auto(), cp.CLARABEL):
    problem.solve(solver=solver)
    print(f"{solver}: {certificate(problem)}")
print(f"the regularisation that spends 1.5 is {problem.constraints[-1].dual_value:.3f}")
