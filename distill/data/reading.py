"""Utterances as samples at 16 kHz: whole, or a piece of a long recording without decoding the rest."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from reuse_distill.distill.data.remote import ShardError
from reuse_distill.distill.data.shar import ShardStore
from reuse_distill.distill.data.utterances import Scan, Skipped, Utterance, check_bad_share
from reuse_distill.runtime.audio.audio_files import read_audio
from reuse_distill.runtime.audio.resample import resample
from reuse_distill.runtime.audio.samples import check_finite, mono
from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.geometry import RECEPTIVE_FIELD_SAMPLES, SAMPLE_RATE_HZ

Samples = NDArray[np.float32]
CUT_SLACK_S = 0.1  # durations of cuts are rounded


def read_utterance(utterance: Utterance, shards: ShardStore | None = None) -> Samples:
    """The whole utterance at 16 kHz (T,), from any rate and channel count. Raises RdError for damaged audio."""
    if not utterance.whole:
        samples = read_piece(utterance, 0.0, utterance.seconds, shards)
        if len(samples) < (utterance.seconds - CUT_SLACK_S) * SAMPLE_RATE_HZ:
            raise RdError(
                f"{utterance.path}: {len(samples) / SAMPLE_RATE_HZ:.2f} s from {utterance.start_s:.2f} s on, "
                f"its cut is {utterance.seconds:.2f} s long",
                hint="the recording is cut short, or is another one than the cuts are of",
            )
    elif utterance.shard:
        channels, rate_hz = _decoded(utterance, shards)
        samples = resample(mono(channels, source=str(utterance.path)), rate_hz)
    else:
        audio = read_audio(utterance.path)
        samples = resample(audio.samples, audio.sample_rate_hz)
    if len(samples) < RECEPTIVE_FIELD_SAMPLES:
        raise RdError(f"{utterance.path}: {len(samples)} samples, one frame needs {RECEPTIVE_FIELD_SAMPLES}")
    return samples


def readable(scan: Scan, *, bad_limit: float) -> Scan:
    """Without the utterances that are damaged inside: all are decoded. RdError for more than ``bad_limit`` of them."""
    good, skipped, shards = [], list(scan.skipped), ShardStore()
    for utterance in scan.utterances:
        try:
            read_utterance(utterance, shards)
            good.append(utterance)
        except ShardError:
            raise
        except RdError as error:
            reason = error.message.removeprefix(f"{utterance.path}: ")
            skipped.append(Skipped(utterance.path, reason, bad=True))
    check_bad_share(sum(s.bad for s in skipped), len(good) + len(skipped), bad_limit, skipped)
    return Scan(tuple(good), tuple(skipped))


def read_piece(utterance: Utterance, start_s: float, seconds: float, shards: ShardStore | None = None) -> Samples:
    """``seconds`` from ``start_s`` of the utterance at 16 kHz (T,), fewer at its end. RdError for damaged audio."""
    channels, rate_hz = _decoded(utterance, shards, start_s, seconds)
    return resample(mono(channels, source=str(utterance.path)), rate_hz)


def read_first_channel(utterance: Utterance, shards: ShardStore | None = None) -> Samples:
    """The first channel at 16 kHz (T,): the mean of several microphones would be no microphone."""
    channels, rate_hz = _decoded(utterance, shards, 0.0, utterance.seconds)
    return resample(np.ascontiguousarray(channels[:, 0]), rate_hz)


def _decoded(
    utterance: Utterance, shards: ShardStore | None, start_s: float = 0.0, seconds: float | None = None
) -> tuple[Samples, int]:
    """(T, channels) at the file's own rate, which comes with it."""
    import soundfile

    source: io.BytesIO | Path = utterance.path
    if utterance.shard:
        source = io.BytesIO((shards or ShardStore()).read(utterance.shard, utterance.path.name))
    where = f"{utterance.path} in {utterance.shard}" if utterance.shard else str(utterance.path)
    try:
        with soundfile.SoundFile(source) as file:
            file.seek(min(round((utterance.start_s + start_s) * file.samplerate), file.frames))
            count = -1 if seconds is None else round(seconds * file.samplerate)
            channels, rate_hz = file.read(count, dtype="float32", always_2d=True), int(file.samplerate)
        check_finite(channels)
    except (soundfile.SoundFileError, OSError, RdError) as error:
        raise RdError(f"{where}: damaged: {getattr(error, 'message', error)}") from None
    return channels, rate_hz
