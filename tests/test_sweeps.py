"""Seeds and folds in parallel: the same numbers wherever joblib runs them, and honest held-out losses."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

import convexnn_models as cnn
from convexnn_models.sweeps import Sweep, sweep
from convexnn_solvers import SemismoothNewton

joblib: Any = pytest.importorskip("joblib", reason="pip install 'convexnn[sweeps]'")

RNG = np.random.default_rng(0)
X = RNG.standard_normal((40, 3))
Y = np.maximum(X @ RNG.standard_normal(3), 0.0) + 0.1 * RNG.standard_normal(40)
CLASSES = (Y > np.median(Y)).astype(int)


def small(**options: Any) -> Sweep:
    given: dict[str, Any] = {"n_gates": 8, "seeds": (0, 1), "folds": 2, "n_regs": 3} | options
    return sweep(X, given.pop("y", Y), **given)


@pytest.fixture(scope="module")
def serial() -> Sweep:
    return small()


@contextmanager
def loky() -> Generator[None]:
    with joblib.parallel_config(backend="loky", n_jobs=2):
        yield
    joblib.externals.loky.get_reusable_executor().shutdown(wait=True)


@contextmanager
def dask() -> Generator[None]:
    """A cluster of two processes on this machine; a real one only has another address."""
    distributed: Any = pytest.importorskip("distributed", reason="pip install distributed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with (
            distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
            distributed.Client(cluster),
            joblib.parallel_config(backend="dask"),
        ):
            yield


@pytest.mark.parametrize("place", [loky, dask])
def test_a_sweep_has_the_same_numbers_wherever_it_runs(place: Any, serial: Sweep) -> None:
    with place():
        elsewhere = small()
    assert [(p.seed, p.fold, p.reg) for p in elsewhere] == [(p.seed, p.fold, p.reg) for p in serial]
    for name in ("primal", "dual"):
        ours, theirs = ([getattr(p.certificate, name) for p in points] for points in (elsewhere, serial))
        np.testing.assert_allclose(ours, theirs, rtol=1e-9)
    np.testing.assert_allclose(elsewhere.held_out, serial.held_out, rtol=1e-9)


def test_every_point_is_certified(serial: Sweep) -> None:
    assert len(serial) == 2 * 2 * 3
    assert repr(serial) == f"Sweep(12 trainings, best reg {serial.best_reg:.4g})"
    assert repr(serial[0]).startswith(
        f"SweepPoint(seed=0, fold=0, reg={serial.regs[0]:.4g}, optimal, held_out="
    )
    for point in serial:
        assert point.certificate.relative_gap is not None
        assert point.certificate.relative_gap <= 1e-3


def test_every_sample_is_left_out_once_per_seed() -> None:
    zero = small(regs=[1e3], folds=3)
    assert all(point.network.width == 0 for point in zero)
    sizes = [14, 13, 13]
    for seed in (0, 1):
        total = sum(sizes[p.fold] * p.held_out for p in zero if p.seed == seed)
        assert total == pytest.approx(0.5 * float(np.sum(Y**2)))


def test_nothing_of_a_sample_left_out_is_seen_in_training() -> None:
    spoiled = Y.copy()
    spoiled[7] += 5.0
    pairs = list(zip(small(regs=[0.02], folds=4), small(regs=[0.02], folds=4, y=spoiled), strict=True))
    same = [np.array_equal(a.network.W1, b.network.W1) for a, b in pairs]
    for seed in (0, 1):
        assert sum(kept for kept, (a, _) in zip(same, pairs, strict=True) if a.seed == seed) == 1
    for kept, (a, b) in zip(same, pairs, strict=True):
        assert (a.held_out != b.held_out) or not kept


def test_the_best_regularisation_has_the_smallest_mean_loss(serial: Sweep) -> None:
    means = {reg: np.mean([p.held_out for p in serial if p.reg == reg]) for reg in serial.regs}
    assert serial.best_reg == min(means, key=lambda reg: means[reg])
    assert str(serial).count("\n") == 3


def test_formulations_losses_and_solvers_are_passed_on() -> None:
    found = sweep(
        X,
        CLASSES,
        n_gates=6,
        folds=2,
        regs=[0.01],
        formulation=functools.partial(cnn.gated_relu, outputs=2, bias=True),
        bias=True,
        loss="softmax",
        tol=1e-2,
    )
    assert [p.network.predict(X).shape for p in found] == [(40, 2)] * 2
    cones = small(formulation=cnn.relu, solver=SemismoothNewton(tol=1e-6), seeds=(3,), n_regs=2)
    assert all(p.status == "optimal" for p in cones)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"folds": 1}, "folds must lie"),
        ({"folds": 41}, "folds must lie"),
        ({"seeds": ()}, "at least one seed"),
        ({"seeds": (-1,)}, "every entry of seeds must be at least 0"),
        ({"seeds": (0.5,)}, "every entry of seeds must be a whole number"),
        ({"ratio": 0.0}, "ratio must lie between 0 and 1"),
        ({"regs": [0.1, 0.0]}, "regs must be a non-empty sequence of positive"),
        ({"regs": ["a"]}, "regs must hold real numbers"),
        ({"y": np.zeros(40)}, "y leaves nothing to fit"),
        ({"y": np.append(Y, 1.0)}, "one entry per sample, 40"),
    ],
)
def test_bad_arguments_are_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        small(**options)
