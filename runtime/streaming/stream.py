"""One stream: samples of any rate, type and push size in, frames out. All of its state is here and in its engine."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from reuse_distill.runtime.audio.resample import Resampler, delay_ms
from reuse_distill.runtime.audio.samples import decode_pcm, mono
from reuse_distill.runtime.bundle_format.manifest import Geometry
from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.geometry import SAMPLE_RATE_HZ
from reuse_distill.runtime.streaming.dial import Policy
from reuse_distill.runtime.streaming.framing import UNKNOWN, Frames
from reuse_distill.runtime.streaming.latency import Latency, algorithmic_latency, quantile
from reuse_distill.runtime.streaming.snapshot import Saved, pack, unpack

# A push longer than this is taken in pieces, so that an hour at once needs no more memory than an hour in pushes.
PIECE_S = 1.0
WARM_UP_STEPS = 8  # before steps are timed


class Engine(Protocol):
    """Turns samples at 16 kHz into frames, step by step."""

    @property
    def geometry(self) -> Geometry:
        """Chunk and context of a step, in frames."""

    def feed(self, samples: np.ndarray) -> None:
        """Take (T,) float32."""

    def end(self) -> None:
        """No more samples will come."""

    @property
    def ready(self) -> bool:
        """Whether a step can run."""

    def step(self) -> Frames | None:
        """Run one step; the frames that came out, if any."""

    def reset(self) -> None:
        """Back to the start of a stream."""

    @property
    def chunk_choices(self) -> tuple[int, ...]:
        """Frames that a step may have."""

    def turn(self, chunk_frames: int) -> None:
        """Make the next steps of another size. Raises RdError for one that there is not."""

    @property
    def policy(self) -> Policy | None:
        """Who chooses the size of every step."""

    def follow(self, policy: Policy | None) -> None:
        """Let ``policy`` choose. Raises RdError where there is one size only."""

    def preview(self) -> list[Frames]:
        """What would come out if the stream ended here. Raises RdError where this cannot be computed."""

    def save(self, saved: Saved) -> None:
        """Add everything that the future of the stream depends on."""

    def check(self, saved: Saved, *, end: int) -> None:
        """Raise RdError where ``saved`` is not a state of this engine after ``end`` samples."""

    def load(self, saved: Saved) -> None:
        """Continue where the saved engine was (after ``check``)."""


@dataclass(frozen=True)
class StreamIdentity:
    """What a snapshot has to agree with to be restored here, and who took it."""

    checked: Mapping[str, Any]
    taken_by: Mapping[str, Any]
    of_schema_1: Mapping[str, Any]  # of snapshots that were bound to one artifact


class Stream:
    """Made by ``Encoder.stream``. Not for use by two threads at once; two streams in two threads are fine.

    ``push`` takes samples and returns the frames that are complete. ``feed`` only takes them: then ``ready`` tells
    whether a step can run, and ``Encoder.step`` runs one for many streams at once. ``finish`` ends the stream and
    returns every remaining frame. A call that raises for its samples (wrong type, NaN) leaves the stream as it was.
    """

    def __init__(self, engine: Engine, *, sample_rate_hz: int, identity: StreamIdentity) -> None:
        self.engine, self._identity = engine, identity
        self._resampler = Resampler(sample_rate_hz)
        self._ended = False
        self._closed = False

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def sample_rate_hz(self) -> int:
        """Rate of the samples that are pushed."""
        return self._resampler.rate_hz

    @property
    def seconds(self) -> float:
        """Source time taken so far."""
        return self._resampler.taken / self._resampler.rate_hz

    @property
    def latency(self) -> Latency:
        """Latency of this stream, its resampler included; compute is unmeasured (see ``Encoder.measure_latency``)."""
        return algorithmic_latency(self.engine.geometry).with_delay(delay_ms(self.sample_rate_hz))

    @property
    def ready(self) -> bool:
        """Whether the samples taken so far (or the end of the stream) allow a step."""
        return not self._closed and self.engine.ready

    def push(self, pcm: Any, *, format: str | None = None, channels: int = 1) -> list[Frames]:
        """Take samples, (T,) or (T, channels), int16, float32 or float64; every frame that is complete by now.

        Bytes are taken with their ``format``, s16le or f32le, and their number of interleaved ``channels``: whole
        samples in every push. Raises RdError after ``finish`` or ``close``, for another type or shape, for bytes
        without a format, and for NaN or infinite samples.
        """
        parts = [frames for piece in self._pieces(pcm, format, channels) for frames in self._take(piece)]
        return parts + list(self._drain())  # what was fed before, where nothing was pushed

    def feed(self, pcm: Any, *, format: str | None = None, channels: int = 1) -> None:
        """Take samples as ``push`` does, but run nothing: for ``Encoder.step``."""
        for piece in self._pieces(pcm, format, channels):
            self.engine.feed(self._resampler.push(piece))

    def end(self) -> None:
        """End the stream but run nothing: the last frames come from ``Encoder.step`` or ``finish``. Idempotent."""
        self._check_open()
        if not self._ended:
            self._ended = True
            self.engine.feed(self._resampler.finish())
            self.engine.end()

    def finish(self) -> list[Frames]:
        """End the stream; every frame that has not come out yet. A second call returns an empty list."""
        self.end()
        return list(self._drain())

    def reset(self) -> None:
        """Back to the start, as a new stream of the same encoder and rate."""
        self._check_open()
        self._resampler.reset()
        self.engine.reset()
        self._ended = False

    def snapshot(self, *, compact: bool = False) -> bytes:
        """Everything that the rest of the stream depends on, for ``restore`` here or in another process.

        ``compact`` keeps the caches of attention in float16: about half as large, and the frames that follow differ by
        that rounding.
        """
        self._check_open()
        saved = Saved({"ended": int(self._ended)})
        self._resampler.save(saved)
        self.engine.save(saved)
        return pack(saved, self._identity.checked, taken_by=self._identity.taken_by, compact=compact)

    def restore(self, data: bytes) -> None:
        """Continue where ``snapshot`` was taken, in place of what this stream was doing.

        In a stream of the same artifact at 16 kHz the frames that follow are the same bit by bit; at other rates the
        resampler's memory is computed again, equal to rounding. A snapshot of another bundle of the same student is
        taken where the types of the states agree, whatever its engine, batch and chunk size. Raises RdError for damaged
        bytes and for a snapshot of another student or other settings; the stream is then as it was.
        """
        self._check_open()
        saved = unpack(data, self._identity.checked, self._identity.of_schema_1)
        ended = bool(saved.counter("ended", 0, 1))
        if ended != (saved.counters.get("frames") != UNKNOWN):
            raise RdError("snapshot: it says both that the stream has ended and that it has not")
        self._resampler.check(saved, ended=ended)
        self.engine.check(saved, end=saved.counters["given"])
        self._resampler.load(saved)
        self.engine.load(saved)
        self._ended = ended

    @property
    def chunk_choices(self) -> tuple[int, ...]:
        """Frames that a step of this stream may have; one number unless the bundle was exported with several."""
        return self.engine.chunk_choices

    @property
    def chunk_frames(self) -> int:
        """Frames of the next step. Set it between steps: nothing is reset, and features stay exact for the new grid."""
        return self.engine.geometry.chunk_frames

    @chunk_frames.setter
    def chunk_frames(self, frames: int) -> None:
        self._check_open()
        self.engine.turn(frames)

    @property
    def policy(self) -> Policy | None:
        """Who chooses the size of every step (``runtime.streaming.dial``); None: it stays as it was set."""
        return self.engine.policy

    @policy.setter
    def policy(self, policy: Policy | None) -> None:
        self._check_open()
        self.engine.follow(policy)

    def provisional(self) -> list[Frames]:
        """Frames for the samples so far that no step has given yet, with less look-ahead than they will have.

        They are what ``finish`` would return if the stream ended here, marked ``provisional``; the stream continues,
        and the same frames come again, final, from the steps to come. Costs one step or more, and changes nothing.
        """
        self._check_open()
        return self.engine.preview()

    def close(self) -> None:
        """The stream is over; frames that were not fetched are gone. Idempotent."""
        self._closed = True

    def _take(self, piece: np.ndarray) -> Iterator[Frames]:
        self.engine.feed(self._resampler.push(piece))
        return self._drain()

    def _drain(self) -> Iterator[Frames]:
        while self.engine.ready:
            frames = self.engine.step()
            if frames is not None:
                yield frames

    def _pieces(self, pcm: Any, format: str | None = None, channels: int = 1) -> list[np.ndarray]:
        """The samples as mono float32, checked as a whole before the first piece is used."""
        self._check_open()
        if self._ended:
            raise RdError("the stream is finished and takes no more samples", hint="reset() starts it again")
        if isinstance(pcm, (bytes, bytearray, memoryview)):
            pcm = decode_pcm(pcm, format=format, channels=channels)
        elif format is not None:
            raise RdError(f"format={format!r} is for bytes, these samples are {type(pcm).__name__}")
        samples = mono(pcm, first_sample=self._resampler.taken)
        size = max(1, int(PIECE_S * self.sample_rate_hz))
        return [samples[i : i + size] for i in range(0, len(samples), size)]

    def _check_open(self) -> None:
        if self._closed:
            raise RdError("the stream is closed", hint="open another one with encoder.stream()")


def time_steps(engine: Engine, latency: Latency, *, steps: int, seed: int = 0) -> Latency:
    """Run ``steps`` steps of a fresh ``engine`` on noise after a warm-up; ``latency`` with what they cost."""
    rng = np.random.default_rng(seed)
    times_ms: list[float] = []
    while len(times_ms) < WARM_UP_STEPS + steps:
        engine.feed((0.1 * rng.standard_normal(SAMPLE_RATE_HZ)).astype(np.float32))
        while engine.ready:
            start = time.perf_counter()
            engine.step()
            times_ms.append(1000 * (time.perf_counter() - start))
    measured = times_ms[WARM_UP_STEPS : WARM_UP_STEPS + steps]
    return replace(
        latency,
        compute_p50_ms=quantile(measured, 0.5),
        compute_p99_ms=quantile(measured, 0.99),
        compute_max_ms=max(measured),
        measured_steps=len(measured),
    )
