"""The reference pages name everything that is public, in the package's own words.

``python tests/test_reference.py`` brings their tables up to date.
"""

from __future__ import annotations

import importlib
import inspect
import re
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from pathlib import Path
from types import ModuleType
from typing import Any

import cvxpy as cp
import pytest

import convexnn_models
import convexnn_solvers
from convexnn_solvers.interface import CompositeSolver
from convexnn_solvers.options import Options
from convexnn_solvers.status import Status

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGES = (DOCS / "reference.md", DOCS / "solvers.md")
TABLE = re.compile(r"(<!-- (names|options|statuses)((?: \S+)*) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
#: Package and names of every table of the reference page.
SHOWN = [match[3].split() for match in TABLE.finditer(PAGES[0].read_text("utf-8")) if match[2] == "names"]


def in_a_line(text: str) -> str:
    """The first paragraph of a docstring, without the marks of Sphinx, fit for a cell."""
    first = " ".join((inspect.cleandoc(text)).split("\n\n")[0].split())
    roles = re.sub(
        r":(?:class|func|mod|meth|data):`~?([^`]+)`", lambda match: f"`{match[1].split('.')[-1]}`", first
    )
    return roles.replace("``", "`").replace("|", r"\|")


@dataclass(frozen=True)
class Shown:
    """A default value as one writes it."""

    value: Any

    def __repr__(self) -> str:
        if isinstance(self.value, Enum):
            return f"{type(self.value).__name__}.{self.value.name}"
        return self.value.__name__ if inspect.isfunction(self.value) else repr(self.value)


def called(item: Any, name: str) -> str:
    """A function or an atom with its arguments; another class by its name."""
    if inspect.isclass(item) and not issubclass(item, cp.Expression):
        return f"`{name}`"
    signature = inspect.signature(item)
    bare = [
        parameter.replace(
            annotation=inspect.Parameter.empty,
            default=parameter.default
            if parameter.default is inspect.Parameter.empty
            else Shown(parameter.default),
        )
        for parameter in signature.parameters.values()
    ]
    return f"`{name}{signature.replace(parameters=bare, return_annotation=inspect.Signature.empty)}`"


def names(argument: str) -> str:
    """What the names of a module are."""
    module, *chosen = argument.split()
    package = importlib.import_module(module)
    rows = ["| name | what it is |", "|---|---|"]
    for name in chosen:
        item = getattr(package, name)
        rows.append(f"| {called(item, name)} | {in_a_line(item.__doc__)} |")
    return "\n".join(rows)


def options(_: str) -> str:
    """The options of all solvers and their defaults, in the words of the first one's docstring."""
    described = inspect.getdoc(convexnn_solvers.RFISTA) or ""
    words = {}
    for names_of, text in re.findall(r"^(\w+(?:, \w+)*) : .*\n((?:    .*\n)+)", described, re.MULTILINE):
        words[names_of] = in_a_line(text)
    rows = ["| option | default | what it does |", "|---|---|---|"]
    for field in fields(Options):
        (found,) = [text for names_of, text in words.items() if field.name in names_of.split(", ")]
        rows.append(f"| `{field.name}` | `{field.default!r}` | {found} |")
    return "\n".join(rows)


def statuses(_: str) -> str:
    """Every way to stop, what CVXPY calls it, and its sentence."""
    rows = ["| `problem.status` | stopped because |", "|---|---|"]
    rows += [f"| `{status.cvxpy}` | {status.value} |" for status in Status]
    return "\n".join(rows)


def refreshed(text: str) -> str:
    """A page with every table made anew."""
    kinds = {"names": names, "options": options, "statuses": statuses}
    return TABLE.sub(lambda match: match[1] + kinds[match[2]](match[3]) + "\n" + match[5], text)


def public(module: ModuleType) -> set[str]:
    """The classes and functions that a package re-exports."""
    members = inspect.getmembers(module, lambda item: inspect.isclass(item) or inspect.isfunction(item))
    return {name for name, _ in members if not name.startswith("_")}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_tables_are_those_of_the_package(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert TABLE.search(text)
    assert refreshed(text) == text, f"docs/{page.name} is out of date: run python tests/test_reference.py"


@pytest.mark.parametrize("module", [convexnn_models, convexnn_solvers], ids=lambda module: module.__name__)
def test_the_reference_names_everything_public_once(module: ModuleType) -> None:
    named = [name for package, *chosen in SHOWN for name in chosen if package == module.__name__]
    assert sorted(named) == sorted(public(module))


DOCUMENTED = {
    name: getattr(importlib.import_module(module), name)
    for module, *chosen in SHOWN
    for name in chosen
    if module in ("convexnn_models", "convexnn_models.datasets", "convexnn_solvers")
}
VALUES: dict[str, Any] = {name: item for name, item in DOCUMENTED.items() if is_dataclass(item)}
FUNCTIONS: dict[str, Any] = {name: item for name, item in DOCUMENTED.items() if inspect.isfunction(item)}


@pytest.mark.parametrize("name", VALUES)
def test_docstrings_of_values_name_every_field(name: str) -> None:
    """Those that a class inherits in the docstrings of its bases."""
    text = "\n".join(kind.__doc__ or "" for kind in inspect.getmro(VALUES[name]))
    named = [field.name for field in fields(VALUES[name]) if not field.name.startswith("_")]
    assert [field for field in named if not re.search(rf"\b{field}\b", text)] == []


@pytest.mark.parametrize("name", FUNCTIONS)
def test_docstrings_of_functions_name_every_argument_and_what_is_raised(name: str) -> None:
    text = FUNCTIONS[name].__doc__ or ""
    named = inspect.signature(FUNCTIONS[name]).parameters
    assert [argument for argument in named if not re.search(rf"\b{argument}\b", text)] == []
    assert re.search(r"\b[Rr]aise[sd]\b|\brefused\b|Error\b", text)


def test_all_solvers_share_these_options() -> None:
    for name in public(convexnn_solvers):
        item = getattr(convexnn_solvers, name)
        if inspect.isclass(item) and issubclass(item, CompositeSolver):
            assert "Options as for" in (item.__doc__ or "") or item is convexnn_solvers.RFISTA


if __name__ == "__main__":
    for path in PAGES:
        path.write_text(refreshed(path.read_text(encoding="utf-8")), encoding="utf-8")
