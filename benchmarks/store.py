"""The results file: one JSON value, rewritten whole after every run, so that a stopped benchmark goes on."""

from __future__ import annotations

import json
import os
import re
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.cases import Case
from benchmarks.machine import machine
from benchmarks.workers import Run


class Store:
    """Runs by case and contestant, on disk; safe to use from several threads."""

    def __init__(self, path: Path, cap: float, remark: str = "") -> None:
        self.path = path
        self._lock = threading.Lock()
        now: dict[str, Any] = {**machine(), "remark": remark}
        fresh: dict[str, Any] = {"machine": now, "cap": cap, "rows": {}}
        self.content: dict[str, Any] = json.loads(path.read_text()) if path.exists() else fresh
        if self.content["cap"] != cap:
            raise ValueError(
                f"{path} holds runs capped at {self.content['cap']:g} s, not {cap:g} s: name another file."
            )
        before: dict[str, Any] = self.content["machine"]
        if now["commit"] not in re.split("[ ,]+", before["commit"]):
            before["commit"] += f", later rows {now['commit']}"
        if remark and remark not in before["remark"]:
            before["remark"] = f"{before['remark']} {remark}".lstrip()

    def runs(self, case: Case, name: str) -> list[Run]:
        """What is done already."""
        row = self.content["rows"].get(f"{case.key} {name}")
        return [] if row is None else list(row["runs"])

    def add(self, case: Case, name: str, run: Run) -> None:
        """Append a run and write the file."""
        with self._lock:
            rows = self.content["rows"]
            row = rows.setdefault(
                f"{case.key} {name}", {"case": asdict(case), "contestant": name, "runs": []}
            )
            row["runs"].append(run)
            self.path.parent.mkdir(parents=True, exist_ok=True)
            draft = self.path.with_suffix(".part")
            draft.write_text(json.dumps(self.content, indent=0))
            os.replace(draft, self.path)
