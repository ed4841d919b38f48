"""Handwritten digits: one layer of filters with pooling, by convex programs of three kinds."""

from __future__ import annotations

import numpy as np
from sklearn.datasets import load_digits

import convexnn_models as cnn
from convexnn_solvers import RFISTA, certificate

images, labels = load_digits(return_X_y=True)
chosen = np.flatnonzero((labels == 3) | (labels == 8))
patches = cnn.image_patches(images[chosen].reshape(-1, 8, 8) / 16.0, size=3)  # (n, 36, 9)
y = np.where(labels[chosen] == 3, 1.0, -1.0)
train, test = slice(0, 200), slice(200, None)
windows = cnn.window_pooling(6, 6, 3)  # four windows of nine positions, with weights of their own


def accuracy(network: cnn.ConvolutionalNetwork | cnn.PolynomialNetwork) -> str:
    """The share of held-out digits that a network tells apart."""
    right = np.sign(network.predict(patches[test])) == y[test]
    return f"{np.mean(right):.1%} of {right.size} held-out digits"


# Gated filters: any solver takes the problem, ours without forming a matrix.
gates = cnn.sample_gates(cnn.stacked_patches(patches[train]), 12, seed=1)
model = cnn.convolutional(patches[train], gates, cells=windows, relu=False, output_bias=True)
problem = model.problem(y[train], reg=1e-3)
problem.solve(solver=RFISTA(), tol=1e-4)
filters = cnn.recover(model)
print(certificate(problem))
print(f"{filters}\n  {accuracy(filters)}")

# Filters with a quadratic activation: the global optimum over all filters, nothing sampled.
lifted = cnn.polynomial(patches[train], 0.09, 0.5, 0.47, cells=windows, output_bias=True)
lifted.problem(y[train], reg=1e-4)
print(cnn.solve_polynomial(lifted))
quadratic = cnn.recover(lifted)
print(f"{quadratic}\n  {accuracy(quadratic)}")
