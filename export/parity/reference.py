"""What torch in float32 makes of a recording: the reference that every artifact is compared with.

And how far torch in float32 is itself from torch in float64: no artifact in float32 can be held closer to it. Encoders
differ by orders of magnitude in how much they amplify rounding, and features of layers before a last norm in how large
they are. The bound of fp32 is 1e-4 all the same, unless torch in float32 shows that it does not keep half of that
itself.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from reuse_distill.devices.measuring.speech import speech_like
from reuse_distill.export.capture.exported_layers import layer_numbers
from reuse_distill.export.capture.sliding_window import CapturedWindow, sliding
from reuse_distill.export.spec import ExportSpec, SlidingWindow, Streaming
from reuse_distill.runtime.audio.audio_files import read_audio
from reuse_distill.runtime.audio.recordings import Recording
from reuse_distill.runtime.audio.resample import resample
from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.geometry import RECEPTIVE_FIELD_SAMPLES, SAMPLE_RATE_HZ, frames_for, samples_for
from reuse_distill.student import ChunkSchedule, Student

SELFTEST_FRAMES = 149  # 3.0 s
MOST_CHECKED = 6
CHECKED_SECONDS = 12.0
LONG_SECONDS = 30.0
VOICE_GAINS = (1.0, 0.25, 0.5)  # speakers nearer and farther
TAIL_FRAMES = 4  # kept before the last chunk of each cut: what an end of audio can reach beyond its chunk is R frames
# Of the features' root mean square: what amplifies rounding beyond that cannot be judged, and stays refused.
LARGEST_RELATIVE = 1e-3


def reference_layers(student: Student, spec: ExportSpec, wave: np.ndarray) -> list[np.ndarray]:
    """Hidden features (F, E) after every layer of ``wave`` (T,): chunk-masked where streaming, window by window."""
    if isinstance(spec.mode, SlidingWindow):
        every = tuple(range(1, student.config.layers + 1))
        return list(sliding(CapturedWindow(student, spec.mode.context, every, "hidden"), wave))
    with torch.no_grad():
        output = student(torch.from_numpy(wave)[None], context=spec.reference_context)
    return [layer[0].numpy() for layer in output.layers]


def reference_features(student: Student, spec: ExportSpec, wave: np.ndarray) -> np.ndarray:
    """Exported features (N, F, W) of the utterance ``wave`` (T,): window by window where that is the mode."""
    if not spec.shown_layers:
        return np.zeros((0, frames_for(len(wave)), 0), np.float32)
    if isinstance(spec.mode, SlidingWindow):
        return sliding(CapturedWindow(student, spec.mode.context, spec.shown_layers, spec.features), wave)
    with torch.no_grad():
        output = student(torch.from_numpy(wave)[None], context=spec.reference_context)
    every = output.projections if spec.features == "heads" else output.layers
    by_number = dict(zip(layer_numbers(student.config, spec.features), every, strict=True))
    by_number[0] = output.encoder_input
    return np.concatenate([by_number[number].numpy() for number in spec.shown_layers])


def selftest_arrays(student: Student, spec: ExportSpec, wave: np.ndarray) -> dict[str, np.ndarray]:
    """The arrays of ``selftest.npz``: a recording, its features, and for streams the ends of recordings cut short.

    The cuts have every tail length modulo a chunk and every length below one; the missing rows of the shortest are 0.
    """
    wave = wave[: samples_for(SELFTEST_FRAMES)]
    arrays = {"wave": wave, "features": reference_features(student, spec, wave)}
    if spec.chunk_context is None:
        return arrays
    chunk, frames = spec.chunk_context.chunk_frames, frames_for(len(wave))
    lengths, kept = tail_lengths(frames, chunk, student.config.lookahead_frames)
    cuts = [last_rows(reference_features(student, spec, wave[: samples_for(length)]), kept) for length in lengths]
    arrays |= switch_arrays(student, spec, wave)
    return {**arrays, "tail_frames": np.array(lengths, np.int64), "tail_features": np.stack(cuts)}


def switch_arrays(student: Student, spec: ExportSpec, wave: np.ndarray) -> dict[str, np.ndarray]:
    """Sizes of the steps of a stream that changes them, and its features; nothing where steps have one size."""
    switched = of_switches(spec, frames_for(len(wave)), student.config.lookahead_frames)
    if switched.schedule is None:
        return {}
    chunks = np.array(switched.schedule.chunks, np.int64)
    return {"switch_chunks": chunks, "switch_features": reference_features(student, switched, wave)}


def of_switches(spec: ExportSpec, frames: int, lookahead: int, *, seed: int = 0) -> ExportSpec:
    """The export whose reference has steps of every size and every change between two sizes, as far as they fit.

    ``spec`` itself where its steps have one size.
    """
    if not isinstance(spec.mode, Streaming) or len(spec.mode.chunks) < 2:
        return spec
    chunks = tuple(walk(spec.mode.chunks, frames + lookahead, seed=seed))
    return replace(spec, schedule=ChunkSchedule(chunks, spec.mode.context.left_frames))


def walk(sizes: Sequence[int], frames: int, *, seed: int) -> list[int]:
    """Sizes in a random order that prefers changes not made yet, until they cover ``frames``."""
    rng = np.random.default_rng(seed)
    chunks, seen = [int(rng.choice(sizes))], set[tuple[int, int]]()
    while sum(chunks) < frames:
        fresh = [size for size in sizes if size != chunks[-1] and (chunks[-1], size) not in seen]
        chosen = int(rng.choice(fresh or list(sizes)))
        seen.add((chunks[-1], chosen))
        chunks.append(chosen)
    return chunks


def tail_lengths(frames: int, chunk: int, lookahead: int) -> tuple[list[int], int]:
    """(lengths in frames to which a recording of ``frames`` is cut, last frames of each that are kept)."""
    long = [length for length in range(frames - chunk + 1, frames + 1) if length > 0]
    lengths = [*range(1, min(chunk, long[0])), *long]
    return lengths, min(long[0], chunk + lookahead + TAIL_FRAMES)


def last_rows(rows: np.ndarray, kept: int) -> np.ndarray:
    """The last ``kept`` frames of (N, F, W), with zeros before the first where there are fewer."""
    last = rows[:, -kept:]
    return np.pad(last, ((0, 0), (kept - last.shape[1], 0), (0, 0)))


def write_selftest(file: Path, arrays: dict[str, np.ndarray]) -> None:
    """``selftest.npz``, compressed."""
    np.savez_compressed(file, allow_pickle=False, **arrays)


def read_clips(recordings: Sequence[Recording]) -> list[np.ndarray]:
    """Up to 6 recordings spread over the list, each cut to 12 s, as (T,) float32 at 16 kHz."""
    return [clip for _, clip in read_named_clips(recordings)]


def read_named_clips(recordings: Sequence[Recording]) -> list[tuple[str, np.ndarray]]:
    """The same, each with its file's name."""
    clips = []
    for recording in list(recordings)[:: -(-len(recordings) // MOST_CHECKED)]:
        audio = read_audio(recording.path)
        clip = resample(audio.samples, audio.sample_rate_hz)[: int(CHECKED_SECONDS * SAMPLE_RATE_HZ)]
        if len(clip) >= RECEPTIVE_FIELD_SAMPLES:
            clips.append((recording.path.name, np.ascontiguousarray(clip, np.float32)))
    if not clips:
        raise RdError("none of the recordings to check with is long enough for a frame (400 samples at 16 kHz)")
    return clips


def long_speech(clips: Sequence[np.ndarray]) -> tuple[list[np.ndarray], bool]:
    """(``clips``, False), or where these are less than 30 s: (with seeded speech-like voices to 30 s, True).

    What a sliding window does not see shows on recordings that are far longer than it.
    """
    missing = int(LONG_SECONDS * SAMPLE_RATE_HZ) - sum(map(len, clips))
    if missing <= 0:
        return list(clips), False
    length = -(-missing // len(VOICE_GAINS))
    voices = [np.float32(gain) * speech_like(length, seed=seed) for seed, gain in enumerate(VOICE_GAINS, start=31)]
    return [*clips, *voices], True


def synthetic_clips() -> list[np.ndarray]:
    """Three seeded speech-like signals of different lengths, for exports without any recording."""
    lengths = (samples_for(1) + 7, samples_for(61) + 123, samples_for(SELFTEST_FRAMES))
    return [speech_like(length, seed=seed) for seed, length in enumerate(lengths, start=11)]


@dataclass(frozen=True)
class Rounding:
    """Of torch in float32 over the recordings that check: largest distance from float64, RMS of the features."""

    max_abs: float
    rms: float

    @property
    def bound(self) -> float:
        """Two computations in float32, each as far from the exact features as torch is, are at most that far apart."""
        return min(2 * self.max_abs, LARGEST_RELATIVE * self.rms)

    @property
    def described(self) -> dict[str, float]:
        """For ``parity.rounding`` of the manifest."""
        return {"torch_float32_to_float64": self.max_abs, "reference_rms": self.rms}


def torch_rounding(student: Student, spec: ExportSpec, clips: Sequence[np.ndarray]) -> Rounding:
    """What float32 does to the exported features (N, F, W) of ``clips``, (T,) float32 each."""
    exact = copy.deepcopy(student).double()
    distances, squares = [], []
    for clip in clips:
        reference = reference_features(exact, spec, clip.astype(np.float64))
        distances.append(float(np.abs(reference_features(student, spec, clip) - reference).max()))
        squares.append(float(np.square(reference).mean()))
    return Rounding(max(distances), float(np.sqrt(np.mean(squares))))


def allowing_for_rounding(
    parity: dict[str, Any], student: Student, spec: ExportSpec, clips: Sequence[np.ndarray]
) -> dict[str, Any]:
    """``parity`` of an fp32 artifact outside 1e-4, with torch's own rounding, and its bound where that is larger."""
    rounding = torch_rounding(student, spec, clips)
    bound = max(rounding.bound, parity["bound"]["max_abs"])
    return {**parity, "bound": {"max_abs": bound}, "rounding": rounding.described}
