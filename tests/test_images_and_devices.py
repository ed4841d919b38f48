"""The image examples at a tiny size, and the device check on torch's CPU: what they print holds."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="pip install 'convexnn[torch]'")

from benchmarks import gpu
from convexnn_solvers.backends import torch_backend

ROOT = Path(__file__).resolve().parent.parent
TINY = ["--samples", "100", "--gates", "6", "--test", "100"]


def run(script: str, folder: Path, *arguments: str) -> str:
    """What an example prints; it must end well."""
    command = [sys.executable, str(ROOT / "examples" / script), *TINY, *arguments]
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
