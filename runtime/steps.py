"""The exact engine: a streaming bundle's step graph, one chunk of frames a step, one stream or many in a batch.

Step n takes samples [320 n C, 320 (n+1) C + 80) and gives frames n C - R .. n C + C-1 - R. Frames before 0 are dropped.
After the end of the stream steps go on with zeros that are marked as not fresh, until the last frame has come out.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence

import numpy as np
from reuse_distill.runtime.framing import UNKNOWN, Frames, SampleBuffer, check_saved
from reuse_distill.runtime.geometry import HOP_SAMPLES, frames_for
from reuse_distill.runtime.manifest import Geometry
from reuse_distill.runtime.snapshot import Saved
from reuse_distill.runtime.state_pool import StatePool, open_pool
from reuse_distill.runtime.stepspec import FEATURES, StepSpec


class StepEngine:
    """One stream's place in a pool, its samples and its progress."""

    def __init__(self, pool: StatePool, row: int, batcher: Batcher) -> None:
        self.spec, self.pool, self.row, self.batcher = pool.spec, pool, row, batcher
        self._buffer = SampleBuffer(4 * pool.spec.window_samples)
        self.reset()

    def reset(self) -> None:
        """Back to the start of a stream."""
        self.pool.reset(self.row)
        self._buffer.restart()
        self._step = 0
        self._frames: int | None = None  # of the whole stream, known at its end

    @property
    def geometry(self) -> Geometry:
        """Chunk, look-ahead and left context, in frames."""
        return self.spec.geometry

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
            return self._step < self.spec.steps(self._frames)
        return self._buffer.end >= self._first_sample + self.spec.window_samples

    def step(self) -> Frames | None:
        """Run one step of this stream alone; the frames that came out, if any."""
        return self.batcher.step([self])[0]

    def fill(self, samples: np.ndarray, fresh: np.ndarray) -> None:
        """Write the next step's inputs: samples (320 C + 80,), fresh (C,)."""
        self._buffer.fill(samples, self._first_sample)
        first = self._step * self.spec.chunk_frames
        fresh[:] = 1 if self._frames is None else np.arange(first, first + len(fresh)) < self._frames

    def advance(self, outputs: Mapping[str, np.ndarray]) -> Frames | None:
        """Take what the step gave, features (N, C, W) and heads (C, K): the frames that exist, in their own memory."""
        first = self._step * self.spec.chunk_frames - self.spec.lookahead_frames
        last = first + self.spec.chunk_frames
        if self._frames is not None:
            last = min(last, self._frames)
        skip = max(0, -first)
        self._step += 1
        self._buffer.drop_before(self._first_sample)
        if last <= first + skip:
            return None
        return own_frames(outputs, first + skip, slice(skip, last - first))

    def save(self, saved: Saved) -> None:
        """Add progress, samples and states to ``saved``."""
        saved.counters |= {"step": self._step, "frames": UNKNOWN if self._frames is None else self._frames}
        self._buffer.save(saved, "samples")
        self.pool.save(self.row, saved)

    def check(self, saved: Saved, *, end: int) -> None:
        """Raise RdError where ``saved`` is not a state of this engine after ``end`` samples at 16 kHz."""
        frames = saved.counter("frames", UNKNOWN, frames_for(end))
        if frames != UNKNOWN:
            saved.counter("frames", frames_for(end))
        steps = self.spec.steps(frames_for(end))
        start = min(saved.counter("step", 0, steps) * HOP_SAMPLES * self.spec.chunk_frames, end)
        check_saved(saved, "samples", start=start, end=end)
        self.pool.check(saved)

    def load(self, saved: Saved) -> None:
        """Continue where the saved engine was."""
        self._step, frames = saved.counters["step"], saved.counters["frames"]
        self._frames = None if frames == UNKNOWN else frames
        self._buffer.load(saved, "samples")
        self.pool.load(self.row, saved)

    @property
    def _first_sample(self) -> int:
        return self._step * HOP_SAMPLES * self.spec.chunk_frames


# Weights are read once for a batch; beyond eight streams that saves little more, and buffers grow with every stream.
MOST_AT_ONCE = 8


class Batcher:
    """Runs the next step of several streams at once."""

    def __init__(self, spec: StepSpec) -> None:
        self.spec = spec
        self._scratch: StatePool | None = None
        self._lock = threading.Lock()

    def step(self, engines: Sequence[StepEngine]) -> list[Frames | None]:
        """One step of every engine, in batches of MOST_AT_ONCE or what the graph has; frames in the order given."""
        size = self.spec.batch or MOST_AT_ONCE
        batches = [engines[i : i + size] for i in range(0, len(engines), size)]
        return [frames for batch in batches for frames in self._step_batch(batch)]

    def _step_batch(self, engines: Sequence[StepEngine]) -> list[Frames | None]:
        if self._in_place(engines):
            return self._step_pool(engines)
        with self._lock:
            return self._step_gathered(engines)

    def _in_place(self, engines: Sequence[StepEngine]) -> bool:
        """Whether the engines are neighbours in one pool, in order, and as many as the graph wants."""
        pool, row = engines[0].pool, engines[0].row
        neighbours = all(e.pool is pool and e.row == row + i for i, e in enumerate(engines))
        return neighbours and self.spec.batch in (None, len(engines)) and pool.starts_batch(row)

    def _step_pool(self, engines: Sequence[StepEngine]) -> list[Frames | None]:
        pool, first, last = engines[0].pool, engines[0].row, engines[-1].row + 1
        for engine in engines:
            engine.fill(pool.samples[engine.row], pool.fresh[engine.row])
        pool.run(first, last)
        pool.absorb_range(first, last)
        return [engine.advance(pool.row_outputs(engine.row)) for engine in engines]

    def _step_gathered(self, engines: Sequence[StepEngine]) -> list[Frames | None]:
        rows = self.spec.batch or len(engines)
        if self._scratch is None or self._scratch.rows < rows:
            self._scratch = open_pool(self.spec, engines[0].pool.backend, rows)
        scratch = self._scratch
        for row, engine in enumerate(engines):
            scratch.copy_states(row, engine.pool, engine.row)
            engine.fill(scratch.samples[row], scratch.fresh[row])
        scratch.run(0, rows)
        for row, engine in enumerate(engines):
            engine.pool.absorb(engine.row, scratch, row)
        return [engine.advance(scratch.row_outputs(row)) for row, engine in enumerate(engines)]


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
