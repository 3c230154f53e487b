"""TensorRT for RTX: its real parser and builder on prepared graphs, and its backend on a recorded device."""

from __future__ import annotations

import dataclasses
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from reuse_distill.devices.measuring.speech import speech_like
from reuse_distill.export.rd_export import main
from reuse_distill.export.targets.tensorrt.jetpack_rules import check_file, find_jetpack
from reuse_distill.export.targets.tensorrt.rtx_target import CHECKED, GPUS, build, capabilities_of
from reuse_distill.runtime import Encoder
from reuse_distill.runtime.bundle_format.bundle import read_bundle, write_manifest
from reuse_distill.runtime.engines.engine_choice import check_runnable
from reuse_distill.runtime.engines.tensorrt.engine_finish import finish
from reuse_distill.runtime.engines.tensorrt.tensorrt_backend import load_tensorrt_rtx
from reuse_distill.runtime.errors import RdError


@pytest.fixture(scope="module")
def rtx() -> Any:
    try:
        return load_tensorrt_rtx()
    except RdError as error:
        pytest.skip(str(error))


EVERY = [("stream", "streaming", "fp16"), ("shared", "offline", "int8")]
SLOW = [
    *(("shared", "offline", p) for p in ("fp32", "fp16", "bf16", "int8-fp32")),
    *(("shared", "window", p) for p in ("fp32", "fp16", "int8")),
    *(("stream", "streaming", p) for p in ("fp32", "bf16", "int8", "int8-fp32")),
    ("renormalised", "offline", "fp16"),
]


@pytest.mark.parametrize("key", [*EVERY, *(pytest.param(key, marks=pytest.mark.slow) for key in SLOW)])
def test_nvidias_builder_takes_every_prepared_graph(rtx: Any, prepared: Any, key: Any, capsys: Any) -> None:
    assert main(["check", str(prepared.bundle(*key)), "--build"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("TensorRT for RTX")]
    assert len(lines) == len(CHECKED)
    for line, capability in zip(lines, CHECKED, strict=True):
        assert f"compute capability {capability}" in line
        assert " yes, " in line and "layers" in line


def quantised(folder: Path, zero: np.ndarray) -> Path:
    """A product whose operand is quantised with this zero point."""
    scale = numpy_helper.from_array(np.array(0.1, np.float32), "scale")
    weight = numpy_helper.from_array(np.eye(4, dtype=np.float32), "weight")
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"], name="quantise"),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"], name="dequantise"),
        helper.make_node("MatMul", ["d", "weight"], ["y"], name="product"),
    ]
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "q", ports[:1], ports[1:], [scale, weight, numpy_helper.from_array(zero, "zero")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), folder / "q.onnx")
    return folder / "q.onnx"


@pytest.mark.parametrize(
    ("zero", "reason", "taken"),
    [
        (np.array(0, np.int8), "", True),
        (np.array(0, np.uint8), "reads uint8 as int8", False),
        (np.array(128, np.uint8), "cannot parse it", False),
        (np.array(3, np.int8), "cannot parse it: .*Non-zero zero point is not supported", False),
    ],
)
def test_our_rules_of_quantisation_are_the_parsers(
    rtx: Any, tmp_path: Path, zero: np.ndarray, reason: str, taken: bool
) -> None:
    file = quantised(tmp_path, zero)
    ours = [finding for finding in check_file(file, find_jetpack("7.2.2"), "fp32") if finding.rule == "symmetry"]
    assert bool(ours) is not taken
    if taken:
        assert build(file, (), ("8.9",), precision="fp32").layers > 0
        return
    with pytest.raises(RdError, match=rf"q\.onnx: TensorRT for RTX .* {reason}"):
        build(file, (), ("8.9",), precision="fp32")


def test_gpus_have_names() -> None:
    assert capabilities_of("all") == tuple(GPUS.values())
    assert capabilities_of("rtx40,rtx50,rtx40") == ("8.9", "12.0")
    with pytest.raises(RdError, match="--gpu 'rtx400' is not known") as caught:
        capabilities_of("rtx400")
    assert "rtx40" in str(caught.value.hint)


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx_libs", None)
    with pytest.raises(RdError, match="TensorRT for RTX cannot be imported") as caught:
        load_tensorrt_rtx()
    assert "reuse-distill[tensorrt-rtx]" in str(caught.value.hint)


@pytest.fixture
def engine(device: Any, prepared: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An engine of the recorded TensorRT 11, whose API this one's is, as a bundle for a GPU of 8.7."""
    shutil.copytree(prepared.bundle("stream", "streaming", "fp16"), tmp_path / "bundle")
    here = device("11")
    monkeypatch.setitem(sys.modules, "tensorrt_rtx_libs", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "tensorrt_rtx_bindings", here.trt)
    made = finish(tmp_path / "bundle")
    told = {"tensorrt_rtx": here.trt.__version__, "compute_capabilities": ["8.7", "8.9"]}
    parity = {"bound": made.parity["bound"], "prepared": {"run": "typed.onnx"}}
    write_manifest(tmp_path / "bundle", dataclasses.replace(made, target="tensorrt-rtx", device=told, parity=parity))
    return tmp_path / "bundle"


def test_it_runs_streams_and_finishing_measures_it(engine: Path, capsys: Any) -> None:
    encoder = Encoder.load(engine)
    assert encoder.provider == "tensorrt-rtx"
    assert "tensorrt_rtx" in encoder.backend.versions
    assert encoder.extract(speech_like(16_000, seed=3)).any()
    assert "measured" not in read_bundle(engine).manifest.parity
    assert main(["finish", str(engine)]) == 0
    assert "compared on Orin (recorded)" in capsys.readouterr().out
    manifest = read_bundle(engine).manifest
    assert manifest.target == "tensorrt-rtx"
    assert manifest.parity["measured"]["mean_cosine"] > 0.99
    assert manifest.device is not None
    assert manifest.device["measured_on"] == {"gpu": "Orin (recorded)", "compute_capability": "8.7"}


def test_another_version_another_gpu_and_another_provider_are_refused(engine: Path) -> None:
    manifest = read_bundle(engine).manifest
    assert manifest.device is not None
    with pytest.raises(RdError, match="runs on provider 'tensorrt-rtx' only, 'cuda' was requested"):
        check_runnable(read_bundle(engine), "cuda")
    write_manifest(
        engine, dataclasses.replace(manifest, device={**manifest.device, "compute_capabilities": ["8.9", "12.0"]})
    )
    with pytest.raises(RdError, match=r"built for compute capability 8\.9, 12\.0, this GPU \(Orin .*\) has 8\.7"):
        Encoder.load(engine).extract(np.zeros(8000, np.float32))
    write_manifest(engine, dataclasses.replace(manifest, device={**manifest.device, "tensorrt_rtx": "1.0"}))
    with pytest.raises(RdError, match=r"built by TensorRT for RTX 1\.0, this machine has "):
        Encoder.load(engine).extract(np.zeros(8000, np.float32))


def test_an_engine_made_here_is_unmeasured_and_says_what_it_is_bound_to(
    rtx: Any, workshop: Any, run_export: Any, tmp_path: Path
) -> None:
    words = ["--target", "tensorrt-rtx", "--gpu", "rtx40", "--precision", "fp16", "--mode", "streaming"]
    run = run_export(workshop.checkpoint("stream"), *words, "--left", "12", "--chunk", "4", "--output", tmp_path / "b")
    assert run.status == 0, run.err
    assert "the engine is unmeasured" in run.out and "rd-export finish" in run.out
    manifest = read_bundle(tmp_path / "b").manifest
    assert manifest.status == "built" and manifest.artifact == "model.engine"
    assert manifest.device is not None
    assert manifest.device["tensorrt_rtx"] == rtx.__version__
    assert manifest.device["compute_capabilities"] == ["8.9"]
    assert "measured" not in manifest.parity and "measured" in manifest.parity["prepared"]
    assert {state.dtype for state in manifest.states} == {"float16"}
    with pytest.raises(RdError, match=r"CUDA runtime is not here|cudaGetDevice failed"):
        Encoder.load(tmp_path / "b").extract(np.zeros(8000, np.float32))


def test_names_of_gpus_are_for_this_target(workshop: Any, run_export: Any, tmp_path: Path) -> None:
    run = run_export(workshop.checkpoint("stream"), "--gpu", "rtx40", "--output", tmp_path / "b")
    assert run.status == 2
    assert "--gpu rtx40 is for --target tensorrt-rtx" in run.err
