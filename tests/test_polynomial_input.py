"""Bad input to polynomial and parallel linear networks, and where patches and windows are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from planted_polynomial import RELU_LIKE, Array

import convexnn_models as cnn

X0 = np.ones((4, 2))
P0 = np.ones((4, 3, 2))
LINEAR = cnn.parallel_linear(X0, 2)


def wrong(value: object) -> Any:
    return value


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: cnn.polynomial(X0, 0.0, 0.0, 1.0), "constant"),
        (lambda: cnn.polynomial(X0, np.inf, 0.0, 1.0), "a must be finite"),
        (lambda: cnn.polynomial(P0, *RELU_LIKE), "global_pooling"),
        (lambda: cnn.polynomial(X0, *RELU_LIKE, cells=((0,),)), r"shape \(n, K, h\)"),
        (lambda: cnn.polynomial(P0, *RELU_LIKE, cells=((0,), (3,))), "positions from 0 to 2"),
        (lambda: cnn.polynomial(P0, *RELU_LIKE, cells=((0,), ())), "at least one"),
        (lambda: cnn.polynomial(X0 * np.nan, *RELU_LIKE), "NaN"),
        (lambda: cnn.polynomial(X0, *RELU_LIKE, outputs=0), "outputs must be at least 1"),
        (lambda: cnn.solve_polynomial(cnn.polynomial(X0, *RELU_LIKE)), "model.problem"),
        (lambda: solved(reg=0.0), "reg must be positive"),
        (lambda: solved(tol=-1.0), "tol must be positive"),
        (lambda: solved(loss="huber"), "huber"),
        (lambda: solved(n=21_000, d=210), "dense matrix of side 21000"),
        (lambda: cnn.recover(cnn.polynomial(X0, *RELU_LIKE)), "solve a problem"),
        (lambda: cnn.local_pooling(5, 2), "does not divide"),
        (lambda: cnn.window_pooling(4, 5, 2), "does not divide"),
        (lambda: cnn.image_patches(np.ones((2, 3, 3)), 4), "larger than the images"),
        (lambda: cnn.image_patches(np.ones((2, 3)), 1), "images must have shape"),
        (lambda: network(hidden=np.ones((2, 1))), "norm one"),
        (lambda: network(output=np.ones((1, 1))), "output"),
        (lambda: network().predict(np.ones((3, 5))), "2 features per sample"),
        (lambda: network().objective(X0, np.ones(4), -1.0), "reg must be at least 0"),
        (lambda: cnn.polynomial(P0, 1.0, 0.0, 0.0, cells=wrong("ab")), "of whole numbers"),
        (lambda: cnn.polynomial(P0, 1.0, 0.0, 0.0, cells=wrong(3)), "of whole numbers"),
        (
            lambda: cnn.polynomial(P0, 1.0, 0.0, 0.0, cells=wrong(((0.5,),))),
            "of whole numbers",
        ),
        (lambda: cnn.solve_polynomial(wrong(LINEAR)), r"what polynomial\(X"),
        (lambda: cnn.polynomial_certificate(wrong(LINEAR)), r"what polynomial\(X"),
        (
            lambda: cnn.solve_parallel_linear(wrong(cnn.polynomial(X0, *RELU_LIKE))),
            r"what parallel_linear\(X",
        ),
        (lambda: cnn.parallel_linear_certificate(wrong("M")), r"what parallel_linear\(X"),
    ],
)
def test_bad_input_is_one_clear_sentence(call: Callable[[], object], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        call()


def solved(
    n: int = 4, d: int = 2, reg: float = 0.1, tol: float = 1e-6, loss: str = "squared"
) -> cnn.PolynomialFit:
    model = cnn.polynomial(np.broadcast_to(1.0, (n, d)), *RELU_LIKE)
    model.problem(np.ones(n), reg, loss=loss)
    return cnn.solve_polynomial(model, tol=tol)


def network(hidden: Array | None = None, output: Array | None = None) -> cnn.PolynomialNetwork:
    return cnn.PolynomialNetwork(
        cnn.polynomial(X0, *RELU_LIKE).activation,
        np.array([[1.0], [0.0]]) if hidden is None else hidden,
        np.ones((1, 1, 1)) if output is None else output,
    )


def test_patches_and_windows_are_where_they_should_be() -> None:
    images = np.arange(2 * 4 * 4.0).reshape(2, 4, 4)
    patches = cnn.image_patches(images, 2, stride=2)
    np.testing.assert_array_equal(patches[0], [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]])
    coloured = cnn.image_patches(np.stack([images, -images], axis=3), 3)
    assert coloured.shape == (2, 4, 18)
    assert set(np.abs(coloured[0, 0]).tolist()) == {0.0, 1.0, 2.0, 4.0, 5.0, 6.0, 8.0, 9.0, 10.0}
    assert cnn.window_pooling(2, 4, 2) == ((0, 1, 4, 5), (2, 3, 6, 7))
    assert cnn.local_pooling(4, 2) == ((0, 1), (2, 3))
    assert cnn.flatten(2) == ((0,), (1,))
