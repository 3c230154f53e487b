"""What a teacher is: the one interface that training and evaluation know; and which of its layers teach.

A student's layer is taught by the teacher's at the same share of the depth, normed where the recipe says so.

Shapes: N layers, B batch, T samples at 16 kHz, F frames, C channels, H heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import torch
from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.geometry import HOP_SAMPLES, RECEPTIVE_FIELD_SAMPLES
from torch import Tensor, nn

FrameRule = Literal["conv", "public"]


@dataclass(frozen=True)
class TeacherInfo:
    """What a recipe, an error message or a model card needs to know about a teacher."""

    name: str
    kind: str  # hubert, wavlm, ...
    layers: int
    width: int
    heads: int
    hop_samples: int
    receptive_field_samples: int
    parameters: int
    sha256: str  # of the weights
    pre_norm: bool = False  # layers are a residual stream; the last one has the model's final norm where it has one
    window_frames: int = 0  # frames that the teacher hears at once, whatever the recording's length; 0: any number


@dataclass
class TeacherPass:
    """One pass: ``layers`` (N, B, F, C), ``entry`` (B, F, C) what layer 1 sees, ``padding`` (B, F) true = padded.

    ``maps`` are the head-averaged attention maps (N, B, F, F), only where requested.
    """

    layers: Tensor
    entry: Tensor
    padding: Tensor
    maps: Tensor | None = None


class Teacher(Protocol):
    """A frozen model. ``wave`` (B, T) float32, ``lengths`` (B,) samples or None, ``mask`` (B, F) true = masked."""

    info: TeacherInfo
    model: nn.Module | None  # the network itself; None where only its targets are at hand
    can_mask: bool  # whether it has an embedding, or another way, to see masked frames

    def run(
        self, wave: Tensor, lengths: Tensor | None = None, mask: Tensor | None = None, *, maps: bool = False
    ) -> TeacherPass:
        """One pass, masked where ``mask`` says so."""
        ...

    def hidden_states(self, wave: Tensor, lengths: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """The layers (N, B, F, C) of one pass."""
        return self.run(wave, lengths, mask).layers

    def both(self, wave: Tensor, lengths: Tensor | None, mask: Tensor) -> tuple[Tensor, Tensor]:
        """(unmasked, masked) layers, (N, B, F, C) each."""
        return self.hidden_states(wave, lengths), self.hidden_states(wave, lengths, mask)

    def to(self, device: torch.device | str) -> Teacher:
        """The same teacher on ``device``."""
        if self.model is not None:
            self.model.to(device)
        return self


def frame_padding(lengths: Tensor, samples: int, frames: int, rule: FrameRule) -> Tensor:
    """(B, F) true on padded frames, for rows of ``lengths`` of ``samples`` samples.

    ``conv``: a frame is valid when all its 400 samples are. ``public``: the fairseq teachers cut the samples into F
    equal parts and call a frame padded when its whole part is, which keeps up to one frame more.
    """
    frame = torch.arange(frames, device=lengths.device)[None, :]
    if rule == "public":
        return frame * (samples // frames) >= lengths[:, None]
    valid = torch.div(lengths - RECEPTIVE_FIELD_SAMPLES, HOP_SAMPLES, rounding_mode="floor") + 1
    return frame >= valid[:, None]


def check_frame_rate(name: str, hop_samples: int, field_samples: int) -> None:
    """Raise RdError when a teacher's frames do not lie on the students' frames."""
    if (hop_samples, field_samples) != (HOP_SAMPLES, RECEPTIVE_FIELD_SAMPLES):
        raise RdError(
            f"teacher {name} makes one frame per {hop_samples} samples from {field_samples}, "
            f"students one per {HOP_SAMPLES} from {RECEPTIVE_FIELD_SAMPLES}",
            hint="choose a teacher with 20 ms frames (HuBERT, WavLM, wav2vec 2.0, UniSpeech-SAT, data2vec)",
        )


def layers_by_depth(student_layers: int, teacher_layers: int) -> tuple[int, ...]:
    """The teacher's layer, from 1, for each of the student's: the one at the same share of the depth, the last last."""
    return tuple(max(1, round(n * teacher_layers / student_layers)) for n in range(1, student_layers + 1))


def normed_targets(layers: Tensor, *, final_norm: bool) -> Tensor:
    """(N, ..., C) after a layer norm without parameters; the last not, where it has the teacher's own (``final_norm``).

    Residual streams have a few channels of much larger values than the others, which would be all that a loss sees.
    """
    normed = torch.nn.functional.layer_norm(layers.float(), layers.shape[-1:])
    return torch.cat([normed[:-1], layers[-1:].float()]) if final_norm else normed


class PairedTeacher(Teacher):
    """A ``Teacher`` of which only ``layers`` (from 1) are seen, normed with ``target_norm="layer"``."""

    def __init__(self, teacher: Teacher, layers: Sequence[int], *, target_norm: str) -> None:
        self.teacher, self.info = teacher, teacher.info
        self.model, self.can_mask = teacher.model, teacher.can_mask
        self.layers, self.target_norm = tuple(layers), target_norm

    def to(self, device: torch.device | str) -> PairedTeacher:
        self.teacher = self.teacher.to(device)
        return self

    def run(
        self, wave: Tensor, lengths: Tensor | None = None, mask: Tensor | None = None, *, maps: bool = False
    ) -> TeacherPass:
        whole = self.teacher.run(wave, lengths, mask, maps=maps)
        seen = whole.maps if whole.maps is None else whole.maps[self._rows]
        return replace(whole, layers=self.seen(whole.layers), maps=seen)

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


class StoredTeacher(Teacher):
    """A teacher of which only targets are at hand: a ``Teacher`` that cannot hear."""

    model = None
    can_mask = False

    def __init__(self, info: TeacherInfo) -> None:
        self.info = info

    def run(
        self, wave: Tensor, lengths: Tensor | None = None, mask: Tensor | None = None, *, maps: bool = False
    ) -> TeacherPass:
        raise RdError(f"of teacher {self.info.name} only targets are at hand", hint="name it with --teacher")


def has_final_norm(info: TeacherInfo) -> bool:
    """Whether the last layer that ``run`` gives went through the model's own norm: Whisper's does, pruned or not."""
    return info.kind == "whisper" or info.window_frames > 0
