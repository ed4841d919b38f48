"""``python -m benchmarks.report``: RESULTS.md and its figures from the JSON file of ``benchmarks.run``."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cases import Case
from benchmarks.contestants import Ours, contestants
from benchmarks.machine import described
from benchmarks.referee import TARGETS
from benchmarks.results import OURS, Outcome, contradictions, defeats, outcomes, ratios

_INTERIOR_POINT = ("CLARABEL", "MOSEK", "MOREAU")
_FORMULATIONS = {"gated": "C-GReLU", "relu": "C-ReLU"}
_METHOD = """\
Seconds of one thread until our certificate, computed at the point that the contestant returned, proves the
relative gap; medians of {repeats} interleaved runs where a run takes under 5 s. They include compiling, which
stands in parentheses where it is 0.01 s or more. The certificate's own time is charged to our solvers, which
stop by it, and to nobody else. scnn is looked at after every 5 % more time, with its metrics switched off and
X scaled to unit columns by one factor (an exact conversion). skglm continues from tolerance to tolerance, by
factors of 4; celer and the conic solvers start from cold for every tolerance, and the time is that of the
fastest solve that was certified, as if its tolerance had been known. All work in float64 and get the same
patterns. Machine code is compiled and caches are filled before the clock starts.

`>` the cap of {cap:g} s: not reached, with the best certified gap (no gap: not run, because it was not
reached at a larger regularisation, or no point came back in time). `-`: takes no part, see the end.
`failed`: ended without reaching the target before the cap, see the end.
"""


def write(source: Path, folder: Path) -> Path:
    """RESULTS.md, profile.png and speedup.png in ``folder``, from the results file ``source``."""
    content = json.loads(source.read_text())
    by_target = {target: outcomes(content, target) for target in TARGETS}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "RESULTS.md"
    path.write_text("\n".join(_lines(content, by_target)) + "\n")
    _profile(by_target, content["cap"], folder / "profile.png")
    _speedups(by_target[TARGETS[-1]], content["cap"], folder / "speedup.png")
    return path


def _lines(content: dict[str, Any], by_target: dict[float, list[Outcome]]) -> Iterator[str]:
    cap, machine = content["cap"], content["machine"]
    repeats = max((o.runs for o in by_target[TARGETS[0]]), default=0)
    yield "# Time to a certified gap\n"
    yield "Made by `python -m benchmarks.report` from the results of `python -m benchmarks.run`.\n"
    yield f"{described(machine)}\n"
    yield _METHOD.format(cap=cap, repeats=repeats)
    yield "![performance profile](profile.png) ![speed-up](speedup.png)\n"
    yield from _bars(by_target[TARGETS[-1]], cap)
    for formulation, title in _FORMULATIONS.items():
        for target, found in by_target.items():
            chosen = [o for o in found if o.case.formulation == formulation]
            if chosen:
                yield f"## {title}, relative gap {target:g}\n"
                yield from _table(chosen, cap)
    yield from _lost(by_target)
    yield from _absent(by_target[TARGETS[-1]])
    wrong = contradictions(content)
    yield "Bounds contradicted by a certified objective: " + (", ".join(wrong) or "none") + "."


def _bars(found: Sequence[Outcome], cap: float) -> Iterator[str]:
    """The ratios that this project set out for."""
    gated = [o for o in found if o.case.formulation == "gated"]
    cones = [o for o in found if o.case.formulation == "relu"]
    few = [o for o in cones if 50 <= o.case.gates <= 200]
    bars: list[tuple[str, list[Outcome], Sequence[str], float]] = [
        ("C-GReLU: scnn R-FISTA", gated, ["scnn"], 30.0),
        ("C-GReLU: skglm", gated, ["skglm"], 10.0),
        ("C-GReLU: celer", gated, ["celer"], 1.0),
        ("C-GReLU: Clarabel", gated, ["CLARABEL"], 60.0),
        ("C-GReLU: SCS", gated, ["SCS"], 1.0),
        ("C-ReLU: scnn AL", cones, ["scnn"], 50.0),
        ("C-ReLU: best interior point, P = 50-200", few, _INTERIOR_POINT, 20.0),
        ("C-ReLU: SCS", cones, ["SCS"], 1.0),
    ]
    alone: list[tuple[str, list[Outcome], str, float]] = [
        ("C-GReLU: scnn R-FISTA over our RFISTA", gated, "RFISTA", 4.0),
        ("C-ReLU: scnn AL over our AugmentedLagrangian", cones, "AugmentedLagrangian", 1.0),
    ]
    rows = [
        (f"{title} over {fast}", chosen, slow, fast, aim)
        for title, chosen, slow, aim in bars
        for fast in OURS
    ]
    rows += [(title, chosen, ["scnn"], fast, aim) for title, chosen, fast, aim in alone]
    yield f"## Ratios at relative gap {TARGETS[-1]:g}\n"
    yield "Geometric means of their time over ours, with the cap for a time-out (then `>=`). Lenient: theirs"
    yield "counts as arrived when the objective is within the gap of the best bound known from anybody,"
    yield "which they could not know.\n"
    yield "| theirs over ours | ratio | aim | met | lenient |\n|---|---|---|---|---|"
    for title, chosen, slow, fast, aim in rows:
        ratio, lenient = ratios(chosen, slow, fast, cap), ratios(chosen, slow, fast, cap, lenient=True)
        met = "-" if not ratio.rows else "yes" if ratio.value >= aim else "**no**"
        yield f"| {title} | {ratio} | {aim:g}x | {met} | {lenient} |"
    yield ""
    for name in _names(found)[:3]:
        mine = [o for o in found if o.contestant == name and not o.declined]
        yield f"{name} arrived on {sum(o.seconds is not None for o in mine)} of {len(mine)} rows."
    yield ""


def _table(found: Sequence[Outcome], cap: float) -> Iterator[str]:
    names = [name for name in _names(found) if any(o.contestant == name and not o.declined for o in found)]
    cases = list(dict.fromkeys(o.case for o in found))
    cells = {(o.case, o.contestant): _cell(o, cap) for o in found}
    yield "| data | P | lam/lam_max | " + " | ".join(names) + " |"
    yield "|" + "---|" * (len(names) + 3)
    for case in cases:
        row = " | ".join(cells.get((case, name), "not yet run") for name in names)
        yield f"| {case.data} | {case.gates} | {case.ratio:g} | {row} |"
    yield ""


def _cell(outcome: Outcome, cap: float) -> str:
    if outcome.declined:
        return "-"
    if outcome.seconds is None:
        gap = "" if outcome.gap is None else f" (gap {outcome.gap:.0e})"
        return f"> {cap:g}{gap}" if outcome.timed_out else f"failed{gap}"
    compiling = outcome.compile_seconds
    return f"{outcome.seconds:.2g}" + (f" ({compiling:.2g})" if compiling >= 0.01 else "")


def _lost(by_target: dict[float, list[Outcome]]) -> Iterator[str]:
    yield f"## Where another package is faster than {OURS[0]}\n"
    peers = [name for name, contestant in contestants().items() if not isinstance(contestant, Ours)]
    none = True
    for target, found in by_target.items():
        for outcome, factor in defeats(found, OURS[0], peers):
            none = False
            case = outcome.case
            size = f"{factor:.1f}x faster" if np.isfinite(factor) else "the only one of the two to arrive"
            mark = "**" if factor > 1.5 else ""
            yield f"* {mark}{case.key}{mark}, gap {target:g}: {outcome.contestant}, {size}"
    yield ("Nowhere.\n" if none else "\nIn bold: by more than 1.5x.\n")


def _absent(found: Sequence[Outcome]) -> Iterator[str]:
    yield "## Who took no part, or failed\n"
    reasons: dict[tuple[str, str], list[str]] = {}
    for o in found:
        why = o.declined or ("" if o.seconds is not None or o.timed_out else o.reason or "no certified point")
        if why:
            reasons.setdefault((o.contestant, why), []).append(o.case.key)
    for (name, why), keys in reasons.items():
        where = keys[0] if len(keys) == 1 else f"{len(keys)} rows, such as {keys[0]}"
        yield f"* {name}: {why} ({where})"
    yield ""


def _names(found: Sequence[Outcome]) -> list[str]:
    present = {o.contestant for o in found}
    return [name for name in contestants() if name in present]


def _profile(by_target: dict[float, list[Outcome]], cap: float, path: Path) -> None:
    """For every factor, the share of cases that a contestant solves within that factor of the fastest."""
    plt = _pyplot()
    figure, axes = plt.subplots(2, len(TARGETS), figsize=(11, 8), sharey=True, squeeze=False)
    for row, (formulation, title) in zip(axes, _FORMULATIONS.items(), strict=True):
        for axis, (target, found) in zip(row, by_target.items(), strict=True):
            chosen = [o for o in found if o.case.formulation == formulation and not o.declined]
            fastest: dict[Case, float] = {}
            for o in chosen:
                fastest[o.case] = min(fastest.get(o.case, np.inf), o.seconds or np.inf)
            for name in _names([o for o in chosen if o.seconds is not None or o.timed_out]):
                mine = [o for o in chosen if o.contestant == name]
                factors = sorted(o.seconds / fastest[o.case] for o in mine if o.seconds is not None)
                shares = np.arange(1, len(factors) + 1) / max(len(fastest), 1)
                last = shares[-1] if factors else 0.0
                axis.step([1.0, *factors, 1e4], [0.0, *shares, last], where="post", label=name)
            axis.set(xscale="log", xlim=(1.0, 1e4), ylim=(0.0, 1.02), title=f"{title}, gap {target:g}")
            axis.set(xlabel="times the fastest", ylabel=f"share of cases within {cap:g} s")
            if chosen:
                axis.legend(fontsize=8)
    _save(plt, figure, path)


def _speedups(found: Sequence[Outcome], cap: float, path: Path) -> None:
    """Geometric means of everybody's time over ours; hatched where time-outs make it a lower bound."""
    plt = _pyplot()
    figure, axes = plt.subplots(1, 2, figsize=(11, 4), squeeze=False)
    for axis, (formulation, title) in zip(axes[0], _FORMULATIONS.items(), strict=True):
        chosen = [o for o in found if o.case.formulation == formulation]
        bars = [(name, ratios(chosen, name, OURS[0], cap)) for name in _names(chosen) if name != OURS[0]]
        bars = [(name, ratio) for name, ratio in bars if ratio.rows]
        for place, (_, ratio) in enumerate(bars):
            axis.barh(place, ratio.value, color="tab:blue", alpha=0.7, hatch="//" if ratio.bound else None)
            axis.text(ratio.value, place, f" {ratio}", va="center", fontsize=8)
        axis.set_yticks(range(len(bars)), [name for name, _ in bars])
        axis.axvline(1.0, color="black", linewidth=0.8)
        right = 20.0 * max((ratio.value for _, ratio in bars), default=1.0)  # room for the words
        axis.set(
            xscale="log",
            xlim=(0.7, right),
            title=f"{title}: time over that of {OURS[0]}, gap {TARGETS[-1]:g}",
        )
    _save(plt, figure, path)


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _save(plt: Any, figure: Any, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument("source", type=Path, nargs="?", default=Path("output/bench.json"))
    parser.add_argument("--folder", type=Path, default=Path("benchmarks"), help="where RESULTS.md goes")
    given = parser.parse_args(arguments)
    if not given.source.exists():
        parser.error(f"{given.source} does not exist: run python -m benchmarks.run first.")
    path = write(given.source, given.folder)
    print(path.read_text())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
