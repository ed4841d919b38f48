"""Any two-piece linear activation: leaky ReLU and the absolute value, by three solvers, as networks."""

from __future__ import annotations

import cvxpy as cp
import numpy as np
from sklearn.datasets import load_diabetes
from sklearn.preprocessing import scale

import convexnn_models as cnn
from convexnn_solvers import AugmentedLagrangian, SemismoothNewton, certificate

X, y = load_diabetes(return_X_y=True)
X, y = np.asarray(scale(X))[:150, :4], np.asarray(scale(y))[:150]
gates = cnn.sample_gates(X, 15, seed=0)

for slope, name in ((0.1, "leaky ReLU"), (-1.0, "absolute value")):
    model = cnn.piecewise_linear(X, gates, slope, output_bias=True)
    problem = model.problem(y, reg=0.02)
    print(f"{name}, {model.variables[0].shape[1]} gates")
    for solver in (SemismoothNewton(tol=1e-6), AugmentedLagrangian(tol=1e-5), cp.CLARABEL):
        for variable in model.variables:
            variable.value = None  # no solver starts from another's solution
        problem.solve(solver=solver)
        proof = certificate(problem)
        label = solver if isinstance(solver, str) else solver.name()
        print(f"  {label:20} {proof}")
    network = cnn.recover(model)
    print(f"  {network}, its own objective {network.objective(X, y, 0.02):.9f}")
