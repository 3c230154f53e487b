"""A student's own model as a teacher: MelHuBERT, and checkpoint folders of ours (a student before it is compressed).

What it shows: the projections where it has a head per layer (they live in its own teacher's space, and so do those of
the student that it teaches), otherwise its layers. Frames of 10 ms are averaged in pairs: students have 20 ms.

Shapes: N layers, B batch, T samples at 16 kHz, F frames, C channels.
"""

from __future__ import annotations

import torch
from reuse_distill.distill.teachers.protocol import Teacher, TeacherInfo, TeacherPass
from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.geometry import HOP_SAMPLES, RECEPTIVE_FIELD_SAMPLES, frames_for
from reuse_distill.student import Student, StudentOutput
from reuse_distill.student.attention import padding_mask
from torch import Tensor


class StudentTeacher(Teacher):
    """A ``Teacher``: a ``Student`` in full context."""

    model: Student

    def __init__(self, student: Student, name: str, kind: str, sha256: str) -> None:
        config = student.config
        self.model = student.eval().requires_grad_(False)
        self.shows_heads = config.head_width is not None and config.head_kind == "layerwise"
        self.info = TeacherInfo(
            name=name,
            kind=kind,
            layers=config.layers,
            width=config.head_width or config.width if self.shows_heads else config.width,
            heads=config.heads,
            hop_samples=HOP_SAMPLES,
            receptive_field_samples=RECEPTIVE_FIELD_SAMPLES,
            parameters=sum(p.numel() for p in student.parameters()),
            sha256=sha256,
            pre_norm=config.norm_first,
            window_frames=config.window_frames,
        )
        self.can_mask = config.mask_embedding and config.hop_samples == HOP_SAMPLES

    @torch.no_grad()
    def run(
        self, wave: Tensor, lengths: Tensor | None = None, mask: Tensor | None = None, *, maps: bool = False
    ) -> TeacherPass:
        if mask is not None and not self.can_mask:
            raise RdError(
                f"teacher {self.info.name} has no mask embedding, so it cannot see a masked input",
                hint="use a recipe without masking (loss: hint)",
            )
        slower = self.model.config.hop_samples != HOP_SAMPLES
        if maps and slower:
            raise RdError(f"teacher {self.info.name} gives maps of 10 ms frames", hint="loss.attention_weight=0")
        dtype = next(self.model.parameters()).dtype
        output: StudentOutput = self.model(wave.to(dtype), lengths, mask, with_maps=maps)
        layers = torch.stack(output.projections if self.shows_heads else output.layers)
        entry, padding = output.encoder_input, output.padding
        if slower:
            frames = frames_for(wave.shape[1])
            layers, entry = paired(layers, output.padding, frames), paired(entry, output.padding, frames)
            padding = torch.zeros(layers.shape[1:3], dtype=torch.bool, device=wave.device)
            if lengths is not None:
                padding = padding_mask(lengths, frames)
        return TeacherPass(
            layers=layers,
            entry=entry,
            padding=padding,
            maps=torch.stack([one.mean(1) for one in output.maps]) if maps else None,
        )


def paired(x: Tensor, padding: Tensor, frames: int) -> Tensor:
    """Means of frames 2 t and 2 t + 1 where both exist, [..., B, 2 F or 2 F - 1, C] -> [..., B, F, C]."""
    exists = (~padding).to(x.dtype)[..., None]  # [B, M, 1]
    x = x * exists
    if x.shape[-2] < 2 * frames:
        x, exists = (torch.nn.functional.pad(one, (0, 0, 0, 1)) for one in (x, exists))
    summed = x.unflatten(-2, (frames, 2)).sum(-2)
    return summed / exists.unflatten(-2, (frames, 2)).sum(-2).clamp(min=1)
