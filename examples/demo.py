"""Train ReLU networks on real data, certify them, prune them, and compare solvers on the same program.

    python examples/demo.py [--gates 50] [--seconds 15] [--output output]

Needs scikit-learn (for its data sets) and matplotlib; `make demo` installs both.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import cvxpy as cp
import numpy as np
from sklearn.datasets import load_breast_cancer, load_diabetes
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import train_test_split

import convexnn_models as cnn
from convexnn_models.plotting import plot_convergence
from convexnn_solvers import (
    RFISTA,
    AugmentedLagrangian,
    ComparisonRow,
    Contestant,
    SemismoothNewton,
    certificate,
    compare,
)

# Solvers with second-order cones that CVXPY may find installed, besides CLARABEL and SCS.
OTHERS = ["MOSEK", "GUROBI", "COPT", "CPLEX", "XPRESS", "KNITRO", "ECOS", "QOCO", "MOREAU", "CUOPT", "NAG"]


def main() -> None:
    """Both data sets, with the settings of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--gates", type=int, default=50, help="activation patterns to sample")
    parser.add_argument("--seconds", type=float, default=15.0, help="time limit of every solver")
    parser.add_argument("--output", type=Path, default=Path("output"), help="folder for the picture")
    chosen = parser.parse_args()
    classification(chosen.gates, chosen.seconds)
    regression(chosen.gates, chosen.seconds, chosen.output)


def classification(n_gates: int, seconds: float) -> None:
    """Breast cancer, benign or malignant: logistic loss, accuracy on a quarter that was held out."""
    X, held_out, classes, held_out_classes = split(*load_breast_cancer(return_X_y=True))
    y, held_out_y = 2.0 * classes - 1.0, 2.0 * held_out_classes - 1.0
    print(f"Breast cancer: {len(y)} samples to train on, {len(held_out_y)} held out, {X.shape[1]} features")
    gates = cnn.sample_gates(X, n_gates, seed=0, bias=True)
    programs: list[tuple[str, cnn.ConvexModel, Any]] = [
        ("convex ReLU network", cnn.relu(X, gates, bias=True), AugmentedLagrangian(time_limit=seconds)),
        ("gated network", cnn.gated_relu(X, gates, bias=True), RFISTA(time_limit=seconds)),
    ]
    for name, model, solver in programs:
        reg = 0.05 * cnn.lambda_max(model, y, loss="logistic")
        problem = model.problem(y, reg, loss="logistic")
        problem.solve(solver=solver)
        network = cnn.recover(model)
        accuracy = np.mean(np.sign(network.predict(held_out)) == held_out_y)
        print(f"\n{name}, solved by {solver.name()}")
        print(f"  certificate        {certificate(problem)}")
        print(f"  width              {network.info.width_before} before pruning, {network.width} after")
        print(f"  held-out accuracy  {accuracy:.1%}")
    reference = LogisticRegression(max_iter=1000).fit(X, y).score(held_out, held_out_y)
    print(f"\nfor scale: scikit-learn's LogisticRegression, held-out accuracy {reference:.1%}")


def regression(n_gates: int, seconds: float, output: Path) -> None:
    """Diabetes progression: one program, every solver at hand, and the networks that they found."""
    X, held_out, target, held_out_target = split(*load_diabetes(return_X_y=True))
    center, scale = target.mean(), target.std()
    y, held_out_y = (target - center) / scale, (held_out_target - center) / scale
    gates = cnn.sample_gates(X, n_gates, seed=0, bias=True)
    model, gated = cnn.relu(X, gates, bias=True), cnn.gated_relu(X, gates, bias=True)
    reg = 0.05 * cnn.lambda_max(model, y)
    problem, gated_problem = model.problem(y, reg), gated.problem(y, reg)

    print(f"\nDiabetes: {len(y)} samples to train on, {len(held_out_y)} held out, {X.shape[1]} features")
    print("The convex ReLU program, and its relaxation without cones (C-GReLU, another optimum):\n")
    contestants: list[Any] = [
        *(cp.CLARABEL, cp.SCS, AugmentedLagrangian(), SemismoothNewton()),
        *(name for name in OTHERS if name in cp.installed_solvers()),
        Contestant(cp.CLARABEL, problem=gated_problem, name="CLARABEL (C-GReLU)"),
        Contestant(RFISTA(), problem=gated_problem, name="RFISTA (C-GReLU)"),
        Contestant(SemismoothNewton(), problem=gated_problem, name="SemismoothNewton (C-GReLU)"),
    ]
    table = compare(problem, contestants, time_limit=seconds)

    print()
    for row in table.rows:
        own, program = (gated, gated_problem) if "C-GReLU" in row["solver"] else (model, problem)
        describe(row, own, program, held_out, held_out_y)
    reference = Ridge().fit(X, y).score(held_out, held_out_y)
    print(f"for scale: scikit-learn's Ridge, held-out R^2 {reference:.3f}")

    output.mkdir(parents=True, exist_ok=True)
    picture = output / "convergence.png"
    plot_convergence(table.rows, picture, title=f"Diabetes, {len(gates)} gates: certified gap against time")
    print(f"\npicture: {picture}")


def describe(row: ComparisonRow, model: cnn.ConvexModel, problem: cp.Problem, X: Any, y: Any) -> None:
    """The network of a contestant's point: widths and how well it predicts."""
    if row["values"] is None or row["relative_gap"] is None:
        return
    for variable, value in zip(problem.variables(), row["values"], strict=True):
        variable.save_value(value)
    network = cnn.recover(model)
    r2 = 1.0 - np.sum((network.predict(X) - y) ** 2) / np.sum((y - y.mean()) ** 2)
    print(
        f"{row['solver']}: network with {network.info.width_before} neurons before pruning, "
        f"{network.width} after; held-out R^2 {r2:.3f}"
    )


def split(X: Any, y: Any) -> tuple[Any, Any, Any, Any]:
    """Three quarters to train on and one held out, scaled to the mean and deviation of the first part."""
    stratify = y if len(np.unique(y)) == 2 else None
    X, held_out, y, held_out_y = train_test_split(X, y, random_state=0, stratify=stratify)
    center, scale = X.mean(axis=0), X.std(axis=0)
    return (X - center) / scale, (held_out - center) / scale, y, held_out_y


if __name__ == "__main__":
    main()
