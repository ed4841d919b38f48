"""Quadratic activations with l1-penalised outputs: the nuclear norm, and the same as a semidefinite program.

A neuron a (w.x)^2 with ||w|| = 1 is x^T (a w w^T) x, and sum |a| at its least the nuclear norm of the sum of
these matrices. ``cnn.polynomial`` writes it with two semidefinite matrices. Source: Bartan and Pilanci,
*Neural spectrahedra and semidefinite lifts*, 2021.
"""

from __future__ import annotations

import cvxpy as cp
import numpy as np

import convexnn_models as cnn
from convexnn_solvers import RFISTA, certificate

rng = np.random.default_rng(0)
X = rng.standard_normal((40, 4))
y = X[:, 0] * X[:, 1] + 0.1 * rng.standard_normal(40)
matrix = cp.Variable((4, 4), name="Q")
prediction = cp.sum(cp.multiply(X @ matrix, X), axis=1)
loss = cp.sum_squares(prediction - y) / 80
problem = cp.Problem(cp.Minimize(loss + 0.05 * cp.normNuc(matrix)))

for solver in (RFISTA(), cp.CLARABEL):
    problem.solve(solver=solver)
    print(f"{solver}: {certificate(problem)}")
lifted = cnn.polynomial(X, a=1.0, b=0.0, c=0.0).problem(y, reg=0.05)
lifted.solve(solver=cp.CLARABEL)
print(f"as a semidefinite program: {lifted.value:.9g}")
