"""Whisper's front end: log-mel of a whole 30 s window, relative to its loudest bin, and two convolutions.

Sources: arXiv 2212.04356 section 2.2; openai/whisper ``audio.py`` and ``model.py``.

Shape legend: B batch, T samples, M mel frames (10 ms), C channels.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from reuse_distill.runtime.geometry import HOP_SAMPLES
from reuse_distill.student.config import MEL_HOP_SAMPLES, MEL_WINDOW_SAMPLES, ConvLayer
from reuse_distill.student.log_mel import dft_kernels, mel_filters
from torch import Tensor, nn

RANGE = 8.0  # decades below the loudest bin of the window that are kept
QUIETEST = 1e-10  # power of a bin
_MARGIN = MEL_WINDOW_SAMPLES // 2  # samples that are mirrored at both ends: mel frame m is centred on sample 160 m


class WindowedLogMel(nn.Module):
    """[B, T] -> [B, bands, M], M = T / 160; the level is relative to the loudest bin of the whole window."""

    cosines: Tensor
    sines: Tensor
    filters: Tensor

    def __init__(self, bands: int) -> None:
        super().__init__()
        cosines, sines = dft_kernels()
        for name, weights in (
            ("cosines", cosines[:, None]),  # [199, 1, 400]
            ("sines", sines[:, None]),
            ("filters", mel_filters(bands)[..., None]),  # [bands, 199, 1]
        ):
            self.register_buffer(name, torch.from_numpy(weights.astype(np.float32)), persistent=False)

    def forward(self, wave: Tensor) -> Tensor:
        start, end = wave[:, 1 : _MARGIN + 1].flip(1), wave[:, -_MARGIN - 1 : -1].flip(1)
        x = torch.cat([start, wave, end], dim=1)[:, None]  # [B, 1, T + 400]
        cosine, sine = (F.conv1d(x, kernels, stride=MEL_HOP_SAMPLES) for kernels in (self.cosines, self.sines))
        power = F.conv1d(cosine * cosine + sine * sine, self.filters)[..., :-1]  # [B, bands, M]
        level = torch.log(power.clamp(min=QUIETEST)) * (1 / math.log(10))
        level = torch.maximum(level, level.amax((1, 2), keepdim=True) - RANGE)
        return (level + 4) / 4


class WhisperFrontEnd(nn.Module):
    """[B, T], T up to 30 s -> [B, C, 1500]: silence to 30 s, log-mel, convolutions with GELU after each."""

    def __init__(self, layers: tuple[ConvLayer, ...], *, bands: int, frames: int) -> None:
        super().__init__()
        self.samples = frames * HOP_SAMPLES
        self.log_mel = WindowedLogMel(bands)
        self.conv_layers = nn.ModuleList()
        before = bands
        for channels, kernel, stride in layers:
            conv = nn.Conv1d(before, channels, kernel, stride, padding=kernel // 2)
            self.conv_layers.append(nn.Sequential(conv, nn.GELU()))
            before = channels

    def forward(self, wave: Tensor, lengths: Tensor | None = None, *, frame_valid: Tensor | None = None) -> Tensor:
        x = self.log_mel(F.pad(wave, (0, self.samples - wave.shape[1])))
        for block in self.conv_layers:
            x = block(x)
        return x
