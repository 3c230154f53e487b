"""Students of the FitHuBERT family, whose layers see two frames as one, and DistilHuBERT with its predictions."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import reuse_distill.export.targets.onnx.onnx_target as onnx_target
import torch
from reuse_distill.export.capture.capture import capture
from reuse_distill.export.capture.simplify import prepared
from reuse_distill.export.capture.sliding_window import CapturedWindow, sliding
from reuse_distill.export.estimates import macs_per_second
from reuse_distill.export.export_command import read_spec
from reuse_distill.export.export_options import export_parser
from reuse_distill.export.parity.reference import reference_features
from reuse_distill.export.proof import prove, read_onnx
from reuse_distill.export.quantise.blocks import node_blocks
from reuse_distill.export.quantise.quantisation_recipe import block_names
from reuse_distill.export.spec import ExportSpec, Offline, Streaming, WindowContext, check_features, parse_layers
from reuse_distill.report.bundle_page import bundle_report
from reuse_distill.runtime import Encoder
from reuse_distill.runtime.bundle_format.bundle import read_bundle
from reuse_distill.runtime.bundle_format.manifest import Geometry
from reuse_distill.runtime.equivalence.parity import difference
from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.geometry import HOP_SAMPLES, frames_for, samples_for
from reuse_distill.runtime.memory import attention_bytes, check_fits
from reuse_distill.student import ChunkContext, Student, StudentConfig

# Frames, and samples beyond them: one frame, whole steps, an odd last frame.
LENGTHS = [(1, 0), (2, 319), (3, 0), (10, 7), (11, 0), (60, 0), (61, 318)]


def features(student: Student, wave: np.ndarray, *, heads: bool) -> np.ndarray:
    """(N, F, W) of the student as it was trained."""
    with torch.no_grad():
        output = student(torch.from_numpy(wave)[None])
    return np.concatenate([x.numpy() for x in (output.projections if heads else output.layers)])


# --- FitHuBERT --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["heads", "hidden"])
def test_every_frame_of_every_length(kind: str, workshop, noise) -> None:
    encoder = Encoder.load(workshop.bundle("fit", "offline", "fp32", "--features", kind))
    for frames, extra in LENGTHS:
        wave = noise(samples_for(frames) + extra, seed=frames)
        found = encoder.extract(wave)
        assert found.shape[1] == frames
        assert difference(found, features(workshop.student("fit"), wave, heads=kind == "heads")).max_abs <= 1e-4
        if kind == "hidden":
            np.testing.assert_array_equal(found[:, 0 : frames - 1 : 2], found[:, 1::2])


@pytest.mark.parametrize(
    ("mode", "precision"),
    [("offline", "fp16"), ("offline", "int8"), pytest.param("window", "int8", marks=pytest.mark.slow)],
)
def test_precisions(mode: str, precision: str, workshop) -> None:
    manifest = read_bundle(workshop.bundle("fit", mode, precision, *loose(precision))).manifest
    assert [row["layer"] for row in manifest.parity["layers"]] == [1, 2]
    assert min(row["mean_cosine"] for row in manifest.parity["layers"]) > 0.95
    assert manifest.graph_proof is not None
    assert (manifest.graph_proof.computed_maps, manifest.graph_proof.reused) == (2, ())


def loose(precision: str) -> tuple[str, ...]:
    """Random weights of 32 channels lose more in int8 than a trained student."""
    return ("--min-cosine", "0.95") if precision == "int8" else ()


def test_the_manifest_says_what_a_step_is(workshop) -> None:
    manifest = read_bundle(workshop.bundle("fit", "offline", "fp32", "--features", "hidden")).manifest
    assert (manifest.geometry.step_frames, manifest.hop_samples) == (2, HOP_SAMPLES), "features have every frame"
    assert manifest.source["student"]["time_reduction"] == 2
    assert "every 20 ms, layers see 2 frames as one" in bundle_report(manifest)
    distil = read_bundle(workshop.bundle("distil", "offline", "fp32", "--features", "heads")).manifest
    assert distil.geometry.step_frames == 1


def test_the_proof_counts_what_a_head_gives(workshop) -> None:
    graph = read_onnx(workshop.bundle("fit", "offline") / "model.onnx")
    config = workshop.student("fit").config
    told = {"exported": (1, 2), "features": "heads"}
    prove(graph, config, **told)
    with pytest.raises(RdError, match="projection weights in all"):
        prove(graph, dataclasses.replace(config, time_reduction=1), **told)
    with pytest.raises(RdError, match="layer 2: "):
        prove(graph, dataclasses.replace(config, reuse_layers=(2,)), **told)


# --- FitHuBERT in windows ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("frames", [1, 2, 7, 8, 41, 97])
def test_a_window_bundle_equals_torch_windows(frames: int, workshop, noise) -> None:
    encoder = Encoder.load(workshop.bundle("fit", "window"))
    wave = noise(samples_for(frames) + 123, seed=frames)
    wanted = sliding(CapturedWindow(workshop.student("fit"), WindowContext(40, 8, 24), (1, 2), "heads"), wave)
    assert difference(encoder.extract(wave), wanted).max_abs <= 1e-4
    stream = encoder.stream()
    parts = [*stream.push(wave), *stream.finish()]
    assert [part.start_s for part in parts] == [0.02 * n for n in range(0, frames, 8)]
    assert sum(part.features.shape[1] for part in parts) == frames == frames_for(len(wave))


@pytest.mark.parametrize("frames", [1, 29, 30])
@pytest.mark.parametrize("kind", ["heads", "hidden"])
def test_a_window_that_holds_everything_is_the_whole_utterance(frames: int, kind: str, workshop, noise) -> None:
    """Steps of a window are those of the utterance, the odd last frame is a step that no other one sees."""
    student, wave = workshop.student("fit"), noise(samples_for(frames), seed=frames)
    found = sliding(CapturedWindow(student, WindowContext(40, 8, 40), (1, 2), kind), wave)
    assert difference(found, features(student, wave, heads=kind == "heads")).max_abs < 1e-4


def test_windows_are_made_of_whole_steps(workshop, run_export, tmp_path: Path) -> None:
    words = (workshop.checkpoint("fit"), "--mode", "window", "--left", "25", "--output", tmp_path / "b")
    run = run_export(*words)
    assert run.status == 2
    assert "a window of 25 | 16 | 64 frames, this student sees 2 frames as one" in run.err
    assert "multiples of 2" in run.err
    encoder = Encoder.load(workshop.bundle("fit", "offline"))
    with pytest.raises(RdError, match=r"a window of 150 \| 5 \| 64 frames"):
        encoder.stream(chunk_frames=5)
    assert encoder.geometry == Geometry(16, left_frames=150, right_frames=64, step_frames=2)


def test_a_stream_of_it_is_refused(workshop, run_export, tmp_path: Path, randomised) -> None:
    run = run_export(workshop.checkpoint("fit"), "--mode", "streaming", "--output", tmp_path / "b")
    assert run.status == 2
    assert "statistics run over the whole utterance" in run.err
    config = dataclasses.replace(workshop.student("fit").config, conv_norm="layer")
    with pytest.raises(RdError, match="no chunked forward"):
        capture(randomised(config), spec(config, "streaming"))


def spec(config: StudentConfig, mode: str) -> ExportSpec:
    """All heads."""
    chosen = Streaming(ChunkContext(4, 12)) if mode == "streaming" else Offline()
    return ExportSpec("onnx", chosen, "fp32", config.targets, "heads")


def test_costs_are_of_steps(workshop) -> None:
    """Half the products of the layers; a head that upsamples as it projects costs no more per frame."""
    fit = workshop.student("fit").config
    plain = dataclasses.replace(fit, time_reduction=1)
    both = [macs_per_second(config, spec(config, "offline")) for config in (fit, plain)]
    assert both[0] < both[1]
    heads = [
        one - macs_per_second(config, dataclasses.replace(spec(config, "offline"), features="hidden"))
        for one, config in zip(both, (fit, plain), strict=True)
    ]
    assert heads[0] == pytest.approx(heads[1]) == pytest.approx(2 * 32 * 24 * 50)


def test_memory_is_of_steps(workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = read_bundle(workshop.bundle("fit", "offline")).manifest
    monkeypatch.setattr("reuse_distill.runtime.memory.available_bytes", lambda: attention_bytes(2, 501))
    check_fits(manifest, 1002)
    with pytest.raises(RdError, match="attention maps"):
        check_fits(manifest, 1003)


# --- DistilHuBERT -----------------------------------------------------------------------------------------------------


def test_predictions_are_named_after_the_teachers_layers(workshop, noise) -> None:
    bundle = workshop.bundle("distil", "offline", "fp32", "--features", "heads")
    encoder = Encoder.load(bundle)
    assert encoder.manifest.layers == workshop.student("distil").config.head_targets == (2, 4, 6)
    assert encoder.manifest.graph_proof is not None
    assert encoder.manifest.graph_proof.layers == 2
    for frames, extra in LENGTHS:
        wave = noise(samples_for(frames) + extra, seed=frames)
        wanted = features(workshop.student("distil"), wave, heads=True)
        assert difference(encoder.extract(wave), wanted).max_abs <= 1e-4
    assert "predictions of the teacher&#x27;s layers 2, 4, 6" in bundle_report(encoder.manifest)


def test_only_the_heads_asked_for_are_in_the_file(workshop, noise, run_export, tmp_path: Path) -> None:
    words = ("--features", "heads", "--layers", "6,2", "--precision", "int8-dynamic", "--output", tmp_path / "b")
    run = run_export(workshop.checkpoint("distil"), *words)
    assert run.status == 0, run.err
    wave = noise(samples_for(40))
    wanted = features(workshop.student("distil"), wave, heads=True)[[2, 0]]
    assert difference(Encoder.load(tmp_path / "b").extract(wave), wanted).mean_cosine > 0.99
    config = workshop.student("distil").config
    graph = read_onnx(tmp_path / "b" / "model.onnx")
    prove(graph, config, exported=(6, 2), features="heads")
    with pytest.raises(RdError, match="projection weights in all"):
        prove(graph, config, exported=(6, 4, 2), features="heads")


def test_its_windows_give_predictions_too(workshop, noise) -> None:
    encoder = Encoder.load(workshop.bundle("distil", "window", "fp32", "--features", "heads"))
    student, wave = workshop.student("distil"), noise(samples_for(43))
    wanted = sliding(CapturedWindow(student, WindowContext(40, 8, 24), (2, 4, 6), "heads"), wave)
    assert difference(encoder.extract(wave), wanted).max_abs <= 1e-4


def test_layers_and_features_that_there_are(workshop) -> None:
    config = workshop.student("distil").config
    assert check_features(None, config) == "hidden", "what the authors evaluate"
    assert check_features("heads", config) == "heads"
    assert parse_layers("last", config, "heads") == (6,)
    assert parse_layers("all", config, "hidden") == (1, 2)
    with pytest.raises(RdError, match="3 is none that the heads predict\n\nhint: they predict 2, 4, 6"):
        parse_layers("3,2", config, "heads")
    with pytest.raises(RdError, match=r"4 is outside 1\.\.2"):
        parse_layers("4", config, "hidden")


def test_its_layers_are_exported_when_nothing_is_said(workshop) -> None:
    student = workshop.student("distil")
    asked = read_spec(export_parser().parse_args(["checkpoint", "--layers", "all", "--output", "b"]), student.config)
    assert (asked.features, capture(student, asked).outputs[0].shape) == ("hidden", (1, 2, "F", 32))


@pytest.mark.parametrize("name", ["distil", "fit", "shared"])
def test_blocks_of_the_plain_graph(name: str, workshop, tmp_path: Path) -> None:
    """The front end ends where it ends, with a norm behind it or without one."""
    student, file = workshop.student(name), tmp_path / "plain.onnx"
    onnx_target.convert(capture(student, spec(student.config, "offline")), file)
    model = onnx.load(str(file))
    blocks = node_blocks(model, student.config.layers)
    assert set(blocks.values()) <= set(block_names(student.config))
    convolutions = [blocks[node.name] for node in model.graph.node if node.op_type == "Conv"]
    front = [f"front-end.{max(1, k)}" for k in range(len(student.config.conv_layers))]
    assert convolutions == [*front, "position", *(["layer.1.attention"] if name == "fit" else [])]
    inputs = [node.op_type for node in model.graph.node if blocks[node.name] == "input"]
    assert ("MatMul" in inputs) == (name == "distil")


# --- other targets ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["fit", "distil"])
@pytest.mark.parametrize("target", ["ort", "tensorrt"])
def test_targets_from_onnx(name: str, target: str, workshop, run_export, tmp_path: Path) -> None:
    words = ("--target", target, "--features", "heads", "--layers", "all", "--output", tmp_path / "b")
    run = run_export(workshop.checkpoint(name), *words)
    assert run.status == (0 if target == "ort" else 5), run.err
    manifest = read_bundle(tmp_path / "b").manifest
    parity = manifest.parity.get("prepared", manifest.parity)
    assert parity["measured"]["max_abs"] <= 1e-4
    assert max(row["max_abs"] for row in parity["layers"]) <= 1e-4
    assert all(not reasons for reasons in (manifest.device or {}).get("jetpacks", {}).values())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["heads", "hidden"])
@pytest.mark.parametrize("mode", ["offline", "window"])
@pytest.mark.parametrize(("target", "package"), [("coreml", "coremltools"), ("executorch", "executorch.exir")])
def test_apple_and_executorch(
    target: str, package: str, mode: str, kind: str, workshop, run_export, tmp_path: Path, noise
) -> None:
    pytest.importorskip(package, reason=f"{package} is not installed (the extra {target})")
    options = ("--left", "40", "--chunk", "8", "--right", "24") if mode == "window" else ("--max-seconds", "4")
    words = ("--target", target, "--mode", mode, "--features", kind, "--layers", "all", *options)
    run = run_export(workshop.checkpoint("fit"), *words, "--output", tmp_path / "b")
    assert run.status == 0, run.err
    manifest = read_bundle(tmp_path / "b").manifest
    assert manifest.parity["measured"]["max_abs"] <= 1e-4
    assert len(manifest.parity["layers"]) == (2 if target == "coreml" else 0)
    if target == "executorch" and mode == "offline":
        encoder = Encoder.load(tmp_path / "b")
        for frames, extra in LENGTHS:
            wave = noise(samples_for(frames) + extra, seed=frames)
            wanted = features(workshop.student("fit"), wave, heads=kind == "heads")
            assert difference(encoder.extract(wave), wanted).max_abs <= 1e-4


@pytest.mark.slow
@pytest.mark.parametrize(("name", "front_end"), [("fit", "float"), ("distil", "int8")])
def test_executorch_in_int8(name: str, front_end: str, workshop, run_export, tmp_path: Path, noise) -> None:
    """Every weight is int8, time reduction's and the heads' too, but for what the manifest lists."""
    pytest.importorskip("executorch.exir", reason="executorch is not installed (the extra executorch)")
    from reuse_distill.export.targets.executorch.pte_program import read_program

    words = ["--target", "executorch", "--precision", "int8", "--front-end", front_end, "--features", "heads"]
    words += ["--layers", "all", "--calibration", workshop.speech, "--max-seconds", "13", "--output", tmp_path / "b"]
    run = run_export(workshop.checkpoint(name), *words)
    assert run.status == 0, run.err
    student, encoder = workshop.student(name), Encoder.load(tmp_path / "b")
    constants = read_program(tmp_path / "b" / "model.pte").constants.values()
    weights = {key: value.numel() for key, value in prepared(student, 2).named_parameters() if value.ndim > 1}
    kept = ["pos_conv", "feature_extractor" if front_end == "float" else "conv_layers.0."]
    wanted = [size for key, size in weights.items() if not any(part in key for part in kept)]
    assert sorted(c.elements for c in constants if c.kind == "qcint8") == sorted(wanted)
    for frames, extra in LENGTHS:
        wave = noise(samples_for(frames) + extra, seed=frames)
        assert difference(encoder.extract(wave), features(student, wave, heads=True)).mean_cosine > 0.99


@pytest.mark.slow
def test_sizes_stay_whole_in_core_ml(workshop, tmp_path: Path, noise, run_export) -> None:
    """50 s in half precision, which knows no whole number above 2048 exactly: every frame is there, and right."""
    pytest.importorskip("coremltools", reason="coremltools is not installed (the extra coreml)")
    from reuse_distill.export.targets.coreml.evaluator import Evaluator
    from reuse_distill.export.targets.coreml.mil_program import read_program

    words = ("--target", "coreml", "--precision", "fp16", "--features", "hidden", "--output", tmp_path / "b")
    run = run_export(workshop.checkpoint("fit"), *words)
    assert run.status == 0, run.err
    package = tmp_path / "b" / find_artifact(tmp_path / "b")
    sizes = [o for o in read_program(package).operations if o.kind == "floor_div"]
    assert sizes
    assert all(o.types[0].dtype == "int32" for o in sizes)
    wave = noise(samples_for(2501))
    found = Evaluator.load(package).run({"wave": wave[None]})["features"][0, 0]
    wanted = features(workshop.student("fit"), wave, heads=False)[-1:]
    assert found.shape == (2501, 32)
    assert difference(found[None], wanted).mean_cosine > 0.999


def find_artifact(bundle: Path) -> str:
    return str(json.loads((bundle / "manifest.json").read_text())["artifact"])


def test_references_follow_the_names(workshop, noise) -> None:
    student, wave = workshop.student("distil"), noise(samples_for(9))
    asked = dataclasses.replace(spec(student.config, "offline"), layers=(6, 2))
    np.testing.assert_array_equal(reference_features(student, asked, wave), features(student, wave, heads=True)[[2, 0]])
