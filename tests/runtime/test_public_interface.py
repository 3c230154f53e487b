"""What a user writes first: load, extract, repr, bytes into a stream."""

from __future__ import annotations

import numpy as np
import pytest
import soundfile
from reuse_distill.runtime.encoder import Encoder
from reuse_distill.runtime.errors import RdError

import reuse_distill as rd


def test_load_and_extract_use_the_shipped_bundle_by_default(toys, tmp_path) -> None:
    wave = toys.speech(24_000)
    soundfile.write(tmp_path / "talk.wav", wave, 16_000, subtype="FLOAT")
    features = rd.extract(tmp_path / "talk.wav")
    encoder = rd.load()
    assert encoder.bundle.path.name == "pocket-stream"
    assert features.shape == (74, encoder.manifest.feature_width)
    assert np.array_equal(features, encoder.extract(wave))
    assert np.array_equal(features, rd.extract(str(tmp_path / "talk.wav"), encoder.bundle.path))


def test_extract_of_another_rate_and_of_nothing(toys, tmp_path) -> None:
    soundfile.write(tmp_path / "cd.wav", np.repeat(toys.speech(4_800), 3), 48_000)
    assert len(rd.extract(tmp_path / "cd.wav")) == 14
    with pytest.raises(RdError, match="no such file"):
        rd.extract(tmp_path / "none.wav")
    with pytest.raises(RdError, match="not a bundle"):
        rd.load(tmp_path)


def test_repr_says_what_it_is(toys) -> None:
    text = repr(Encoder.load(toys.streaming, threads=2))
    assert text == (
        f"<Encoder {toys.streaming.name}: streaming onnx fp32, layers 1, 2 of 6; chunks of 4 frames, look-ahead 2, "
        "125 ms worst; auto, 2 threads>"
    )
    assert "offline onnx fp32" in repr(Encoder.load(toys.offline))
    assert "window 150 | 16 | 64 frames" in repr(Encoder.load(toys.offline))


@pytest.mark.parametrize(("format", "dtype", "scale"), [("s16le", "<i2", 32767), ("f32le", "<f4", 1)])
@pytest.mark.parametrize("channels", [1, 2])
def test_push_takes_bytes_with_a_format(toys, format, dtype, scale, channels) -> None:
    encoder, wave = Encoder.load(toys.streaming), toys.speech(32_000)
    pcm = (wave.reshape(-1, channels) * scale).astype(dtype)
    stream = encoder.stream()
    data = pcm.tobytes()
    parts = []
    for at in range(0, len(data), 6400):
        parts += stream.push(memoryview(data)[at : at + 6400], format=format, channels=channels)
    features = encoder.join([*parts, *stream.finish()])
    assert np.array_equal(features, encoder.extract(pcm.astype(dtype.replace("<", "="))))


@pytest.mark.parametrize(
    ("data", "how", "message"),
    [
        (b"\0" * 8, {}, "8 bytes without a format\n\nhint: push(data, format='s16le', channels=1)"),
        (b"\0" * 7, {"format": "s16le"}, "7 bytes are not a whole number of samples of 2 bytes (s16le, 1 channels)"),
        (b"\0" * 6, {"format": "s16le", "channels": 2}, "6 bytes are not a whole number of samples of 4 bytes"),
        (b"\0" * 8, {"format": "s16"}, "raw PCM format 's16'\n\nhint: did you mean 's16le'?"),
        (b"\0" * 8, {"format": "s16le", "channels": 0}, "raw PCM with 0 channels"),
        (np.zeros(8, np.float32), {"format": "s16le"}, "format='s16le' is for bytes, these samples are ndarray"),
    ],
)
def test_bytes_that_cannot_be_taken(toys, data, how, message) -> None:
    stream = Encoder.load(toys.streaming).stream()
    with pytest.raises(RdError) as refused:
        stream.push(data, **how)
    assert str(refused.value).startswith(message)
    assert stream.push(np.zeros(1600, np.float32)), "the stream is as it was"
