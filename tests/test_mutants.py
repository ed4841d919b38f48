"""The mutation runs: their tables speak of what exists, and their faults are faults."""

from __future__ import annotations

import ast

import mutants
import pytest

SOURCES = {module: (mutants.ROOT / module).read_text(encoding="utf-8") for module in mutants.TARGETS}


def test_every_responsible_test_exists() -> None:
    for tests in mutants.TARGETS.values():
        for name in tests:
            file, _, function = name.partition("::")
            text = (mutants.ROOT / "tests" / file).read_text(encoding="utf-8")
            assert not function or f"def {function}(" in text


def test_equivalent_faults_are_about_lines_that_exist_and_have_reasons() -> None:
    for (module, before, _), reason in mutants.equivalents().items():
        assert before in (line.strip() for line in SOURCES[module].splitlines())
        assert len(reason.split()) >= 5


@pytest.mark.parametrize("module", list(mutants.TARGETS)[::4])
def test_faults_are_different_programs(module: str) -> None:
    pytest.importorskip("cosmic_ray", reason="pip install 'convexnn[mutants]'")
    chosen = mutants.sample(module, 5, seed=1)
    assert len({mutant.source for mutant in chosen} | {SOURCES[module]}) == 6
    for mutant in chosen:
        ast.parse(mutant.source)
        old, new = SOURCES[module].splitlines(), mutant.source.splitlines()
        assert old[mutant.line - 1].strip() == mutant.before
        assert new[mutant.line - 1].strip() == mutant.after
    assert mutants.sample(module, 5, seed=1) == chosen
