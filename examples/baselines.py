"""Plain torch networks for the image examples: SGD and Adam, tuned over a stated grid within a time budget.

Tuning is not free: half of the budget goes to one trial per learning rate, the best trial then gets the rest.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

#: The learning rates that are tried; SGD has momentum 0.9.
GRID = {"SGD": (0.3, 0.1, 0.03), "Adam": (3e-3, 1e-3, 3e-4)}
BATCH = 128


@dataclass(frozen=True)
class Outcome:
    """What became of one optimiser: its best learning rate, passes over the data, seconds, accuracy."""

    optimiser: str
    rate: float
    epochs: float
    seconds: float
    accuracy: float

    def __str__(self) -> str:
        return (
            f"{self.optimiser:28s} accuracy {self.accuracy:7.2%}   {self.seconds:7.1f} s   "
            f"(rate {self.rate:g} of {len(GRID[self.optimiser])}, {self.epochs:.1f} epochs, no certificate)"
        )


class _Trial:
    """One network with one learning rate, trained a while at a time."""

    def __init__(self, network: torch.nn.Module, name: str, rate: float, data: list[torch.Tensor]) -> None:
        self.network, self.rate, self.data = network, rate, data
        parameters = network.parameters()
        if name == "SGD":
            self.optimiser: Any = torch.optim.SGD(parameters, lr=rate, momentum=0.9)
        else:
            self.optimiser = torch.optim.Adam(parameters, lr=rate)
        self.batches = self._batches()
        self.samples = 0

    def train(self, seconds: float) -> None:
        """Train for so long, at least one batch."""
        ends = time.perf_counter() + seconds
        self.network.train()
        while True:
            X, y = next(self.batches)
            self.optimiser.zero_grad()
            torch.autograd.backward(torch.nn.functional.cross_entropy(self.network(X), y))
            self.optimiser.step()
            self.samples += len(y)
            if time.perf_counter() >= ends:
                return

    def accuracy(self, X: torch.Tensor, y: torch.Tensor) -> float:
        """The share of samples that the network classifies rightly."""
        self.network.eval()
        with torch.no_grad():
            blocks = (slice(start, start + 1000) for start in range(0, len(y), 1000))
            right = sum(float(torch.sum(self.network(X[rows]).argmax(1) == y[rows])) for rows in blocks)
        return right / len(y)

    def _batches(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        X, y = self.data
        while True:
            order = torch.randperm(len(y), device=y.device)
            for start in range(0, len(y), BATCH):
                rows = order[start : start + BATCH]
                yield X[rows], y[rows]


def compare_with_sgd(
    build: Callable[[], torch.nn.Module],
    train: tuple[NDArray[np.float64], NDArray[np.int64]],
    test: tuple[NDArray[np.float64], NDArray[np.int64]],
    seconds: float,
    device: str = "cpu",
) -> list[Outcome]:
    """SGD and Adam, each with ``seconds`` in all, tuning included; the rate is chosen on held-out tenths."""
    torch.manual_seed(0)
    tensors = [torch.as_tensor(a, device=device) for a in (train[0].astype(np.float32), train[1])]
    fresh = [torch.as_tensor(a, device=device) for a in (test[0].astype(np.float32), test[1])]
    held = max(1, len(tensors[1]) // 10)
    inside, outside = [t[held:] for t in tensors], [t[:held] for t in tensors]
    outcomes: list[Outcome] = []
    for name, rates in GRID.items():
        started = time.perf_counter()
        trials = [_Trial(build().to(device), name, rate, inside) for rate in rates]
        for trial in trials:
            trial.train(0.5 * seconds / len(trials))
        best = max(trials, key=lambda trial: trial.accuracy(outside[0], outside[1]))
        best.data = tensors  # what was held out counts from now on
        best.train(max(0.0, seconds - (time.perf_counter() - started)))
        spent = time.perf_counter() - started
        accuracy = best.accuracy(fresh[0], fresh[1])
        outcomes.append(Outcome(name, best.rate, best.samples / len(tensors[1]), spent, accuracy))
    return outcomes
