"""The image examples at a tiny size, and the device check on torch's CPU: what they print holds."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="pip install 'convexnn[torch]'")

import convexnn_models as cnn
from benchmarks import gpu, scnn_run
from benchmarks.cases import Case, Instance
from benchmarks.peers import Scnn
from benchmarks.referee import Referee
from benchmarks.scnn_run import missing
from convexnn_models.datasets import Dataset
from convexnn_solvers.backends import torch_backend

ROOT = Path(__file__).resolve().parent.parent
TINY = ["--samples", "100", "--gates", "6", "--test", "100"]
OURS = [*TINY, "--no-scnn"]


def run(script: str, folder: Path, *arguments: str, given: Sequence[str] = OURS) -> str:
    """What an example prints; it must end well."""
    command = [sys.executable, str(ROOT / "examples" / script), *given, *arguments]
    finished = subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def check(printed: str, programs: int, networks: int) -> None:
    gaps = [float(text) for text in re.findall(r"\(relative ([-+.\de]+)\)", printed)]
    assert len(gaps) == programs
    assert all(-1e-12 <= gap <= 0.1 for gap in gaps)
    accuracies = [float(text) for text in re.findall(r"accuracy +([\d.]+)%", printed)]
    assert len(accuracies) == programs + networks
    assert printed.count("ADMM: ") == programs
    assert printed.count("peak memory ") == programs


def test_digits(data_folder: Path, tmp_path: Path) -> None:
    printed = run("mnist.py", tmp_path, "--path", "2")
    check(printed, programs=1, networks=2)
    rows = re.findall(r"^ +([\d.e-]+) +([\d.e-]+) +[\d.]+ +([\d.]+)%$", printed, re.MULTILINE)
    assert len(rows) == 2
    assert all(float(gap) <= 0.1 for _, gap, _ in rows)
    assert max(float(accuracy) for _, _, accuracy in rows) > 40.0


def test_digits_by_a_relu_network(data_folder: Path, tmp_path: Path) -> None:
    printed = run("mnist.py", tmp_path, "--no-torch", "--relu", "3")
    assert "ReLU network, 100 digits" in printed
    assert "SemismoothNewton: " in printed
    gaps = [float(text) for text in re.findall(r"\(relative ([-+.\de]+)\)", printed)]
    assert len(gaps) == 2
    assert all(-1e-12 <= gap <= 0.1 for gap in gaps)
    assert min(float(text) for text in re.findall(r"accuracy +([\d.]+)%", printed)) > 30.0


def test_colour_images(data_folder: Path, tmp_path: Path) -> None:
    check(run("cifar10.py", tmp_path), programs=2, networks=4)


def test_scnn_beside_us_or_how_to_get_it(data_folder: Path, tmp_path: Path) -> None:
    printed = run("mnist.py", tmp_path, "--no-torch", given=TINY)
    if missing() is not None:
        assert re.search(
            r"^\(no comparison with scnn, .*: .*pip install .*pyscnn.*\)$", printed, re.MULTILINE
        )
        return
    accuracies = [float(text) for text in re.findall(r"accuracy +([\d.]+)%", printed)]
    assert accuracies[1] > 40.0
    spent = [float(text) for text in re.findall(r"% +([\d.]+) s", printed)]
    assert spent[1] <= spent[0]
    gap = [float(text) for text in re.findall(r"\(relative ([-+.\de]+)\)", printed)][1]
    assert -1e-12 <= gap <= 1.0


class _Scnn:
    """Takes a second for an iteration, and two to hand out its weights."""

    clock = 0.0

    def __init__(self, *data: Any, **options: Any) -> None:
        if options["device"] == "too small":
            raise RuntimeError("out of memory")

    def until(self, enough: Callable[[Callable[[], Any]], bool]) -> bool:
        while True:
            _Scnn.clock += 1.0
            if enough(self.fetch):
                return True

    def fetch(self) -> Any:
        _Scnn.clock += 2.0
        return [np.zeros((30, 5))]


@pytest.mark.parametrize("device", ["cpu", "too small"])
def test_scnn_has_our_time_for_itself(
    device: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights were fetched on its time; a device without room for its data ended the example."""
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    side_by_side = importlib.import_module("side_by_side")
    monkeypatch.setattr(scnn_run, "ScnnRun", _Scnn)
    monkeypatch.setattr(scnn_run, "load_scnn", lambda: None)
    monkeypatch.setattr(side_by_side.time, "perf_counter", lambda: _Scnn.clock)
    X, y = np.random.default_rng(0).standard_normal((20, 2)), np.arange(20) % 10
    data = Dataset("digits", X, y, X, y)
    chosen = side_by_side.arguments(None, 20, 5, 1e-3).parse_args(["--device", device])
    side_by_side.beside_scnn("gates", data, cnn.sample_gates(X, 5, bias=True), 6.0, chosen)
    expected = "scnn failed: out of memory" if device == "too small" else "6 iterations of its R-FISTA"
    assert expected in capsys.readouterr().out


def test_a_device_without_room_for_scnn_leaves_torch_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    library = importlib.import_module("torch")
    before = library.is_grad_enabled(), library.get_default_dtype()

    def set_device(*arguments: Any) -> None:
        library.set_grad_enabled(False)
        library.set_default_dtype(library.float64)

    def tensor(array: Any) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(scnn_run, "load_scnn", lambda: None)
    monkeypatch.setitem(sys.modules, "lab", SimpleNamespace(tensor=tensor))
    monkeypatch.setitem(sys.modules, "scnn.private.interface", SimpleNamespace(set_device=set_device))
    X = np.random.default_rng(0).standard_normal((20, 2))
    try:
        with pytest.raises(RuntimeError, match="out of memory"):
            scnn_run.ScnnRun(X, X, cnn.sample_gates(X, 5), 0.01)
        assert (library.is_grad_enabled(), library.get_default_dtype()) == before
    finally:
        library.set_grad_enabled(before[0])
        library.set_default_dtype(before[1])


@pytest.mark.parametrize(("dtype", "most"), [("float64", 1e-13), ("float32", 1e-5)])
def test_the_maps_on_a_device_are_those_of_numpy(dtype: str, most: float) -> None:
    errors = gpu.map_errors(torch_backend("cpu", dtype))
    assert set(errors) == {"forward", "adjoint"}
    assert max(errors.values()) <= most
    assert dtype == "float64" or min(errors.values()) > 0.0


def test_operations_and_bytes_are_counted() -> None:
    found = gpu.timings(torch_backend("cpu", "float32"), (200, 10, 20, 3))
    for timing in found.values():
        assert timing.operations == 2 * 200 * 10 * 20 * 3
        assert timing.moved > 200 * 20
        assert timing.seconds > 0.0
        assert timing.rate == timing.operations / timing.seconds


def test_a_solve_on_both_agrees(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(gpu.SOLVED, "cpu", (60, 5, 10, 2))
    gpu.solve_on_both("cpu", "float32", 1e-3)
    printed = capsys.readouterr().out
    assert printed.count("relative") == 2
    assert "backend='torch'" in printed


def test_scnn_on_the_device_gets_to_the_same_gap(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(gpu.SOLVED, "cpu", (60, 5, 10, 2))
    gpu.beside_scnn("cpu", "float32", 1e-2)
    printed = capsys.readouterr().out
    assert printed.count("relative") == 1
    if missing() is None:
        assert float(re.findall(r"scnn .* gap ([-+.\de]+) ", printed)[0]) <= 1e-2
    else:
        assert "scnn cannot be imported" in printed


@pytest.mark.parametrize(("dtype", "torch", "most"), [("float64", False, 1e-6), ("float32", True, 1e-3)])
def test_scnn_solves_our_program_on_any_of_its_devices(dtype: str, torch: bool, most: float) -> None:
    """Its weights, in our scaling, are certified on our program; torch is left as it was."""
    if missing() is not None:
        pytest.skip("pip install --no-deps pyscnn linalg-backends")
    import torch as library

    before = library.is_grad_enabled(), library.get_default_dtype()
    rng = np.random.default_rng(0)
    X, Y = rng.standard_normal((40, 4)), rng.standard_normal((40, 2))
    numbers = Instance(
        Case("random", "gated", 8, 0.1), X, Y, cnn.sample_gates(X, 8), 2, "per-output", reg=0.02
    )
    referee = Referee(numbers, cap=20.0, goal=most)
    Scnn(dtype=dtype, torch=torch).solve(numbers, referee)
    assert referee.reached(most)
    assert (library.is_grad_enabled(), library.get_default_dtype()) == before
