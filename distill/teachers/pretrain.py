"""Train the small teacher a little, the way HuBERT was: predict the cluster of masked frames (arXiv 2106.07447).

The clusters are k-means of log-mel frames of the same data. Minutes on a CPU give a teacher whose features know
something about speech; it stays a toy beside the released models.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distill.data.batches import Batch, BatchReader, Position
from distill.data.plan import MASK
from distill.data.utterances import find_utterances, fingerprint
from distill.evaluation.features import of_log_mel
from distill.masks import SpanMask, draw_mask
from distill.recipe import DataSettings
from distill.teachers.tiny import WIDTH, hubert_config, write_teacher
from runtime.errors import RdError
from student import frames_for_lengths


@dataclass(frozen=True)
class PretrainSettings:
    """How long and on what. ``unmasked`` weighs the frames that were not masked."""

    steps: int = 200
    clusters: int = 64
    rate: float = 3e-3
    warmup: float = 0.1
    unmasked: float = 1.0
    mask: SpanMask = field(default_factory=lambda: SpanMask(probability=0.4, selection="static"))
    data: DataSettings = field(default_factory=lambda: DataSettings(8, 24.0, 2.5, 4))
    seed: int = 0
    device: str = "cpu"


def pretrain_teacher(folder: Path, source: Path, settings: PretrainSettings) -> Path:
    """Write a transformers folder of a small HuBERT trained on ``source``. Raises RdError as ``find_utterances``."""
    from transformers import HubertModel

    if (folder / "config.json").exists():
        raise RdError(f"{folder} already holds a model", hint="name another folder")
    scan = find_utterances(source, bad_limit=settings.data.bad_limit)
    reader = BatchReader(scan.utterances, settings.data, seed=settings.seed, bad_before=scan.bad)
    centres = cluster_centres(reader, settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        model = HubertModel(hubert_config()).to(settings.device).train()
        head = torch.nn.Linear(WIDTH, settings.clusters).to(settings.device)
        accuracy = _train(model, head, reader, centres.to(settings.device), settings)
    note = {
        "weights": "trained on the data below for a few minutes; a toy, not a released model",
        "steps": settings.steps,
        "clusters": settings.clusters,
        "masked_cluster_accuracy": round(accuracy, 4),
        "seed": settings.seed,
        "data": fingerprint(scan),
    }
    return write_teacher(folder, model.eval().cpu(), note)


def cluster_centres(
    reader: BatchReader, settings: PretrainSettings, *, frames: int = 20_000, rounds: int = 15
) -> Tensor:
    """k-means of normalised log-mel frames: (K, 80)."""
    found: list[Tensor] = []
    stream = reader.batches(Position())
    while sum(map(len, found)) < frames and len(found) < 4 * len(reader.utterances):
        found += [m for m in log_mel(next(stream)) if len(m)]
    stream.close()
    data = torch.cat(found)[:frames]
    generator = torch.Generator().manual_seed(settings.seed)
    centres = data[torch.randperm(len(data), generator=generator)[: settings.clusters]].clone()
    for _ in range(rounds):
        nearest = torch.cdist(data, centres).argmin(1)
        for k in nearest.unique().tolist():
            centres[k] = data[nearest == k].mean(0)
    return centres


def log_mel(batch: Batch) -> list[Tensor]:
    """Per utterance (F, 80), zero mean and unit variance over its time."""
    extract = of_log_mel().extract
    mels = [extract(wave[:length])[0] for wave, length in zip(batch.wave, batch.lengths.tolist(), strict=True)]
    return [(m - m.mean(0)) / (m.std(0, correction=0) + 1e-3) for m in mels]


def _train(
    model: Any,
    head: torch.nn.Linear,
    reader: BatchReader,
    centres: Tensor,
    settings: PretrainSettings,
    report: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True),
) -> float:
    """Returns the accuracy on masked frames over the last tenth of the steps."""
    optimiser = torch.optim.AdamW([*model.parameters(), *head.parameters()], lr=settings.rate, betas=(0.9, 0.98))
    warm = max(1, int(settings.warmup * settings.steps))
    accuracies: list[float] = []
    shown = 0.0
    for step, batch in zip(range(settings.steps), reader.batches(Position()), strict=False):
        rate = min((step + 1) / warm, (settings.steps - step) / max(1, settings.steps - warm))
        for group in optimiser.param_groups:
            group["lr"] = settings.rate * rate
        loss, accuracy = _predict(model, head, batch, centres, settings)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimiser.step()
        accuracies.append(accuracy)
        if time.monotonic() - shown > 10 or step + 1 == settings.steps:
            shown = time.monotonic()
            report(
                f"pretrain {step + 1}/{settings.steps}  loss {float(loss.detach()):.3f}  masked accuracy {accuracy:.3f}"
            )
    return _mean(accuracies[-max(1, len(accuracies) // 10) :])


def _predict(
    model: Any, head: torch.nn.Linear, batch: Batch, centres: Tensor, settings: PretrainSettings
) -> tuple[Tensor, float]:
    """Cross entropy of the clusters and the accuracy on masked frames."""
    device = centres.device
    frames = frames_for_lengths(batch.lengths)
    where = [MASK, settings.seed, batch.position.epoch, batch.position.batch]
    mask = torch.from_numpy(draw_mask(settings.mask, frames.tolist(), int(frames.max()), seed=where)).to(device)
    target = torch.full(mask.shape, -1, device=device)
    for row, mel in zip(target, log_mel(batch), strict=True):
        row[: len(mel)] = torch.cdist(mel.to(device), centres).argmin(1)
    samples = torch.arange(batch.wave.shape[1])[None, :] < batch.lengths[:, None]
    hidden = model(batch.wave.to(device), attention_mask=samples.to(device), mask_time_indices=mask).last_hidden_state
    logits = head(hidden)
    seen = (target >= 0) & ~mask
    loss = torch.nn.functional.cross_entropy(logits[mask], target[mask])
    loss = loss + settings.unmasked * torch.nn.functional.cross_entropy(logits[seen], target[seen])
    return loss, float((logits[mask].argmax(-1) == target[mask]).float().mean())


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))
