"""Handwritten digits by convex programs: gated networks with ten outputs, certified, beside scnn and SGD.

    python examples/mnist.py --samples 60000 --gates 5000 --device cuda     # full size, on a GPU
    python examples/mnist.py --samples 10000 --gates 300                    # minutes on two cores
    python examples/mnist.py --samples 1000 --gates 50 --relu 5 --path 5    # a path and a ReLU network too

Digits are read from $CONVEXNN_DATA/mnist.npz or downloaded once. The comparisons need torch and scnn.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from typing import Any

import numpy as np
from side_by_side import arguments, beside_scnn, beside_torch, report, solver, train_gated

import convexnn_models as cnn
from convexnn_models.datasets import Dataset, load_mnist
from convexnn_solvers import Auto

# The ReLU network gets so many digits at most, and so many times the regularisation.
_RELU_SAMPLES, _RELU_REG = 500, 10.0


def main() -> None:
    """The programs that the command line asks for."""
    parser = arguments(__doc__, samples=10_000, gates=300, reg=1e-3)
    parser.add_argument("--path", type=int, default=0, help="so many regularisations around reg too")
    parser.add_argument("--relu", type=int, default=0, help="a ReLU network with so many gates too")
    chosen = parser.parse_args()
    data = load_mnist(chosen.samples, chosen.test)
    print(data)
    gates = cnn.sample_gates(data.X_train, chosen.gates, seed=0, bias=True)
    seconds = train_gated("gated network", data, gates, chosen)
    beside_scnn("gated network", data, gates, seconds, chosen)
    if not chosen.no_torch:
        width = 10 * chosen.gates
        beside_torch(data, lambda: network(width), f"{width} hidden neurons", seconds, chosen.device)
    if chosen.path:
        path(data, gates, chosen)
    if chosen.relu:
        relu(data, chosen)


def network(width: int) -> Any:
    """A torch network with as many hidden neurons as the gated one has at most."""
    from torch import nn

    return nn.Sequential(nn.Linear(784, width), nn.ReLU(), nn.Linear(width, 10))


def path(data: Dataset, gates: cnn.Gates, chosen: argparse.Namespace) -> None:
    """A few regularisations, each warm-started from the one before."""
    model = cnn.gated_relu(data.X_train, gates, outputs=10, bias=True)
    regs = np.geomspace(10.0 * chosen.reg, 0.1 * chosen.reg, chosen.path)
    print("\nregularisation  certified gap  seconds  test accuracy")
    found = cnn.regularization_path(model, np.eye(10)[data.y_train], regs=regs, solver=solver(chosen))
    for point in found.points:
        right = point.network.predict(data.X_test).argmax(axis=1) == data.y_test
        gap = point.certificate.relative_gap
        shown = "-" if gap is None else f"{gap:.2e}"
        print(f"{point.reg:14.2e} {shown:>14} {point.seconds:8.1f} {right.mean():14.2%}")


def relu(data: Dataset, chosen: argparse.Namespace) -> None:
    """The ReLU network: every block of weights lies in the cones of its pattern. Float64, on the CPU.

    The cones make this far harder: it gets digits of 14 x 14 pixels, at most 500 of them, and ten times the
    regularisation. Five gates take less than a minute on one core.
    """
    started = time.perf_counter()
    few = slice(_RELU_SAMPLES)
    data = replace(
        data,
        X_train=halved(data.X_train[few]),
        y_train=data.y_train[few],
        X_test=halved(data.X_test),
    )
    gates = cnn.sample_gates(data.X_train, chosen.relu, seed=0, bias=True)
    model = cnn.relu(data.X_train, gates, outputs=10, bias=True)
    problem = model.problem(np.eye(10)[data.y_train], _RELU_REG * chosen.reg)
    problem.solve(solver=Auto(tol=chosen.tol, time_limit=chosen.seconds))
    report(f"ReLU network, {len(data.y_train)} digits", problem, model, data, time.perf_counter() - started)


def halved(digits: Any) -> Any:
    """The means of squares of four pixels."""
    return digits.reshape(-1, 14, 2, 14, 2).mean(axis=(2, 4)).reshape(-1, 196)


if __name__ == "__main__":
    main()
