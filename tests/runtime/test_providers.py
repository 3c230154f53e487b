"""runtime/providers.py and ort.py: the provider asked for is the one that runs, or nothing runs."""

import numpy as np
import onnxruntime
import pytest

from runtime.encoder import Encoder
from runtime.errors import RdError
from runtime.ort import session_options
from runtime.providers import candidates, check_provider, check_runs, read_placement, session_providers

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
    from runtime.providers import PROVIDERS

    if PROVIDERS[provider] in onnxruntime.get_available_providers():
        pytest.skip(f"this machine has {provider}")
    with pytest.raises(RdError, match=rf"provider '{provider}' \(\w+\) is not available; available: .*cpu"):
        Encoder.load(toys.offline, provider=provider)


def test_a_provider_that_did_not_start_is_an_error():
    """ONNX Runtime goes on with the CPU when CUDA's libraries are missing; we do not."""
    with pytest.raises(RdError, match="'cuda' was asked for and did not start; ONNX Runtime would run on cpu"):
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
    with pytest.raises(RdError, match="'cuda' was asked for and did not start"):
        _ = Encoder.load(toys.offline, provider="cuda").backend


def test_placement_is_read_from_the_engine(toys):
    placement = Encoder.load(toys.offline).backend.placement
    if not hasattr(onnxruntime.InferenceSession, "get_provider_graph_assignment_info"):
        assert placement is None
    else:
        assert list(placement) == ["cpu"]
        assert placement["cpu"] >= 8
    assert read_placement(object()) is None


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
