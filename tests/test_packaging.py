"""The package as others meet it: what importing costs and drags in, and what a wheel holds."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import convexnn_models
import convexnn_solvers

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = [ROOT / "convexnn_models", ROOT / "solvers" / "convexnn_solvers"]
SOURCES = sorted(path for package in PACKAGES for path in package.rglob("*.py"))
OPTIONAL = ["torch", "sklearn", "matplotlib", "numba", "pandas", "mosek"]


def run(code: str) -> str:
    """What a new Python process prints, with this one's import path."""
    command = [sys.executable, "-c", f"import sys; sys.path[:] = {sys.path!r}; {code}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_importing_adds_no_optional_package() -> None:
    modules = "set(name.split('.')[0] for name in sys.modules)"
    code = f"import cvxpy; before = {modules}; import convexnn_models, convexnn_solvers; "
    added = run(code + f"print(*sorted({modules} - before))").split()
    assert not set(added) & set(OPTIONAL)
    assert {"convexnn_models", "convexnn_solvers"} <= set(added)


def test_the_layout_of_the_solvers_names_every_file_once() -> None:
    text = (ROOT / "solvers" / "README.md").read_text(encoding="utf-8")
    named = re.findall(r"`(\w+)/?`", text.split("**What everything uses.**")[1])
    folders = [path for path in PACKAGES[1].iterdir() if (path / "__init__.py").exists()]
    assert sorted(named) == sorted([p.stem for p in PACKAGES[1].glob("[!_]*.py")] + [p.name for p in folders])
    for folder in folders:
        text = (folder / "__init__.py").read_text(encoding="utf-8")
        listed = re.findall(r"``(\w+)``", text.split("From the bottom up")[1])
        assert sorted(listed) == sorted(p.stem for p in folder.glob("[!_]*.py"))


def test_the_layout_of_the_models_names_every_file_once() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    listed = text.split("## Where things are")[1].split("* **", 1)[1].split("\n\n")[0]
    named = [name for name in re.findall(r"`(\w+)`", listed) if name != "to_relu"]
    assert sorted(named) == sorted(p.stem for p in PACKAGES[0].glob("*.py") if p.stem != "__init__")


def _names(path: Path) -> set[str]:
    """All names that a file defines, imports or uses as an attribute."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    found = {n.name for n in nodes if isinstance(n, ast.ClassDef | ast.FunctionDef)}
    found |= {n.id for n in nodes if isinstance(n, ast.Name)} | {
        n.attr for n in nodes if isinstance(n, ast.Attribute)
    }
    aliases = [alias for n in nodes if isinstance(n, ast.Import | ast.ImportFrom) for alias in n.names]
    return found | {alias.asname or alias.name for alias in aliases}


NAMES = {path: _names(path) for path in SOURCES}


def _leads_somewhere(reference: str, home: Path) -> bool:
    """Whether a module, or names of one, are there: beside ``home``, in it, or below a package."""
    parts = reference.lstrip("~").split(".")
    public = [NAMES[package / "__init__.py"] for package in PACKAGES]
    if any(set(parts) <= names for names in (NAMES[home], *public)):
        return True
    for folder in (home.parent, *PACKAGES, *(package.parent for package in PACKAGES)):
        for k in range(len(parts)):
            path = folder.joinpath(*parts[: k + 1])
            for file in (path.with_suffix(".py"), path / "__init__.py"):
                if set(parts[k + 1 :]) <= NAMES.get(file, set()) and file in NAMES:
                    return True
    return False


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_references_lead_somewhere(path: Path) -> None:
    """Those of docstrings and comments, and single words in double backticks after "see"."""
    text = path.read_text(encoding="utf-8")
    found = re.findall(r":\w+:`([^`]+)`", text) + re.findall(r"\b[Ss]ee (?:``)?([a-z]+_[a-z_]+)\b", text)
    assert [reference for reference in found if not _leads_somewhere(reference, path)] == []


PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("*/README.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_name_what_is_there(page: Path) -> None:
    """Files that are linked or named with their folder, and targets of the Makefile."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    linked = [name for name in re.findall(r"\]\(([^)#\s]+)", text) if "://" not in name]
    assert [name for name in linked if not list(page.parent.glob(name))] == []
    named = re.findall(r"`(?:python )?(\w+/[\w/]+\.(?:py|md|toml))", text)
    assert [name for name in named if not (ROOT / name).is_file()] == []
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(re.findall(r"`make ([\w-]+)", text)) <= set(targets)


def test_both_packages_and_the_citation_tell_one_version() -> None:
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.findall(r"^version: (\S+)$", citation, re.MULTILINE) == [convexnn_solvers.__version__]
    assert convexnn_models.__version__ == convexnn_solvers.__version__


def test_importing_is_quick() -> None:
    code = (
        "from time import process_time as now; a = now(); import cvxpy; b = now(); "
        "import convexnn_models, convexnn_solvers; print(b - a, now() - b)"
    )
    # The first of them may write the byte code.
    cvxpys, ours = min((tuple(map(float, run(code).split())) for _ in range(3)), key=lambda pair: pair[1])
    assert ours < 0.5 * cvxpys  # a share, because seconds depend on the machine and its load


def test_only_one_file_knows_cvxpys_reductions() -> None:
    using = [
        path.name
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if (isinstance(node, ast.ImportFrom) and (node.module or "").startswith("cvxpy.reductions"))
        or (isinstance(node, ast.Import) and any(a.name.startswith("cvxpy.reductions") for a in node.names))
    ]
    assert set(using) == {"interface.py"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_holds_both_packages_typed(wheel: Path) -> None:
    assert wheel.name.startswith(f"convexnn-{convexnn_solvers.__version__}-")
    names = set(zipfile.ZipFile(wheel).namelist())
    for package in PACKAGES:
        for path in [*package.rglob("*.py"), package / "py.typed"]:
            assert path.relative_to(package.parent).as_posix() in names
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"convexnn_models", "convexnn_solvers"}
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_an_installed_wheel_imports_on_its_own(wheel: Path, tmp_path: Path) -> None:
    """Unpacked somewhere else, without this checkout on the path."""
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r}); "
        "import convexnn_models, convexnn_solvers; print(convexnn_models.__file__, convexnn_solvers.__file__)"
    )
    printed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path, env={}
    ).stdout.split()
    assert all(name.startswith(str(tmp_path / "site")) for name in printed)
