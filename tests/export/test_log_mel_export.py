"""Students with a log-mel front end as ONNX: the samples and the log-mel stay in float, everything behind follows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from reuse_distill.export.capture.capture import Capture, capture
from reuse_distill.export.quantise.blocks import log_mel_nodes, node_blocks
from reuse_distill.export.quantise.quantisation_recipe import block_names
from reuse_distill.export.quantise.search import block_macs
from reuse_distill.export.spec import ExportSpec, Streaming
from reuse_distill.export.targets.onnx.cast_fp16 import cast_to_fp16
from reuse_distill.export.targets.onnx.onnx_target import convert
from reuse_distill.export.targets.onnx.static_int8 import excluded_nodes
from reuse_distill.runtime.bundle_format.manifest import retyped
from reuse_distill.runtime.geometry import samples_for
from reuse_distill.student import ChunkContext, Student, StudentConfig, preset
from reuse_distill.student.config import mel_stack
from reuse_distill.student.cost import macs

CONFIG: StudentConfig = preset(
    "pocket-stream",
    width=32,
    ffn_width=48,
    heads=2,
    layers=2,
    conv_layers=mel_stack(16, 32),
    position_groups=4,
    position_kernel=8,
    reuse_layers=(2,),
    head_width=None,
)


@pytest.fixture(name="step", scope="module")
def _step(tmp_path_factory) -> tuple[Capture, Path]:
    """The captured step of a small student, and its plain ONNX file."""
    torch.manual_seed(0)
    spec = ExportSpec("onnx", Streaming(ChunkContext(4, 8)), "fp32", (2,), "hidden")
    captured = capture(Student(CONFIG).eval(), spec)
    file = tmp_path_factory.mktemp("mel") / "plain.onnx"
    convert(captured, file)
    return captured, file


def feeds(captured: Capture) -> list[np.ndarray]:
    """Inputs of a step in the middle of a stream."""
    generator = np.random.default_rng(3)
    example = [generator.standard_normal(tuple(t.shape)).astype(np.float32) for t in captured.example]
    example[0] *= 0.05
    example[-1] *= 0.05
    for index, name in enumerate(captured.input_names):
        if name in ("fresh", "position_valid", "valid"):
            example[index] = np.ones_like(example[index])
    return example


def run(file: Path, captured: Capture, example: list[np.ndarray]) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    halves = {p.name for p in session.get_inputs() if p.type == "tensor(float16)"}
    pairs = zip(captured.input_names, example, strict=True)
    return session.run(None, {name: x.astype(np.float16) if name in halves else x for name, x in pairs})


def test_the_step_is_torchs(step) -> None:
    """In float32: no converter drops the floor that keeps the logarithm of silence finite."""
    captured, file = step
    example = feeds(captured)
    example[0][0] = 0
    example[-1][0] = 0
    with torch.no_grad():
        expected = captured.module(*(torch.from_numpy(x) for x in example))
    for ours, theirs in zip(run(file, captured, example), expected, strict=True):
        assert np.abs(ours - theirs.numpy()).max() < 1e-4


def test_the_state_of_samples_is_the_last_one(step) -> None:
    state = step[0].states[-1]
    assert (state.name, state.shape, state.role, state.update) == ("audio", ("B", 640), "audio", "replace")


def test_blocks(step) -> None:
    model = onnx.load(str(step[1]))
    blocks = node_blocks(model, 2)
    convolutions = [blocks[node.name] for node in model.graph.node if node.op_type == "Conv"]
    assert convolutions == ["front-end.0"] * 3 + ["front-end.1", "front-end.2", "position"]
    assert block_names(CONFIG)[:4] == ("front-end", "front-end.1", "front-end.2", "position")


def test_only_the_log_mel_keeps_its_convolutions_in_float(step) -> None:
    model = onnx.load(str(step[1]))
    excluded = excluded_nodes(model)
    convolutions = [node.name for node in model.graph.node if node.op_type == "Conv"]
    assert [name in excluded for name in convolutions] == [True, True, True, False, False, True]
    assert {excluded[name] for name in convolutions[:3]} == {"log-mel: the power of a bin spans ten decades"}
    assert len(log_mel_nodes(model)) < 16
    assert log_mel_nodes(onnx.ModelProto()) == frozenset()


def test_half_precision_leaves_samples_and_log_mel_in_float(step, tmp_path) -> None:
    captured, file = step
    done = cast_to_fp16(file, tmp_path / "half.onnx", captured)
    model = onnx.load(str(tmp_path / "half.onnx"))
    kinds = {v.name: v.type.tensor_type.elem_type for v in (*model.graph.input, *model.graph.output)}
    half, full = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
    assert [kinds[name] for name in ("samples", "audio", "audio_new", "position", "values_02_new")] == [full] * 3 + [
        half
    ] * 2
    assert [state.dtype for state in retyped(captured.states, "float16")][-2:] == ["float16", "float32"]
    assert any("log-mel" in row["why"] for row in done["in_float"])
    example = feeds(captured)
    plain, cast = (run(f, captured, example) for f in (file, tmp_path / "half.onnx"))
    assert np.array_equal(plain[-1], cast[-1]), "samples are moved on as they are"
    assert np.abs(plain[0] - cast[0]).max() < 0.02 < np.abs(plain[0]).max()


def test_costs_of_blocks() -> None:
    parts = block_macs(
        CONFIG.conv_layers, mel_bins=80, width=32, layer_weights=[(4096, 3072)] * 2, head_weights=0, heads=0
    )
    assert (parts["front-end.1"], parts["front-end.2"]) == (100 * 80 * 16 * 3, 50 * 16 * 32 * 3)
    assert "input" not in parts
    frames = 50
    assert macs(CONFIG, frames)["mel"] == ((samples_for(frames) + 640 - 400) // 160 + 1) * (2 * 199 * 400 + 199 * 80)
