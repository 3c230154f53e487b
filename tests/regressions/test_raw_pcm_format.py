"""Raw PCM of the wrong format: float32 read as int16 was noise without a word, the other way round had a wrong hint."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import soundfile
from reuse_distill.runtime import Encoder
from reuse_distill.runtime.audio.samples import LOUDEST
from reuse_distill.runtime.bundle_format.bundle import SHIPPED
from reuse_distill.runtime.cli.stream_inputs import pcm_blocks
from reuse_distill.runtime.errors import RdError

SPEECH = sorted((Path(__file__).resolve().parents[2] / "demo" / "speech").glob("*.flac"))


def speech(path: Path, gain: float = 1.0) -> np.ndarray:
    return gain * soundfile.read(path, dtype="float32")[0]


def read(data: bytes, format: str) -> np.ndarray:
    return np.concatenate([np.zeros(0, np.float32), *pcm_blocks(io.BytesIO(data), format=format)])


@pytest.mark.parametrize("path", SPEECH, ids=lambda path: path.stem)
@pytest.mark.parametrize("gain", [1.0, 0.05])
def test_the_other_format_is_named(path: Path, gain: float) -> None:
    wave = speech(path, gain)
    with pytest.raises(RdError) as refused:
        read(wave.astype("<f4").tobytes(), "s16le")
    assert refused.value.hint == "--format f32le"
    with pytest.raises(RdError) as refused:
        read((wave * 32767).astype("<i2").tobytes(), "f32le")
    assert refused.value.hint == "--format s16le"


@pytest.mark.parametrize("path", SPEECH, ids=lambda path: path.stem)
@pytest.mark.parametrize("gain", [1.0, 0.05, 0.001, 0.0])
def test_the_right_format_is_taken_at_every_level(path: Path, gain: float) -> None:
    wave = speech(path, gain)
    assert len(read(wave.astype("<f4").tobytes(), "f32le")) == len(wave)
    assert len(read((wave * 32767).astype("<i2").tobytes(), "s16le")) == len(wave)


def test_signals_that_are_no_speech_are_taken() -> None:
    t = np.arange(16_000)
    rng = np.random.default_rng(0)
    noise = rng.standard_normal(16_000)
    for wave in (np.sin(0.3 * t), 0.3 * noise, 1e-4 * noise, np.sign(np.sin(t)), np.eye(1, 16_000)[0], 0 * t):
        clipped = np.clip(wave, -1, 1)
        read(clipped.astype("<f4").tobytes(), "f32le")
        read((clipped * 32767).astype("<i2").tobytes(), "s16le")


def test_one_nan_in_floats_is_still_a_nan() -> None:
    wave = speech(SPEECH[0]).astype("<f4")
    wave[700] = np.nan
    with pytest.raises(RdError, match=r"sample 700 is nan.*\n\nhint: replace NaN"):
        read(wave.tobytes(), "f32le")


@pytest.mark.parametrize("channels", [1, 2])
def test_no_accepted_sample_makes_features_that_are_not_finite(channels: int) -> None:
    stream = Encoder.load(SHIPPED).stream()
    frames = stream.push(np.full((8000, channels), LOUDEST, np.float32))
    assert frames and all(np.isfinite(frame.features).all() for frame in frames)
    with pytest.raises(RdError, match=r"sample 8001 is 3e\+38.*\n\nhint: full scale"):
        stream.push(np.array([[1.0] * channels, [3e38] * channels], np.float32))
