"""CUDA by ctypes, features of releases, building where the export runs, and a real GPU where there is one."""

from __future__ import annotations

import ctypes
import importlib.util
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reuse_distill.devices.measuring.speech import speech_like
from reuse_distill.runtime import Encoder
from reuse_distill.runtime.bundle_format.bundle import read_bundle
from reuse_distill.runtime.engines.tensorrt import cuda_runtime as cuda_module
from reuse_distill.runtime.engines.tensorrt.cuda_pool import DeviceRows
from reuse_distill.runtime.engines.tensorrt.cuda_runtime import ON_DEVICE, TO_DEVICE, TO_HOST, Cuda
from reuse_distill.runtime.engines.tensorrt.engine_finish import finish
from reuse_distill.runtime.engines.tensorrt.tensorrt_features import detect
from reuse_distill.runtime.equivalence.certify import certify
from reuse_distill.runtime.errors import RdError


def test_what_each_release_has(device: Any, eras: Any) -> None:
    found = {era: detect(device(era).trt) for era in eras}
    assert [f.strongly_typed for f in found.values()] == [False, False, True, True, True, True]
    assert [f.weakly_typed for f in found.values()] == [True, True, True, True, True, False]
    assert [f.explicit_batch for f in found.values()] == [True, True, True, True, True, False]
    assert "BF16" not in found["8.6"].flags and "BF16" in found["10.3"].flags
    assert found["11"].flags == {"TF32"}


def test_the_recorder_refuses_what_a_release_does_not_have(device: Any) -> None:
    new = device("11").trt
    with pytest.raises(AttributeError):
        _ = new.BuilderFlag.FP16
    with pytest.raises(AttributeError, match="TensorRT 11: IBuilderConfig has no int8_calibrator"):
        new.Builder(None).create_builder_config().int8_calibrator = None
    old = device("8.5").trt
    with pytest.raises(AttributeError):
        _ = old.NetworkDefinitionCreationFlag.STRONGLY_TYPED
    with pytest.raises(AttributeError, match=r"TensorRT 8\.5: OnnxParser has no set_flag"):
        old.OnnxParser(old.Builder(None).create_network(1), None).set_flag(0)


def test_cuda_calls(device: Any) -> None:
    here = device("10.3")
    cuda = Cuda.open()
    assert (cuda.device_name(), cuda.compute_capability()) == ("Orin (recorded)", "8.7")
    stream, values = cuda.stream(), np.arange(6, dtype=np.float32)
    a, b, out = cuda.allocate(24), cuda.allocate(24), cuda.pinned((6,), np.float32)
    cuda.copy(a, values.ctypes.data, 24, TO_DEVICE, stream)
    cuda.begin_capture(stream)
    cuda.copy(b, a, 24, ON_DEVICE, stream)
    cuda.copy(out.ctypes.data, b, 24, TO_HOST, stream)
    graph = cuda.end_capture(stream)
    assert not out.any()  # captured, not run
    cuda.launch(graph, stream)
    cuda.wait(stream)
    np.testing.assert_array_equal(out, values)
    cuda.clear(a, 24, stream)
    cuda.launch(graph, stream)
    assert not out.any()
    cuda.begin_capture(stream)
    with pytest.raises(RdError, match="cudaMalloc failed: operation not permitted when stream is capturing"):
        cuda.allocate(4)
    cuda.end_capture(stream)
    cuda.free_graph(graph)
    for address in (a, b):
        cuda.free(address)
    with pytest.raises(RdError, match="cudaFree failed: invalid argument"):
        cuda.free(a)
    assert here.cudart.graphs.keys() == {2}


def test_no_cuda_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_module, "LIBRARIES", ("libcudart-that-is-not-there.so",))
    with pytest.raises(RdError, match="the CUDA runtime is not here"):
        Cuda.open()


def test_rows_of_a_batch_lie_together_and_batches_are_aligned(device: Any) -> None:
    device("10.3")
    rows = DeviceRows(Cuda.open(), 5, 20, 2)
    assert [rows.at(row) - rows.base for row in range(5)] == [0, 20, 256, 276, 512]


def test_no_memory_is_left_behind(device: Any, prepared: Any, tmp_path: Path) -> None:
    shutil.copytree(prepared.bundle("stream", "streaming", "fp32"), tmp_path / "b")
    here = device("10.3")
    finish(tmp_path / "b")
    encoder = Encoder.load(tmp_path / "b")
    encoder.extract(speech_like(8_000, seed=1))
    blocks = len(here.cudart.memory) - _pinned(here)
    for _ in range(3):
        encoder.extract(speech_like(8_000, seed=1))
    assert len(here.cudart.memory) - _pinned(here) == blocks


def _pinned(here: Any) -> int:
    """Host blocks stay until the process ends; device blocks must not."""
    return int(getattr(here.cudart, "hosts", 0))


@pytest.mark.parametrize("era", ["8.6", "11"])
def test_an_engine_is_built_where_the_export_runs(
    device: Any, workshop: Any, run_export: Any, tmp_path: Path, era: str
) -> None:
    device(era)
    words = ("--mode", "streaming", "--layers", "all", "--left", "12", "--chunk", "4", "--precision", "fp32")
    done = run_export(workshop.checkpoint("stream"), "--target", "tensorrt", *words, "--output", tmp_path / "b")
    assert done.status == 0, done.err
    manifest = read_bundle(tmp_path / "b").manifest
    assert manifest.status == "built"
    assert manifest.graph_proof is not None and manifest.graph_proof.checked_file == "the engine"
    assert manifest.parity["measured"]["max_abs"] < 1e-4
    assert Encoder.load(tmp_path / "b").selftest().passed


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_a_real_engine(prepared: Any, tmp_path: Path, precision: str) -> None:
    if importlib.util.find_spec("tensorrt") is None:
        pytest.skip("tensorrt is not installed")
    if not any(_loads(name) for name in cuda_module.LIBRARIES):
        pytest.skip("no CUDA runtime library can be loaded")
    for name, mode in (("shared", "offline"), ("stream", "streaming")):
        bundle = tmp_path / name
        shutil.copytree(prepared.bundle(name, mode, precision), bundle)
        manifest = finish(bundle)
        assert manifest.device is not None and manifest.device["precision"]["as_asked"] > 0
        if mode == "streaming":
            assert certify(Encoder.load(bundle)).passed


def _loads(name: str) -> bool:
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True
