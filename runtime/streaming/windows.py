"""The sliding-window engine: [left | chunk | right] around every chunk, for students that see the whole utterance.

Approximate by nature: a frame sees ``left`` frames before its chunk and ``right`` frames after it, not all of them.
Where the window reaches the start or the end of the audio, that edge is the real one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from reuse_distill.runtime.bundle_format.input_contract import RunningLevel
from reuse_distill.runtime.bundle_format.manifest import Geometry, Manifest
from reuse_distill.runtime.engines.backend import Backend
from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.geometry import (
    HOP_SAMPLES,
    WINDOW_CHUNK_FRAMES,
    WINDOW_LEFT_FRAMES,
    WINDOW_RIGHT_FRAMES,
    frames_for,
    samples_for,
)
from reuse_distill.runtime.streaming.dial import Policy
from reuse_distill.runtime.streaming.framing import UNKNOWN, Frames, SampleBuffer, check_saved
from reuse_distill.runtime.streaming.snapshot import Saved
from reuse_distill.runtime.streaming.steps import own_frames

DEFAULT_WINDOW = Geometry(WINDOW_CHUNK_FRAMES, left_frames=WINDOW_LEFT_FRAMES, right_frames=WINDOW_RIGHT_FRAMES)
WAVE, FRAME_VALID = "wave", "frame_valid"


def default_window(manifest: Manifest) -> Geometry:
    """The window of an offline bundle, in whole steps of its layers."""
    step = manifest.geometry.step_frames
    chunk, left, right = (
        max(frames - frames % step, step)
        for frames in (DEFAULT_WINDOW.chunk_frames, DEFAULT_WINDOW.left_frames, DEFAULT_WINDOW.right_frames)
    )
    return Geometry(chunk, left_frames=left, right_frames=right, step_frames=step)


def in_steps(geometry: Geometry) -> Geometry:
    """``geometry`` itself. Raises RdError where its windows would take frames together that the utterance does not."""
    parts, step = (geometry.left_frames, geometry.chunk_frames, geometry.right_frames), geometry.step_frames
    if any(part % step for part in parts):
        raise RdError(
            f"a window of {' | '.join(map(str, parts))} frames, this student sees {step} frames as one",
            hint=f"make left, chunk and right multiples of {step}",
        )
    return geometry


@dataclass(frozen=True)
class Window:
    """The part of a stream that one run sees, in frames: run [start, stop), keep [first, last)."""

    start: int
    first: int
    last: int
    stop: int


class WindowEngine:
    """One stream over an offline graph (windows of any length) or a window graph (one static length).

    ``level``: statistics by which its samples are normalised, of all up to the end of a window; None: as they are.
    """

    def __init__(
        self, backend: Backend, geometry: Geometry, *, static: bool, level: RunningLevel | None = None
    ) -> None:
        if geometry.chunk_frames < 1 or min(geometry.left_frames, geometry.right_frames) < 0:
            raise RdError(
                f"window of {geometry.left_frames} | {geometry.chunk_frames} | {geometry.right_frames} frames",
                hint="the chunk is 1 or more frames, left and right are 0 or more",
            )
        self._backend, self.geometry, self._static = backend, geometry, static
        self._buffer, self._level = SampleBuffer(), level
        if static:
            frames = geometry.left_frames + geometry.chunk_frames + geometry.right_frames
            self._wave = np.zeros((1, samples_for(frames)), np.float32)
            self._valid = np.zeros((1, frames), np.float32)
        self.reset()

    def reset(self) -> None:
        """Back to the start of a stream."""
        self._buffer.restart()
        if self._level is not None:
            self._level.reset()
        self._next = 0  # first frame that has not come out
        self._frames: int | None = None  # of the whole stream, known at its end

    def feed(self, samples: np.ndarray) -> None:
        """Take (T,) float32 samples at 16 kHz."""
        self._buffer.append(samples)

    def end(self) -> None:
        """No more samples will come."""
        self._frames = frames_for(self._buffer.end)

    @property
    def ready(self) -> bool:
        """Whether a window can run."""
        if self._frames is not None:
            return self._next < self._frames
        return self._buffer.end >= samples_for(self._next + self.geometry.chunk_frames + self.geometry.right_frames)

    def step(self) -> Frames | None:
        """Run the next window; the frames of its chunk."""
        window = self._window()
        outputs, first = self._run_static(window) if self._static else self._run_offline(window)
        self._next = window.last
        self._buffer.drop_before(HOP_SAMPLES * max(0, self._next - self.geometry.left_frames))
        return own_frames(outputs, window.first, slice(first, first + window.last - window.first))

    @property
    def chunk_choices(self) -> tuple[int, ...]:
        """Frames that a window may give: those it was opened with."""
        return (self.geometry.chunk_frames,)

    @property
    def policy(self) -> Policy | None:
        """None: a window has one size."""
        return None

    def turn(self, chunk_frames: int) -> None:
        """Raises RdError for another size than the window's own."""
        if chunk_frames != self.geometry.chunk_frames:
            raise RdError(
                f"chunk_frames={chunk_frames}: windows of this stream give {self.geometry.chunk_frames} frames",
                hint="open another stream with encoder.stream(chunk_frames=…)",
            )

    def follow(self, policy: Policy | None) -> None:
        """Raises RdError for any policy."""
        if policy is not None:
            raise RdError("a policy is for streaming bundles: windows have one size", hint="--mode streaming")

    def preview(self) -> list[Frames]:
        """Raises RdError: a window sees what comes after it, and gives no frames without."""
        raise RdError("provisional frames are for streaming bundles, this one goes by windows", hint="--mode streaming")

    def save(self, saved: Saved) -> None:
        """Add progress and samples to ``saved``."""
        saved.counters |= {"next": self._next, "frames": UNKNOWN if self._frames is None else self._frames}
        self._buffer.save(saved, "samples")
        if self._level is not None:
            self._level.save(saved)

    def check(self, saved: Saved, *, end: int) -> None:
        """Raise RdError where ``saved`` is not a state of this engine after ``end`` samples at 16 kHz."""
        frames = saved.counter("frames", UNKNOWN, frames_for(end))
        if frames != UNKNOWN:
            saved.counter("frames", frames_for(end))
        start = HOP_SAMPLES * max(0, saved.counter("next", 0, frames_for(end)) - self.geometry.left_frames)
        check_saved(saved, "samples", start=start, end=end)
        if self._level is not None:
            self._level.check(saved, start=start, end=end)

    def load(self, saved: Saved) -> None:
        """Continue where the saved engine was."""
        self._next, frames = saved.counters["next"], saved.counters["frames"]
        self._frames = None if frames == UNKNOWN else frames
        self._buffer.load(saved, "samples")
        if self._level is not None:
            self._level.load(saved)

    def _window(self) -> Window:
        g, first = self.geometry, self._next
        last, stop = first + g.chunk_frames, first + g.chunk_frames + g.right_frames
        if self._frames is not None:
            last, stop = min(last, self._frames), min(stop, self._frames)
        return Window(max(0, first - g.left_frames), first, last, stop)

    def _run_offline(self, w: Window) -> tuple[dict[str, np.ndarray], int]:
        """Run the real samples of the window: its outputs, and where the chunk begins in them."""
        wave = self._normalised(self._buffer.view(HOP_SAMPLES * w.start, self._stop(w)), w)[np.newaxis]  # (1, T)
        return first_of_batch(self._backend.run({WAVE: wave})), w.first - w.start

    def _run_static(self, w: Window) -> tuple[dict[str, np.ndarray], int]:
        """Run one window of the exported length, zeros where there is no audio: outputs that begin with the chunk."""
        begin = w.first - self.geometry.left_frames  # may be before the start
        self._buffer.fill(self._wave[0], HOP_SAMPLES * begin, self._audio_end())
        if self._level is not None:
            end = HOP_SAMPLES * begin + self._wave.shape[1]
            real = slice(HOP_SAMPLES * max(0, -begin), min(end, self._audio_end() or end) - HOP_SAMPLES * begin)
            self._wave[0, real] = self._normalised(self._wave[0, real], w)
        index = np.arange(begin, begin + self._valid.shape[1])
        self._valid[0] = (index >= 0) & ((index < self._frames) if self._frames is not None else True)
        return first_of_batch(self._backend.run({WAVE: self._wave, FRAME_VALID: self._valid})), 0

    def _stop(self, w: Window) -> int:
        """Where the samples of a window end.

        A window that the end cuts short takes the samples after the last whole frame too, as the whole utterance does.
        One that is just complete does not: it may have run before the end was known.
        """
        cut = w.stop < w.first + self.geometry.chunk_frames + self.geometry.right_frames
        return self._buffer.end if cut else HOP_SAMPLES * w.start + samples_for(w.stop - w.start)

    def _normalised(self, samples: np.ndarray, w: Window) -> np.ndarray:
        """``samples`` by the statistics of everything up to the end of the window."""
        if self._level is None:
            return samples
        self._level.take(self._buffer.view(self._level.position, self._stop(w)))
        return self._level.apply(samples)

    def _audio_end(self) -> int | None:
        return None if self._frames is None else samples_for(self._frames)


def first_of_batch(outputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Outputs of a batch of one without its axis: features (N, F, W), heads (F, K)."""
    return {name: array[0] for name, array in outputs.items()}
