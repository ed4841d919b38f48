"""Fair predictions: the means over two groups of people may differ by 0.05 at most.

Source: Calders et al., *Controlling attribute effect in linear regression*, ICDM 2013.
"""

from __future__ import annotations

import cvxpy as cp
import numpy as np

import convexnn_models as cnn
from convexnn_solvers import AugmentedLagrangian, certificate

rng = np.random.default_rng(0)
X = rng.standard_normal((40, 3))
group = X[:, 2] > 0.0
y = X[:, 0] + 1.0 * group
model = cnn.relu(X, cnn.sample_gates(X, 8, seed=0))
means = [cp.sum(model.prediction[mask]) / mask.sum() for mask in (group, ~group)]
fair = [means[0] - means[1] <= 0.05, means[1] - means[0] <= 0.05]
loss = cp.sum_squares(model.prediction - y) / 80
problem = cp.Problem(cp.Minimize(loss + 0.01 * model.penalty), model.constraints + fair)

for solver in (AugmentedLagrangian(), cp.CLARABEL):
    problem.solve(solver=solver)
    print(f"{solver}: {certificate(problem)}")
before = y[group].mean() - y[~group].mean()
print(f"means differ by {means[0].value - means[1].value:.4f}, those of the labels by {before:.2f}")
