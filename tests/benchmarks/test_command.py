"""What the benchmarks share: the committed figures go through the tables as they are printed, and into JSON."""

from __future__ import annotations

import argparse
import importlib
import json
from pathlib import Path

import pytest

from benchmarks.command import parser, workplace, write_json

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("offline_cpu", ("lengths", "10 s", "student int8", "faster_than_teacher")),
        ("streaming_cpu", ("one_stream", "C=8", "over_offline")),
        ("targets_cpu", ("lengths", "2 s", "student ExecuTorch int8", "faster_than_hubert_base")),
    ],
)
def test_tables_show_the_committed_figures(name: str, path: tuple[str, ...], capsys: pytest.CaptureFixture) -> None:
    result = json.loads((RESULTS / f"{name}.json").read_text())
    importlib.import_module(f"benchmarks.{name}")._show(result)
    found = result
    for key in path:
        found = found[key]
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith(f"{path[-2]}  ")]
    assert f"{found['median']:.2f} ({found['p10']:.2f} to {found['p90']:.2f})" in "\n".join(lines)


def test_a_contender_that_was_not_there_is_unmeasured(capsys: pytest.CaptureFixture) -> None:
    result = json.loads((RESULTS / "targets_cpu.json").read_text())
    for rows in result["lengths"].values():
        for row in rows.values():
            row["faster_than_hubert_base"] = "unmeasured"
    importlib.import_module("benchmarks.targets_cpu")._show(result)
    assert capsys.readouterr().out.count("unmeasured") == sum(map(len, result["lengths"].values()))


def test_json_only_where_asked_for(tmp_path: Path) -> None:
    args = parser("What it is.\n\nMore.").parse_args(["--work", str(tmp_path / "work")])
    assert isinstance(args, argparse.Namespace) and args.json is None
    assert workplace(args).is_dir()
    write_json({"a": 1}, args.json)
    write_json({"a": 1}, tmp_path / "new" / "found.json")
    assert json.loads((tmp_path / "new" / "found.json").read_text()) == {"a": 1}
