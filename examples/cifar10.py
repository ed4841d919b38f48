"""Colour images by convex programs: dense and 3 x 3 convolutional gates, certified, beside scnn and SGD.

    python examples/cifar10.py --samples 50000 --gates 4000 --device cuda    # full size, on a GPU
    python examples/cifar10.py --samples 2000 --gates 100                    # minutes on two cores

A convolutional gate looks at one 3 x 3 window of the image; the weights that it lets through see all of it.
Images are read from $CONVEXNN_DATA (cifar-10-binary.tar.gz, or cifar10_jpeg.npz with Pillow) or downloaded
once. The comparisons need torch and scnn.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from side_by_side import arguments, beside_scnn, beside_torch, train_gated

import convexnn_models as cnn
from convexnn_models.datasets import Dataset, load_cifar10
from convexnn_models.samplers import convolutional

SHAPE = (32, 32, 3)


def main() -> None:
    """One gated network per kind of gates."""
    parser = arguments(__doc__, samples=2000, gates=100, reg=1e-3)
    chosen = parser.parse_args()
    data = centred(load_cifar10(chosen.samples, chosen.test))
    print(data)
    seconds = 0.0
    for name, sampler in (("dense gates", "gaussian"), ("3 x 3 gates", convolutional(SHAPE, 3))):
        gates = cnn.sample_gates(data.X_train, chosen.gates, seed=0, bias=True, sampler=sampler)
        spent = train_gated(name, data, gates, chosen)
        beside_scnn(name, data, gates, spent, chosen)
        seconds = max(seconds, spent)
    if chosen.no_torch:
        return
    width = 10 * chosen.gates
    beside_torch(data, lambda: dense(width), f"{width} hidden neurons", seconds, chosen.device)
    count = chosen.gates
    beside_torch(data, lambda: filters(count), f"{count} filters of 3 x 3", seconds, chosen.device)


def centred(data: Dataset) -> Dataset:
    """Without the mean of the training images: gates then cut through the middle of the samples."""
    mean = data.X_train.mean(axis=0)
    return replace(data, X_train=data.X_train - mean, X_test=data.X_test - mean)


def dense(width: int) -> Any:
    """A torch network with as many hidden neurons as a gated one has at most."""
    from torch import nn

    return nn.Sequential(nn.Linear(3072, width), nn.ReLU(), nn.Linear(width, 10))


def filters(count: int) -> Any:
    """A torch network of one layer of filters, averaged over positions."""
    from torch import nn

    class ChannelsFirst(nn.Module):
        """(n, 3072) -> (n, 3, 32, 32)."""

        def forward(self, X: Any) -> Any:
            """Rows of pixels as images."""
            return X.reshape(-1, *SHAPE).permute(0, 3, 1, 2)

    layers = (nn.Conv2d(3, count, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(count, 10))
    return nn.Sequential(ChannelsFirst(), *layers)


if __name__ == "__main__":
    main()
