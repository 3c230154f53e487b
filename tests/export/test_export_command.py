"""rd-export as a user meets it: what it writes, what it prints, and what it says when something is wrong."""

from __future__ import annotations

import csv
import dataclasses
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import soundfile
import torch
import yaml
from reuse_distill.runtime import Encoder
from reuse_distill.runtime.audio.audio_files import read_audio
from reuse_distill.runtime.bundle_format.bundle import read_bundle
from reuse_distill.runtime.equivalence.parity import difference
from reuse_distill.runtime.errors import RdError
from reuse_distill.student import preset, save_checkpoint
from reuse_distill.student.config import StudentConfig
from safetensors.torch import load_file, save_file

MATRIX = [
    (name, mode, precision)
    for name, mode in (("shared", "offline"), ("shared", "window"), ("stream", "streaming"))
    for precision in ("fp32", "fp16", "int8")
]


@pytest.mark.parametrize(("name", "mode", "precision"), MATRIX)
def test_every_mode_and_precision(name: str, mode: str, precision: str, workshop) -> None:
    folder = workshop.bundle(name, mode, precision)
    manifest, run = read_bundle(folder).manifest, workshop.runs[folder]
    assert (manifest.kind, manifest.target, manifest.precision, manifest.status) == (
        mode,
        "onnx",
        precision,
        "built",
    )
    assert manifest.layers == (1, 2, 3, 4)
    assert sorted(p.name for p in folder.iterdir()) == [
        "manifest.json",
        "model.onnx",
        "report.html",
        "selftest.npz",
    ]
    assert set(manifest.files) == {"model.onnx", "report.html", "selftest.npz"}
    measured = manifest.parity["measured"]
    assert f"{mode} onnx {precision}" in run.out
    assert "2 attention maps computed for 4 layers, 2 reused: proven" in run.out
    assert f"max abs {measured['max_abs']:.2e}, mean frame cosine {measured['mean_cosine']:.5f}" in run.out
    assert ("latency" in run.out) == (mode != "offline")
    assert manifest.approximate == (mode == "window") == bool(manifest.drift)
    assert manifest.source["provenance"] == {"made": "by a test"}
    assert {"torch", "onnx", "onnxruntime", "reuse-distill"} <= set(manifest.tools)
    assert Encoder.load(folder).selftest().passed


@pytest.mark.parametrize(("name", "mode"), [("shared", "offline"), ("shared", "window"), ("stream", "streaming")])
def test_weights_take_two_bytes_in_fp16_and_about_one_in_int8(name: str, mode: str, workshop) -> None:
    """Of the initialisers alone: in a graph of this size the nodes take as much space as the weights."""
    fp32, fp16, int8 = (weight_bytes(workshop.bundle(name, mode, p) / "model.onnx") for p in ("fp32", "fp16", "int8"))
    assert fp16 < 0.55 * fp32
    assert int8 < 0.4 * fp32


def weight_bytes(file: Path) -> int:
    tensors = onnx.load(str(file)).graph.initializer
    return sum(onnx.numpy_helper.to_array(tensor).nbytes for tensor in tensors)


WRONG = [
    (("--layers", "5"), r"--layers: 5 is outside 1\.\.4\n\nhint: layers count from 1"),
    (("--layers", "0"), r"--layers: 0 is outside 1\.\.4"),
    (("--layers", "first"), "--layers 'first' is not last, all or numbers such as 3,7,11"),
    (("--layers", "2,2"), "--layers '2,2' names a layer twice"),
    (("--precision", "bf16"), "--precision bf16 is not possible for onnx\n\nhint: known: fp32, fp16, int8"),
    (
        ("--precision", "int8"),
        r"int8 offline needs speech to calibrate with\n\nhint: add --calibration AUDIO",
    ),
    (
        ("--mode", "window", "--window-norm", "calibrated"),
        r"fp32 window needs speech to calibrate with\n\nhint: add --calibration AUDIO",
    ),
    (("--chunk", "8"), "--chunk, --left and --right are for --mode window or streaming"),
    (
        ("--mode", "streaming", "--right", "8"),
        "--right is for --mode window; a stream's look-ahead is trained",
    ),
    (
        ("--mode", "window", "--chunk", "0"),
        r"window of 150 \| 0 \| 64 frames is not possible\n\nhint: the chunk needs",
    ),
    (("--mode", "window", "--left", "-1"), r"window of -1 \| 16 \| 64 frames is not possible"),
    (("--mode", "streaming", "--chunk", "0"), "chunk of 0 frames with 128 to the left is not possible"),
    (("--batch", "2"), "--batch 2 is for --mode streaming, 1 or more"),
    (("--mode", "streaming", "--batch", "0"), "--batch 0 is for --mode streaming, 1 or more"),
    (("--min-cosine", "0.9"), "--min-cosine is for --precision int8, this export is fp32"),
    (("--front-end", "float"), "--front-end is for --precision int8, this export is fp32"),
    (("--precision", "int8", "--min-cosine", "1.5"), r"--min-cosine 1.5 is outside 0\.\.1"),
    (("--precision", "int8", "--min-cosine", "nan"), r"--min-cosine nan is outside 0\.\.1"),
    (("--window-norm", "calibrated"), "--window-norm calibrated is for --mode window"),
    (("--config", "x.yaml"), r"--config x.yaml is for public checkpoint files; \S+ is a folder"),
    (
        ("--mode", "streaming"),
        r"conv_norm is 'group': its statistics run over the whole utterance, so no step can be exact\n\n"
        r"hint: use a streaming student \(preset arm-stream, tiny-stream\), or --mode window",
    ),
]


@pytest.mark.parametrize(("words", "message"), WRONG, ids=[" ".join(words) for words, _ in WRONG])
def test_what_cannot_be_is_said(words, message, workshop, run_export, tmp_path: Path) -> None:
    run = run_export(workshop.checkpoint("shared"), *words, "--output", tmp_path / "bundle")
    assert run.status == 2
    assert re.search(message, run.err), run.err
    assert run.err.startswith("error: ")
    assert run.out == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "option", [("--features", "logits"), ("--target", "tflite"), ("--mode", "live"), ("--no-such",)]
)
def test_unknown_choices_name_the_known_ones(option, workshop, run_export, tmp_path: Path, capsys) -> None:
    with pytest.raises(SystemExit) as stopped:
        run_export(workshop.checkpoint("shared"), *option, "--output", tmp_path / "bundle")
    assert stopped.value.code == 2


def test_heads_of_a_student_without_heads(run_export, randomised, configs, tmp_path: Path) -> None:
    student = randomised(dataclasses.replace(configs["shared"], head_width=None, layers=1, reuse_layers=()))
    save_checkpoint(tmp_path / "headless", student, provenance={}, training={})
    run = run_export(tmp_path / "headless", "--features", "heads", "--output", tmp_path / "bundle")
    assert run.status == 2
    assert "this student has no projection heads\n\nhint: use --features hidden" in run.err
    run = run_export(tmp_path / "headless", "--output", tmp_path / "bundle")
    assert run.status == 0, run.err
    manifest = read_bundle(tmp_path / "bundle").manifest
    assert (manifest.features, manifest.feature_width) == ("hidden", 32)


# --- calibration audio ------------------------------------------------------------------------------------------------


@pytest.fixture
def recordings(tmp_path: Path, demo_speech: Path) -> Callable[..., Path]:
    """``recordings(files=, gain=, speakers=)`` -> a manifest of copies of the demo's speech."""

    def make(files: int, *, gain: float = 1.0, speakers: int = 8) -> Path:
        folder = tmp_path / "audio"
        folder.mkdir()
        rows = []
        for index, path in enumerate(sorted(demo_speech.glob("*.flac"))[:files]):
            audio = read_audio(path)
            soundfile.write(folder / f"{index}.flac", audio.samples * gain, audio.sample_rate_hz)
            rows.append((f"{index}.flac", f"voice-{index % speakers}"))
        with (folder / "manifest.csv").open("w", newline="") as stream:
            csv.writer(stream).writerows([("file", "speaker"), *rows])
        return folder / "manifest.csv"

    return make


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (
            {"files": 4},
            r"\d\.\d s that are not silent, 20 s are needed\n\nhint: give more speech, or give --accept-narrow",
        ),
        ({"files": 24, "gain": 1e-6}, "all 18 recordings are silent\n\nhint: give real speech"),
        (
            {"files": 24, "speakers": 1},
            "one speaker only, at least 2 are needed\n\nhint: add recordings of other voices",
        ),
    ],
    ids=["too little", "silent", "one speaker"],
)
def test_calibration_audio_that_is_not_good_enough(how, message, recordings, workshop, run_export, tmp_path) -> None:
    words = ("--precision", "int8", "--calibration", recordings(**how), "--output", tmp_path / "bundle")
    run = run_export(workshop.checkpoint("shared"), *words)
    assert run.status == 2
    assert re.search(message, run.err), run.err
    assert not (tmp_path / "bundle").exists()


def test_narrow_calibration_is_taken_knowingly(recordings, workshop, run_export, tmp_path: Path) -> None:
    words = ("--layers", "all", "--precision", "int8", "--calibration", recordings(files=4, speakers=1))
    run = run_export(
        workshop.checkpoint("shared"), *words, "--accept-narrow-calibration", "--output", tmp_path / "bundle"
    )
    assert run.status == 0, run.err
    described = read_bundle(tmp_path / "bundle").manifest.quantisation["calibration"]
    assert (described["speakers"], described["clips"]) == (1, 3)
    assert described["seconds"] < 20


def test_missing_calibration_audio(workshop, run_export, tmp_path: Path) -> None:
    words = ("--precision", "int8", "--calibration", tmp_path / "nowhere", "--output", tmp_path / "bundle")
    run = run_export(workshop.checkpoint("shared"), *words)
    assert run.status == 2
    assert "there is no audio at" in run.err


# --- what stands at the output ----------------------------------------------------------------------------------------


def test_an_existing_output_is_kept_without_overwrite(workshop, run_export, tmp_path: Path) -> None:
    output = shutil.copytree(workshop.bundle("shared", "offline"), tmp_path / "bundle")
    before = (output / "manifest.json").read_bytes()
    run = run_export(workshop.checkpoint("shared"), "--layers", "all", "--output", output)
    assert run.status == 2
    assert "exists already\n\nhint: choose another --output, or give --overwrite" in run.err
    assert (output / "manifest.json").read_bytes() == before
    words = ("--layers", "all", "--precision", "fp16", "--output", output, "--overwrite")
    assert run_export(workshop.checkpoint("shared"), *words).status == 0
    assert read_bundle(output).manifest.precision == "fp16"
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]


def test_a_folder_that_is_no_bundle_is_never_replaced(workshop, run_export, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("years of work")
    words = ("--layers", "all", "--output", tmp_path / "home", "--overwrite")
    run = run_export(workshop.checkpoint("shared"), *words)
    assert run.status == 2
    assert "exists and is not a bundle; it is not overwritten" in run.err
    assert (tmp_path / "home" / "thesis.txt").read_text() == "years of work"


# --- checkpoints ------------------------------------------------------------------------------------------------------


@pytest.fixture
def checkpoint(workshop, tmp_path: Path) -> Path:
    return shutil.copytree(workshop.checkpoint("shared"), tmp_path / "checkpoint")


def refused(run_export, tmp_path: Path, *words: str | Path) -> str:
    run = run_export(*words, "--output", tmp_path / "bundle")
    assert run.status == 2
    assert run.err.startswith("error: ")
    assert "Traceback" not in run.err
    assert not (tmp_path / "bundle").exists()
    return str(run.err)


def test_a_truncated_checkpoint_folder(checkpoint: Path, run_export, tmp_path: Path) -> None:
    weights = checkpoint / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    assert "damaged or cut short" in refused(run_export, tmp_path, checkpoint)


def test_nan_weights(checkpoint: Path, run_export, tmp_path: Path) -> None:
    state = load_file(checkpoint / "model.safetensors")
    state["encoder.layers.2.fc1.weight"][3, 4] = float("nan")
    state["encoder.layers.3.fc1.bias"][0] = float("inf")
    save_file(state, checkpoint / "model.safetensors")
    text = refused(run_export, tmp_path, checkpoint)
    assert "encoder.layers.2.fc1.weight has values that are not finite" in text
    assert "encoder.layers.3.fc1.bias has values that are not finite" in text


def test_no_checkpoint_at_all(run_export, tmp_path: Path) -> None:
    assert "no such checkpoint" in refused(run_export, tmp_path, tmp_path / "nowhere")
    (tmp_path / "model.ckpt").write_bytes(b"")
    assert "not a torch checkpoint archive" in refused(run_export, tmp_path, tmp_path / "model.ckpt")
    (tmp_path / "empty").mkdir()
    assert "not a checkpoint folder, there is no config.json" in refused(run_export, tmp_path, tmp_path / "empty")


PUBLIC = {
    "extractor_mode": "default",
    "conv_feature_layers": "[(8, 10, 5)] + [(16, 1, 1)] + [(16, 3, 2)] * 4 + [(32, 1, 1)] + [(32, 2, 2)] * 2",
    "feature_grad_mult": 1.0,
    "conv_bias": False,
    "conv_pos": 128,
    "conv_pos_groups": 4,
    "pos_conv_depth": 1,
    "max_positions": 100_000,
    "layer_type": "transformer",
    "encoder_layers": 4,
    "encoder_embed_dim": 32,
    "encoder_ffn_embed_dim": 48,
    "encoder_attention_heads": 2,
    "activation_fn": "gelu",
    "layer_norm_first": False,
    "reuse_pattern": "[True, False, True, False]",
    "dropout": 0.1,
    "dropout_input": 0.05,
    "pred_head_final_dim": 24,
}


@pytest.fixture
def public(workshop, tmp_path: Path) -> tuple[Path, Path]:
    """The renormalised student as the public trainer would have written it."""
    state = {f"student_model.{key}": value for key, value in workshop.student("renormalised").state_dict().items()}
    torch.save({"epoch": 1, "state_dict": state, "pytorch-lightning_version": "1"}, tmp_path / "model.ckpt")
    data = {"teacher": {"teacher_model": "x.pt"}, "distiller": PUBLIC, "model": "armhubert"}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(data))
    return tmp_path / "model.ckpt", tmp_path / "config.yaml"


def test_a_public_checkpoint_exports_in_one_command(public, workshop, run_export, noise, tmp_path: Path) -> None:
    checkpoint, config = public
    words = ("--config", config, "--target", "onnx", "--layers", "1,4", "--features", "hidden")
    run = run_export(checkpoint, *words, "--output", tmp_path / "bundle")
    assert run.status == 0, run.err
    encoder, wave = Encoder.load(tmp_path / "bundle"), noise(20_000)
    assert encoder.manifest.graph_proof is not None
    assert (encoder.manifest.graph_proof.reuse_mode, encoder.manifest.graph_proof.softmaxes) == (
        "renormalised",
        4,
    )
    assert encoder.manifest.source["provenance"] == {"public_checkpoint": "model.ckpt"}
    with torch.no_grad():
        layers = workshop.student("renormalised")(torch.from_numpy(wave)[None]).layers
    wanted = np.concatenate([layers[0].numpy(), layers[3].numpy()])
    assert difference(encoder.extract(wave), wanted).max_abs <= 1e-4


def test_damaged_public_files(public, run_export, tmp_path: Path) -> None:
    checkpoint, config = public
    whole, text = checkpoint.read_bytes(), config.read_text()
    checkpoint.write_bytes(whole[: len(whole) // 2])
    assert str(checkpoint) in refused(run_export, tmp_path, checkpoint, "--config", config)
    checkpoint.write_bytes(whole)
    for other, words in (
        (text.replace("encoder_layers: 4", "encoder_layers: 5"), "is not a list of 5 True or False"),
        (text.replace("encoder_embed_dim: 32", "encoder_embed_dim: 64"), "32"),
        ("{unclosed: [", "config.yaml"),
        ("- a list\n", "config.yaml"),
        (text.replace("[(8, 10, 5)]", '__import__("os")'), "conv_feature_layers"),
    ):
        config.write_text(other)
        assert words in refused(run_export, tmp_path, checkpoint, "--config", config)


def test_flags_and_options_of_the_demo_parse() -> None:
    """The options that the readme and the demo use exist."""
    from reuse_distill.export.export_command import read_spec
    from reuse_distill.export.export_options import export_parser

    words = [
        "s",
        "--mode",
        "streaming",
        "--precision",
        "int8",
        "--calibration",
        "a",
        "--chunk",
        "4",
        "--left",
        "9",
        "--output",
        "o",
    ]
    spec = read_spec(export_parser().parse_args(words), preset("tiny-stream"))
    assert spec.chunk_context is not None
    assert (spec.chunk_context.chunk_frames, spec.chunk_context.left_frames, spec.features) == (4, 9, "heads")
    config: StudentConfig = preset("tiny-stream", context=None)
    defaults = read_spec(export_parser().parse_args(["s", "--mode", "streaming", "--output", "o"]), config)
    assert defaults.chunk_context is not None
    assert (defaults.chunk_context.chunk_frames, defaults.chunk_context.left_frames) == (8, 128)


def test_one_flipped_byte_is_refused_by_the_runtime(workshop, tmp_path: Path) -> None:
    for name in ("model.onnx", "selftest.npz", "report.html"):
        copy = shutil.copytree(workshop.bundle("shared", "offline"), tmp_path / name)
        data = bytearray((copy / name).read_bytes())
        data[len(data) // 2] ^= 1
        (copy / name).write_bytes(data)
        with pytest.raises(RdError, match=rf"{name}: sha256 \S+, the manifest says"):
            Encoder.load(copy)


def test_the_manifest_is_plain_json_without_machine_paths(workshop) -> None:
    for mode, name in (("offline", "shared"), ("streaming", "stream")):
        text = (workshop.bundle(name, mode, "int8") / "manifest.json").read_text()
        json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
        assert str(workshop.folder) not in text
        assert str(Path.home()) + "/" not in text


def test_a_run_says_what_it_makes_and_what_comes_next(workshop) -> None:
    bundle = workshop.bundle("shared", "offline")
    lines = workshop.runs[bundle].err.splitlines()
    head = lines[lines.index("rd-export") : lines.index("converting …")]
    facts = dict(line.strip().split(maxsplit=1) for line in head[1:] if not line.startswith("  checked on"))
    assert facts["target"] == "onnx, offline"
    assert facts["precision"] == "fp32"
    assert facts["layers"] == "heads of 1, 2, 3, 4"
    assert facts["output"] == str(bundle)
    assert lines[-1] == f"next: rd-latency {bundle}"
