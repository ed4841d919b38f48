"""A dose-response curve: it never falls, and stays between 0 and 1.

Source: Barlow, Bartholomew, Bremner and Brunk, *Statistical Inference under Order Restrictions*, Wiley 1972.
"""

from __future__ import annotations

from typing import Any

import cvxpy as cp
import numpy as np

import convexnn_models as cnn
from convexnn_solvers import AugmentedLagrangian, certificate

rng = np.random.default_rng(0)
dose = np.sort(rng.uniform(-2.0, 2.0, 30))
X = np.column_stack([dose, np.ones(30)])
y = 1.0 / (1.0 + np.exp(-3.0 * dose)) + 0.2 * rng.standard_normal(30)
model = cnn.gated_relu(X, cnn.sample_gates(X, 8, seed=0))
curve = model.prediction
shape: list[Any] = [cp.diff(curve) >= 0.0, curve >= 0.0, curve <= 1.0]
problem = cp.Problem(cp.Minimize(cp.sum_squares(curve - y) / 60 + 0.001 * model.penalty), shape)

for solver in (AugmentedLagrangian(), cp.CLARABEL):
    problem.solve(solver=solver)
    print(f"{solver}: {certificate(problem)}")
print(f"steepest fall {min(np.diff(curve.value).min(), 0.0):.1e}, range {np.ptp(curve.value):.2f}")
