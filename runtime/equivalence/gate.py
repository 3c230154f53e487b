"""The bench of the equivalence gate: a recording, its reference features, ways to stream it, a tally of differences."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from reuse_distill.runtime.encoder import Encoder
from reuse_distill.runtime.equivalence.parity import difference
from reuse_distill.runtime.equivalence.selftest import Expected, OutputView
from reuse_distill.runtime.geometry import HOP_SAMPLES
from reuse_distill.runtime.streaming.dial import in_sequence
from reuse_distill.runtime.streaming.framing import Frames
from reuse_distill.runtime.streaming.stream import Stream

REPEAT_MAX_ABS = 1e-6  # 0 on a CPU; some accelerators add in another order from run to run


@dataclass
class Tally:
    """Worst figures over the cases of one check."""

    references: int = 0  # cases compared with the reference
    repeated: int = 0  # cases compared with the first time
    frames: int = 0
    max_abs: float | None = None  # against the reference; None where no case has one
    mean_cosine: float | None = None  # of the worst case
    repeat_max_abs: float | None = None
    problem: str = ""  # what no tolerance excuses
    pooled: bool = False  # the mean cosine is that of all frames, not of the worst case
    compared: Callable[[np.ndarray], np.ndarray] = lambda rows: rows  # what of (N, F, W) is compared with the reference

    @property
    def cases(self) -> int:
        """Streams compared with one or the other."""
        return max(self.references, self.repeated)

    def against(self, features: np.ndarray, reference: np.ndarray) -> None:
        """Add a case: features (N, F, W) against the reference of the same frames."""
        if features.shape != reference.shape or not reference.size or not np.isfinite(features).all():
            self.problem = f"frames {features.shape}, {reference.shape} expected, all finite"
            return
        result = difference(self.compared(features), self.compared(reference))
        self.references += 1
        self.frames += features.shape[1]
        self.max_abs = max(self.max_abs or 0.0, result.max_abs)
        if self.pooled:  # a decision in a case of a few frames weighs as much as in a long one
            before = 0.0 if self.mean_cosine is None else self.mean_cosine * (self.frames - features.shape[1])
            self.mean_cosine = (before + result.mean_cosine * features.shape[1]) / self.frames
        else:
            self.mean_cosine = min(1.0 if self.mean_cosine is None else self.mean_cosine, result.mean_cosine)

    def repeats(self, features: np.ndarray, first: np.ndarray) -> None:
        """Add what a repetition gave, (N, F, W), against the first time."""
        if features.shape != first.shape or not np.isfinite(features).all():
            self.problem = f"frames {features.shape}, {first.shape} expected, all finite"
            return
        self.repeated += 1
        self.repeat_max_abs = max(self.repeat_max_abs or 0.0, float(np.abs(features - first).max(initial=0)))


class Gate:
    """An encoder, what is expected of one of its outputs, and that output of one push, which the checks share."""

    def __init__(self, encoder: Encoder, expected: Expected, view: OutputView, *, seed: int = 0) -> None:
        self.encoder, self.view = encoder, view
        self.rng = np.random.default_rng(seed)
        self.wave, self.tail_frames = expected.wave, expected.tail_frames
        self.reference, self.tails = view.expected(expected)  # (N, F, W), (T, N, M, W)
        self.sequence = expected.switch_chunks
        self.switched = view.expected_of_switches(expected) if self.sequence else self.reference
        self.once = self.stream_in(self.wave, [len(self.wave)])  # (N, F, W)

    def stream_in(self, wave: np.ndarray, sizes: Sequence[int] | None = None) -> np.ndarray:
        """Features (N, F, W) of a new stream over ``wave`` with pushes of ``sizes`` (random where None)."""
        return self.joined(pump(self.encoder.stream(), wave, self.sizes(len(wave)) if sizes is None else sizes))

    def switching_stream(self) -> Stream:
        """A new stream whose steps have the sizes of the bundle's reference of switches."""
        stream = self.encoder.stream()
        stream.policy = in_sequence(self.sequence)
        return stream

    def sizes(self, samples: int) -> list[int]:
        """Random push sizes, from single samples to several chunks, that cover ``samples``."""
        largest = 3 * HOP_SAMPLES * self.encoder.geometry.chunk_frames
        sizes: list[int] = []
        while sum(sizes) < samples:
            sizes.append(int(np.exp(self.rng.uniform(0, np.log(largest)))))
        return sizes

    def joined(self, parts: Sequence[Frames]) -> np.ndarray:
        """All frames of a stream as (N, F, W); wrong indices make it fail by shape."""
        at = 0
        for part in parts:
            if part.index != at:
                return self.view.rows([])
            at += len(part)
        return self.view.rows(parts)

    def batched(
        self, streams: Sequence[Stream], waves: Sequence[np.ndarray], delays: Sequence[int]
    ) -> list[np.ndarray]:
        """Features of several waves stepped together; stream i starts ``delays[i]`` rounds later than the first."""
        parts: list[list[Frames]] = [[] for _ in streams]
        size = HOP_SAMPLES * self.encoder.geometry.chunk_frames
        rounds = max(delay + len(wave) // size for delay, wave in zip(delays, waves, strict=True)) + 1
        for turn in range(rounds):
            for stream, wave, delay in zip(streams, waves, delays, strict=True):
                if 0 <= turn - delay <= len(wave) // size:
                    stream.feed(wave[(turn - delay) * size : (turn - delay + 1) * size])
            collect(parts, self.encoder.step(streams))
        for stream in streams:
            stream.end()
        while any(stream.ready for stream in streams):
            collect(parts, self.encoder.step(streams))
        return [self.joined(part) for part in parts]


def pump(stream: Stream, wave: np.ndarray, sizes: Sequence[int], *, end: bool = True) -> list[Frames]:
    """Everything that comes out when ``wave`` goes in by pushes of ``sizes``."""
    parts = [frames for piece in pieces(wave, sizes) for frames in stream.push(piece)]
    return parts + (stream.finish() if end else [])


def pieces(wave: np.ndarray, sizes: Sequence[int]) -> Iterator[np.ndarray]:
    at = 0
    for size in sizes:
        yield wave[at : at + size]
        at += size


def collect(parts: list[list[Frames]], stepped: Sequence[Frames | None]) -> None:
    for part, frames in zip(parts, stepped, strict=True):
        if frames is not None:
            part.append(frames)
