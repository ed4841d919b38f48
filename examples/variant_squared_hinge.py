"""A classifier with a margin: the squared hinge loss.

Source: Chang, Hsieh and Lin, *Coordinate descent method for large-scale L2-loss linear SVM*, JMLR 9, 2008.
"""

from __future__ import annotations

import cvxpy as cp
import numpy as np

import convexnn_models as cnn
from convexnn_solvers import AugmentedLagrangian, certificate

rng = np.random.default_rng(0)
X = rng.standard_normal((40, 3))
y = np.sign(X[:, 0] * X[:, 1])
model = cnn.relu(X, cnn.sample_gates(X, 8, seed=0))
loss = cp.sum_squares(cp.pos(1.0 - cp.multiply(y, model.prediction))) / 40
problem = cp.Problem(cp.Minimize(loss + 0.01 * model.penalty), model.constraints)

for solver in (AugmentedLagrangian(), cp.CLARABEL):
    problem.solve(solver=solver)
    print(f"{solver}: {certificate(problem)}")
print(f"training accuracy {np.mean(np.sign(model.prediction.value) == y):.2f}")
