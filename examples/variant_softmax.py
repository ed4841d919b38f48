"""Three classes and softmax cross-entropy with smoothed labels.

Source: Szegedy et al., *Rethinking the Inception architecture for computer vision*, CVPR 2016, section 7.
"""

from __future__ import annotations

import cvxpy as cp
import numpy as np

import convexnn_models as cnn
from convexnn_solvers import RFISTA, certificate

rng = np.random.default_rng(0)
X = rng.standard_normal((40, 3))
classes = np.argmax(np.abs(X), axis=1)
targets = 0.9 * np.eye(3)[classes] + 0.1 / 3.0
model = cnn.gated_relu(X, cnn.sample_gates(X, 8, seed=0), outputs=3)
scores = model.prediction
loss = cp.sum(cp.log_sum_exp(scores, axis=1) - cp.sum(cp.multiply(targets, scores), axis=1)) / 40
problem = cp.Problem(cp.Minimize(loss + 0.01 * model.penalty))

for solver in (RFISTA(), cp.CLARABEL):
    problem.solve(solver=solver)
    print(f"{solver}: {certificate(problem)}")
print(f"training accuracy {np.mean(np.argmax(scores.value, axis=1) == classes):.2f}")
