"""Planned batches as tensors: read, resample to 16 kHz, crop, augment, pad. The same batch for the same position."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from reuse_distill.distill.data.augment import Augmentation, at_speed
from reuse_distill.distill.data.plan import CROP, SPEED, plan_epoch, plan_shards
from reuse_distill.distill.data.reading import Samples, read_utterance
from reuse_distill.distill.data.remote import ShardError
from reuse_distill.distill.data.shar import ShardStore
from reuse_distill.distill.data.utterances import DamagedFiles, Skipped, Utterance
from reuse_distill.distill.recipe import DataSettings
from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.geometry import HOP_SAMPLES, SAMPLE_RATE_HZ, frames_for
from torch import Tensor


@dataclass(frozen=True)
class Position:
    """Where a run is in its data: the next batch of an epoch."""

    epoch: int = 0
    batch: int = 0


@dataclass
class Batch:
    """``wave`` (B, T) float32 zero-padded, ``lengths`` (B,) samples, ``names`` of the files.

    ``clean`` (B, T) is what the teacher hears, where that is not ``wave``. ``targets`` (N, B, F, C) are the teacher's
    layers where they are stored, zero on padding.
    """

    wave: Tensor
    lengths: Tensor
    names: list[str]
    position: Position
    clean: Tensor | None = None
    targets: Tensor | None = None

    @property
    def for_teacher(self) -> Tensor:
        return self.wave if self.clean is None else self.clean

    @property
    def seconds(self) -> float:
        return float(self.lengths.sum()) / SAMPLE_RATE_HZ


class StoredTargets(Protocol):
    """A teacher's layers made before: ``distill.teachers.stored.TargetStore``."""

    def keys(self, utterances: Sequence[Utterance]) -> list[str]:
        """What names each utterance."""
        ...

    def frames(self, key: str, start: int, count: int) -> NDArray[np.float32]:
        """(N, count, C) of an utterance from frame ``start`` on."""
        ...


def crop(samples: Samples, longest: int, generator: np.random.Generator, *, grid: int = 1) -> tuple[Samples, int]:
    """(a piece of at most ``longest`` samples (0: all), its start): drawn uniformly among the multiples of ``grid``."""
    if longest == 0 or len(samples) <= longest:
        return samples, 0
    start = grid * int(generator.integers(0, (len(samples) - longest) // grid, endpoint=True))
    return samples[start : start + longest], start


def pad(pieces: Sequence[Samples]) -> tuple[Tensor, Tensor]:
    """(B, T) zero-padded and lengths (B,)."""
    tensors = [torch.from_numpy(np.ascontiguousarray(piece)) for piece in pieces]
    return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True), torch.tensor([len(t) for t in tensors])


def _stacked(layers: Sequence[NDArray[np.float32]]) -> Tensor:
    """(N, F, C) of every row -> (N, B, F, C), zero-padded."""
    longest = max(one.shape[1] for one in layers)
    result = torch.zeros(layers[0].shape[0], len(layers), longest, layers[0].shape[2])
    for row, one in enumerate(layers):
        result[:, row, : one.shape[1]] = torch.from_numpy(one)
    return result


class BatchReader:
    """Batches from a position on, for ever, epoch after epoch, read ahead by threads.

    A file that turns out to be damaged is left out of its batch, the same way in every run, and listed in
    ``skipped``; above ``settings.bad_limit`` of all files RdError stops the run. ``bad_before``: how many of them
    the scan has left out. ``targets``: crops then begin on the students' frames, and bring the teacher's layers.
    """

    def __init__(
        self,
        utterances: Sequence[Utterance],
        settings: DataSettings,
        *,
        seed: int,
        bad_before: int = 0,
        targets: StoredTargets | None = None,
    ) -> None:
        self.utterances = list(utterances)
        self.settings = settings
        self.seed = seed
        self.damaged = DamagedFiles(self.utterances, bad_before, settings.bad_limit)
        self.augmentation = Augmentation(settings, seed=seed)
        self.targets = targets
        self._keys = [] if targets is None else targets.keys(self.utterances)
        self._decoded: dict[int, Samples] = {}  # utterances that are kept in memory
        self._room = settings.cache_gib * 2**30  # bytes that they may still take
        self._shards = ShardStore(keep=2 * settings.mixed_shards)  # those of the batches read now, and read ahead
        self._plans: dict[int, tuple[list[list[int]], list[float]]] = {}  # batches of an epoch, and its speeds

    @property
    def skipped(self) -> list[Skipped]:
        """What was left out since the scan, and all that was left out of noise and rooms."""
        return [*self.damaged.skipped.copy().values(), *self.augmentation.skipped]

    @property
    def damaged_files(self) -> list[DamagedFiles]:
        """Of the utterances, the noise and the rooms; as many in every process."""
        return [self.damaged, *self.augmentation.damaged_files]

    def plan(self, epoch: int) -> list[list[int]]:
        """The batches of one epoch, as indices of utterances."""
        return self._planned(epoch)[0]

    def _planned(self, epoch: int) -> tuple[list[list[int]], list[float]]:
        planned = self._plans.get(epoch)
        if planned is None:
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
            planned = plan, speeds
            # Another dictionary, as threads may be looking into this one: epochs of one batch are read many at a time.
            self._plans = {**{e: p for e, p in self._plans.items() if e >= epoch - 1}, epoch: planned}
        return planned

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

        Where nothing of a batch can be read, the next one of its epoch stands in for it, so that processes keep step.

        pin: audio in page-locked memory, which a GPU copies while the host continues; needs CUDA.
        """
        with closing(self._ahead(self._mine(start, rank, ranks), pin=pin)) as read:
            for batch, (position, _) in zip(read, self._mine(start, rank, ranks), strict=False):
                yield batch or self._stand_in(position, pin=pin)

    def _stand_in(self, position: Position, *, pin: bool) -> Batch:
        plan, read = self.plan(position.epoch), self._pinned if pin else self._read
        for number in range(position.batch + 1, position.batch + len(plan)):
            if (batch := read(position, plan[number % len(plan)])) is not None:
                return batch
        raise RdError(f"none of the batches of an epoch can be read: {self._last_error()}")

    def _mine(self, start: Position, rank: int, ranks: int) -> Iterator[tuple[Position, list[int]]]:
        return islice(self._positions(start), rank, None, ranks)

    def one_epoch(
        self, epoch: int, *, rank: int = 0, ranks: int = 1, pin: bool = False
    ) -> Generator[tuple[Batch, bool], None, None]:
        """The batches of one epoch, as many in every process, and whether each counts.

        A last one that others have already does not, nor does one that stands in for a batch that cannot be read.
        pin: as in ``batches``. Raises RdError where nothing of the epoch can be read.
        """
        plan = self.plan(epoch)
        firsts = range(0, len(plan), ranks)
        positions = [Position(epoch, min(first + rank, len(plan) - 1)) for first in firsts]
        with closing(self._ahead(((where, plan[where.batch]) for where in positions), pin=pin)) as read:
            for first, where, batch in zip(firsts, positions, read, strict=True):
                yield batch or self._stand_in(where, pin=pin), batch is not None and first + rank < len(plan)

    def _ahead(
        self, positions: Iterable[tuple[Position, list[int]]], *, pin: bool
    ) -> Generator[Batch | None, None, None]:
        """The batches in order, read by threads a few ahead of the one that is requested."""
        pool, read = ThreadPoolExecutor(self.settings.workers), self._pinned if pin else self._read
        try:
            ahead: deque[Future[Batch | None]] = deque()
            for position, indices in positions:
                ahead.append(pool.submit(read, position, indices))
                if len(ahead) > self.settings.workers:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)

    def _last_error(self) -> str:
        return list(self.damaged.skipped.copy().values())[-1].reason

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
        if batch is None:
            return None
        clean = None if batch.clean is None else batch.clean.pin_memory()
        targets = None if batch.targets is None else batch.targets.pin_memory()
        return dataclasses.replace(batch, wave=batch.wave.pin_memory(), clean=clean, targets=targets)

    def _read(self, position: Position, indices: list[int]) -> Batch | None:
        heard, taught, names, speeds = [], [], [], self._planned(position.epoch)[1]
        layers: list[NDArray[np.float32]] = []
        for index in indices:
            utterance = self.utterances[index]
            try:
                samples = self._samples(index)
            except ShardError:
                raise
            except RdError as error:
                self.damaged.note(index, error)
                continue
            generator = np.random.default_rng([CROP, self.seed, position.epoch, index])
            grid = 1 if self.targets is None else HOP_SAMPLES
            piece, start = crop(at_speed(samples, speeds[index]), self._longest, generator, grid=grid)
            student, teacher = self.augmentation.hear(piece, position.epoch, index)
            heard.append(student)
            taught.append(teacher)
            names.append(str(utterance.path))
            if self.targets is not None:
                first, count = start // HOP_SAMPLES, frames_for(len(piece))
                layers.append(self.targets.frames(self._keys[index], first, count))
        if not heard:
            return None
        wave, lengths = pad(heard)
        same = all(student is teacher for student, teacher in zip(heard, taught, strict=True))
        clean = None if same or layers else pad(taught)[0]
        return Batch(wave, lengths, names, position, clean, _stacked(layers) if layers else None)

    def _samples(self, index: int) -> Samples:
        """An utterance, decoded once where there is room for it."""
        samples = self._decoded.get(index)
        if samples is None:
            samples = read_utterance(self.utterances[index], self._shards)
            if (
                samples.nbytes <= self._room
            ):  # two threads may take the same room: it is a bound for thrift, not a limit
                self._room -= samples.nbytes
                self._decoded[index] = samples
        return samples

    @property
    def _longest(self) -> int:
        return round(self.settings.crop_seconds * SAMPLE_RATE_HZ)
