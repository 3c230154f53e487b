"""The demo's table and page: every figure comes from what the commands wrote."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from reuse_distill.runtime.bundle_format.manifest import FileEntry, Geometry, GraphProof, Manifest, ReusedMap

from demo.data import Data
from demo.demo_results import HEAD, Losses, Result, read_losses, rows
from demo.demo_steps import ARTIFACTS, Step, count
from demo.pictures import Pair
from demo.report import Story, demo_report


def manifest(mode: str, precision: str) -> Manifest:
    layers = [{"layer": n, "max_abs": 1e-3, "mean_cosine": 0.999, "min_cosine": 0.98} for n in (1, 2)]
    return Manifest(
        kind=mode, target="onnx", precision=precision, status="built", artifact="model.onnx", features="heads",
        layers=(2,), feature_width=8, inputs=(), outputs=(), states=(),
        geometry=Geometry(8, 4, 128) if mode == "streaming" else Geometry(),
        files={"model.onnx": FileEntry("0" * 64, 2_000_000 if precision == "fp32" else 700_000)},
        source={"name": "toy", "parameters": 1_000_000}, tools={"torch": "2.13.0"},
        graph_proof=GraphProof(2, 1, 1, "shared", (ReusedMap(2, 1, "node", ()),), "model.onnx"),
        parity={
            "bound": {"max_abs": 1e-4}, "measured": {"max_abs": 2.5e-6, "mean_cosine": 0.9931, "min_cosine": 0.9},
            "layers": layers, "reference": "torch", "audio": "two recordings",
        },
    )  # fmt: skip


def latency(verdict: str = "pass") -> dict[str, object]:
    times = list(np.linspace(1.0, 30.0, 125))
    return {
        "verdict": verdict,
        "checks": [{"metric": "p90", "limit": 160.0, "value": 29.0, "verdict": "pass"}],
        "measurement": {
            "metrics": {"rtf": 0.0123, "p50": 15.0, "p90": 29.4},
            "request": {"mode": "paced"},
            "samples": [{"latency_ms": times, "at_s": list(np.arange(125) * 0.16), "service_ms": times}],
            "context": {"processor": "A processor", "cores": 2, "memory_bytes": 8e9},
            "notes": ["busy machine"],
        },
    }


@pytest.fixture
def story(tmp_path: Path) -> Story:
    results = [
        Result(one, manifest(one.mode, one.precision), latency(), {"passed": True} if one.mode == "streaming" else None)
        for one in ARTIFACTS
    ]
    ramp = tuple(float(v) for v in np.linspace(2.0, 1.0, 40))
    losses = [Losses(name, tuple(range(1, 41)), ramp, (ramp, ramp)) for name in ("tiny", "tiny-stream")]
    data = Data(
        "a <folder>",
        tmp_path,
        tmp_path,
        tmp_path,
        24,
        8,
        0,
        55.0,
        19.0,
        "speaker: none is in both",
        tmp_path / "x.flac",
    )
    pair = Pair(1, 2, np.eye(9), np.eye(9))
    return Story(data, results, losses, pair, [Step("export", "rd-export x", 2.0, 3.0, 0)], 200.0, tmp_path)


def test_table_has_a_row_for_every_artifact(story: Story) -> None:
    table = rows(story.results)
    assert [row[0] for row in table] == ["offline fp32", "offline int8", "streaming fp32", "streaming int8"]
    assert all(len(row) == len(HEAD) for row in table)
    assert table[0][1:5] == ("2 MB", "max abs 2.5e-06", "1 of 2 layers reuse", "paced")
    assert table[0][5] == "0.0123"
    assert table[3][1:3] == ("700 kB", "cosine 0.9931")
    assert [row[-1] for row in table] == ["not streaming", "not streaming", "passed", "passed"]


def test_what_was_not_measured_says_so(story: Story) -> None:
    broken = Result(ARTIFACTS[3], manifest("streaming", "int8"), {"verdict": "unmeasured", "measurement": None}, None)
    assert rows([broken])[0][4:] == ("unmeasured",) * 5
    page = demo_report(Story(story.data, [*story.results[:3], broken], *_rest(story)))
    assert "Not measured." in page


def _rest(story: Story) -> tuple:
    return (story.losses, story.pair, story.steps, story.seconds, story.teacher)


def test_page_is_one_escaped_file(story: Story) -> None:
    page = demo_report(story)
    assert "<script" not in page
    assert "a &lt;folder&gt;" in page
    links = re.findall(r'(?:src|href)="(?!data:image/png)([^"]*)"', page)
    assert set(links) == {f"{a.name}{end}" for a in ARTIFACTS for end in ("/report.html", ".latency.html")}
    for text in ("1 of 2", "0.9931", "245 ms", "29.4 ms", "125 chunks", "the very same map", "rd-export x"):
        assert text in page
    assert "all 1 steps passed" in page


def test_failed_steps_are_the_first_thing_said(story: Story) -> None:
    failed = [Step("measure streaming-int8", "rd-latency x", 1.0, 1.0, 1)]
    page = demo_report(Story(story.data, story.results, story.losses, story.pair, failed, 1.0, story.teacher))
    assert "1 of 1 steps failed" in page
    assert "failed: measure streaming-int8" in page


def test_the_page_says_what_the_teacher_is(story: Story) -> None:
    assert f"trained for seconds, by {story.teacher.name}" in demo_report(story)


def test_losses_are_read_from_the_run(tmp_path: Path) -> None:
    (tmp_path / "tiny").mkdir()
    with (tmp_path / "tiny" / "metrics.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["step", "loss", "layer_10", "layer_9"])
        writer.writerows([i, 10.0 - i, 100 + i, 200 + i] for i in range(1, 9))
    found = read_losses(tmp_path, "tiny")
    assert (found.first_tenth, found.last_tenth) == (9.0, 2.0)
    assert found.by_layer[0][0] == 201.0
    assert found.by_layer[1][0] == 101.0
    assert found.smooth()[-1] == pytest.approx(np.mean([2, 3, 4, 5, 6]))


def test_count_is_the_number_of_commands_that_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from demo import demo_steps

    ran: list[object] = []
    runner = SimpleNamespace(run=lambda title, words, accepted=(0,): ran.append(words[0]), run_together=ran.extend)
    data = SimpleNamespace(train=tmp_path, calibration=tmp_path, check=tmp_path, longest=tmp_path)
    demo_steps.distil(runner, data, tmp_path, teacher=demo_steps.TEACHER)
    demo_steps.export(runner, data, tmp_path)
    for artifact in ARTIFACTS:
        demo_steps.latency(runner, tmp_path, artifact)
    demo_steps.stream(runner, data, tmp_path)
    assert len(ran) == count()
