"""Which bundles fit a device, for every profile that is shipped."""

from __future__ import annotations

import pytest
from reuse_distill.devices.device_profiles import find_profile, known_profiles
from reuse_distill.export.device_set.set_plan import SUITED, plan
from reuse_distill.export.targets import find_target
from reuse_distill.runtime.errors import RdError


def made(name: str, config, **options) -> list[str]:
    return [one.name for one in plan(find_profile(name), config, **options) if not one.left_out]


def test_the_sets_of_some_devices(configs) -> None:
    stream = configs["stream"]
    assert made("jetson-orin-nano", stream) == [
        "tensorrt-streaming-fp32",
        "tensorrt-streaming-fp16",
        "tensorrt-streaming-int8",
        "onnx-streaming-fp32",
        "onnx-streaming-int8",
    ]
    assert made("iphone-15", stream) == [f"coreml-streaming-{p}" for p in ("fp32", "fp16", "int8")]
    assert made("raspberry-pi-5", stream, targets=("ort",)) == ["ort-streaming-fp32", "ort-streaming-int8"]
    assert made("x86-avx512-vnni", stream) == ["onnx-streaming-fp32", "onnx-streaming-int8"]
    assert made("pixel-8", stream)[:2] == ["ort-streaming-fp32", "ort-streaming-int8"]


def test_a_student_that_cannot_stream_gets_windows(configs) -> None:
    assert made("x86-avx2", configs["shared"]) == ["onnx-window-fp32", "onnx-window-int8"]
    asked = plan(find_profile("x86-avx2"), configs["shared"], modes=("offline", "streaming"))
    assert [one.name for one in asked if not one.left_out] == ["onnx-offline-fp32", "onnx-offline-int8"]
    assert all("cannot stream" in one.left_out for one in asked if one.mode == "streaming")


@pytest.mark.parametrize("name", list(known_profiles()))
def test_every_profile_has_a_set(name: str, configs) -> None:
    """Every planned bundle is possible, and every combination that is left out says why."""
    profile = find_profile(name)
    planned = plan(profile, configs["stream"])
    assert any(not one.left_out for one in planned)
    assert profile.family in SUITED
    for one in planned:
        target = find_target(one.target)
        assert one.target in profile.targets
        assert one.left_out or (one.precision in target.precisions and one.mode in target.modes)


def test_what_is_left_out_says_why(configs) -> None:
    thor = {one.name: one.left_out for one in plan(find_profile("jetson-agx-thor"), configs["stream"])}
    assert thor["tensorrt-streaming-fp4"].startswith("rd-export has no fp4 for tensorrt; it has fp32")
    assert "computed in float32" in thor["onnx-streaming-fp16"]


def test_wrong_wishes(configs) -> None:
    iphone = find_profile("iphone-15")
    with pytest.raises(RdError, match=r"iPhone 15 .* does not run tensorrt\n\nhint: it runs coreml"):
        plan(iphone, configs["stream"], targets=("tensorrt",))
    with pytest.raises(RdError, match="there is no target 'tflite'"):
        plan(iphone, configs["stream"], targets=("tflite",))
    with pytest.raises(RdError, match="there is no mode 'live'"):
        plan(iphone, configs["stream"], modes=("live",))
