"""ADMM against planted optima on every backend, and data and limits that break naive code."""

from __future__ import annotations

import weakref
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
from numpy.typing import NDArray
from planted import LossName, plant, problem_of
from test_semismooth_newton import AWKWARD, training_data

import convexnn_models as cnn
from convexnn_solvers import ADMM, Auto, Status, UnsupportedProblem, certificate
from convexnn_solvers.admm import problem as admm_problem
from convexnn_solvers.admm import working_set as admm_working_set
from convexnn_solvers.admm.gram_factor import gram_factor
from convexnn_solvers.admm.iteration import AdmmIteration
from convexnn_solvers.admm.method import admm_method
from convexnn_solvers.admm.working_set import AdmmEngine
from convexnn_solvers.backends import Backend, numpy_backend, select_backend
from convexnn_solvers.gated_programs.structure import gated_structure
from convexnn_solvers.reading.compiler import compile_problem

Float = NDArray[np.float64]

# Backend options and the gap that the arithmetic can reach.
WHERE: dict[str, tuple[dict[str, Any], float]] = {
    "numpy float64": ({}, 1e-8),
    "numpy float32": ({"dtype": "float32"}, 3e-5),
    "torch float64": ({"backend": "torch"}, 1e-8),
    "torch float32": ({"backend": "torch", "dtype": "float32"}, 3e-5),
}


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("loss", ["squared", "huber", "logistic"])
@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize(("outputs", "shared"), [(1, True), (3, True), (3, False)])
def test_planted_optima_are_found(outputs: int, shared: bool, bias: bool, loss: LossName, where: str) -> None:
    planted = plant(3, cones=False, outputs=outputs, shared=shared, loss=loss, bias=bias)
    problem, _ = problem_of(planted)
    options, tol = WHERE[where]
    value = problem.solve(solver=ADMM(tol=tol, max_iter=20_000, **options))
    assert problem.status == cp.OPTIMAL
    assert value == pytest.approx(planted.value, rel=2.0 * tol)
    proof = certificate(problem)
    assert proof.relative_gap is not None
    assert -1e-12 <= proof.relative_gap <= tol


def data(n: int = 60, d: int = 5, outputs: int = 3) -> tuple[Float, Float]:
    X, y = training_data(n=n, d=d)
    return X, np.stack([np.sin(k + y) for k in range(outputs)], axis=1)


@pytest.mark.parametrize("slope", [0.3, -1.0], ids=["leaky", "absolute"])
@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_other_activations_and_both_signs_are_solved(slope: float, backend: str) -> None:
    X, Y = data()
    model = cnn.piecewise_linear(X, cnn.sample_gates(X, 10), slope, outputs=3)
    problem = model.problem(Y, reg=0.02)
    without_cones = cp.Problem(problem.objective)
    value = without_cones.solve(solver=ADMM(tol=1e-8, backend=backend))
    assert certificate(without_cones).relative_gap == pytest.approx(0.0, abs=1e-8)
    assert value == pytest.approx(without_cones.solve(solver=cp.CLARABEL), rel=1e-6)


@pytest.mark.parametrize("share", [1.0 + 1e-9, 0.3, 1e-2])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", AWKWARD)
def test_awkward_data_are_solved(name: str, dtype: str, share: float) -> None:
    X, y = AWKWARD[name](*training_data(n=30, d=3))
    model = cnn.gated_relu(X, cnn.sample_gates(X, 6, seed=4))
    largest = cnn.lambda_max(model, y)
    problem = model.problem(y, reg=share * largest if largest > 0.0 else share)
    tol = 1e-6 if dtype == "float64" else 1e-4
    problem.solve(solver=ADMM(tol=tol, dtype=dtype))
    judged = certificate(problem)
    assert problem.status == cp.OPTIMAL
    assert judged.relative_gap is not None
    assert -1e-12 <= judged.relative_gap <= tol
    assert (np.abs(model.variables[0].value).max() == 0.0) == (share > 1.0 or name == "no signal")


def _problem(gates: int = 15, reg: float = 0.01) -> tuple[Any, Any]:
    X, Y = data()
    model = cnn.gated_relu(X, cnn.sample_gates(X, gates, seed=3), outputs=3)
    return model, model.problem(Y, reg)


def test_a_changed_parameter_resolves_from_the_last_point() -> None:
    model, problem = _problem()
    solver = ADMM(tol=1e-7)
    problem.solve(solver=solver)
    model.reg.value = 0.0099
    cold = problem.solve(solver=solver, warm_start=False)
    steps = problem.solver_stats.num_iters
    model.reg.value = 0.01
    problem.solve(solver=solver, warm_start=False)
    model.reg.value = 0.0099
    warm = problem.solve(solver=solver)
    assert warm == pytest.approx(cold, rel=2e-7)
    assert problem.solver_stats.num_iters < steps
    problem.solve(solver=solver)
    assert problem.solver_stats.num_iters == 0


@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_a_matrix_and_its_factor_serve_all_regularisations(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One matrix for a path, fewer factors than from cold, the same optima; another precision has its own."""
    if backend == "torch":
        pytest.importorskip("array_api_compat")
    made, factored = [0], [0]

    class Counted:
        """A factor that counts."""

        def __init__(self, inner: Any) -> None:
            self.inner = inner

        def __getattr__(self, name: str) -> Any:
            return getattr(self.inner, name)

        def factor(self, shift: float) -> None:
            factored[0] += shift != self.inner.shift
            self.inner.factor(shift)

    def counted(*arguments: Any) -> Any:
        made[0] += 1
        return Counted(gram_factor(*arguments))

    monkeypatch.setattr(admm_problem, "gram_factor", counted)
    solver, regs = ADMM(tol=1e-6, backend=backend), (0.05, 0.04, 0.03, 0.025)
    cold = []
    for reg in regs:
        _, problem = _problem(reg=reg)
        cold.append(problem.solve(solver=solver))
    apart = factored[0]
    assert made[0] == len(regs)
    made[0] = factored[0] = 0
    model, problem = _problem(reg=regs[0])
    for reg, value in zip(regs, cold, strict=True):
        model.reg.value = reg
        assert problem.solve(solver=solver) == pytest.approx(value, rel=2e-6)
        assert problem.status == cp.OPTIMAL
    assert made[0] == 1
    assert factored[0] < apart
    problem.solve(solver=ADMM(tol=1e-2, backend=backend, dtype="float32"))
    assert made[0] == 2


@pytest.mark.filterwarnings("ignore:Solution may be inaccurate")
def test_a_tolerance_below_float32_stalls_with_an_honest_gap() -> None:
    _, problem = _problem()
    problem.solve(solver=ADMM(tol=1e-12, dtype="float32"))
    assert problem.solver_stats.extra_stats["status"] is Status.STALLED
    gap = certificate(problem).relative_gap
    assert gap is not None
    assert 1e-12 < gap < 1e-4


def test_inputs_stay_as_they_are_and_answers_repeat() -> None:
    X, Y = data()
    gates = cnn.sample_gates(X, 15, seed=7)
    copies = X.copy(), Y.copy(), gates.patterns.copy()
    values = []
    for _ in range(2):
        model = cnn.gated_relu(X, gates, outputs=3)
        model.problem(Y, reg=0.01).solve(solver=ADMM(dtype="float32"))
        values.append(model.variables[0].value)
    np.testing.assert_array_equal(values[0], values[1])
    for before, now in zip(copies, (X, Y, gates.patterns), strict=True):
        np.testing.assert_array_equal(before, now)


def test_cones_and_other_terms_are_refused_by_name() -> None:
    X, Y = data(outputs=1)
    problem = cnn.relu(X, cnn.sample_gates(X, 5)).problem(Y[:, 0], 0.02)
    absolute = cnn.gated_relu(X, cnn.sample_gates(X, 5)).problem(Y[:, 0], 0.1, "absolute")
    with pytest.raises(UnsupportedProblem, match=r"ADMM.*no gradient.*SemismoothNewton"):
        absolute.solve(solver=ADMM())
    with pytest.raises(UnsupportedProblem, match=r"ADMM.*cones.*SemismoothNewton"):
        problem.solve(solver=ADMM())
    model = cnn.gated_relu(X, cnn.sample_gates(X, 5))
    ridge = model.problem(Y[:, 0], 0.02).objective.args[0] + cp.sum_squares(model.variables[0])
    with pytest.raises(UnsupportedProblem, match=r"RFISTA\(\)"):
        cp.Problem(cp.Minimize(ridge)).solve(solver=ADMM())


def test_a_problem_that_does_not_fit_is_refused_and_auto_takes_another() -> None:
    _, problem = _problem()
    with pytest.raises(UnsupportedProblem, match=r"ADMM would need .*60 x 60.*may use 50 kB.*RFISTA"):
        problem.solve(solver=ADMM(memory=51_200))
    problem.solve(solver=Auto(memory=51_200, dtype="float32", tol=1e-3))
    (run,) = problem.solver_stats.extra_stats["engines"]
    assert run["engine"] == "RFISTA"
    assert "ADMM would need" in run["reason"]


@pytest.mark.parametrize("bad", [0, -1.0, float("nan"), "2GB", True])
def test_a_bad_memory_option_is_refused(bad: Any) -> None:
    with pytest.raises(ValueError, match="memory must be a number of bytes > 0"):
        ADMM(memory=bad)


class _Counting(Backend):
    """A torch backend that counts what crosses between host and device."""

    crossings = 0

    def asarray(self, value: Any) -> Any:
        """Counted where the value comes from the host."""
        type(self).crossings += isinstance(value, np.ndarray)
        return super().asarray(value)

    def asbits(self, value: Any) -> Any:
        """Counted."""
        type(self).crossings += 1
        return super().asbits(value)

    def to_numpy(self, value: Any) -> Any:
        """Counted."""
        type(self).crossings += 1
        return super().to_numpy(value)


@pytest.mark.parametrize("loss", ["squared", "huber", "logistic"])
def test_iterations_copy_nothing_between_host_and_device(loss: LossName) -> None:
    problem, _ = problem_of(plant(3, cones=False, outputs=3, loss=loss, bias=True))
    exact = compile_problem(problem, numpy_backend()).composite()
    torch = select_backend("cpu", "float32", "torch")
    counting = _Counting(torch.name, torch.xp, torch.dtype, torch.device)
    composite = compile_problem(problem, counting).composite()
    state = admm_method(composite, gated_structure(exact), 1e-4).start(composite.zeros())
    iteration = state.engine._iteration  # pyright: ignore[reportPrivateUsage]
    before = _Counting.crossings
    for _ in range(20):
        iteration.step()
    assert _Counting.crossings == before
    iteration.look()
    assert before < _Counting.crossings <= before + 6


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("shared", [True, False])
def test_a_growing_set_of_gates_finds_the_optimum_over_all(outputs: int, shared: bool) -> None:
    planted = plant(5, cones=False, outputs=outputs, shared=shared, shape=(30, 4, 60))
    problem, _ = problem_of(planted)
    exact = compile_problem(problem, numpy_backend()).composite()
    method = admm_method(exact, gated_structure(exact), 1e-8)
    start = np.concatenate(method.structure.blocks(exact.zeros()))
    engine = AdmmEngine(method.problem, start, 60, first=8)
    for _ in range(20_000):
        if engine.gap <= 1e-6 or engine.stalled:
            break
        engine.step(1e-6)
    assert engine.gap <= 1e-6
    assert engine.rounds > 1
    value = method.structure.scale * engine.bounds.primal * method.scaling.targets**2
    assert value == pytest.approx(planted.value, rel=2e-6)


def test_a_round_gives_its_matrix_back_before_the_next_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two matrices of 20 000 samples took 3.4 GB."""
    factors: list[weakref.ref[Any]] = []

    class Counted(AdmmIteration):
        def __init__(self, *arguments: Any) -> None:
            assert all(factor() is None for factor in factors)
            super().__init__(*arguments)
            factors.append(weakref.ref(self._factor))

    monkeypatch.setattr(admm_working_set, "AdmmIteration", Counted)
    problem, _ = problem_of(plant(5, cones=False, shape=(30, 4, 60)))
    exact = compile_problem(problem, numpy_backend()).composite()
    method = admm_method(exact, gated_structure(exact), 1e-6)
    start = np.concatenate(method.structure.blocks(exact.zeros()))
    engine = AdmmEngine(method.problem, start, 60, first=4)
    while engine.gap > 1e-6 and not engine.stalled:
        engine.step(1e-6)
    assert len(factors) == engine.rounds > 1


def test_few_gates_suffice_when_few_are_active() -> None:
    X, Y = data()
    model = cnn.gated_relu(X, cnn.sample_gates(X, 400), outputs=3)
    problem = model.problem(Y, 0.5 * cnn.lambda_max(model, Y))
    exact = compile_problem(problem, numpy_backend()).composite()
    method = admm_method(exact, gated_structure(exact), 1e-6)
    start = np.concatenate(method.structure.blocks(exact.zeros()))
    engine = AdmmEngine(method.problem, start, 400, first=10)
    while engine.gap > 1e-6 and not engine.stalled:
        engine.step(1e-6)
    assert engine.gap <= 1e-6
    assert len(engine.working_set) < 200
    problem.solve(solver=ADMM(tol=1e-6))
    value = method.structure.scale * engine.bounds.primal * method.scaling.targets**2
    assert value == pytest.approx(problem.value, rel=2e-6)


@pytest.mark.parametrize("reg", [0.1, 1e-3])
def test_features_that_the_offset_explains_are_no_error(reg: float) -> None:
    """Without their mean nothing is left of them but rounding, and its root was the first penalty."""
    targets = np.random.default_rng(0).standard_normal((25, 2))
    ones = np.ones((25, 2))
    model = cnn.gated_relu(ones, cnn.sample_gates(ones, 2, seed=1), outputs=2, output_bias=True)
    problem = model.problem(targets, reg)
    problem.solve(solver=ADMM())
    assert problem.status == cp.OPTIMAL
    assert problem.value == pytest.approx(np.sum((targets - targets.mean(axis=0)) ** 2) / 50, rel=1e-5)
