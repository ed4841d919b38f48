"""Two classes, the logistic loss, and samples of a rare class that count more.

Source: King and Zeng, *Logistic regression in rare events data*, Political Analysis 9, 2001.
"""

from __future__ import annotations

import cvxpy as cp
import numpy as np

import convexnn_models as cnn
from convexnn_solvers import AugmentedLagrangian, certificate

rng = np.random.default_rng(0)
X = rng.standard_normal((40, 3))
y = np.where(np.abs(X[:, 0]) > 1.3, 1.0, -1.0)
share = np.mean(y > 0.0)
weight = np.where(y > 0.0, 0.5 / share, 0.5 / (1.0 - share)) / 40
model = cnn.relu(X, cnn.sample_gates(X, 8, seed=0))
loss = weight @ cp.logistic(-cp.multiply(y, model.prediction))
problem = cp.Problem(cp.Minimize(loss + 0.005 * model.penalty), model.constraints)

for solver in (AugmentedLagrangian(), cp.CLARABEL):
    problem.solve(solver=solver)
    print(f"{solver}: {certificate(problem)}")
print(f"training accuracy {np.mean(np.sign(model.prediction.value) == y):.2f}")
