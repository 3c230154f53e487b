"""runtime/engines/denormals.py: zero while the engine runs, on every thread, and as before afterwards."""

import threading

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper
from reuse_distill.runtime.engines import denormals
from reuse_distill.runtime.engines.denormals import flushed
from reuse_distill.runtime.engines.ort_backend import OrtBackend

pytestmark = pytest.mark.skipif(not denormals.SUPPORTED, reason="floating-point modes are not known here")
SMALL = np.full(4, 1e-20, np.float32)


@pytest.fixture(scope="module")
def square(tmp_path_factory):
    """An artifact that gives x * x."""
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Mul", ["x", "x"], ["y"])], "square", tensors[:1], tensors[1:])
    path = tmp_path_factory.mktemp("square") / "model.onnx"
    path.write_bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9).SerializeToString()
    )
    return path


def on_a_thread(call):
    found = []
    thread = threading.Thread(target=lambda: found.append(call()))
    thread.start()
    thread.join()
    return found[0]


def test_the_mode_is_on_inside_and_as_before_outside():
    assert flushed(lambda: (SMALL * SMALL).any()) is np.False_
    assert (SMALL * SMALL).all()


def test_an_error_puts_the_mode_back():
    with pytest.raises(ZeroDivisionError):
        flushed(lambda: 1 / 0)
    assert (SMALL * SMALL).all()


@pytest.mark.parametrize("run", [lambda call: call(), on_a_thread], ids=["here", "on a thread"])
def test_the_engine_flushes_on_every_thread_and_leaves_no_trace(square, run):
    def work():
        backend = OrtBackend(square, provider="cpu", threads=1)
        out = np.ones(4, np.float32)
        backend.bind({"x": SMALL}, {"y": out})()
        return backend.run({"x": SMALL})["y"].any(), out.any(), (SMALL * SMALL).all()

    assert run(work) == (False, False, True)


def test_a_session_that_is_older_than_the_thread_flushes_there_too(square):
    backend = OrtBackend(square, provider="cpu", threads=1)
    assert not on_a_thread(lambda: backend.run({"x": SMALL})["y"].any())


def test_the_setting_alone_does_not_reach_a_thread(square):
    """Why this file exists; when ONNX Runtime does it, the file can go."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
    session = onnxruntime.InferenceSession(str(square), options, providers=["CPUExecutionProvider"])
    assert on_a_thread(lambda: session.run(None, {"x": SMALL})[0].all())
