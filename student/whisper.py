"""Whisper's encoder as a student: log-mel of a whole 30 s window, two convolutions, absolute positions, norms first.

Whisper sees windows of exactly 30 s: shorter audio is followed by silence, which every frame attends to. Its frame f
is centred on sample 320 f. Sources: arXiv 2212.04356 section 2.2; openai/whisper ``audio.py`` and ``model.py``.

Shape legend: B batch, T samples, M mel frames (10 ms), F frames (20 ms), C channels.
"""

from __future__ import annotations

import torch
from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.geometry import HOP_SAMPLES, RECEPTIVE_FIELD_SAMPLES, SAMPLE_RATE_HZ, frames_for
from reuse_distill.student.attention import padding_mask
from reuse_distill.student.config import ChunkContext, ChunkSchedule, StudentConfig
from reuse_distill.student.front_ends.frontend import normalised
from reuse_distill.student.model import Student, StudentOutput
from torch import Tensor


class WhisperStudent(Student):
    """A student whose configuration has ``front_end: whisper``; forward and layers as every student has them."""

    def forward(
        self,
        wave: Tensor,
        lengths: Tensor | None = None,
        mask: Tensor | None = None,
        *,
        context: ChunkContext | ChunkSchedule | tuple[int, int] | None = None,
        with_maps: bool = False,
        layer_grad_scale: bool = False,
        front_end_grad_scale: float = 1.0,
    ) -> StudentOutput:
        """Features of utterances of up to 30 s, zero-padded: frames (T - 400) // 320 + 1 of them, as for all students.

        Samples from ``lengths`` [B] on have to be zeros. Raises RdError for longer ones, masks and contexts.
        """
        samples, longest = wave.shape[1], self.config.window_frames * HOP_SAMPLES
        if not RECEPTIVE_FIELD_SAMPLES <= samples <= longest:
            raise RdError(
                f"{samples} samples, Whisper sees {RECEPTIVE_FIELD_SAMPLES} to {longest} at once",
                hint=f"cut the audio into pieces of up to {longest / SAMPLE_RATE_HZ:g} s, or use windows",
            )
        if mask is not None or context is not None:
            raise RdError("Whisper's encoder has no masked and no chunked forward", hint="leave mask and context out")
        if self.config.normalise_input is not None:
            wave = normalised(wave, lengths, epsilon=self.config.normalise_input)
        frames = frames_for(samples)
        raw, x = self.frames(wave)
        if lengths is None:
            padding = torch.zeros(wave.shape[0], frames, dtype=torch.bool, device=x.device)
        else:
            padding = padding_mask(lengths, frames)
        positioned = self.encoder.positioned(x)
        output = StudentOutput(raw[..., :frames], x[:, :frames], positioned[:, :frames], padding)
        maps: list[Tensor] = []
        hidden = self.window_layers(positioned, maps if with_maps else None)
        output.layers = [layer[:, :frames] for layer in hidden]
        output.maps = [one[..., :frames, :frames] for one in maps]
        return output

    def window_layers(self, x: Tensor, maps: list[Tensor] | None = None) -> list[Tensor]:
        """Output [B, 1500, C] of every layer for the whole window of positioned frames ``x``; its map to ``maps``."""
        return self.encoder.as_features(self.encoder.run(x, None, maps=maps))


def build_student(config: StudentConfig) -> Student:
    """The student of ``config``, of the class that its front end needs."""
    return WhisperStudent(config) if config.front_end == "whisper" else Student(config)
