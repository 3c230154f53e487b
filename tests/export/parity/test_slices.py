"""Slices and the worst recording: they point to where features differ, and nowhere else."""

from __future__ import annotations

import numpy as np
import pytest
from reuse_distill.export.parity.slices import (
    LEVELS_DBFS,
    Compared,
    frame_levels_db,
    noisy_clips,
    slice_rows,
    worst_clip,
)
from reuse_distill.runtime.bundle_format.bundle import read_bundle
from reuse_distill.runtime.equivalence.parity import Difference


def compared(levels: list[float], spoiled: float | None, *, seed: int = 0) -> Compared:
    """One clip of noise, a frame per level; frames of the level ``spoiled`` have wrong features."""
    rng = np.random.default_rng(seed)
    gain = np.repeat(levels, 320)
    wave = np.append(gain * rng.choice([-1, 1], len(gain)), np.full(80, levels[-1])).astype(np.float32)
    reference = rng.standard_normal((2, len(levels), 8)).astype(np.float32)
    wrong = np.array(levels) == spoiled
    return Compared(wave, np.where(wrong[:, None], -reference, reference), reference)


def test_levels_are_those_of_the_frames() -> None:
    wave = np.concatenate([np.zeros(400), np.full(640, 0.1), np.full(400, 1.0)]).astype(np.float32)
    levels = frame_levels_db(wave)
    assert len(levels) == 4
    assert levels[0] == -100
    assert levels[2] == pytest.approx(10 * np.log10((0.01 * 320 + 0.01 * 80) / 400), abs=0.1)
    assert levels[3] > -10


@pytest.mark.parametrize(("spoiled", "bad", "good"), [(0.01, "soft", "loud"), (0.9, "loud", "soft")])
def test_the_slice_that_is_wrong_is_the_one_that_says_so(spoiled: float, bad: str, good: str) -> None:
    levels = [0.01] * 20 + [0.1] * 20 + [0.9] * 20
    rows = {row["slice"]: row for row in slice_rows([compared(levels, spoiled)], [compared(levels, None, seed=3)])}
    assert rows[bad]["mean_cosine"] < -0.8
    assert rows[good]["mean_cosine"] == pytest.approx(1)
    assert rows[good]["max_abs"] == 0
    assert 18 <= rows[bad]["frames"] <= 22
    assert rows["noisy"]["min_cosine"] == pytest.approx(1)


def test_slices_go_across_clips() -> None:
    """A quiet clip and a loud one: the soft third is all of the quiet one."""
    quiet, loud = compared([0.01] * 15, 0.01), compared([0.5] * 30, None)
    soft, high = slice_rows([loud, quiet], [])
    assert (soft["slice"], soft["frames"], high["slice"]) == ("soft", 15, "loud")
    assert soft["mean_cosine"] == pytest.approx(-1)


def test_noise_is_repeatable_and_at_its_level(noise) -> None:
    clips = [noise(16_000), noise(32_000, seed=2), noise(100_000, seed=3)]
    first, second = noisy_clips(clips), noisy_clips(clips)
    assert [len(clip) for clip in first] == [64_000, 32_000], "the two longest, cut to 4 s"
    for mine, other, clean in zip(first, second, (clips[2], clips[1]), strict=True):
        np.testing.assert_array_equal(mine, other)
        speech = clean[: len(mine)]
        snr_db = 20 * np.log10(np.square(speech).mean() ** 0.5 / np.square(mine - speech).mean() ** 0.5)
        assert snr_db == pytest.approx(10, abs=0.1)


def test_the_worst_clip_is_named() -> None:
    rows = [Difference(9, 0.5, 0.99, 0.9), Difference(9, 0.1, 0.95, 0.9), Difference(9, 0.2, 0.999, 0.9)]
    assert worst_clip(rows, ("a.wav", "b.wav", "c.wav"), by_size=False)["name"] == "b.wav"
    assert worst_clip(rows, ("a.wav", "b.wav", "c.wav"), by_size=True)["name"] == "a.wav"
    assert worst_clip(rows, (), by_size=False) == {"clip": 2, "name": "clip 2", "max_abs": 0.1, "mean_cosine": 0.95}


def test_a_bundle_tells_its_slices(workshop) -> None:
    """int8: held-out recordings with their names; the parts agree with the whole."""
    manifest = read_bundle(workshop.bundle("shared", "offline", "int8")).manifest
    parity = manifest.parity
    names = [row["slice"] for row in parity["slices"]]
    assert names == ["soft", "loud", "noisy", *(f"{level} dBFS" for level in LEVELS_DBFS)]
    assert max(row["max_abs"] for row in parity["slices"][:2]) <= parity["measured"]["max_abs"] + 1e-6
    assert parity["worst"]["mean_cosine"] == min(clip["mean_cosine"] for clip in parity["clips"])
    assert parity["worst"]["name"] in {clip["name"] for clip in parity["clips"]}
    assert all(clip["name"].endswith(".flac") for clip in parity["clips"])
    if parity["ran_on"] is not None:
        assert set(parity["ran_on"]) == {"cpu"}
        operators = parity["ran_on"]["cpu"]["operators"]
        assert sum(operators.values()) == parity["ran_on"]["cpu"]["nodes"]
        assert operators["Softmax"] == 2
