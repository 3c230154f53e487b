"""The checks of the equivalence gate: ways to stream a recording that must not change its features.

Each compares with the reference features in the bundle. Where it runs the same graph on the same input as one push
of everything does, it also compares with that (``Tally.repeats``), which has to agree to ``gate.REPEAT_MAX_ABS``.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from reuse_distill.runtime.encoder import Encoder
from reuse_distill.runtime.equivalence.gate import Gate, Tally, pieces, pump
from reuse_distill.runtime.geometry import HOP_SAMPLES, RECEPTIVE_FIELD_SAMPLES, frames_for, samples_for
from reuse_distill.runtime.streaming.dial import in_sequence
from reuse_distill.runtime.streaming.framing import Frames

SINGLE_SAMPLE_PUSHES_S = 1.0  # pushes of one sample are slow: only the first second of the recording


class Together:
    """Cases of a few frames each, compared as one: a mean over one frame is no mean."""

    def __init__(self) -> None:
        self.features: list[np.ndarray] = []
        self.references: list[np.ndarray] = []

    def against(self, features: np.ndarray, reference: np.ndarray) -> None:
        """Keep features (N, F, W) and the reference of the same frames."""
        self.features.append(features)
        self.references.append(reference)

    def count_in(self, tally: Tally) -> None:
        """Add all of them to ``tally`` as one case, where there are any."""
        if self.features:
            tally.against(np.concatenate(self.features, axis=1), np.concatenate(self.references, axis=1))


def whole_wave(gate: Gate, tally: Tally) -> None:
    """One push of everything."""
    tally.against(gate.once, gate.reference)
    tally.repeats(gate.stream_in(gate.wave, [len(gate.wave)]), gate.once)


def tails(gate: Gate, tally: Tally) -> None:
    """Recordings cut at every length that the bundle has a reference for; those below a chunk count as one case."""
    few = Together()
    for frames, reference in zip(gate.tail_frames, gate.tails, strict=True):
        features = gate.stream_in(gate.wave[: samples_for(int(frames))])
        if features.shape[1] != frames:
            tally.problem = f"{features.shape[1]} frames of a recording of {frames}"
            return
        last = min(int(frames), reference.shape[1])
        add = few.against if frames < gate.encoder.geometry.chunk_frames else tally.against
        add(features[:, -last:], reference[:, -last:])
    few.count_in(tally)


def push_sizes(gate: Gate, tally: Tally) -> None:
    """Fixed sizes around a frame and a chunk, random sizes, and single samples."""
    step = HOP_SAMPLES * gate.encoder.geometry.chunk_frames
    for size in (160, 319, 320, 400, step - 1, step, step + 1, step + 80):
        features = gate.stream_in(gate.wave, [size] * (len(gate.wave) // size + 1))
        tally.against(features, gate.reference)
        tally.repeats(features, gate.once)
    for _ in range(4):
        features = gate.stream_in(gate.wave)
        tally.against(features, gate.reference)
        tally.repeats(features, gate.once)
    start = gate.wave[: int(SINGLE_SAMPLE_PUSHES_S * gate.encoder.manifest.sample_rate_hz)]
    tally.repeats(gate.stream_in(start, [1] * len(start)), gate.stream_in(start, [len(start)]))


def interleaved(gate: Gate, tally: Tally) -> None:
    """Several streams of one encoder that take turns in random order, one of them over other audio."""
    waves = [gate.wave, gate.wave[::-1].copy(), gate.wave]
    streams = [gate.encoder.stream() for _ in waves]
    parts: list[list[Frames]] = [[] for _ in waves]
    left = [iter(pieces(wave, gate.sizes(len(wave)))) for wave in waves]
    active = list(range(len(waves)))
    while active:
        i = int(gate.rng.choice(active))
        piece = next(left[i], None)
        parts[i] += streams[i].finish() if piece is None else streams[i].push(piece)
        if piece is None:
            active.remove(i)
    for part, wave in zip(parts, waves, strict=True):
        features = gate.joined(part)
        if wave is gate.wave:
            tally.against(features, gate.reference)
        tally.repeats(features, gate.once if wave is gate.wave else gate.stream_in(wave, [len(wave)]))


def reset(gate: Gate, tally: Tally) -> None:
    """A reset after other audio, in the middle of a chunk, and after the end."""
    stream = gate.encoder.stream()
    for used in (len(gate.wave) // 3, len(gate.wave)):
        pump(stream, gate.wave[::-1][:used].copy(), gate.sizes(used), end=used == len(gate.wave))
        stream.reset()
        features = gate.joined(pump(stream, gate.wave, gate.sizes(len(gate.wave))))
        tally.against(features, gate.reference)
        tally.repeats(features, gate.once)
        stream.reset()


def batch(gate: Gate, tally: Tally) -> None:
    """Unequal streams that are neighbours in memory and in step; out of step; and gathered from all over.

    Those over other audio are compared with themselves alone.
    """
    waves = [gate.wave, gate.wave[::-1].copy(), gate.wave, gate.wave[: len(gate.wave) // 2]]
    expected = [gate.reference if wave is gate.wave else gate.stream_in(wave, [len(wave)]) for wave in waves]
    for streams, delays in (
        (gate.encoder.streams(len(waves)), [0, 0, 0, 0]),
        (gate.encoder.streams(len(waves)), [0, 1, 2, 3]),
        ([gate.encoder.stream() for _ in waves], [9, 0, 3, 6]),
    ):
        for features, reference in zip(gate.batched(streams, waves, delays), expected, strict=True):
            tally.against(features, reference)


def silence(gate: Gate, tally: Tally) -> None:
    """Digital silence gives finite features, whatever the pushes, and does not disturb its batch mates."""
    quiet = np.zeros_like(gate.wave)
    tally.repeats(gate.stream_in(quiet), gate.stream_in(quiet, [len(quiet)]))
    features = gate.batched(gate.encoder.streams(2), [quiet, gate.wave], [0, 1])
    tally.against(features[1], gate.reference)


def short(gate: Gate, tally: Tally) -> None:
    """Streams shorter than a chunk, down to no sample: as many frames as the length gives, the same pushed or fed."""
    few = Together()
    for samples in (0, 1, RECEPTIVE_FIELD_SAMPLES - 1, *map(samples_for, range(1, gate.encoder.geometry.chunk_frames))):
        wave = gate.wave[:samples]
        features = gate.stream_in(wave)
        if features.shape[1] != frames_for(samples):
            tally.problem = f"{features.shape[1]} frames of {samples} samples, {frames_for(samples)} expected"
            return
        tally.repeats(features, gate.stream_in(wave, [samples]))
        for frames, reference in zip(gate.tail_frames, gate.tails, strict=True):
            if samples and frames == frames_for(samples):
                last = min(int(frames), reference.shape[1])
                few.against(features[:, -last:], reference[:, -last:])
    few.count_in(tally)


def snapshots(gate: Gate, tally: Tally) -> None:
    """A stream that is moved into a new one at random places."""
    for _ in range(4):
        stream, parts = gate.encoder.stream(), []
        for piece in pieces(gate.wave, gate.sizes(len(gate.wave))):
            parts += stream.push(piece)
            if gate.rng.random() < 0.2:
                saved, stream = stream.snapshot(), gate.encoder.stream()
                stream.restore(saved)
        features = gate.joined(parts + stream.finish())
        tally.against(features, gate.reference)
        tally.repeats(features, gate.once)


def switches(gate: Gate, tally: Tally) -> None:
    """Steps of changing size: pushed in pieces, moved into new streams across switches, and several out of step."""
    if not gate.sequence:
        tally.problem = "the bundle has several chunk sizes and no reference of switches"
        return
    once = gate.joined(pump(gate.switching_stream(), gate.wave, [len(gate.wave)]))
    tally.against(once, gate.switched)
    for moving in (False, True):
        stream, parts = gate.switching_stream(), []
        for piece in pieces(gate.wave, gate.sizes(len(gate.wave))):
            parts += stream.push(piece)
            if moving and gate.rng.random() < 0.3:
                saved, stream = stream.snapshot(), gate.switching_stream()
                stream.restore(saved)
        features = gate.joined(parts + stream.finish())
        tally.against(features, gate.switched)
        tally.repeats(features, once)
    together = gate.encoder.streams(4)
    for stream in together[:3]:
        stream.policy = in_sequence(gate.sequence)
    expected = [gate.switched, gate.switched, gate.switched, gate.reference]
    for features, reference in zip(gate.batched(together, [gate.wave] * 4, [0, 1, 2, 2]), expected, strict=True):
        tally.against(features, reference)


def checks_of(encoder: Encoder) -> dict[str, Callable[[Gate, Tally], None]]:
    """The checks that a bundle has to pass by their names."""
    return {**CHECKS, **({"switches of chunk size": switches} if len(encoder.manifest.chunk_choices) > 1 else {})}


CHECKS: dict[str, Callable[[Gate, Tally], None]] = {
    "whole recording": whole_wave,
    "every tail": tails,
    "push sizes": push_sizes,
    "interleaved streams": interleaved,
    "reset": reset,
    "batch of 1 and of N": batch,
    "silence": silence,
    "shorter than a chunk": short,
    "snapshot and restore": snapshots,
}
