"""Presets: the published shapes, and names that are nearly right."""

from __future__ import annotations

import dataclasses

import pytest
from reuse_distill.runtime.errors import RdError
from reuse_distill.student import PRESETS, ChunkContext, preset

PUBLISHED = {  # width, FFN, reusing layers, heads on top, mask embedding
    "armhubert-960h": (480, 864, 6, 768, True),
    "armhubert-s": (432, 816, 6, 768, True),
    "armwavlm-s": (432, 816, 6, 768, True),
    "maskhubert-960h": (480, 640, 0, 768, True),
    "starhubert": (432, 976, 0, None, False),
    "starhubert-l": (432, 1392, 0, None, False),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_shapes(name: str) -> None:
    config = preset(name)
    found = (config.width, config.ffn_width, len(config.reuse_layers), config.head_width, config.mask_embedding)
    assert found == PUBLISHED[name]
    assert (config.layers, config.heads, config.position_kernel, config.position_groups) == (12, 12, 128, 16)
    assert (config.conv_norm, config.lookahead_frames, config.context) == ("group", 63, None)


def test_the_default_of_training_is_the_method_as_published() -> None:
    assert {config.reuse_mode for config in PRESETS.values()} == {"shared"}


@pytest.mark.parametrize("name", ["arm-stream", "tiny-stream", "pocket-stream"])
def test_streaming_presets(name: str) -> None:
    config = preset(name)
    assert config.streamable
    assert config.lookahead_frames == 4
    assert config.context == ChunkContext(chunk_frames=8, left_frames=128)
    assert len(config.reuse_layers) == config.layers // 2


def test_tiny_and_tiny_stream_have_the_same_weights() -> None:
    streaming = {"conv_norm": "layer", "lookahead_frames": 4, "context": ChunkContext(8, 128)}
    assert dataclasses.replace(preset("tiny"), **streaming) == preset("tiny-stream")


def test_changes() -> None:
    assert preset("tiny", layers=4, reuse_layers=(2,)).layers == 4
    assert preset("tiny") == PRESETS["tiny"]


def test_unknown_names() -> None:
    with pytest.raises(RdError, match="no student preset 'armhubert-960'") as caught:
        preset("armhubert-960")
    assert caught.value.hint == "did you mean 'armhubert-960h'?"
    with pytest.raises(RdError, match="no setting 'ffn_with'") as caught:
        preset("tiny", ffn_with=3)
    assert caught.value.hint == "did you mean 'ffn_width'?"
