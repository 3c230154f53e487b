"""Bundles of every mode: parity by the evaluator, states carried by name, what manifest and package say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reuse_distill.export.capture.capture import capture
from reuse_distill.export.checkpoint_source import Source
from reuse_distill.export.export_command import read_spec
from reuse_distill.export.export_options import export_parser
from reuse_distill.export.parity.reference import reference_features
from reuse_distill.export.pipeline import CheckAudio, export_bundle
from reuse_distill.export.spec import ExportSpec, Streaming
from reuse_distill.export.targets import check_possible, find_target
from reuse_distill.export.targets.coreml.coreml_sessions import PredictionSession, advanced, can_predict, steps
from reuse_distill.export.targets.coreml.coreml_target import EVALUATED, CoremlTarget, system
from reuse_distill.export.targets.coreml.evaluator import Evaluator
from reuse_distill.export.targets.coreml.mil_program import read_program, read_specification
from reuse_distill.runtime.bundle_format.bundle import read_bundle
from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.geometry import frames_for
from reuse_distill.student import Student

FP32, FP16 = 1e-4, 5e-3


@pytest.mark.parametrize(
    ("mode", "precision", "states"),
    [
        ("offline", "fp32", "tensors"),
        ("window", "fp16", "tensors"),
        ("streaming", "fp32", "tensors"),
        ("streaming", "fp16", "engine"),
    ],
)
def test_parity_of_every_mode(export_one: Callable[..., Any], mode: str, precision: str, states: str) -> None:
    done = export_one(mode, precision, states=states)
    parity, largest = done.manifest.parity, 0.0
    for row in parity["clips"]:
        largest = max(largest, row["max_abs"])
        assert row["reference_rms"] > 0.05  # not silence equal to silence
    assert parity["measured"]["max_abs"] == largest <= parity["bound"]["max_abs"]
    assert parity["bound"]["max_abs"] <= (FP32 if precision == "fp32" else FP16 * 10)
    assert [row["layer"] for row in parity["layers"]] == [1, 2]
    assert min(row["mean_cosine"] for row in parity["layers"]) > 0.9999
    if not can_predict():
        assert parity["by"] == EVALUATED
    assert read_bundle(done.folder).artifact.is_dir()


@pytest.mark.parametrize(("precision", "states"), [("fp32", "tensors"), ("fp16", "engine")])
def test_steps_with_states_by_name_equal_the_offline_forward(
    export_one: Callable[..., Any], clips: list[np.ndarray], precision: str, states: str
) -> None:
    """A client written from the manifest alone, over every length of tail."""
    done = export_one("streaming", precision, states=states)
    manifest, evaluator = done.manifest, Evaluator.load(done.artifact)
    carried = [state for state in manifest.states if state.input != state.output]
    assert bool(carried) == (states == "tensors")
    for cut in (len(clips[0]), len(clips[0]) - 320, len(clips[0]) - 640, len(clips[0]) - 960):
        wave = clips[0][:cut]
        held = {s.input: np.zeros(s.shape, s.dtype) for s in carried}
        inside, chunks = evaluator.new_states(), []
        for samples, fresh in steps(
            wave, chunk=manifest.geometry.chunk_frames, ahead=manifest.geometry.lookahead_frames
        ):
            found = evaluator.run({"samples": samples, "fresh": fresh, **held}, states=inside)
            held = {s.input: advanced(s, held[s.input], found[s.output]) for s in carried}
            chunks.append(found["features"][0])
        ahead = manifest.geometry.lookahead_frames
        features = np.concatenate(chunks, axis=1)[:, ahead : ahead + frames_for(cut)]
        wanted = reference_features(done.student, done.spec, wave)
        bound = FP32 if precision == "fp32" else FP16 * np.abs(wanted).max()
        assert features.shape == wanted.shape and np.abs(features - wanted).max() <= bound


def test_forgotten_states_are_noticed(export_one: Callable[..., Any], clips: list[np.ndarray]) -> None:
    """The check above can fail: without the states the second chunk is wrong."""
    done = export_one("streaming", "fp16", states="engine")
    evaluator = Evaluator.load(done.artifact)
    chunks = [
        evaluator.run({"samples": s, "fresh": f}, states=evaluator.new_states())["features"][0]
        for s, f in steps(clips[0], chunk=4, ahead=4)
    ]
    features = np.concatenate(chunks, axis=1)[:, 4 : 4 + frames_for(len(clips[0]))]
    wanted = reference_features(done.student, done.spec, clips[0])
    assert np.abs(features - wanted).max() > 0.1 * np.abs(wanted).max()


def test_offline_takes_any_length(export_one: Callable[..., Any], clips: list[np.ndarray]) -> None:
    done = export_one("offline", "fp32")
    evaluator = Evaluator.load(done.artifact)
    for length in (400, 719, 720, 1040, 5000, len(clips[0])):
        found = evaluator.run({"wave": clips[0][None, :length]})["features"]
        wanted = reference_features(done.student, done.spec, clips[0][:length])
        assert np.abs(found[0] - wanted).max() <= FP32
    allowed = read_specification(done.artifact).description.input[0].type.multiArrayType.shapeRange.sizeRanges
    assert (allowed[1].lowerBound, allowed[1].upperBound) == (400, 60 * 16_000)


@pytest.mark.parametrize(
    ("mode", "precision", "states"),
    [("offline", "fp32", "tensors"), ("window", "fp16", "tensors"), ("streaming", "fp16", "engine")],
)
def test_layout_suits_the_neural_engine(export_one: Callable[..., Any], mode: str, precision: str, states: str) -> None:
    program = read_program(export_one(mode, precision, states=states).artifact)
    assert not program.of_kind("pad")
    assert max(len(kind.shape) for operation in program.operations for kind in operation.types) <= 4
    for operation in program.of_kind("conv"):
        assert program.constants[operation.arguments["pad_type"][0]] == "valid"


def test_the_manifest_tells_a_client_all(export_one: Callable[..., Any]) -> None:
    tensors = export_one("streaming", "fp32").manifest
    engine = export_one("streaming", "fp16", states="engine").manifest
    assert tensors.device == {"minimum_system": "iOS16", "states": "tensors"}
    assert engine.device == {"minimum_system": "iOS18", "states": "engine"}
    assert {state.update for state in tensors.states} == {"replace", "append"}
    assert all(state.input == state.output and state.update == "replace" for state in engine.states)
    assert tensors.inputs[0].shape[0] == 1 and {state.shape[0] for state in tensors.states} == {1}
    assert "coremltools" in engine.tools and engine.quantisation["weights"] == "float16"


def test_ports_of_the_package_are_those_of_the_manifest(export_one: Callable[..., Any]) -> None:
    for precision, states in (("fp32", "tensors"), ("fp16", "engine")):
        done = export_one("streaming", precision, states=states)
        description = read_specification(done.artifact).description
        manifest = done.manifest
        inputs = [t.name for t in manifest.inputs] + [s.input for s in manifest.states if states == "tensors"]
        outputs = [t.name for t in manifest.outputs] + [s.output for s in manifest.states if states == "tensors"]
        assert [port.name for port in description.input] == inputs
        assert [port.name for port in description.output] == outputs
        assert [port.name for port in description.state] == [s.name for s in manifest.states if states == "engine"]
        program = read_program(done.artifact)
        for state in manifest.states:
            kind = program.inputs.get(state.input) or program.states[state.input]
            assert (kind.dtype, kind.shape) == (state.dtype, tuple(state.shape))


def test_metadata_and_nothing_of_the_machine(export_one: Callable[..., Any], tmp_path: Path) -> None:
    done = export_one("streaming", "fp32")
    description = read_specification(done.artifact).description
    assert "rd-export" in description.metadata.author and "manifest.json" in description.metadata.license
    assert all(port.shortDescription for port in (*description.input, *description.output))
    assert description.metadata.userDefined["reuse-distill.chunk_frames"] == "4"
    here = str(Path(__file__).resolve().parents[4]).encode()
    for file in done.folder.rglob("*"):
        assert file.is_dir() or here not in file.read_bytes(), file


def test_a_package_without_a_model_is_refused(tmp_path: Path, coremltools: Any) -> None:
    with pytest.raises(RdError, match="not a Core ML package"):
        read_program(tmp_path)
    file = tmp_path / "Data" / "com.apple.CoreML" / "model.mlmodel"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"\xff\xff\xff not a model")
    with pytest.raises(RdError, match="not a Core ML model"):
        read_program(tmp_path)


def test_what_is_not_possible_is_said(make_spec: Callable[..., ExportSpec]) -> None:
    target = find_target("coreml")
    with pytest.raises(RdError, match="--precision bf16 is not possible for coreml"):
        check_possible(target, make_spec("offline", "bf16"))
    with pytest.raises(RdError, match="keeps its states in half precision"):
        system(make_spec("streaming", "fp32", states="engine"))
    wanted = {"fp16": "iOS16", "int8": "iOS17", "palette-4": "iOS16"}
    assert {p: system(make_spec("streaming", p)) for p in wanted} == wanted
    assert system(make_spec("streaming", "fp16", states="engine")) == "iOS18"


def test_a_step_has_one_stream_unless_asked_for(make_spec: Callable[..., ExportSpec]) -> None:
    target = CoremlTarget()
    assert target.adapt(make_spec("streaming", "fp16")).mode.batch == 1
    assert target.adapt(make_spec("streaming", "fp16", batch=3)).mode.batch == 3
    offline = make_spec("offline", "fp16")
    assert target.adapt(offline) == offline


def test_a_failed_conversion_keeps_the_converters_message(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    coremltools: Any,
    stream_student: Student,
    make_spec: Callable[..., ExportSpec],
    clips: list[np.ndarray],
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ValueError("op 'spline' is not implemented\nand more")

    monkeypatch.setattr(coremltools, "convert", fail)
    source = Source(stream_student, "small", "0" * 64, {})
    with pytest.raises(RdError, match=r"coremltools could not convert the student: op 'spline' is not implemented\n"):
        export_bundle(
            source, make_spec("streaming", "fp16"), tmp_path / "b", audio=CheckAudio(None, clips, "synthetic")
        )
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    from reuse_distill.export.targets.vendor_packages import coremltools as load

    monkeypatch.setitem(__import__("sys").modules, "coremltools", None)
    with pytest.raises(RdError, match="coremltools is not installed") as caught:
        load()
    assert "reuse-distill[export,coreml]" in (caught.value.hint or "")


@pytest.mark.skipif(can_predict(), reason="this is a Mac: predictions run")
def test_predictions_need_a_mac(tmp_path: Path) -> None:
    with pytest.raises(RdError, match="predicts on a Mac only"):
        PredictionSession(tmp_path / "model.mlpackage")


@pytest.mark.device
@pytest.mark.skipif(not can_predict(), reason="Core ML predicts on a Mac only")
@pytest.mark.parametrize(
    ("mode", "precision", "states"), [("offline", "fp32", "tensors"), ("streaming", "fp16", "engine")]
)
def test_the_evaluator_agrees_with_core_ml(
    export_one: Callable[..., Any], with_mode: Any, clips: list[np.ndarray], mode: str, precision: str, states: str
) -> None:
    from reuse_distill.export.targets.coreml.coreml_sessions import EvaluatorSession, utterance

    done = export_one(mode, precision, states=states)
    spec = with_mode(done.spec, batch=1) if mode == "streaming" else done.spec
    captured = capture(done.student, spec)
    args = (captured, done.manifest.states, clips[0], ["features"])
    predicted = utterance(PredictionSession(done.artifact), *args)[0]
    evaluated = utterance(EvaluatorSession(Evaluator.load(done.artifact)), *args)[0]
    assert np.abs(predicted - evaluated).max() <= (FP32 if precision == "fp32" else FP16) * np.abs(evaluated).max() * 2


def test_the_command_line_takes_what_core_ml_has(offline_student: Student, stream_student: Student) -> None:
    def spec(student: Student, *options: str) -> ExportSpec:
        given = ["checkpoint", "--target", "coreml", "--output", "out", *options]
        return read_spec(export_parser().parse_args(given), student.config)

    streaming = ("--mode", "streaming", "--states", "engine", "--precision", "palette-4", "--min-cosine", "0.9")
    mode = spec(stream_student, *streaming).mode
    assert isinstance(mode, Streaming) and mode.states == "engine"
    with pytest.raises(RdError, match="--states engine is for --target coreml or openvino --mode streaming"):
        spec(offline_student, "--states", "engine")
    with pytest.raises(RdError, match="--min-cosine is for --precision int8, this export is fp16"):
        spec(offline_student, "--precision", "fp16", "--min-cosine", "0.9")
