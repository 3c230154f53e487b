"""What a teacher is: the one interface that training and evaluation know.

Shapes: N layers, B batch, T samples at 16 kHz, F frames, C channels, H heads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.geometry import HOP_SAMPLES, RECEPTIVE_FIELD_SAMPLES
from torch import Tensor

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

    ``maps`` are the head-averaged attention maps (N, B, F, F), only where asked for.
    """

    layers: Tensor
    entry: Tensor
    padding: Tensor
    maps: Tensor | None = None


class Teacher(Protocol):
    """A frozen model. ``wave`` (B, T) float32, ``lengths`` (B,) samples or None, ``mask`` (B, F) true = masked."""

    info: TeacherInfo

    def run(
        self, wave: Tensor, lengths: Tensor | None = None, mask: Tensor | None = None, *, maps: bool = False
    ) -> TeacherPass:
        """One pass, masked where ``mask`` says so."""
        ...

    def hidden_states(self, wave: Tensor, lengths: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """The layers (N, B, F, C) of one pass."""
        ...

    def both(self, wave: Tensor, lengths: Tensor | None, mask: Tensor) -> tuple[Tensor, Tensor]:
        """(unmasked, masked) layers, (N, B, F, C) each; the conv front end runs once, the layers on 2 B rows."""
        ...

    def to(self, device: torch.device | str) -> Teacher:
        """The same teacher on ``device``."""
        ...


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
