"""The 10 % and the 90 % quantile at once, with curves that may not cross at any sample.

Source: Koenker and Bassett, *Regression quantiles*, Econometrica 46, 1978; the constraint: He, *Quantile
curves without crossing*, The American Statistician 51, 1997.
"""

from __future__ import annotations

import cvxpy as cp
import numpy as np

import convexnn_models as cnn
from convexnn_solvers import AugmentedLagrangian, certificate

rng = np.random.default_rng(0)
X = rng.standard_normal((40, 3))
y = X[:, 0] + np.abs(X[:, 1]) * rng.standard_normal(40)
gates = cnn.sample_gates(X, 6, seed=0)
low, high = cnn.gated_relu(X, gates), cnn.gated_relu(X, gates)
loss = 0.0
for model, level in ((low, 0.1), (high, 0.9)):
    error = y - model.prediction
    loss += cp.sum(cp.maximum(level * error, (level - 1.0) * error)) / 40
penalty = low.penalty + high.penalty
problem = cp.Problem(cp.Minimize(loss + 0.05 * penalty), [low.prediction <= high.prediction])

for solver in (AugmentedLagrangian(), cp.CLARABEL):
    problem.solve(solver=solver)
    print(f"{solver}: {certificate(problem)}")
inside = (low.prediction.value <= y) & (y <= high.prediction.value)
print(f"{100 * inside.mean():.0f} % of the labels lie between the curves")
