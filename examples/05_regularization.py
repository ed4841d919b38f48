"""One problem for many regularisations: `model.reg` is a cp.Parameter, and every solve starts warm."""

from __future__ import annotations

import numpy as np

import convexnn_models as cnn
from convexnn_solvers import Auto, certificate

rng = np.random.default_rng(0)
X = rng.standard_normal((200, 10))
y = np.maximum(X @ rng.standard_normal((10, 3)), 0.0).sum(axis=1)
model = cnn.gated_relu(X, cnn.sample_gates(X, 200, seed=0))

largest = cnn.lambda_max(model, y)  # from here on the zero network is optimal
problem = model.problem(y, reg=largest)
for share in (1.0, 0.5, 0.2, 0.1, 0.05):
    model.reg.value = share * largest
    problem.solve(solver=Auto())
    proof = certificate(problem)
    width = cnn.recover(model).width
    steps = problem.solver_stats.num_iters
    print(
        f"reg {model.reg.value:8.5f}: objective {problem.value:.5f}, certified within "
        f"{proof.relative_gap:.1e}, {width:3d} neurons, {steps} iterations"
    )
