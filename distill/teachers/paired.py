"""The layers that teach: those of the teacher at the depth of the student's, normed where the recipe says so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from reuse_distill.distill.teachers.protocol import Teacher, TeacherInfo, TeacherPass
from reuse_distill.runtime.errors import RdError
from torch import Tensor


def layers_by_depth(student_layers: int, teacher_layers: int) -> tuple[int, ...]:
    """The teacher's layer, from 1, for each of the student's: the one at the same share of the depth, the last last."""
    return tuple(max(1, round(n * teacher_layers / student_layers)) for n in range(1, student_layers + 1))


def normed_targets(layers: Tensor, *, final_norm: bool) -> Tensor:
    """(N, ..., C) after a layer norm without parameters; the last not, where it has the teacher's own (``final_norm``).

    Residual streams have a few channels of much larger values than the others, which would be all that a loss sees.
    """
    normed = torch.nn.functional.layer_norm(layers.float(), layers.shape[-1:])
    return torch.cat([normed[:-1], layers[-1:].float()]) if final_norm else normed


class PairedTeacher:
    """A ``Teacher`` of which only ``layers`` (from 1) are seen, normed with ``target_norm="layer"``."""

    def __init__(self, teacher: Teacher, layers: Sequence[int], *, target_norm: str) -> None:
        self.teacher, self.info = teacher, teacher.info
        self.layers, self.target_norm = tuple(layers), target_norm

    @property
    def can_mask(self) -> bool:
        return bool(getattr(self.teacher, "can_mask", True))

    def to(self, device: torch.device | str) -> PairedTeacher:
        self.teacher = self.teacher.to(device)
        return self

    def run(
        self, wave: Tensor, lengths: Tensor | None = None, mask: Tensor | None = None, *, maps: bool = False
    ) -> TeacherPass:
        whole = self.teacher.run(wave, lengths, mask, maps=maps)
        seen = whole.maps if whole.maps is None else whole.maps[self._rows]
        return replace(whole, layers=self.seen(whole.layers), maps=seen)

    def hidden_states(self, wave: Tensor, lengths: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        return self.seen(self.teacher.hidden_states(wave, lengths, mask))

    def both(self, wave: Tensor, lengths: Tensor | None, mask: Tensor) -> tuple[Tensor, Tensor]:
        plain, masked = self.teacher.both(wave, lengths, mask)
        return self.seen(plain), self.seen(masked)

    def seen(self, layers: Tensor) -> Tensor:
        """(all layers, ...) of the teacher -> those that teach, as they are compared."""
        chosen = layers[self._rows]
        if self.target_norm == "none":
            return chosen
        return normed_targets(chosen, final_norm=has_final_norm(self.info) and self.layers[-1] == self.info.layers)

    @property
    def _rows(self) -> list[int]:
        return [layer - 1 for layer in self.layers]


class StoredTeacher:
    """A teacher of which only targets are at hand: a ``Teacher`` that cannot hear."""

    can_mask = False

    def __init__(self, info: TeacherInfo) -> None:
        self.info = info

    def to(self, device: torch.device | str) -> StoredTeacher:
        return self

    def run(
        self, wave: Tensor, lengths: Tensor | None = None, mask: Tensor | None = None, *, maps: bool = False
    ) -> TeacherPass:
        raise RdError(f"of teacher {self.info.name} only targets are at hand", hint="name it with --teacher")

    def hidden_states(self, wave: Tensor, lengths: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        return self.run(wave, lengths, mask).layers

    def both(self, wave: Tensor, lengths: Tensor | None, mask: Tensor) -> tuple[Tensor, Tensor]:
        layers = self.hidden_states(wave, lengths, mask)
        return layers, layers


def has_final_norm(info: TeacherInfo) -> bool:
    """Whether the last layer that ``run`` gives went through the model's own norm: Whisper's does, pruned or not."""
    return info.kind == "whisper" or info.window_frames > 0
