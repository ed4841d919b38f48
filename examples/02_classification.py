"""Three kinds of wine: one network with three outputs, softmax loss, accuracy on held-out samples."""

from __future__ import annotations

import numpy as np
from sklearn.datasets import load_wine
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

import convexnn_models as cnn
from convexnn_solvers import Auto, certificate

X, y = load_wine(return_X_y=True)
X, held_out, y, held_out_y = train_test_split(X, y, random_state=0, stratify=y)
scaler = StandardScaler().fit(X)
X, held_out = scaler.transform(X), scaler.transform(held_out)

gates = cnn.sample_gates(X, 100, seed=0, bias=True)
model = cnn.gated_relu(X, gates, outputs=3, bias=True)
problem = model.problem(y, reg=0.02, loss="softmax")
problem.solve(solver=Auto())
print(certificate(problem))

network = cnn.recover(model)
classes = np.argmax(network.predict(held_out), axis=1)
print(f"{network.width} neurons, held-out accuracy {np.mean(classes == held_out_y):.1%}")
