"""``benchmarks.engines_cpu`` on made contenders and the shipped bundle: who is compared with whom, and what is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reuse_distill.runtime.errors import RdError

from benchmarks import engine_contenders, engines_cpu
from benchmarks.engine_contenders import Contender, missing, path_of, peers, prepare, steps, students
from benchmarks.engine_tables import tables

BUNDLE = Path(__file__).resolve().parents[2] / "runtime" / "bundles" / "pocket-stream"
FLOAT = Contender("toy onnx fp32", "toy", "onnx", "fp32")
SMALL = Contender("toy litert int8", "toy", "litert", "int8", 2)
PEER = Contender("HuBERT Base onnx fp32", "HuBERT Base", "onnx", "fp32", file="hubert-base-fp32.onnx")
STEP = Contender("pocket-stream onnx int8 C=8", "pocket-stream", "onnx", "int8", None, 8)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every contender is there; int8 is off by a little, another engine cannot run."""

    def open_call(work: Path, one: Contender, threads: int) -> Any:
        if one.engine == "executorch":
            raise RdError("ExecuTorch is not installed")
        noise = np.random.default_rng(1).standard_normal((9, 4)) * (0.1 if one.precision == "int8" else 0)
        return lambda wave: (np.ones((9, 4)) + noise).astype(np.float32)

    monkeypatch.setattr(engines_cpu, "open_call", open_call)
    monkeypatch.setattr(engines_cpu, "megabytes", lambda work, one: 1.0)


def test_speeds_are_of_the_baseline_and_cosines_of_the_same_model_in_float(calls: None, tmp_path: Path) -> None:
    absent: dict[str, str] = {}
    other = Contender("toy executorch fp32", "toy", "executorch", "fp32")
    rows = engines_cpu.utterances(tmp_path, [FLOAT, SMALL, PEER, other], 1, 1, 3, absent)
    assert set(rows) == {FLOAT.name, SMALL.name, PEER.name}
    assert absent == {other.name: "ExecuTorch is not installed"}
    assert rows[FLOAT.name]["cosine"] == 1.0
    assert 0.9 < rows[SMALL.name]["cosine"] < 1.0
    assert rows[PEER.name]["over_baseline"]["median"] == 1.0
    assert rows[SMALL.name]["over_own_float"]["median"] > 0
    alone = engines_cpu.utterances(tmp_path, [SMALL], 1, 1, 3, absent)[SMALL.name]
    assert alone["cosine"] == alone["over_baseline"] == "unmeasured"


def test_steps_of_one_and_eight_streams_and_the_tables(
    calls: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / STEP.folder).symlink_to(BUNDLE)
    monkeypatch.setattr(engines_cpu, "STEP_SECONDS", 2)
    monkeypatch.setattr(engines_cpu, "SECONDS", (1,))
    present = {STEP.folder, FLOAT.folder}
    monkeypatch.setattr(
        engines_cpu, "missing", lambda work, all_: {c.name: "not made" for c in all_ if c.folder not in present}
    )
    result = engines_cpu.measured(tmp_path, [STEP, FLOAT, SMALL], threads=1, repeats=2, memory=False)
    (row,) = result["steps"].values()
    assert row["step_ms"]["p99"] >= row["step_ms"]["p50"] > 0
    assert row["over_offline"] == "unmeasured"  # its offline bundle is not there
    text = tables(json.loads(json.dumps(result)))
    assert "| ONNX Runtime int8 | 8 |" in text
    assert "| toy | ONNX Runtime fp32 |" in text
    assert "- toy litert int8: not made" in text
    assert "unmeasured" in text


def test_what_cannot_be_made_is_named_with_the_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def make(work: Path, one: Contender, whisper: Path | None) -> None:
        if one.engine == "litert":
            raise RdError("litert_torch is not installed", hint="pip install it")
        path_of(work, one).mkdir()

    monkeypatch.setattr(engine_contenders, "_make", make)
    prepare(tmp_path, [FLOAT, SMALL], None, say=lambda text: None)
    assert missing(tmp_path, [FLOAT, SMALL, PEER]) == {
        SMALL.name: "litert_torch is not installed\n\nhint: pip install it",
        PEER.name: "not made",
    }


def test_every_contender_has_a_place_of_its_own() -> None:
    every = [*students(), *peers(), *steps()]
    places = [one.file or one.folder for one in every if not (one.file and one.engine == "openvino")]
    assert len(set(places)) == len(places)
    assert {one.precision for one in every if one.engine == "litert"} == {"fp32", "int8", "int8-dynamic"}
