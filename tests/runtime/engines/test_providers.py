"""runtime/engines/providers.py and ort.py: the provider asked for is the one that runs, or nothing runs."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest
from reuse_distill.runtime.encoder import Encoder
from reuse_distill.runtime.engines.ort_backend import session_options
from reuse_distill.runtime.engines.providers import (
    PROVIDERS,
    WHERE,
    candidates,
    check_provider,
    check_runs,
    count,
    parse_options,
    placement_lines,
    placement_summary,
    provider_options,
    read_nodes,
    session_providers,
)
from reuse_distill.runtime.errors import RdError

ORT_NAMES = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]


class Session:
    """A session that registered ``active``."""

    def __init__(self, *active):
        self.active = list(active)

    def get_providers(self):
        return self.active


def test_unknown_names_are_refused(toys):
    with pytest.raises(RdError, match=r"provider 'cdua' is not known\n\nhint: did you mean 'cuda'"):
        Encoder.load(toys.offline, provider="cdua")


@pytest.mark.parametrize("provider", ["cuda", "tensorrt", "coreml", "qnn", "xnnpack"])
def test_a_provider_that_is_not_there_is_refused_at_load(toys, provider):
    from reuse_distill.runtime.engines.providers import PROVIDERS

    if PROVIDERS[provider] in onnxruntime.get_available_providers():
        pytest.skip(f"this machine has {provider}")
    with pytest.raises(RdError, match=rf"provider '{provider}' \(\w+\) is not available; available: .*cpu"):
        Encoder.load(toys.offline, provider=provider)


def test_a_provider_that_did_not_start_is_an_error():
    """ONNX Runtime continues with the CPU when CUDA's libraries are missing; we do not."""
    with pytest.raises(RdError, match="'cuda' was requested and did not start; ONNX Runtime would run on cpu"):
        check_runs("cuda", Session("CPUExecutionProvider"), None)
    check_runs("cuda", Session("CUDAExecutionProvider", "CPUExecutionProvider"), {"cuda": 10, "cpu": 2})
    check_runs("cuda", Session("CUDAExecutionProvider", "CPUExecutionProvider"), None)


def test_a_provider_without_a_node_does_not_run():
    session = Session("XnnpackExecutionProvider", "CPUExecutionProvider")
    with pytest.raises(RdError, match="'xnnpack' took no node of the graph; all of them would run on cpu"):
        check_runs("xnnpack", session, {"cpu": 12})


def test_auto_tries_cuda_then_the_cpu():
    assert candidates("auto", ORT_NAMES) == ["cuda", "cpu"]
    assert candidates("auto", ["CoreMLExecutionProvider", "CPUExecutionProvider"]) == ["cpu"]
    assert candidates("tensorrt", ORT_NAMES) == ["tensorrt"]
    check_provider("auto", [])


def test_who_takes_the_rest():
    assert session_providers("tensorrt", ORT_NAMES) == ORT_NAMES
    assert session_providers("cuda", ORT_NAMES) == ORT_NAMES[1:]
    assert session_providers("cpu", ORT_NAMES) == ORT_NAMES[2:]


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_auto_goes_on_where_cuda_does_not_start(toys, monkeypatch):
    """A CUDA build on a machine without a driver: `auto` takes the CPU and says so, `cuda` stops."""
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ORT_NAMES[1:])
    encoder = Encoder.load(toys.offline)
    assert encoder.provider == "cpu"
    with pytest.raises(RdError, match="'cuda' was requested and did not start"):
        _ = Encoder.load(toys.offline, provider="cuda").backend


def test_placement_is_read_from_the_engine(toys):
    """Every node with its operator and its provider; counts beside it."""
    encoder = Encoder.load(toys.offline)
    if not hasattr(onnxruntime.InferenceSession, "get_provider_graph_assignment_info"):
        assert encoder.placement is None
        return
    nodes = encoder.placement
    assert encoder.backend.placement == count(nodes) == {"cpu": len(nodes)}
    assert {"Conv", "Tanh", "Concat"} <= {node.op for node in nodes}
    assert [json.loads(line)["provider"] for line in placement_lines(nodes)] == ["cpu"] * len(nodes)
    assert placement_summary(nodes).startswith(f"cpu: {len(nodes)} nodes: ")
    assert read_nodes(object()) is None
    assert count(None) is None


class Part:
    """What ONNX Runtime says of one part of a divided graph."""

    def __init__(self, ep_name, *ops):
        self.ep_name, self.nodes = ep_name, ops

    def get_nodes(self):
        return [SimpleNamespace(name=f"{op}_0", op_type=op, domain="") for op in self.nodes]


def test_placement_of_a_divided_graph():
    parts = [Part("CUDAExecutionProvider", "Conv", "MatMul"), Part("CPUExecutionProvider", "Shape"), Part("New", "X")]
    nodes = read_nodes(SimpleNamespace(get_provider_graph_assignment_info=lambda: parts))
    assert [(n.node, n.op, n.provider) for n in nodes] == [
        ("Conv_0", "Conv", "cuda"),
        ("MatMul_0", "MatMul", "cuda"),
        ("Shape_0", "Shape", "cpu"),
        ("X_0", "X", "New"),
    ]
    assert placement_summary(nodes).splitlines()[0] == "cuda: 2 nodes: 1 Conv, 1 MatMul"


# --- options ----------------------------------------------------------------------------------------------------------


def test_every_provider_is_known_everywhere():
    assert set(WHERE) == set(PROVIDERS)
    assert provider_options("cpu", precision="fp32", threads=2) == {}


def test_options_follow_the_bundle(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    found = provider_options("tensorrt", precision="int8", threads=1)
    assert (found["trt_fp16_enable"], found["trt_int8_enable"]) == ("0", "1")
    assert found["trt_engine_cache_path"] == str(tmp_path / "reuse-distill" / "tensorrt")
    assert provider_options("tensorrt", precision="fp16", threads=1)["trt_fp16_enable"] == "1"
    assert provider_options("xnnpack", precision="fp32", threads=3) == {"intra_op_num_threads": "3"}
    assert provider_options("coreml", precision="fp16", threads=1)["ModelFormat"] == "MLProgram"
    given = {"backend_path": "/opt/libQnnCpu.so"}
    assert provider_options("qnn", precision="int8", threads=1, given=given)["backend_path"] == "/opt/libQnnCpu.so"


def test_options_reach_the_engine(toys, monkeypatch):
    """Defaults under what the user gives, for the first provider only."""
    seen = []
    real = onnxruntime.InferenceSession

    def session(path, options, *, providers, provider_options):
        seen.append(dict(zip(providers, provider_options, strict=True)))
        return real(path, options, providers=providers, provider_options=provider_options)

    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ORT_NAMES[1:])
    with pytest.raises(RdError, match="'cuda' was requested and did not start"):
        _ = Encoder.load(toys.offline, provider="cuda", provider_options={"device_id": "1"}).backend
    assert seen == [
        {
            "CUDAExecutionProvider": {"cudnn_conv_algo_search": "HEURISTIC", "device_id": "1"},
            "CPUExecutionProvider": {},
        }
    ]


def test_words_that_are_no_options():
    assert parse_options(["a=b", "path=/x=y"]) == {"a": "b", "path": "/x=y"}
    with pytest.raises(RdError, match="--provider-option 'a' is not KEY=VALUE"):
        parse_options(["a"])
    with pytest.raises(RdError, match="--provider-option a is given twice: '1' and '2'"):
        parse_options(["a=1", "a=2"])


def test_the_hint_names_the_build(toys):
    if "XnnpackExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this machine has xnnpack")
    with pytest.raises(RdError, match="hint: no wheel has it: build ONNX Runtime with --use_xnnpack"):
        Encoder.load(toys.offline, provider="xnnpack")


def test_session_options():
    options = session_options(3)
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (3, 1)
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"


def test_a_failing_run_is_an_error_of_ours(toys):
    backend = Encoder.load(toys.offline).backend
    with pytest.raises(RdError, match=r"ONNX Runtime failed while running it: .*wave"):
        backend.run({"wave": np.zeros((2, 3, 4), np.float32)})
    call = backend.bind({"wave": np.zeros((1, 10), np.float32)}, {"features": np.zeros((1, 2, 1, 6), np.float32)})
    with pytest.raises(RdError, match="ONNX Runtime failed while running it"):
        call()


def test_buffers_that_are_not_contiguous_are_refused(toys):
    backend = Encoder.load(toys.offline).backend
    with pytest.raises(ValueError, match="C-contiguous"):
        backend.bind({"wave": np.zeros((2, 1000), np.float32)[:, ::2]}, {})


@pytest.mark.parametrize(
    "module",
    [
        "reuse_distill.runtime",
        "reuse_distill.runtime.rd_stream",
        "reuse_distill.devices.rd_latency",
        "reuse_distill.export.rd_export",
    ],
)
def test_onnx_runtime_reports_to_nobody(module: str, tmp_path: Path) -> None:
    """Its wheels would leave an identifier in the cache and a file in the temporary folder, unless they are told to."""
    script = f"import {module}, onnxruntime, os, sys; sys.stdout.write(os.environ['ORT_DISABLE_TELEMETRY'])"
    places = {"TMPDIR": str(tmp_path), "HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    environment = {key: value for key, value in os.environ.items() if key != "ORT_DISABLE_TELEMETRY"} | places
    run = [sys.executable, "-c", script]
    done = subprocess.run(run, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "1"
    assert [path for path in tmp_path.rglob("*") if path.name == ".ses" or "Microsoft" in str(path)] == []
    asked = subprocess.run(run, env={**environment, "ORT_DISABLE_TELEMETRY": "0"}, capture_output=True, text=True)
    assert asked.stdout == "0", "what the user says holds"
