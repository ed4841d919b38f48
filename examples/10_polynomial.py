"""A network with a quadratic activation, trained to its global optimum: a semidefinite program."""

from __future__ import annotations

import cvxpy as cp
import numpy as np
from sklearn.datasets import load_diabetes
from sklearn.preprocessing import normalize, scale

import convexnn_models as cnn

X, y = load_diabetes(return_X_y=True)
X = np.asarray(normalize(scale(X)))  # rows of norm one suit the activation
y = scale(y)

model = cnn.polynomial(X, a=0.09, b=0.5, c=0.47)  # imitates ReLU on [-5, 5]
problem = model.problem(y, reg=1e-3)  # an ordinary cp.Problem with two semidefinite matrices
problem.solve(solver=cp.CLARABEL)
print("Clarabel: ", cnn.polynomial_certificate(model))

fit = cnn.solve_polynomial(model)  # the same problem, by a solver that knows its structure
print("our own:  ", fit)

network = cnn.recover(model)  # neural decomposition, exact
print(network)
print(f"the network's own objective {network.objective(X, y, 1e-3):.9f}, the program's {problem.value:.9f}")

# Width in the hundreds: every pair of features as a feature of its own.
pairs = normalize(scale((X[:, :, None] * X[:, None, :]).reshape(len(X), -1)))
wide = cnn.polynomial(pairs, a=0.09, b=0.5, c=0.47)
wide.problem(y, reg=1e-3)
print("100 wide: ", cnn.solve_polynomial(wide))
