"""What is solved: data sets, programs, numbers of gates and regularisations, as plain values."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convexnn_models import ConvexModel, Gates, gated_relu, lambda_max, relu, sample_gates
from convexnn_models import datasets as sets

Float64Array = NDArray[np.float64]
Data = tuple[Float64Array, Float64Array]

#: lam / lam_max, falling: the order in which they are run.
RATIOS = (1e-1, 1e-2, 1e-3)
#: The six sets of ``CONVEXNN_DATA/uci.npz`` (or its download); several classes become first against rest.
UCI = ("german", "heart", "mammographic", "pima", "segment", "vowel")


@dataclass(frozen=True)
class Case:
    """One program: a data set, a formulation ("gated" or "relu"), how many gates, and lam / lam_max."""

    data: str
    formulation: str
    gates: int
    ratio: float

    @property
    def key(self) -> str:
        """The name under which results are kept."""
        return f"{self.data} {self.formulation} P={self.gates} {self.ratio:g}"

    def larger_regs(self) -> list[Case]:
        """The same program at larger regularisations."""
        larger = (ratio for ratio in RATIOS if ratio > self.ratio)
        return [Case(self.data, self.formulation, self.gates, ratio) for ratio in larger]


@dataclass(frozen=True, eq=False)
class Instance:
    """The numbers of a case, in our scaling: 1/(2n) ||prediction - Y||^2 + reg * penalty.

    ``X`` (n, d) with its column of ones, ``Y`` (n,) or (n, c), ``patterns`` (n, P) bool and ``vectors``
    (d, P) as the model uses them; ``grouping`` as in ``gated_relu``.
    """

    case: Case
    X: Float64Array
    Y: Float64Array
    gates: Gates
    outputs: int
    grouping: str
    reg: float

    @property
    def relu(self) -> bool:
        """Whether the pattern cones are part of the program."""
        return self.case.formulation == "relu"

    def problem(self) -> tuple[ConvexModel, Any]:
        """A new model and ``cp.Problem``: nothing compiled, nothing to start from."""
        model = _model(self.X, self.gates, self.relu, self.outputs, self.grouping)
        return model, model.problem(self.Y, self.reg)


def instance(case: Case) -> Instance:
    """The numbers of a case; what its regularisations share is made once per process."""
    X, Y, gates, outputs, grouping, largest = _prepared(case.data, case.formulation, case.gates)
    return Instance(case, X, Y, gates, outputs, grouping, case.ratio * largest)


def grid(full: bool) -> list[Case]:
    """The cases of ``make bench`` or ``make bench-full``, regularisations of a program in falling order."""
    return list(_full() if full else _small())


def _small() -> Iterator[Case]:
    names = ("diabetes", "breast_cancer", "synthetic-500", "german", "digits", "digits10")
    for name in names:
        for formulation, gates in (("gated", 500), ("relu", 100)):
            yield from (Case(name, formulation, gates, ratio) for ratio in RATIOS)


def _full() -> Iterator[Case]:
    for gates in (100, 500, 1000):
        for name in (name for name in DATA if not name.startswith("tiny")):
            for formulation in ("gated", "relu"):
                yield from (Case(name, formulation, gates, ratio) for ratio in RATIOS)


@lru_cache(maxsize=4)
def _prepared(
    name: str, formulation: str, count: int
) -> tuple[Float64Array, Float64Array, Gates, int, str, float]:
    X, Y = _loaded(name)
    outputs = 1 if Y.ndim == 1 else Y.shape[1]
    grouping = "shared" if name.endswith("-shared") else "per-output"
    model = _model(X, sample_gates(X, count), formulation == "relu", outputs, grouping)
    assert model.gates is not None
    return X, Y, model.gates, outputs, grouping, lambda_max(model, Y)


def _model(X: Float64Array, gates: Gates, cones: bool, outputs: int, grouping: str) -> ConvexModel:
    return (relu if cones else gated_relu)(X, gates, outputs=outputs, grouping=grouping)


def _loaded(name: str) -> Data:
    if name not in DATA:
        raise ValueError(f"unknown data set {name!r}; the names are {', '.join(DATA)}.")
    return DATA[name]()


def _with_ones(X: Float64Array) -> Float64Array:
    return np.column_stack([X, np.ones(len(X))])


def _labelled(dataset: sets.Dataset) -> Data:
    """All samples; the labels -1 and 1, or the first class against the rest."""
    y = dataset.y_train
    first = y.max() if set(np.unique(y)) == {-1, 1} else 0
    return _with_ones(dataset.X_train), np.where(y == first, 1.0, -1.0)


def _diabetes() -> Data:
    dataset = sets.load_diabetes(test_fraction=0.0)
    return _with_ones(dataset.X_train), np.asarray(dataset.y_train, dtype=np.float64)


def _digits10() -> Data:
    dataset = sets.load_digits(test_fraction=0.0)
    return _with_ones(dataset.X_train), np.eye(10)[dataset.y_train]


def planted_data(n: int, d: int) -> Data:
    """Gaussian samples and a noisy network of ten ReLU neurons, standardised."""
    rng = np.random.default_rng(n + d)
    X = rng.standard_normal((n, d))
    hidden = np.maximum(X @ rng.standard_normal((d, 10)), 0.0)
    y = hidden @ rng.choice([-1.0, 1.0], 10)
    y += 0.1 * y.std() * rng.standard_normal(n)
    return X, np.asarray((y - y.mean()) / y.std())


def _tiny3() -> Data:
    X, y = planted_data(40, 4)
    return X, np.column_stack([y, X[:, 0], np.abs(y)])


def _uci(name: str) -> Callable[[], Data]:
    return lambda: _labelled(sets.load_uci(name, test_fraction=0.0))


#: How to make every data set: X (n, d) and Y (n,) or (n, c).
DATA: dict[str, Callable[[], Data]] = {
    "tiny": lambda: planted_data(40, 4),
    "tiny3": _tiny3,
    "diabetes": _diabetes,
    "breast_cancer": lambda: _labelled(sets.load_breast_cancer(test_fraction=0.0)),
    "synthetic-500": lambda: planted_data(500, 20),
    "synthetic-2000": lambda: planted_data(2000, 50),
    "digits": lambda: _labelled(sets.load_digits(test_fraction=0.0)),
    "digits10": _digits10,
    "digits10-shared": _digits10,
    **{name: _uci(name) for name in UCI},
}
