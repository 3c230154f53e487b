"""Costs: the published GMACs, and every part against what torch really multiplies."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from reuse_distill.runtime.geometry import samples_for
from reuse_distill.student import PRESETS, Student, StudentConfig, preset
from reuse_distill.student.cost import (
    SUPERB_ATTENDED,
    SUPERB_SECONDS,
    SUPERB_UTTERANCES,
    macs,
    macs_per_second,
    superb_macs,
    weight_bytes,
)
from torch.utils.flop_counter import FlopCounterMode

PUBLISHED = {
    "armhubert-960h": 502.0,
    "armhubert-s": 449.4,
    "maskhubert-960h": 520.0,
    "starhubert": 463.5,
    "starhubert-l": 511.9,
}
# An utterance of T samples gives (T - 80) / 320 frames, rounded down: half a frame less on average.
FRAMES = round((SUPERB_SECONDS * 16_000 - 80 * SUPERB_UTTERANCES) / 320 - SUPERB_UTTERANCES / 2)
ATTENDED = SUPERB_ATTENDED
HUBERT = StudentConfig(
    conv_layers=((512, 10, 5), *((512, 3, 2),) * 4, *((512, 2, 2),) * 2),
    width=768,
    ffn_width=3072,
    heads=12,
    layers=12,
    head_width=None,
)
DISTIL = dataclasses.replace(preset("distilhubert"), head_kind="layerwise", head_targets=(), head_width=None)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_gmacs(name: str) -> None:
    assert superb_macs(preset(name)) / 1e9 == pytest.approx(PUBLISHED[name], rel=2e-3)


@pytest.mark.parametrize(("config", "published"), [(HUBERT, 1669.0), (DISTIL, 785.0)])
def test_published_gmacs_of_hubert_and_distilhubert(config: StudentConfig, published: float) -> None:
    assert superb_macs(config) / 1e9 == pytest.approx(published, rel=5e-3)


@pytest.mark.parametrize("name", ["armhubert-960h", "armhubert-s", "maskhubert-960h"])
def test_published_gmacs_include_the_heads(name: str) -> None:
    """At the length that fits the students without heads, the others are met with their heads only."""
    parts = macs(preset(name), FRAMES, attended=ATTENDED)
    assert (sum(parts.values()) - parts["heads"]) / 1e9 < 0.92 * PUBLISHED[name]


def test_the_front_end_is_two_fifths_of_the_small_students() -> None:
    for name in ("armhubert-s", "starhubert"):
        parts = macs(preset(name), FRAMES, attended=ATTENDED)
        assert 0.37 < parts["conv"] / sum(parts.values()) < 0.395


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_total_is_what_torch_multiplies(name: str) -> None:
    """Counted by the dispatcher on tensors without data: full size, no arithmetic."""
    config, frames = preset(name), 73
    with torch.device("meta"):
        student = Student(config).eval().to("meta")  # log-mel has weights of its own
        wave = torch.empty(1, samples_for(frames))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        student(wave)
    assert sum(macs(config, frames).values()) * 2 == counter.get_total_flops()


def test_an_input_projection_is_counted() -> None:
    config = dataclasses.replace(preset("tiny"), conv_layers=(*preset("tiny").conv_layers[:-1], (64, 2, 2)))
    assert macs(config, 10)["input_projection"] == 64 * 128 * 10
    assert macs(preset("tiny"), 10)["input_projection"] == 0


def test_reuse_saves_queries_keys_and_score_products() -> None:
    reusing = preset("tiny")
    plain = dataclasses.replace(reusing, reuse_layers=())
    assert macs(plain, 50)["projections"] - macs(reusing, 50)["projections"] == 3 * 2 * 128 * 128 * 50
    assert macs(plain, 50)["attention"] - macs(reusing, 50)["attention"] == 3 * 128 * 50 * 50


def test_a_stream_pays_for_what_it_attends_to() -> None:
    config = preset("arm-stream")
    assert macs(config, 500, attended=136)["attention"] * 500 == macs(config, 500)["attention"] * 136


def test_per_second() -> None:
    config = preset("tiny")
    assert macs_per_second(config, seconds=2.0)["ffn"] == macs(config, 100)["ffn"] / 2


def test_weight_bytes() -> None:
    config = preset("armhubert-960h")
    folded = 26_448_448 - 480 - 128  # mask embedding and the gains of the 128 taps
    assert weight_bytes(config) == 4 * folded
    assert weight_bytes(config, bits=8) == folded
