"""Hard physical equalities: a temperature profile that meets its two boundary values and conserves its mean.

Source: Beucler et al., *Enforcing analytic constraints in neural networks*, Phys. Rev. Letters 126, 2021.
"""

from __future__ import annotations

from typing import Any

import cvxpy as cp
import numpy as np

import convexnn_models as cnn
from convexnn_solvers import AugmentedLagrangian, certificate

rng = np.random.default_rng(0)
place = np.linspace(-1.0, 1.0, 31)
X = np.column_stack([place, np.ones(31)])
y = np.cos(np.pi * place / 2.0) + 0.2 * rng.standard_normal(31)
model = cnn.gated_relu(X, cnn.sample_gates(X, 10, seed=0))
profile = model.prediction
laws: list[Any] = [profile[0] == 0.0, profile[30] == 0.0, cp.sum(profile) / 31 == 0.62]
problem = cp.Problem(cp.Minimize(cp.sum_squares(profile - y) / 62 + 0.001 * model.penalty), laws)

for solver in (AugmentedLagrangian(), cp.CLARABEL):
    problem.solve(solver=solver)
    print(f"{solver}: {certificate(problem)}")
print(f"boundary values {profile.value[0]:.1e} and {profile.value[30]:.1e}, mean {profile.value.mean():.6f}")
