"""What the masked prediction of a small teacher predicts: clusters of cepstra, or of a layer of an earlier teacher.

Shapes: B batch, F frames, K clusters, D channels of what is clustered.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from reuse_distill.distill.data.batches import Batch
from reuse_distill.distill.evaluation.features import of_log_mel
from reuse_distill.student import frames_for_lengths
from torch import Tensor

CEPSTRA = 16
Frames = Callable[[Batch], list[Tensor]]  # per utterance (F, D)


def cepstra(batch: Batch) -> list[Tensor]:
    """Per utterance (F, 48): 16 cepstra of log-mel with first and second differences, each of unit variance."""
    extract = of_log_mel().extract
    found = []
    for wave, length in zip(batch.wave, batch.lengths.tolist(), strict=True):
        still = extract(wave[:length])[0]
        still = (still - still.mean(0)) @ cosines(still.shape[1])
        parts = torch.cat([still, differences(still), differences(differences(still))], dim=1)
        found.append(parts / (parts.std(0, correction=0) + 1e-3))
    return found


def cosines(mels: int) -> Tensor:
    """The first cepstra of a cosine transform: (mels, 16), orthonormal columns."""
    row = torch.arange(mels)[:, None] + 0.5
    basis = torch.cos(math.pi / mels * row * torch.arange(CEPSTRA)) * (2 / mels) ** 0.5
    basis[:, 0] /= 2**0.5
    return basis


def differences(frames: Tensor) -> Tensor:
    """Slope over five frames by least squares, ends repeated: (F, D) -> (F, D)."""
    padded = torch.cat([frames[:1], frames[:1], frames, frames[-1:], frames[-1:]])
    count = len(frames)
    return sum(n * (padded[2 + n : 2 + n + count] - padded[2 - n : 2 - n + count]) for n in (1, 2)) / 10


def layer_of(model: Any, layer: int, *, device: str = "cpu", half: bool = False) -> Frames:
    """Frames of the 1-based ``layer`` of a transformers encoder, as a function of a batch."""

    @torch.no_grad()
    def frames(batch: Batch) -> list[Tensor]:
        samples = torch.arange(batch.wave.shape[1])[None, :] < batch.lengths[:, None]
        with torch.autocast(device, dtype=torch.bfloat16, enabled=half):
            output = model(batch.wave.to(device), attention_mask=samples.to(device), output_hidden_states=True)
        hidden = output.hidden_states[layer].float().cpu()
        return [row[:count] for row, count in zip(hidden, frames_for_lengths(batch.lengths).tolist(), strict=True)]

    return frames


def k_means(data: Tensor, clusters: int, *, rounds: int = 15, seed: int = 0) -> Tensor:
    """Centres (K, D) of ``data`` (frames, D), from ``clusters`` of the frames drawn with ``seed``."""
    generator = torch.Generator().manual_seed(seed)
    centres = data[torch.randperm(len(data), generator=generator)[:clusters]].clone()
    for _ in range(rounds):
        nearest = torch.cdist(data, centres).argmin(1)
        sums = torch.zeros_like(centres).index_add_(0, nearest, data)
        counts = torch.bincount(nearest, minlength=len(centres))
        filled = counts > 0
        centres[filled] = sums[filled] / counts[filled, None]
    return centres


def assigned(batch: Batch, frames: Frames, centres: Tensor) -> Tensor:
    """The nearest centre of every frame (B, F), -1 on padding."""
    target = torch.full((len(batch.lengths), int(frames_for_lengths(batch.lengths).max())), -1)
    for row, found in zip(target, frames(batch), strict=True):
        row[: len(found)] = torch.cdist(found, centres).argmin(1)
    return target
