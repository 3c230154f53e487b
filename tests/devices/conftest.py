"""Toy bundles of all three kinds: real ONNX graphs, small enough to measure in a moment."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from reuse_distill.devices.measuring.host_context import Context
from reuse_distill.devices.measuring.measurement import BundleFacts, Measurement, Overhead, Request, StreamSamples
from reuse_distill.devices.measuring.sensors import Reading
from reuse_distill.devices.measuring.speech import speech_like
from reuse_distill.runtime.bundle_format.bundle import list_files, write_bundle, write_manifest
from reuse_distill.runtime.bundle_format.manifest import Geometry, Manifest, State, Tensor
from reuse_distill.runtime.geometry import frames_for

WIDTH, CHUNK = 8, 2
MakeBundle = Callable[..., Path]


def _graph(nodes: list, inputs: list[Tensor], outputs: list[Tensor], weights: dict[str, np.ndarray]) -> bytes:
    values = [
        [helper.make_tensor_value_info(t.name, TensorProto.FLOAT, list(t.shape)) for t in group]
        for group in (inputs, outputs)
    ]
    graph = helper.make_graph(
        nodes, "toy", *values, initializer=[numpy_helper.from_array(v, k) for k, v in weights.items()]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def _body(wave: str, work: int, weights: dict[str, np.ndarray], axis: int = 1) -> list:
    """conv -> [1, F, W] -> ``work`` products -> `frames` [1, 1, F, W]."""
    rng = np.random.default_rng(0)
    weights["front"] = (0.1 * rng.standard_normal((WIDTH, 1, 400))).astype(np.float32)
    weights["mix"] = np.eye(WIDTH, dtype=np.float32)
    weights["axis"] = np.array([axis], np.int64)
    nodes = [
        helper.make_node("Unsqueeze", [wave, "axis"], ["wave3"]),
        helper.make_node("Conv", ["wave3", "front"], ["conv"], strides=[320]),
        helper.make_node("Transpose", ["conv"], ["m0"], perm=[0, 2, 1]),
    ]
    for i in range(work):
        nodes.append(helper.make_node("MatMul", [f"m{i}", "mix"], [f"p{i}"]))
        nodes.append(helper.make_node("Tanh", [f"p{i}"], [f"m{i + 1}"]))
    nodes.append(helper.make_node("Unsqueeze", [f"m{work}", "axis"], ["frames"]))
    return nodes


def _streaming(work: int) -> tuple[bytes, list[Tensor], list[Tensor], list[State], Geometry]:
    weights: dict[str, np.ndarray] = {}
    inputs = [Tensor("samples", "float32", (1, 320 * CHUNK + 80)), Tensor("fresh", "float32", (1, CHUNK))]
    carry = Tensor("carry", "float32", (1, 1, CHUNK, WIDTH))
    outputs = [
        Tensor("features", "float32", (1, 1, CHUNK, WIDTH)),
        Tensor("carry_out", "float32", carry.shape),
    ]
    nodes = [
        *_body("samples", work, weights),
        helper.make_node("Add", ["frames", "carry"], ["features"]),
        helper.make_node("Identity", ["frames"], ["carry_out"]),
        helper.make_node("Identity", ["fresh"], ["unused"]),
    ]
    state = State("carry", "carry", "carry_out", "float32", carry.shape, "replace", 2, True, "values")
    model = _graph(nodes, [*inputs, carry], outputs, weights)
    return model, inputs, outputs[:1], [state], Geometry(chunk_frames=CHUNK)


def _window(work: int) -> tuple[bytes, list[Tensor], list[Tensor], list[State], Geometry]:
    left, right = 4, 3
    total = left + CHUNK + right
    weights = {
        "from": np.array([left], np.int64),
        "to": np.array([left + CHUNK], np.int64),
        "two": np.array([2], np.int64),
    }
    inputs = [Tensor("wave", "float32", (1, 320 * total + 80)), Tensor("frame_valid", "float32", (1, total))]
    outputs = [Tensor("features", "float32", (1, 1, CHUNK, WIDTH))]
    nodes = [
        *_body("wave", work, weights),
        helper.make_node("Slice", ["frames", "from", "to", "two"], ["features"]),
        helper.make_node("Identity", ["frame_valid"], ["unused"]),
    ]
    geometry = Geometry(chunk_frames=CHUNK, left_frames=left, right_frames=right)
    return _graph(nodes, inputs, outputs, weights), inputs, outputs, [], geometry


def _offline(work: int) -> tuple[bytes, list[Tensor], list[Tensor], list[State], Geometry]:
    weights: dict[str, np.ndarray] = {}
    inputs = [Tensor("wave", "float32", (1, "T"))]
    outputs = [Tensor("features", "float32", (1, 1, "F", WIDTH))]
    nodes = [*_body("wave", work, weights), helper.make_node("Identity", ["frames"], ["features"])]
    return _graph(nodes, inputs, outputs, weights), inputs, outputs, [], Geometry()


KINDS = {"streaming": _streaming, "window": _window, "offline": _offline}


def _reference(wave: np.ndarray, kind: str, work: int) -> np.ndarray:
    """(1, F, W): the same in NumPy, with the carry of the streaming toy (the frames of the chunk before)."""
    weights: dict[str, np.ndarray] = {}
    _body("wave", work, weights)
    count = frames_for(len(wave))
    frames = np.stack([weights["front"][:, 0] @ wave[320 * t : 320 * t + 400] for t in range(count)])
    for _ in range(work):
        frames = np.tanh(frames)
    if kind == "streaming":
        frames = frames + np.concatenate([np.zeros((CHUNK, WIDTH), np.float32), frames[:-CHUNK]])
    return frames[None].astype(np.float32)


@pytest.fixture(scope="session")
def make_bundle(tmp_path_factory: pytest.TempPathFactory) -> MakeBundle:
    """``make_bundle(kind="streaming", work=2, **manifest fields)`` writes a bundle and gives its folder; with
    ``wrong`` its self-test expects other features than it computes."""

    def make(
        kind: str = "streaming",
        *,
        work: int = 2,
        name: str = "toy",
        source: dict | None = None,
        wrong: float = 0.0,
        **fields: object,
    ) -> Path:
        model, inputs, outputs, states, geometry = KINDS[kind](work)
        target = tmp_path_factory.mktemp("bundles") / name
        wave = speech_like(16_400, seed=3)
        with write_bundle(target) as folder:
            (folder / "model.onnx").write_bytes(model)
            np.savez(folder / "selftest.npz", wave=wave, features=_reference(wave, kind, work) + np.float32(wrong))
            base: dict = {
                "kind": kind, "target": "onnx", "precision": "fp32", "status": "built", "artifact": "model.onnx",
                "features": "hidden", "layers": (1,), "feature_width": WIDTH, "inputs": tuple(inputs),
                "outputs": tuple(outputs), "states": tuple(states), "geometry": geometry,
                "files": list_files(folder), "source": source or {"checkpoint": "toy"}, "tools": {},
                "parity": {"bound": {"max_abs": 1e-4}},
            }  # fmt: skip
            write_manifest(folder, Manifest(**{**base, **fields}))
        return target

    return make


@pytest.fixture(scope="session")
def streaming_bundle(make_bundle: MakeBundle) -> Path:
    return make_bundle("streaming")


@pytest.fixture
def measurement() -> Measurement:
    """A made measurement of 300 chunks of 40 ms around 5 ms, steady; `replace` it to taste."""
    rng = np.random.default_rng(7)
    latency = 5.0 * np.exp(0.02 * rng.standard_normal(300))
    at_s = 0.04 * np.arange(1, 301)
    request = Request(mode="paced", seconds=12.0)
    context = Context(
        machine="Test Board", processor="Test Core", architecture="aarch64", cores=4, memory_bytes=4 * 10**9,
        system="Test OS 1", kernel="Linux 6", python="3.11.2",
        packages={"onnxruntime": "1.31.0", "reuse-distill": "0.1.0"},
        board_release="unmeasured", virtualised="no", load_before=0.1,
    )  # fmt: skip
    return Measurement(
        bundle=BundleFacts("toy", "streaming", "onnx", "fp32", "0" * 64, 2, 45.0),
        request=request,
        context=context,
        settings={"governor": "performance", "highest_clock": "2.40 GHz", "power_mode": "unmeasured"},
        metrics={"p50": 5.0, "p90": 5.2, "p99": 5.3, "max": 5.5, "rtf": 0.125, "peak_memory": 100e6},
        samples=(StreamSamples(tuple(at_s.tolist()), tuple(latency.tolist()), tuple(latency.tolist())),),
        readings=(
            Reading(0.0, 2.4e9, 50.0, None, False, 4.0, None, 0.1),
            Reading(12.0, 2.4e9, 51.0, None, False, 4.0, None, 0.1),
        ),
        overhead=Overhead(0.001, 0.002, 0.1),
        throttling="no",
        energy_source="unmeasured",
        taken_at="2030-01-02T03:04:05+00:00",
    )
