"""LiteRT bundles as a user runs them: parity, streams, precisions. Converting takes half a minute each."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from reuse_distill.export.parity.reference import reference_features
from reuse_distill.export.proof import prove
from reuse_distill.export.proof.litert_graph import read_litert
from reuse_distill.runtime import Encoder
from reuse_distill.runtime.errors import RdError

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("mode", ["offline", "window", "streaming"])
def test_fp32_is_torch_to_1e_4_and_its_map_is_reused(export_one: Callable[..., Any], mode: str) -> None:
    made = export_one(mode)
    parity, proof = made.manifest.parity, made.manifest.graph_proof
    assert parity["bound"] == {"max_abs": 1e-4}
    assert parity["measured"]["max_abs"] <= 1e-4
    assert "by" not in parity  # the runtime itself
    assert (proof.layers, proof.computed_maps, proof.softmaxes) == (2, 1, 1)
    assert [(row.layer, row.source_layer) for row in proof.reused] == [(2, 1)]
    width, ffn, head = 32, 48, 24
    expected = (4 + 2) * width**2 + 2 * (2 * width * ffn) + 2 * width * head
    assert sum(node.weight_elements for node in read_litert(made.artifact).nodes) == expected
    encoder = Encoder.load(made.folder)
    assert encoder.selftest().passed
    assert encoder.provider == "cpu"


@pytest.mark.parametrize("mode", ["window", "streaming"])
def test_another_students_file_is_refused(export_one: Callable[..., Any], mode: str) -> None:
    made = export_one(mode)
    graph = read_litert(made.artifact)
    for changes, reason in (
        ({"reuse_layers": ()}, "projection weights lead to its value product|not the softmax"),
        ({"reuse_mode": "renormalised"}, "does not take the map|softmaxes found"),
        ({"ffn_width": 64}, "projection weights"),
    ):
        config = dataclasses.replace(made.student.config, **changes)
        with pytest.raises(RdError, match=reason):
            prove(graph, config, exported=(1, 2), features="heads")


def test_an_utterance_of_any_length_is_what_it_is_alone(
    export_one: Callable[..., Any], clips: list[np.ndarray]
) -> None:
    """The norm over the utterance sees neither the zeros after it nor too few of its last samples."""
    made = export_one("offline")
    encoder = Encoder.load(made.folder)
    for samples in (400, 719, 5_000, 12_345):
        found = encoder.frames(clips[0][:samples]).features
        assert found.shape[-2] == (samples - 80) // 320
        expected = reference_features(made.student, made.spec, clips[0][:samples])
        np.testing.assert_allclose(found, expected, atol=1e-4)
    with pytest.raises(RdError, match=r"1\.5 s at once: model\.tflite was exported for up to 1\.3 s"):
        encoder.extract(np.zeros(24_000, np.float32))


def test_a_stream_gives_what_the_whole_utterance_gives_and_its_state_moves(
    export_one: Callable[..., Any], clips: list[np.ndarray]
) -> None:
    encoder = Encoder.load(export_one("streaming").folder)
    whole = encoder.extract(clips[0])
    with encoder.stream() as stream:
        parts = stream.push(clips[0][:9_000])
        saved = stream.snapshot()
    with encoder.stream() as other:
        other.restore(saved)
        parts += [*other.push(clips[0][9_000:]), *other.finish()]
    np.testing.assert_allclose(encoder.join(parts), whole, atol=1e-6)


@pytest.mark.parametrize("precision", ["fp16", "int8-dynamic", "int8"])
def test_smaller_weights_keep_their_bound(export_one: Callable[..., Any], precision: str) -> None:
    plain, made = export_one("streaming"), export_one("streaming", precision)
    assert made.manifest.artifact_bytes < plain.manifest.artifact_bytes
    assert made.manifest.parity["measured"]["max_abs"] > 1e-6
    assert made.manifest.graph_proof.softmaxes == 1
    if precision != "fp16":
        assert made.manifest.parity["measured"]["mean_cosine"] >= 0.99
        reasons = [row["why"] for row in made.manifest.quantisation["in_float"]]
        assert any("waveform convolution" in why for why in reasons)
        assert any("positional convolution" in why for why in reasons)
    assert Encoder.load(made.folder).selftest().passed
