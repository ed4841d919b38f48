"""Adversarial training: the squared hinge of the worst inputs within a Euclidean distance of each sample.

The gates see the clean inputs. Source: Bai, Gautam and Sojoudi, *Efficient global optimization of two-layer
ReLU networks: quadratic-time algorithms and adversarial training*, SIAM J. Math. Data Science 5, 2023.
"""

from __future__ import annotations

import cvxpy as cp
import numpy as np

import convexnn_models as cnn
from convexnn_solvers import AugmentedLagrangian, certificate

rng = np.random.default_rng(0)
X = rng.standard_normal((40, 3))
y = np.sign(X[:, 0])
gates = cnn.sample_gates(X, 6, seed=0)
model = cnn.gated_relu(X, gates)
slopes = gates.patterns.astype(float) @ model.variables[0].T  # (n, d): of the prediction at each sample
reach = cp.Variable(40)  # at least the length of the slope
margin = cp.multiply(y, model.prediction) - 0.2 * reach
loss = cp.sum_squares(cp.pos(1.0 - margin)) / 40
problem = cp.Problem(cp.Minimize(loss + 0.01 * model.penalty), [cp.SOC(reach, slopes, axis=1)])

for solver in (AugmentedLagrangian(), cp.CLARABEL):
    problem.solve(solver=solver)
    print(f"{solver}: {certificate(problem)}")
print(f"correct under attack: {np.mean(np.asarray(margin.value) > 0.0):.2f}")
