"""Waveform to frames by log-mel: framing, DFT, power, mel filters, logarithm, then convolutions.

Everything is a convolution with fixed weights or an elementwise function, so every target runs it without an operator
of its own, and no statistic runs over the utterance, so it streams. The filters are Whisper's (80 bins, Slaney scale
and norm, 400-sample Hann window, hop 160; arXiv 2212.04356 section 2.2); the level is not: Whisper cuts at 8 decades
below the loudest bin of the utterance, which no stream knows. Here the logarithm has a fixed floor.

Level rule: samples in -1..1. y = (log10(mel + 1e-9) + 5) / 4. Speech of usual recordings lies between -1 (the floor;
the rounding of 16-bit audio is about there) and 1.6, its median at 0.1. A gain of -20 dB lowers y by 0.5.

Whisper's own front end sees a whole 30 s window (same source; openai/whisper ``audio.py``, ``model.py``).

Shape legend: B batch, T samples, N blocks of 80 samples, M mel frames (10 ms), F frames (20 ms), C channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from reuse_distill.runtime.geometry import HOP_SAMPLES, SAMPLE_RATE_HZ
from reuse_distill.student.config import MEL_HOP_SAMPLES, MEL_WINDOW_SAMPLES, ConvLayer
from torch import Tensor, nn

MEL_BINS = 80
FLOOR = 1e-9  # added to the power of every bin before the logarithm
CENTRE, DECADES = -5.0, 4.0  # log10 of the power that becomes 0, and decades that become 1
BLOCK_SAMPLES = 80  # samples: the largest common divisor of window and hop
HOP_BLOCKS = MEL_HOP_SAMPLES // BLOCK_SAMPLES
_BINS = np.arange(1, MEL_WINDOW_SAMPLES // 2)  # of the DFT, 40 Hz apart; no filter sees 0 Hz and 8 kHz
# Slaney's scale (Auditory Toolbox, 1998): linear below 1 kHz, logarithmic above.
_HZ_PER_MEL, _KNEE_HZ, _LOG_STEP = 200 / 3, 1000.0, math.log(6.4) / 27
RANGE = 8.0  # decades below the loudest bin of the window that are kept
QUIETEST = 1e-10  # power of a bin
_MARGIN = MEL_WINDOW_SAMPLES // 2  # samples that are mirrored at both ends: mel frame m is centred on sample 160 m


def mel_filters(bands: int = MEL_BINS) -> np.ndarray:
    """(bands, 199) float64: triangles evenly spaced on Slaney's scale from 0 to 8 kHz, each of area 1 over Hz."""
    knee = _KNEE_HZ / _HZ_PER_MEL
    highest = knee + math.log(SAMPLE_RATE_HZ / 2 / _KNEE_HZ) / _LOG_STEP
    mels = np.linspace(0, highest, bands + 2)
    edges = np.where(mels < knee, mels * _HZ_PER_MEL, _KNEE_HZ * np.exp(_LOG_STEP * (mels - knee)))  # Hz
    hz = _BINS * SAMPLE_RATE_HZ / MEL_WINDOW_SAMPLES
    low, peak, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    triangles = np.minimum((hz - low) / (peak - low), (high - hz) / (high - peak)).clip(min=0)
    return np.asarray(triangles * 2 / (high - low))


def dft_kernels() -> tuple[np.ndarray, np.ndarray]:
    """Hann-windowed cosines and sines of bins 1 to 199, (199, 400) float64 each."""
    sample = np.arange(MEL_WINDOW_SAMPLES)
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * sample / MEL_WINDOW_SAMPLES)
    angle = 2 * np.pi * (np.outer(_BINS, sample) % MEL_WINDOW_SAMPLES) / MEL_WINDOW_SAMPLES  # below one turn: exact
    return np.cos(angle) * hann, np.sin(angle) * hann


class SpectrumFilters(nn.Module):
    """Power of a window's spectrum in N filters; fixed weights that no checkpoint holds.

    cosines, sines: [bins, channels, kernel] parts of the spectrum. filters: [N, bins].
    """

    cosines: Tensor
    sines: Tensor
    filters: Tensor

    def __init__(
        self, cosines: np.ndarray, sines: np.ndarray, filters: np.ndarray, dtype: type[np.floating] = np.float32
    ) -> None:
        super().__init__()
        for name, weights in (("cosines", cosines), ("sines", sines), ("filters", filters[..., None])):
            # From NumPy: a student that is built on the meta device has these weights all the same.
            self.register_buffer(name, torch.from_numpy(weights.astype(dtype)), persistent=False)

    def power(self, x: Tensor, stride: int) -> Tensor:
        """[B, channels, T] -> [B, N, M]."""
        cosine, sine = (F.conv1d(x, kernels, stride=stride) for kernels in (self.cosines, self.sines))
        return F.conv1d(cosine * cosine + sine * sine, self.filters)


class LogMel(SpectrumFilters):
    """[B, T] -> [B, 80, M], M = (T - 400) // 160 + 1."""

    def __init__(self, dtype: type[np.floating] = np.float32) -> None:
        cosines, sines = dft_kernels()
        super().__init__(over_blocks(cosines), over_blocks(sines), mel_filters() / FLOOR, dtype)

    def forward(self, wave: Tensor) -> Tensor:
        """Log-mel of about unit range. Never in half precision: the floor is far below what that resolves."""
        return in_full_precision(self._log_mel, wave)

    def _log_mel(self, wave: Tensor) -> Tensor:
        return log_of_floors(self.power(in_blocks(wave), HOP_BLOCKS))


def in_full_precision(compute: Callable[[Tensor], Tensor], wave: Tensor) -> Tensor:
    """``compute`` of ``wave``, in float32 inside an autocast region too."""
    kind = wave.device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        with torch.autocast(kind, enabled=False):
            return compute(wave.float())
    return compute(wave)


def in_blocks(wave: Tensor) -> Tensor:
    """[B, T] -> [B, 80, N]; samples after the last whole block belong to no frame."""
    batch, samples = wave.shape
    count = samples // BLOCK_SAMPLES
    if not (isinstance(samples, int) and samples == count * BLOCK_SAMPLES):  # a slice of everything is no operation
        wave = wave[:, : count * BLOCK_SAMPLES]
    return wave.reshape(batch, count, BLOCK_SAMPLES).transpose(1, 2)


def log_of_floors(floors: Tensor) -> Tensor:
    """The logarithm of powers in units of the floor, of about unit range.

    What is added is 1 in these units: converters take 1e-9 for a zero and drop it.
    """
    return torch.log(floors + 1.0) * (1 / (math.log(10) * DECADES)) + (math.log10(FLOOR) - CENTRE) / DECADES


def over_blocks(kernels: np.ndarray) -> np.ndarray:
    """[199, 400] -> [199, 80, 5]: a window is five blocks of 80 samples, so that a product has 80 channels, not one."""
    return kernels.reshape(len(kernels), -1, BLOCK_SAMPLES).transpose(0, 2, 1).copy()


class MelFrontEnd(nn.Module):
    """Log-mel and unpadded convolutions with bias, GELU after each. [B, T] -> [B, C, F].

    The wave comes with its history: frame t is made of the samples 320 t to 320 t + field - 1, of which the last 400
    are those that a frame of the convolutional front end sees.
    """

    def __init__(self, layers: tuple[ConvLayer, ...]) -> None:
        super().__init__()
        self.log_mel = LogMel()
        self.conv_layers = nn.ModuleList()
        before = MEL_BINS
        for channels, kernel, stride in layers:
            conv = nn.Conv1d(before, channels, kernel, stride)
            nn.init.kaiming_normal_(conv.weight)
            nn.init.zeros_(conv.bias)
            self.conv_layers.append(nn.Sequential(conv, nn.GELU()))
            before = channels

    def forward(self, wave: Tensor, lengths: Tensor | None = None, *, frame_valid: Tensor | None = None) -> Tensor:
        """[B, history + T] -> [B, C, F]; a frame sees no sample after its own, so ``lengths`` change nothing."""
        x = self.log_mel(wave)
        for block in self.conv_layers:
            x = block(x)
        return x


class WindowedLogMel(SpectrumFilters):
    """[B, T] -> [B, bands, M], M = T / 160; the level is relative to the loudest bin of the whole window."""

    def __init__(self, bands: int) -> None:
        cosines, sines = dft_kernels()
        super().__init__(cosines[:, None], sines[:, None], mel_filters(bands))

    def forward(self, wave: Tensor) -> Tensor:
        start, end = wave[:, 1 : _MARGIN + 1].flip(1), wave[:, -_MARGIN - 1 : -1].flip(1)
        x = torch.cat([start, wave, end], dim=1)[:, None]  # [B, 1, T + 400]
        power = self.power(x, MEL_HOP_SAMPLES)[..., :-1]  # [B, bands, M]
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
