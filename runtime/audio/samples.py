"""Samples in memory: int16, float32 or float64, one or several channels, to mono float32 that is finite."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
from reuse_distill.runtime.errors import RdError, nearest

# Raw PCM without a header, by ffmpeg's names.
PCM_DTYPES: dict[str, np.dtype] = {"s16le": np.dtype("<i2"), "f32le": np.dtype("<f4")}
INT16_SCALE = np.float32(1.0 / 32768.0)
# Resampling 1 Hz or 2 GHz would take gigabytes; telephones have 8 kHz, the fastest converters 768 kHz.
LOWEST_RATE_HZ, HIGHEST_RATE_HZ = 1_000, 768_000
MOST_CHANNELS = 64  # more than this is (channels, samples) given the wrong way round
CANCELLED_POWER_RATIO = 1e-6  # mono power over channel power below which the channels cancel (-60 dB)
# Full scale of int32, twice over: what a wrong scale can still make. Squares of larger values overflow in a front end.
LOUDEST = 2.0**32
AUDIBLE_POWER = 1e-8  # and only where there was something to lose (-80 dBFS)


def sample_rate_of(rate: Any) -> int:
    """``rate`` as a positive integer in Hz. Raises RdError for anything else."""
    whole = not isinstance(rate, bool) and isinstance(rate, (int, float, np.integer, np.floating))
    if not whole or not math.isfinite(rate) or rate != int(rate) or rate <= 0:
        raise RdError(f"sample rate {rate!r} is not a positive whole number of Hz", hint="for example 16000 or 48000")
    if not LOWEST_RATE_HZ <= rate <= HIGHEST_RATE_HZ:
        raise RdError(
            f"sample rate {int(rate)} Hz is outside {LOWEST_RATE_HZ} to {HIGHEST_RATE_HZ} Hz",
            hint="is it given in kHz, or the header damaged? 16000 or 48000 are usual",
        )
    return int(rate)


def pcm_dtype(format: str, channels: int) -> np.dtype:
    """The type of one raw sample. Raises RdError for an unknown format and an impossible number of channels."""
    if format not in PCM_DTYPES:
        raise RdError(f"raw PCM format {format!r}", hint=nearest(str(format), list(PCM_DTYPES)))
    if not 1 <= channels <= MOST_CHANNELS:
        raise RdError(f"raw PCM with {channels} channels: 1 to {MOST_CHANNELS} are read")
    return PCM_DTYPES[format]


def decode_pcm(data: bytes | bytearray | memoryview, *, format: str | None, channels: int = 1) -> np.ndarray:
    """Raw PCM bytes, channels interleaved, as (T, channels) int16 or float32.

    Raises RdError without a format, for an unknown one, for bytes that are not a whole number of samples, and for bytes
    that are plainly of the other format.
    """
    if format is None:
        raise RdError(f"{len(data)} bytes without a format", hint="push(data, format='s16le', channels=1)")
    dtype = pcm_dtype(format, channels)
    size = dtype.itemsize * channels
    if len(data) % size:
        raise RdError(
            f"{len(data)} bytes are not a whole number of samples of {size} bytes ({format}, {channels} channels)",
            hint="keep the rest and put it before the next bytes",
        )
    check_format(data, format)
    return np.frombuffer(data, dtype).reshape(-1, channels).astype(dtype.newbyteorder("="), copy=False)


# How many bytes tell a format, at which levels samples lie as floats, and the share of others that tells of int16.
FORMAT_BYTES, FORMAT_LEAST_BYTES = 64_000, 1_600
FLOAT_LEAST, FLOAT_MOST = 1e-7, 64.0
MISREAD_SHARE = 0.2


def check_format(data: bytes | bytearray | memoryview, format: str) -> bool:
    """Raise RdError where ``data`` are plainly of the other format; False where silence or too little tells nothing.

    int16 read as float32 has exponents all over the range: NaN for small negative pairs, next to nothing for small
    positive ones. float32 read as int16 is the other way round: as floats, every sample lies at an audible level.
    """
    whole = len(data) // 4 * 4
    if whole < FORMAT_LEAST_BYTES:
        return False
    floats = np.frombuffer(data, "<f4", min(whole, FORMAT_BYTES) // 4)
    sizes = np.abs(floats[floats != 0])  # NaN stays
    if sizes.size < MISREAD_SHARE * floats.size:
        return False
    audible = float(((sizes >= FLOAT_LEAST) & (sizes <= FLOAT_MOST)).mean())
    if format == "s16le" and audible > 0.999:
        raise RdError("these bytes are float32, read as s16le they would be noise", hint="--format f32le")
    if format == "f32le" and audible < 1 - MISREAD_SHARE:
        raise RdError(
            f"{1 - audible:.0%} of these samples are NaN, huge or next to nothing as f32le: they are probably int16",
            hint="--format s16le",
        )
    return True


def mono(pcm: Any, *, first_sample: int = 0, source: str = "") -> np.ndarray:
    """Samples (T,) or (T, channels), int16, float32 or float64 -> (T,) float32, the mean of the channels.

    int16 is divided by 32768. Raises RdError for another type or shape, and for a NaN or an infinity, whose index is
    named relative to ``first_sample``. Warns when the channels cancel each other, with the name of the ``source``.
    """
    if isinstance(pcm, (bytes, bytearray, memoryview)):
        raise RdError(f"{len(pcm)} bytes without a format", hint="push(data, format='s16le', channels=1)")
    array = np.asarray(pcm)
    _check_form(array)
    if array.dtype == np.int16:
        samples = array.astype(np.float32)
        samples *= INT16_SCALE
    else:
        with np.errstate(over="ignore"):  # float64 beyond float32 becomes an infinity, refused below
            samples = array.astype(np.float32, copy=False)
    check_finite(samples, first_sample=first_sample)
    return samples if samples.ndim == 1 else mix(samples, source=source)


def mix(samples: np.ndarray, *, source: str = "") -> np.ndarray:
    """The mean of the channels, (T, channels) -> (T,) float32; warns when they cancel each other."""
    if samples.shape[1] == 1:
        return np.ascontiguousarray(samples[:, 0])
    mixed = samples.mean(axis=1, dtype=np.float64).astype(np.float32)  # a float32 sum could overflow
    if cancelled(samples, mixed):
        warnings.warn(
            f"{source}{': ' if source else ''}the channels cancel each other: their mean is silence; "
            "give one channel, or invert one",
            RuntimeWarning,
            stacklevel=3,
        )
    return mixed


def cancelled(channels: np.ndarray, mixed: np.ndarray) -> bool:
    """Whether audible ``channels`` (T, channels) left next to nothing in ``mixed`` (T,)."""
    if not channels.size:
        return False
    power = float(np.square(channels, dtype=np.float64).mean())
    return power > AUDIBLE_POWER and float(np.square(mixed, dtype=np.float64).mean()) < power * CANCELLED_POWER_RATIO


def check_finite(samples: np.ndarray, *, first_sample: int = 0) -> None:
    """Raise RdError that names the first NaN, infinity or value beyond LOUDEST of (T,) or (T, channels) float32."""
    if not samples.size or (samples.max() <= LOUDEST and samples.min() >= -LOUDEST):  # both are false for a NaN
        return
    wrong = ~(np.abs(samples) <= LOUDEST)
    at = int(np.argwhere(wrong)[0][0])
    value = samples[at] if samples.ndim == 1 else samples[at][wrong[at]][0]
    if np.isfinite(value):
        raise RdError(
            f"sample {first_sample + at} is {value:g}: beyond {LOUDEST:g}, where features overflow",
            hint="full scale is 1.0 for floats; is this no audio, or bytes of another format?",
        )
    raise RdError(
        f"sample {first_sample + at} is {value}: features of it would be garbage",
        hint="replace NaN and infinite samples before, for example numpy.nan_to_num(pcm, posinf=0, neginf=0)",
    )


def _check_form(array: np.ndarray) -> None:
    if array.dtype not in (np.int16, np.float32, np.float64):
        raise RdError(
            f"samples of type {array.dtype}: int16, float32 or float64 is needed",
            hint="int16 is full scale at 32768, floats at 1.0; convert other types first",
        )
    if array.ndim not in (1, 2):
        raise RdError(f"samples of shape {array.shape}: (samples,) or (samples, channels) is needed")
    if array.ndim == 2 and not 1 <= array.shape[1] <= MOST_CHANNELS:
        raise RdError(
            f"samples of shape {array.shape}: {array.shape[1]} channels, 1 to {MOST_CHANNELS} are read",
            hint="the shape is (samples, channels); give pcm.T if yours is the other way round",
        )
