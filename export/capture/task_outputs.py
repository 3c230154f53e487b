"""Heads inside an artifact: their outputs beside the features, or in place of them.

The captured module computes every layer that is shown or that a head takes, as [B, N, F, W]; what is wrapped around it
here picks the layers shown and runs the heads. So every target's own form of the student takes heads alike.

Shapes: B streams, N layers computed, F frames, W their width, K numbers of a head per frame.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from reuse_distill.student.tasks import TaskHead
from torch import Tensor, nn


class TaskOutputs(nn.Module):
    """features [B, N, F, W] -> (features of the layers shown, where there are any; [B, F, K] of every head)."""

    def __init__(self, layers: Sequence[int], shown: Sequence[int], heads: Sequence[TaskHead]) -> None:
        super().__init__()
        place = {layer: index for index, layer in enumerate(layers)}
        self.shown = tuple(place[layer] for layer in shown)
        self.sources = tuple(tuple(place[layer] for layer in head.config.layers) for head in heads)
        self.count = len(layers)
        self.heads = nn.ModuleList(heads)

    def forward(self, features: Tensor) -> tuple[Tensor, ...]:
        outputs = [self._layers(features, self.shown)] if self.shown else []
        for head, sources in zip(self.heads, self.sources, strict=True):
            outputs.append(head(self._layers(features, sources)))
        return tuple(outputs)

    def _layers(self, features: Tensor, numbers: tuple[int, ...]) -> Tensor:
        if numbers == tuple(range(self.count)):
            return features
        if len(numbers) == 1:
            return features[:, numbers[0] : numbers[0] + 1]
        return torch.stack([features[:, number] for number in numbers], dim=1)


class OfflineTasks(nn.Module):
    """wave [1, T] -> outputs."""

    def __init__(self, inner: nn.Module, tasks: TaskOutputs) -> None:
        super().__init__()
        self.inner, self.tasks = inner, tasks

    def forward(self, wave: Tensor) -> tuple[Tensor, ...]:
        return self.tasks(self.inner(wave))


class WindowTasks(OfflineTasks):
    """(wave, frame_valid) -> outputs."""

    def forward(self, wave: Tensor, frame_valid: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        return self.tasks(self.inner(wave, frame_valid))


class StepTasks(OfflineTasks):
    """(samples, fresh, states…) -> (outputs…, state outputs…)."""

    def forward(  # type: ignore[override]
        self, samples: Tensor, fresh: Tensor, *states: Tensor
    ) -> tuple[Tensor, ...]:
        features, *rest = self.inner(samples, fresh, *states)
        return (*self.tasks(features), *rest)


def with_tasks(inner: nn.Module, tasks: TaskOutputs | None, mode: str) -> nn.Module:
    """``inner`` itself, or with the outputs of heads around it; ``mode``: offline, window or streaming."""
    if tasks is None:
        return inner
    kind = {"offline": OfflineTasks, "window": WindowTasks, "streaming": StepTasks}[mode]
    return kind(inner, tasks).eval()
