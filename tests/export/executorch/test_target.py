"""Whole exports of small students to ExecuTorch, run by its own runtime."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from devices.speech import speech_like
from runtime import Encoder
from runtime.certify import certify
from runtime.geometry import samples_for

FP32 = 1e-4
FLOOR = 0.1  # rms of the features: garbage does not equal garbage


def test_offline_equals_torch_at_every_length(export_one: Callable[..., Any]) -> None:
    made = export_one("offline")
    encoder = Encoder.load(made.folder)
    for samples in (400, 719, 720, 1000, samples_for(9) + 5, 16_000, 64_000):
        wave = speech_like(samples, seed=samples)
        with torch.no_grad():
            wanted = torch.cat(made.student(torch.from_numpy(wave)[None]).projections).numpy()
        found = encoder.extract(wave)
        assert found.shape == wanted.shape
        assert np.abs(found - wanted).max() <= FP32
        assert np.sqrt(np.square(wanted).mean()) > FLOOR
    assert encoder.selftest().passed


def test_streaming_passes_the_certificate(export_one: Callable[..., Any]) -> None:
    made = export_one("streaming")
    encoder = Encoder.load(made.folder)
    found = certify(encoder)
    assert found.passed, [check for check in found.checks if not check.passed]
    assert max(check.max_abs for check in found.checks if check.max_abs is not None) <= FP32
    assert found.provider == "xnnpack"
    assert found.placement == made.manifest.device["placement"]
    assert {"executorch", "torch"} <= set(found.versions)
