"""Gates divided among processes: the same certified result, bit for bit the same path, one message a step."""

from __future__ import annotations

import contextlib
import itertools
import os
import pickle
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cvxpy as cp
import numpy as np
import pytest

import convexnn_models as cnn
from convexnn_solvers import RFISTA, certificate
from convexnn_solvers.first_order.rfista import rfista_method
from convexnn_solvers.loop.relay import Engine

pytest.importorskip("torch.distributed", reason="pip install 'convexnn[distributed]'")

import distributed_worker as worker

WORKER = Path(worker.__file__)
Reports = list[dict[str, Any]]


def free_port() -> int:
    """Below those that systems hand out, so that nobody else is given it before the job takes it."""
    for port in itertools.count(15_000 + os.getpid() % 10_000):
        with socket.socket() as free, contextlib.suppress(OSError):
            free.bind(("127.0.0.1", port))
            return port
    raise AssertionError


def job(scenario: str, processes: int, folder: Path) -> list[tuple[int, str]]:
    """Exit codes and error outputs of a job, started as torchrun would start it."""
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(processes)}
    path = {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(
            [sys.executable, "-W", "error", str(WORKER), scenario, str(folder)],
            env=os.environ | common | path | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(processes)
    ]
    ends = []
    for process in started:
        _, errors = process.communicate(timeout=280)  # far below it, unless they wait for each other
        ends.append((process.returncode, errors))
    return ends


class OnAllGates(RFISTA):
    """R-FISTA without a working set: what the processes do together."""

    def engines(self, composite: Any, exact: Any, multipliers: Any, options: Any) -> Iterator[Engine]:
        return iter([Engine("RFISTA", "", lambda: rfista_method(composite))])


def reports(scenario: str, ends: list[tuple[int, str]], folder: Path) -> Reports:
    files = [folder / f"{scenario}{rank}.pickle" for rank in range(len(ends))]
    assert all(file.exists() for file in files), "\n".join(errors for _, errors in ends)
    return [pickle.loads(file.read_bytes()) for file in files]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("two")


@pytest.fixture(scope="module")
def ends(folder: Path) -> list[tuple[int, str]]:
    """How the job of two ended, whose second process dies when everything is done."""
    return job("everything", 2, folder)


@pytest.fixture(scope="module")
def two(ends: list[tuple[int, str]], folder: Path) -> Reports:
    return reports("everything", ends, folder)


@pytest.fixture(scope="module")
def three(two: Reports, folder: Path) -> Reports:
    return reports("resume", job("resume", 3, folder), folder)


@pytest.fixture(scope="module")
def whole() -> dict[str, Any]:
    """The uninterrupted solve of one process."""
    return worker.solve(worker.problem_of("squared", 1e-3), OnAllGates(tol=0.0, max_iter=90))


def check_result(ours: Reports, name: str) -> None:
    problem = worker.problem_of(name)
    alone = worker.solve(problem, RFISTA(tol=1e-10))
    for report in (rank[name] for rank in ours):
        assert report["status"] == alone["status"] == "OPTIMAL"
        assert report["value"] == pytest.approx(alone["value"], rel=1e-9)
        assert report["dual"] == pytest.approx(alone["dual"], rel=1e-9)
        assert report["judged"] <= 1e-10
        for mine, theirs in zip(report["points"], ours[0][name]["points"], strict=True):
            np.testing.assert_array_equal(mine, theirs)
    for variable, value in zip(problem.variables(), ours[-1][name]["points"], strict=True):
        variable.value = value
    assert certificate(problem).relative_gap <= 1e-10  # type: ignore[operator]


@pytest.mark.parametrize("name", worker.PROGRAMS)
def test_two_processes_certify_what_one_does(name: str, two: Reports) -> None:
    check_result(two, name)


def test_three_processes_certify_what_one_does(three: Reports) -> None:
    check_result(three, "squared")


@pytest.mark.parametrize("name", worker.PROGRAMS)
def test_all_processes_take_the_same_steps_to_the_last_bit(name: str, two: Reports) -> None:
    first, second = (report[name] for report in two)
    assert len(first["steps"]) == first["iterations"] > 20
    assert first["steps"] == second["steps"]
    assert first["history"] == second["history"]


@pytest.mark.parametrize("name", worker.PROGRAMS)
def test_a_step_sends_one_prediction_and_nothing_else(name: str, two: Reports) -> None:
    outputs = 1 if name == "squared" else 3
    message = 8 * (worker.N * outputs + 5)
    for report in two:
        sent = report[name]["sent"]
        assert all(trials >= 1 for trials, _, _ in sent)
        assert [size for _, size, _ in sent] == [trials * message for trials, _, _ in sent]
        assert all(others == 0 for _, _, others in sent)
        # More than one only where the step length had to shrink.
        assert np.median([trials for trials, _, _ in sent]) == 1


def test_processes_whose_gates_are_all_zero_start_warm_with_the_others(two: Reports) -> None:
    for report in two:
        warm = report["warm"]
        assert max(warm["active"]) < worker.GATES // 2 or min(warm["active"]) >= worker.GATES // 2
        assert warm["second"]["judged"] <= 1e-8
        # It began where the first solve ended, not at the zero network.
        zero = 0.5 * float(np.mean(worker.SCORES[:, 0] ** 2))
        assert warm["second"]["history"][0]["primal"] < zero - 1e-6


def histories_agree(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert [row["iteration"] for row in one["history"]] == [row["iteration"] for row in other["history"]]
    for key in ("primal", "dual"):
        ours, theirs = ([row[key] for row in report["history"]] for report in (one, other))
        np.testing.assert_allclose(ours, theirs, rtol=1e-9)


def test_ctrl_c_in_one_process_ends_all_and_resume_goes_on(two: Reports, whole: dict[str, Any]) -> None:
    for report in two:
        assert report["interrupted"]["status"] == "INTERRUPTED"
        assert report["interrupted"]["iterations"] < 40
        histories_agree(report["resumed"], report["whole"])
        histories_agree(report["resumed"], whole)
        assert report["resumed"]["iterations"] == 90


def test_the_clock_of_one_process_stops_all(two: Reports) -> None:
    assert [report["late"]["status"] for report in two] == ["TIME_LIMIT"] * 2
    assert two[0]["late"]["iterations"] == two[1]["late"]["iterations"]


def test_any_number_of_processes_goes_on_from_the_checkpoint(
    three: Reports, whole: dict[str, Any], folder: Path
) -> None:
    for report in three:
        histories_agree(report["resumed"], whole)
    alone = OnAllGates(tol=0.0, max_iter=90, checkpoint=folder / "interrupted.npz", resume=True)
    resumed = worker.solve(worker.problem_of("squared", 1e-3), alone)
    assert resumed["value"] == pytest.approx(whole["value"], rel=1e-9)
    solver = RFISTA(tol=1e-6, checkpoint=folder / "interrupted.npz", resume=True)
    assert worker.solve(worker.problem_of("squared", 1e-3), solver)["judged"] <= 1e-6


def test_a_process_that_dies_or_is_silent_ends_the_others_with_one_error(
    ends: list[tuple[int, str]], folder: Path, whole: dict[str, Any]
) -> None:
    (code, errors), (dead, _) = ends
    assert (code, dead) == (1, 7)
    assert errors.count("RankLost: process 0 of 2 lost contact with the others") == 1
    assert "did not answer for 5 seconds" in (folder / "silent0").read_text()
    with np.load(folder / "lost.npz") as held:
        assert 15 <= held["loop"][0] <= 20
    alone = OnAllGates(tol=0.0, max_iter=90, checkpoint=folder / "lost.npz", resume=True)
    resumed = worker.solve(worker.problem_of("squared", 1e-3), alone)
    assert resumed["value"] == pytest.approx(whole["value"], rel=1e-9)


def _ridge() -> Any:
    model = cnn.gated_relu(worker.X, cnn.sample_gates(worker.X, 5))
    U = model.variables[0]
    return cp.Problem(
        cp.Minimize(model.problem(worker.SCORES[:, 0], 0.1).objective.args[0] + cp.norm(U, "fro"))
    )


def _biased() -> Any:
    model = cnn.gated_relu(worker.X, cnn.sample_gates(worker.X, 5), output_bias=True)
    return model.problem(worker.SCORES[:, 0], 0.1)


def _cones() -> Any:
    return cnn.relu(worker.X, cnn.sample_gates(worker.X, 5)).problem(worker.SCORES[:, 0], 0.1)


def _few() -> Any:
    return cnn.gated_relu(worker.X, cnn.sample_gates(worker.X, 1)).problem(worker.SCORES[:, 0], 0.1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_ridge, "mixes the columns"),
        (_biased, "one column per gate, and output_bias is none"),
        (_cones, "takes no constraints"),
        (_few, "cannot share 1 gates"),
    ],
)
def test_what_does_not_fall_apart_into_gates_is_refused_by_name(make: Any, message: str) -> None:
    from convexnn_solvers.distributed.shares import Division, share_of

    with pytest.raises((ValueError, cp.SolverError), match=message):
        share_of(make(), Division(0, 2))


def test_outside_a_job_the_remedy_is_named() -> None:
    from convexnn_solvers.distributed import GateParallel

    with pytest.raises(RuntimeError, match="torchrun --nproc-per-node"):
        worker.problem_of("squared").solve(solver=GateParallel())
    with pytest.raises(ValueError, match="timeout"):
        GateParallel(timeout=0.0)


def test_a_process_leaves_the_job_before_it_ends() -> None:
    # Left alone, the group's threads outlive the interpreter and abort the process now and then.
    script = (
        "import atexit\n"
        "import torch.distributed as distributed\n"
        "from convexnn_solvers.distributed.ranks import join\n"
        "atexit.register(lambda: print('in the job' if distributed.is_initialized() else 'left'))\n"
        "assert join('cpu', 30.0).sum(2.0) == 2.0\n"
    )
    one = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "1", "RANK": "0"}
    path = {"PYTHONPATH": os.pathsep.join(sys.path)}
    end = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | one | path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (end.returncode, end.stdout) == (0, "left\n"), end.stderr
