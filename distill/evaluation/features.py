"""Frozen features of one utterance, from whatever is compared: (T,) samples -> (N layers, F frames, C channels)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from reuse_distill.distill.teachers import Teacher
from reuse_distill.runtime import Encoder
from reuse_distill.runtime.geometry import HOP_SAMPLES, RECEPTIVE_FIELD_SAMPLES, SAMPLE_RATE_HZ, frames_for
from reuse_distill.student import Student
from torch import Tensor

CPU = torch.device("cpu")
MELS = 80
PIECE_S = 30.0  # of longer recordings each such piece is heard by itself: attention grows with the square of the length
FFT = 512
PARTS = 4  # of the time, whose means stand for an utterance


@dataclass(frozen=True)
class Features:
    """A named source of features; ``parameters`` is its size, 0 for log-mel; ``device``: where it wants samples."""

    name: str
    parameters: int
    extract: Callable[[Tensor], Tensor]
    device: torch.device = CPU

    def __call__(self, samples: NDArray[np.float32]) -> Tensor:
        """(T,) -> (N, F, C) float32 on the CPU, without gradient; beyond 30 s piece by piece."""
        with torch.no_grad():
            heard = [self.extract(torch.from_numpy(piece).to(self.device)).float().cpu() for piece in pieces(samples)]
        return heard[0] if len(heard) == 1 else torch.cat(heard, dim=1)


def pieces(samples: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    """(T,) -> pieces of one length, at most 30 s, whose frames side by side are those of the whole."""
    frames = frames_for(len(samples))
    count = math.ceil(frames * HOP_SAMPLES / (PIECE_S * SAMPLE_RATE_HZ))
    if count <= 1:
        return [samples]
    bounds = [HOP_SAMPLES * round(number * frames / count) for number in range(count + 1)]
    return [samples[start : end + RECEPTIVE_FIELD_SAMPLES - HOP_SAMPLES] for start, end in pairwise(bounds)]


def of_student(name: str, student: Student, *, heads: bool | None = None, device: torch.device = CPU) -> Features:
    """All layers of a student: its projection heads where it has them (``heads`` None), else the hidden layers."""
    model = student.eval().to(device)
    use_heads = model.proj_head is not None if heads is None else heads

    def extract(samples: Tensor) -> Tensor:
        output = model(samples[None], context=model.config.context)
        return torch.cat(output.projections if use_heads else output.layers)

    return Features(name, sum(p.numel() for p in model.parameters()), extract, device)


def of_teacher(name: str, teacher: Teacher, *, device: torch.device = CPU) -> Features:
    """All layers of a teacher."""
    placed = teacher.to(device)
    return Features(name, teacher.info.parameters, lambda samples: placed.hidden_states(samples[None])[:, 0], device)


def of_bundle(name: str, encoder: Encoder) -> Features:
    """All layers that a bundle's artifact gives, through the runtime."""

    def extract(samples: Tensor) -> Tensor:
        features = encoder.extract(samples.numpy(), SAMPLE_RATE_HZ)
        return torch.from_numpy(features if features.ndim == 3 else features[None])

    return Features(name, 0, extract)


def of_log_mel() -> Features:
    """80 log-mel energies per frame, on the frames of the students (25 ms every 20 ms)."""
    bank = mel_filters()
    window = torch.hann_window(RECEPTIVE_FIELD_SAMPLES)

    def extract(samples: Tensor) -> Tensor:
        frames = samples.unfold(0, RECEPTIVE_FIELD_SAMPLES, HOP_SAMPLES)  # (F, 400)
        power = torch.fft.rfft(frames * window, FFT).abs().square()  # (F, 257)
        return (power @ bank + 1e-6).log()[None]  # (1, F, 80)

    return Features("log-mel", 0, extract)


def mel_filters(mels: int = MELS) -> Tensor:
    """Triangular filters on the mel scale (2595 log10(1 + f/700)), 20 Hz to 8 kHz: (bins, mels)."""

    def to_mel(hz: float) -> float:
        return 2595 * math.log10(1 + hz / 700)

    edges_mel = torch.linspace(to_mel(20), to_mel(SAMPLE_RATE_HZ / 2), mels + 2)
    edges = 700 * (10 ** (edges_mel / 2595) - 1)  # Hz
    bins = torch.linspace(0, SAMPLE_RATE_HZ / 2, FFT // 2 + 1)[:, None]
    rising = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    return torch.minimum(rising, falling).clamp(min=0)


def pooled(features: Tensor, parts: int = PARTS) -> Tensor:
    """Means over ``parts`` equal parts of the time, side by side: (N, F, C) -> (N, parts * C)."""
    frames = features.shape[1]
    bounds = [round(i * frames / parts) for i in range(parts + 1)]
    means = [features[:, min(a, frames - 1) : max(b, a + 1, 1)].mean(1) for a, b in pairwise(bounds)]
    return torch.cat(means, dim=1)
