"""Planned batches as tensors: read, resample to 16 kHz, crop, augment, pad. The same batch for the same position."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distill.data.plan import AUGMENT, CROP, SPEED, plan_epoch, plan_shards
from distill.data.remote import ShardError
from distill.data.shar import ShardStore
from distill.data.utterances import Skipped, Utterance, check_bad_share
from distill.recipe import DataSettings
from runtime.audio import Audio, read_audio
from runtime.errors import RdError
from runtime.geometry import RECEPTIVE_FIELD_SAMPLES, SAMPLE_RATE_HZ
from runtime.resample import resample, resampled_length
from runtime.samples import mono

Samples = NDArray[np.float32]


@dataclass(frozen=True)
class Position:
    """Where a run is in its data: the next batch of an epoch."""

    epoch: int = 0
    batch: int = 0


@dataclass
class Batch:
    """``wave`` (B, T) float32 zero-padded, ``lengths`` (B,) samples, ``names`` of the files."""

    wave: Tensor
    lengths: Tensor
    names: list[str]
    position: Position

    @property
    def seconds(self) -> float:
        return float(self.lengths.sum()) / SAMPLE_RATE_HZ


def read_utterance(utterance: Utterance, shards: ShardStore | None = None) -> Samples:
    """The whole utterance at 16 kHz (T,), from any rate and channel count. Raises RdError for damaged audio."""
    if utterance.shard:
        audio = _decoded((shards or ShardStore()).read(utterance.shard, utterance.path.name), utterance)
    else:
        audio = read_audio(utterance.path)
    samples = resample(audio.samples, audio.sample_rate_hz)
    if not utterance.whole:
        start = round(utterance.start_s * SAMPLE_RATE_HZ)
        samples = samples[start : start + round(utterance.seconds * SAMPLE_RATE_HZ)]
    if len(samples) < RECEPTIVE_FIELD_SAMPLES:
        raise RdError(f"{utterance.path}: {len(samples)} samples, one frame needs {RECEPTIVE_FIELD_SAMPLES}")
    return samples


def _decoded(data: bytes, utterance: Utterance) -> Audio:
    import soundfile

    try:
        samples, rate_hz = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
        return Audio(mono(samples, first_sample=0), rate_hz)
    except (soundfile.SoundFileError, RdError) as error:
        raise RdError(f"{utterance.path} in {utterance.shard}: damaged: {error}") from None


def crop(samples: Samples, longest: int, generator: np.random.Generator) -> Samples:
    """A piece of at most ``longest`` samples (0: all of it), its start drawn uniformly."""
    if longest == 0 or len(samples) <= longest:
        return samples
    start = int(generator.integers(0, len(samples) - longest, endpoint=True))
    return samples[start : start + longest]


def at_speed(samples: Samples, speed: float) -> Samples:
    """The samples played at ``speed``, pitch and all: (T,) -> (about T / speed,). One frame stays as it is."""
    rate_hz = round(speed * SAMPLE_RATE_HZ)
    if speed == 1 or resampled_length(len(samples), rate_hz) < RECEPTIVE_FIELD_SAMPLES:
        return samples
    return resample(samples, rate_hz)


def augment(samples: Samples, settings: DataSettings, generator: np.random.Generator) -> Samples:
    """Gain and white noise as the settings ask; the samples themselves where they ask for nothing."""
    if settings.gain_db > 0:
        samples = samples * np.float32(10 ** (generator.uniform(-settings.gain_db, settings.gain_db) / 20))
    if settings.noise_snr_db is not None:
        power = float(np.square(samples, dtype=np.float64).mean())
        snr_db = settings.noise_snr_db + generator.exponential(10.0)
        noise = generator.standard_normal(len(samples)).astype(np.float32)
        samples = samples + noise * np.float32(np.sqrt(power / 10 ** (snr_db / 10)))
    return samples


def pad(pieces: Sequence[Samples]) -> tuple[Tensor, Tensor]:
    """(B, T) zero-padded and lengths (B,)."""
    tensors = [torch.from_numpy(np.ascontiguousarray(piece)) for piece in pieces]
    return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True), torch.tensor([len(t) for t in tensors])


class BatchReader:
    """Batches from a position on, for ever, epoch after epoch, read ahead by threads.

    A file that turns out to be damaged is left out of its batch, the same way in every run, and listed in
    ``skipped``; above ``settings.bad_limit`` of all files RdError stops the run.
    """

    def __init__(
        self, utterances: Sequence[Utterance], settings: DataSettings, *, seed: int, bad_before: int = 0
    ) -> None:
        self.utterances = list(utterances)
        self.settings = settings
        self.seed = seed
        self.bad_before = bad_before  # files that the scan had to leave out already
        self.skipped: dict[int, Skipped] = {}
        self._shards = ShardStore(keep=2 * settings.mixed_shards)  # those of the batches read now, and read ahead
        self._plans: dict[int, tuple[list[list[int]], list[float]]] = {}  # batches of an epoch, and its speeds

    def plan(self, epoch: int) -> list[list[int]]:
        """The batches of one epoch, as indices of utterances."""
        return self._planned(epoch)[0]

    def _planned(self, epoch: int) -> tuple[list[list[int]], list[float]]:
        found = self._plans.get(epoch)
        if found is None:
            longest, speeds = self.settings.crop_seconds or float("inf"), self._speeds(epoch)
            seconds = [min(u.seconds / speed, longest) for u, speed in zip(self.utterances, speeds, strict=True)]
            how: dict[str, Any] = {
                "batch_size": self.settings.batch_size,
                "batch_seconds": self.settings.batch_seconds,
                "buckets": self.settings.buckets,
                "seed": self.seed,
                "epoch": epoch,
            }
            shards = [u.shard for u in self.utterances]
            if any(shards):
                plan = plan_shards(shards, seconds, mixed=self.settings.mixed_shards, **how)
            else:
                plan = plan_epoch(seconds, **how)
            found = plan, speeds
            # Another dictionary, as threads may be looking into this one: epochs of one batch are read many at a time.
            self._plans = {**{e: p for e, p in self._plans.items() if e >= epoch - 1}, epoch: found}
        return found

    def after(self, position: Position, batches: int) -> Position:
        """The position ``batches`` batches after ``position``."""
        epoch, batch = position.epoch, position.batch + batches
        while batch >= len(self.plan(epoch)):
            batch -= len(self.plan(epoch))
            epoch += 1
        return Position(epoch, batch)

    def batches(
        self, start: Position, *, rank: int = 0, ranks: int = 1, pin: bool = False
    ) -> Generator[Batch, None, None]:
        """Batches from ``start``; of ``ranks`` processes each takes every ranks-th, beginning with its rank.

        pin: audio in page-locked memory, which a GPU copies while the host goes on; needs CUDA.
        """
        positions, read = self._positions(start), self._pinned if pin else self._read
        pool = ThreadPoolExecutor(self.settings.workers)
        try:
            ahead: list[Future[Batch | None]] = []
            for number, (position, indices) in enumerate(positions):
                if number % ranks != rank:
                    continue
                ahead.append(pool.submit(read, position, indices))
                if len(ahead) > self.settings.workers:
                    batch = ahead.pop(0).result()
                    if batch is not None:
                        yield batch
        finally:
            pool.shutdown(cancel_futures=True)

    def one_epoch(self, epoch: int, *, rank: int = 0, ranks: int = 1) -> Iterator[tuple[Batch, bool]]:
        """The batches of one epoch, as many in every process: a last one that others have already is not counted.

        Raises RdError where no utterance of a batch can be read.
        """
        plan = self.plan(epoch)
        for first in range(0, len(plan), ranks):
            number = min(first + rank, len(plan) - 1)
            batch = self._read(Position(epoch, number), plan[number])
            if batch is None:
                raise RdError(f"none of the {len(plan[number])} files of a batch can be read: {self._last_error()}")
            yield batch, first + rank < len(plan)

    def _last_error(self) -> str:
        return list(self.skipped.values())[-1].reason

    def _speeds(self, epoch: int) -> list[float]:
        """The speed of every utterance in one epoch."""
        choices, count = self.settings.speeds, len(self.utterances)
        if not choices:
            return [1.0] * count
        drawn = np.random.default_rng([SPEED, self.seed, epoch]).integers(len(choices), size=count)
        return [choices[i] for i in drawn]

    def _positions(self, start: Position) -> Iterator[tuple[Position, list[int]]]:
        epoch, first = start.epoch, start.batch
        while True:
            plan = self.plan(epoch)
            for number in range(first, len(plan)):
                yield Position(epoch, number), plan[number]
            epoch, first = epoch + 1, 0

    def _pinned(self, position: Position, indices: list[int]) -> Batch | None:
        batch = self._read(position, indices)
        return None if batch is None else dataclasses.replace(batch, wave=batch.wave.pin_memory())

    def _read(self, position: Position, indices: list[int]) -> Batch | None:
        pieces, names, speeds = [], [], self._planned(position.epoch)[1]
        for index in indices:
            utterance = self.utterances[index]
            try:
                samples = read_utterance(utterance, self._shards)
            except ShardError:
                raise
            except RdError as error:
                self._skip(index, error)
                continue
            samples = at_speed(samples, speeds[index])
            where = [self.seed, position.epoch, index]
            piece = crop(samples, self._longest, np.random.default_rng([CROP, *where]))
            pieces.append(augment(piece, self.settings, np.random.default_rng([AUGMENT, *where])))
            names.append(str(utterance.path))
        if not pieces:
            return None
        wave, lengths = pad(pieces)
        return Batch(wave, lengths, names, position)

    @property
    def _longest(self) -> int:
        return round(self.settings.crop_seconds * SAMPLE_RATE_HZ)

    def _skip(self, index: int, error: RdError) -> None:
        self.skipped[index] = Skipped(self.utterances[index].path, error.message, bad=True)
        bad, files = self.bad_before + len(self.skipped), self.bad_before + len(self.utterances)
        check_bad_share(bad, files, self.settings.bad_limit, self.skipped.values())
        if bad == files:
            raise RdError(f"none of the {files} files can be read", hint="the last one said: " + error.message)
