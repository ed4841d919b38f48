"""Where and with what a benchmark ran: what every results file says first."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_PACKAGES = (
    *("convexnn", "cvxpy", "numpy", "scipy", "clarabel", "scs", "Mosek", "numba"),
    *("pyscnn", "skglm", "celer"),
)


def machine() -> dict[str, Any]:
    """Where and with what the runs are made."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": versions,
        "commit": _commit(),
    }


def _commit() -> str:
    """Which code was measured; unknown outside a git checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")


def described(found: dict[str, Any]) -> str:
    """One paragraph for a report."""
    versions = ", ".join(f"{name} {number}" for name, number in found["versions"].items())
    place = f"{found['processor']}, {found['cores']} cores, {found['system']}"
    commit, remark = found.get("commit", "unknown"), found.get("remark", "")
    return f"{place}, Python {found['python']}; {versions}; commit {commit}. {remark}".rstrip()
