"""One network trained by several processes: torchrun --standalone --nproc-per-node 2 examples/distributed.py

Every process runs this script on the same data. Each owns a slice of the gates; afterwards all of them hold
the whole solution and its certificate. On GPUs add ``device="cuda"``, over several machines torchrun's
``--nnodes`` and ``--rdzv-endpoint``; with ``checkpoint="job.npz", resume=True`` a job that was stopped, or
lost a machine, goes on when it is started again.
"""

from __future__ import annotations

import os

import numpy as np

import convexnn_models as cnn
from convexnn_solvers import certificate
from convexnn_solvers.distributed import GateParallel

rng = np.random.default_rng(0)
X = rng.standard_normal((400, 10))
y = np.maximum(X @ rng.standard_normal((10, 3)), 0.0).sum(axis=1)

model = cnn.gated_relu(X, cnn.sample_gates(X, 200, seed=0))
problem = model.problem(y, reg=0.1 * cnn.lambda_max(model, y))
problem.solve(solver=GateParallel(tol=1e-4))

if os.environ["RANK"] == "0":
    traffic = problem.solver_stats.extra_stats["traffic"]
    print(certificate(problem))
    print(f"{traffic['processes']} processes, {traffic['predictions']} predictions summed")
    print(f"{cnn.recover(model).width} neurons")
