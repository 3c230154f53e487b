"""The OpenVINO backend on a model of two operations: ports, buffers, and everything that it refuses."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from reuse_distill.runtime.bundle_format.bundle import Bundle
from reuse_distill.runtime.bundle_format.manifest import Geometry, Manifest, Tensor
from reuse_distill.runtime.engines.engine_choice import check_ports, check_runnable, open_backend
from reuse_distill.runtime.engines.openvino.openvino_backend import OpenvinoBackend
from reuse_distill.runtime.engines.openvino.openvino_device import (
    check_device,
    choose_precision,
    load_openvino,
    properties,
)
from reuse_distill.runtime.errors import RdError


@pytest.fixture(scope="module")
def openvino() -> Any:
    try:
        return load_openvino()
    except RdError as error:
        pytest.skip(str(error))


@pytest.fixture
def folder(openvino: Any, tmp_path: Path) -> Path:
    """An IR that doubles ``wave``."""
    from openvino import opset13

    wave = opset13.parameter([1, -1], np.float32, name="wave")
    wave.output(0).set_names({"wave"})
    result = opset13.multiply(wave, opset13.constant(np.array([[2.0]], np.float32)))
    result.output(0).set_names({"features"})
    openvino.save_model(openvino.Model([result], [wave], "twice"), str(tmp_path / "model.xml"), compress_to_fp16=False)
    return tmp_path


def bundle(folder: Path, **changes: Any) -> Bundle:
    values: dict[str, Any] = {
        "kind": "offline",
        "target": "openvino",
        "precision": "fp32",
        "status": "built",
        "artifact": "model.xml",
        "features": "heads",
        "layers": (1,),
        "feature_width": 4,
        "inputs": (Tensor("wave", "float32", (1, "T")),),
        "outputs": (Tensor("features", "float32", (1, "T")),),
        "states": (),
        "geometry": Geometry(),
        "files": {},
        "source": {},
        "tools": {},
        "device": {"inference_precision": "f32"},
    }
    return Bundle(folder, Manifest(**{**values, **changes}))


def test_it_runs_any_length_and_says_on_what(folder: Path) -> None:
    backend = open_backend(bundle(folder), provider="auto", threads=1)
    for samples in (5, 9, 3):
        wave = np.arange(samples, dtype=np.float32)[None]
        np.testing.assert_array_equal(backend.run({"wave": wave})["features"], 2 * wave)
    assert backend.provider == "cpu"
    assert backend.versions["inference_precision"] == "f32"
    assert backend.inputs["wave"].shape == (1, "?")
    check_ports(bundle(folder), backend)


def test_a_bound_call_reads_and_writes_the_arrays_it_was_given(folder: Path) -> None:
    backend = OpenvinoBackend(bundle(folder), provider="cpu", threads=1)
    wave, features = np.ones((1, 8), np.float32), np.zeros((1, 8), np.float32)
    call = backend.bind({"wave": wave}, {"features": features})
    call()
    assert (features == 2).all()
    wave[:] = 3
    call()
    assert (features == 6).all()


def test_results_of_one_run_stay_when_the_next_is_made(folder: Path) -> None:
    backend = OpenvinoBackend(bundle(folder), provider="cpu", threads=1)
    first = backend.run({"wave": np.ones((1, 4), np.float32)})["features"]
    backend.run({"wave": np.zeros((1, 4), np.float32)})
    assert (first == 2).all()


def test_the_thread_computes_with_denormals_as_before(folder: Path) -> None:
    """OpenVINO's compiler leaves the thread flushing them to zero."""
    small = np.full(4, 1e-20, np.float32)
    backend = OpenvinoBackend(bundle(folder), provider="cpu", threads=1)
    backend.run({"wave": np.ones((1, 4), np.float32)})
    assert (small * small).all()


@pytest.mark.parametrize("name", ["model.xml", "model.bin"])
def test_both_files_have_to_be_there(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(RdError, match=rf"{name} is missing; an OpenVINO model is model\.xml and model\.bin"):
        OpenvinoBackend(bundle(folder), provider="cpu", threads=1)


@pytest.mark.parametrize("name", ["model.xml", "model.bin"])
def test_a_damaged_file_is_told_in_openvinos_words(folder: Path, name: str) -> None:
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[: len(data) // 2])
    with pytest.raises(RdError, match=r"model\.xml: OpenVINO 20\d\d.* cannot read it: "):
        OpenvinoBackend(bundle(folder), provider="cpu", threads=1)


def test_a_device_that_is_not_there_is_refused_by_name(folder: Path) -> None:
    core = SimpleNamespace(available_devices=["CPU", "GPU.0"])
    assert check_device("auto", core) == ("cpu", "CPU")
    assert check_device("gpu", core) == ("gpu", "GPU")
    with pytest.raises(RdError, match=r"provider 'npu': OpenVINO finds no NPU on this machine; it finds CPU, GPU\.0"):
        check_device("npu", core)
    check_runnable(bundle(folder), "npu")
    with pytest.raises(RdError, match=r"runs on provider cpu, gpu, npu; 'cuda' was asked for"):
        check_runnable(bundle(folder), "cuda")


BF16 = {"device": {"inference_precision": "bf16"}}


def test_the_precision_is_the_bundles_or_an_error(tmp_path: Path) -> None:
    plain, narrow = bundle(tmp_path).manifest, bundle(tmp_path, **BF16).manifest
    assert choose_precision(plain, {}, ["FP32", "BF16"]) == "f32"
    assert choose_precision(narrow, {}, ["FP32", "BF16"]) == "bf16"
    assert choose_precision(narrow, {"inference_precision": "auto"}, ["FP32", "BF16"]) == "bf16"
    assert choose_precision(narrow, {"inference_precision": "auto"}, ["FP32"]) == "f32"
    assert choose_precision(narrow, {"inference_precision": "f32"}, ["FP32", "BF16"]) == "f32"
    with pytest.raises(RdError, match="computes in bf16, which this processor has not"):
        choose_precision(narrow, {}, ["FP32", "INT8"])
    with pytest.raises(RdError, match="inference_precision=bf16: this bundle was exported and compared for f32"):
        choose_precision(plain, {"inference_precision": "bf16"}, ["FP32", "BF16"])
    with pytest.raises(RdError, match="inference_precision='half' is not known"):
        choose_precision(plain, {"inference_precision": "half"}, ["FP32"])


def test_openvino_itself_would_compute_in_f32_without_a_word(
    folder: Path, openvino: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this processor has bfloat16")
    monkeypatch.setattr("reuse_distill.runtime.engines.openvino.openvino_backend.choose_precision", lambda *_: "bf16")
    with pytest.raises(RdError, match="bf16 is requested, OpenVINO computes in f32 on cpu"):
        OpenvinoBackend(bundle(folder, **BF16), provider="cpu", threads=1)


def test_options_in_openvinos_spelling_reach_it(folder: Path) -> None:
    assert properties("f32", 2, "CPU", {"ENABLE_CPU_PINNING": "YES"})["ENABLE_CPU_PINNING"] == "YES"
    with pytest.raises(RdError, match=r"OpenVINO cannot prepare it for CPU: .*NO_SUCH_THING"):
        OpenvinoBackend(bundle(folder), provider="cpu", threads=1, options={"NO_SUCH_THING": "1"})


def test_without_the_package_or_with_an_old_one_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(RdError, match="OpenVINO cannot be imported") as caught:
        load_openvino()
    assert "reuse-distill[openvino]" in str(caught.value.hint)
    monkeypatch.setitem(sys.modules, "openvino", SimpleNamespace(__version__="2023.3.0-1-x"))
    with pytest.raises(RdError, match=r"OpenVINO 2023\.3\.0-1-x is installed, 2024\.0 or later is needed"):
        load_openvino()


def test_nothing_is_reported_to_the_vendor(openvino: Any) -> None:
    code = (
        "import sys; from reuse_distill.runtime.engines.openvino.openvino_device import load_openvino; "
        "load_openvino(); "
        "print(sys.modules['openvino_telemetry'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == "None"
