"""Certificates against problems whose optimum is known: sound at every point, tight at the optimum."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray
from planted import LossName, Planted, plant
from scipy.optimize import nnls

from convexnn_solvers.certify.certificate import Certificate, Certifier
from convexnn_solvers.composite import DualPoint

Float = NDArray[np.float64]


@dataclass(frozen=True)
class Case:
    """What :func:`planted.plant` takes, besides the seed, and how many points the fuzz tries."""

    cones: bool
    outputs: int = 1
    shared: bool = True
    loss: LossName = "squared"
    bias: bool = False
    uniform: bool = False
    degenerate: bool = False
    points: int = 60

    def plant(self, seed: int) -> Planted:
        return plant(
            seed,
            cones=self.cones,
            outputs=self.outputs,
            shared=self.shared,
            loss=self.loss,
            bias=self.bias,
            uniform=self.uniform,
            degenerate=self.degenerate,
        )

    def __str__(self) -> str:
        parts = ["relu" if self.cones else "gated", self.loss, f"{self.outputs} outputs"]
        parts += ["shared"] * self.shared + ["bias"] * self.bias + ["uniform"] * self.uniform
        parts += ["degenerate"] * self.degenerate
        return " ".join(parts)


CASES = [
    Case(cones=False, points=1000),
    Case(cones=True, points=1000),
    Case(cones=False, uniform=True),
    Case(cones=True, uniform=True),
    Case(cones=False, bias=True),
    Case(cones=True, bias=True),
    Case(cones=False, outputs=3, shared=True),
    Case(cones=False, outputs=3, shared=False),
    Case(cones=False, outputs=2, shared=True, bias=True, uniform=True),
    Case(cones=True, outputs=2, shared=True),
    Case(cones=True, outputs=2, shared=False),
    Case(cones=True, outputs=2, shared=True, bias=True),
    Case(cones=False, degenerate=True),
    Case(cones=True, degenerate=True),
    Case(cones=True, degenerate=True, bias=True, uniform=True),
    Case(cones=False, loss="huber"),
    Case(cones=True, loss="huber", bias=True),
    Case(cones=False, loss="huber", outputs=2, bias=True),
    Case(cones=False, loss="logistic"),
    Case(cones=True, loss="logistic"),
    Case(cones=False, loss="logistic", bias=True),
    Case(cones=True, loss="logistic", bias=True, outputs=2, shared=False),
    Case(cones=False, loss="absolute"),
    Case(cones=True, loss="absolute", bias=True),
    Case(cones=True, loss="hinge"),
    Case(cones=False, loss="hinge", outputs=2, shared=False),
    Case(cones=False, loss="quantile", bias=True),
    Case(cones=True, loss="quantile", outputs=2),
]

all_cases = pytest.mark.parametrize("case", CASES, ids=str)


def _points(planted: Planted, rng: np.random.Generator, count: int) -> list[tuple[Float, ...]]:
    """Near and far, inside and outside the cones, sparse and dense, and the origin."""
    optimum = planted.point
    points = [tuple(np.zeros_like(v) for v in optimum)]
    while len(points) < count:
        noise = tuple(rng.standard_normal(v.shape) for v in optimum)
        scale = np.power(10.0, rng.uniform(-10, 2))
        style = len(points) % 5
        if style == 0:
            points.append(tuple(scale * z for z in noise))
        elif style == 1:
            points.append(tuple(v + scale * z for v, z in zip(optimum, noise, strict=True)))
        elif style == 2:
            factor = rng.uniform(-1, 3)
            points.append(tuple(factor * v for v in optimum))
        elif style == 3:
            keep = rng.random() < 0.5
            points.append(tuple(v * (keep | (rng.random(v.shape[-1:]) < 0.7)) for v in optimum))
        else:
            columns = rng.random(optimum[0].shape[1]) < 0.3
            points.append(tuple(z * columns if z.ndim == 2 else z for z in noise))
    return points


def _optimal_dual(planted: Planted) -> DualPoint:
    shape = (len(planted.X),) if planted.outputs == 1 else planted.theta.shape
    theta = planted.theta.reshape(shape)
    if planted.loss in ("logistic", "hinge"):  # these losses read -y * prediction
        theta = -planted.targets.reshape(shape) * theta
    return DualPoint((theta,))


def _violation(planted: Planted, x: tuple[Float, ...]) -> float:
    worst, d = 0.0, planted.X.shape[1]
    if planted.cones:
        for U in x[:2]:
            for k in range(planted.outputs):
                slack = np.where(planted.patterns, 1.0, -1.0) * (planted.X @ U[k * d : (k + 1) * d])
                worst = max(worst, -float(slack.min()))
    return worst


def _assert_sound(certificate: Certificate, planted: Planted) -> None:
    assert certificate.dual is not None
    assert certificate.gap is not None
    assert certificate.relative_gap is not None
    scale = max(abs(certificate.primal), abs(certificate.dual))
    assert certificate.dual <= planted.value + 1e-13 * planted.value
    assert certificate.gap >= certificate.primal - planted.value - 1e-13 * scale
    assert certificate.gap >= 0.0
    assert certificate.gap == certificate.primal - certificate.dual
    assert certificate.relative_gap == pytest.approx(certificate.gap / scale, rel=1e-12)


@all_cases
def test_gap_is_at_least_the_true_suboptimality(case: Case) -> None:
    rng = np.random.default_rng(17)
    for seed in range(4):
        planted = case.plant(seed)
        certifier = Certifier(planted.composite())
        for x in _points(planted, rng, case.points // 4):
            certificate = certifier.certify(x)
            _assert_sound(certificate, planted)
            feasible = certifier.repair(x)
            assert _violation(planted, feasible) <= 1e-12 * max(
                float(np.abs(v).max()) for v in (*x, np.ones(1))
            )
            assert certificate.primal == pytest.approx(planted.objective(feasible), rel=1e-12)
            assert certificate.max_violation == pytest.approx(_violation(planted, x), rel=1e-12, abs=1e-15)
            if _violation(planted, x) == 0.0:
                assert not certificate.repaired


@all_cases
@pytest.mark.parametrize("seed", range(5))
def test_gap_closes_at_the_optimum(case: Case, seed: int) -> None:
    planted = case.plant(seed)
    # At the kinks of a loss the residual does not determine the dual variable: there it is given.
    duals = [_optimal_dual(planted)] if case.loss in ("absolute", "hinge", "quantile") else []
    certificate = Certifier(planted.composite()).certify(planted.point, duals)
    _assert_sound(certificate, planted)
    assert certificate.relative_gap is not None
    assert certificate.relative_gap <= 1e-12
    assert certificate.primal == pytest.approx(planted.value, rel=1e-13)
    assert certificate.note == ""


@all_cases
def test_the_returned_dual_point_proves_the_bound_anywhere(case: Case) -> None:
    """The optimal dual point is recognised, and certifies its value whatever the primal point."""
    planted = case.plant(3)
    certifier = Certifier(planted.composite())
    far = tuple(np.ones_like(v) for v in planted.point)
    certificate = certifier.certify(far, [_optimal_dual(planted)])
    assert certificate.dual == pytest.approx(planted.value, rel=1e-12)
    _assert_sound(certificate, planted)
    found = certificate.dual_point
    assert found is not None
    zero = tuple(np.zeros_like(v) for v in planted.point)
    assert certifier.certify(zero, [found]).dual == pytest.approx(certificate.dual, rel=1e-12)


@all_cases
def test_no_candidate_can_make_a_bound_wrong(case: Case) -> None:
    """Thetas from anywhere: infeasible, huge, tiny, outside the conjugate's domain, of wrong signs."""
    rng = np.random.default_rng(23)
    planted = case.plant(2)
    certifier = Certifier(planted.composite())
    shape = (len(planted.X),) if planted.outputs == 1 else planted.theta.shape
    best = certifier.certify(planted.point, [_optimal_dual(planted)]).dual_point
    assert best is not None
    constraints = [term.shape for term in certifier.composite.constraints]
    for _ in range(20):
        scale = np.power(10.0, rng.uniform(-12, 12))
        theta = best.thetas[0] * rng.choice([-1.0, 1.0, 1.1, 30.0]) + scale * rng.standard_normal(shape)
        multipliers = tuple(scale * rng.standard_normal(s) for s in constraints)
        x = tuple(rng.standard_normal(v.shape) for v in planted.point)
        with_multipliers = DualPoint((theta,), multipliers)
        _assert_sound(certifier.certify(x, [DualPoint((theta,)), with_multipliers]), planted)
        _assert_sound(certifier.certify(planted.point, [with_multipliers]), planted)


def test_a_candidate_never_makes_the_bound_worse() -> None:
    rng = np.random.default_rng(29)
    planted = plant(5, cones=True)
    certifier = Certifier(planted.composite())
    x = tuple(v + 0.1 * rng.standard_normal(v.shape) for v in planted.point)
    alone = certifier.certify(x).dual
    assert alone is not None
    for _ in range(20):
        noise = DualPoint((rng.standard_normal(len(planted.X)),))
        together = certifier.certify(x, [noise]).dual
        assert together is not None
        assert together >= alone - 1e-12 * abs(alone)


@pytest.mark.parametrize(
    "candidate",
    [
        DualPoint((np.full(20, np.nan),)),
        DualPoint((np.full(20, np.inf),)),
        DualPoint((np.ones(19),)),
        DualPoint((np.ones((20, 1)),)),
        DualPoint((np.ones(20), np.ones(20))),
        DualPoint((np.ones(20),), (np.ones(3),)),
        DualPoint((np.ones(20),), (np.full((20, 8), np.nan), None)),
        DualPoint((np.ones(20),), (None, None, None)),
        DualPoint((np.array(["a"] * 20),)),
    ],
)
def test_unusable_candidates_are_ignored_and_reported(candidate: DualPoint) -> None:
    planted = plant(1, cones=True)
    certifier = Certifier(planted.composite())
    certificate = certifier.certify(planted.point, [candidate])
    _assert_sound(certificate, planted)
    assert certificate.relative_gap is not None
    assert certificate.relative_gap <= 1e-12
    assert "1 dual candidate" in certificate.note


def test_exact_multipliers_are_accepted_as_hints() -> None:
    """The true multipliers of the cones change nothing; swapped between the two signs they do no harm."""
    planted = plant(4, cones=True, uniform=True)
    composite = planted.composite()
    certifier = Certifier(composite)
    dual = certifier.certify(planted.point).dual_point
    assert dual is not None
    pulled = composite.affine.adjoint((dual.thetas[0], None, None))
    rhos = []
    for z in pulled:
        rho = np.zeros((20, 8))
        for j in range(8):
            B = np.where(planted.patterns[:, [j]], 1.0, -1.0) * planted.X
            rho[:, j] = nnls(B.T, -z[:, j])[0]
        rhos.append(rho)
    far = tuple(np.ones_like(v) for v in planted.point)
    for multipliers in ((rhos[0], rhos[1]), (rhos[1], rhos[0]), (-rhos[0], -rhos[1]), (rhos[0], None)):
        certificate = certifier.certify(far, [DualPoint(dual.thetas, multipliers)])
        _assert_sound(certificate, planted)
        assert certificate.dual == pytest.approx(planted.value, rel=1e-10)


def test_points_are_never_written_to() -> None:
    planted = plant(6, cones=True, bias=True)
    rng = np.random.default_rng(0)
    x = tuple(rng.standard_normal(v.shape) for v in planted.point)
    candidate = DualPoint((rng.standard_normal(20),), tuple(rng.standard_normal((20, 8)) for _ in range(2)))
    copies = [v.copy() for v in (*x, candidate.thetas[0])]
    first = Certifier(planted.composite()).certify(x, [candidate])
    for before, after in zip(copies, (*x, candidate.thetas[0]), strict=True):
        np.testing.assert_array_equal(before, after)
    second = Certifier(planted.composite()).certify(x, [candidate])
    assert (first.primal, first.dual) == (second.primal, second.dual)


def test_a_used_certifier_agrees_with_a_fresh_one() -> None:
    """Remembered active rows speed projections up and change nothing."""
    planted = plant(7, cones=True)
    composite = planted.composite()
    used, rng = Certifier(composite), np.random.default_rng(1)
    for _ in range(30):
        x = tuple(rng.standard_normal(v.shape) for v in planted.point)
        fresh = Certifier(composite).certify(x)
        again = used.certify(x)
        assert again.dual == pytest.approx(fresh.dual, rel=1e-12)
        assert again.primal == pytest.approx(fresh.primal, rel=1e-13)
