"""Ten classes of handwritten digits: three ways to tie ten outputs together, and the network of each."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA

import convexnn_models as cnn
from convexnn_solvers import Auto, certificate

images, labels = load_digits(return_X_y=True)
features = PCA(20, random_state=0).fit_transform(images)
features *= 2.0 / np.sqrt(np.mean(np.sum(features**2, axis=1)))
X, test = features[:500], features[500:]
one_hot = np.eye(10)[labels[:500]]


def report(model: cnn.ConvexModel, solver: object, reg: float) -> None:
    """Train, certify, recover; what the network costs by itself, and how many digits it knows."""
    problem = model.problem(one_hot, reg)
    problem.solve(solver=solver)
    network = cnn.recover(model)
    right = np.mean(network.predict(test).argmax(axis=1) == labels[500:])
    print(f"  {certificate(problem)}")
    print(f"  {network}, objective {network.objective(X, one_hot, reg):.6f}; {right:.1%} of held-out digits")


gates = cnn.sample_gates(X, 40, seed=0)
options: dict[str, Any] = {"outputs": 10, "output_bias": True}
print("one-vs-all: every neuron feeds one output; the network's objective is the convex one")
report(cnn.gated_relu(X, gates, grouping="per-output", **options), Auto(tol=1e-4), reg=1e-3)
print("shared: outputs choose gates together; twin of alpha_j D_j X W_j, a lower bound for weight decay")
report(cnn.gated_relu(X, gates, grouping="shared", **options), Auto(tol=1e-4), reg=3e-3)

few = cnn.sample_gates(X, 10, seed=0)
print("one-vs-all, ReLU: the same with cones")
report(cnn.relu(X, few, grouping="per-output", **options), Auto(tol=1e-4), reg=3e-3)
print("nuclear: neurons feed all outputs, the exact twin of weight decay for gated networks")
report(cnn.gated_relu(X, few, grouping="nuclear", **options), Auto(tol=1e-4), reg=3e-3)
