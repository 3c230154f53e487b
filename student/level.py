"""The level of an utterance: zero mean and unit variance, as many foreign encoders want their audio."""

from __future__ import annotations

import torch
from torch import Tensor


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
