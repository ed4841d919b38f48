"""Mutation testing of what must not be wrong: certificates, cones and recovery, with small faults put in.

``make mutants`` takes a sample of faults (a sign, a comparison, a constant, ...) for every module below, puts
each into a copy of the repository, and runs the tests that are responsible for that module there. A fault
that no test notices survives. Those that nobody could notice are in ``equivalent_mutants.toml``, with the
reason, and do not count. The exit status is 1 when fewer than 85 % of the others are killed.

The faults are those of the package cosmic-ray. Its own runner starts a new Python for each; here one process
imports the libraries once and forks, and what only annotates or asserts (types, ``zip(strict=...)``) is left
alone.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import multiprocessing
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOLVERS, MODELS = "solvers/convexnn_solvers", "convexnn_models"
_CERTIFICATES = (
    "test_certificate_composites.py", "test_certificate_constraints.py",
    "test_certificate_planted.py::test_gap_closes_at_the_optimum",
    "test_certificate_planted.py::test_unusable_candidates_are_ignored_and_reported",
    "test_certificate_public.py",
)  # fmt: skip
_BOUNDS = ("test_dual_bounds.py", "test_dual_bounds_numbers.py")
_CONES = ("test_cones.py", "test_active_sets.py", "test_active_set_kernel.py")
_MEMORY_OF_CONES = ("test_cone_factors.py", "test_cone_memory.py")
_RECOVERY = (
    "test_pruning.py",
    "test_recovery_parts.py",
    "test_recovery.py",
    "test_break_recovery.py",
    "test_bad_input.py",
)

#: Module -> what is responsible for it in ``tests/``, the quick ones first. All of the suite would see more.
TARGETS: dict[str, tuple[str, ...]] = {
    f"{SOLVERS}/certify/certifier.py": (
        "test_certifier.py",
        "test_certifier_feasibility.py",
        "test_kink_duals.py",
        *_CERTIFICATES,
    ),
    f"{SOLVERS}/certify/violations.py": (
        "test_prices_of_violations.py",
        "test_certifier_feasibility.py",
        *_CERTIFICATES,
    ),
    f"{SOLVERS}/certify/dual_bounds.py": ("test_dual_rays.py", *_BOUNDS, *_CERTIFICATES),
    f"{SOLVERS}/certify/budgets.py": ("test_budget_bounds.py",),
    f"{SOLVERS}/certify/budget_bounds.py": ("test_budget_bounds.py",),
    f"{SOLVERS}/certify/dual_norms.py": ("test_dual_norms.py", "test_dual_norms_cones.py", *_CERTIFICATES),
    f"{SOLVERS}/certify/cone_columns.py": (
        "test_cone_columns.py",
        "test_dual_norms_cones.py",
        *_CERTIFICATES,
    ),
    f"{SOLVERS}/certify/thin_domains.py": ("test_thin_domains.py", "test_certificate_public.py"),
    f"{SOLVERS}/certify/free_columns.py": ("test_free_variables.py", *_BOUNDS),
    f"{SOLVERS}/certify/reach.py": ("test_free_variables.py", *_BOUNDS),
    f"{SOLVERS}/cones/projections.py": (*_CONES, *_MEMORY_OF_CONES),
    f"{SOLVERS}/cones/memory.py": _MEMORY_OF_CONES,
    f"{SOLVERS}/cones/factors.py": _MEMORY_OF_CONES,
    f"{SOLVERS}/cones/kernel.py": _MEMORY_OF_CONES,
    f"{SOLVERS}/cones/active_sets.py": _CONES,
    f"{MODELS}/recovery.py": _RECOVERY,
    f"{MODELS}/cone_decomposition.py": _RECOVERY,
    f"{MODELS}/cone_splits.py": ("test_cone_splits.py", *_RECOVERY),
    f"{MODELS}/pruning.py": _RECOVERY,
    f"{MODELS}/gates.py": ("test_gates.py", "test_bad_input.py", "test_reference.py"),
}
REQUIRED = 0.85
_PRELOADED = ("numpy", "scipy.optimize", "scipy.sparse.linalg", "cvxpy", "clarabel", "pytest", "numba")
_MEMORY = 6 * 2**30


@dataclass(frozen=True)
class Mutant:
    """``source`` is ``module`` with one fault: at ``line`` it says ``after`` instead of ``before``."""

    module: str
    line: int
    before: str
    after: str
    source: str

    def __str__(self) -> str:
        return f"{self.module}:{self.line}\n    - {self.before}\n    + {self.after}"


@dataclass
class _Run:
    """The tests of one mutant, running in its own process on its own copy of the repository."""

    mutant: Mutant
    folder: Path
    original: str
    process: BaseProcess


def sample(module: str, size: int, seed: int, root: Path = ROOT) -> list[Mutant]:
    """At most ``size`` different faults of a module: places first, then one of the faults possible there."""
    faults = importlib.import_module("cosmic_ray.plugins")
    tree_of = importlib.import_module("cosmic_ray.ast")
    mutate = importlib.import_module("cosmic_ray.mutating").mutate_code
    text = (root / module).read_text(encoding="utf-8")
    nodes = list(tree_of.ast_nodes(tree_of.get_ast(text)))
    places: dict[tuple[int, int], list[tuple[str, int]]] = {}
    for name in sorted(faults.operator_names()):
        kind = faults.get_operator(name)
        if kind.arguments():
            continue
        found = (position for node in nodes for position in kind().mutation_positions(node))
        for occurrence, (start, _) in enumerate(found):
            places.setdefault(start, []).append((name, occurrence))
    rng = random.Random(f"{seed} {module}")
    order = sorted(places)
    rng.shuffle(order)
    mutants: list[Mutant] = []
    for place in order:
        rng.shuffle(places[place])
        for name, occurrence in places[place]:
            mutant = _mutant(module, text, str(mutate(text, faults.get_operator(name)(), occurrence)))
            if mutant is not None:
                mutants.append(mutant)
                break
        if len(mutants) == size:
            break
    return mutants


def _mutant(module: str, text: str, changed: str) -> Mutant | None:
    """None for what is no Python or means the same."""
    try:
        if _meaning(changed) == _meaning(text):
            return None
    except SyntaxError:
        return None
    old, new = text.splitlines(), changed.splitlines()
    line = next(k for k, (a, b) in enumerate(zip(old, new, strict=False)) if a != b)
    return Mutant(module, line + 1, old[line].strip(), new[line].strip(), changed)


def _meaning(text: str) -> str:
    """What a module does: its syntax tree without annotations and the assertions ``zip(strict=...)``."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.AnnAssign):
            node.annotation = ast.Constant(None)
        elif isinstance(node, ast.arg):
            node.annotation = None
        elif isinstance(node, ast.FunctionDef):
            node.returns = None
        elif isinstance(node, ast.Call):
            node.keywords = [keyword for keyword in node.keywords if keyword.arg != "strict"]
    return ast.dump(tree)


def equivalents() -> dict[tuple[str, str, str], str]:
    """(module, before, after) -> the reason why no test can tell that fault from the original."""
    data = tomllib.loads((ROOT / "tests" / "equivalent_mutants.toml").read_text(encoding="utf-8"))
    return {
        (entry["module"], entry["before"], entry["after"]): entry["reason"]
        for entry in data.get("mutant", [])
    }


def _copy(folder: Path) -> Path:
    """The files that git knows or would take, without what git ignores."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT, capture_output=True, check=True,
    ).stdout.decode()  # fmt: skip
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    return folder


def _run_tests(folder: Path, tests: Sequence[str], seconds: int) -> None:
    """In a forked process: leave with pytest's exit status."""
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    with (folder / "output.txt").open("w", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.chdir(folder)
    ours = [str(folder), str(folder / "solvers"), str(folder / "tests")]
    sys.path[:] = ours + [entry for entry in sys.path if not _within(entry, ROOT)]
    os.environ["PYTHONPATH"] = os.pathsep.join(ours)
    sys.dont_write_bytecode = True  # two faults of one size within one second would share it
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    pytest = importlib.import_module("pytest")
    named = [f"tests/{name}" for name in tests]
    os._exit(int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", *named])))


def _within(entry: str, folder: Path) -> bool:
    """Whether an import path belongs to the repository itself (but not to an environment inside it)."""
    path = Path(entry or ".").resolve()
    return path in (folder, folder / "solvers", folder / "tests")


def _start(mutant: Mutant, folder: Path, tests: Sequence[str], seconds: int) -> _Run:
    original = (folder / mutant.module).read_text(encoding="utf-8")
    (folder / mutant.module).write_text(mutant.source, encoding="utf-8")
    context = multiprocessing.get_context("fork")
    process = context.Process(target=_run_tests, args=(folder, tests, seconds))
    process.start()
    return _Run(mutant, folder, original, process)


def _finish(run: _Run) -> bool:
    """Whether all tests passed; the copy is as before."""
    run.process.join()
    (run.folder / run.mutant.module).write_text(run.original, encoding="utf-8")
    return run.process.exitcode == 0


def _killer(run: _Run) -> str:
    """The test that failed, or how the process ended without one."""
    lines = (run.folder / "output.txt").read_text(encoding="utf-8", errors="replace").splitlines()
    named = [line.split()[1] for line in lines if line.startswith(("FAILED ", "ERROR "))]
    return named[0] if named else f"exit status {run.process.exitcode}"


def _checked_seconds(modules: Sequence[str], folder: Path) -> dict[str, int]:
    """What the tests of each module may take, once seen to pass as it is and to fail without it."""
    taken: dict[str, float] = {}
    for module in modules:
        text = (folder / module).read_text(encoding="utf-8")
        for name in TARGETS[module]:
            if name in taken:
                continue
            before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
            if not _finish(_start(Mutant(module, 0, "", "", text), folder, (name,), 900)):
                print((folder / "output.txt").read_text(encoding="utf-8"))
                raise SystemExit(f"tests/{name} fails without any fault.")
            taken[name] = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before
        if _finish(_start(Mutant(module, 0, "", "", "raise RuntimeError"), folder, TARGETS[module], 900)):
            raise SystemExit(f"the tests of {module} pass without it.")
    return {module: 20 + int(2.0 * sum(taken[name] for name in TARGETS[module])) for module in modules}


def _in_turn(samples: Sequence[Sequence[Mutant]]) -> Iterator[Mutant]:
    """Modules in turn, so that a time limit cuts all of them alike."""
    for k in range(max(map(len, samples), default=0)):
        yield from (mutants[k] for mutants in samples if k < len(mutants))


def main(arguments: Sequence[str] | None = None) -> int:
    """Print what survives and the rates; 0 when enough was killed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--sample", type=int, default=20, help="faults per module")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=28.0, help="no new fault is tried after this time")
    parser.add_argument("--lanes", type=int, default=2, help="processes at once")
    parser.add_argument("modules", nargs="*", help="names such as dual_norms; default: all")
    options = parser.parse_args(arguments)
    modules = [m for m in TARGETS if not options.modules or Path(m).stem in options.modules]
    end = time.monotonic() + 60.0 * options.minutes
    for name in _PRELOADED:
        importlib.import_module(name)
    with tempfile.TemporaryDirectory() as place:
        folders = [_copy(Path(place, str(lane))) for lane in range(options.lanes)]
        outcomes = _tried(modules, folders, options.sample, options.seed, end)
    return _report(modules, outcomes)


def _tried(
    modules: Sequence[str], folders: list[Path], size: int, seed: int, end: float
) -> list[tuple[Mutant, bool]]:
    """Every sampled fault that there was time for, and whether the tests passed with it."""
    known, outcomes = equivalents(), list[tuple[Mutant, bool]]()
    limits = _checked_seconds(modules, folders[0])
    todo = _in_turn([sample(module, size, seed, folders[0]) for module in modules])
    running: list[_Run] = []
    while True:
        while len(running) < len(folders) and time.monotonic() < end:
            mutant = next(todo, None)
            if mutant is None:
                break
            if (mutant.module, mutant.before, mutant.after) not in known:
                free = next(f for f in folders if all(f != run.folder for run in running))
                running.append(_start(mutant, free, TARGETS[mutant.module], limits[mutant.module]))
        if not running:
            return outcomes
        wait([run.process.sentinel for run in running])
        for run in [run for run in running if not run.process.is_alive()]:
            running.remove(run)
            survived = _finish(run)
            outcomes.append((run.mutant, survived))
            print("survived:" if survived else f"killed by {_killer(run)}:", run.mutant, flush=True)


def _report(modules: Sequence[str], outcomes: Sequence[tuple[Mutant, bool]]) -> int:
    total, killed = len(outcomes), sum(not survived for _, survived in outcomes)
    for module in modules:
        own = [survived for mutant, survived in outcomes if mutant.module == module]
        name = "/".join(Path(module).parts[-2:])  # kernels and memories are of several folders
        print(f"{name:32} {own.count(False):4} of {len(own):4} killed")
    rate = killed / total if total else 0.0
    print(f"kill rate {100 * rate:.1f} % ({killed} of {total}; at least {100 * REQUIRED:.0f} % is required)")
    return 0 if rate >= REQUIRED else 1


if __name__ == "__main__":
    sys.exit(main())
