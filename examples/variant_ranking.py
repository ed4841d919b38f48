"""Who comes first: a logistic loss of every pair of which it is known, as for lifetimes that end unseen.

Source: Burges et al., *Learning to rank using gradient descent*, ICML 2005; pairs of censored lifetimes:
Steck et al., *On ranking in survival analysis*, NIPS 2007.
"""

from __future__ import annotations

import cvxpy as cp
import numpy as np

import convexnn_models as cnn
from convexnn_solvers import AugmentedLagrangian, certificate

rng = np.random.default_rng(0)
X = rng.standard_normal((40, 3))
lifetime = np.exp(np.abs(X[:, 0]) + 0.3 * rng.standard_normal(40))
seen = rng.random(40) < 0.7  # the others were alive at that time
longer, shorter = np.nonzero((lifetime[:, None] > lifetime) & seen)
model = cnn.relu(X, cnn.sample_gates(X, 8, seed=0))
ahead = model.prediction[longer] - model.prediction[shorter]
loss = cp.sum(cp.logistic(-ahead)) / longer.size
problem = cp.Problem(cp.Minimize(loss + 0.01 * model.penalty), model.constraints)

for solver in (AugmentedLagrangian(), cp.CLARABEL):
    problem.solve(solver=solver)
    print(f"{solver}: {certificate(problem)}")
print(f"{100 * np.mean(ahead.value > 0.0):.0f} % of the {longer.size} pairs are in order")
