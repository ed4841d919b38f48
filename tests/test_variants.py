"""The gallery: every variant is short, says where it is from, and both solvers certify the same optimum."""

from __future__ import annotations

import ast
import re
import runpy
from pathlib import Path

import pytest

VARIANTS = sorted((Path(__file__).resolve().parent.parent / "examples").glob("variant_*.py"))
LINE = re.compile(r"^(\w+)(?:\(\))?: objective (\S+?),(?: bound (\S+?),)?(?: gap \S+ \(relative (\S+?)\),)?")


def formulation(path: Path) -> list[str]:
    """The lines of a variant from its data to its problem: no imports, no loop over solvers, no blanks."""
    text = path.read_text(encoding="utf-8")
    body = [node for node in ast.parse(text).body[1:] if not isinstance(node, ast.Import | ast.ImportFrom)]
    loop = next(node for node in body if isinstance(node, ast.For) and "solver" in ast.unparse(node.target))
    lines = text.splitlines()[body[0].lineno - 1 : loop.lineno - 1]
    return [line for line in lines if line.strip()]


def test_the_gallery_is_large() -> None:
    assert len(VARIANTS) >= 12


@pytest.mark.parametrize("path", VARIANTS, ids=lambda path: path.stem)
def test_a_variant_is_short_and_has_a_source(path: Path) -> None:
    assert len(formulation(path)) <= 15
    assert "Source:" in (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "")


@pytest.mark.parametrize("path", VARIANTS, ids=lambda path: path.stem)
def test_both_solvers_certify_the_same_optimum(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(path), run_name="__main__")
    printed = capsys.readouterr().out
    found = {match[1]: match for match in map(LINE.match, printed.splitlines()) if match}
    interior = float(found["CLARABEL"][2])
    (ours,) = (match for name, match in found.items() if name != "CLARABEL")
    assert 0.0 <= float(ours[4]) <= 1e-4
    objective, bound = float(ours[2]), float(ours[3])
    slack = 1e-5 * abs(objective)  # of constraints that a certificate may violate by 1e-6
    assert bound - slack <= interior <= objective + slack


def test_the_quadratic_variant_is_the_semidefinite_program(capsys: pytest.CaptureFixture[str]) -> None:
    (path,) = (path for path in VARIANTS if path.stem == "variant_quadratic")
    runpy.run_path(str(path), run_name="__main__")
    printed = capsys.readouterr().out
    lifted = re.search(r"semidefinite program: (\S+)", printed)
    clarabel = re.search(r"^CLARABEL: objective (\S+?),", printed, re.MULTILINE)
    assert lifted is not None
    assert clarabel is not None
    assert float(lifted[1]) == pytest.approx(float(clarabel[1]), rel=1e-5)
