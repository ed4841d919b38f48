"""The tutorial on losses and penalties quotes the package literally, and what it promises is measured.

``python tests/test_extending.py`` brings the quotes and the table up to date.
"""

from __future__ import annotations

import importlib
import inspect
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dense_map import DenseMap

from convexnn_solvers.backends import Array, Float64Array, numpy_backend
from convexnn_solvers.certify.certifier import Certifier
from convexnn_solvers.composite import Composite, LossTerm, PenaltyTerm, VariableBlock
from convexnn_solvers.functions.losses import Loss
from convexnn_solvers.functions.penalties import AbsoluteValue

ROOT = Path(__file__).resolve().parent.parent
DOCUMENT = ROOT / "docs" / "extending.md"
QUOTE = re.compile(r"(<!-- (source|lines|count): (.+?) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def fenced(code: str) -> str:
    return f"```python\n{code.rstrip()}\n```"


def source(name: str) -> str:
    """A class as it stands in the package."""
    module, kind = name.rsplit(".", 1)
    return fenced(inspect.getsource(getattr(importlib.import_module(module), kind)))


def lines(argument: str) -> str:
    """The lines of a file that make values of a class."""
    path, kind = argument.split()
    text = (ROOT / path).read_text(encoding="utf-8").splitlines()
    return fenced("\n".join(line for line in text if re.search(rf"\b{kind}\(.*\)", line)))


def count(argument: str) -> str:
    """Classes, their length, and the files that name them."""
    rows = ["| class | lines | files of the package that name it |", "|---|---|---|"]
    for name in argument.split():
        module, kind = name.rsplit(".", 1)
        size = len(inspect.getsource(getattr(importlib.import_module(module), kind)).splitlines())
        rows.append(f"| `{kind}` | {size} | {', '.join(f'`{path}`' for path in naming(kind))} |")
    return "\n".join(rows)


def naming(kind: str) -> list[str]:
    """The names of the files of both packages in which a class is named."""
    folders = (ROOT / "solvers" / "convexnn_solvers", ROOT / "convexnn_models")
    files = sorted(path for folder in folders for path in folder.rglob("*.py"))
    return [path.name for path in files if re.search(rf"\b{kind}\b", path.read_text(encoding="utf-8"))]


def refreshed(text: str) -> str:
    """The document with every quote made anew."""
    kinds = {"source": source, "lines": lines, "count": count}
    return QUOTE.sub(lambda match: match[1] + kinds[match[2]](match[3]) + "\n" + match[5], text)


def test_the_tutorial_quotes_the_package() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    assert len(QUOTE.findall(text)) >= 5
    assert refreshed(text) == text, "docs/extending.md is out of date: run python tests/test_extending.py"


def test_a_loss_is_one_class_and_one_reading() -> None:
    assert naming("SquaredHinge") == ["losses.py", "terms.py"]


@dataclass(frozen=True)
class LogCosh:
    """``f(q) = log(cosh(q))``: a loss that the package does not have, made of the views alone."""

    name: str = "log cosh"
    quadratic: bool = False
    curvature: float = 1.0

    def value(self, q: Array, weight: Array, xp: Any) -> Array:
        return xp.sum(weight * (xp.abs(q) + xp.log1p(xp.exp(-2.0 * xp.abs(q))) - np.log(2.0)))

    def gradient(self, q: Array, weight: Array, xp: Any) -> Array:
        return weight * xp.tanh(q)

    def conjugate(self, v: Float64Array, weight: Any) -> float:
        w = np.broadcast_to(np.asarray(weight, dtype=np.float64), v.shape)
        if np.any(np.abs(v) >= w):
            return np.inf
        p = v / w
        return float(np.sum(w * ((1 + p) * np.log1p(p) + (1 - p) * np.log1p(-p)) / 2.0))

    def nearest(self, v: Float64Array, weight: Any) -> Float64Array:
        limit = (1.0 - 1e-12) * np.asarray(weight, dtype=np.float64)
        return np.clip(v, -limit, limit)


def denoising(a: Float64Array, loss: Loss, reg: float) -> Composite:
    """min sum f(x - a) + reg ||x||_1."""
    return Composite(
        backend=numpy_backend(),
        variables=(VariableBlock(1, a.shape, "x"),),
        affine=DenseMap(((np.eye(a.size),),), (-a,), (a.shape,)),
        losses=(LossTerm(loss, np.asarray(1.0), "fit"),),
        penalties=(PenaltyTerm(AbsoluteValue(), np.asarray(reg), 0, np.asarray, np.asarray, "l1"),),
        constraints=(),
        linear=(np.zeros(a.shape),),
        constant=0.0,
        sign=1.0,
        scope="",
    )


@pytest.mark.parametrize("seed", range(5))
def test_the_views_are_all_that_a_certificate_needs(seed: int) -> None:
    """A loss that nothing in the package has heard of: exact at the optimum, sound everywhere."""
    rng = np.random.default_rng(seed)
    a, reg = 3.0 * rng.standard_normal(6), 0.4
    composite = denoising(a, LogCosh(), reg)
    certifier = Certifier(composite)
    best = np.where(np.tanh(np.abs(a)) > reg, a - np.sign(a) * np.arctanh(reg), 0.0)
    value = composite.value((best,))
    found = certifier.certify((best,))
    assert found.primal == pytest.approx(value, rel=1e-13)
    assert found.relative_gap is not None
    assert 0.0 <= found.relative_gap <= 1e-9
    for _ in range(20):
        far = certifier.certify((best + rng.standard_normal(6) * 10.0 ** rng.uniform(-3, 1),))
        assert far.dual is not None
        assert far.dual <= value * (1.0 + 1e-13)


if __name__ == "__main__":
    DOCUMENT.write_text(refreshed(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
