"""OpenVINO's kernel of joined attention gave wrong features where the first clip after loading was one frame long."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from reuse_distill.runtime.bundle_format.bundle import Bundle
from reuse_distill.runtime.bundle_format.manifest import Geometry, Manifest, Tensor
from reuse_distill.runtime.engines.openvino.openvino_backend import OpenvinoBackend
from reuse_distill.runtime.engines.openvino.openvino_device import load_openvino
from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.geometry import HOP_SAMPLES, samples_for

HEADS, HEAD = 2, 16
WIDTH = HEADS * HEAD


@pytest.fixture(scope="module")
def weights() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.standard_normal((HOP_SAMPLES, WIDTH)).astype(np.float32) / 18 for _ in range(3)]


@pytest.fixture(scope="module")
def attention(weights: list[np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Frames of 320 samples, and attention between them in one operation."""
    try:
        openvino = load_openvino()
    except RdError as error:
        pytest.skip(str(error))
    from openvino import opset13 as op

    def constant(*numbers: int) -> Any:
        return op.constant(np.array(numbers, np.int64))

    wave = op.parameter([1, -1], np.float32, name="wave")
    wave.output(0).set_names({"wave"})
    whole = op.slice(wave, constant(0), constant(-(samples_for(1) - HOP_SAMPLES)), constant(1), constant(1))
    frames = op.reshape(whole, constant(1, -1, HOP_SAMPLES), False)

    def rows(weight: np.ndarray) -> Any:
        split = op.reshape(op.matmul(frames, op.constant(weight), False, False), constant(0, 0, HEADS, HEAD), True)
        return op.transpose(split, constant(0, 2, 1, 3))

    joined = op.scaled_dot_product_attention(*map(rows, weights))
    result = op.reshape(op.transpose(joined, constant(0, 2, 1, 3)), constant(0, 0, WIDTH), True)
    result.output(0).set_names({"features"})
    folder = tmp_path_factory.mktemp("attention")
    openvino.save_model(openvino.Model([result], [wave]), str(folder / "model.xml"), compress_to_fp16=False)
    manifest = Manifest(
        kind="offline",
        target="openvino",
        precision="fp32",
        status="built",
        artifact="model.xml",
        features="heads",
        layers=(1,),
        feature_width=WIDTH,
        inputs=(Tensor("wave", "float32", (1, "T")),),
        outputs=(Tensor("features", "float32", (1, "F", WIDTH)),),
        states=(),
        geometry=Geometry(),
        files={},
        source={},
        tools={},
        device={"inference_precision": "f32"},
    )
    return Bundle(folder, manifest)


def expected(wave: np.ndarray, weights: list[np.ndarray]) -> np.ndarray:
    """The same attention in float64."""
    frames = wave[0, : len(wave[0]) - samples_for(1) + HOP_SAMPLES].reshape(-1, HOP_SAMPLES).astype(np.float64)
    q, k, v = ((frames @ weight).reshape(-1, HEADS, HEAD).transpose(1, 0, 2) for weight in weights)
    scores = q @ k.transpose(0, 2, 1) / np.sqrt(HEAD)
    maps = np.exp(scores - scores.max(-1, keepdims=True))
    return (maps / maps.sum(-1, keepdims=True) @ v).transpose(1, 0, 2).reshape(-1, WIDTH)


@pytest.mark.parametrize("frames", [(1, 61, 200, 1, 8), (2, 1, 61), (61, 1, 61)])
def test_every_length_is_right_whichever_came_first(
    attention: Bundle, weights: list[np.ndarray], frames: tuple[int, ...]
) -> None:
    backend = OpenvinoBackend(attention, provider="cpu", threads=1)
    for count in frames:
        wave = np.random.default_rng(count).standard_normal((1, samples_for(count))).astype(np.float32)
        features = backend.run({"wave": wave})["features"][0]
        assert np.abs(features - expected(wave, weights)).max() < 1e-4, count


def test_parallel_streams_of_such_a_model_are_refused(attention: Bundle) -> None:
    with pytest.raises(RdError, match=r"NUM_STREAMS is 2; a model of utterances of any length is run in 1"):
        OpenvinoBackend(attention, provider="cpu", threads=2, options={"NUM_STREAMS": "2"})
