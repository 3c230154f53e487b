"""Artifacts of full-size shapes with random weights: speed and memory depend on the shape, not on what it knows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from reuse_distill.export.capture.capture import capture
from reuse_distill.export.checkpoint_source import Source
from reuse_distill.export.parity.reference import synthetic_clips
from reuse_distill.export.pipeline import CheckAudio, export_bundle
from reuse_distill.export.quantise.calibration import feeds, read_calibration
from reuse_distill.export.spec import ExportSpec, Mode, Offline, Streaming
from reuse_distill.export.targets.onnx.onnx_target import convert
from reuse_distill.export.targets.onnx.qdq import measure_ranges
from reuse_distill.export.targets.onnx.split_gelu import split_widest_gelu
from reuse_distill.export.targets.onnx.static_int8 import OPERATORS, quantise_static
from reuse_distill.student import ChunkContext, Student, preset

SPEECH = Path(__file__).resolve().parents[1] / "demo" / "speech" / "manifest.csv"


def student_of(name: str, **changes: Any) -> Student:
    """The preset with random weights, the same ones every time; ``changes`` of its fields."""
    torch.manual_seed(0)
    return Student(preset(name, **changes)).eval()


def source_of(student: Student, name: str) -> Source:
    return Source(student, name, "0" * 64, {"weights": "random"})


def last_layer(student: Student, mode: Mode, precision: str) -> ExportSpec:
    return ExportSpec("onnx", mode, precision, (student.config.layers,), "heads")


def plain_onnx(student: Student, file: Path, *, context: ChunkContext | None = None) -> Path:
    """The fp32 ONNX of the last head: the step where a context is given, else the whole utterance."""
    if not file.exists():
        spec = last_layer(student, Streaming(context) if context else Offline(), "fp32")
        convert(capture(student, spec), file)
    return file


def int8_onnx(student: Student, plain: Path, file: Path, *, front_end: str = "int8") -> Path:
    """The static int8 of ``plain``, calibrated on the repository's synthetic speech."""
    if not file.exists():
        spec = last_layer(student, Offline(), "int8")
        calibration = read_calibration(SPEECH, accept_narrow=True)
        rows = feeds(capture(student, spec), spec, calibration)
        recipe = spec.recipe_of(front_end)
        ranges = measure_ranges(plain, rows, recipe, OPERATORS)
        quantise_static(plain, file, ranges, recipe, depth=student.config.layers)
        split_widest_gelu(file)
    return file


def bundle_of(student: Student, folder: Path, spec: ExportSpec) -> Path:
    """A whole bundle, verified. Random weights are no student: int8 parity is measured, and not bounded."""
    if not folder.exists():
        calibration = read_calibration(SPEECH, accept_narrow=True) if spec.precision == "int8" else None
        audio = CheckAudio(calibration, synthetic_clips()[:2], "seeded speech-like signals")
        export_bundle(source_of(student, folder.name), spec, folder, audio=audio, min_cosine=-1.0)
    return folder


def hubert_base_onnx(file: Path, *, layers: int = 12) -> Path:
    """HuBERT Base (or, of two layers, DistilHuBERT) as transformers has it, random weights, exported plainly."""
    if file.exists():
        return file
    from torch.export import Dim
    from transformers import HubertConfig, HubertModel

    torch.manual_seed(0)
    model = HubertModel(HubertConfig(attn_implementation="eager", num_hidden_layers=layers)).eval()
    shapes = ({1: Dim("T", min=1000, max=16_000 * 600)},)
    last_hidden_onnx(model, torch.zeros(1, 32_000), file, name="wave", dynamic_shapes=(shapes,))
    return file


class LastHidden(torch.nn.Module):
    """What a transformers model gives last. The input is positional: models name it differently."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return self.model(*inputs).last_hidden_state


@torch.no_grad()
def last_hidden_onnx(
    model: torch.nn.Module, example: torch.Tensor, file: Path, *, name: str, dynamic_shapes: Any = None
) -> None:
    """``model`` with the input ``name`` and its last hidden state as ``features``, exported plainly."""
    import onnx

    program = torch.onnx.export(
        LastHidden(model),
        (example,),
        dynamo=True,
        opset_version=20,
        input_names=[name],
        output_names=["features"],
        dynamic_shapes=dynamic_shapes,
    )
    onnx.save(program.model_proto, str(file))
