"""Tests draw the same numbers in every run and in every order, and decide nothing by the clock.

A generator that nobody seeded, NumPy's or Python's global one, or one that several functions take turns with
makes the data of a test depend on which tests ran before it; a limit in seconds makes it depend on the load.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

FILES = sorted(Path(__file__).parent.glob("*.py"))
#: What makes a generator of its own from a seed.
SEEDED = {"default_rng", "RandomState", "Random", "SeedSequence", "PCG64"}
#: Names whose calls draw from, or set, a generator that everybody shares.
GLOBAL = re.compile(
    r"^(np|numpy)\.random\.\w+$|^random\.\w+$|^torch\.(rand|randn|randint|randperm|normal|seed)$"
)
CLOCK = re.compile(r"^(time\.)?(time|perf_counter|monotonic|process_time|thread_time)(_ns)?$")
TIMES = re.compile(r"(^|_|\.)(seconds|elapsed|duration|solve_time|setup_time)\b|\['\w*seconds'\]")
ORDER = (ast.Lt, ast.LtE, ast.Gt, ast.GtE)
#: (file, name): what scikit-learn draws from NumPy's global generator is seeded before every test; the tool
#: of mutation testing ends programs that never end; and limits on the CPU time of the process alone, which no
#: load changes much, are a small part of what the fault takes that they are there to see.
ALLOWED = {
    ("test_estimators.py", "np.random.seed"),
    ("mutants.py", "time.monotonic"),
    ("test_robust.py", "time.process_time"),
    ("test_robust.py", "seconds < SECONDS"),
    ("test_compiler.py", "seconds < 1.0"),
}


def calls(tree: ast.AST) -> Iterator[tuple[ast.Call, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield node, ast.unparse(node.func)


def unseeded(tree: ast.AST) -> list[str]:
    """Calls that draw from a generator without a seed, or from one that everybody shares."""
    found = []
    for call, name in calls(tree):
        seeded = name.rpartition(".")[2] in SEEDED
        given = [*call.args, *(keyword.value for keyword in call.keywords)]
        if seeded and (not given or any(isinstance(a, ast.Constant) and a.value is None for a in given)):
            found.append(f"{name}()")
        elif not seeded and GLOBAL.match(name):
            found.append(name)
    return found


def generators(body: list[ast.stmt]) -> set[str]:
    """Names that a module or class gives to generators, not to what was drawn from them."""
    names: set[str] = set()
    for node in body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Call | ast.Tuple):
            made = node.value.elts if isinstance(node.value, ast.Tuple) else [node.value]
            if any(
                isinstance(m, ast.Call) and ast.unparse(m.func).rpartition(".")[2] in SEEDED for m in made
            ):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                names |= {n.id for t in targets for n in ast.walk(t) if isinstance(n, ast.Name)}
        elif isinstance(node, ast.ClassDef):
            names |= generators(node.body)
    return names


def shared(tree: ast.Module) -> list[str]:
    """Uses of a module's generator inside its functions: whoever is called first gets other numbers."""
    names, found = generators(tree.body), list[str]()
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            given = {a.arg for a in ast.walk(function.args) if isinstance(a, ast.arg)}
            inside = [n for n in ast.walk(function) if isinstance(n, ast.Name)]
            own = given | {n.id for n in inside if isinstance(n.ctx, ast.Store)}
            found += [n.id for n in inside if n.id in names - own]
            found += [n.attr for n in ast.walk(function) if isinstance(n, ast.Attribute) and n.attr in names]
    return found


def clocks(tree: ast.AST) -> list[str]:
    """Looks at a clock, and what is required of times except to be positive or below each other."""
    found = [name for _, name in calls(tree) if CLOCK.match(name)]
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare) and all(isinstance(o, ORDER) for o in node.ops):
            sides = [node.left, *node.comparators]
            others = [
                side for side in sides if isinstance(side, ast.Call) or not TIMES.search(ast.unparse(side))
            ]
            limits = [side for side in others if not (isinstance(side, ast.Constant) and side.value == 0)]
            if limits and len(others) < len(sides):
                found.append(ast.unparse(node))
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_nothing_depends_on_draws_order_or_load(file: Path) -> None:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    found = {*unseeded(tree), *shared(tree), *clocks(tree)}
    assert sorted(name for name in found if (file.name, name) not in ALLOWED) == []


BAD = [
    "rng = np.random.default_rng()",
    "rng = np.random.default_rng(None)",
    "x = np.random.rand(3)",
    "random.shuffle(x)",
    "RNG = np.random.default_rng(0)\ndef test(): return RNG.random()",
    "RNG: Any = default_rng(seed=1)\ntable = {'a': lambda: RNG.random()}",
    "class T:\n    rng = default_rng(0)\n    def test(self): return self.rng.random()",
    "started = time.perf_counter()",
    "assert result.seconds < 2.0",
    "assert row['solve_seconds'] <= limit",
    "assert 0.5 > elapsed",
]
GOOD = [
    "rng = np.random.default_rng(3)\nx = rng.random(4)",
    "RNG = np.random.default_rng(0)\nX = RNG.random(3)\ndef test(): return X",
    "RNG = default_rng(0)\ndef test():\n    RNG = default_rng(1)\n    return RNG.random()",
    "X = np.random.default_rng(0).standard_normal(4)\ndef test(): return X",
    "assert row['seconds'] > 0.0",
    "assert seconds == sorted(seconds)",
    "assert compile_seconds <= seconds",
    "def draw(rng): return rng.random()",
]


@pytest.mark.parametrize("text", BAD)
def test_what_is_forbidden_is_found(text: str) -> None:
    tree = ast.parse(text)
    assert {*unseeded(tree), *shared(tree), *clocks(tree)}


@pytest.mark.parametrize("text", GOOD)
def test_what_is_fine_is_left_alone(text: str) -> None:
    tree = ast.parse(text)
    assert not {*unseeded(tree), *shared(tree), *clocks(tree)}
