"""OpenVINO bundles as a user runs them: parity, streams, precisions, and what a processor cannot do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, cast

import numpy as np
import pytest
from reuse_distill.export.quantise.calibration import EveryFeed
from reuse_distill.export.quantise.quantisation_recipe import Recipe
from reuse_distill.export.spec import ExportSpec, Mode, Offline, Streaming
from reuse_distill.export.targets.openvino.nncf_int8 import quantise
from reuse_distill.runtime import Encoder
from reuse_distill.runtime.errors import RdError
from reuse_distill.student import ChunkContext


@pytest.fixture
def capabilities(openvino: Any) -> list[str]:
    return list(openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"))


@pytest.mark.parametrize("mode", ["offline", "window", "streaming"])
def test_fp32_is_torch_to_1e_4_in_every_layer(export_one: Callable[..., Any], mode: str) -> None:
    made = export_one(mode)
    parity = made.manifest.parity
    assert parity["bound"] == {"max_abs": 1e-4}
    assert parity["measured"]["max_abs"] <= 1e-4
    assert "by" not in parity  # the runtime itself
    assert len(parity["layers"]) == 2
    assert all(row["max_abs"] <= 1e-4 for row in parity["layers"])
    assert set(made.manifest.artifact_files) == {"model.xml", "model.bin"}
    encoder = Encoder.load(made.folder)
    assert encoder.selftest().passed
    assert encoder.provider == "cpu"
    assert encoder.backend.versions["inference_precision"] == "f32"
    assert encoder.placement is not None
    assert all(node.provider == "cpu" for node in encoder.placement)


def test_a_stream_gives_what_the_whole_utterance_gives(export_one: Callable[..., Any], clips: list[np.ndarray]) -> None:
    encoder = Encoder.load(export_one("streaming").folder)
    streams = encoder.streams(2)
    parts: list[list[Any]] = [[], []]
    for stream in streams:
        stream.feed(clips[0])
        stream.end()
    while any(stream.ready for stream in streams):
        for part, frames in zip(parts, encoder.step(streams), strict=True):
            part.extend([] if frames is None else [frames])
    whole = encoder.extract(clips[0])
    for part in parts:
        np.testing.assert_allclose(encoder.join(part), whole, atol=1e-5)


def test_fp16_stores_half_the_bytes_and_computes_in_float(export_one: Callable[..., Any]) -> None:
    half, whole = export_one("offline", "fp16"), export_one("offline")
    sizes = [one.manifest.files["model.bin"].size_bytes for one in (half, whole)]
    assert sizes[0] < 0.55 * sizes[1]
    assert Encoder.load(half.folder).backend.versions["inference_precision"] == "f32"
    assert half.manifest.parity["measured"]["max_abs"] > 1e-6


def test_bf16_runs_where_the_processor_has_it_and_is_refused_elsewhere(
    export_one: Callable[..., Any], capabilities: list[str], clips: list[np.ndarray]
) -> None:
    made = export_one("offline", "bf16")
    automatic = Encoder.load(made.folder, provider_options={"inference_precision": "auto"})
    if "BF16" in capabilities:
        assert "by" not in made.manifest.parity
        assert Encoder.load(made.folder).backend.versions["inference_precision"] == "bf16"
        assert automatic.backend.versions["inference_precision"] == "bf16"
        return
    assert "rounded to bfloat16" in made.manifest.parity["by"]
    assert made.manifest.parity["measured"]["max_abs"] > 1e-4  # it does round
    with pytest.raises(RdError, match="computes in bf16, which this processor has not") as caught:
        Encoder.load(made.folder).extract(clips[0])
    assert "inference_precision=auto" in str(caught.value.hint)
    assert automatic.backend.versions["inference_precision"] == "f32"
    np.testing.assert_allclose(
        automatic.extract(clips[0]), Encoder.load(export_one("offline").folder).extract(clips[0])
    )


@pytest.mark.parametrize("mode", ["offline", "streaming"])
def test_int8_keeps_its_bound_and_attention_in_float(export_one: Callable[..., Any], mode: str) -> None:
    pytest.importorskip("nncf", reason="nncf is not installed (the extra openvino)")
    made = export_one(mode, "int8")
    assert made.manifest.parity["measured"]["mean_cosine"] >= 0.99
    told = made.manifest.quantisation
    assert told["quantisers"] > 0
    assert any("attention product" in row["why"] for row in told["in_float"])
    assert any("waveform convolution" in row["why"] for row in told["in_float"])
    positional = [row["node"] for row in told["in_float"] if "positional convolution" in row["why"]]
    assert any(name.endswith("/WithoutBiases") for name in positional), "the convolution, not its bias alone"
    assert Encoder.load(made.folder).selftest().passed
    kernels = [node.op for node in Encoder.load(made.folder).placement or ()]
    assert any(op in ("FullyConnected in u8", "FullyConnected in i8") for op in kernels)


def test_notes_of_the_machine_are_not_in_the_file(export_one: Callable[..., Any]) -> None:
    made = export_one("offline")
    text = made.artifact.read_text()
    assert "conversion_parameters" not in text
    assert str(made.folder.parent) not in text


def test_the_range_of_a_step_is_that_of_all_steps(openvino: Any) -> None:
    """Averaged over the steps, as it is over clips, it clipped what is loud: steps kept a cosine of 0.92."""
    pytest.importorskip("nncf", reason="nncf is not installed (the extra openvino)")
    from openvino import opset13 as op

    def largest(mode: Mode) -> float:
        class Rows:
            spec = ExportSpec("openvino", mode, "int8", (1,), "heads")

            def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
                yield from ({"x": np.full((1, 8), size, np.float32)} for size in (1.0, 9.0))

        values = op.parameter([-1, 8], np.float32, name="x")
        values.output(0).set_names({"x"})
        weights = np.random.default_rng(0).standard_normal((8, 8)).astype(np.float32)
        plain = openvino.Model([op.matmul(values, op.constant(weights), False, False)], [values])
        model, _ = quantise(plain, cast(EveryFeed, Rows()), Recipe(), {})
        product = next(one for one in model.get_ordered_ops() if one.get_type_name() == "MatMul")
        return float(product.input_value(0).get_node().input_value(2).get_node().get_data().max())

    assert largest(Streaming(ChunkContext(4, 6))) / largest(Offline()) == pytest.approx(9 / 5, rel=0.02)
