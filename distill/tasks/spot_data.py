"""Recordings for a keyword spotter: keywords as they are and as they may be said, and other speech in three parts.

Other speech is divided speaker by speaker (recording by recording where the speaker is unknown): most of it trains, a
part of it chooses thresholds together with what trained, the rest measures false alarms.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from reuse_distill.distill.data.augment import at_gain, at_speed, with_white_noise
from reuse_distill.distill.data.reading import read_utterance
from reuse_distill.distill.data.utterances import Utterance, find_utterances
from reuse_distill.distill.evaluation import splits
from reuse_distill.distill.tasks.fit_spot import word_of
from reuse_distill.runtime.geometry import HOP_SAMPLES, SAMPLE_RATE_HZ

TEST_SHARE = 0.4  # of other speech
COPIES = 4  # of each keyword recording that trains, besides itself
SPEEDS, GAIN_DB, SNR_DB = (0.88, 1.12), 8.0, 12.0
LEAD_S = (0.0, 2.5)  # of other speech before a keyword
BAD_LIMIT = 0.05


@dataclass(frozen=True)
class Spoken:
    """A recording of a keyword: samples (T,), and the frames of its word."""

    samples: NDArray[np.float32]
    label: int
    word: tuple[int, int]


def other_speech(sources: Sequence[Path], *, seed: int) -> tuple[list[Utterance], list[Utterance], list[str]]:
    """(to train on, to measure with, fingerprints of the sources) of folders or manifests of other speech."""
    train: list[Utterance] = []
    test: list[Utterance] = []
    prints: list[str] = []
    for source in sources:
        for utterance in find_utterances(source, bad_limit=BAD_LIMIT).utterances:
            known = utterance.speaker not in splits.UNKNOWN
            name = utterance.speaker if known else utterance.path.name
            share = int(hashlib.sha256(f"{seed} {name}".encode()).hexdigest()[:8], 16) / 0x1_0000_0000
            (test if share < TEST_SHARE else train).append(utterance)
        prints.append(source.parent.name if source.suffix else source.name)
    return train, test, prints


def keyword_recordings(
    utterances: Sequence[Utterance],
    labels: Sequence[int],
    lead: Sequence[Utterance],
    *,
    copies: int,
    seed: int,
) -> Iterator[Spoken]:
    """Each recording, and ``copies`` of it at another speed and level, in noise, after the end of other speech."""
    generator = np.random.default_rng(seed)
    for utterance, label in zip(utterances, labels, strict=True):
        plain = read_utterance(utterance)
        yield Spoken(plain, label, word_of(plain))
        for _ in range(copies):
            yield _varied(plain, label, lead, generator)


def _varied(
    plain: NDArray[np.float32], label: int, lead: Sequence[Utterance], generator: np.random.Generator
) -> Spoken:
    samples = at_speed(plain, generator.uniform(*SPEEDS))
    word = word_of(samples)
    before = np.zeros(0, np.float32)
    if lead and generator.random() < 0.7:
        other = read_utterance(lead[int(generator.integers(len(lead)))])
        seconds = generator.uniform(*LEAD_S)
        before = other[: int(seconds * SAMPLE_RATE_HZ)]
    frames = len(before) // HOP_SAMPLES
    joined = np.concatenate([before[: frames * HOP_SAMPLES], samples]).astype(np.float32)
    joined = at_gain(joined, GAIN_DB, generator)
    if generator.random() < 0.7:
        joined = with_white_noise(joined, SNR_DB, generator)
    peak = float(np.abs(joined).max())
    joined = joined / np.float32(max(1.0, peak))
    return Spoken(joined, label, (word[0] + frames, word[1] + frames))
