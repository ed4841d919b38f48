"""Gated and ReLU optima of the same gates: d* <= p* <= the decomposed network, for falling reg."""

from __future__ import annotations

import numpy as np

import convexnn_models as cnn

rng = np.random.default_rng(0)
X = rng.standard_normal((20, 2))
y = np.abs(X[:, 0]) - np.maximum(X[:, 1], 0.0) + 0.1 * rng.standard_normal(20)
regs = [10.0**-k for k in range(1, 6)]

for name, gates in (("every pattern", cnn.all_gates(X)), ("four sampled", cnn.sample_gates(X, 4))):
    print(f"{name}: {cnn.coverage(gates, X)}")
    print("                                    decomposed                before refitting")
    print("     reg     gated d*      ReLU p*     cheapest  approximate     cheapest  approximate  undecided")
    for point in cnn.gated_bridge(X, y, regs, gates):
        print(
            f"{point.reg:8.0e} {point.gated:12.7f} {point.relu_upper:12.7f} {point.decomposed:12.7f} "
            f"{point.approximate:12.7f} {point.raw:12.7f} {point.approximate_raw:12.7f} {point.gap:10.1%}"
        )
