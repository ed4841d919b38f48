"""Handwritten digits: one layer of filters with pooling, by convex programs of three kinds.

With ``mnist.npz`` in the folder that the environment variable CONVEXNN_DATA names, MNIST's too.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

import convexnn_models as cnn
from convexnn_models.datasets import load_mnist
from convexnn_solvers import Auto, certificate

images, labels = load_digits(return_X_y=True)
chosen = np.flatnonzero((labels == 3) | (labels == 8))
patches = cnn.image_patches(images[chosen].reshape(-1, 8, 8) / 16.0, size=3)  # (n, 36, 9)
y = np.where(labels[chosen] == 3, 1.0, -1.0)
train, test = slice(0, 120), slice(120, None)
windows = cnn.window_pooling(6, 6, 3)  # four windows of nine positions, with weights of their own


def accuracy(network: cnn.ConvolutionalNetwork | cnn.PolynomialNetwork) -> str:
    """The share of held-out digits that a network tells apart."""
    right = np.sign(network.predict(patches[test])) == y[test]
    return f"{np.mean(right):.1%} of {right.size} held-out digits"


# Gated filters: any solver takes the problem, ours without forming a matrix.
gates = cnn.sample_gates(cnn.stacked_patches(patches[train]), 12, seed=1)
model = cnn.convolutional(patches[train], gates, cells=windows, relu=False, output_bias=True)
problem = model.problem(y[train], reg=1e-3)
problem.solve(solver=Auto(), tol=1e-4)
filters = cnn.recover(model)
print(certificate(problem))
print(f"{filters}\n  {accuracy(filters)}")

# ReLU filters on the same patterns: every filter is held to its pattern by a cone.
relu = cnn.convolutional(patches[train], gates, cells=cnn.global_pooling(36), output_bias=True)
problem = relu.problem(y[train], reg=5e-3)
problem.solve(solver=Auto(), tol=1e-4)
print(f"{certificate(problem)}\n{cnn.recover(relu)}\n  {accuracy(cnn.recover(relu))}")

# Filters with a quadratic activation: the global optimum over all filters, nothing sampled.
lifted = cnn.polynomial(patches[train], 0.09, 0.5, 0.47, cells=windows, output_bias=True)
lifted.problem(y[train], reg=1e-4)
print(cnn.solve_polynomial(lifted))
quadratic = cnn.recover(lifted)
print(f"{quadratic}\n  {accuracy(quadratic)}")

folder = os.environ.get("CONVEXNN_DATA")
if folder and (Path(folder) / "mnist.npz").is_file():
    mnist = load_mnist(1500, 1000)
    pictures, digits = np.vstack([mnist.X_train, mnist.X_test]), np.append(mnist.y_train, mnist.y_test)
    chosen = np.flatnonzero((digits == 3) | (digits == 8))
    y = np.where(digits[chosen] == 3, 1.0, -1.0)
    patches = cnn.image_patches(pictures[chosen].reshape(-1, 28, 28), size=8, stride=4)  # 6 x 6 positions
    gates = cnn.sample_gates(cnn.stacked_patches(patches[train]), 20, seed=0)
    model = cnn.convolutional(patches[train], gates, cells=windows, relu=False, output_bias=True)
    problem = model.problem(y[train], reg=3e-2)
    problem.solve(solver=Auto(), tol=1e-4)
    print(f"MNIST\n{certificate(problem)}\n  {accuracy(cnn.recover(model))}")
