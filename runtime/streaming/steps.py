"""The exact engine: a streaming bundle's step graph, one chunk of frames a step, one stream or many in a batch.

A step of C frames at place p takes samples [320 p, 320 (p + C) + 80) and gives frames p - R .. p + C-1 - R; the next
one is at p + C, with the same C or another one that the bundle has. Frames before 0 are dropped. After the end of the
stream steps continue with zeros that are marked as not fresh, until the last frame has come out.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from reuse_distill.runtime.bundle_format.manifest import Geometry
from reuse_distill.runtime.bundle_format.manifest_limits import MOST_FRAMES
from reuse_distill.runtime.bundle_format.stepspec import FEATURES, StepSpec
from reuse_distill.runtime.geometry import HOP_SAMPLES, frames_for, samples_for
from reuse_distill.runtime.streaming.dial import Policy, StepStatus
from reuse_distill.runtime.streaming.framing import UNKNOWN, Frames, SampleBuffer, check_saved
from reuse_distill.runtime.streaming.snapshot import Saved
from reuse_distill.runtime.streaming.state_layout import in_layout, note_rings
from reuse_distill.runtime.streaming.state_pool import StatePool, open_pool


class StepEngine:
    """One stream's place in a pool, its samples and its progress."""

    def __init__(self, pool: StatePool, row: int, batcher: Batcher, chunk_frames: int | None = None) -> None:
        self.spec, self.pool, self.row, self.batcher = pool.spec, pool, row, batcher
        self._buffer = SampleBuffer(4 * pool.spec.window_samples)
        self._first_chunk = self.spec.of_chunk(chunk_frames or pool.spec.chunk_frames).chunk_frames
        self._policy: Policy | None = None
        self._spare: StepEngine | None = None  # for previews
        self.reset()

    def reset(self) -> None:
        """Back to the start of a stream."""
        self.pool.reset(self.row)
        self._buffer.restart()
        self._place = 0  # front-end frames that steps have taken
        self._steps = 0
        self._chunk = self._first_chunk
        self._frames: int | None = None  # of the whole stream, known at its end
        self.ask_policy(0.0)

    @property
    def geometry(self) -> Geometry:
        """Chunk of the next step, look-ahead and left context, in frames."""
        return replace(self.spec.geometry, chunk_frames=self._chunk)

    @property
    def chunk_frames(self) -> int:
        """Frames of the next step."""
        return self._chunk

    @property
    def chunk_choices(self) -> tuple[int, ...]:
        """Sizes that a step may have."""
        return self.spec.choices

    @property
    def policy(self) -> Policy | None:
        """Who chooses the size of every step; None: it stays."""
        return self._policy

    def follow(self, policy: Policy | None) -> None:
        """Let ``policy`` choose from the next step on."""
        self._policy = policy
        self.ask_policy(0.0)

    def turn(self, chunk_frames: int) -> None:
        """Make the next steps ``chunk_frames`` long. Raises RdError for a size that the bundle does not have."""
        self._chunk = self.spec.of_chunk(chunk_frames).chunk_frames

    def ask_policy(self, step_s: float) -> None:
        """Let the policy choose the next step's size, after one that took ``step_s``."""
        if self._policy is not None:
            waiting = max(0, frames_for(self._buffer.end) - self._place)
            self.turn(self._policy(StepStatus(self._steps, self._chunk, self.spec.choices, waiting, step_s)))

    def feed(self, samples: np.ndarray) -> None:
        """Take (T,) float32 samples at 16 kHz."""
        self._buffer.append(samples)

    def end(self) -> None:
        """No more samples will come."""
        self._frames = frames_for(self._buffer.end)

    @property
    def ready(self) -> bool:
        """Whether a step can run."""
        if self._frames is not None:
            return self._frames > 0 and self._place < self._frames + self.spec.lookahead_frames
        return self._buffer.end >= self._first_sample + samples_for(self._chunk)

    def step(self) -> Frames | None:
        """Run one step of this stream alone; the frames that came out, if any."""
        return self.batcher.step([self])[0]

    def preview(self) -> list[Frames]:
        """The frames that would come out if the stream ended here; it does not, and they will come again."""
        if self._frames is not None:
            return []
        if self._spare is None:
            self._spare = StepEngine(open_pool(self.spec, self.pool.backend, 1), 0, self.batcher)
        saved, spare = Saved(), self._spare
        self.save(saved)
        spare.load(saved)
        spare.end()
        missing = frames_for(self._buffer.end) + self.spec.lookahead_frames - self._place
        spare.turn(next((c for c in self.spec.choices if c >= missing), self.spec.choices[-1]))
        parts: list[Frames] = []
        while spare.ready:
            frames = spare.step()
            parts += [] if frames is None else [replace(frames, provisional=True)]
        return parts

    def fill(self, samples: np.ndarray, fresh: np.ndarray) -> None:
        """Write the next step's inputs: samples (320 C + 80,), fresh (C,)."""
        self._buffer.fill(samples, self._first_sample)
        first = self._place
        fresh[:] = 1 if self._frames is None else np.arange(first, first + len(fresh)) < self._frames

    def advance(self, outputs: Mapping[str, np.ndarray], step_s: float) -> Frames | None:
        """Take what the step gave, features (N, C, W) and heads (C, K): the frames that exist, in their own memory."""
        first = self._place - self.spec.lookahead_frames
        last = first + self._chunk
        if self._frames is not None:
            last = min(last, self._frames)
        skip = max(0, -first)
        self._place += self._chunk
        self._steps += 1
        self._buffer.drop_before(self._first_sample)
        self.ask_policy(step_s)
        if last <= first + skip:
            return None
        return own_frames(outputs, first + skip, slice(skip, last - first))

    def save(self, saved: Saved) -> None:
        """Add progress, samples and states to ``saved``."""
        saved.counters |= {
            "place": self._place,
            "steps": self._steps,
            "chunk": self._chunk,
            "frames": UNKNOWN if self._frames is None else self._frames,
        }
        self._buffer.save(saved, "samples")
        self.pool.save(self.row, saved)
        note_rings(saved, self.spec)

    def check(self, saved: Saved, *, end: int) -> None:
        """Raise RdError where ``saved`` is not a state of this engine after ``end`` samples at 16 kHz."""
        frames = saved.counter("frames", UNKNOWN, frames_for(end))
        if frames != UNKNOWN:
            saved.counter("frames", frames_for(end))
        furthest = frames_for(end)
        if frames != UNKNOWN and frames:  # the last step of a stream reaches beyond its end
            furthest += self.spec.lookahead_frames + MOST_FRAMES
        place = saved.counter("place", 0, furthest)
        saved.counter("steps", -(-place // MOST_FRAMES), place)
        saved.counter("chunk", 1, MOST_FRAMES)
        check_saved(saved, "samples", start=min(place * HOP_SAMPLES, end), end=end)
        self.pool.check(in_layout(saved, self.spec))

    def load(self, saved: Saved) -> None:
        """Continue where the saved engine was; with its chunk size where this bundle has it."""
        self._place, self._steps, frames = (saved.counters[name] for name in ("place", "steps", "frames"))
        self._frames = None if frames == UNKNOWN else frames
        chunk = saved.counters["chunk"]
        self._chunk = chunk if chunk in self.spec.choices else self._first_chunk
        self._buffer.load(saved, "samples")
        self.pool.load(self.row, in_layout(saved, self.spec))
        self.ask_policy(0.0)

    @property
    def _first_sample(self) -> int:
        return self._place * HOP_SAMPLES


# Weights are read once for a batch; beyond eight streams that saves little more, and buffers grow with every stream.
MOST_AT_ONCE = 8


class Batcher:
    """Runs the next step of several streams at once."""

    def __init__(self, spec: StepSpec) -> None:
        self.spec = spec
        self._scratch: StatePool | None = None
        self._lock = threading.Lock()

    def step(self, engines: Sequence[StepEngine]) -> list[Frames | None]:
        """One step of every engine, in batches of MOST_AT_ONCE or what the graph has; frames in the order given.

        Engines whose next steps have different sizes are in batches of their own.
        """
        size = self.spec.batch or MOST_AT_ONCE
        results: list[Frames | None] = [None] * len(engines)
        chunks = [engine.chunk_frames for engine in engines] if len(self.spec.choices) > 1 else []
        for chunk in sorted(set(chunks)) or [self.spec.chunk_frames]:
            places = [i for i in range(len(engines)) if not chunks or chunks[i] == chunk]
            for at in range(0, len(places), size):
                batch = places[at : at + size]
                stepped = self._step_batch([engines[i] for i in batch], chunk)
                for i, frames in zip(batch, stepped, strict=True):
                    results[i] = frames
        return results

    def _step_batch(self, engines: Sequence[StepEngine], chunk: int) -> list[Frames | None]:
        if self._in_place(engines):
            return self._step_pool(engines, chunk)
        with self._lock:
            return self._step_gathered(engines, chunk)

    def _in_place(self, engines: Sequence[StepEngine]) -> bool:
        """Whether the engines are neighbours in one pool, in order, and as many as the graph wants."""
        pool, row = engines[0].pool, engines[0].row
        neighbours = all(e.pool is pool and e.row == row + i for i, e in enumerate(engines))
        return neighbours and self.spec.batch in (None, len(engines)) and pool.starts_batch(row)

    def _step_pool(self, engines: Sequence[StepEngine], chunk: int) -> list[Frames | None]:
        start_s = time.perf_counter()
        pool, first, last = engines[0].pool, engines[0].row, engines[-1].row + 1
        buffers = pool.buffers(chunk)
        for engine in engines:
            engine.fill(buffers.samples[engine.row], buffers.fresh[engine.row])
        pool.run(first, last, chunk)
        pool.absorb_range(first, last, chunk)
        step_s = time.perf_counter() - start_s
        return [engine.advance(buffers.row_outputs(engine.row), step_s) for engine in engines]

    def _step_gathered(self, engines: Sequence[StepEngine], chunk: int) -> list[Frames | None]:
        start_s = time.perf_counter()
        rows = self.spec.batch or len(engines)
        if self._scratch is None or self._scratch.rows < rows:
            self._scratch = open_pool(self.spec, engines[0].pool.backend, rows)
        scratch = self._scratch
        buffers = scratch.buffers(chunk)
        for row, engine in enumerate(engines):
            scratch.copy_states(row, engine.pool, engine.row)
            engine.fill(buffers.samples[row], buffers.fresh[row])
        scratch.run(0, rows, chunk)
        for row, engine in enumerate(engines):
            engine.pool.absorb(engine.row, scratch, row, chunk)
        step_s = time.perf_counter() - start_s
        return [engine.advance(buffers.row_outputs(row), step_s) for row, engine in enumerate(engines)]


def own_frames(outputs: Mapping[str, np.ndarray], index: int, rows: slice) -> Frames:
    """The frames ``rows`` of what an engine gave, the first of them number ``index``, in memory of their own.

    ``outputs``: features (N, F, W), where there are any, and the output (F, K) of each head; F alike in all.
    """
    heads = {name: np.array(array[rows]) for name, array in outputs.items() if name != FEATURES}
    if FEATURES in outputs:
        return Frames(index, own_features(outputs[FEATURES][:, rows]), heads)
    count = len(next(iter(heads.values())))
    return Frames(index, np.zeros((count, 0), np.float32), heads)


def own_features(features: np.ndarray) -> np.ndarray:
    """A float32 copy: (1, n, W) -> (n, W), several layers (N, n, W) as they are."""
    return np.array(features[0] if features.shape[0] == 1 else features, np.float32)
