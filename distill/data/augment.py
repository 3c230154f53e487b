"""Augmentation: speed, gain, rooms, recorded and white noise; and whether the teacher hears it too.

Every draw is a function of the seed, the epoch and the utterance, so that a resumed run hears what it would have heard.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from reuse_distill.distill.data.plan import AUGMENT, NOISE, OWN, ROOM
from reuse_distill.distill.data.reading import Samples, read_first_channel, read_piece, read_utterance
from reuse_distill.distill.data.remote import ShardError, is_remote
from reuse_distill.distill.data.shar import ShardStore
from reuse_distill.distill.data.utterances import DamagedFiles, Scan, Skipped, Utterance, find_utterances
from reuse_distill.distill.recipe import DataSettings
from reuse_distill.runtime.audio.resample import resample, resampled_length
from reuse_distill.runtime.errors import RdError, install_hint
from reuse_distill.runtime.geometry import RECEPTIVE_FIELD_SAMPLES, SAMPLE_RATE_HZ

NARROW_HZ, EDGE_HZ = 4000.0, 400.0
Read = Callable[[Utterance, ShardStore, np.random.Generator], Samples]


@dataclass
class Recordings:
    """Noise or rooms to draw from. What turns out to be damaged is left out, the same way in every run, and listed."""

    scan: Scan
    damaged: DamagedFiles
    shards: ShardStore = field(default_factory=ShardStore)

    @property
    def skipped(self) -> list[Skipped]:
        return [*self.scan.skipped, *self.damaged.skipped.copy().values()]

    def draw(self, generator: np.random.Generator, read: Read) -> Samples:
        """``read`` of a recording, drawn again where it is damaged. RdError above ``bad_limit`` of damaged ones."""
        while True:
            number = int(generator.integers(len(self.scan.utterances)))
            try:
                return read(self.scan.utterances[number], self.shards, generator)
            except ShardError:
                raise
            except RdError as error:
                self.damaged.note(number, error)


class Augmentation:
    """What the settings ask for, with the recordings that it draws from. Raises RdError where there are none."""

    def __init__(self, settings: DataSettings, *, seed: int) -> None:
        self.settings, self.seed = settings, seed
        self.noise = _opened("noise", settings.noise, settings.bad_limit)
        self.rooms = _opened("rooms", settings.rooms, settings.bad_limit)

    @property
    def skipped(self) -> list[Skipped]:
        """Noise and rooms that were left out."""
        return [skipped for recordings in self._drawn for skipped in recordings.skipped]

    @property
    def damaged_files(self) -> list[DamagedFiles]:
        """Of the noise and the rooms, where there are any."""
        return [recordings.damaged for recordings in self._drawn]

    @property
    def _drawn(self) -> list[Recordings]:
        return [recordings for recordings in (self.noise, self.rooms) if recordings is not None]

    def hear(self, samples: Samples, epoch: int, index: int) -> tuple[Samples, Samples]:
        """(T,) -> what the student hears and what the teacher hears of utterance ``index``, both (T,)."""
        where = [self.seed, epoch, index]
        plain = np.random.default_rng([AUGMENT, *where])
        clean = at_gain(samples, self.settings.gain_db, plain)
        heard = self._in_noise(self._in_a_room(clean, where), where)
        if self.settings.noise_snr_db is not None:
            heard = with_white_noise(heard, self.settings.noise_snr_db, plain)
        taught = heard if self.settings.teacher_hears == "augmented" else clean
        return self._own_side(heard, where), taught

    def _own_side(self, samples: Samples, where: Sequence[int]) -> Samples:
        """What only the student hears so: a telephone's band, and a level of its own."""
        settings, generator = self.settings, np.random.default_rng([OWN, *where])
        if generator.random() < settings.narrow_band_probability:
            samples = narrow_band(samples)
        if settings.student_gain_db:
            lowest, highest = settings.student_gain_db
            samples = samples * np.float32(10 ** (generator.uniform(lowest, highest) / 20))
        return samples

    def _in_a_room(self, samples: Samples, where: Sequence[int]) -> Samples:
        generator = np.random.default_rng([ROOM, *where])
        if self.rooms is None or generator.random() >= self.settings.rooms_probability:
            return samples
        return reverberated(samples, self.rooms.draw(generator, read_response))

    def _in_noise(self, samples: Samples, where: Sequence[int]) -> Samples:
        generator = np.random.default_rng([NOISE, *where])
        if self.noise is None or generator.random() >= self.settings.noise_probability:
            return samples
        lowest, highest = self.settings.noise_snr_range_db
        snr_db = generator.uniform(lowest, highest)
        noise = self.noise.draw(generator, lambda *place: read_noise(*place, count=len(samples)))
        return samples + noise * scale_for(samples, noise, snr_db)


def at_speed(samples: Samples, speed: float) -> Samples:
    """The samples played at ``speed``, pitch and all: (T,) -> (about T / speed,). One frame stays as it is."""
    rate_hz = round(speed * SAMPLE_RATE_HZ)
    if speed == 1 or resampled_length(len(samples), rate_hz) < RECEPTIVE_FIELD_SAMPLES:
        return samples
    return resample(samples, rate_hz)


def at_gain(samples: Samples, gain_db: float, generator: np.random.Generator) -> Samples:
    """A gain drawn from -gain_db..gain_db; the samples themselves at 0."""
    if gain_db <= 0:
        return samples
    return samples * np.float32(10 ** (generator.uniform(-gain_db, gain_db) / 20))


def narrow_band(samples: Samples) -> Samples:
    """(T,) without what is above 4 kHz, as from a recording at 8 kHz; the edge is 400 Hz wide."""
    spectrum = np.fft.rfft(samples)
    hz = np.linspace(0, SAMPLE_RATE_HZ / 2, len(spectrum))
    spectrum *= np.clip((NARROW_HZ - hz) / EDGE_HZ, 0, 1)
    return np.fft.irfft(spectrum, len(samples)).astype(np.float32)


def with_white_noise(samples: Samples, snr_db: float, generator: np.random.Generator) -> Samples:
    """White noise at ``snr_db`` or better: 10 dB better on average."""
    snr_db += generator.exponential(10.0)
    noise = generator.standard_normal(len(samples)).astype(np.float32)
    return samples + noise * np.float32(np.sqrt(power_of(samples) / 10 ** (snr_db / 10)))


def reverberated(samples: Samples, response: Samples) -> Samples:
    """(T,) heard through a room's impulse response (L,) -> (T,) of the same power.

    The sound stays where it was in time: the delay up to the response's strongest peak, taken for the direct path, is
    removed, as Kaldi's --shift-output does.
    """
    try:
        from scipy.signal import oaconvolve
    except ImportError:
        raise RdError("scipy is not installed", hint=install_hint("distill")) from None
    direct = int(np.abs(response).argmax())
    heard = oaconvolve(samples, response)[direct : direct + len(samples)].astype(np.float32)
    return heard * _ratio(power_of(samples), power_of(heard))


def scale_for(samples: Samples, noise: Samples, snr_db: float) -> np.float32:
    """What to multiply ``noise`` (T,) with so that ``samples`` (T,) have ``snr_db`` over it."""
    return _ratio(power_of(samples) / 10 ** (snr_db / 10), power_of(noise))


def power_of(samples: Samples) -> float:
    """Mean square."""
    return float(np.square(samples, dtype=np.float64).mean())


def read_noise(utterance: Utterance, shards: ShardStore, generator: np.random.Generator, *, count: int) -> Samples:
    """A piece (count,) of a recording from a drawn place on, repeated where the recording is shorter.

    Where the piece is silent it is the one that begins at the loudest sample. Raises RdError for a silent recording.
    """
    seconds = count / SAMPLE_RATE_HZ
    start_s = generator.uniform(0, max(utterance.seconds - seconds, 0.0))
    if utterance.seconds > seconds:
        piece = read_piece(utterance, start_s, min(seconds + 0.1, utterance.seconds - start_s), shards)
        if piece.any():
            return np.resize(piece, count)
    whole = read_utterance(utterance, shards)
    if not whole.any():
        raise RdError(f"{utterance.path}: is silent")
    loudest = int(np.abs(whole).argmax())
    start = loudest if utterance.seconds > seconds else int(generator.integers(len(whole)))
    return np.resize(np.roll(whole, -start), count)


def read_response(utterance: Utterance, shards: ShardStore, _generator: np.random.Generator) -> Samples:
    """A room's impulse response (L,). Raises RdError for a silent one."""
    response = read_first_channel(utterance, shards)
    if not response.any():
        raise RdError(f"{utterance.path}: is silent")
    return response


def _ratio(power: float, over: float) -> np.float32:
    return np.float32(np.sqrt(power / over)) if over > 0 else np.float32(0)


def _opened(name: str, source: str | None, bad_limit: float) -> Recordings | None:
    if source is None:
        return None
    if is_remote(source):
        raise RdError(f"data.{name} is {source}", hint="recordings are drawn one by one: copy them to a folder")
    try:
        scan = find_utterances(source, bad_limit=bad_limit)
    except RdError as error:
        raise RdError(f"data.{name}: {error.message}", hint=error.hint) from None
    return Recordings(scan, DamagedFiles(scan.utterances, scan.bad, bad_limit))
