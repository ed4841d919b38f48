"""How far was SGD? Networks trained by torch, certified against every network of any width."""

from __future__ import annotations

import numpy as np

import convexnn_models as cnn

try:
    import torch
except ImportError:
    raise SystemExit("this example trains with torch; pip install torch") from None

rng = np.random.default_rng(0)
X = rng.standard_normal((40, 2))
y = np.abs(X[:, 0]) - np.maximum(X[:, 1], 0.0) + 0.1 * rng.standard_normal(40)
reg = 0.01  # 1/(2n) ||f(X) - y||^2 + reg/2 (||W1||^2 + ||b1||^2 + ||W2||^2)
inputs, targets = torch.from_numpy(X), torch.from_numpy(y)[:, None]


def trained(name: str, width: int, seed: int = 0, steps: int = 1000) -> torch.nn.Sequential:
    """A plain torch network: the optimiser's weight decay is ``reg``; the output bias is free of it."""
    torch.manual_seed(seed)
    network = torch.nn.Sequential(
        torch.nn.Linear(2, width), torch.nn.ReLU(), torch.nn.Linear(width, 1)
    ).double()
    bias = network[2].bias
    decayed = [p for p in network.parameters() if p is not bias]
    groups = [{"params": decayed, "weight_decay": reg}, {"params": [bias], "weight_decay": 0.0}]
    if name == "SGD":
        optimiser: torch.optim.Optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
    else:
        optimiser = torch.optim.Adam(groups, lr=0.02)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        optimiser.zero_grad()
        loss = 0.5 * torch.mean((network(inputs) - targets) ** 2)
        torch.autograd.backward(loss)
        optimiser.step()
        schedule.step()
    return network


best = cnn.train_to_global_optimum(X, y, reg, bias=True, output_bias=True, gap=1e-4)
print(f"global optimum: {best}\n")

print("trained by  width  objective  proved bound  proved gap  gradient  gain: own  signs  new patterns")
for name, width in (("SGD", 3), ("Adam", 3), ("SGD", 50), ("Adam", 50)):
    judged = cnn.global_certificate(trained(name, width), X, y, reg, gap=1e-2, time_limit=5.0)
    assert judged.dual is not None
    assert judged.relative_gap is not None
    assert judged.gains is not None
    print(
        f"{name:10s} {width:6d} {judged.primal:10.6f} {judged.dual:13.6f} {judged.relative_gap:11.1%} "
        f"{judged.gradient:9.1e} {judged.gains.own:10.1e} {judged.gains.other_signs:6.0e} "
        f"{judged.gains.new_patterns:13.1e}"
    )

# The way out of a local minimum: the neuron that the network lacks, and a better network.
judged = cnn.global_certificate(trained("Adam", 2), X, y, reg, gap=1e-2, time_limit=5.0)
print(f"\n{judged}")
if judged.neuron is not None:
    print(f"add a neuron with weights {judged.neuron.weights.round(3)} and bias {judged.neuron.bias:.3f}")
if judged.improved is not None:
    improved = cnn.global_certificate(judged.improved, X, y, reg, gap=1e-2, time_limit=5.0)
    print(
        f"after one round of convex programs: {improved.primal:.6f}, proved gap {improved.relative_gap:.1%}"
    )
