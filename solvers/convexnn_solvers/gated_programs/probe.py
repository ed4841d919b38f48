"""Whether the linear map of a loss is a sum of gated maps: compared at random points, which decides it.

There are several maps where the cells of a convolutional network have weights of their own.
"""

from __future__ import annotations

import numpy as np

from convexnn_solvers.backends import Float64Array
from convexnn_solvers.composite import Composite
from convexnn_solvers.gated_programs.maps import GatedMap, refusal, row_sizes
from convexnn_solvers.reading.affine import TapeMap, UnsupportedProblem

# Two linear maps that agree at random points to this accuracy, relative to their terms, are the same.
_AGREE = 1e-10


class GatedProbe:
    """The linear map of the loss at random points, against the gated maps."""

    def __init__(self, composite: Composite, maps: tuple[GatedMap, ...]) -> None:
        assert isinstance(composite.affine, TapeMap)
        self._composite, self._maps = composite, maps
        self._map = composite.affine.select((0,))
        self._rng = np.random.default_rng(0)
        self._rows = np.max([row_sizes(one) for one in maps], axis=0)[:, None]
        self._shape = (self._rows.shape[0], maps[0].outputs)
        self._latest = 0

    @property
    def shift(self) -> Float64Array:
        """The loss's argument at zero, (n, c)."""
        return np.asarray(self._map.forward(self._composite.zeros())[0]).reshape(self._shape)

    def mirror(self, weights: list[int], others: list[int]) -> Float64Array:
        """The signs +-1 (n, c) between the gated map and the loss's argument; +1 if they are all equal."""
        image, base, size = self._both(weights[0], self._cell(weights[0]))
        signs = np.where(np.abs(base) > 1e-6 * size, np.sign(image) * np.sign(base), 0.0)
        if np.all(signs >= 0.0) or np.all(signs <= 0.0):
            return np.ones(self._shape)
        for position in others:  # samples that no gate sees
            constant = self._image(position, np.ones(self._composite.variables[position].shape))
            signs = np.where(signs == 0.0, np.sign(constant), signs)
        return np.where(signs == 0.0, 1.0, signs)

    def weight_factor(self, position: int, mirror: Float64Array) -> tuple[float, int]:
        """The f with which a weight variable enters, as ``f * mirror o map(variable)``, and the map."""
        cell = self._cell(position)
        image, base, _ = self._both(position, cell)
        squared = float(np.vdot(base, base))
        factor = float(np.vdot(image, mirror * base)) / squared if squared > 0.0 else 0.0
        image, base, size = self._both(position, cell)
        if factor == 0.0 or np.any(np.abs(image - factor * mirror * base) > _AGREE * abs(factor) * size):
            raise self._unfit(position)
        return factor, cell

    def _cell(self, position: int) -> int:
        """The map that a weight variable goes through, up to signs; often that of the one before."""
        count = len(self._maps)
        for cell in (number % count for number in range(self._latest, self._latest + count)):
            image, base, size = self._both(position, cell)
            largest = float(np.max(np.abs(base), initial=0.0))
            factor = float(np.max(np.abs(image), initial=0.0)) / largest if largest > 0.0 else 0.0
            if count == 1 or np.all(np.abs(np.abs(image) - factor * np.abs(base)) <= _AGREE * factor * size):
                self._latest = cell
                return cell
        raise self._unfit(position)

    def offset_factor(self, position: int, mirror: Float64Array) -> float:
        """The number f for a variable that adds ``f * mirror o entry k`` to every prediction of output k."""
        size = int(np.prod(self._composite.variables[position].shape))
        if size != self._shape[1]:
            raise self._unfit(position)
        columns = np.stack([mirror * self._image(position, unit) for unit in np.eye(size)])
        factor = float(columns[0, 0, 0])
        wrong = np.abs(columns - factor * np.eye(size)[:, None, :]) > _AGREE * abs(factor)
        if factor == 0.0 or np.any(wrong):
            raise self._unfit(position)
        return factor

    def _both(self, position: int, cell: int) -> tuple[Float64Array, Float64Array, Float64Array]:
        """The loss's map and a gated map of a random value, and the size of the latter's terms, (n, c)."""
        operator = self._maps[cell]
        value = self._rng.standard_normal(self._composite.variables[position].shape)
        base = operator.forward(value).reshape(self._shape)
        bound = (1.0 + abs(operator.slope)) * float(np.linalg.norm(value))
        return self._image(position, value), base, bound * self._rows * np.ones(self._shape)

    def _image(self, position: int, value: Float64Array) -> Float64Array:
        x = list(self._composite.zeros())
        x[position] = value.reshape(x[position].shape)
        image = np.asarray(self._map.linear(tuple(x))[0])
        if image.size != self._shape[0] * self._shape[1]:
            raise self._unfit(position)
        return image.reshape(self._shape)

    def _unfit(self, position: int) -> UnsupportedProblem:
        name = self._composite.variables[position].name
        return refusal(f"{self._composite.losses[0].text} depends on {name} in another way")
