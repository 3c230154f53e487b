"""--max-drift through the command line: the bundle keeps the limit, and its file is the mix that it reports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from reuse_distill.export.quantise.blocks import node_blocks
from reuse_distill.runtime import Encoder
from reuse_distill.runtime.audio.audio_files import read_audio
from reuse_distill.runtime.bundle_format.bundle import read_bundle
from reuse_distill.runtime.equivalence.parity import difference
from reuse_distill.student import ChunkContext, Student, preset, save_checkpoint


def listed(folder: Path, files: list[Path]) -> tuple[Path, list[np.ndarray]]:
    """A manifest of recordings, and their samples."""
    manifest = folder / "check.csv"
    manifest.write_text("\n".join(["file,speaker", *(f"{file},{file.stem[:3]}" for file in files)]) + "\n")
    return manifest, [read_audio(str(file)).samples for file in files]


def drift_of(encoder: Encoder, student: Student, clips: list[np.ndarray]) -> float:
    """1 - mean frame cosine to torch, of the bundle as a user runs it."""
    g = encoder.manifest.geometry
    context = ChunkContext(g.chunk_frames, g.left_frames) if encoder.manifest.kind == "streaming" else None
    rows = []
    for clip in clips:
        with torch.no_grad():
            wanted = student(torch.from_numpy(clip)[None], context=context).projections[-1][0].numpy()
        rows.append(difference(encoder.extract(clip).reshape(wanted.shape), wanted))
    return 1 - sum(row.mean_cosine * row.frames for row in rows) / sum(row.frames for row in rows)


def blocks_in_int8(file: Path, plain: Path, depth: int) -> dict[str, set[bool]]:
    """Block -> whether its weight products and convolutions take int8, read off the nodes of ``file``.

    Of the first convolution nothing is said: it never does.
    """
    names = node_blocks(onnx.load(str(plain)), depth)
    graph = onnx.load(str(file)).graph
    stored = {tensor.name for tensor in graph.initializer}
    producer = {name: node for node in graph.node for name in node.output}
    constant = stored | {n for node in graph.node if set(node.input) <= stored for n in node.output}
    quantised = {name for name, node in producer.items() if node.op_type == "DequantizeLinear"}
    first, found = next(node for node in graph.node if node.op_type == "Conv"), dict[str, set[bool]]()
    for node in graph.node:
        if (
            node is not first
            and node.op_type in ("Conv", "MatMul", "Gemm")
            and constant_weight(node, producer, constant)
        ):
            found.setdefault(names[node.name], set()).add(quantised.issuperset(node.input[:2]))
    return found


def constant_weight(node: Any, producer: dict[str, Any], constant: set[str]) -> bool:
    weight = node.input[1]
    return weight in constant or (weight in producer and set(producer[weight].input) <= constant)


def check(output: Path, plain: Path, student: Student, clips: list[np.ndarray], limit: float) -> dict[str, Any]:
    """The bundle against its own report of the search; returns what was chosen."""
    encoder = Encoder.load(output, provider="cpu")
    told = encoder.manifest.quantisation
    chosen: dict[str, Any] = told["search"]["chosen"]
    found = drift_of(encoder, student, clips)
    assert found <= limit
    assert found == pytest.approx(chosen["drift"], rel=1e-3, abs=1e-7)
    assert told["recipe"]["in_float"] == chosen["in_float"]
    mixes = blocks_in_int8(output / "model.onnx", plain, max(encoder.manifest.layers))
    searched = {row["block"] for row in told["search"]["blocks"]}
    assert searched <= set(mixes)
    for block in searched:
        assert mixes[block] == {block not in chosen["in_float"]}, block
    assert mixes["position"] == {False}, "never in int8"
    everything = told["search"]["frontier"][0]
    assert everything["in_float"] == [] and everything["drift"] > limit, "else nothing had to be searched for"
    assert chosen["in_float"] and 0 < chosen["macs_in_int8"] < 1
    return chosen


def export_both(run_export, checkpoint: Path, speech: Path, manifest: Path, folder: Path, limit: float, *words: str):
    """The mix under ``limit`` and the plain file, both from the command line."""
    common = [checkpoint, "--calibration", speech, "--check", manifest, "--mode", "streaming", *words]
    int8 = ("--precision", "int8", "--max-drift", limit, "--min-cosine", "0.9")  # of short ends, with such weights
    for output, options in (("plain", ()), ("mix", int8)):
        run = run_export(*common, *options, "--output", folder / output)
        assert run.status == 0, run.err
        print(run.err)
    return folder / "mix", folder / "plain" / "model.onnx"


def test_the_bundle_keeps_the_limit_and_is_the_mix_that_it_reports(workshop, run_export, demo_speech, tmp_path) -> None:
    manifest, clips = listed(tmp_path, [demo_speech / "hana-2.flac"])
    name, words = "stream-no-lookahead", ("--chunk", "4", "--left", "12")
    mix, plain = export_both(run_export, workshop.checkpoint(name), workshop.speech, manifest, tmp_path, 6e-4, *words)
    check(mix, plain, workshop.student(name), clips, 6e-4)


@pytest.mark.slow
def test_the_search_keeps_the_bound_of_the_bundle_s_own_recording(workshop, run_export, demo_speech, tmp_path) -> None:
    """All in int8 is within the limit, but not the bundle's own cut ends: it would be refused once it was written."""
    manifest, _ = listed(tmp_path, [demo_speech / "hana-2.flac"])
    words = (
        "--mode",
        "streaming",
        "--chunk",
        "4",
        "--left",
        "12",
        "--calibration",
        workshop.speech,
        "--check",
        manifest,
    )
    limits = ("--precision", "int8", "--max-drift", "0.0015", "--min-cosine", "0.9985")
    run = run_export(workshop.checkpoint("stream-no-lookahead"), *words, *limits, "--output", tmp_path / "mix")
    assert run.status == 0, run.err
    found = read_bundle(tmp_path / "mix").manifest
    told = found.quantisation["search"]
    everything, chosen = told["frontier"][0], told["chosen"]
    assert everything["drift"] <= 0.0015 < everything["own_drift"], "else the recordings were what decided"
    assert chosen["in_float"] and chosen["own_drift"] <= told["own_limit"] == pytest.approx(0.0015)
    assert 1 - found.parity["selftest"]["mean_cosine"] == pytest.approx(chosen["own_drift"], rel=1e-6)
    page = (tmp_path / "mix" / "report.html").read_text()
    assert f"the bundle&#x27;s bound: drift {chosen['own_drift']:.2g} of at most 0.0015" in page


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_of_a_student_of_full_size(workshop, run_export, demo_speech, tmp_path) -> None:
    manifest, clips = listed(tmp_path, [demo_speech / f"{name}-2.flac" for name in ("hana", "gus")])
    torch.manual_seed(1)
    student = Student(preset("arm-stream")).eval().requires_grad_(False)
    folder = save_checkpoint(tmp_path / "student", student, provenance={"weights": "random, seed 1"}, training={})
    mix, plain = export_both(run_export, folder, workshop.speech, manifest, tmp_path, 5e-3)
    check(mix, plain, student, clips, 5e-3)
