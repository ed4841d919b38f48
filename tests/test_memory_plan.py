"""Memory is planned before a solve: what fits is used, what cannot fit is refused with its size."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import cvxpy as cp
import numpy as np
import pytest

import convexnn_models as cnn
from convexnn_solvers import (
    RFISTA,
    AugmentedLagrangian,
    Auto,
    BlockDescent,
    SemismoothNewton,
    UnsupportedProblem,
    method_memory,
)
from convexnn_solvers.admm.memory_plan import Sizes, plan_memory, requirements
from convexnn_solvers.admm.method import admm_method
from convexnn_solvers.backends import Backend, numpy_backend, torch_backend
from convexnn_solvers.gated_programs.structure import gated_structure
from convexnn_solvers.memory_budget import budget, free_bytes, readable
from convexnn_solvers.reading.atoms import gated
from convexnn_solvers.reading.compiler import compile_problem, subexpressions
from convexnn_solvers.reading.operator_memory import copied_bytes, plan_operators

MNIST = Sizes(n=60_000, d=784, gates=5_000, working=5_000, outputs=10)
GB = 2**30


def gpu(free: int, dtype: str = "float32") -> Backend:
    """A backend whose device has so many bytes free; nothing is computed on it."""
    torch = torch_backend("cpu", dtype)
    cuda = SimpleNamespace(mem_get_info=lambda device: (free, 80 * GB))
    return replace(torch, xp=SimpleNamespace(cuda=cuda), device="cuda")


def test_the_largest_arrays_are_counted_exactly() -> None:
    needed = requirements(MNIST, gpu(80 * GB))
    assert needed["the features"] == 4 * 60_000 * 784
    assert needed["the patterns"] == 60_000 * 5_000
    assert needed["two 60000 x 60000 matrices"] == 2 * 4 * 60_000**2
    packed = requirements(MNIST, numpy_backend("float64"))
    assert packed["the 60000 x 60000 factor"] == 8 * 60_000**2


def test_mnist_fits_one_large_gpu_and_not_a_small_one() -> None:
    plan = plan_memory(MNIST, gpu(79 * GB))
    assert 27 * GB < plan.total < 0.8 * 79 * GB
    assert plan.masks
    assert plan.block == 2**28
    with pytest.raises(
        UnsupportedProblem, match=r"need 2[789].\d GB on cuda \(26.8 GB of it for two 60000 x"
    ):
        plan_memory(MNIST, gpu(24 * GB))


@pytest.mark.parametrize("memory", [2e8, 10**9, 10**10])
def test_no_plan_exceeds_what_is_allowed(memory: float) -> None:
    for n in (500, 2_000, 5_000):
        sizes = Sizes(n=n, d=50, gates=1_000, working=1_000)
        for backend in (numpy_backend(), numpy_backend("float32"), torch_backend()):
            try:
                plan = plan_memory(sizes, backend, memory)
            except UnsupportedProblem:
                assert sum(requirements(sizes, backend).values()) > 0.9 * memory
            else:
                assert sum(requirements(sizes, backend).values()) < plan.total <= memory


def test_blocks_shrink_before_a_problem_is_refused() -> None:
    sizes = Sizes(n=2_000, d=50, gates=1_000, working=1_000)
    needed = sum(requirements(sizes, numpy_backend()).values())
    tight = plan_memory(sizes, numpy_backend(), needed + 4 * 2**16 + 1)
    roomy = plan_memory(sizes, numpy_backend(), 2 * needed)
    assert tight.block < roomy.block
    assert not tight.masks
    assert roomy.masks


def test_the_option_is_bytes_or_a_share_of_what_is_free() -> None:
    device = gpu(10 * GB)
    assert budget(None, device) == 8 * GB
    assert budget(0.5, device) == 5 * GB
    assert budget(1.0, device) == 10 * GB
    assert budget(2 * GB, device) == 2 * GB
    assert budget(1.5e9, device) == 1_500_000_000


def test_the_host_says_how_much_is_free() -> None:
    free = free_bytes(numpy_backend())
    block = np.ones(2**27, dtype=np.uint8)
    assert 2**20 < free < 2**50
    assert block.nbytes < free


@pytest.mark.parametrize(
    ("count", "text"), [(12, "12 bytes"), (1536, "1.5 kB"), (14.4 * GB, "14.4 GB"), (3 * 2**40, "3 TB")]
)
def test_sizes_are_readable(count: float, text: str) -> None:
    assert readable(count) == text


def test_fewer_gates_at_a_time_are_tried_before_refusing() -> None:
    rng = np.random.default_rng(0)
    X = rng.standard_normal((60, 20))
    model = cnn.gated_relu(X, cnn.sample_gates(X, 2_000), outputs=4)
    problem: Any = model.problem(rng.standard_normal((60, 4)), 0.1)
    exact = compile_problem(problem, numpy_backend()).composite()
    sizes = Sizes(60, 20, 2_000, 2_000, 4)
    everything = sum(requirements(sizes, numpy_backend()).values())
    half = sum(requirements(replace(sizes, working=1_000), numpy_backend()).values())
    method = admm_method(exact, gated_structure(exact), 1e-4, memory=(everything + half) / 2 + 2**18)
    assert method.most == 1_000
    assert admm_method(exact, gated_structure(exact), 1e-4).most == 2_000


def wide(relu: bool = False, n: int = 10, d: int = 300, gates: int = 300) -> Any:
    """By default ten samples and many weights."""
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((n, d)), rng.standard_normal(n)
    model = (cnn.relu if relu else cnn.gated_relu)(X, cnn.sample_gates(X, gates, seed=0))
    return model.problem(y, 0.05 * cnn.lambda_max(model, y))


#: A solver, whether with cones, and n, d and gates: what fills memory differs.
FILLED: dict[str, tuple[Any, bool, tuple[int, int, int]]] = {
    "RFISTA: weights": (RFISTA(max_iter=12), False, (10, 300, 300)),
    "AugmentedLagrangian: weights": (AugmentedLagrangian(max_iter=3), True, (10, 300, 300)),
    "AugmentedLagrangian: cones": (AugmentedLagrangian(max_iter=12), True, (500, 10, 100)),
    "SemismoothNewton: weights": (SemismoothNewton(max_iter=4), False, (10, 300, 300)),
    "SemismoothNewton: matrix of the samples": (SemismoothNewton(max_iter=4), False, (600, 20, 100)),
    "SemismoothNewton: stacked features": (SemismoothNewton(max_iter=4), False, (1500, 5, 50)),
    "SemismoothNewton: a working set": (SemismoothNewton(max_iter=4), False, (100, 50, 1500)),
    "SemismoothNewton: free directions": (SemismoothNewton(max_iter=4), True, (60, 300, 20)),
    "SemismoothNewton: projections": (SemismoothNewton(max_iter=4), True, (200, 100, 40)),
    "SemismoothNewton: cones of few features": (SemismoothNewton(max_iter=4), True, (500, 10, 100)),
    "BlockDescent: bases": (BlockDescent(max_iter=4), False, (10, 300, 300)),
    "BlockDescent: slopes": (BlockDescent(max_iter=4), False, (1000, 10, 200)),
}


@pytest.mark.filterwarnings("ignore:Solution may be inaccurate")
@pytest.mark.parametrize("case", FILLED)
def test_every_engine_counts_what_it_allocates_and_refuses_the_rest(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within a factor of two below, and hardly above: who is refused could not have been solved."""
    solver, relu, sizes = FILLED[case]
    counted: list[int] = []
    refuse = method_memory._refuse  # pyright: ignore[reportPrivateUsage]

    def noted(engine: str, needed: dict[str, int], *rest: Any) -> None:
        counted.append(sum(needed.values()))
        refuse(engine, needed, *rest)

    monkeypatch.setattr(method_memory, "_refuse", noted)
    wide(relu, *sizes).solve(solver=solver)  # machine code is loaded
    problem = wide(relu, *sizes)
    tracemalloc.start()
    problem.solve(solver=solver, memory=counted[-1] + 1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak / 2 <= counted[-1] <= 1.25 * peak
    text = rf"{case.split(':')[0]} would need at least .* of it for .* raise memory="
    with pytest.raises(UnsupportedProblem, match=text):
        problem.solve(solver=solver, memory=counted[-1] - 1)


def test_the_matrix_of_admm_is_not_counted_where_too_few_weights_ask_for_it() -> None:
    n = 1500
    exact = compile_problem(wide(True, n, 3, 10), numpy_backend()).composite()
    assert sum(method_memory.newton_needs(gated_structure(exact).programs).values()) < 8 * n * n


def test_auto_refuses_what_none_of_them_could_solve() -> None:
    with pytest.raises(UnsupportedProblem, match=r"RFISTA would need at least .* may use 100 kB"):
        wide().solve(solver=Auto(memory=102_400))


def test_operators_are_planned_before_anything_is_loaded() -> None:
    problem, copies = wide(), 10 * 300
    patterns = problem_patterns(problem)
    for backend, needed in (
        (numpy_backend(), 0),
        (numpy_backend("float32"), 4 * copies),
        (torch_backend(), 8 * copies + patterns),
    ):
        assert copied_bytes(problem, backend) == needed
        roomy, tight = (plan_operators(problem, backend, needed + spare) for spare in (2**30, 2**10))
        assert tight.block < roomy.block
        assert tight.masks < roomy.masks
        if needed:
            with pytest.raises(UnsupportedProblem, match="features and patterns would need"):
                plan_operators(problem, backend, needed - 1)
    with pytest.raises(UnsupportedProblem, match=r"would need 11\.7 kB on cpu"):
        problem.solve(solver=RFISTA(dtype="float32", memory=5_000))


def problem_patterns(problem: cp.Problem) -> int:
    """Entries of the patterns."""
    atoms = [atom for atom in subexpressions(problem) if isinstance(atom, gated)]
    return sum(atom.patterns.size for atom in atoms)
