"""A call of fixed length gives the features of the utterance alone, in torch: what the converter is given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from reuse_distill.devices.measuring.speech import speech_like
from reuse_distill.export.capture.capture import capture
from reuse_distill.export.parity.reference import reference_features
from reuse_distill.export.spec import ExportSpec, Offline
from reuse_distill.export.targets.litert.tflite_convert import of_fixed_length
from reuse_distill.student import Student, preset
from reuse_distill.student.config import mel_stack

SECONDS, SAMPLES = 0.7, 11_200
MEL: dict[str, Any] = {"conv_layers": mel_stack(16, 32), "position_kernel": 8}
# MelHuBERT's: 40 bands of 10 ms, two side by side; the last frame may have one only.
BANK: dict[str, Any] = {
    "front_end": "fbank",
    "conv_layers": ((80, 2, 2),),
    "mel_bands": 40,
    "conv_norm": "layer",
    "lookahead_frames": 7,
}


@pytest.fixture(params=["tiny", "tiny-stream", "tiny-fit", "pocket-stream", "filter bank"])
def student(request: pytest.FixtureRequest, make_student: Callable[..., Student]) -> Student:
    """Norms over the utterance, over frames, layers that see two frames as one, log-mel, and a filter bank."""
    if request.param == "filter bank":
        return make_student("tiny", **BANK)
    if request.param == "pocket-stream":
        return make_student("pocket-stream", **MEL)
    if request.param == "tiny-fit":
        return Student(preset("tiny-fit")).eval()
    return make_student(request.param, **({"lookahead_frames": 7} if request.param == "tiny" else {}))


def test_frames_are_those_of_the_utterance_alone(student: Student) -> None:
    numbers = tuple(range(1, student.config.layers + 1))
    spec = ExportSpec("litert", Offline(SECONDS), "fp32", numbers, "hidden")
    captured = of_fixed_length(capture(student, spec), Offline(SECONDS))
    assert [port.name for port in captured.inputs] == ["wave", "length"]
    assert captured.inputs[0].shape == (1, SAMPLES)
    assert captured.outputs[0].shape[2] == (SAMPLES - 80) // 320
    speech = speech_like(SAMPLES, seed=4)
    for samples in (400, 719, 720, 5_003, SAMPLES):
        wave = np.zeros((1, SAMPLES), np.float32)
        wave[0, :samples] = speech[:samples]
        with torch.no_grad():
            found = captured.whole()(torch.from_numpy(wave), torch.full((1, 1), float(samples)))[0].numpy()
        expected = reference_features(student, spec, speech[:samples])
        np.testing.assert_allclose(found[:, : expected.shape[1]], expected, atol=2e-5)


def test_what_comes_after_the_utterance_is_not_seen(make_student: Callable[..., Student]) -> None:
    student = make_student("tiny", lookahead_frames=7)
    spec = ExportSpec("litert", Offline(SECONDS), "fp32", (2,), "heads")
    captured = of_fixed_length(capture(student, spec), Offline(SECONDS))
    wave = torch.from_numpy(speech_like(SAMPLES, seed=4))[None]
    other, length = wave.clone(), torch.full((1, 1), 5_000.0)
    other[0, 6_000:] *= -3
    with torch.no_grad():
        first, second = (captured.module(one, length)[0, :, :15] for one in (wave, other))
        shorter = captured.module(wave, torch.full((1, 1), 4_000.0))[0, :, :11]
    assert torch.allclose(first, second, atol=1e-5)
    assert not torch.allclose(first[:, :11], shorter, atol=1e-3)
