"""Configurations: what is refused and how it is said."""

from __future__ import annotations

import dataclasses

import pytest
from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.geometry import HOP_SAMPLES, RECEPTIVE_FIELD_SAMPLES
from reuse_distill.runtime.untrusted_input import from_dict, to_dict
from reuse_distill.student import PRESETS, StudentConfig, preset
from reuse_distill.student.config import conv_stack, every_second

BAD = [
    ({"reuse_mode": "sharde"}, "reuse_mode 'sharde' is unknown", "did you mean 'shared'?"),
    ({"conv_norm": "batch"}, "conv_norm 'batch' is unknown", "known: every, group, layer"),
    ({"heads": 5}, "width 128 is not a multiple of the 5 heads", None),
    ({"position_groups": 24}, "width 128 is not a multiple of position_groups 24", None),
    ({"lookahead_frames": 128}, "lookahead_frames 128 is outside 0..127", "part of the positional"),
    ({"lookahead_frames": -1}, "lookahead_frames -1 is outside 0..127", None),
    ({"reuse_layers": (1, 2)}, "reuse_layers [1] are outside 2..6", "the first layer has no map to take"),
    ({"reuse_layers": (6, 7, 8)}, "reuse_layers [7, 8] are outside 2..6", None),
    ({"heads": 0}, "heads 0 is outside 1..", None),
    ({"width": -128}, "width -128 is outside 1..", None),
    ({"ffn_width": 0}, "ffn_width 0 is outside 1..", None),
    ({"layers": 0, "reuse_layers": ()}, "layers 0 is outside 1..", None),
    ({"layers": 10**9}, "layers 1000000000 is outside 1..", None),
    ({"position_kernel": 0}, "position_kernel 0 is outside 1..", None),
    ({"position_groups": 0}, "position_groups 0 is outside 1..", None),
    ({"head_width": 0}, "head_width 0 is outside 1..", None),
    ({"dropout": 1.5}, "dropout 1.5 is outside 0..1", None),
    ({"input_dropout": float("nan")}, "input_dropout nan is outside 0..1", None),
    ({"conv_layers": ((32, 10, 5),)}, "stride 5 and receptive field 10 samples", "conv_stack"),
    ({"conv_layers": ()}, "stride 1 and receptive field 1 samples", "conv_stack"),
    ({"conv_layers": ((32, 10, 0),)}, "conv layer (32, 10, 0) has a value outside 1..", None),
    ({"conv_layers": ((32, 10),)}, "conv layer (32, 10) is not (channels, kernel, stride)", None),
]


@pytest.mark.parametrize(("changes", "message", "hint"), BAD)
def test_bad_values(changes: dict, message: str, hint: str | None) -> None:
    with pytest.raises(RdError) as caught:
        dataclasses.replace(preset("tiny"), **changes)
    assert message in caught.value.message
    if hint is not None:
        assert hint in caught.value.hint


@pytest.mark.parametrize("name", PRESETS)
def test_json_roundtrip(name: str) -> None:
    assert from_dict(StudentConfig, to_dict(PRESETS[name]), where="here") == PRESETS[name]


def test_unknown_key_names_the_nearest() -> None:
    data = to_dict(preset("tiny")) | {"ffn_widht": 3}
    with pytest.raises(RdError, match="here: unknown key 'ffn_widht'") as caught:
        from_dict(StudentConfig, data, where="here")
    assert caught.value.hint == "did you mean 'ffn_width'?"


def test_conv_stack_has_the_geometry_of_the_family() -> None:
    layers = conv_stack(128, 256, 480)
    assert layers == ((128, 10, 5), (256, 1, 1), *[(256, 3, 2)] * 4, (480, 1, 1), (480, 2, 2), (480, 2, 2))
    field = hop = 1
    for _, kernel, stride in layers:
        field, hop = field + (kernel - 1) * hop, hop * stride
    assert (field, hop) == (RECEPTIVE_FIELD_SAMPLES, HOP_SAMPLES)


def test_layers_that_reuse() -> None:
    config = preset("armhubert-960h")
    assert config.reuse_layers == every_second(12) == (2, 4, 6, 8, 10, 12)
    assert [config.reuses(n) for n in (1, 2, 11, 12)] == [False, True, False, True]
    assert [config.map_source(n) for n in (1, 2, 11, 12)] == [1, 1, 11, 11]
    consecutive = preset("tiny", reuse_layers=(2, 3, 4, 6))
    assert [consecutive.map_source(n) for n in range(1, 7)] == [1, 1, 1, 1, 5, 5]


def test_only_per_frame_norms_stream() -> None:
    streaming = {name for name, config in PRESETS.items() if config.streamable}
    assert streaming == {"arm-stream", "tiny-stream", "pocket-stream", "pocket"}
