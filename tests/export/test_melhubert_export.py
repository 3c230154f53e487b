"""MelHuBERT through ``rd-export``: proven, and with the hidden states that the study's own code computed."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import soundfile
from reuse_distill.export.checkpoint_source import read_source
from reuse_distill.export.proof import prove
from reuse_distill.export.proof.openvino_graph import read_ir
from reuse_distill.export.quantise.blocks import LOG_MEL, node_blocks
from reuse_distill.export.quantise.quantisation_recipe import block_names
from reuse_distill.export.rd_export import main as rd_export
from reuse_distill.export.spec import ExportSpec, Offline
from reuse_distill.export.targets.onnx.drift_trials import block_macs_of
from reuse_distill.runtime import Encoder
from reuse_distill.runtime.errors import RdError

BOUND = 1e-4
SPEECH = str(Path(__file__).resolve().parents[2] / "demo/speech")
INT8 = ("--precision", "int8", "--calibration", SPEECH)


@pytest.fixture(scope="module")
def checkpoint(golden_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The plain checkpoint of frames of 20 ms with its statistics beside it."""
    golden, folder = golden_dir / "melhubert_tiny", tmp_path_factory.mktemp("melhubert")
    shutil.copy(golden / "melhubert_tiny_20ms.ckpt", folder / "m.ckpt")
    with np.load(golden / "expected_melhubert.npz", allow_pickle=False) as stored:
        np.save(folder / "mean-std.npy", np.stack([stored["mean"], stored["std"]]))
    return folder / "m.ckpt"


@pytest.fixture(scope="module")
def exported(checkpoint: Path) -> Encoder:
    """All layers in ONNX."""
    assert rd_export([str(checkpoint), "--layers", "all", "--output", str(checkpoint.parent / "bundle")]) == 0
    return Encoder.load(checkpoint.parent / "bundle")


def test_proof_and_parity(exported: Encoder) -> None:
    proof = exported.manifest.graph_proof
    assert proof is not None and (proof.softmaxes, proof.computed_maps, proof.reused) == (3, 3, ())
    layers = exported.manifest.parity["layers"]
    assert [row["layer"] for row in layers] == [1, 2, 3] and max(row["max_abs"] for row in layers) < BOUND


def test_features_are_the_study_s(exported: Encoder, golden_dir: Path) -> None:
    wave = soundfile.read(golden_dir / "inputs/w0.wav", dtype="float32")[0]
    with np.load(golden_dir / "melhubert_tiny/expected_melhubert.npz", allow_pickle=False) as stored:
        expected = [value for name, value in sorted(stored.items()) if name.startswith("w0_hidden")]
    ours = exported.extract(wave)
    assert len(expected) >= 3
    for own, theirs in zip(ours, expected[-3:], strict=True):
        assert np.abs(own - theirs.squeeze()[: len(own)]).max() < BOUND


def test_blocks_of_a_filter_bank(exported: Encoder, checkpoint: Path) -> None:
    """No norm and no convolution stands between the log-mel and the encoder; what is searched is in the graph."""
    student = read_source(checkpoint, None).student
    blocks = node_blocks(onnx.load(str(exported.bundle.artifact)), depth=3)
    known = {LOG_MEL, *block_names(student.config)} - {"front-end"}
    assert set(blocks.values()) - {"heads"} == known  # what puts the layers together counts as heads
    spec = ExportSpec("onnx", Offline(), "int8", (1, 2, 3), "hidden")
    macs = block_macs_of(student, spec)
    assert set(macs) == set(block_names(student.config)) - {"front-end", "position"}
    assert macs["layer.1.ffn"] == 50 * student.config.layer_shapes[0].weights("fc1", "fc2")


def test_attention_in_one_operation_is_proven(exported: Encoder, checkpoint: Path, tmp_path: Path) -> None:
    """OpenVINO's converter joins the products and the softmax of a map that nobody else uses."""
    openvino = pytest.importorskip("openvino")
    model = openvino.convert_model(str(exported.bundle.artifact))
    kinds = [operation.get_type_name() for operation in model.get_ordered_ops()]
    assert kinds.count("ScaledDotProductAttention") == 3 and "Softmax" not in kinds
    openvino.save_model(model, str(tmp_path / "model.xml"), compress_to_fp16=False)
    config = read_source(checkpoint, None).student.config
    proof = prove(read_ir(tmp_path / "model.xml"), config, exported=(1, 2, 3), features="hidden")
    assert (proof.computed_maps, proof.softmaxes) == (3, 3)
    with pytest.raises(RdError, match="not the one of layer 1"):
        reusing = dataclasses.replace(config, reuse_layers=(2,))
        prove(read_ir(tmp_path / "model.xml"), reusing, exported=(1, 2, 3), features="hidden")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "package", "least_cosine"),
    [
        (("--mode", "window"), "onnx", 0.99999),
        (("--precision", "fp16"), "onnx", 0.9999),
        (("--precision", "int8-dynamic"), "onnx", 0.99),
        (INT8, "onnx", 0.99),
        ((*INT8, "--mode", "window"), "onnx", 0.99),
        (("--target", "ort"), "onnx", 0.99999),
        (("--target", "openvino"), "openvino", 0.99999),
        (("--target", "openvino", *INT8), "nncf", 0.99),
        (("--target", "litert"), "litert_torch", 0.99999),
        (("--target", "litert", *INT8), "ai_edge_quantizer", 0.99),
        (("--target", "executorch"), "executorch", 0.99999),
        (("--target", "executorch", "--mode", "window"), "executorch", 0.99999),
        (("--target", "executorch", *INT8), "executorch", 0.99),
        (("--target", "coreml"), "coremltools", 0.99999),
        (("--target", "coreml", *INT8), "coremltools", 0.99),
        (("--target", "tensorrt", "--precision", "fp16"), "onnx", 0.9999),
        (("--target", "tensorrt", *INT8), "onnx", 0.99),
    ],
)
def test_other_targets_and_precisions(
    words: tuple[str, ...], package: str, least_cosine: float, checkpoint: Path, tmp_path: Path
) -> None:
    pytest.importorskip(package)
    from reuse_distill.runtime.bundle_format.bundle import read_bundle

    output = tmp_path / "bundle"
    assert rd_export([str(checkpoint), "--layers", "all", *words, "--output", str(output)]) in (0, 5)
    manifest = read_bundle(output).manifest
    assert manifest.graph_proof is not None and manifest.graph_proof.computed_maps == 3
    parity = manifest.parity.get("prepared", manifest.parity)
    assert parity["measured"]["mean_cosine"] >= least_cosine


def test_a_stream_is_refused(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [str(checkpoint), "--mode", "streaming", "--output", str(tmp_path / "bundle")]
    assert rd_export(words) == 2
    assert "this encoder cannot stream" in capsys.readouterr().err and not (tmp_path / "bundle").exists()
