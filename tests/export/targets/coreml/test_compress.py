"""Compressed packages of one streaming student: what is stored, that the proof holds, and what it costs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reuse_distill.export.capture.capture import Capture, capture
from reuse_distill.export.parity.reference import reference_features
from reuse_distill.export.proof import prove
from reuse_distill.export.proof.mil_graph import read_mil
from reuse_distill.export.quantise.calibration import CalibrationSet, feeds
from reuse_distill.export.quantise.quantisation_recipe import Recipe, of_precision
from reuse_distill.export.spec import ExportSpec
from reuse_distill.export.targets.coreml.compress import Activations, Weights, compressed, measure_ranges, quantisable
from reuse_distill.export.targets.coreml.coreml_modules import held_states
from reuse_distill.export.targets.coreml.coreml_sessions import EvaluatorSession, utterance
from reuse_distill.export.targets.coreml.evaluator import Evaluator
from reuse_distill.export.targets.coreml.mil_program import read_program
from reuse_distill.export.targets.coreml.package_convert import convert, save
from reuse_distill.runtime.equivalence.parity import difference
from reuse_distill.runtime.errors import RdError
from reuse_distill.student import Student

INT8 = of_precision("int8")
FLOAT_FRONT_END: Recipe = INT8.also_in_float(["front-end"])
LEAST = 64  # the students here are far smaller than what is worth compressing
WORD = {
    8: "constexpr_blockwise_shift_scale",
    6: "constexpr_lut_to_dense",
    4: "constexpr_lut_to_dense",
}


@dataclass(frozen=True)
class Plain:
    """An fp16 package with states that Core ML keeps: the hardest to convert again."""

    model: Any
    package: Path
    captured: Capture
    student: Student
    spec: ExportSpec


@pytest.fixture(scope="module")
def plain(
    coremltools: Any,
    tmp_path_factory: pytest.TempPathFactory,
    stream_student: Student,
    make_spec: Callable[..., ExportSpec],
) -> Plain:
    spec = make_spec("streaming", "fp16", batch=1, states="engine")
    captured = capture(stream_student, spec)
    package = tmp_path_factory.mktemp("plain") / "model.mlpackage"
    save(convert(captured, half=True, held=True, system="iOS18"), package)
    model = coremltools.models.MLModel(str(package), skip_model_load=True)
    return Plain(model, package, captured, stream_student, spec)


@pytest.fixture(scope="module")
def finish(
    plain: Plain, tmp_path_factory: pytest.TempPathFactory, clips: list[np.ndarray]
) -> Callable[..., tuple[Path, float]]:
    """Save a compressed model, prove it, and give its package with the mean frame cosine to torch."""

    def save_and_measure(weights: Weights, activations: Activations | None = None) -> tuple[Path, float]:
        package = tmp_path_factory.mktemp("compressed") / "model.mlpackage"
        save(compressed(plain.model, weights, activations), package)
        prove(read_mil(package), plain.student.config, exported=(1, 2), features="heads")
        session, states = EvaluatorSession(Evaluator.load(package)), held_states(plain.captured.states)
        found = utterance(session, plain.captured, states, clips[0], ["features"])[0]
        return package, difference(found, reference_features(plain.student, plain.spec, clips[0])).mean_cosine

    return save_and_measure


@pytest.mark.parametrize(("bits", "least_cosine"), [(8, 0.999), (6, 0.99), (4, 0.9)])
def test_weights(plain: Plain, finish: Callable[..., tuple[Path, float]], bits: int, least_cosine: float) -> None:
    package, cosine = finish(Weights(bits, LEAST))
    assert least_cosine < cosine < 0.9999999
    program = read_program(package)
    packed = program.of_kind(WORD[bits])
    linear = len(read_program(plain.package).of_kind("linear"))
    assert len(packed) >= linear and not {o.kind for o in program.operations} & {"quantize", "dequantize"}
    for operation in packed:
        key = "data" if bits == 8 else "indices"
        values = program.constants[operation.arguments[key][0]]
        assert values.dtype == (np.int8 if bits == 8 else np.uint8)
        if bits < 8:
            assert values.max() < 1 << bits
            assert program.constants[operation.arguments["lut"][0]].size == 1 << bits
    plain_bytes, small = (p / "Data/com.apple.CoreML/weights/weight.bin" for p in (plain.package, package))
    assert small.stat().st_size < plain_bytes.stat().st_size


def test_small_tensors_stay_in_float(finish: Callable[..., tuple[Path, float]]) -> None:
    packed = read_program(finish(Weights(8))[0]).of_kind("constexpr_blockwise_shift_scale")
    assert [operation.types[0].shape for operation in packed] == [(32, 8, 16)]  # the one tensor of 2048 values or more


@pytest.fixture(scope="module")
def calibration(clips: list[np.ndarray]) -> CalibrationSet:
    return CalibrationSet((clips[0],), 1, 1, "0" * 64, ())


def test_eight_bit_activations_and_weights(
    plain: Plain, finish: Callable[..., tuple[Path, float]], calibration: CalibrationSet
) -> None:
    inputs = quantisable(read_program(plain.package), FLOAT_FRONT_END, depth=max(plain.spec.layers))
    ranges = measure_ranges(plain.package, inputs.values(), feeds(plain.captured, plain.spec, calibration))
    package, cosine = finish(Weights(8, LEAST), Activations(inputs, ranges))
    program = read_program(package)
    producers = {name: o for o in program.operations for name in o.outputs}
    assert cosine > 0.99 and len(program.of_kind("quantize")) == len(set(inputs.values()))
    for operation in program.of_kind("linear"):
        back = producers[operation.arguments["x"][0]]
        there = producers[back.arguments["input"][0]]
        assert (back.kind, there.kind) == ("dequantize", "quantize")
        scale = float(program.constants[there.arguments["scale"][0]])
        source = next(a for o, a in inputs.items() if o == operation.outputs[0])
        assert scale == pytest.approx(max(map(abs, ranges[source])) / 127, rel=2e-3)
    for operation in program.of_kind("conv"):
        assert operation.arguments["x"][0] not in {o.outputs[0] for o in program.of_kind("dequantize")}


def test_which_convolutions_go_to_int8(plain: Plain) -> None:
    program = read_program(plain.package)
    convolutions = [o.outputs[0] for o in program.of_kind("conv")]
    depth = max(plain.spec.layers)
    chosen = set(quantisable(program, INT8, depth=depth))
    assert [name in chosen for name in convolutions] == [False, *[True] * 8, False]
    assert not set(quantisable(program, FLOAT_FRONT_END, depth=depth)) & set(convolutions)


def test_ranges_cover_every_feed(plain: Plain, calibration: CalibrationSet) -> None:
    name = read_program(plain.package).of_kind("linear")[0].arguments["x"][0]

    def loud() -> Iterator[dict[str, np.ndarray]]:
        for index, feed in enumerate(feeds(plain.captured, plain.spec, calibration)):
            yield {**feed, "samples": feed["samples"] * (3.0 if index == 0 else 0.1)}

    all_of_them = measure_ranges(plain.package, [name], loud())[name]
    each = [measure_ranges(plain.package, [name], [feed])[name] for feed in loud()]
    assert len(each) > 1 and all_of_them == (min(low for low, _ in each), max(high for _, high in each))
    with pytest.raises(RdError, match="no recording is long enough to calibrate with"):
        measure_ranges(plain.package, [name], [])


def test_coremltools_message_is_kept(plain: Plain, monkeypatch: pytest.MonkeyPatch) -> None:
    import reuse_distill.export.targets.coreml.compress as module

    def fail(*_: Any, **__: Any) -> None:
        raise ValueError("Invalid lut")

    monkeypatch.setattr(module, "_rewritten", fail)
    with pytest.raises(RdError, match="coremltools could not compress the model: Invalid lut"):
        compressed(plain.model, Weights(4))
