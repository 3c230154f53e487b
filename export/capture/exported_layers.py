"""What an artifact gives: from frames into a student's layers, from the layers to the exported features and the heads.

The captured module computes every layer that is shown or that a head takes, as [B, N, F, W]; what is wrapped around it
here picks the layers shown and runs the heads. So every target's own form of the student takes heads alike.

Shape legend: B streams, N layers computed, F frames, S steps of the layers (S = F without time reduction), E encoder
width, W feature width, K numbers of a head per frame. The axis B may be missing where it says [..., S, E].
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from reuse_distill.runtime.errors import RdError
from reuse_distill.student import Student, StudentConfig
from reuse_distill.student.attention import score_bias
from reuse_distill.student.heads import restored, seen
from reuse_distill.student.tasks import TaskHead
from torch import Tensor, nn


def layer_numbers(config: StudentConfig, features: str) -> tuple[int, ...]:
    """What ``--layers`` counts: the student's layers, or the teacher's that its heads predict."""
    return config.targets if features == "heads" else tuple(range(1, config.layers + 1))


def depth_of(config: StudentConfig, layers: Sequence[int], features: str) -> int:
    """How many layers of the student the exported ``layers`` need: all where the heads take the last one."""
    return config.layers if features == "heads" and config.head_kind == "split" else max(layers)


def into_layers(student: Student, x: Tensor, exists: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Positioned frames ``x`` [B, F, E] -> (what layer 1 sees [B, S, E], what is added to the scores [B, 1, 1, S]).

    ``exists`` [B, F] is 1 where a frame does; None: all do.
    """
    reduction = student.encoder.reduction
    if reduction is None:
        return x, None if exists is None else score_bias(exists, x.dtype)[:, None, None, :]
    visible = seen(torch.ones_like(x[..., 0]) if exists is None else exists, reduction.factor)
    return reduction(x, exists), score_bias(visible, x.dtype)[:, None, None, :]


def exported(
    student: Student,
    hidden: Sequence[Tensor],
    layers: Sequence[int],
    features: str,
    *,
    frames: int | None,
    entering: Tensor | None = None,
) -> list[Tensor]:
    """The features [..., F, W] of ``layers``, from the output [..., S, E] of every layer; ``frames`` None: all of S.

    Number 0 is what layer 1 sees, ``entering`` [..., S, E]; raises RdError where it is requested and not given.
    """
    if features == "hidden":
        if 0 in layers and entering is None:
            raise RdError("this target does not give what layer 1 sees (layer 0)", hint="use --target onnx")
        factor = student.config.time_reduction
        picked = [hidden[number - 1] if number or entering is None else entering for number in layers]
        return picked if factor == 1 else [restored(x, factor, frames) for x in picked]
    if student.split_heads is not None:
        predicted = student.split_heads(hidden[-1])
        return [predicted[student.config.targets.index(number)] for number in layers]
    assert student.proj_head is not None  # noqa: S101  (check_features has seen to it)
    return [student.proj_head[number - 1](hidden[number - 1], frames) for number in layers]


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
