"""Train a two-layer ReLU network to a certified optimum, and use it."""

from __future__ import annotations

from sklearn.datasets import load_diabetes
from sklearn.preprocessing import scale

import convexnn_models as cnn
from convexnn_solvers import Auto, certificate

X, y = load_diabetes(return_X_y=True)
X, y = scale(X), scale(y)

gates = cnn.sample_gates(X, 20, seed=0, bias=True)  # 20 activation patterns of the data
model = cnn.relu(X, gates, bias=True)  # the convex program of networks with these patterns
problem = model.problem(y, reg=0.05)  # an ordinary cp.Problem
problem.solve(solver=Auto())
print(certificate(problem))  # how far this is from the optimum, proved

network = cnn.recover(model)  # an ordinary ReLU network
print(network, network.predict(X)[:3])
print(f"the network's own objective {network.objective(X, y, 0.05):.9f}, the program's {problem.value:.9f}")
