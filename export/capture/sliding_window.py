"""Full-context students as a sliding window [left | chunk | right]: stateless, static shapes, approximate.

Two things keep a published student from streaming: the statistics of its first norm run over the whole utterance, and
its attention and positional convolution see all of it. Here every chunk sees ``left`` frames before it and ``right``
frames after it, and the statistics are the window's own, or constants calibrated on other speech. Own statistics follow
the loudness of the speaker and drift less in all our measurements; constants need no sum over the window. How far the
features drift from the full-utterance ones is measured as a function of all three and stored in the manifest.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from reuse_distill.export.capture.exported_layers import exported, into_layers, layer_numbers
from reuse_distill.export.spec import WindowContext
from reuse_distill.runtime.bundle_format.input_contract import RunningLevel
from reuse_distill.runtime.bundle_format.manifest import Geometry
from reuse_distill.runtime.cli.progress import with_progress
from reuse_distill.runtime.equivalence.parity import frame_cosines
from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.geometry import HOP_SAMPLES, SAMPLE_RATE_HZ, frames_for, samples_for
from reuse_distill.runtime.streaming.windows import in_steps
from reuse_distill.student import Student, StudentConfig
from reuse_distill.student.front_ends.frontend import FrozenTimeNorm, masked_statistics, normalised
from reuse_distill.student.whisper import WhisperStudent
from torch import Tensor, nn

BATCH = 8  # windows that one torch call takes
DRIFT_SECONDS = 60.0
DRIFT_WINDOWS = 32  # that every row of the drift is measured on, spread evenly over the audio
LEFTS, RIGHTS = (0, 25, 50, 100, 200), (0, 8, 16, 32, 64, 96)  # contexts of the drift curves, in frames


def calibrated(student: Student, clips: Sequence[np.ndarray]) -> Student:
    """A copy whose first norm has the mean statistics of ``clips`` in place of each utterance's own."""
    ready = copy.deepcopy(student).eval()
    if student.config.conv_norm != "group":
        return ready
    conv, norm = ready.feature_extractor.conv_layers[0][0], ready.feature_extractor.conv_layers[0][2]
    statistics = []
    with torch.no_grad():
        for clip in clips:
            wave = torch.from_numpy(clip)[None]
            if student.config.normalise_input is not None:
                wave = normalised(wave, epsilon=student.config.normalise_input)
            x = conv(wave[:, None])
            statistics.append(masked_statistics(x, torch.ones(1, x.shape[-1], dtype=torch.bool)))
    mean = torch.stack([m for m, _ in statistics]).mean(0)[0, :, 0]
    variance = torch.stack([v for _, v in statistics]).mean(0)[0, :, 0]
    ready.feature_extractor.conv_layers[0][2] = FrozenTimeNorm(norm, mean, variance)
    return ready


class CapturedWindow(nn.Module):
    """(wave [B, 320 F + 80], frame_valid [B, F]) -> chunk features [B, N, chunk, W].

    Raises RdError where the layers see several frames as one and the window would take them together otherwise than
    the whole utterance does.
    """

    def __init__(self, student: Student, window: WindowContext, layers: Sequence[int], features: str) -> None:
        super().__init__()
        in_steps(geometry_of(window, student.config.time_reduction))
        _check_length(window, student.config)
        self.student, self.window = student, window
        self.layers, self.features = tuple(layers), features
        self.normalise_input = student.config.normalise_input  # of whole utterances: not part of the module

    def forward(self, wave: Tensor, frame_valid: Tensor) -> Tensor:
        every = [*self._entering_and_hidden(wave, frame_valid)]
        entering, *chunk = chunk_of(every, self.window, self.student.config.time_reduction)
        features = exported(self.student, chunk, self.layers, self.features, frames=None, entering=entering)
        return torch.stack(features, dim=1)

    def hidden(self, wave: Tensor, frame_valid: Tensor) -> list[Tensor]:
        """Output [B, S, E] of every layer for the whole window."""
        return self._entering_and_hidden(wave, frame_valid)[1:]

    def _entering_and_hidden(self, wave: Tensor, frame_valid: Tensor) -> list[Tensor]:
        """What layer 1 sees, then ``hidden``."""
        encoder = self.student.encoder
        if isinstance(self.student, WhisperStudent):  # always sees its whole window of 30 s, silence after this one
            entering = encoder.positioned(self.student.frames(wave)[1])
            hidden = self.student.window_layers(entering)
            return [x[:, : frame_valid.shape[1]] * frame_valid[..., None] for x in (entering, *hidden)]
        x = self.student.frames(wave, frame_valid=frame_valid)[1] * frame_valid[..., None]
        x, bias = into_layers(self.student, encoder.positioned(x, frame_valid), frame_valid)
        return [x, *encoder.as_features(encoder.run(x, bias))]


def fits(window: WindowContext, config: StudentConfig) -> bool:
    """Whether an encoder that sees so much at once (Whisper) has room for the window; others have room for any."""
    return not config.window_frames or window.frames <= frames_for(config.window_frames * HOP_SAMPLES)


def _check_length(window: WindowContext, config: StudentConfig) -> None:
    if not fits(window, config):
        longest = frames_for(config.window_frames * HOP_SAMPLES)
        raise RdError(
            f"a window of {window.left_frames} | {window.chunk_frames} | {window.right_frames} frames, this encoder "
            f"sees at most {longest} at once",
            hint="lower --left, --chunk or --right",
        )


def geometry_of(window: WindowContext, step_frames: int) -> Geometry:
    """The window as the manifest tells it."""
    return Geometry(
        window.chunk_frames,
        left_frames=window.left_frames,
        right_frames=window.right_frames,
        step_frames=step_frames,
    )


def chunk_of(hidden: Sequence[Tensor], window: WindowContext, step_frames: int) -> list[Tensor]:
    """The chunk's part of every layer's output [..., S, E] for the whole window."""
    first, last = window.left_frames // step_frames, (window.left_frames + window.chunk_frames) // step_frames
    return [x[..., first:last, :] for x in hidden]


@dataclass(frozen=True)
class PlacedWindow:
    """One window of an utterance: its input, and how many frames of its chunk exist."""

    wave: np.ndarray  # (320 F + 80,)
    valid: np.ndarray  # (F,)
    kept: int


def windows(wave: np.ndarray, window: WindowContext, epsilon: float | None = None) -> Iterator[PlacedWindow]:
    """The windows that cover the utterance ``wave`` (T,), zeros where there is no audio.

    ``epsilon``: samples are normalised as in a stream, by the statistics up to the end of their window.
    """
    frames, total = frames_for(len(wave)), window.frames
    level = None if epsilon is None else RunningLevel(epsilon)
    for first in range(0, frames, window.chunk_frames):
        begin = first - window.left_frames
        index = np.arange(begin, begin + total)
        low, high = max(begin, 0), min(begin + total, frames)
        piece = np.zeros(samples_for(total), wave.dtype)
        real = wave[HOP_SAMPLES * low : HOP_SAMPLES * low + samples_for(high - low)]
        if level is not None:
            stop = len(wave) if begin + total > frames else HOP_SAMPLES * begin + samples_for(total)
            level.take(wave[level.position : stop])
            real = level.apply(real)
        offset = HOP_SAMPLES * (low - begin)
        piece[offset : offset + len(real)] = real
        valid = ((index >= 0) & (index < frames)).astype(wave.dtype)
        yield PlacedWindow(piece, valid, min(window.chunk_frames, frames - first))


def sliding(module: CapturedWindow, wave: np.ndarray, *, every: int = 1) -> np.ndarray:
    """Exported features (N, F, W) of the utterance ``wave`` (T,), window by window in torch.

    With ``every`` k, the frames of the first, the (k + 1)-th window and so on.
    """
    placed = list(windows(wave, module.window, module.normalise_input))[::every]
    parts = []
    for start in with_progress(range(0, len(placed), BATCH), "sliding windows", name=lambda _: ""):
        group = placed[start : start + BATCH]
        with torch.no_grad():
            outputs = module(
                torch.from_numpy(np.stack([p.wave for p in group])),
                torch.from_numpy(np.stack([p.valid for p in group])),
            ).numpy()
        parts += [rows[:, : p.kept] for rows, p in zip(outputs, group, strict=True)]
    return np.concatenate(parts, axis=1)


def drift(
    full: Student,
    windowed: Student,
    other: Student | None,
    window: WindowContext,
    clips: Sequence[np.ndarray],
    features: str,
) -> dict[str, Any]:
    """How far sliding windows are from the full utterance, over left and over right context; for the manifest.

    ``full`` gives the full-utterance features of its last layer, ``windowed`` the windows' as exported, ``other`` those
    with the other choice of norm statistics, where there is one to compare with. The utterance is ``clips`` joined, up
    to 60 s or what ``full`` takes at once: what a window does not see shows only where there is far more than it sees.
    Every row is measured on the same chunks, ``DRIFT_WINDOWS`` of them, so that rows differ by context and by nothing
    else.
    """
    at_once = full.config.window_frames * HOP_SAMPLES or math.inf  # what an encoder such as Whisper's takes at most
    wave = np.concatenate(clips)[: int(min(DRIFT_SECONDS * SAMPLE_RATE_HZ, at_once))]
    reference = _full(full, wave, features)
    frames = np.arange(reference.shape[1])
    every = -(-len(frames) // (window.chunk_frames * DRIFT_WINDOWS))

    def row(context: WindowContext, model: Student) -> dict[str, Any]:
        module = CapturedWindow(model, context, layer_numbers(full.config, features)[-1:], features)
        seen = frames[frames // context.chunk_frames % every == 0]
        cosines = frame_cosines(sliding(module, wave, every=every), reference[:, seen])
        return {
            "left_frames": context.left_frames,
            "right_frames": context.right_frames,
            "norm": norm_of(model),
            "mean_cosine": float(cosines.mean()),
            "p01_cosine": float(np.quantile(cosines, 0.01)),
            "min_cosine": float(cosines.min()),
        }

    step = full.config.time_reduction
    left = sorted({*(count - count % step for count in LEFTS), window.left_frames})
    right = sorted({*(count - count % step for count in RIGHTS), window.right_frames})
    lefts = [one for count in left if fits(one := replace(window, left_frames=count), full.config)]
    rights = [one for count in right if fits(one := replace(window, right_frames=count), full.config)]
    return {
        "reference": "full-utterance features of the last layer, torch float32",
        "seconds": round(len(wave) / SAMPLE_RATE_HZ, 1),
        "chunk_frames": window.chunk_frames,
        "exported": row(window, windowed),
        "other_norm": row(window, other) if other is not None else None,
        "left": [
            row(one, windowed)
            for one in with_progress(lefts, "drift over left context", name=lambda one: f"{one.left_frames} frames")
        ],
        "right": [
            row(one, windowed)
            for one in with_progress(rights, "drift over right context", name=lambda one: f"{one.right_frames} frames")
        ],
    }


def norm_of(student: Student) -> str:
    """Which statistics the first norm of a windowed student uses."""
    if student.config.conv_norm != "group":
        return "per frame"
    norm = student.feature_extractor.conv_layers[0][2]
    return "calibrated" if isinstance(norm, FrozenTimeNorm) else "window"


def _full(student: Student, clip: np.ndarray, features: str) -> np.ndarray:
    with torch.no_grad():
        output = student(torch.from_numpy(clip)[None])
    return (output.projections if features == "heads" else output.layers)[-1].numpy()
