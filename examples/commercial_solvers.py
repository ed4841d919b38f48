"""Commercial solvers on a program that their size-limited free licences take, each in its own process.

    pip install 'convexnn[commercial]'
    python examples/commercial_solvers.py

Solvers that are not installed are left out; one without a licence is a row with its own words.
"""

from __future__ import annotations

import cvxpy as cp
import numpy as np

import convexnn_models as cnn
from convexnn_solvers import AugmentedLagrangian, compare

rng = np.random.default_rng(0)
X = rng.standard_normal((20, 3))
model = cnn.relu(X, cnn.sample_gates(X, 8, seed=0))
problem = model.problem(X[:, 0] ** 2 - 1.0, reg=0.01)

commercial = [name for name in ("MOSEK", "GUROBI", "COPT", "CPLEX") if name in cp.installed_solvers()]
table = compare(problem, [cp.CLARABEL, AugmentedLagrangian(), *commercial])
