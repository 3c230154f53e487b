"""rd-export --all --device: the bundles, the page and the exit status, also where one of them fails."""

from __future__ import annotations

import argparse
import contextlib
import errno
import io
import json
import shutil
from html import escape
from pathlib import Path

import pytest
from reuse_distill.export.device_set.set_command import make_set
from reuse_distill.export.export_command import export_from
from reuse_distill.export.export_options import set_parser
from reuse_distill.export.parity.slices import LEVELS_DBFS
from reuse_distill.export.rd_export import main as rd_export
from reuse_distill.runtime import Encoder
from reuse_distill.runtime.bundle_format.bundle import read_bundle
from reuse_distill.runtime.bundle_format.manifest import Manifest
from reuse_distill.runtime.errors import RdError


def make(checkpoint: Path, output: Path, *words: str, export=export_from) -> tuple[int, str, dict]:
    out = io.StringIO()
    command = [str(checkpoint), "--layers", "all", "--chunk", "4", "--left", "12", *words]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
        status = make_set(set_parser().parse_args([*command, "--output", str(output)]), export=export)
    return status, out.getvalue(), json.loads((output / "comparison.json").read_text())


def copied(workshop, name: str = "stream"):
    """Exports that take the bundles that other tests have made; a precision without one is really exported."""

    def export(args: argparse.Namespace) -> Manifest:
        options = ("--target", args.target) if args.target != "onnx" else ()
        folder = workshop.bundle(name, args.mode, args.precision, *options)
        args.output.mkdir(parents=True)
        for file in folder.iterdir():
            (args.output / file.name).write_bytes(file.read_bytes())
        return read_bundle(args.output).manifest

    return export


def test_a_set_for_a_server(workshop, tmp_path: Path) -> None:
    """Through the entry point, really exported: every bundle runs and has its row and its link."""
    words = ["set", str(workshop.checkpoint("stream")), "--device", "x86-avx512-vnni", "--layers", "all"]
    words += ["--chunk", "4", "--left", "12", "--calibration", str(workshop.speech), "--output", str(tmp_path / "set")]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        assert rd_export(words) == 0
    found = json.loads((tmp_path / "set" / "comparison.json").read_text())
    page = (tmp_path / "set" / "index.html").read_text()
    assert found["counts"] == {"built": 2, "deferred": 0, "refused": 0, "left out": 0}
    for one in found["bundles"]:
        encoder = Encoder.load(tmp_path / "set" / one["name"])
        assert encoder.selftest().passed
        assert one["measured"] == encoder.manifest.parity["measured"]
        assert one["prepared"] is None
        levels = {f"{level} dBFS" for level in LEVELS_DBFS} if one["precision"] == "int8" else set()
        assert set(one["slices"]) == {"soft", "loud", "noisy", *levels}
        assert f'href="{one["name"]}/report.html"' in page
        assert one["compute"] is None, "the profile has no clock"
    assert "unmeasured, the profile does not tell" in page
    assert "prepared graph" not in page


def test_a_set_for_a_board_with_known_rates(workshop, tmp_path: Path) -> None:
    words = ("--device", "raspberry-pi-5", "--calibration", str(workshop.speech))
    status, out, found = make(workshop.checkpoint("stream"), tmp_path / "set", *words, export=copied(workshop))
    assert status == 0
    assert [one["name"] for one in found["bundles"] if one["status"] == "built"] == [
        "onnx-streaming-fp32",
        "onnx-streaming-int8",
        "ort-streaming-fp32",
        "ort-streaming-int8",
    ]
    fp32, int8 = (next(o for o in found["bundles"] if o["name"] == f"onnx-streaming-{p}") for p in ("fp32", "int8"))
    assert 0 < fp32["compute"]["rtf"][0] < fp32["compute"]["rtf"][1]
    assert int8["compute"]["rtf"][0] == pytest.approx(fp32["compute"]["rtf"][0] / 4)
    assert fp32["latency_ms"] == {"worst": 25 + 20 * 7, "mean": 25 + 20 * 7 - 30}
    left_out = [one for one in found["bundles"] if one["status"] == "left out"]
    assert {one["precision"] for one in left_out} == {"fp16"}
    page = (tmp_path / "set" / "index.html").read_text()
    assert "ESTIMATE" in page.upper()
    assert "2.4 GHz" not in out


def test_one_that_fails_does_not_lose_the_others(workshop, tmp_path: Path) -> None:
    good = copied(workshop)

    def export(args: argparse.Namespace) -> Manifest:
        if args.precision == "int8":
            raise RdError("parity failed: int8 features", hint="calibrate on more")
        if args.target == "ort":
            raise MemoryError("the vendor's tool ran out of it")
        return good(args)

    status, out, found = make(
        workshop.checkpoint("stream"), tmp_path / "set", "--device", "raspberry-pi-5", export=export
    )
    assert status == 2
    said = {one["name"]: (one["status"], one["reason"]) for one in found["bundles"]}
    assert said["onnx-streaming-fp32"] == ("built", "")
    assert said["onnx-streaming-int8"] == ("refused", "parity failed: int8 features; calibrate on more")
    assert said["ort-streaming-fp32"] == ("refused", "MemoryError: the vendor's tool ran out of it")
    assert "onnx-streaming-int8: refused: parity failed" in out
    page = (tmp_path / "set" / "index.html").read_text()
    assert "1 built, 3 refused" in page
    assert "calibrate on more" in page
    assert Encoder.load(tmp_path / "set" / "onnx-streaming-fp32").selftest().passed


def test_without_speech_int8_is_refused_and_says_what_is_missing(workshop, tmp_path: Path) -> None:
    def export(args: argparse.Namespace) -> Manifest:
        return export_from(args) if args.precision == "int8" else copied(workshop)(args)

    status, _, found = make(workshop.checkpoint("stream"), tmp_path / "set", "--device", "x86-avx2", export=export)
    assert status == 2
    assert "needs speech to calibrate with; add --calibration" in found["bundles"][1]["reason"]


def test_a_deferred_bundle_is_a_status_of_its_own(workshop, tmp_path: Path) -> None:
    words = ("--device", "jetson-orin-nano", "--targets", "tensorrt", "--jetpack", "6.2")

    def export(args: argparse.Namespace) -> Manifest:
        first = args.output.parent / "tensorrt-streaming-fp32"
        if first.exists():  # once is enough
            shutil.copytree(first, args.output)
            return read_bundle(first).manifest
        return export_from(args)

    status, _, found = make(workshop.checkpoint("stream"), tmp_path / "set", *words, export=export)
    assert status == 5
    one = found["bundles"][0]
    assert one["status"] == "deferred"
    assert one["reason"]
    assert one["readable_by"] == {"6.2": []}
    assert one["measured"] is None and one["slices"] == {}, "there is no engine yet"
    figures = one["prepared"]["measured"]
    assert figures == read_bundle(tmp_path / "set" / one["name"]).manifest.parity["prepared"]["measured"]
    page = (tmp_path / "set" / "index.html").read_text()
    bundles, slices, cost = (first_row(page, title) for title in ("Bundles", "By level and in noise", "Cost"))
    for row in (bundles, slices, cost):
        assert "tensorrt-streaming-fp32" in row and " (prepared graph)" in row
    assert f"{figures['max_abs']:.2e}" in bundles
    assert f"are those of {one['prepared']['run']}; the engine is unmeasured" in page
    deferred = [row["name"] for row in found["bundles"] if row["status"] == "deferred"]
    assert f"{', '.join(deferred)}: deferred; on the device, rd-export --finish" in page
    assert page.count(escape(one["reason"])) == 1 and escape(one["reason"]) in page.split("<h3>Notes</h3>", 1)[1]
    assert "yes, as far as is known without a GPU" in page


def first_row(page: str, title: str) -> str:
    """The first row of the table in the section ``title``."""
    return page.split(f"<h2>{title}</h2>", 1)[1].split("<tbody>", 1)[1].split("</tr>", 1)[0]


def test_nothing_is_overwritten_unasked(workshop, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    command = [str(workshop.checkpoint("stream")), "--device", "x86-avx2", "--output", str(tmp_path / "set")]
    with pytest.raises(RdError, match="exists already"):
        make_set(set_parser().parse_args(command))


def test_a_full_disk(workshop, tmp_path: Path, monkeypatch) -> None:
    def full(self, *words, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    command = [str(workshop.checkpoint("stream")), "--device", "iphone-15", "--targets", "coreml"]
    refuse = lambda args: (_ for _ in ()).throw(RdError("no"))  # noqa: E731
    with pytest.raises(RdError, match="the comparison could not be written"):
        make_set(set_parser().parse_args([*command, "--output", str(tmp_path / "set")]), export=refuse)
