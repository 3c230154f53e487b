"""Waveform to frames by Kaldi's log filter bank, as MelHuBERT has it (arXiv 2211.09944): no convolution is learned.

Per window of 400 samples (hop 160): samples at 16-bit level, their mean removed, pre-emphasis 0.97, Hamming window,
power spectrum of 512 points, triangular filters on Kaldi's mel scale from 20 Hz to 8 kHz, logarithm. Everything before
the power is linear in the samples, so it is one pair of convolutions with fixed weights. The result is normalised by
the mean and standard deviation of each filter over the training set, which come with the checkpoint; frames of 20 ms
are two of 10 ms side by side, zeros where the second one does not exist.

Shape legend: B batch, T samples, M mel frames (10 ms), N filters, F frames (10 or 20 ms).
"""

from __future__ import annotations

import numpy as np
import torch
from reuse_distill.runtime.geometry import SAMPLE_RATE_HZ
from reuse_distill.student.config import MEL_HOP_SAMPLES, MEL_WINDOW_SAMPLES
from reuse_distill.student.front_ends.log_mel import SpectrumFilters, in_full_precision, over_blocks
from torch import Tensor, nn

FULL_SCALE = 2.0**15  # Kaldi's samples are 16-bit integers
PRE_EMPHASIS = 0.97
LOWEST_HZ = 20.0
FLOOR = float(np.finfo(np.float32).eps)  # of a filter's power
_FFT = 512
_BINS = np.arange(_FFT // 2)  # the last one, 8 kHz, is in no filter
_BLOCK = 80  # samples: the largest common divisor of window and hop
_HOP_BLOCKS = MEL_HOP_SAMPLES // _BLOCK


def _mel(hz: np.ndarray | float) -> np.ndarray:
    """Kaldi's (and HTK's) mel scale."""
    return np.asarray(1127.0 * np.log(1 + np.asarray(hz) / 700.0))


def kaldi_filters(bands: int) -> np.ndarray:
    """(bands, 256) float64: triangles of height 1, evenly spaced and straight on the mel scale."""
    edges = np.linspace(_mel(LOWEST_HZ), _mel(SAMPLE_RATE_HZ / 2), bands + 2)
    mels = _mel(_BINS * SAMPLE_RATE_HZ / _FFT)
    low, peak, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    return np.minimum((mels - low) / (peak - low), (high - mels) / (high - peak)).clip(min=0)


def spectrum_kernels() -> tuple[np.ndarray, np.ndarray]:
    """Cosine and sine parts (256, 400) float64 of a window's spectrum: level, mean, pre-emphasis and window in one."""
    count = MEL_WINDOW_SAMPLES
    sample = np.arange(count)
    centred = np.eye(count) - 1 / count
    emphasis = np.eye(count) - PRE_EMPHASIS * np.eye(count, k=-1)
    emphasis[0, 0] = 1 - PRE_EMPHASIS  # the sample before the first one is the first one
    hamming = 0.54 - 0.46 * np.cos(2 * np.pi * sample / (count - 1))
    linear = FULL_SCALE * hamming[:, None] * (emphasis @ centred)
    angle = 2 * np.pi * (np.outer(_BINS, sample) % _FFT) / _FFT
    return np.cos(angle) @ linear, np.sin(angle) @ linear


class FilterBank(SpectrumFilters):
    """[B, T] -> [B, N, M], M = (T - 400) // 160 + 1: log power in each filter, never in half precision."""

    def __init__(self, bands: int) -> None:
        cosines, sines = spectrum_kernels()
        super().__init__(over_blocks(cosines), over_blocks(sines), kaldi_filters(bands))

    def forward(self, wave: Tensor) -> Tensor:
        return in_full_precision(self._log_power, wave)

    def _log_power(self, wave: Tensor) -> Tensor:
        batch, samples = wave.shape
        count = samples // _BLOCK
        blocks = wave[:, : count * _BLOCK].reshape(batch, count, _BLOCK).transpose(1, 2)  # [B, 80, T / 80]
        return torch.log(self.power(blocks, _HOP_BLOCKS).clamp(min=FLOOR))


class FilterBankFrontEnd(nn.Module):
    """Normalised log filter bank, ``stacked`` frames of 10 ms in one: [B, T] -> [B, stacked N, F]."""

    mean: Tensor
    std: Tensor

    def __init__(self, *, bands: int, stacked: int) -> None:
        super().__init__()
        self.bank, self.stacked = FilterBank(bands), stacked
        self.register_buffer("mean", torch.zeros(bands))
        self.register_buffer("std", torch.ones(bands))

    def forward(self, wave: Tensor, lengths: Tensor | None = None, *, frame_valid: Tensor | None = None) -> Tensor:
        """Only samples before ``lengths`` [B] count: a frame's second half is zeros where it needs others."""
        x = self.normalised(wave)
        if lengths is not None:
            whole = torch.div(lengths - MEL_WINDOW_SAMPLES, MEL_HOP_SAMPLES, rounding_mode="floor") + 1
            x = x.masked_fill(torch.arange(x.shape[-1], device=x.device) >= whole[:, None, None], 0.0)
        return self.side_by_side(x)

    def normalised(self, wave: Tensor) -> Tensor:
        """[B, T] -> [B, N, M] in frames of 10 ms."""
        return (self.bank(wave) - self.mean[:, None]) / self.std[:, None]

    def side_by_side(self, x: Tensor) -> Tensor:
        """[B, N, M] -> [B, stacked N, F], the second half of a last frame zeros where M is odd."""
        if self.stacked == 1:
            return x
        behind = torch.cat([x, torch.zeros_like(x[..., :1])], dim=-1)  # no Pad: phones' processors want none
        return torch.cat([x[..., ::2], behind[..., 1::2]], dim=1)
