"""The audio that calibrates a quantised artifact: enough of it, not silent, not one voice only."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from reuse_distill.export.capture.capture import Capture
from reuse_distill.export.quantise.quantisation_recipe import CalibratedWith, Recipe
from reuse_distill.export.spec import ExportSpec, SlidingWindow, Streaming
from reuse_distill.runtime.audio.audio_files import read_audio
from reuse_distill.runtime.audio.recordings import Recording, find_recordings
from reuse_distill.runtime.audio.resample import resample
from reuse_distill.runtime.cli.progress import with_progress
from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.geometry import HOP_SAMPLES, RECEPTIVE_FIELD_SAMPLES, SAMPLE_RATE_HZ, frames_for, samples_for

LEAST_SECONDS = 20.0
CLIP_SAMPLES = 6 * SAMPLE_RATE_HZ
MOST_CLIPS = 32
HOLD_OUT_EVERY = 4
SILENCE_RMS = 1e-4  # -80 dB full scale
FEED_EVERY = 12  # steps of a stream: neighbouring ones see nearly the same
MOST_BYTES = 1 << 28  # of the inputs of one call


@dataclass(frozen=True)
class CalibrationSet:
    """Clips (T,) float32 at 16 kHz, spread over the recordings, and what identifies them."""

    clips: tuple[np.ndarray, ...]
    files: int
    speakers: int | None  # None: the source does not tell
    sha256: str
    held_out: tuple[Recording, ...]  # recordings of the same source that did not calibrate; may be empty

    @property
    def seconds(self) -> float:
        return sum(len(clip) for clip in self.clips) / SAMPLE_RATE_HZ

    @property
    def level_dbfs(self) -> float:
        """Root mean square of all clips, in dB of full scale."""
        power = sum(float(np.square(clip, dtype=np.float64).sum()) for clip in self.clips)
        return 10 * math.log10(max(power / sum(map(len, self.clips)), SILENCE_RMS**2))

    def describe(self) -> dict[str, Any]:
        """For the manifest."""
        return {
            "clips": len(self.clips),
            "seconds": round(self.seconds, 2),
            "level_dbfs": round(self.level_dbfs, 1),
            "speakers": self.speakers if self.speakers is not None else "unknown",
            "sha256": self.sha256,
        }

    def note(self) -> CalibratedWith:
        """For the recipe."""
        speakers = self.speakers if self.speakers is not None else "unknown"
        return CalibratedWith(self.sha256, len(self.clips), round(self.seconds, 2), speakers)


def check_same(recipe: Recipe, calibration: CalibrationSet) -> None:
    """Raises RdError where the recipe names other calibration audio than was given."""
    expected = recipe.calibration
    if expected is not None and expected.sha256 != calibration.sha256:
        raise RdError(
            f"recipe: calibrated with {expected.clips} clips of sha256 {expected.sha256[:12]}…, "
            f"--calibration gives {len(calibration.clips)} of {calibration.sha256[:12]}…",
            hint="give the same audio, or take calibration out of the recipe",
        )


def read_calibration(source: Path | str, *, accept_narrow: bool = False) -> CalibrationSet:
    """Up to 32 clips of 6 s, evenly spread over three quarters of the recordings of ``source``; the rest is held out.

    A recording gives its loudest 6 s; where that is less than 20 s in all, long recordings give more of what they have.
    Raises RdError for less than 20 s that is not silent, and for a set whose manifest names one speaker only (what was
    calibrated on one voice clips the others); ``accept_narrow`` takes both all the same.
    """
    recordings = find_recordings(source)
    held_out = recordings[HOLD_OUT_EVERY - 1 :: HOLD_OUT_EVERY]
    others = [one for index, one in enumerate(recordings, start=1) if index % HOLD_OUT_EVERY]
    chosen = _spread(others, MOST_CLIPS)
    clips = [clip for recording in chosen for clip in _clips(recording, 1)]
    if sum(map(len, clips)) < LEAST_SECONDS * SAMPLE_RATE_HZ:
        clips = [clip for recording in chosen for clip in _clips(recording, max(2, MOST_CLIPS // len(chosen)))]
    digest = hashlib.sha256()
    for clip in clips:
        digest.update(clip.tobytes())
    speakers = {recording.speaker for recording in chosen if recording.speaker}
    known = len(speakers) if all(recording.speaker for recording in chosen) else None
    calibration = CalibrationSet(tuple(clips), len(chosen), known, digest.hexdigest(), tuple(held_out))
    if not clips:
        raise RdError(f"calibration audio {source}: all {len(chosen)} recordings are silent", hint="give real speech")
    if not accept_narrow:
        _check(calibration, source)
    return calibration


def _check(calibration: CalibrationSet, source: Path | str) -> None:
    anyway = "or give --accept-narrow-calibration"
    if calibration.seconds < LEAST_SECONDS:
        raise RdError(
            f"calibration audio {source}: {calibration.seconds:.1f} s that are not silent, {LEAST_SECONDS:g} s are "
            "needed",
            hint=f"give more speech, {anyway}",
        )
    if calibration.speakers == 1:
        raise RdError(
            f"calibration audio {source}: one speaker only, at least 2 are needed",
            hint=f"add recordings of other voices, {anyway}",
        )


def _spread(recordings: list[Recording], most: int) -> list[Recording]:
    if len(recordings) <= most:
        return recordings
    return [recordings[round(i)] for i in np.linspace(0, len(recordings) - 1, most)]


def _clips(recording: Recording, most: int) -> list[np.ndarray]:
    """The loudest 6 s of a recording, or all of its up to ``most`` parts of 6 to 12 s, of longer ones the loudest 6 s.

    What is silent or too short for a frame is left out.
    """
    audio = read_audio(recording.path)
    samples = resample(audio.samples, audio.sample_rate_hz)
    parts = np.array_split(samples, min(most, max(1, len(samples) // CLIP_SAMPLES)))
    longest = CLIP_SAMPLES if most == 1 else 2 * CLIP_SAMPLES
    return [clip for part in parts if (clip := _loudest(part, longest)) is not None]


def _loudest(samples: np.ndarray, longest: int) -> np.ndarray | None:
    """``samples``, or the loudest 6 s of more than ``longest``; None where silent or too short for a frame."""
    if len(samples) > longest:
        power = np.convolve(np.square(samples[::100]), np.ones(CLIP_SAMPLES // 100), mode="valid")
        start = 100 * int(power.argmax())
        samples = samples[start : start + CLIP_SAMPLES]
    if len(samples) < RECEPTIVE_FIELD_SAMPLES or float(np.sqrt(np.mean(np.square(samples)))) < SILENCE_RMS:
        return None
    return np.ascontiguousarray(samples, np.float32)


def _shown(calibration: CalibrationSet) -> Iterator[np.ndarray]:
    """The clips, with progress."""
    return iter(with_progress(calibration.clips, "calibrating", unit="clips", name=lambda _: ""))


def feeds(capture: Capture, spec: ExportSpec, calibration: CalibrationSet) -> Iterator[dict[str, np.ndarray]]:
    """Inputs of the artifact for every clip; a step graph is stepped in torch so that its states are real ones."""
    for clip in _shown(calibration):
        if isinstance(spec.mode, Streaming):
            yield from _step_feeds(capture, clip)
        elif isinstance(spec.mode, SlidingWindow):
            yield from _window_feeds(capture, capture.contract.prepared(clip))
        else:
            yield {"wave": capture.contract.prepared(clip)[None]}


@dataclass(frozen=True)
class EveryFeed:
    """``feeds`` with every step of a stream, for a quantiser that goes over them several times.

    Where the number of streams is open, the steps of a clip are the rows of one batch, cut where its inputs would take
    more than 256 MB. Stepped anew each time: the caches of minutes of speech are gigabytes.
    """

    capture: Capture
    spec: ExportSpec
    calibration: CalibrationSet

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        if not isinstance(self.spec.mode, Streaming):
            yield from feeds(self.capture, self.spec, self.calibration)
            return
        fixed = self.spec.mode.batch
        for clip in _shown(self.calibration):
            steps = list[dict[str, np.ndarray]]()
            for step in _steps(self.capture, clip, streams=fixed or 1):
                steps.append(step)
                if fixed or (len(steps) + 1) * sum(value.nbytes for value in step.values()) > MOST_BYTES:
                    yield _batch(steps)
                    steps.clear()
            if steps:
                yield _batch(steps)


def _batch(steps: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([step[name] for step in steps]) for name in steps[0]}


def _window_feeds(capture: Capture, clip: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
    frames = int(capture.inputs[1].shape[1])
    length = samples_for(frames)
    for start in range(0, max(1, len(clip) - length + 1), length):
        piece = clip[start : start + length]
        valid = (np.arange(frames) < frames_for(len(piece))).astype(np.float32)
        yield {"wave": np.pad(piece, (0, length - len(piece)))[None], "frame_valid": valid[None]}


def _step_feeds(capture: Capture, clip: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
    steps = frames_for(len(clip)) // capture.geometry.chunk_frames
    every = min(FEED_EVERY, max(1, steps // 3))  # three steps of the shortest clip all the same
    for number, step in enumerate(_steps(capture, clip, streams=capture.example[0].shape[0])):
        if number % every == 0:
            yield step


def _steps(capture: Capture, clip: np.ndarray, *, streams: int) -> Iterator[dict[str, np.ndarray]]:
    """The inputs of every step of ``clip``, alike for ``streams`` streams."""
    chunk = capture.geometry.chunk_frames
    tensors = [torch.zeros_like(tensor[:1]).repeat_interleave(streams, 0) for tensor in capture.example[2:]]
    for first in range(0, frames_for(len(clip)) - chunk + 1, chunk):
        piece = clip[HOP_SAMPLES * first : HOP_SAMPLES * first + samples_for(chunk)]
        values = (torch.from_numpy(piece)[None].repeat(streams, 1), torch.ones(streams, chunk), *tensors)
        yield {name: value.numpy() for name, value in zip(capture.input_names, values, strict=True)}
        with torch.no_grad():
            outputs = capture.module(*values)[1:]
        tensors = [
            _next(state.update, state.axis, old, new)
            for state, old, new in zip(capture.states, tensors, outputs, strict=True)
        ]


def _next(update: str, axis: int, old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    if update == "replace":
        return new
    size = old.shape[axis]
    joined = torch.cat([old, new], dim=axis)
    return joined.narrow(axis, joined.shape[axis] - size, size)
