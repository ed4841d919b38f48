"""The pricing problem: brackets around brute force and closed forms, by every method, also on bad data."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import nnls

from convexnn_models import pricing
from convexnn_models.arrangements import all_gates
from convexnn_models.ascent import ascend
from convexnn_models.bracket import Goal, Search, bracketed
from convexnn_models.cone_search import ConeSearch
from convexnn_models.pricing import Price, enumerated_price, local_maxima, price, relaxed_price
from convexnn_models.sign_search import SignSearch

Array = NDArray[np.float64]
SEARCHES: dict[str, Callable[[Array, Array, Array], Search]] = {"cones": ConeSearch, "signs": SignSearch}
METHODS: dict[str, Callable[[Array, Array], Price]] = {
    "price": lambda X, theta: price(X, theta, tol=1e-6),
    "relaxed": relaxed_price,
    "enumerated": enumerated_price,
}
TIGHT = ("price", "enumerated")


def value(X: Array, theta: Array, u: Array) -> float:
    return float(theta @ np.maximum(X @ u, 0.0))


def brute_force(X: Array, theta: Array) -> float:
    """Maximum over the ball of |theta^T (X u)_+|: a projection on the cone of every sign vector, by NNLS."""
    best = 0.0
    for signs in itertools.product([1.0, -1.0], repeat=len(X)):
        s = np.asarray(signs)
        block = X.T @ (theta * (s > 0.0))
        for z in (block, -block):
            best = max(best, float(nnls((s[:, None] * X).T, -z)[1]))
    return best


def small_instance(seed: int) -> tuple[Array, Array]:
    """Up to 8 samples in up to 4 dimensions: zero, duplicated, parallel, dependent, integer, any scale."""
    rng = np.random.default_rng(seed)
    n, d = int(rng.integers(1, 9)), int(rng.integers(1, 5))
    X = rng.standard_normal((n, d))
    kind = seed % 7
    if kind == 1:
        X = rng.integers(-1, 2, (n, d)).astype(float)
    elif kind == 2:
        X[rng.integers(n)] = 0.0
        X[rng.integers(n)] = -3.0 * X[0]
    elif kind == 3:
        X = rng.standard_normal((n, 2)) @ rng.standard_normal((2, d))
    elif kind == 4:
        X = np.hstack([X, np.ones((n, 1))])
    elif kind == 5:
        X = X * 10.0 ** rng.uniform(-3, 3, (n, 1))
    elif kind == 6:
        X = X[rng.integers(n, size=n)]
    theta = rng.standard_normal(n)
    if seed % 5 == 0:
        theta = np.round(theta)
    return X, theta


@pytest.mark.parametrize("method", METHODS)
def test_brackets_contain_brute_force(method: str) -> None:
    for seed in range(35):
        X, theta = small_instance(seed)
        truth = brute_force(X, theta)
        found = METHODS[method](X, theta)
        assert found.lower <= truth * (1.0 + 1e-9) + 1e-12, seed
        assert found.upper >= truth * (1.0 - 1e-9), seed
        assert found.upper >= found.lower
        if method in TIGHT:
            assert found.finished
            assert found.upper <= truth * (1.0 + 2e-6) + 1e-9, seed
        assert np.linalg.norm(found.witness) <= 1.0 + 1e-9
        assert abs(value(X, theta, found.witness)) >= found.lower - 1e-9 * (1.0 + found.lower)


@pytest.mark.parametrize("name", SEARCHES)
@pytest.mark.parametrize("d", [1, 2, 3, 4])
def test_each_search_finds_brute_force_from_nowhere(name: str, d: int) -> None:
    for seed in range(3):
        rng = np.random.default_rng(100 * d + seed)
        X, theta = rng.standard_normal((8, d)), rng.standard_normal(8)
        searches = [SEARCHES[name](X, sign * theta, np.zeros(d)) for sign in (1.0, -1.0)]
        found = bracketed(searches, Goal(tol=1e-5))
        truth = brute_force(X, theta)
        assert found.finished
        assert found.lower <= truth * (1.0 + 1e-9)
        assert truth * (1.0 - 1e-9) <= found.upper <= truth * (1.0 + 2e-5)


@pytest.mark.parametrize("name", SEARCHES)
@pytest.mark.parametrize("d", [1, 2, 5, 8])
def test_orthogonal_samples_have_a_closed_form(name: str, d: int) -> None:
    """X = [I; -I]: the maximum is sqrt(sum_k max(a_k, b_k, 0)^2)."""
    rng = np.random.default_rng(d)
    a, b = rng.standard_normal(d), rng.standard_normal(d)
    rotation = np.linalg.qr(rng.standard_normal((d, d)))[0]
    X = np.vstack([np.eye(d), -np.eye(d)]) @ rotation
    truth = float(np.linalg.norm(np.maximum(np.maximum(a, b), 0.0)))
    search = SEARCHES[name](X, np.concatenate([a, b]), np.zeros(d))
    found = bracketed([search], Goal(tol=1e-4, max_nodes=5000))
    assert found.lower <= truth * (1.0 + 1e-9) + 1e-12
    assert found.upper >= truth * (1.0 - 1e-9)
    if d <= 5:
        assert found.finished
        assert found.upper <= truth * (1.0 + 2e-4) + 1e-12


def test_in_the_plane_by_sweeping_angles() -> None:
    rng = np.random.default_rng(0)
    X, theta = rng.standard_normal((200, 2)), rng.standard_normal(200)
    angles = np.linspace(0.0, 2.0 * np.pi, 200_001)
    circle = np.stack([np.cos(angles), np.sin(angles)])
    swept = max(
        float(np.abs(theta @ np.maximum(X @ part, 0.0)).max()) for part in np.split(circle[:, 1:], 50, 1)
    )
    found = price(X, theta, tol=1e-9)
    assert found.finished
    assert swept * (1.0 - 1e-12) <= found.upper <= swept * (1.0 + 1e-7)


@pytest.mark.parametrize(("n", "d"), [(60, 3), (40, 4), (25, 5), (16, 7)])
def test_branch_and_bound_agrees_with_enumeration(n: int, d: int) -> None:
    rng = np.random.default_rng(n)
    X = np.hstack([rng.standard_normal((n, d - 1)), np.ones((n, 1))])
    theta = rng.standard_normal(n)
    listed = enumerated_price(X, theta)
    found = price(X, theta, tol=1e-4)
    assert found.finished
    assert listed.lower * (1.0 - 1e-9) <= found.upper <= listed.upper * (1.0 + 1.1e-4)
    assert listed.upper <= listed.lower * (1.0 + 1e-9)
    relaxed = relaxed_price(X, theta)
    assert relaxed.lower <= listed.upper
    assert relaxed.upper >= listed.lower


@pytest.mark.parametrize("entries", [20_000_000, 0])
def test_the_quick_bracket_holds_by_cones_and_by_signs(entries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """All samples in one half-plane, theta 1: the maximum is the length of their sum."""
    monkeypatch.setattr(pricing, "_QUICK_ENTRIES", entries)  # 0: as if there were too many samples for cones
    rng = np.random.default_rng(0)
    half = np.column_stack([1.0 + rng.random(300), 0.1 * rng.standard_normal(300)])
    found = relaxed_price(half, np.ones(300))
    truth = float(np.linalg.norm(half.sum(axis=0)))
    assert truth * (1.0 - 1e-9) <= found.upper <= truth * (1.0 + 1e-3)
    assert found.lower == pytest.approx(truth)


def test_gates_can_be_enumerated_once() -> None:
    rng = np.random.default_rng(3)
    X, theta = rng.standard_normal((20, 3)), rng.standard_normal((20, 2))
    gates = all_gates(X)
    for k in range(2):
        assert enumerated_price(X, theta[:, k], gates).upper == enumerated_price(X, theta[:, k]).upper


@pytest.mark.parametrize("d", [2, 6])
def test_limits_end_the_search_with_a_valid_bracket(d: int) -> None:
    rng = np.random.default_rng(d)
    X, theta = rng.standard_normal((60, d)), rng.standard_normal(60)
    full = price(X, theta, tol=1e-3)
    hurried = price(X, theta, tol=1e-12, time_limit=0.0)
    assert not hurried.finished
    assert hurried.upper >= full.lower
    loose = price(X, theta, floor=1.5 * full.upper)
    assert loose.finished
    assert full.lower <= loose.upper <= 1.5 * full.upper
    early = price(X, theta, enough=0.9 * full.lower)
    assert early.lower > 0.9 * full.lower
    assert early.upper >= full.lower


def test_vector_outputs_are_bounded_by_their_parts() -> None:
    rng = np.random.default_rng(5)
    X, theta = rng.standard_normal((30, 3)), rng.standard_normal((30, 3))
    found = price(X, theta, tol=1e-6)
    directions = rng.standard_normal((3, 200_000))
    directions /= np.linalg.norm(directions, axis=0)
    sampled = np.linalg.norm(theta.T @ np.maximum(X @ directions, 0.0), axis=0).max()
    parts = [price(X, theta[:, k], tol=1e-6).upper for k in range(3)]
    assert sampled * (1.0 - 1e-9) <= found.lower <= found.upper
    assert found.upper == pytest.approx(np.linalg.norm(parts), rel=1e-5)
    assert max(parts) < sampled  # the bound that would be wrong
    single = price(X, theta[:, :1])
    assert single.upper == price(X, theta[:, 0]).upper


@pytest.mark.parametrize("c", [1, 3])
def test_local_ascent_never_falls_and_stays_on_the_sphere(c: int) -> None:
    rng = np.random.default_rng(c)
    X, W = rng.standard_normal((50, 6)), rng.standard_normal((50, c))
    starts = rng.standard_normal((6, 40))
    before = np.linalg.norm(W.T @ np.maximum(X @ (starts / np.linalg.norm(starts, axis=0)), 0.0), axis=0)
    values, points = ascend(X, W, starts)
    assert np.all(values >= before * (1.0 - 1e-12))
    np.testing.assert_allclose(np.linalg.norm(points, axis=0), 1.0)
    np.testing.assert_allclose(np.linalg.norm(W.T @ np.maximum(X @ points, 0.0), axis=0), values)
    again, _ = local_maxima(X, W, starts=40, seed=1)
    assert np.all(np.diff(again) <= 0.0)


@pytest.mark.parametrize("factor", [1e-250, 1e-8, 1e8, 1e250])
def test_brackets_scale_with_the_data(factor: float) -> None:
    X, theta = small_instance(7)
    reference = price(X, theta).upper
    assert price(factor * X, theta).upper == pytest.approx(factor * reference, rel=1e-3)
    assert price(X, factor * theta).upper == pytest.approx(factor * reference, rel=1e-3)


@pytest.mark.parametrize("method", METHODS)
def test_nothing_to_gain(method: str) -> None:
    X = np.ones((3, 2))
    assert METHODS[method](X, np.zeros(3)).upper == 0.0
    assert METHODS[method](0.0 * X, np.ones(3)).upper == 0.0
    assert METHODS[method](np.vstack([X, X]), np.array([1.0, 2, 3, -1, -2, -3])).upper <= 1e-8


def test_inputs_are_not_changed_and_results_repeat() -> None:
    X, theta = small_instance(14)
    copies = X.copy(), theta.copy()
    first, second = price(X, theta), price(X, theta)
    assert first.upper == second.upper
    np.testing.assert_array_equal(first.witness, second.witness)
    np.testing.assert_array_equal(X, copies[0])
    np.testing.assert_array_equal(theta, copies[1])
    assert str(first).startswith("between")


X_OK = np.ones((4, 2))


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: price(X_OK, np.ones(3)), ValueError, "theta must have shape"),
        (lambda: price(X_OK, np.full(4, np.nan)), ValueError, "theta"),
        (lambda: price(np.ones(4), np.ones(4)), ValueError, "X must have shape"),
        (lambda: price(X_OK, np.ones(4), tol="fine"), TypeError, "tol"),  # type: ignore[arg-type]
        (lambda: enumerated_price(X_OK, np.ones((4, 2))), ValueError, "one by one"),
        (lambda: enumerated_price(X_OK, np.ones(4), all_gates(np.eye(3))), ValueError, "gates"),
    ],
)
def test_bad_arguments_are_named(call: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        call()
