"""Convolutional networks: plain writing, trained networks, recovery, every solver, real digits."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import minimize, nnls

import convexnn_models as cnn
from convexnn_models.convolutional_network import ConvolutionalNetwork, Pooling
from convexnn_solvers import RFISTA, AugmentedLagrangian, SemismoothNewton, certificate

Array = NDArray[np.float64]
POOLINGS = [Pooling.AVERAGE, Pooling.SUM, Pooling.MAXIMUM]
CELLS = [cnn.global_pooling(3), ((0, 1), (2,)), cnn.flatten(3)]


def data(n: int = 10, K: int = 3, h: int = 2, seed: int = 0) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, K, h)), rng.standard_normal(n)


def every_gate(patches: Array, pooling: Pooling) -> cnn.Gates:
    """All patterns; for maximum pooling also all orders of the patches of a sample."""
    rows = cnn.stacked_patches(patches)
    if pooling is not Pooling.MAXIMUM:
        return cnn.all_gates(rows)
    pairs = combinations(range(patches.shape[1]), 2)
    differences = [patches[:, k] - patches[:, m] for k, m in pairs]
    return cnn.gates_from_vectors(rows, cnn.all_gates(np.vstack([rows, *differences])).vectors)


def plain_prediction(model: cnn.ConvolutionalModel) -> Array:
    """The network's formula, sample by sample, from the variables' values and the gate vectors."""
    n, _, h = model.patches.shape
    result = np.zeros((n, model.outputs))
    for cell, weights in zip(model.cells, model.blocks, strict=True):
        total = weights[0].value - (weights[1].value if len(weights) == 2 else 0.0)
        for i in range(n):
            x = model.patches[i, list(cell)]
            for j in range(len(model.filter_gates)):
                answers = x @ model.filter_gates.vectors[:, j]
                for k in range(model.outputs):
                    values = np.where(answers >= 0.0, x @ total[k * h : (k + 1) * h, j], 0.0)
                    if model.pooling is Pooling.MAXIMUM:
                        result[i, k] += values[np.argmax(answers)]
                    else:
                        result[i, k] += values.sum() / (len(cell) if model.pooling is Pooling.AVERAGE else 1)
    return result[:, 0] if model.outputs == 1 else result


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("cells", CELLS)
@pytest.mark.parametrize("options", [{}, {"relu": False, "outputs": 2}, {"outputs": 2, "bias": True}])
def test_the_prediction_is_the_formula(
    options: dict[str, Any], cells: tuple[tuple[int, ...], ...], pooling: Pooling
) -> None:
    patches, _ = data()
    bias = bool(options.get("bias", False))
    gates = cnn.sample_gates(cnn.stacked_patches(patches), 6, bias=bias)
    model = cnn.convolutional(patches, gates, cells=cells, pooling=pooling, **options)
    rng = np.random.default_rng(1)
    for variable in model.variables:
        variable.value = rng.standard_normal(variable.shape)
    np.testing.assert_allclose(model.prediction.value, plain_prediction(model), atol=1e-12)


def best_trained(patches: Array, y: Array, reg: float, pooling: Pooling, tries: int) -> float:
    """Non-convex training of eight filters on one cell with weight decay."""
    n, K, h = patches.shape
    m = 8
    rng = np.random.default_rng(2)

    def objective(v: Array) -> tuple[float, Array]:
        U, a = v[: h * m].reshape(h, m), v[h * m :]
        responses = patches @ U
        share = (responses > 0.0).astype(float)
        if pooling is Pooling.MAXIMUM:
            only = np.zeros_like(share)
            np.put_along_axis(only, responses.argmax(axis=1)[:, None, :], 1.0, axis=1)
            share *= only
        elif pooling is Pooling.AVERAGE:
            share /= K
        pooled = np.sum(share * responses, axis=1)
        residual = pooled @ a - y
        back = residual[:, None, None] * a / n
        d_U = np.einsum("nkh,nkm->hm", patches, share * back)
        value = float(residual @ residual) / (2 * n) + reg / 2 * float(v @ v)
        return value, np.concatenate([d_U.ravel(), pooled.T @ residual / n]) + reg * v

    best = np.inf
    for _ in range(tries):
        start = rng.standard_normal(h * m + m)
        best = min(best, float(minimize(objective, start, jac=True, method="L-BFGS-B").fun))
    return best


def planted(patches: Array, gates: cnn.Gates, pooling: Pooling, relu: bool) -> tuple[Array, float, float]:
    """Targets, reg and the optimal value: theta is drawn, the block that answers it most is the solution.

    Cone by cone with ``scipy.optimize.nnls``, and without the package's operators.
    """
    n, K, _ = patches.shape
    theta = np.random.default_rng(5).standard_normal(n) / n
    best, reg = np.zeros(n), 0.0
    for g in gates.vectors.T:
        answers = patches @ g
        share = np.full((n, K), 1.0 / K if pooling is Pooling.AVERAGE else 1.0)
        top = answers.argmax(axis=1)
        if pooling is Pooling.MAXIMUM:
            share = (np.arange(K) == top[:, None]).astype(float)
        pooled = np.einsum("nk,nkh->nh", share * (answers >= 0.0), patches)  # what u is multiplied with
        lit = answers >= 0.0
        cone = [(1.0 if lit[i, k] else -1.0) * patches[i, k] for i in range(n) for k in range(K)]
        if pooling is Pooling.MAXIMUM:  # the largest stays largest and positive, or all stay negative
            cone = [-patches[i, k] for i in range(n) for k in range(K) if not lit[i].any()]
            cone += [patches[i, top[i]] for i in range(n) if lit[i].any()]
            live = [i for i in range(n) if lit[i].any()]
            cone += [patches[i, top[i]] - patches[i, k] for i in live for k in range(K) if k != top[i]]
        for sign in (1.0, -1.0):
            pull = sign * pooled.T @ theta
            point = pull + np.array(cone).T @ nnls(np.array(cone).T, -pull)[0] if relu else pull
            if np.linalg.norm(point) > reg:
                reg, best = float(np.linalg.norm(point)), sign * pooled @ point
    y = 3.0 / reg * best + n * theta
    return y, reg, float(theta @ y - 0.5 * n * theta @ theta)


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_planted_optima_are_found(pooling: Pooling, relu: bool) -> None:
    patches, _ = data(12, 3, 4, seed=6)
    gates = cnn.sample_gates(cnn.stacked_patches(patches), 12, seed=6)
    y, reg, value = planted(patches, gates, pooling, relu)
    model = cnn.convolutional(patches, gates, pooling=pooling, relu=relu)
    problem = model.problem(y, reg)
    structured = not relu or pooling is not Pooling.MAXIMUM
    newton = [SemismoothNewton(tol=1e-6)] if structured else []
    for solver in (cp.CLARABEL, AugmentedLagrangian(tol=1e-6), *newton):
        for variable in model.variables:
            variable.value = None  # no solver starts at another's solution
        problem.solve(solver=solver)
        assert problem.value == pytest.approx(value, rel=1e-5)
        proof = certificate(problem)
        assert proof.dual is not None
        assert proof.dual <= value * (1.0 + 1e-9)
        assert cnn.recover(model).objective(patches, y, reg) == pytest.approx(value, rel=1e-5)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_the_value_is_that_of_the_best_trained_network(pooling: Pooling) -> None:
    patches, y = data(6, 3, 2, seed=3)
    model = cnn.convolutional(patches, every_gate(patches, pooling), pooling=pooling)
    problem = model.problem(y, 0.02)
    problem.solve(solver=cp.CLARABEL)
    best = best_trained(patches, y, 0.02, pooling, tries=150)
    assert problem.value * (1.0 - 1e-6) <= best <= problem.value * (1.0 + 1e-2)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("cells", CELLS)
@pytest.mark.parametrize("relu", [True, False])
def test_the_network_has_the_convex_objective(
    relu: bool, cells: tuple[tuple[int, ...], ...], pooling: Pooling
) -> None:
    patches, y = data()
    gates = cnn.sample_gates(cnn.stacked_patches(patches), 15)
    model = cnn.convolutional(patches, gates, cells=cells, pooling=pooling, relu=relu, output_bias=True)
    problem = model.problem(y, 0.02)
    problem.solve(solver=cp.CLARABEL)
    tol = 1e-6 if pooling is Pooling.MAXIMUM else 1e-7
    whole = cnn.recover(model, prune=False)
    assert whole.objective(patches, y, 0.02) == pytest.approx(problem.value, rel=tol)
    pruned = cnn.recover(model)
    assert pruned.width <= min(10, whole.width)
    assert pruned.objective(patches, y, 0.02) == pytest.approx(problem.value, rel=tol)
    fresh = np.random.default_rng(9).standard_normal((5, 3, 2))
    np.testing.assert_allclose(pruned.predict(fresh[:2]), pruned.predict(fresh)[:2])


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_all_solvers_agree_and_are_certified(pooling: Pooling, relu: bool) -> None:
    """Ours take pooled programs matrix-free; the cones of maximum pooling are left to interior points."""
    patches, y = data(20, 4, 3, seed=4)
    gates = cnn.sample_gates(cnn.stacked_patches(patches), 20)
    model = cnn.convolutional(patches, gates, pooling=pooling, relu=relu)
    solvers: list[tuple[Any, dict[str, Any], float]] = [
        (cp.CLARABEL, {}, 1e-6),
        (cp.SCS, {"eps": 1e-6}, 1e-3),
    ]
    if not relu or pooling is not Pooling.MAXIMUM:
        solvers.append((AugmentedLagrangian() if relu else RFISTA(), {"tol": 1e-5}, 2e-5))
        solvers.append((SemismoothNewton(), {"tol": 1e-5}, 2e-5))
    values: list[float] = []
    for solver, settings, tol in solvers:
        problem = model.problem(y, 0.05)
        for variable in model.variables:
            variable.save_value(np.zeros(variable.shape))
        problem.solve(solver=solver, **settings)
        values.append(float(problem.value))
        assert values[-1] == pytest.approx(values[0], rel=tol)
        proof = certificate(problem)
        if solver != cp.SCS:
            assert proof.relative_gap is not None
            assert -1e-12 <= proof.relative_gap <= 1.1e-5


def test_one_cell_per_position_with_one_patch_is_the_plain_network() -> None:
    patches, y = data(15, 1, 3)
    X = patches[:, 0]
    gates = cnn.sample_gates(X, 10)
    plain = cnn.relu(X, gates).problem(y, 0.03)
    plain.solve(solver=cp.CLARABEL)
    for pooling in POOLINGS:
        problem = cnn.convolutional(patches, gates, pooling=pooling).problem(y, 0.03)
        problem.solve(solver=cp.CLARABEL)
        assert problem.value == pytest.approx(plain.value, rel=1e-6)


def test_several_outputs_are_separate_problems() -> None:
    patches, _ = data()
    Y = np.random.default_rng(7).standard_normal((10, 2))
    gates = cnn.sample_gates(cnn.stacked_patches(patches), 10)
    for pooling in (Pooling.SUM, Pooling.MAXIMUM):
        total = 0.0
        for k in range(2):
            one = cnn.convolutional(patches, gates, pooling=pooling).problem(Y[:, k], 0.02)
            one.solve(solver=cp.CLARABEL)
            total += one.value
        model = cnn.convolutional(patches, gates, pooling=pooling, outputs=2)
        both = model.problem(Y, 0.02)
        both.solve(solver=cp.CLARABEL)
        assert both.value == pytest.approx(total, rel=1e-6)
        network = cnn.recover(model)
        assert network.objective(patches, Y, 0.02) == pytest.approx(total, rel=1e-6)


def test_real_digits_are_learned() -> None:
    """Threes against eights on 3 x 3 patches with pooled windows, by our solver, certified."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    chosen = np.flatnonzero((labels == 3) | (labels == 8))
    patches = cnn.image_patches(images[chosen].reshape(-1, 8, 8) / 16.0, 3)
    y = np.where(labels[chosen] == 3, 1.0, -1.0)
    gates = cnn.sample_gates(cnn.stacked_patches(patches[:200]), 12, seed=1)
    model = cnn.convolutional(
        patches[:200], gates, cells=cnn.window_pooling(6, 6, 3), relu=False, output_bias=True
    )
    problem = model.problem(y[:200], 1e-3)
    problem.solve(solver=RFISTA(), tol=1e-3)
    proof = certificate(problem)
    assert proof.relative_gap is not None
    assert proof.relative_gap <= 1.1e-3
    network = cnn.recover(model)
    accuracy = float(np.mean(np.sign(network.predict(patches[200:])) == y[200:]))
    assert accuracy > 0.93


P0 = np.random.default_rng(0).standard_normal((4, 3, 2))


def wrong(value: object) -> Any:
    return value


def gates0() -> cnn.Gates:
    return cnn.sample_gates(cnn.stacked_patches(P0), 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: cnn.convolutional(P0[:, 0], gates0()), r"shape \(n, K, h\)"),
        (lambda: cnn.convolutional(P0[:2], gates0()), "gates were made for"),
        (lambda: cnn.convolutional(P0, gates0(), cells=((0, 5),)), "positions from 0 to 2"),
        (lambda: cnn.convolutional(P0, gates0(), pooling=wrong("max")), "Pooling.AVERAGE"),
        (lambda: cnn.convolutional(P0, gates0(), outputs=0), "outputs must be at least 1"),
        (lambda: cnn.recover(cnn.convolutional(P0, gates0())), "solve a problem"),
        (lambda: network(output=np.ones((1, 1))), "output"),
        (lambda: network(gates=np.ones((3, 1))), "gates must have shape"),
        (lambda: network().predict(P0[:, :2]), "3 patches of 2"),
        (lambda: network().objective(P0, np.ones(4), -1.0), "reg must be at least 0"),
    ],
)
def test_bad_input_is_one_clear_sentence(call: Callable[[], object], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        call()


def network(output: Array | None = None, gates: Array | None = None) -> ConvolutionalNetwork:
    shape = np.ones((1, 1, 1)) if output is None else output
    return ConvolutionalNetwork(np.ones((2, 1)), shape, cnn.global_pooling(3), 3, gates=gates)
