"""Recordings for a keyword spotter: keywords as they are and as they may be said, and other speech in three parts.

Other speech is divided speaker by speaker (recording by recording where the speaker is unknown): most of it trains, a
part of it chooses thresholds together with what trained, the rest measures false alarms.

What a keyword spotter does on recordings it has not seen: misses, false alarms in an hour, delay after the word.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from reuse_distill.distill.data.augment import at_gain, at_speed, with_white_noise
from reuse_distill.distill.data.reading import read_utterance
from reuse_distill.distill.data.utterances import Utterance, find_utterances
from reuse_distill.distill.evaluation import splits
from reuse_distill.distill.evaluation.bootstrap import ratio_interval
from reuse_distill.distill.tasks.fit_spot import word_of
from reuse_distill.runtime.geometry import HOP_SAMPLES, SAMPLE_RATE_HZ
from reuse_distill.runtime.tasks import TaskOutput, decode, decoder_of

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


@dataclass(frozen=True)
class Heard:
    """One recording through the network: probabilities (F, 1 + K S), what was said (-1: no keyword), the word's end."""

    rows: NDArray[np.float32]
    label: int = -1
    word_end: int = 0  # frame after the word


def judge_spot(output: TaskOutput, spoken: Sequence[Heard], others: Sequence[Heard]) -> dict[str, Any]:
    """Misses of ``spoken`` with their interval, false alarms in ``others`` with theirs, and the delay of detections."""
    decoder, delays = decoder_of(output), []
    missed: list[float] = []
    wrong = 0
    for recording in spoken:
        events = decode(decoder, recording.rows)
        right = [event for event in events if event.label == output.labels[recording.label]]
        wrong += len(events) - len(right)
        missed.append(0.0 if right else 1.0)
        if right:
            delays.append(right[0].end_s - recording.word_end / output.rate_hz)
    seconds = sum(len(recording.rows) for recording in others) / output.rate_hz
    alarms = [event.label for recording in others for event in decode(decoder, recording.rows)]
    by_keyword = {
        label: {
            "recordings": sum(r.label == number for r in spoken),
            "missed": int(sum(m for m, r in zip(missed, spoken, strict=True) if r.label == number)),
            "false_alarms": alarms.count(label),
            "threshold": output.thresholds[number],
        }
        for number, label in enumerate(output.labels)
    }
    return {
        "false_rejection_rate": asdict(ratio_interval(missed, [1.0] * len(missed))) if missed else "unmeasured",
        "recordings": len(missed),
        "other_keyword_detected": wrong,
        "false_alarms": len(alarms),
        "other_speech_hours": round(seconds / 3600, 3),
        "false_alarms_per_hour": poisson_rate(len(alarms), seconds / 3600),
        "delay_after_word_s": _spread(delays),
        "keywords": by_keyword,
    }


def poisson_rate(count: int, hours: float) -> dict[str, float] | str:
    """Events per hour with the exact 95 % interval of a Poisson count (Garwood 1936)."""
    if hours <= 0:
        return "unmeasured"
    from scipy.stats import chi2

    low = float(chi2.ppf(0.025, 2 * count)) / 2 if count else 0.0
    high = float(chi2.ppf(0.975, 2 * count + 2)) / 2
    return {"value": count / hours, "low": low / hours, "high": high / hours}


def _spread(delays: Sequence[float]) -> dict[str, float] | str:
    if not delays:
        return "unmeasured"
    p10, median, p90 = np.percentile(delays, [10, 50, 90])
    return {"p10": round(float(p10), 3), "median": round(float(median), 3), "p90": round(float(p90), 3)}
