"""Whisper's encoder as a teacher: log-mel as Whisper computes it, windows of 30 s, frames on the students' frames.

Whisper hears windows of exactly 30 s, zero-padded, and adds a position to every frame of a window. Several recordings
may lie in one window, each at a position of its own and with silence at its own level after it (``PlacedMel``).

Alignment. Whisper's own frame t is centred on sample 320 t of its audio, a student's on 320 t + 200 (it covers samples
320 t to 320 t + 400). So a mel frame is of samples 160 m to 160 m + 400 instead of those around sample 160 m: that
is what Whisper makes of the recording without its first 200 samples, which stand where Whisper reflects the beginning.

Shapes: B batch, T samples at 16 kHz, M mel frames (two per frame), F frames, C channels, N layers.
Sources: openai/whisper ``audio.py`` and ``model.py``; transformers ``WhisperFeatureExtractor`` and ``WhisperEncoder``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from reuse_distill.distill.teachers.protocol import Teacher, TeacherInfo, TeacherPass, frame_padding
from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.geometry import RECEPTIVE_FIELD_SAMPLES, SAMPLE_RATE_HZ, frames_for
from torch import Tensor

WINDOW_FRAMES = 1500  # 30 s
MEL_HOP_SAMPLES = 160
FFT = 400
RANGE = 8.0  # decades below the loudest mel energy that are kept
QUIETEST = 1e-10


@dataclass(frozen=True)
class PlacedMel:
    """A piece of a recording in a window: ``mel`` (M, mels) of its frames and the context after them, at ``position``.

    ``floor`` is the value of silence at the recording's level, which fills the window from this piece on.
    """

    mel: Tensor
    floor: float
    position: int  # frame of the window


class WhisperTeacher(Teacher):
    """A ``Teacher``. Layers are the residual stream after each layer; the last went through Whisper's norm.

    Masked passes set the mel input of masked frames to 0, as transformers' own SpecAugment of Whisper does.
    """

    model: Any
    can_mask = True

    def __init__(self, encoder: Any, info: TeacherInfo) -> None:
        self.model = encoder.eval().requires_grad_(False)
        self.info = info
        self.filters = mel_filters(encoder.config.num_mel_bins)

    def to(self, device: torch.device | str) -> WhisperTeacher:
        self.model.to(device)
        self.filters = self.filters.to(device)
        return self

    @torch.no_grad()
    def run(
        self, wave: Tensor, lengths: Tensor | None = None, mask: Tensor | None = None, *, maps: bool = False
    ) -> TeacherPass:
        """Every row from the beginning of windows of its own: exactly what Whisper makes of the row alone."""
        if maps:
            raise RdError(
                f"teacher {self.info.name} (whisper) gives no attention maps: its windows are not the students' rows",
                hint="loss.attention_weight=0",
            )
        frames = frames_for(wave.shape[1])
        counts = [wave.shape[1]] * len(wave) if lengths is None else [int(n) for n in lengths]
        masks = [None] * len(wave) if mask is None else list(mask)
        rows = [self._row(row[:count], hidden) for row, count, hidden in zip(wave, counts, masks, strict=True)]
        entry = _padded([entry for entry, _ in rows], frames)
        layers = _padded([layers for _, layers in rows], frames, dim=1)
        padding = torch.zeros(len(wave), frames, dtype=torch.bool, device=wave.device)
        if lengths is not None:
            padding = frame_padding(lengths, wave.shape[1], frames, "conv")
        return TeacherPass(layers=layers.transpose(0, 1), entry=entry, padding=padding)

    def finished(self, layer: int, residual: Tensor) -> Tensor:
        """The 1-based ``layer`` of a residual stream (..., C): the last one goes through Whisper's own norm."""
        return self.model.layer_norm(residual) if layer == self.info.layers else residual

    @torch.no_grad()
    def mel(self, samples: Tensor) -> tuple[Tensor, float]:
        """(T,) -> log-mel (2 F + 2, mels) of its F frames and what follows, and the value of silence after it."""
        return aligned_log_mel(samples, self.filters)

    @torch.no_grad()
    def window(self, pieces: Sequence[PlacedMel]) -> tuple[Tensor, Tensor]:
        """One window: (what layer 1 sees (1500, C), the residual stream after every layer (N, 1500, C))."""
        mel = torch.empty(2 * WINDOW_FRAMES, self.filters.shape[1], device=self.filters.device)
        for piece in pieces:
            start = 2 * piece.position
            mel[start:] = piece.floor
            mel[start : start + len(piece.mel)] = piece.mel[: 2 * WINDOW_FRAMES - start]
        seen: list[Tensor] = []
        layers = self.model.layers
        handles = [layers[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))]
        handles += [layer.register_forward_hook(lambda _, __, out: seen.append(_first(out))) for layer in layers]
        try:
            self.model(mel.T[None].to(self.model.conv1.weight.dtype))
        finally:
            for handle in handles:
                handle.remove()
        return seen[0][0], torch.cat(seen[1:])

    def _row(self, samples: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """(entry (F, C), layers (N, F, C)) of one recording, in as many windows as it needs."""
        frames = frames_for(len(samples))
        mel, floor = self.mel(samples)
        if mask is not None:
            hidden = mask[:frames].repeat_interleave(2)
            mel[: 2 * frames][hidden] = 0.0
        entries, layers = [], []
        for start in range(0, max(frames, 1), WINDOW_FRAMES):
            count = min(WINDOW_FRAMES, frames - start)
            entry, residual = self.window([PlacedMel(mel[2 * start :], floor, 0)])
            entries.append(entry[:count])
            layers.append(residual[:, :count])
        stream = torch.cat(layers, dim=1)
        last = self.finished(self.info.layers, stream[-1:])
        return torch.cat(entries), torch.cat([stream[:-1], last])


def log_mel(padded: Tensor, filters: Tensor) -> Tensor:
    """Log-mel energies before Whisper's scaling: (T,) -> (M, mels), frame m of samples 160 m to 160 m + 400."""
    window = torch.hann_window(FFT, device=padded.device)
    spectrum = torch.fft.rfft(padded.unfold(0, FFT, MEL_HOP_SAMPLES) * window)
    return (spectrum.abs().square() @ filters).clamp(min=QUIETEST).log10()


def scaled(energies: Tensor, loudest: float) -> Tensor:
    """As Whisper scales them: at most 8 decades below the loudest, then (x + 4) / 4."""
    return (energies.clamp(min=loudest - RANGE) + 4) / 4


def aligned_log_mel(samples: Tensor, filters: Tensor) -> tuple[Tensor, float]:
    """(T,) -> (Whisper's log-mel (2 F + 2, mels) on the students' frames, the value of silence at its level)."""
    frames = frames_for(len(samples))
    silence = torch.nn.functional.pad(samples.float(), (0, RECEPTIVE_FIELD_SAMPLES + 2 * MEL_HOP_SAMPLES))
    energies = log_mel(silence, filters)[: 2 * frames + 2]
    loudest = float(energies.max())
    floor = scaled(torch.tensor(-10.0), loudest)
    return scaled(energies, loudest), float(floor)


def mel_filters(mels: int) -> Tensor:
    """Slaney's triangular mel filters as Whisper has them, 0 Hz to 8 kHz: (201, mels)."""
    from transformers.audio_utils import mel_filter_bank

    bank = mel_filter_bank(
        num_frequency_bins=FFT // 2 + 1,
        num_mel_filters=mels,
        min_frequency=0.0,
        max_frequency=SAMPLE_RATE_HZ / 2,
        sampling_rate=SAMPLE_RATE_HZ,
        norm="slaney",
        mel_scale="slaney",
    )
    return torch.from_numpy(bank).float()


def _first(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


def _padded(rows: Sequence[Tensor], frames: int, dim: int = 0) -> Tensor:
    """Rows whose dimension ``dim`` counts frames, zero-padded to ``frames`` and stacked."""
    result = rows[0].new_zeros(len(rows), *rows[0].shape[:dim], frames, *rows[0].shape[dim + 1 :])
    for target, row in zip(result, rows, strict=True):
        target.narrow(dim, 0, row.shape[dim]).copy_(row)
    return result
