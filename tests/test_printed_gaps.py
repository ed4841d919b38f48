"""Tables of paths, sweeps and comparisons print the gap and what violations may be worth, as one number."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import convexnn_models as cnn
from convexnn_models import paths, sweeps
from convexnn_solvers import Auto, Certificate, certificate
from convexnn_solvers.comparison import compare as compare_module

_X = np.random.default_rng(0).standard_normal((20, 3))
_Y = np.abs(_X[:, 0]) + 0.1 * _X[:, 1]


def model() -> Any:
    return cnn.gated_relu(_X, cnn.sample_gates(_X, 4, seed=0))


def owing(found: Certificate) -> Certificate:
    """The same with violations that may be worth half of the objective."""
    return replace(found, price=0.5 * found.primal)


def test_what_violations_are_worth_is_part_of_the_proved_gap() -> None:
    problem = model().problem(_Y, 0.01)
    problem.solve(solver=Auto())
    found = certificate(problem)
    assert found.proved_gap == found.relative_gap
    assert owing(found).proved_gap == pytest.approx(0.5, abs=1e-3)
    assert not owing(found).within(0.4)
    assert owing(found).within(0.6)
    assert replace(found, relative_gap=None).proved_gap is None


def test_paths_and_sweeps_print_it() -> None:
    (point,) = paths.regularization_path(model(), _Y, regs=[0.01])
    path = paths.RegularizationPath((replace(point, certificate=owing(point.certificate)),))
    assert " 5.0e-01 " in str(path)
    swept = sweeps.sweep(_X, _Y, n_gates=4, folds=2, regs=[0.01])
    points = tuple(replace(point, certificate=owing(point.certificate)) for point in swept.points)
    assert " 5.0e-01 " in str(replace(swept, points=points))


def test_comparisons_print_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare_module, "certificate", lambda *given: owing(certificate(*given)))
    table = compare_module.compare(model().problem(_Y, 0.01), [Auto()], verbose=False)
    (row,) = table.rows
    assert row["relative_gap"] == pytest.approx(0.5, abs=1e-3)
    assert " 5.0e-01 " in str(table)
