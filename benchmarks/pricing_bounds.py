"""Two certified upper bounds of the price, side by side: our branch and bound, and a mixed-integer program.

    python benchmarks/pricing_bounds.py --seconds 20 --tol 1e-3

``max theta^T (X u)_+`` over the unit ball, for theta and -theta, as HiGHS can have it: z_i stands for
``(x_i . u)_+``, bounded by ``||x_i||``. Where theta_i < 0, ``z_i >= x_i . u`` and ``z_i >= 0`` are enough;
where theta_i > 0 a binary b_i chooses between ``z_i <= 0`` and ``z_i <= x_i . u``. The ball is replaced by
half-spaces that contain it, one more through the unit vector of every solution that is outside. So the dual
bound of each program is an upper bound of the maximum, up to the tolerances of HiGHS; ours is safe in
floating point.

Both search until the bound is within ``--tol`` of the best value that ``price`` has, or for ``--seconds``,
HiGHS for each of the two signs; each row shows how far above that value each bound ended, and after how many
seconds.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass

import numpy as np
import scipy.optimize
from numpy.typing import NDArray

import convexnn_models as cnn

Array = NDArray[np.float64]
SIZES = ((20, 2), (50, 2), (20, 3), (50, 3), (20, 5), (30, 5), (20, 8))
HEADER = f"{'n':>5} {'d':>3}  {'price: excess':>13} {'seconds':>8}  {'HiGHS: excess':>13} {'seconds':>8}"


@dataclass(frozen=True)
class Bound:
    """An upper bound of the maximum, and the seconds spent on it."""

    upper: float
    seconds: float

    def excess(self, value: float) -> float:
        """Relative to a value that is attained."""
        return self.upper / value - 1.0


@dataclass(frozen=True)
class Row:
    """Both bounds for one size, and the best value."""

    samples: int
    features: int
    lower: float
    ours: Bound
    program: Bound

    def __str__(self) -> str:
        columns = "  ".join(
            f"{b.excess(self.lower):13.2e} {b.seconds:8.2f}" for b in (self.ours, self.program)
        )
        return f"{self.samples:5d} {self.features:3d}  {columns}"


def integer_bound(X: Array, theta: Array, goal: float, seconds: float) -> Bound:
    """Of ``max |theta^T (X u)_+|`` over the unit ball: ``goal``, or what ``seconds`` a sign allow."""
    started = time.perf_counter()
    uppers = [_one_sign(X, sign * theta, goal, seconds) for sign in (1.0, -1.0)]
    return Bound(max(uppers), time.perf_counter() - started)


def _one_sign(X: Array, theta: Array, goal: float, seconds: float) -> float:
    (n, d), norms = X.shape, np.linalg.norm(X, axis=1)
    end, upper = time.perf_counter() + seconds, float(np.abs(theta) @ norms)
    rise = np.flatnonzero(theta > 0.0)
    k = rise.size
    pick, big = np.eye(n)[rise], np.diag(norms[rise])
    model = [
        scipy.optimize.LinearConstraint(np.hstack([-X, np.eye(n), np.zeros((n, k))]), 0.0, np.inf),
        scipy.optimize.LinearConstraint(np.hstack([-X[rise], pick, big]), -np.inf, norms[rise]),
        scipy.optimize.LinearConstraint(np.hstack([np.zeros((k, d)), pick, -big]), -np.inf, 0.0),
    ]
    cuts = np.random.default_rng(0).standard_normal((4 * d * d, d))
    cuts /= np.linalg.norm(cuts, axis=1)[:, None]
    lowest, highest = np.r_[-np.ones(d), np.zeros(n + k)], np.r_[np.ones(d), norms, np.ones(k)]
    while (left := end - time.perf_counter()) > 0.0 and upper > goal:
        ball = np.hstack([cuts, np.zeros((len(cuts), n + k))])
        found = scipy.optimize.milp(
            np.r_[np.zeros(d), -theta, np.zeros(k)],
            integrality=np.r_[np.zeros(d + n), np.ones(k)],
            bounds=scipy.optimize.Bounds(lowest, highest),
            constraints=[*model, scipy.optimize.LinearConstraint(ball, -np.inf, 1.0)],
            options={"time_limit": left, "mip_rel_gap": 1e-4},
        )
        if found.mip_dual_bound is not None and np.isfinite(found.mip_dual_bound):
            upper = min(upper, -float(found.mip_dual_bound))
        if found.x is None or np.linalg.norm(found.x[:d]) <= 1.0 + 1e-6:
            break
        cuts = np.vstack([cuts, found.x[:d] / np.linalg.norm(found.x[:d])])
    return upper


def compared(samples: int, features: int, seconds: float, tol: float) -> Row:
    """Residuals like those of training: the targets of three planted neurons, centred."""
    rng = np.random.default_rng(samples + features)
    X = rng.standard_normal((samples, features))
    X[:, -1] = 1.0
    y = np.maximum(X @ rng.standard_normal((features, 3)), 0.0) @ np.array([1.0, -1.0, 1.0])
    theta = y - y.mean() + 0.3 * rng.standard_normal(samples)
    started = time.perf_counter()
    found = cnn.price(X, theta, tol=tol, time_limit=seconds)
    ours = Bound(found.upper, time.perf_counter() - started)
    program = integer_bound(X, theta, found.lower * (1.0 + tol), seconds)
    return Row(samples, features, found.lower, ours, program)


def main() -> None:
    """One row for each size."""
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=plain)
    parser.add_argument("--seconds", type=float, default=20.0, help="for each bound (HiGHS: for each sign)")
    parser.add_argument("--tol", type=float, default=1e-3)
    arguments = parser.parse_args()
    print(HEADER)
    for samples, features in SIZES:
        print(compared(samples, features, arguments.seconds, arguments.tol), flush=True)


if __name__ == "__main__":
    main()
