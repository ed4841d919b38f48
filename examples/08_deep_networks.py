"""Beyond two layers: where parallel branches close the duality gap, and where standard networks keep it."""

from __future__ import annotations

import cvxpy as cp
import numpy as np

import convexnn_models as cnn

rng = np.random.default_rng(0)

# Deep linear networks that fit their targets exactly.
X = rng.standard_normal((20, 6))
Y = X @ rng.standard_normal((6, 3))
print("depth  parallel  standard  its dual  its gap")
for depth in (2, 3, 4, 5):
    fit = cnn.linear_interpolation(X, Y, depth)
    print(
        f"{depth:5d} {fit.parallel:9.4f} {fit.standard:9.4f} {fit.standard_dual:9.4f} {fit.standard_gap:8.4f}"
    )

# Penalised, with noise: a nuclear norm, solved and certified; one rank-one branch per singular value.
noisy = Y + 0.5 * rng.standard_normal(Y.shape)
model = cnn.parallel_linear(X, depth=3, outputs=3)
model.problem(noisy, reg=0.3)
print(cnn.solve_parallel_linear(model))
print(cnn.recover(model))

# Three-layer ReLU networks on rank-one data: the gap depends on the angle between the two sides' targets.
c = np.array([1.0, 2.0, -1.0, -0.5])
print("angle  parallel  standard  its dual  its gap")
for angle in (0.0, 0.3, 1.0, np.pi / 2):
    p, q = np.array([1.0, 0.0]), np.array([np.cos(angle), np.sin(angle)])
    targets = np.maximum(c, 0.0)[:, None] * p + np.maximum(-c, 0.0)[:, None] * q
    three = cnn.rank_one_three_layer(np.outer(c, [0.6, 0.8]), targets)
    print(f"{angle:5.2f} {three.parallel:9.4f} {three.standard:9.4f} {three.dual:9.4f} {three.gap:8.4f}")

# A handful of samples of any rank: the exact convex program of parallel three-layer networks.
few, labels = rng.standard_normal((4, 2)), rng.standard_normal(4)
tiny = cnn.three_layer(few, cnn.all_gates(few))
problem = tiny.problem(labels, reg=0.02)
problem.solve(solver=cp.CLARABEL)
network = cnn.recover(tiny)
print(f"{network}, objective {network.objective(few, labels, 0.02):.7f}, the program's {problem.value:.7f}")
