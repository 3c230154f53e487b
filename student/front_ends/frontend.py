"""Waveform to frames: the unpadded convolution stack. [B, T] -> [B, F, C].

And the level of an utterance: zero mean and unit variance, as many foreign encoders expect their audio.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from reuse_distill.runtime.geometry import HOP_SAMPLES, RECEPTIVE_FIELD_SAMPLES
from reuse_distill.student.config import ConvLayer
from torch import Tensor, nn

_KERNEL, _STRIDE = 10, 5  # of the first convolution, in every published front end
STEPS_PER_FRAME = HOP_SAMPLES // _STRIDE  # 64
STEPS_BEYOND = (RECEPTIVE_FIELD_SAMPLES - _KERNEL) // _STRIDE + 1 - STEPS_PER_FRAME  # 15


class TimeNorm(nn.Module):
    """GroupNorm with one group per channel: statistics over all valid time (as published; not streamable)."""

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """Normalise ``x`` [B, C, T] over the time steps where ``valid`` [B, T] is true (all where None)."""
        if valid is None:
            return F.group_norm(x, x.shape[1], self.weight, self.bias, self.eps)
        return self.masked(x, valid)

    def masked(self, x: Tensor, valid: Tensor | None) -> Tensor:
        """Normalise ``x`` [B, C, T] or [B, C, T, 1] with ``masked_statistics`` over ``valid``."""
        mean, variance = masked_statistics(x, valid)
        channels = (slice(None), *[None] * (x.ndim - 2))
        gain, shift = self.weight[channels], self.bias[channels]  # [C, 1] or [C, 1, 1]
        return (x - mean) * torch.rsqrt(variance + self.eps) * gain + shift


class FrozenTimeNorm(nn.Module):
    """TimeNorm with calibrated statistics in place of the utterance's own: stateless, for sliding windows."""

    def __init__(self, norm: TimeNorm, mean: Tensor, variance: Tensor) -> None:
        super().__init__()
        scale = norm.weight.detach() * torch.rsqrt(variance + norm.eps)
        self.register_buffer("scale", scale[:, None])  # [C, 1]
        self.register_buffer("shift", (norm.bias.detach() - mean * scale)[:, None])

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        return x * self.scale + self.shift


class FrameNorm(nn.Module):
    """LayerNorm over the channels of one time step: what a stream can compute. [B, C, T] -> [B, C, T]."""

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        x = F.layer_norm(x.transpose(1, 2), (x.shape[1],), self.weight, self.bias, self.eps)
        return x.transpose(1, 2)


def masked_statistics(x: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    """Mean and variance [B, C, 1] of ``x`` [B, C, T] over the steps where ``valid`` [B, T] is true; None: over all.

    Where both have a last axis of size 1, so have the results. A boolean mask replaces what is outside (0 * NaN is
    NaN), and the sums are in float32 at least. A mask of 0 and 1 multiplies, for engines that have no booleans: what is
    outside it has to be finite.
    """
    over = tuple(range(2, x.ndim))
    if valid is None:
        mean = x.mean(over, keepdim=True)
        return mean, (x - mean).square().mean(over, keepdim=True)
    mask = valid[:, None]
    count = mask.sum(over, keepdim=True).clamp(min=1)

    def inside(values: Tensor) -> Tensor:
        return values.masked_fill(~mask, 0) if mask.dtype == torch.bool else values * mask

    if mask.dtype == torch.bool and x.dtype != torch.float64:
        x = x.float()  # sums over thousands of steps: bfloat16 keeps 8 bits
    mean = inside(x).sum(over, keepdim=True) / count
    return mean, inside((x - mean).square()).sum(over, keepdim=True) / count


def float_step_mask(frame_valid: Tensor) -> Tensor:
    """[1, F] -> [1, 64 F + 15]: 1 where a step of the first convolution lies in a valid frame's 79 steps.

    What ``FeatureExtractor`` computes in booleans, without them and without an asymmetric pad.
    """
    batch, frames = frame_valid.shape
    steps = frame_valid[..., None].expand(batch, frames, STEPS_PER_FRAME).reshape(batch, -1)
    beyond = torch.zeros(batch, STEPS_BEYOND)
    return torch.maximum(torch.cat([steps, beyond], dim=-1), torch.cat([beyond, steps], dim=-1))


class FeatureExtractor(nn.Module):
    """The convolution stack: GELU after each layer; a norm after the first one, or after every one."""

    def __init__(self, layers: tuple[ConvLayer, ...], *, norm: str, bias: bool = False) -> None:
        super().__init__()
        self.conv_layers = nn.ModuleList()
        before = 1
        for index, (channels, kernel, stride) in enumerate(layers):
            conv = nn.Conv1d(before, channels, kernel, stride, bias=bias)
            nn.init.kaiming_normal_(conv.weight)
            # Positions 0 (convolution) and 2 (norm) are the public checkpoints' parameter names.
            block: list[nn.Module] = [conv, nn.Identity()]
            if index == 0 or norm == "every":
                block.append(TimeNorm(channels) if norm == "group" else FrameNorm(channels))
            self.conv_layers.append(nn.Sequential(*block, nn.GELU()))
            before = channels

    def forward(self, wave: Tensor, lengths: Tensor | None = None, *, frame_valid: Tensor | None = None) -> Tensor:
        """[B, T] -> [B, C, F].

        Norm statistics see valid samples only: the first ``lengths`` [B] of each row, or those of the frames where
        ``frame_valid`` [B, F] is 1.
        """
        x = wave[:, None, :]  # [B, 1, T]
        for block in self.conv_layers:
            conv, norm, gelu = block[0], block[2] if len(block) == 4 else None, block[-1]
            x = conv(x)
            if norm is not None:
                x = norm(x, _steps_of_frames(frame_valid) if lengths is None else _steps_of_lengths(conv, x, lengths))
            x = gelu(x)
        return x


def _steps_of_lengths(conv: nn.Conv1d, x: Tensor, lengths: Tensor) -> Tensor:
    """[B, T'] true where all samples of the first convolution's step exist."""
    steps = torch.div(lengths - conv.kernel_size[0], conv.stride[0], rounding_mode="floor") + 1
    return torch.arange(x.shape[-1], device=x.device)[None, :] < steps[:, None]


def _steps_of_frames(frame_valid: Tensor | None) -> Tensor | None:
    """[B, 64 F + 15] true where a step of the first convolution lies in a valid frame's 79 steps."""
    if frame_valid is None:
        return None
    batch, frames = frame_valid.shape
    steps = (frame_valid > 0.5)[..., None].expand(batch, frames, STEPS_PER_FRAME).reshape(batch, -1)
    return F.pad(steps, (0, STEPS_BEYOND)) | F.pad(steps, (STEPS_BEYOND, 0))


def normalised(wave: Tensor, lengths: Tensor | None = None, *, epsilon: float) -> Tensor:
    """(x - mean) / sqrt(variance + ``epsilon``) over each row's valid samples, [B, T]; padding becomes zero.

    ``lengths`` [B] are samples (None: all). transformers adds 1e-7, fairseq 1e-5.
    """
    if lengths is None:
        mean, variance = wave.mean(1, keepdim=True), wave.var(1, keepdim=True, correction=0)
        return (wave - mean) * torch.rsqrt(variance + epsilon)
    valid = (torch.arange(wave.shape[1], device=wave.device)[None, :] < lengths[:, None]).to(wave.dtype)
    count = valid.sum(1, keepdim=True).clamp(min=1)
    mean = (wave * valid).sum(1, keepdim=True) / count
    variance = ((wave - mean).square() * valid).sum(1, keepdim=True) / count
    return (wave - mean) * torch.rsqrt(variance + epsilon) * valid
