"""What stays with a problem for its next solves: one budget for all of it, and the same answers without."""

from __future__ import annotations

import weakref
from typing import Any

import cvxpy as cp
import numpy as np
import pytest

import convexnn_models as cnn
from convexnn_solvers import ADMM, SemismoothNewton, UnsupportedProblem, kept
from convexnn_solvers.admm.method import admm_method
from convexnn_solvers.backends import numpy_backend
from convexnn_solvers.gated_programs.program import scaled
from convexnn_solvers.gated_programs.structure import gated_structure
from convexnn_solvers.kept import Kept
from convexnn_solvers.newton.start import kept_features
from convexnn_solvers.reading.compiler import compile_problem


def problem_with(relu: bool, outputs: int) -> Any:
    rng = np.random.default_rng(0)
    X = rng.standard_normal((60, 4))
    model = (cnn.relu if relu else cnn.gated_relu)(
        X, cnn.sample_gates(X, 20, seed=0), outputs=outputs, grouping="per-output"
    )
    Y = np.maximum(X @ rng.standard_normal((4, outputs)), 0.0).reshape(60, -1)
    return model, model.problem(Y if outputs > 1 else Y[:, 0], reg=0.02)


def test_all_parts_share_one_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "KEPT_BYTES", 100)
    whole = Kept()
    parts = [whole, whole.part("scaled"), whole.output(0), whole.output(1).part("scaled")]
    held = [part.once("matrix", object, 40.0) for part in parts]
    again = [part.once("matrix", object, 40.0) for part in parts]
    assert [a is b for a, b in zip(held, again, strict=True)] == [True, True, False, False]
    assert whole.take("matrix") is held[0]
    assert whole.take("matrix") is None
    assert parts[3].once("matrix", object, 40.0) is parts[3].once("matrix", object, 40.0)
    assert parts[2].once("a number", object) is parts[2].once("a number", object)


def test_parts_are_found_again_and_outputs_have_a_part_in_common() -> None:
    whole = Kept()
    assert whole.part("scaled") is whole.part("scaled")
    assert whole.part("scaled") is not whole
    assert whole.output(1) is whole.output(1)
    assert whole.output(1) is not whole.output(0)
    assert whole.output(1).common is whole.common is whole
    assert whole.output(1).part("scaled").common is whole.part("scaled")


def test_outputs_share_the_features() -> None:
    _, problem = problem_with(relu=False, outputs=3)
    composite = compile_problem(problem, numpy_backend()).composite()
    inside = [scaled(program)[0] for program in gated_structure(composite).programs]
    assert len(inside) == 3
    assert all(program.X is inside[0].X for program in inside)
    assert all(kept_features(program) is kept_features(inside[0]) for program in inside)


@pytest.mark.parametrize(
    ("relu", "solver"), [(False, ADMM), (False, SemismoothNewton), (True, SemismoothNewton)]
)
@pytest.mark.parametrize("outputs", [1, 2])
def test_nothing_but_time_depends_on_what_is_kept(
    relu: bool, solver: Any, outputs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    values: list[list[float]] = []
    for size in (2**29, 0):
        monkeypatch.setattr(kept, "KEPT_BYTES", size)
        model, problem = problem_with(relu, outputs)
        values.append([])
        for reg in (0.02, 0.01, 0.005):
            model.reg.value = reg
            values[-1].append(problem.solve(solver=solver(tol=1e-7)))
            assert problem.status == cp.OPTIMAL
    np.testing.assert_allclose(values[0], values[1], rtol=3e-7)


def test_what_is_kept_for_one_output_is_not_taken_for_all() -> None:
    _, problem = problem_with(relu=False, outputs=3)
    composite = compile_problem(problem, numpy_backend()).composite()
    structure = gated_structure(composite)
    inside = admm_method(composite, structure, 1e-6).problem.program
    assert inside.outputs == 3
    assert all(inside.kept is not scaled(program)[0].kept for program in structure.programs)
    assert inside.kept is admm_method(composite, structure, 1e-6).problem.program.kept


def test_a_kept_matrix_goes_where_memory_is_short() -> None:
    _, problem = problem_with(relu=False, outputs=1)
    exact = compile_problem(problem, numpy_backend()).composite()
    structure = gated_structure(exact)
    method = admm_method(exact, structure, 1e-4)
    state = method.start(exact.zeros())
    left = weakref.ref(state.engine._iteration._factor)  # pyright: ignore[reportPrivateUsage]
    del state
    assert left() is not None
    assert admm_method(exact, structure, 1e-4).most == 20
    assert left() is not None
    with pytest.raises(UnsupportedProblem, match="raise memory="):
        admm_method(exact, structure, 1e-4, memory=1000.0)
    assert left() is None
