"""A deferred bundle becomes a finished one on a recorded device of every release, and runs there."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reuse_distill.devices.measuring.speech import speech_like
from reuse_distill.export.rd_export import main
from reuse_distill.runtime import Encoder
from reuse_distill.runtime.bundle_format.bundle import MANIFEST, read_bundle
from reuse_distill.runtime.engines.tensorrt.engine_finish import ENGINE, finish
from reuse_distill.runtime.equivalence.certify import certify
from reuse_distill.runtime.errors import RdError

ERAS = ("8.5", "8.6", "10.3", "10.13", "10.16", "11")
WEAK = ("8.5", "8.6")


@pytest.fixture
def copy(prepared: Any, tmp_path: Path) -> Callable[..., Path]:
    def made(*key: str) -> Path:
        shutil.copytree(prepared.bundle(*key), tmp_path / "bundle")
        return tmp_path / "bundle"

    return made


QUICK = [("8.5", "int8"), ("8.6", "fp16"), ("10.3", "fp16"), ("11", "int8")]  # every era of typing, both casts
EACH = [(era, p) for p in ("fp32", "fp16", "int8") for era in ERAS]


@pytest.mark.parametrize(
    ("era", "precision"),
    [pytest.param(*pair, marks=[] if pair in QUICK else [pytest.mark.slow]) for pair in EACH],
)
def test_every_release_builds_what_it_can_read(device: Any, copy: Any, era: str, precision: str) -> None:
    bundle, here = copy("stream", "streaming", precision), device(era)
    manifest = finish(bundle)
    typing = "weak" if era in WEAK else "strong"
    assert manifest.status == "built" and manifest.artifact == ENGINE
    assert manifest.device is not None
    assert manifest.device["typing"] == typing
    assert manifest.device["tensorrt"] == here.trt.__version__
    assert (manifest.device["gpu"], manifest.device["compute_capability"]) == ("Orin (recorded)", "8.7")
    assert manifest.device["graph"] == {"softmaxes": 2, "named": 2, "in_several_layers": []}
    told = manifest.device["precision"]
    assert told["asked"] == precision and told["as_asked"] == told["told"] > 8 and told["not_told"] == 0
    half = typing == "strong" and precision != "fp32"
    assert {s.dtype for s in manifest.states} == {"float16" if half else "float32"}
    assert "measured" in manifest.parity and read_bundle(bundle).manifest == manifest
    _, strong, flags, cleared, _ = here.trt._log[0]
    assert strong is (typing == "strong")
    weak_flags = {"fp32": [], "fp16": ["FP16"], "int8": ["FP16", "INT8"]}[precision]
    pin = ["OBEY_PRECISION_CONSTRAINTS"] if weak_flags else []
    assert flags == ([] if typing == "strong" else sorted(weak_flags + pin))
    assert cleared == (["TF32"] if precision == "fp32" else [])


def test_a_weak_fp16_engine_keeps_its_norms_in_float(device: Any, copy: Any) -> None:
    bundle, here = copy("stream", "streaming", "fp16"), device("8.5")
    finish(bundle)
    data = (bundle / ENGINE).read_bytes()
    pinned = json.loads(data[4 : 4 + int.from_bytes(data[:4], "little")])["pinned"]
    assert any("ReduceMean" in name for name in pinned) and any("Sqrt" in name for name in pinned)
    assert not any("matmul" in name.lower() for name in pinned)
    assert here.trt._log[0][2] == ["FP16", "OBEY_PRECISION_CONSTRAINTS"]


@pytest.mark.parametrize(
    "era", ["10.3", pytest.param("8.6", marks=pytest.mark.slow), pytest.param("11", marks=pytest.mark.slow)]
)
def test_a_finished_stream_passes_the_whole_gate(device: Any, copy: Any, era: str) -> None:
    bundle, here = copy("stream", "streaming", "fp32"), device(era)
    finish(bundle)
    encoder = Encoder.load(bundle)
    certificate = certify(encoder)
    assert [check for check in certificate.checks if not check.passed] == []
    assert certificate.provider == "tensorrt"
    assert here.cudart.calls.count("launch") > 100  # steps are graph launches, not enqueues
    before = here.cudart.calls.count("copy 3")
    encoder.extract(speech_like(16_000, seed=3))
    assert here.cudart.calls.count("copy 3") == before  # no state is copied: the buffers swap


def test_streams_of_a_fixed_batch_of_two(device: Any, copy: Any) -> None:
    bundle = copy("stream-shallow", "streaming", "fp32", "--batch", "2")
    device("10.3")
    finish(bundle)
    encoder = Encoder.load(bundle)
    waves = [speech_like(n, seed=n) for n in (9_000, 16_000, 12_345)]
    alone = [encoder.extract(wave) for wave in waves]
    streams, parts = encoder.streams(3), [[], [], []]
    for stream, wave in zip(streams, waves, strict=True):
        stream.feed(wave)
        stream.end()
    order = [0, 1, 2]
    while any(stream.ready for stream in streams):
        order = order[1:] + order[:1]  # batches of changing neighbours, gathered and in place
        for i, frames in zip(order, encoder.step([streams[i] for i in order]), strict=True):
            parts[i] += [frames] if frames is not None else []
    for found, wanted in zip(parts, alone, strict=True):
        np.testing.assert_allclose(encoder.join(found), wanted, atol=2e-5)


@pytest.mark.parametrize("era", ["8.5", "10.3", "11"])
def test_an_offline_engine_takes_any_length_of_its_profile(device: Any, copy: Any, era: str) -> None:
    bundle = copy("shared", "offline", "fp32", "--max-seconds", "4")
    device(era)
    finish(bundle)
    encoder = Encoder.load(bundle)
    assert encoder.selftest().passed
    assert encoder.extract(speech_like(400, seed=1)).shape[1] == 1
    with pytest.raises(
        RdError, match=r"wave of shape \(1, 64001\): the engine was built for \(1, 400\) to \(1, 64000\)"
    ):
        encoder.extract(speech_like(64_001, seed=1))


def test_refuses_an_engine_of_another_machine(device: Any, copy: Any) -> None:
    bundle, here = copy("stream", "streaming", "fp32"), device("10.3")
    finish(bundle)
    here.trt.__version__ = "10.3.1"
    with pytest.raises(RdError, match=r"built for tensorrt 10\.3\.0\.30, this machine has 10\.3\.1"):
        _ = Encoder.load(bundle).backend
    here.trt.__version__ = "10.3.0.30"
    here.cudart.name = b"Thor"
    with pytest.raises(RdError, match="built for gpu Orin \\(recorded\\), this machine has Thor"):
        _ = Encoder.load(bundle).backend
    with pytest.raises(RdError, match="runs on provider 'tensorrt' only, 'cpu'"):
        Encoder.load(bundle, provider="cpu")


def test_timings_are_used_again_on_the_same_machine_only(device: Any, copy: Any) -> None:
    bundle, here = copy("stream", "streaming", "fp32"), device("10.3")
    finish(bundle)
    finish(bundle)
    here.cudart.name = b"another"
    finish(bundle)
    assert [entry[4] for entry in here.trt._log] == [b"", b"timings", b""]


@pytest.mark.parametrize(
    ("what", "text"),
    [
        ({"precision": "fp32"}, "does not run at fp16: .* such as"),
        ({"names_only": True}, "gives only the names of"),
        ({"fails": "[autotuner] no implementation"}, "no implementation"),
        ({"extra_node": "node_q_proj_put_back"}, "does not have, such as node_q_proj_put_back"),
        ({"wrong_numbers": True}, "features are not those of the source"),
    ],
)
def test_a_wrong_engine_is_refused_and_the_bundle_stays(
    device: Any, copy: Any, what: dict[str, Any], text: str
) -> None:
    bundle, here = copy("stream", "streaming", "fp16"), device("10.3")
    before = (bundle / MANIFEST).read_bytes()
    for name, value in what.items():
        setattr(here.sabotage, name, value)
    with pytest.raises(RdError, match=text):
        finish(bundle)
    assert (bundle / MANIFEST).read_bytes() == before
    assert not (bundle / ENGINE).exists() and [p.name for p in bundle.parent.iterdir()] == ["bundle"]


def test_a_file_that_this_release_cannot_read(device: Any, copy: Any) -> None:
    bundle = copy("stream", "streaming", "fp32", "--jetpack", "6.0")
    device("8.5")
    with pytest.raises(RdError, match=r"8\.5\.2\.2 cannot parse it: No importer registered for op: LayerNormalization"):
        finish(bundle)
    device("11")
    with pytest.raises(RdError, match=r"11\.4\.1 cannot build this bundle at fp32: plain\.onnx needs weak typing"):
        finish(bundle)


def test_the_command(device: Any, copy: Any, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = copy("stream", "streaming", "fp16")
    assert main(["--finish", str(bundle)]) == 2
    assert "TensorRT for Python cannot be imported" in capsys.readouterr().err
    device("10.3")
    assert main(["--finish", str(bundle)]) == 0
    said = capsys.readouterr()
    assert "built by TensorRT 10.3.0.30 for Orin (recorded) (8.7)" in said.out
    assert "building with TensorRT 10.3.0.30 from typed.onnx, strongly typed" in said.err


def test_finishing_needs_neither_torch_nor_onnx(prepared: Any) -> None:
    bundle = prepared.bundle("stream", "streaming", "fp32")
    code = (
        "import sys; from reuse_distill.export.rd_export import main; status = main(sys.argv[1:]);"
        "heavy = {'torch', 'onnx', 'onnxscript', 'student'} & set(sys.modules); print(heavy or 'light', status)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "--finish", str(bundle)], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["light", "2"], done.stdout
