"""MACs and memory of one artifact: from shapes, of what is in it, consistent between modes."""

from __future__ import annotations

import dataclasses

import pytest
from reuse_distill.export.estimates import activation_bytes, estimates, macs_per_second
from reuse_distill.runtime.bundle_format.bundle import read_bundle
from reuse_distill.student import ChunkContext
from reuse_distill.student.cost import macs


def test_layers_and_heads_that_are_not_there_cost_nothing(configs, spec_of) -> None:
    config = configs["shared"]
    every, first = spec_of("offline"), spec_of("offline", layers=(1,))
    assert macs_per_second(config, every) == pytest.approx(sum(macs(config, 499).values()) / 9.98)
    assert macs_per_second(config, first) < macs_per_second(config, every)
    one_head = spec_of("offline", layers=(4,))
    saved = macs_per_second(config, every) - macs_per_second(config, one_head)
    assert saved == pytest.approx(3 / 4 * macs(config, 499)["heads"] / 9.98)
    hidden = spec_of("offline", features="hidden")
    assert macs_per_second(config, one_head) - macs_per_second(config, hidden) == pytest.approx(saved / 3)


def test_a_window_pays_for_its_context(configs, spec_of) -> None:
    config, spec = configs["shared"], spec_of("window")
    assert spec.mode.context.frames == 72
    window, chunk = macs(config, 72), macs(config, 8)
    whole = sum(window.values()) - window["heads"] + chunk["heads"]  # heads see the chunk alone
    assert macs_per_second(config, spec) == pytest.approx(whole / (8 * 0.02))
    assert macs_per_second(config, spec) > 5 * macs_per_second(config, spec_of("offline"))


def test_a_stream_attends_to_its_cache(configs, spec_of) -> None:
    config = configs["stream"]
    near, far = (spec_of("streaming", context=ChunkContext(4, left)) for left in (12, 120))
    per_key = macs(config, 4, attended=1)["attention"] / 0.08
    assert macs_per_second(config, far) - macs_per_second(config, near) == pytest.approx(108 * per_key)


def test_memory_of_long_audio_is_that_of_the_maps(configs) -> None:
    config = configs["shared"]
    assert activation_bytes(config, 20_000, attended=None) == 2 * config.heads * 20_000**2 * 4
    short = activation_bytes(config, 100, attended=None)
    first = (320 * 100 + 80 - 10) // 5 + 1
    assert short == 4 * first * (16 + 16), "input and output of the GELU behind the second convolution"


@pytest.mark.parametrize(("name", "mode"), [("shared", "offline"), ("stream", "streaming")])
def test_a_bundle_tells_them(name: str, mode: str, workshop, spec_of) -> None:
    manifest = read_bundle(workshop.bundle(name, mode)).manifest
    told = manifest.estimates
    assert told == estimates(
        workshop.student(name).config, spec_of(mode), manifest.states, artifact_bytes=manifest.artifact_bytes
    )
    assert told["memory_bytes"] == told["weight_bytes"] + told["state_bytes"] + told["activation_bytes"]
    assert (told["state_bytes"] > 0) == (mode == "streaming")
    assert manifest.source["macs_per_second"] == told["macs_per_second"]
    assert dataclasses.asdict(manifest)["estimates"] == told


def test_weights_that_the_engine_unpacks_count_in_float32(workshop) -> None:
    """A third of the file is not a third of the memory: ONNX Runtime unpacks int8-weights when it loads them."""
    small, plain = (
        read_bundle(workshop.bundle("shared", "offline", *words)).manifest.estimates
        for words in (("int8-weights", "--min-cosine", "0.9"), ())
    )
    assert small["artifact_bytes"] < 0.7 * plain["artifact_bytes"]
    assert plain["weight_bytes"] == plain["artifact_bytes"]
    assert 0.8 < small["weight_bytes"] / plain["weight_bytes"] < 1
    assert small["memory_bytes"] == small["weight_bytes"] + small["activation_bytes"]
