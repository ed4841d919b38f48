"""Ordered classes: one score, and thresholds between the classes that are fitted with it.

Source: McCullagh, *Regression models for ordinal data*, JRSS B 42, 1980; one logistic loss per threshold:
Rennie and Srebro, *Loss functions for preference levels*, IJCAI 2005.
"""

from __future__ import annotations

import cvxpy as cp
import numpy as np

import convexnn_models as cnn
from convexnn_solvers import AugmentedLagrangian, certificate

rng = np.random.default_rng(0)
X = rng.standard_normal((40, 3))
grade = np.digitize(np.abs(X[:, 0]) + 0.1 * rng.standard_normal(40), [0.4, 0.9, 1.4])  # 0, 1, 2, 3
model = cnn.relu(X, cnn.sample_gates(X, 8, seed=0))
thresholds = cp.Variable((1, 3))
above = np.where(grade[:, None] > np.arange(3), 1.0, -1.0)  # (n, 3): on which side of each threshold
margins = cp.multiply(above, cp.reshape(model.prediction, (40, 1), order="C") - thresholds)
loss = cp.sum(cp.logistic(-margins)) / 40
problem = cp.Problem(cp.Minimize(loss + 0.01 * model.penalty), model.constraints)

for solver in (AugmentedLagrangian(), cp.CLARABEL):
    problem.solve(solver=solver)
    print(f"{solver}: {certificate(problem)}")
predicted = np.sum(model.prediction.value[:, None] > thresholds.value, axis=1)
print(f"grades off by {np.abs(predicted - grade).mean():.2f} on average")
