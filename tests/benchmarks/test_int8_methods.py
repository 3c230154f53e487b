"""The table of benchmarks.int8_methods, and that the documentation has the one of the committed figures."""

from __future__ import annotations

import json
from pathlib import Path

from reuse_distill.export.targets.onnx.static_int8 import method_name

from benchmarks.int8_methods import FRONT_ENDS, METHODS, table

ROOT = Path(__file__).resolve().parents[2]


def test_the_documentation_has_the_committed_figures() -> None:
    students = json.loads((ROOT / "benchmarks" / "results" / "int8_methods.json").read_text())["students"]
    rows = table(students)
    assert len(rows) == 2 + len(METHODS) and all(row.count("|") == 2 + 2 * len(students) for row in rows)
    assert "\n".join(rows) in (ROOT / "docs" / "quantisation.md").read_text(encoding="utf-8")


def test_every_way_has_its_own_cell() -> None:
    """Figures that tell each other apart: none is in another's place."""
    names = [method_name(recipe) for recipe in METHODS]
    students = {
        s: {
            m: {e: {"mean_cosine": (100 * i + 10 * j + k) / 1e5} for k, e in enumerate(FRONT_ENDS)}
            for j, m in enumerate(names)
        }
        for i, s in enumerate(("tiny", "tiny-stream"))
    }
    assert table(students)[3] == f"| {names[1]} | 0.00010 | 0.00011 | 0.00110 | 0.00111 |"
    assert "`tiny`, all int8 | `tiny`, front end float | `tiny-stream`, all int8" in table(students)[0]
