"""The script that makes the shipped weights: what it trains on, in which order it works, what it stores."""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from reuse_distill.runtime.bundle_format.bundle import SHIPPED, list_files, read_bundle, write_manifest
from reuse_distill.runtime.errors import RdError
from reuse_distill.student import Student, load_checkpoint, preset, save_checkpoint

from demo import make_weights


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(["file,speaker,text_or_label,split", *lines]), encoding="utf-8")
    return path


def test_rows_for_tests_are_not_trained_on(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.flac", 0.5 * np.sin(0.1 * np.arange(8000)), 16_000)
    write(tmp_path / "manifest.csv", "a.flac,s1,some words,train", "b.flac,s2,gender=F,train", "c.flac,s3,no no,test")
    make_weights.manifests([tmp_path], tmp_path / "work")
    found = rows(tmp_path / "work" / "wide.csv")
    assert [(Path(row["file"]).name, row["text_or_label"]) for row in found[:2]] == [
        ("a.flac", "some words"),
        ("b.flac", ""),
    ]
    assert len(found) == 2 + 24 and {row["speaker"] for row in found[2:]} == {"ada", "ben", "cora", "dev", "eli", "fay"}
    assert {row["speaker"] for row in rows(tmp_path / "work" / "check.csv")} == {"gus", "hana"}
    copies = rows(tmp_path / "work" / "train.csv")[len(found) :]
    assert [row["speaker"] for row in copies][:2] == ["s1", "ada"] and len(copies) == 9
    assert copies[0]["text_or_label"] == "some words"
    audio = soundfile.info(copies[0]["file"])
    assert (audio.samplerate, audio.frames) == (8000, 4000)


def test_nothing_to_train_on_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RdError, match="every row is for tests"):
        make_weights.trained(write(tmp_path / "m.csv", "a.flac,s1,x,test"))


def test_stored_weights_are_half_as_large_and_load_as_float32(tmp_path: Path) -> None:
    torch.manual_seed(0)
    student = Student(preset("tiny", layers=2, reuse_layers=(2,)))
    save_checkpoint(tmp_path / "run", student, provenance={"teacher": "t"}, training={"steps": 1, "losses": [2.0, 1.0]})
    folder = make_weights.halved(tmp_path / "run", tmp_path / "half")
    sizes = [(path / "model.safetensors").stat().st_size for path in (tmp_path / "run", folder)]
    assert sizes[1] < 0.52 * sizes[0]
    loaded = load_checkpoint(folder)
    for name, value in student.state_dict().items():
        assert loaded.state_dict()[name].dtype == torch.float32
        assert torch.equal(loaded.state_dict()[name], value.half().float()), name
    assert json.loads((folder / "training.json").read_text()) == {"steps": 1}
    config = json.loads((folder / "config.json").read_text())
    assert config["provenance"] == {"teacher": "t", "stored": "float16"}


def test_the_shipped_bundle_has_no_report_and_still_verifies(tmp_path: Path) -> None:
    bundle = tmp_path / "b"
    shutil.copytree(SHIPPED, bundle)
    (bundle / "report.html").write_text("<html>")
    before = read_bundle(SHIPPED).manifest
    write_manifest(bundle, dataclasses.replace(before, files=list_files(bundle)))
    make_weights.slim(bundle)
    assert read_bundle(bundle).manifest == before and not (bundle / "report.html").exists()


def test_every_command_is_one_that_its_program_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from reuse_distill.distill.cli import parser as distill_parser
    from reuse_distill.export.export_options import export_parser

    ran: list[list[str]] = []
    runner = SimpleNamespace(run=lambda title, words: ran.append([str(word) for word in words]))
    monkeypatch.setattr(make_weights, "Runner", lambda total: runner)
    monkeypatch.setattr(make_weights, "manifests", lambda *_: None)
    monkeypatch.setattr(make_weights, "slim", lambda *_: None)
    monkeypatch.setattr(make_weights, "take", lambda *_: None)
    monkeypatch.setattr(make_weights, "halved", lambda *_: tmp_path)
    assert make_weights.main([str(tmp_path), "--work", str(tmp_path / "w"), "--weights", str(tmp_path / "out")]) == 0
    assert [words[:2] for words in ran] == [
        ["rd-distill", "run"],
        ["rd-export", str(tmp_path / "out" / "pocket-stream")],
    ]
    for words in ran[:1]:
        _, rest = distill_parser().parse_known_args(words[1:])
        assert rest == ["loss.kind=hint", *make_weights.HALF]
    options = export_parser().parse_args(ran[1][1:])
    assert (options.mode, options.precision) == ("streaming", "int8-dynamic")
    assert [head.name for head in options.head] == ["keywords", "units"]
