"""Core ML's delegate: a program that is one package, proven and compared from the finished file; Qualcomm's refused."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reuse_distill.export.capture.capture import capture
from reuse_distill.export.parity.reference import reference_features
from reuse_distill.export.proof import prove
from reuse_distill.export.targets.coreml.coreml_sessions import utterance
from reuse_distill.export.targets.coreml.evaluator import Evaluator
from reuse_distill.export.targets.executorch.coreml_payload import Package, read_package
from reuse_distill.export.targets.executorch.delegates import check_delegate, load
from reuse_distill.export.targets.executorch.evaluated import PackageSession, check_lengths, check_sums, whole_package
from reuse_distill.export.targets.executorch.executorch_target import EVALUATED
from reuse_distill.export.targets.executorch.pte_program import COREML, PteOperation, deserialised, payload
from reuse_distill.runtime import Encoder
from reuse_distill.runtime.engines.executorch_backend import check_delegate as check_registered
from reuse_distill.runtime.errors import RdError


@pytest.fixture(scope="module")
def made(export_one: Callable[..., Any]) -> Any:
    pytest.importorskip("coremltools", reason="coremltools is not installed (the extra coreml)")
    return export_one("streaming", "fp32", delegate="coreml")


def test_parity_and_proof_of_the_finished_program(made: Any) -> None:
    manifest = made.manifest
    parity, proof = manifest.parity, manifest.graph_proof
    assert manifest.status == "built" and parity["by"] == EVALUATED
    assert 0 < parity["measured"]["max_abs"] <= parity["bound"]["max_abs"] == 1e-4
    assert all(row["reference_rms"] > 0.05 for row in parity["clips"])
    assert [row["layer"] for row in parity["layers"]] == [1, 2]
    assert min(row["mean_cosine"] for row in parity["layers"]) > 0.9999
    assert (proof.layers, proof.computed_maps, proof.softmaxes, proof.checked_file) == (2, 1, 1, "model.pte")
    said = manifest.device
    assert (said["delegate"], said["minimum_system"], said["delegate_calls"]) == ("coreml", "iOS16", 1)
    assert set(said["placement"]) == {"coreml"} and said["portable_operations"] == {}
    assert {state.dtype for state in manifest.states} == {"float32"} and "coremltools" in manifest.tools


def test_nothing_of_the_machine_is_in_the_program(made: Any) -> None:
    """The delegate packs notes for debugging: they name layers of the student, and no folder."""
    content = made.artifact.read_bytes()
    for folder in (Path(__file__).resolve().parents[4], Path.home(), Path(tempfile.gettempdir())):
        assert f"{folder}/".encode() not in content


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "precision"), [("offline", "fp32"), ("window", "fp32"), ("streaming", "fp16")])
def test_every_mode_and_precision(export_one: Callable[..., Any], mode: str, precision: str) -> None:
    pytest.importorskip("coremltools", reason="coremltools is not installed (the extra coreml)")
    manifest = export_one(mode, precision, delegate="coreml").manifest
    parity = manifest.parity
    assert 0 < parity["measured"]["max_abs"] <= parity["bound"]["max_abs"] <= (1e-4 if precision == "fp32" else 0.05)
    assert (manifest.graph_proof.softmaxes, manifest.device["delegate_calls"], parity["by"]) == (1, 1, EVALUATED)
    assert manifest.quantisation.get("weights") == ("float16" if precision == "fp16" else None)


@pytest.mark.slow
def test_an_offline_package_takes_one_frame_and_all_seconds(export_one: Callable[..., Any]) -> None:
    pytest.importorskip("coremltools", reason="coremltools is not installed (the extra coreml)")
    made = export_one("offline", "fp32", delegate="coreml")
    assert whole_package(made.artifact)[0].ranges == {"wave": ((1, 1), (400, made.manifest.device["longest_samples"]))}


def test_a_length_that_core_ml_would_refuse_is_refused_before(made: Any) -> None:
    package = whole_package(made.artifact)[0]
    assert package.ranges == {}
    first = package.inputs[0]
    check_lengths(dataclasses.replace(package, ranges={first: ((1, 1), (400, 64_000))}), 400, 64_000)
    for ranges in ({first: ((1, 1), (720, 64_000))}, {first: ((1, 1), (400, 63_999))}, {}):
        with pytest.raises(RdError, match=r"package takes \d+ to \d+ samples, 400 to 64000 are needed"):
            check_lengths(dataclasses.replace(package, ranges=ranges), 400, 64_000)


@pytest.mark.slow
def test_sums_over_time_in_half_precision_are_refused(export_one: Callable[..., Any]) -> None:
    pytest.importorskip("coremltools", reason="coremltools is not installed (the extra coreml)")
    with pytest.raises(RdError, match="instance_norm over all time overflows half precision"):
        export_one("offline", "fp16", delegate="coreml")


def test_the_reader_finds_what_executorchs_own_unpacking_finds(made: Any, tmp_path: Path) -> None:
    program, plan = deserialised(made.artifact)
    blob = payload(program, plan.delegates[0])
    assert load("executorch.backends.apple.coreml.executorchcoreml").unflatten_directory_contents(blob, str(tmp_path))
    said = json.loads(next(tmp_path.rglob("metadata.json")).read_text())
    found = read_package(blob)
    assert list(found.inputs) == said["inputNames"] and list(found.outputs) == said["outputNames"]
    assert sum(o.kind == "softmax" for o in found.program.operations) == 1


def test_a_damaged_payload_is_refused(made: Any) -> None:
    program, plan = deserialised(made.artifact)
    blob = payload(program, plan.delegates[0])
    with pytest.raises(RdError, match="there is no tree of names at its end"):
        read_package(blob[:-1])
    with pytest.raises(RdError, match=r"there is no metadata\.json in it"):
        read_package(blob.replace(b"nosj.atadatem", b"nosj.atadate/"))
    with pytest.raises(RdError, match="its metadata does not name its ports"):
        read_package(blob[-5000:])


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"nodes": []}, "its tree of names is empty"),
        ({"nodes": [{"children": {}}]}, r"there is no metadata\.json in it"),
        ({"nodes": [{"dataRegion": {"offset": 0, "size": 10**9}}, {"children": {"metadata.json": 0}}]}, "lies outside"),
        ({"nodes": [{"dataRegion": {"offset": -9, "size": 4}}, {"children": {"metadata.json": 0}}]}, "lies outside"),
        ({"nodes": [{"children": {"metadata.json": 7}}]}, r"there is no metadata\.json in it"),
    ],
)
def test_a_tree_of_names_that_lies_is_refused(tree: dict[str, Any], message: str) -> None:
    with pytest.raises(RdError, match=message):
        read_package(b"{}" + json.dumps(tree).encode()[::-1])


def test_other_weights_do_not_keep_the_bound(made: Any, with_mode: Any, clips: list[np.ndarray]) -> None:
    """The comparison reads the weights of the finished file: one of them made larger is seen."""
    package, _, _ = whole_package(made.artifact)
    name = package.program.of_kind("linear")[0].arguments["weight"][0]
    captured = capture(made.student, with_mode(made.spec, batch=1))
    session = PackageSession(made.artifact, captured)
    right = utterance(session, captured, captured.states, clips[0], ["features"])[0]
    altered = {**package.program.constants, name: 2 * package.program.constants[name]}
    session.evaluator = Evaluator(dataclasses.replace(package.program, constants=altered))
    wrong = utterance(session, captured, captured.states, clips[0], ["features"])[0]
    wanted, bound = reference_features(made.student, made.spec, clips[0]), made.manifest.parity["bound"]["max_abs"]
    assert np.abs(right - wanted).max() <= bound < np.abs(wrong - wanted).max()


def test_a_query_put_back_into_a_reusing_layer_is_caught(made: Any, value_product, altered) -> None:
    program, at = value_product(made)
    target = program.operations[at]
    weight = next(name for name, constant in program.constants.items() if constant.elements == 32**2)
    query = PteOperation("query", "linear", COREML, (target.inputs[1], weight), ("put back",))
    target = dataclasses.replace(target, inputs=(*target.inputs, "put back"))
    with pytest.raises(RdError, match=r"layer 2: \d+ projection weights lead to its value product, not \d+"):
        prove(altered(program, at, query, target), made.student.config, exported=(1, 2), features="heads")


def test_a_map_computed_again_is_caught(made: Any, value_product, altered) -> None:
    program, at = value_product(made)
    target = program.operations[at]
    again = PteOperation("again", "softmax", COREML, (target.inputs[0],), ("map again",))
    target = dataclasses.replace(target, inputs=("map again", *target.inputs[1:]))
    with pytest.raises(RdError, match=r"take different maps|layer 2: takes the map of again"):
        prove(altered(program, at, again, target), made.student.config, exported=(1, 2), features="heads")


def test_a_program_of_another_delegate_is_not_evaluated(export_one: Callable[..., Any]) -> None:
    with pytest.raises(RdError, match="did not take the whole program"):
        whole_package(export_one("streaming").artifact)


def test_half_precision_is_looked_for_in_the_package(made: Any) -> None:
    package: Package = whole_package(made.artifact)[0]
    check_sums(package)
    norm = dataclasses.replace(package.program.of_kind("layer_norm")[0], kind="instance_norm")
    check_sums(dataclasses.replace(package, program=dataclasses.replace(package.program, operations=(norm,))))
    half = dataclasses.replace(norm, types=tuple(dataclasses.replace(kind, dtype="float16") for kind in norm.types))
    with pytest.raises(RdError, match="instance_norm over all time overflows half precision"):
        check_sums(dataclasses.replace(package, program=dataclasses.replace(package.program, operations=(half,))))


def test_other_types_inside_and_outside_are_refused(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package for iOS 16 in half precision has outputs in it, the program around it has not."""
    from reuse_distill.export.targets.executorch import evaluated

    monkeypatch.setitem(evaluated.TYPES, "FLOAT", "float16")
    with pytest.raises(RdError, match="is float32 in the Core ML package, float16 in the program"):
        whole_package(made.artifact)


def test_the_runtime_says_where_such_a_program_runs(made: Any, clips: list[np.ndarray]) -> None:
    from reuse_distill.runtime.engines.executorch_backend import Bridge

    if "CoreMLBackend" in Bridge().delegates:
        pytest.skip("this ExecuTorch has Core ML's delegate")
    with pytest.raises(RdError, match="exported for Core ML's delegate, which ExecuTorch has on Apple's devices only"):
        Encoder.load(made.folder).extract(clips[0])


def test_a_registered_delegate_is_not_refused() -> None:
    check_registered("coreml", ["CoreMLBackend"])


@pytest.mark.parametrize(
    ("delegate", "precision", "message"),
    [
        ("coreml", "int8", "--precision int8 is not possible with --delegate coreml"),
        ("xnnpack", "fp16", "--precision fp16 is not possible with --delegate xnnpack"),
        ("qualcomm", "fp32", r"--delegate qualcomm is not possible yet: .*SDK \(QNN_SDK_ROOT is not set\)"),
    ],
)
def test_what_a_delegate_cannot_do(
    monkeypatch: pytest.MonkeyPatch, delegate: str, precision: str, message: str
) -> None:
    monkeypatch.delenv("QNN_SDK_ROOT", raising=False)
    with pytest.raises(RdError, match=message):
        check_delegate(delegate, precision=precision)
