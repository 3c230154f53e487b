"""``rd-export --head``: heads in the artifact on every target, streamed as offline, proven, and refused by name."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from reuse_distill.export.parity.task_parity import edit_distance, head_bounds, measure_heads, outside
from reuse_distill.export.proof.onnx_graph import read_onnx
from reuse_distill.export.proof.prove import prove
from reuse_distill.runtime import Encoder
from reuse_distill.runtime.bundle_format.bundle import file_sha256, read_bundle
from reuse_distill.runtime.equivalence.certify import certify
from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.tasks import TaskOutput
from reuse_distill.student import ChunkContext, preset, save_checkpoint
from reuse_distill.student.tasks import HeadConfig, TaskHead, load_head, save_head

from .conftest import DEMO_SPEECH, OPTIONS, SMALLEST, lively, rd_export

LETTERS = TaskOutput("letters", "ctc", 4, ("<pad>", "|", "a", "b"), blank=0, delimiter="|")
KEYWORDS = TaskOutput(
    "keywords", "spot", 2, ("alexa", "jarvis"), parts=2, thresholds=(0.6, 0.6), smooth_frames=2, search_frames=30
)
HEADS = {
    "units": (TaskOutput("units", "units", 6), (2,), None),
    "letters": (LETTERS, (1, 2), None),
    "mood": (TaskOutput("mood", "classify", 3, ("calm", "glad", "sad")), (1,), None),
    "keywords": (KEYWORDS, (2,), 8),
    "vectors": (TaskOutput("vectors", "projection", 5), (2,), None),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a streaming student, another one, and one head of every kind for it."""
    folder = tmp_path_factory.mktemp("heads")
    config = preset("tiny-stream", **SMALLEST, context=ChunkContext(4, 12))
    torch.manual_seed(3)
    save_checkpoint(folder / "student", lively(config))
    save_checkpoint(folder / "other", lively(dataclasses.replace(config, ffn_width=40)))
    sha256 = file_sha256(folder / "student" / "model.safetensors")
    for name, (output, layers, inner) in HEADS.items():
        head = TaskHead(HeadConfig(output, sha256, layers, 32, inner_width=inner, student_name="student"))
        for parameter in head.parameters():
            torch.nn.init.normal_(parameter, std=1.0 if parameter.ndim > 1 else 0.3)
        save_head(folder / name, head)
    (folder / "speech").mkdir()
    for file in sorted(DEMO_SPEECH.glob("*.flac"))[::8]:  # four voices
        shutil.copyfile(file, folder / "speech" / file.name)
    return folder


def export(made: Path, name: str, heads: list[str], *words: str) -> Path:
    output = made / f"bundle-{name}"
    if not output.exists():
        given = [word for head in heads for word in ("--head", str(made / head))]
        run = rd_export(made / "student", "--output", output, *given, *words, "--check", made / "speech")
        assert run.status in (0, 5), run.err
    return output


@pytest.mark.parametrize("mode", ["offline", "window", "streaming"])
def test_every_kind_in_every_mode_gives_what_torch_gives(made: Path, mode: str) -> None:
    bundle = export(made, mode, list(HEADS), "--mode", mode, *OPTIONS[mode])
    manifest = read_bundle(bundle).manifest
    assert [head.name for head in manifest.heads] == list(HEADS) and manifest.layers == (2,)
    assert manifest.features == "hidden"
    for name, entry in manifest.parity["heads"].items():
        assert outside({name: entry}) is None
        if name != "vectors":
            assert entry["measured"]["agreement"] >= 0.99 and "seen" in entry["measured"]
    contract = {head.name: head for head in manifest.heads}
    assert contract["letters"].blank == 0 and contract["keywords"].thresholds == (0.6, 0.6)
    assert contract["units"].source["weights_sha256"] == load_head(made / "units").sha256
    result = Encoder.load(bundle).selftest()
    assert result.passed and set(result.heads) == set(HEADS)


def test_streams_are_certified_heads_included(made: Path) -> None:
    bundle = export(made, "streaming", list(HEADS), "--mode", "streaming", *OPTIONS["streaming"])
    certificate = certify(Encoder.load(bundle))
    assert certificate.passed, [c for c in certificate.checks if not c.passed]
    assert {check.name.partition(": ")[0] for check in certificate.checks if ": " in check.name} == set(HEADS)


def test_heads_alone(made: Path) -> None:
    words = ("--mode", "streaming", *OPTIONS["streaming"], "--batch", "1", "--features", "none")
    bundle = export(made, "alone", ["letters", "units"], *words)
    manifest = read_bundle(bundle).manifest
    assert (
        manifest.features == "none"
        and not manifest.layers
        and {o.name for o in manifest.outputs}
        == {
            "letters",
            "units",
        }
    )
    both = Encoder.load(export(made, "streaming", list(HEADS), "--mode", "streaming", *OPTIONS["streaming"]))
    alone, wave = Encoder.load(bundle), np.random.default_rng(0).standard_normal(16_000).astype(np.float32) / 10
    assert alone.frames(wave).features.shape == (49, 0)
    for name, rows in alone.frames(wave).heads.items():
        assert np.abs(rows.astype(float) - both.frames(wave).heads[name]).max() < 1e-4
    assert certify(alone).passed


def test_an_ort_file_gives_every_head(made: Path) -> None:
    bundle = export(made, "ort", list(HEADS), "--target", "ort", "--mode", "streaming", *OPTIONS["streaming"])
    result = Encoder.load(bundle).selftest()
    assert result.passed and set(result.heads) == set(HEADS)


@pytest.mark.slow  # the certificate of every head takes long; by default the ONNX file's own stands for it
@pytest.mark.parametrize("target", ["ort", "executorch"])
def test_streams_on_mobile_runtimes_are_certified(made: Path, target: str) -> None:
    pytest.importorskip("executorch" if target == "executorch" else "onnxruntime")
    kinds = list(HEADS) if target == "ort" else ["units", "letters", "keywords", "mood"]  # as ONNX: converted once
    bundle = export(made, target, kinds, "--target", target, "--mode", "streaming", *OPTIONS["streaming"])
    certificate = certify(Encoder.load(bundle))
    assert certificate.passed, [c for c in certificate.checks if not c.passed]


@pytest.mark.parametrize("mode", [pytest.param("offline", marks=pytest.mark.slow), "streaming"])
def test_core_ml_gives_heads_by_the_evaluator(made: Path, mode: str) -> None:
    pytest.importorskip("coremltools")
    kinds = ["units", "letters", "keywords", "mood"]
    bundle = export(made, f"coreml-{mode}", kinds, "--target", "coreml", "--mode", mode, *OPTIONS[mode])
    heads = read_bundle(bundle).manifest.parity["heads"]
    assert set(heads) == set(kinds) and outside(heads) is None
    assert all(entry["measured"]["agreement"] >= 0.99 for entry in heads.values())


def test_tensorrt_graphs_are_prepared_with_heads(made: Path) -> None:
    kinds = list(HEADS)
    bundle = export(made, "trt", kinds, "--target", "tensorrt", "--mode", "streaming", *OPTIONS["streaming"])
    manifest = read_bundle(bundle).manifest
    measured = manifest.parity.get("prepared", manifest.parity)
    assert set(measured["heads"]) == set(kinds)


@pytest.mark.slow
def test_the_search_keeps_what_heads_decide(made: Path) -> None:
    words = ("--precision", "int8", "--calibration", str(DEMO_SPEECH), "--max-drift", "0.1", "--min-cosine", "0.9")
    mode = ("--mode", "streaming", *OPTIONS["streaming"])
    loose = read_bundle(export(made, "loose", ["units"], *mode, *words, "--min-agreement", "0.5")).manifest
    strict = read_bundle(export(made, "strict", ["units"], *mode, *words, "--min-agreement", "0.93")).manifest
    chosen = [manifest.quantisation["search"]["chosen"] for manifest in (loose, strict)]
    assert chosen[0]["agreement"] >= 0.5 and chosen[1]["agreement"] >= 0.93
    assert len(chosen[1]["in_float"]) > len(chosen[0]["in_float"])
    assert strict.quantisation["search"]["agreement_limit"] == 0.93
    assert strict.parity["heads"]["units"]["measured"]["agreement"] >= 0.93


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "precision", "package"),
    [
        *(("onnx", precision, "onnxruntime") for precision in ("fp16", "int8-dynamic", "int8-weights")),
        *(("ort", precision, "onnxruntime") for precision in ("fp16", "int8")),
        *(("openvino", precision, "openvino") for precision in ("fp32", "fp16", "int8")),
        *(("executorch", precision, "executorch") for precision in ("int8", "int8-dynamic")),
        *(("coreml", precision, "coremltools") for precision in ("fp16", "int8-weights")),
        *(("tensorrt", precision, "onnxruntime") for precision in ("fp16", "int8")),
        *(("tensorrt-rtx", precision, "tensorrt_rtx_libs") for precision in ("fp16", "int8")),
    ],
)
def test_every_kind_on_every_target_and_precision(made: Path, target: str, precision: str, package: str) -> None:
    """Built (tensorrt-rtx: by NVIDIA's own builder), or prepared, with decisions as torch makes them."""
    pytest.importorskip(package)
    words = ["--target", target, "--precision", precision, "--mode", "streaming", *OPTIONS["streaming"]]
    words += ["--calibration", str(DEMO_SPEECH)] if precision == "int8" else []
    bundle = export(made, f"{target}-{precision}", list(HEADS), *words, "--min-agreement", "0.8")
    manifest = read_bundle(bundle).manifest
    heads = manifest.parity.get("prepared", manifest.parity)["heads"]
    assert set(heads) == set(HEADS) and outside(heads) is None
    assert manifest.graph_proof is not None


def test_int8_keeps_heads_in_float_and_states_agreement(made: Path) -> None:
    words = ("--batch", "1", "--precision", "int8", "--calibration", str(DEMO_SPEECH), "--min-agreement", "0.6")
    bundle = export(made, "int8", ["units", "mood"], "--mode", "streaming", *OPTIONS["streaming"], *words)
    manifest = read_bundle(bundle).manifest
    assert manifest.parity["heads"]["units"]["bound"] == {"agreement": 0.6}
    assert 0.6 <= manifest.parity["heads"]["units"]["measured"]["agreement"] <= 1
    assert "label_flips" in manifest.parity["heads"]["mood"]["measured"]["seen"]
    assert "heads" in manifest.quantisation["recipe"]["in_float"]
    assert "tasks" not in json.dumps(manifest.quantisation["recipe"])


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8-dynamic", "int8"])
def test_steps_of_several_sizes_have_heads_in_every_precision(made: Path, precision: str) -> None:
    """One artifact, steps of 1, 2 and 4 frames, a head of every kind: certified with its switches."""
    words = ["--mode", "streaming", "--left", "12", "--chunks", "1,2,4", "--precision", precision]
    words += ["--calibration", str(DEMO_SPEECH)] if precision == "int8" else []
    bundle = export(made, f"dial-{precision}", list(HEADS), *words, "--min-agreement", "0.8")
    manifest = read_bundle(bundle).manifest
    assert manifest.chunk_choices == (1, 2, 4) and outside(manifest.parity["heads"]) is None
    certificate = certify(Encoder.load(bundle))
    assert certificate.passed, [c for c in certificate.checks if not c.passed]
    of_switches = {check.name for check in certificate.checks if "switches" in check.name}
    assert {name.partition(": ")[0] for name in of_switches if ": " in name} == set(HEADS)


def test_the_proof_misses_no_head(made: Path) -> None:
    bundle = export(made, "offline", list(HEADS), "--mode", "offline")
    manifest = read_bundle(bundle).manifest
    graph, heads = read_onnx(bundle / manifest.artifact), [load_head(made / name) for name in HEADS]
    config = preset("tiny-stream", **SMALLEST)
    prove(graph, config, exported=(2, 1), features="hidden", tasks=heads)
    with pytest.raises(RdError, match="graph proof failed"):
        prove(graph, config, exported=(2, 1), features="hidden", tasks=heads[:-1])
    wider = dataclasses.replace(heads[0].config, output=TaskOutput("units", "units", 7))
    other = dataclasses.replace(heads[0], module=TaskHead(wider))
    with pytest.raises(RdError, match="graph proof failed"):
        prove(graph, config, exported=(2, 1), features="hidden", tasks=[other, *heads[1:]])


@pytest.mark.parametrize(
    ("student", "words", "message"),
    [
        ("other", ("--head", "units"), "head 'units' was trained on other weights: student"),
        ("student", ("--head", "units", "--head", "units"), "two heads are named 'units'"),
        ("student", ("--head", "student"), "not a head folder, there is no head.json"),
        ("student", ("--features", "none"), "--features none is for exports with --head"),
        (
            "student",
            ("--head", "units", "--features", "none", "--precision", "int8", "--max-drift", "0.1"),
            "--max-drift measures features",
        ),
        ("student", ("--min-agreement", "0.9"), "--min-agreement is for exports with --head"),
        ("student", ("--head", "units", "--min-agreement", "2"), "--min-agreement 2.0 is outside 0..1"),
        ("student", ("--head", "units", "--features", "heads"), "head 'units' takes hidden features"),
    ],
)
def test_what_does_not_fit_is_refused(made: Path, student: str, words: tuple[str, ...], message: str) -> None:
    given = [str(made / w) if w in ("units", "student") else w for w in words]
    run = rd_export(made / student, "--output", made / "refused", *given)
    assert run.status == 2 and message in run.err and not (made / "refused").exists()


def test_what_users_see_is_counted() -> None:
    reference = np.log(np.full((10, 4), 0.02))
    for frame, label in enumerate([0, 2, 2, 0, 3, 1, 1, 2, 0, 0]):
        reference[frame, label] = np.log(0.94)
    changed = reference.copy()
    changed[4] = changed[4][[0, 1, 3, 2]]  # b heard as a
    ((_, entry),) = measure_heads([LETTERS], [{"letters": changed}], [{"letters": reference}]).items()
    assert entry["agreement"] == pytest.approx(0.9)
    assert entry["seen"] == {"edits": 1, "letters_of_source": 4}, "'ab a' against 'aa a'"
    assert edit_distance("kitten", "sitting") == 3 and edit_distance([], [1, 2]) == 2
    bad = {"letters": {"bound": {"agreement": 0.95}, "measured": entry, "selftest": entry}}
    assert "agreement 0.9 on the recordings that check, the bound is 0.95" in str(outside(bad))
    assert outside({"x": {"bound": {"max_abs": 1.0}, "measured": {"max_abs": float("nan")}}}) is not None
    assert head_bounds.__doc__
